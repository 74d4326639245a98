/* Programs over the flow table of the one under test, run in its place by wrapper.c: with flows.py,
 * all in the benchmarks that knows what that table looks like.
 *
 * Each works on the flow whose request stands in the frame. bench_fill enters it as established, in
 * both directions, by the table's own hand. bench_refresh puts off its deadline so far that no
 * packet of a benchmark's finds it due for a touch, bench_age has it due with the next packet; both
 * in both directions. bench_count counts it, if it is established and whole.
 */
#define GALE_XDP
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/icmp.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "ports.h"

#define LONG_TICKS (3600 * TICKS_PER_SECOND)
#define CLIENT_PORT_BITS 15

/* How flow number i is entered: at node i % nodes, with that node's SNAT port i / nodes. */
struct filling {
	__u32 first_client; /* host order */
	__u32 first_port;
	__be32 snat_address;
	__u32 first_snat_port;
	__u32 first_seat;
	__u32 nodes;
	__u64 counted; /* by bench_count */
};

GALE_MAP("array", int, struct filling, fillings, 1, 0);

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

static __always_inline struct frame *read_key(struct xdp_md *ctx, struct flow_key *key)
{
	struct frame *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return 0;
	key->saddr = frame->ip.saddr;
	key->daddr = frame->ip.daddr;
	key->sport = frame->tcp.source;
	key->dport = frame->tcp.dest;
	key->protocol = IPPROTO_TCP;
	return frame;
}

static __always_inline void make_request(const struct filling *filling, const struct frame *frame,
					 const struct flow_key *key, const struct seat *seat,
					 __u32 number, struct flow *request)
{
	request->key = *key;
	request->saddr = filling->snat_address;
	request->daddr = seat->address;
	request->sport = bpf_htons(filling->first_snat_port + number / filling->nodes);
	request->dport = seat->port;
	request->seat = filling->first_seat + number % filling->nodes;
	request->state = FLOW_TCP_ESTABLISHED;
	request->scale = 0;
	__builtin_memcpy(request->last_hop, frame->ethernet.h_source, ETH_ALEN);
}

/* What each side has said, if the other has said what stands in the frame. */
static __always_inline void agree(const struct frame *frame, struct flow *request,
				  struct flow *reply)
{
	request->end = reply->acked = bpf_ntohl(frame->tcp.seq);
	reply->end = request->acked = bpf_ntohl(frame->tcp.ack_seq);
	request->edge = request->acked + bpf_ntohs(frame->tcp.window);
	reply->edge = reply->acked + bpf_ntohs(frame->tcp.window);
	request->reach = reply->reach = reach_of(0, 0);
}

/* Both halves of the draft's flow, reply first; -1: one of the places is not to be had. */
static __always_inline int enter(const struct frame *frame, const struct flow_key *key,
				 struct draft *draft, const struct settings *own, __u32 now)
{
	struct flow_key other_key = reply_key(&draft->request);
	struct place request = {}, reply = {};

	place_of_hash(&reply, table_hash(&other_key, own->flow_seed), FLOW_BUCKETS);
	if (claim_place(&reply, &other_key, draft, DIRECTION_REPLY, own, now, 0) != CLAIM_GRANTED)
		return -1;
	draft->request.other = reply.index;
	place_of_hash(&request, table_hash(key, own->flow_seed), FLOW_BUCKETS);
	if (claim_place(&request, key, draft, DIRECTION_REQUEST, own, now, 0) != CLAIM_GRANTED)
		return -1;
	if (!request.flow || !reply.flow)
		return -1;
	reply.flow->other = request.index;
	agree(frame, request.flow, reply.flow);
	return 0;
}

int bench_fill(struct xdp_md *ctx)
{
	struct flow_key key = {};
	struct frame *frame = read_key(ctx, &key);
	int zero = 0, index;
	struct filling *filling = fillings.lookup(&zero);
	struct draft *draft = drafts.lookup(&zero);
	struct settings *own = settings.lookup(&zero);
	__u32 number, now = ticks_now();
	struct seat *seat;

	if (!filling || !filling->nodes || !draft || !own || !frame)
		return XDP_ABORTED;
	number = (bpf_ntohl(key.saddr) - filling->first_client) << CLIENT_PORT_BITS;
	number += bpf_ntohs(key.sport) - filling->first_port;
	index = filling->first_seat + number % filling->nodes;
	seat = seats.lookup(&index);
	if (!seat)
		return XDP_ABORTED;
	make_request(filling, frame, &key, seat, number, &draft->request);
	draft->request.begin = now;
	draft->request.deadline = deadline_of(FLOW_TCP_ESTABLISHED, own, now);
	return enter(frame, &key, draft, own, now) ? XDP_ABORTED : XDP_TX;
}

/* The other entry of an established flow that was found at `place`; 0: it is not whole. */
static __always_inline struct flow *other_half(const struct place *place,
					       const struct flow_key *key)
{
	struct flow *other;
	struct rewrite to;

	if (!place->flow || read_rewrite(place->flow, key, &to))
		return 0;
	other = other_direction(place, key, &to);
	if (!other || to.state != FLOW_TCP_ESTABLISHED || other->state != FLOW_TCP_ESTABLISHED)
		return 0;
	return other;
}

/* A deadline so many ticks after the moment from which on the flow is due for a touch. */
static __always_inline int put_off(struct xdp_md *ctx, __u32 ticks)
{
	struct flow_key key = {};
	__u32 now = ticks_now();
	int zero = 0;
	struct settings *own = settings.lookup(&zero);
	struct place place;
	struct flow *other;

	if (!own || !read_key(ctx, &key))
		return XDP_ABORTED;
	place = find_flow(&key, own);
	other = other_half(&place, &key);
	if (!place.flow || !other)
		return XDP_DROP;
	place.flow->deadline = now + timeout_of(own, FLOW_TCP_ESTABLISHED) + ticks;
	other->deadline = place.flow->deadline;
	return XDP_TX;
}

int bench_refresh(struct xdp_md *ctx)
{
	return put_off(ctx, LONG_TICKS);
}

int bench_age(struct xdp_md *ctx)
{
	return put_off(ctx, 0);
}

int bench_count(struct xdp_md *ctx)
{
	struct flow_key key = {};
	int zero = 0;
	struct filling *filling = fillings.lookup(&zero);
	struct settings *own = settings.lookup(&zero);
	struct place place;

	if (!filling || !own || !read_key(ctx, &key))
		return XDP_ABORTED;
	place = find_flow(&key, own);
	if (!other_half(&place, &key))
		return XDP_DROP;
	filling->counted++;
	return XDP_TX;
}
