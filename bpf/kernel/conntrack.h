/* Connection tracking: `half` for flows whose handshake is under way, `est` for all others.
 *
 *            SYN, UDP             SYN-ACK                 the client's ACK of it
 *    (none) ─────────► SYN_SENT ─────────► SYN_RECEIVED ────────────────────────► ESTABLISHED
 *                         │      the node's first UDP datagram                       ▲    │
 *                         └──────────────────────────────────────────────────────────┘    │
 *                                                                                     FIN │
 *                                              CLOSED ◄── the other FIN, RST ── CLOSING ◄─┘
 *
 * A packet of an established flow costs one look-up. What can only be forged without seeing the
 * node's answer (a SYN, a blind ACK) never enters `est`, and each table evicts only its like: a
 * flood of ten times their size costs no established flow.
 *
 * Each flow has two entries, one per direction, each with its own rewrite. The reply's entry is
 * what reserves the SNAT port: it is inserted first, with BPF_NOEXIST, and in either table at most
 * one flow owns it. Entries of an LRU table may vanish one at a time; so once a second a flow's
 * packet looks at the other entry too, puts it back if it is missing, and ends the flow if another
 * took it.
 *
 * User space only sweeps what is idle (services/dataplane/conntrack.py); if it is dead, nothing
 * here notices.
 */
#ifndef GALE_CONNTRACK_H
#define GALE_CONNTRACK_H

#include "maps.h"
#include "packet.h"
#include "checksum.h"
#include "hash.h"

#define TOUCH_JIFFIES 1000 /* a second to ten, as the kernel's HZ has it */
#define HALF_OPEN_TOUCH_NS 1000000000ULL
#define HALF_OPEN_STEAL_NS 3000000000ULL
#define PORT_TRIES 8
#define PORT_TRIES_IN_STRIDE 4

/* The key under which packets of the other direction arrive. */
static __always_inline struct flow_key opposite_key(const struct flow_key *key,
						    const struct flow *flow)
{
	return (struct flow_key){
		.saddr = flow->daddr,
		.daddr = flow->saddr,
		.sport = flow->dport,
		.dport = flow->sport,
		.protocol = key->protocol,
		.direction = !key->direction,
		.zone = key->zone,
	};
}

/* Whether `other` turns the packets of its direction into answers to packets under `key`. */
static __always_inline int are_opposite(const struct flow_key *key, const struct flow *other)
{
	return other->saddr == key->daddr && other->daddr == key->saddr &&
	       other->sport == key->dport && other->dport == key->sport;
}

/* The entry of the other direction: it undoes what `flow` does to packets under `key`. */
static __always_inline struct flow turned_around(const struct flow_key *key,
						 const struct flow *flow)
{
	struct flow other = *flow;

	other.saddr = key->daddr;
	other.daddr = key->saddr;
	other.sport = key->dport;
	other.dport = key->sport;
	other.address_delta = ~flow->address_delta;
	other.port_delta = ~flow->port_delta;
	return other;
}

static __always_inline void set_deltas(const struct flow_key *key, struct flow *flow)
{
	flow->address_delta =
		fold(delta32(key->saddr, flow->saddr) + delta32(key->daddr, flow->daddr));
	flow->port_delta =
		fold(delta16(key->sport, flow->sport) + delta16(key->dport, flow->dport));
}

/* Jiffies cost one load, the clock a call: so these say when to look at the clock. */
static __always_inline int touch_is_due(const struct flow *flow)
{
	return (__u32)bpf_jiffies64() - flow->touched > TOUCH_JIFFIES;
}

/* Now and then, per direction: keep both entries alive and the pair whole. */
static __always_inline enum reason touch_flow(const struct packet *packet, struct flow *flow)
{
	const struct flow_key *key = &packet->key;
	struct flow_key other_key = opposite_key(key, flow);
	struct flow *other = est.lookup(&other_key);

	flow->touched = bpf_jiffies64();
	flow->last_seen = bpf_ktime_get_coarse_ns();
	if (unlikely(!other)) {
		struct flow again = turned_around(key, flow);

		__builtin_memcpy(again.last_hop, packet->ethernet->h_source, ETH_ALEN);
		est.insert(&other_key, &again);
	} else if (unlikely(!are_opposite(key, other))) {
		est.delete((struct flow_key *)key);
		return REASON_drop_flow_taken;
	} else {
		other->last_seen = flow->last_seen;
		if (key->direction == DIRECTION_REQUEST)
			__builtin_memcpy(other->last_hop, packet->ethernet->h_source, ETH_ALEN);
	}
	return REASON_parsed;
}

/* FIN and RST move a flow on. So does a packet of one that is said to be reset: whoever forged that
 * RST has closed nothing that lives.
 */
static __always_inline int changes_state(const struct packet *packet, const struct flow *flow)
{
	return (packet->tcp_flags & (TCP_FLAG_FIN | TCP_FLAG_RST)) ||
	       (flow->state == FLOW_CLOSED && flow->flags != FLOW_FIN_BOTH);
}

/* Both entries move on together, whichever direction the packet came from. */
static __always_inline void track_state(const struct packet *packet, struct flow *flow)
{
	struct flow_key other_key = opposite_key(&packet->key, flow);
	struct flow *other = est.lookup(&other_key);
	__u64 now = bpf_ktime_get_coarse_ns();
	__u8 state = FLOW_CLOSED;

	if (packet->tcp_flags & TCP_FLAG_FIN)
		flow->flags |= packet->key.direction == DIRECTION_REQUEST ? FLOW_FIN_REQUEST
									  : FLOW_FIN_REPLY;
	if (!(packet->tcp_flags & TCP_FLAG_RST) && flow->flags != FLOW_FIN_BOTH)
		state = FLOW_CLOSING;
	flow->state = state;
	flow->last_seen = now;
	if (other && are_opposite(&packet->key, other)) {
		other->flags = flow->flags;
		other->state = state;
		other->last_seen = now;
	}
}

/* Both entries go, unless the other one belongs to another flow by now. */
static __always_inline void forget_established(const struct flow_key *key, const struct flow *flow)
{
	struct flow_key other_key = opposite_key(key, flow);
	struct flow *other = est.lookup(&other_key);

	if (other && are_opposite(key, other))
		est.delete(&other_key);
	est.delete((struct flow_key *)key);
}

static __always_inline void forget_half(const struct flow_key *key, const struct flow *flow)
{
	struct flow_key other_key = opposite_key(key, flow);
	struct flow *other = half.lookup(&other_key);

	if (other && are_opposite(key, other))
		half.delete(&other_key);
	half.delete((struct flow_key *)key);
}

/* A SYN or datagram repeated: once a second keep both entries alive, or else the port would go to
 * another flow. Returns whether the pair is still whole.
 */
static __always_inline int touch_half(const struct flow_key *key, struct flow *flow, __u64 now)
{
	struct flow_key other_key = opposite_key(key, flow);
	struct flow *other;

	if (now - flow->last_seen <= HALF_OPEN_TOUCH_NS)
		return 1;
	other = half.lookup(&other_key);
	if (!other || !are_opposite(key, other))
		return 0;
	flow->last_seen = other->last_seen = now;
	return 1;
}

/* From `half` to `est`: reply with NOEXIST, request, then the halves go. Idempotent: two CPUs that
 * promote the same flow at once both succeed. `flow` stands in `half` under `key`, either
 * direction.
 */
static __always_inline enum reason promote(const struct flow_key *key, const struct flow *flow,
					   __u64 now)
{
	struct flow_key other_key = opposite_key(key, flow);
	struct flow *other = half.lookup(&other_key);
	struct flow mine = *flow, theirs;
	int from_request = key->direction == DIRECTION_REQUEST;
	struct flow *taken;

	if (!other || !are_opposite(key, other))
		return REASON_drop_flow_taken;
	theirs = *other;
	mine.state = theirs.state = FLOW_ESTABLISHED;
	mine.last_seen = theirs.last_seen = now;
	mine.touched = theirs.touched = bpf_jiffies64();
	if (est.insert(from_request ? &other_key : (struct flow_key *)key,
		       from_request ? &theirs : &mine)) {
		taken = est.lookup(from_request ? &other_key : (struct flow_key *)key);
		if (!taken)
			return REASON_drop_table_full;
		if (!are_opposite(from_request ? (struct flow_key *)key : &other_key, taken))
			return REASON_drop_flow_taken;
	}
	est.update(from_request ? (struct flow_key *)key : &other_key,
		   from_request ? &mine : &theirs);
	half.delete((struct flow_key *)key);
	half.delete(&other_key);
	return REASON_l4_promoted;
}

/* Whether another flow holds the port that `reply_key` names. A closed one gives it up, and so does
 * a half-open one that has waited for long. (The look at `half` also warms the bucket that the
 * insertion is going to lock; without it a new flow costs more.)
 */
static __always_inline int port_taken(const struct flow_key *reply_key, __u64 now)
{
	struct flow *holder = est.lookup((struct flow_key *)reply_key);

	if (holder) {
		if (holder->state != FLOW_CLOSED)
			return 1;
		forget_established(reply_key, holder);
	}
	holder = half.lookup((struct flow_key *)reply_key);
	if (holder) {
		if (now - holder->last_seen < HALF_OPEN_STEAL_NS)
			return 1;
		forget_half(reply_key, holder);
	}
	return 0;
}

/* This CPU's next port towards this seat: a stride over the whole slice, so that a port rests for
 * as long as can be before it is used again (the node may hold it in TIME_WAIT). Where long flows
 * fill a stretch of the slice, later tries jump.
 */
static __always_inline __u16 candidate_port(const struct service *service,
					    struct seat_counters *own, __u16 cpus, int attempt)
{
	__u32 place = (__u32)own->next_port++ * cpus + bpf_get_smp_processor_id();

	if (attempt >= PORT_TRIES_IN_STRIDE)
		place = bpf_get_prandom_u32();
	return bpf_htons(service->snat_first_port + place % service->snat_ports);
}

/* Takes a port and enters both directions into `half`. On success `forward` is the request's
 * rewrite.
 */
static __always_inline enum reason open_flow(const struct packet *packet,
					     const struct service *service,
					     struct seat_counters *own, __u16 cpus,
					     struct flow *forward)
{
	const struct flow_key *key = &packet->key;
	int keeps_port = service->flags & SERVICE_NO_SNAT;
	struct flow_key reply_key = {};
	struct flow reply;

	if (!service->snat_ports && !keeps_port)
		return REASON_drop_no_port;
	for (int attempt = 0; attempt < PORT_TRIES; attempt++) {
		forward->sport =
			keeps_port ? key->sport : candidate_port(service, own, cpus, attempt);
		reply_key = opposite_key(key, forward);
		if (port_taken(&reply_key, forward->created))
			continue;
		set_deltas(key, forward);
		reply = turned_around(key, forward);
		__builtin_memcpy(reply.last_hop, packet->ethernet->h_source, ETH_ALEN);
		if (half.insert(&reply_key, &reply))
			continue;
		if (!half.update((struct flow_key *)key, forward))
			return REASON_l4_new_flow;
		half.delete(&reply_key);
		return REASON_drop_table_full;
	}
	return REASON_drop_no_port;
}

#endif
