/* Programs over the flow table of the one under test, run in its place by wrapper.c: with flows.py,
 * all in the benchmarks that knows what that table looks like.
 *
 * Each works on the flow whose request stands in the frame. bench_fill enters it as established, in
 * both directions. bench_refresh marks it as touched this instant, bench_age as touched long ago,
 * both in place and in both directions: user space could only write whole entries anew, which an
 * LRU table takes as new ones, elsewhere in memory. bench_count counts it, if it is established and
 * whole.
 */
#define GALE_XDP
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/icmp.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "conntrack.h"

#define LONG_AGO 1000000 /* jiffies */
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

static __always_inline int read_key(struct xdp_md *ctx, struct flow_key *key)
{
	struct frame *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	key->saddr = frame->ip.saddr;
	key->daddr = frame->ip.daddr;
	key->sport = frame->tcp.source;
	key->dport = frame->tcp.dest;
	key->protocol = IPPROTO_TCP;
	return 0;
}

int bench_fill(struct xdp_md *ctx)
{
	struct flow flow = { .state = FLOW_ESTABLISHED }, reply;
	struct flow_key key = {}, reply_key;
	int zero = 0, index;
	struct filling *filling = fillings.lookup(&zero);
	struct seat *seat;
	__u32 number;

	if (!filling || !filling->nodes || read_key(ctx, &key))
		return XDP_ABORTED;
	number = (bpf_ntohl(key.saddr) - filling->first_client) << CLIENT_PORT_BITS;
	number += bpf_ntohs(key.sport) - filling->first_port;
	index = filling->first_seat + number % filling->nodes;
	seat = seats.lookup(&index);
	if (!seat)
		return XDP_ABORTED;
	flow.service = seat->service;
	flow.seat = index;
	flow.saddr = filling->snat_address;
	flow.daddr = seat->address;
	flow.sport = bpf_htons(filling->first_snat_port + number / filling->nodes);
	flow.dport = seat->port;
	flow.touched = bpf_jiffies64();
	flow.created = flow.last_seen = bpf_ktime_get_coarse_ns();
	set_deltas(&key, &flow);
	reply_key = opposite_key(&key, &flow);
	reply = turned_around(&key, &flow);
	return est.update(&reply_key, &reply) || est.update(&key, &flow) ? XDP_ABORTED : XDP_TX;
}

static __always_inline int touch(struct xdp_md *ctx, __u32 jiffies)
{
	struct flow_key key = {}, reply_key;
	struct flow *flow, *reply;

	if (read_key(ctx, &key))
		return XDP_ABORTED;
	flow = est.lookup(&key);
	if (!flow)
		return XDP_DROP;
	flow->touched = jiffies;
	reply_key = opposite_key(&key, flow);
	reply = est.lookup(&reply_key);
	if (!reply)
		return XDP_DROP;
	reply->touched = jiffies;
	return XDP_TX;
}

int bench_refresh(struct xdp_md *ctx)
{
	return touch(ctx, bpf_jiffies64());
}

int bench_age(struct xdp_md *ctx)
{
	return touch(ctx, bpf_jiffies64() - LONG_AGO);
}

int bench_count(struct xdp_md *ctx)
{
	struct flow_key key = {}, reply_key;
	int zero = 0;
	struct filling *filling = fillings.lookup(&zero);
	struct flow *flow, *reply;

	if (!filling || read_key(ctx, &key))
		return XDP_ABORTED;
	flow = est.lookup(&key);
	if (!flow || flow->state != FLOW_ESTABLISHED)
		return XDP_DROP;
	reply_key = opposite_key(&key, flow);
	reply = est.lookup(&reply_key);
	if (!reply || !are_opposite(&key, reply))
		return XDP_DROP;
	filling->counted++;
	return XDP_TX;
}
