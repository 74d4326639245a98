/* SPDX-License-Identifier: GPL-2.0 */
/* L4: a client's packet to a service that remembers its flows.
 *
 * What comes most is first: an ordinary packet of an established flow costs one look-up and changes
 * its own entry alone. Everything else (a flag, a state, a deadline to renew, a router that has
 * changed, a node that is dead) goes through the pair of entries.
 */
#ifndef GALE_L4_H
#define GALE_L4_H

#include "ports.h"
#include "stateless.h"
#include "icmp.h"
#include "claims.h"
#include "rate.h"
#include "strays.h"
#include "tcp.h"
#include "vlan.h"
#include "verifier.h"

/* A packet that is to be sent on: as what, where to, and what is counted. `seat` 0: not yet. */
struct sending {
	struct rewrite to;
	const struct seat *seat;
	struct seat_counters *counters;
	enum reason reason;
	enum note note; /* what is to be told of the flow */
};

/* The last step of every L4 request. */
static __always_inline struct decision send_to_node(context_t *ctx, struct packet *packet,
						    const struct sending *sending)
{
	if (unlikely(packet->first_fragment) &&
	    note_fragment(packet, sending->to.seat, MODE_L4, 0, &sending->to, 0))
		return decide(REASON_drop_fragment_clash);
	if (unlikely(packet->is_tagged))
		note_vlan_client(ctx, packet);
	sending->counters->packets_in += packet->segments;
	sending->counters->bytes_in += packet->bytes;
	if (rewrite_l4(ctx, packet, &sending->to))
		return decide(REASON_drop_rewrite_failed);
	packet->verdict = deliver_to_seat(ctx, packet, sending->seat);
	return decide(sending->reason);
}

/* --------------------------------------------------------------------- new flows */

/* A flow's request before it has a port. */
static __always_inline void begin_request(const struct packet *packet, const struct seat *seat,
					  int index, const struct settings *own, __u32 now,
					  struct flow *request)
{
	request->key = packet->key;
	request->daddr = seat->address;
	request->dport = seat->port;
	request->seat = index;
	request->state = is_tcp(packet) ? FLOW_TCP_OPENING : FLOW_UDP_ASKED;
	request->deadline = deadline_of(request->state, own, now);
	request->begin = now;
	request->flags = 0;
	note_syn(packet, request);
	if (packet->is_tagged)
		__builtin_memset(request->last_hop, 0, ETH_ALEN);
	else
		__builtin_memcpy(request->last_hop, packet->ethernet->h_source, ETH_ALEN);
}

static __always_inline void rewrite_of(const struct flow *flow, struct rewrite *to)
{
	const __u64 *words = (const __u64 *)&flow->saddr;
	__u64 *copy = (__u64 *)to;

	copy[0] = words[0];
	copy[1] = words[1];
}

/* Whether a client may begin a flow. Addresses of this LB, those that it serves, and a network's
 * broadcast address are nobody's out there: `addresses` has them.
 */
static __always_inline struct decision may_begin(const struct packet *packet,
						 const struct settings *own)
{
	__be32 source = packet->key.saddr;
	struct address_info *known = addresses.lookup(&source);

	if (unlikely(known || source == own->public_address || source == own->private_address))
		return decide(REASON_drop_martian_source);
	return may_open(packet, own);
}

/* Opens a flow to the seat `index`. UNDECIDED: the packet is to be sent. */
static __always_inline struct decision new_l4_flow(context_t *ctx, struct packet *packet,
						   const struct service *service,
						   const struct settings *own, int index,
						   struct place *place, __u32 now,
						   struct sending *sending)
{
	struct port_cursor *cursor;
	struct decision decision;
	struct draft *draft;
	struct seat *seat;
	int number = 0;

	draft = drafts.lookup(&number);
	seat = seats.lookup(&index);
	sending->counters = seat_counters.lookup(&index);
	if (!seat || !sending->counters || !draft)
		return decide(REASON_drop_no_node);
	decision = may_translate(ctx, packet, seat);
	if (!is_decided(decision))
		decision = may_begin(packet, own);
	if (is_decided(decision))
		return decision;
	if (place->is_old) /* what is new stands in the new table */
		*place = place_of(&packet->key, own);
	number = seat->cursor;
	cursor = port_cursors.lookup(&number);
	if (!cursor)
		return decide(REASON_drop_no_node);
	begin_request(packet, seat, index, own, now, &draft->request);
	if (service->flags & SERVICE_KEEPS_PORT)
		draft->request.dport = packet->key.dport;
	decision = open_flow(packet, service, own, cursor, now, place, draft);
	if (is_decided(decision))
		return decision;
	rewrite_of(&draft->request, &sending->to);
	sending->seat = seat;
	sending->reason = REASON_l4_new_flow;
	return UNDECIDED;
}

/* A flow that is over begins again where it was: the same node, the same port. Both entries are
 * still a pair. -1: one of them has gone to somebody else meanwhile.
 */
static __always_inline int reopen(const struct packet *packet, struct pair *pair,
				  const struct settings *own, __u32 now)
{
	__u8 state = is_tcp(packet) ? FLOW_TCP_OPENING : FLOW_UDP_ASKED;
	struct flow *request = pair->request, *reply = pair->reply;
	__u32 deadline = deadline_of(state, own, now);

	if (change_pair(packet, pair, state, deadline))
		return -1;
	bpf_spin_lock(&pair->request_lock->lock);
	if (entry_word(request) == pair->request_word) {
		request->begin = now;
		reply->begin = 0;
		reply->flags = 0;
		note_syn(packet, request);
	}
	bpf_spin_unlock(&pair->request_lock->lock);
	return 0;
}

/* Ends a flow whose node is dead: its client will have another one. */
static __always_inline void abandon(const struct packet *packet, struct pair *pair, __u32 now)
{
	change_pair(packet, pair, FLOW_FREE, now);
}

static __always_inline struct decision open_l4(context_t *ctx, struct packet *packet,
					       const struct service *service,
					       const struct settings *own, struct place *place,
					       __u32 now, struct sending *sending)
{
	int index = NO_SEAT;

	if (!(service->flags & SERVICE_RETIRED))
		index = seat_of_hash(service,
				     flow_hash(&packet->key, service->flags, own->hash_seed));
	if (index == NO_SEAT)
		return refuse_for_no_node(packet);
	return new_l4_flow(ctx, packet, service, own, index, place, now, sending);
}

static __always_inline struct decision answer_no_flow(struct packet *packet,
						      const struct service *service, __u32 now)
{
	if (!is_tcp(packet) || packet->icmp_error || (packet->tcp_flags & TCP_FLAG_RST) ||
	    (service->flags & SERVICE_NO_RESET))
		return decide(REASON_drop_no_flow);
	if (may_be_known_elsewhere(packet->key.daddr, now))
		return decide(REASON_drop_moving_flow);
	packet->answer = ANSWER_RESET;
	return decide(REASON_no_flow_reset);
}

/* --------------------------------------------------------------------- everything else */

/* Whether a client that nobody answers goes on with this packet for a second: that is no question
 * any more. At its renewal before it had not yet.
 */
static __always_inline int goes_on(const struct flow *request, const struct settings *own,
				   __u32 now)
{
	__u32 renewed = request->deadline - timeout_of(own, FLOW_UDP_ASKED);

	return renewed - request->begin < TICKS_PER_SECOND &&
	       now - request->begin >= TICKS_PER_SECOND;
}

/* A client's datagram of a flow that may be forged still. */
static __always_inline enum reason follow_datagram(const struct packet *packet, struct pair *pair,
						   struct sending *sending,
						   const struct settings *own, __u32 now)
{
	__u8 before = sending->to.state, state = FLOW_UDP_ESTABLISHED;

	if (before == FLOW_UDP_ASKED) {
		if (goes_on(pair->request, own, now))
			sending->note = NOTE_OPENED;
		renew_pair(packet, pair, before, deadline_of(before, own, now));
		return REASON_l4_opening;
	}
	if (now - pair->request->begin < TICKS_PER_SECOND)
		state = FLOW_UDP_FRESH;
	if (state == before) {
		renew_pair(packet, pair, state, deadline_of(state, own, now));
		return REASON_l4_established;
	}
	if (change_pair(packet, pair, state, deadline_of(state, own, now)))
		return REASON_drop_no_flow;
	sending->note = before == FLOW_UDP_FRESH ? NOTE_RENEWED : NOTE_OPENED;
	return before == FLOW_UDP_FRESH ? REASON_l4_established : REASON_l4_promoted;
}

/* A half-open flow's packet. What it does to the state; the reason, or a drop. */
static __always_inline enum reason follow_opening(const struct packet *packet, struct pair *pair,
						  struct sending *sending,
						  const struct settings *own, __u32 now)
{
	__u8 state = sending->to.state;

	if (!is_tcp(packet))
		return follow_datagram(packet, pair, sending, own, now);
	if (packet->tcp_flags & TCP_FLAG_RST) {
		/* After a challenge ACK the client will try again from this very port. */
		if (state == FLOW_TCP_ANSWERED && packet->tcp->sequence == pair->reply->acked)
			change_pair(packet, pair, FLOW_TCP_RESET,
				    deadline_of(FLOW_TCP_RESET, own, now));
		return REASON_l4_opening;
	}
	if (is_syn(packet)) {
		/* Once more, or an old duplicate: the node knows, and says so by what it answers.
		 */
		renew_pair(packet, pair, state, deadline_of(state, own, now));
		return REASON_l4_opening;
	}
	if (state != FLOW_TCP_ANSWERED || !completes_handshake(packet, pair))
		return REASON_drop_handshake_mismatch;
	state = FLOW_TCP_ESTABLISHED;
	if (change_pair(packet, pair, state, deadline_of(state, own, now)))
		return REASON_drop_flow_taken;
	track_living(packet, pair, own, now);
	sending->note = NOTE_OPENED;
	return REASON_l4_promoted;
}

/* A living flow's packet that is not ordinary. */
static __always_inline enum note follow_request(const struct packet *packet, struct pair *pair,
						const struct settings *own, __u32 now)
{
	if (is_tcp(packet) && is_syn(packet)) {
		/* To the node with it: if that answers it, the flow begins anew. */
		pair->reply->begin = packet->tcp->sequence + 1;
		return NOTE_NONE;
	}
	return track_living(packet, pair, own, now);
}

/* Whether a packet that may begin a flow finds one under its key that is over, or that never was
 * established and whose node takes no new flows any more.
 */
static __always_inline int finds_nothing_to_join(const struct rewrite *to, const struct seat *seat,
						 int is_over)
{
	return is_over || (is_half_open(to->state) && !(seat->flags & SEAT_UP));
}

/* Whether the node's answers to this flow come to this LB. Where each has SNAT addresses of its
 * own, those of a flow that another one opened go there, and it knows nothing of a flow opened
 * here.
 */
static __always_inline int is_answered_here(const struct service *service, const struct rewrite *to)
{
	int i;

	if (!service->snat_count) /* the client's own address */
		return 1;
#pragma unroll
	for (i = 0; i < SNAT_ADDRESSES; i++) {
		if (service->snat_address[i] == to->saddr)
			return 1;
	}
	return 0;
}

/* Who comes back gets the same node and port: while the port rests in any case, later where the
 * ring still says the same node.
 */
static __always_inline int may_reopen(const struct packet *packet, const struct service *service,
				      const struct settings *own, const struct place *place,
				      const struct rewrite *to, const struct seat *seat, __u32 now)
{
	__u64 hash = flow_hash(&packet->key, service->flags, own->hash_seed);

	return service->mode == MODE_L4 && !(service->flags & SERVICE_RETIRED) &&
	       (seat->flags & SEAT_UP) && !place->is_old && is_answered_here(service, to) &&
	       (!has_passed(place->flow->deadline, now) || seat_of_hash(service, hash) == to->seat);
}

/* What the packet does to a flow that is known, and the reason to count. */
static __always_inline enum reason follow_known(const struct packet *packet, struct pair *pair,
						struct sending *sending, const struct settings *own,
						__u32 now)
{
	const struct rewrite *to = &sending->to;

	if (is_forgeable(to->state))
		return follow_opening(packet, pair, sending, own, now);
	if (is_closed(to->state)) {
		/* The node may send its last segments again, and the client answers those. */
		if ((packet->tcp_flags & TCP_FLAG_FIN) && to->state == FLOW_TCP_TIME_WAIT)
			change_pair(packet, pair, to->state, deadline_of(to->state, own, now));
		return REASON_l4_closed;
	}
	sending->note = follow_request(packet, pair, own, now);
	return REASON_l4_established;
}

/* A packet of a flow that is known, and not ordinary. Where it is not to be sent by that flow,
 * which then is none that it could belong to, its place is free for another.
 */
static __always_inline struct decision join_known(context_t *ctx, struct packet *packet,
						  const struct service *service,
						  const struct settings *own, struct place *place,
						  const struct seat *seat, __u32 now,
						  struct sending *sending)
{
	const struct rewrite *to = &sending->to;
	int is_over = has_passed(place->flow->deadline, now) || is_closed(to->state);
	int opens = is_opening(packet);
	struct decision refused;
	enum reason reason;
	struct pair pair;

	if (fetch_pair(packet, place, to, &pair)) {
		forget_entry(packet, place, now);
		return UNDECIDED;
	}
	if (opens && !is_over && (seat->flags & SEAT_DEAD)) {
		abandon(packet, &pair, now);
		return UNDECIDED;
	}
	opens = opens && finds_nothing_to_join(to, seat, is_over);
	if (opens && !(is_over && may_reopen(packet, service, own, place, to, seat, now))) {
		change_entry(packet, pair.request, pair.request_lock, pair.request_word, FLOW_FREE,
			     now);
		return UNDECIDED;
	}
	if (!opens && has_passed(place->flow->deadline, now))
		return UNDECIDED;
	refused = may_translate(ctx, packet, seat);
	if (!is_decided(refused) && opens)
		refused = may_begin(packet, own);
	if (is_decided(refused))
		return refused;
	if (opens && reopen(packet, &pair, own, now))
		return UNDECIDED;
	reason = opens ? REASON_l4_reopened : follow_known(packet, &pair, sending, own, now);
	if (reason > REASON_drop_first)
		return decide(reason);
	if (unlikely(sending->note))
		tell(place, own, sending->note);
	sending->counters->flows += reason == REASON_l4_promoted;
	sending->reason = reason;
	sending->seat = seat;
	return UNDECIDED;
}

/* A packet of a flow whose node is dead, and that is to know. */
static __always_inline struct decision tell_of_death(struct packet *packet,
						     const struct place *place,
						     const struct rewrite *to,
						     const struct settings *own, __u32 now)
{
	struct pair pair;

	if (!fetch_pair(packet, place, to, &pair)) {
		abandon(packet, &pair, now);
		tell(place, own, NOTE_CLOSED);
	}
	if (packet->tcp_flags & TCP_FLAG_RST)
		return decide(REASON_drop_no_node);
	packet->answer = ANSWER_RESET;
	return decide(REASON_dead_node_reset);
}

/* Whether the client takes itself for connected. */
static __always_inline int is_connected(__u8 state)
{
	return is_protected(state) || state == FLOW_TCP_ANSWERED;
}

/* About a packet that a node sent. */
static __always_inline struct decision error_to_node(context_t *ctx, struct packet *packet,
						     const struct rewrite *to,
						     const struct seat *seat)
{
	struct decision refused = may_forward(ctx, packet, seat, 0);

	if (!is_decided(refused))
		refused = translate_error(ctx, packet, to);
	if (is_decided(refused))
		return refused;
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	return decide(REASON_icmp_to_node);
}

/* A packet whose key is in the table. UNDECIDED: it is to be sent, or opens a flow of its own. */
static __always_inline struct decision follow_flow(context_t *ctx, struct packet *packet,
						   const struct service *service,
						   const struct settings *own, struct place *place,
						   __u32 now, struct sending *sending)
{
	struct rewrite *to = &sending->to;
	struct flow *flow = place->flow;
	struct decision refused;
	struct seat *seat;
	int index;

	if (read_rewrite(flow, &packet->key, to) || to->state == FLOW_FREE)
		return UNDECIDED;
	index = to->seat;
	seat = seats.lookup(&index);
	sending->counters = seat_counters.lookup(&index);
	if (!seat || !sending->counters)
		return decide(REASON_drop_no_node);
	if (unlikely(packet->icmp_error))
		return has_passed(flow->deadline, now) ? decide(REASON_pass_icmp_other)
						       : error_to_node(ctx, packet, to, seat);
	if (unlikely((seat->flags & SEAT_RESET) && is_connected(to->state) && !is_opening(packet) &&
		     !has_passed(flow->deadline, now)))
		return tell_of_death(packet, place, to, own, now);
	if (likely(!(seat->flags & SEAT_DEAD) && comes_from(packet, flow))) {
		refused = may_translate(ctx, packet, seat);
		if (unlikely(is_decided(refused)))
			return refused;
		if (likely(is_ordinary(packet, flow, to, own, now))) {
			sending->reason = REASON_l4_established;
			sending->seat = seat;
			return UNDECIDED;
		}
	}
	return join_known(ctx, packet, service, own, place, seat, now, sending);
}

/* Whether the packet is a node's answer: to a client nobody could be told from it by the ports,
 * since an SNAT port may be a service's port, too.
 */
static __always_inline int is_answer_of_node(const struct packet *packet)
{
#ifdef GALE_ONE_ARM
	return is_from_node(packet);
#else
	return 0; /* those come by the private interface */
#endif
}

static __always_inline struct decision forward_l4(context_t *ctx, struct packet *packet,
						  const struct service *service,
						  const struct settings *own)
{
	struct decision decision = UNDECIDED;
	struct sending sending = {};
	struct place place;
	__u32 now;

	if (is_tcp(packet) && read_numbers(ctx, packet))
		return decide(REASON_pass_malformed);
	place = find_flow(&packet->key, own);
	now = ticks_now();
	if (unlikely(packet->tcp_flags & TCP_FLAG_SYN))
		packet->tcp->scale = window_scale(ctx, packet);
	if (likely(place.flow))
		decision = follow_flow(ctx, packet, service, own, &place, now, &sending);
	if (unlikely(is_decided(decision)))
		return decision;
	if (unlikely(!sending.seat)) {
		/* A service that was L4 until lately still has the flows of then, and no other. */
		if (service->mode != MODE_L4)
			return forward_stateless(ctx, packet, service, own);
		if (packet->icmp_error)
			return decide(REASON_pass_icmp_other);
		if (is_answer_of_node(packet))
			return decide(REASON_pass_not_for_service);
		if (!is_opening(packet))
			return answer_no_flow(packet, service, now);
		decision = open_l4(ctx, packet, service, own, &place, now, &sending);
		if (is_decided(decision))
			return decision;
	}
	sending.reason = unknown(own, sending.reason);
	return send_to_node(ctx, packet, &sending);
}

#endif
