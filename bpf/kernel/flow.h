/* SPDX-License-Identifier: GPL-2.0 */
/* The life of a flow: what each packet does to its state. Entered and found by flow_table.h.
 *
 *     state        packet, and what must hold                                    becomes
 *     ─────────────────────────────────────────────────────────────────────────────────────────
 *     none         client's SYN                                                  TCP_OPENING
 *     OPENING      node's SYN-ACK                                                ANSWERED
 *                  node's RST of that SYN                                        RESET
 *                  node's bare ACK (it is in TIME_WAIT), client's RST to that    OPENING
 *     ANSWERED     client's ACK of what the node has sent                        ESTABLISHED
 *                  either side's RST with the very number the other waits for    RESET
 *     ESTABLISHED  FIN where the receiver takes it                               CLOSING
 *                  RST with the very number                                      RESET
 *                  RST with a number of what is under way                        CLOSING, in doubt
 *                  node's SYN-ACK of a SYN that the client sent on top           ANSWERED
 *     CLOSING      both FINs acknowledged                                        TIME_WAIT
 *                  its sender goes on beyond its FIN, or after its RST           ESTABLISHED
 *     TIME_WAIT,   client's SYN: same node, same port                            OPENING
 *     RESET        anything else                                                 the same
 *
 *     none         client's datagram                                             UDP_ASKED
 *     UDP_ASKED    node's datagram                                               UDP_ANSWERED
 *     UDP_ANSWERED client's datagram, within a second of the flow's first        UDP_FRESH
 *     UDP_FRESH    node's datagram, or the client's within that second           the same
 *     UDP_ANSWERED,
 *     UDP_FRESH    client's datagram, later than that                            UDP_ESTABLISHED
 *
 * TCP is followed by its numbers (RFC 9293, RFC 5961). Each direction's entry keeps what its
 * sender has said: how far it has sent (`end`), what it wants next (`acked`) and up to where it
 * takes data (`edge`). A packet that its receiver would ignore is sent on, for the receiver to
 * judge, and changes nothing here: numbers are learned only from packets whose sequence and
 * acknowledgement both lie within a window of what is known, so that who guesses must guess twice;
 * and what ends a flow is judged by what the *other* side has said, which a forger of this side
 * cannot touch. An acknowledgement of what was never sent is taken back when it matters.
 *
 * A FIN counts if it follows what its sender has sent without a gap, within the receiver's window.
 * One that came early is known by its acknowledgement, which is one beyond all data. A RST is
 * taken if the receiver has asked for its very number; within what is under way it may be accepted
 * or not, so the flow is in doubt, for as long as a closing flow lives, until its sender says
 * anything else: the dead say nothing.
 *
 * A flow that another LB told of (replica.h) begins where that one left it, which may be gigabytes
 * ago: each direction believes the first packet that comes here, and what it would end counts only
 * once both have been heard.
 *
 * Timeouts: RFC 5382 (established 2 h 4 min, everything transitory 4 min), RFC 4787 (UDP 2 min),
 * TIME_WAIT as Linux has it (60 s), 10 s after a RST; in `settings.timeout`, by state.
 */
#ifndef GALE_FLOW_H
#define GALE_FLOW_H

#include "flow_table.h"
#include "notes.h"

static __always_inline int is_after(__u32 one, __u32 other)
{
	return (__s32)(one - other) > 0;
}

static __always_inline int is_tcp(const struct packet *packet)
{
	return packet->key.protocol == IPPROTO_TCP;
}

/* A SYN alone: the first packet of a connection. */
static __always_inline int is_syn(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST | TCP_FLAG_FIN)) ==
	       TCP_FLAG_SYN;
}

static __always_inline int is_syn_ack(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST)) ==
	       (TCP_FLAG_SYN | TCP_FLAG_ACK);
}

/* Whether the packet may begin a flow. */
static __always_inline int is_opening(const struct packet *packet)
{
	return !is_tcp(packet) || is_syn(packet);
}

/* What is established is renewed only every TOUCH_TICKS, so it gets that much more. */
static __always_inline __u32 deadline_of(__u8 state, const struct settings *own, __u32 now)
{
	int renewed_seldom = state == FLOW_TCP_ESTABLISHED || state == FLOW_UDP_ESTABLISHED;

	return now + timeout_of(own, state) + (renewed_seldom ? TOUCH_TICKS : 0);
}

/* --------------------------------------------------------------------- sequence numbers */

#define LONGEST_SEGMENT 0xffff

/* The largest window that either side may offer reaches so far, as a power of two. */
static __always_inline __u8 reach_of(__u8 scale, __u8 other_scale)
{
	return 16 + (scale > other_scale ? scale : other_scale);
}

static __always_inline int is_near(__u32 one, __u32 other, __u8 reach)
{
	__u32 window = 1U << (reach & 31);

	return one - other + window <= 2 * window;
}

/* A side acknowledges what it had room for, and perhaps a segment more (it may take one that begins
 * within its window); or, late, what it has acknowledged before.
 */
static __always_inline int is_acknowledgeable(__u32 acknowledged, const struct flow *mine)
{
	__u32 room = mine->edge - mine->acked + LONGEST_SEGMENT;

	return acknowledged - mine->acked + room <= 2 * room;
}

/* What the packet says of its sender, if its numbers are near what is known of it. This is all that
 * an ordinary packet changes, in its own direction's entry alone.
 */
static __always_inline int learn(const struct packet *packet, struct flow *mine)
{
	__u32 end = packet->tcp->sequence + packet->tcp->payload;
	__u32 edge = packet->tcp->acknowledged + ((__u32)packet->tcp->window << (mine->scale & 15));

	if (unlikely(!is_near(packet->tcp->sequence, mine->end, mine->reach) ||
		     !is_acknowledgeable(packet->tcp->acknowledged, mine) ||
		     !(packet->tcp_flags & TCP_FLAG_ACK)))
		return 0;
	if (is_after(end, mine->end))
		mine->end = end;
	if (is_after(packet->tcp->acknowledged, mine->acked))
		mine->acked = packet->tcp->acknowledged;
	if (is_after(edge, mine->edge))
		mine->edge = edge;
	return 1;
}

/* --------------------------------------------------------------------- what is alive */

/* A FIN is in its place, whether it was seen there or is known by what came after it. */
static __always_inline void record_fin(struct flow *mine, struct flow *theirs, __u32 end)
{
	mine->flags = (mine->flags | FLOW_FIN) & ~FLOW_EARLY_FIN;
	theirs->flags &= ~FLOW_WATCHED;
	mine->end = end;
}

/* What is known of `mine` may have been forged: an ordinary packet is not looked at beside what
 * `theirs` has said (is_ordinary). Here it is: nobody sends more than the other takes (but for
 * a FIN, or the probe of a closed window), or acknowledges more than the other has sent.
 */
static __always_inline void correct_numbers(struct flow *mine, struct flow *theirs)
{
	/* How much the client takes is known from its first acknowledgement on. */
	if (unlikely(theirs->edge != theirs->acked && is_after(mine->end, theirs->edge + 1)))
		mine->end = theirs->edge;
	if (unlikely(is_after(theirs->acked, mine->end)))
		theirs->acked = mine->end;
}

/* What `theirs` has sent and this packet acknowledges; `before`: what was acknowledged before it. A
 * FIN that came early is known by the number after it. More than that was never sent: then the
 * acknowledgement is forged.
 */
static __always_inline void settle_acknowledged(struct flow *mine, struct flow *theirs,
						__u32 before)
{
	if (likely(!is_after(mine->acked, theirs->end)))
		return;
	if (mine->acked == theirs->end + 1 && (mine->flags & FLOW_WATCHED))
		record_fin(theirs, mine, mine->acked);
	else
		mine->acked = before;
}

/* FIN of the sender of this packet, if its receiver takes it. `sent`: how far the sender had sent
 * before this packet. If what stands in front of it has not come yet, its sender will go on behind
 * it, or its receiver acknowledge it. Each entry has a flag of its own for that, since both sides
 * may close at once.
 */
static __always_inline void note_fin(const struct packet *packet, struct flow *mine,
				     struct flow *theirs, __u32 sent)
{
	__u32 fin = packet->tcp->sequence + packet->tcp->payload;

	if ((mine->flags & FLOW_FIN) || is_after(theirs->acked, fin) || is_after(fin, theirs->edge))
		return;
	if (!is_after(packet->tcp->sequence, sent)) {
		record_fin(mine, theirs, fin + 1);
		return;
	}
	mine->flags |= FLOW_EARLY_FIN;
	theirs->flags |= FLOW_WATCHED;
}

/* What the packet says of a FIN of its sender that is on record, or was early. `sent` as above. */
static __always_inline void check_fin(const struct packet *packet, struct flow *mine,
				      struct flow *theirs, __u32 sent)
{
	__u32 end = packet->tcp->sequence + packet->tcp->payload;

	if (mine->flags & FLOW_FIN) {
		/* Who goes on where its FIN stood has not sent it: that was a forgery. */
		if (is_after(end, sent) && !is_after(packet->tcp->sequence, sent))
			mine->flags &= ~FLOW_FIN;
		else
			mine->end = sent;
	} else if (mine->flags & FLOW_EARLY_FIN) {
		if (packet->tcp->sequence == sent + 1 && !packet->tcp->payload) {
			record_fin(mine, theirs, sent + 1);
		} else if (packet->tcp->payload && is_after(end, sent)) {
			mine->flags &= ~FLOW_EARLY_FIN; /* it was none */
			theirs->flags &= ~FLOW_WATCHED;
		}
	}
}

/* Both FINs are sent and acknowledged. */
static __always_inline int is_finished(const struct flow *one, const struct flow *other)
{
	return (one->flags & other->flags & FLOW_FIN) && !is_after(one->end, other->acked) &&
	       !is_after(other->end, one->acked);
}

static __always_inline __u8 state_after_reset(const struct packet *packet, struct flow *mine,
					      const struct flow *theirs)
{
	__u32 number = packet->tcp->sequence;

	if (number == theirs->acked)
		return FLOW_TCP_RESET;
	if (is_after(theirs->acked, number) || is_after(number, mine->end))
		return FLOW_FREE;
	mine->flags |= FLOW_DOUBTED;
	return FLOW_TCP_CLOSING;
}

/* A flow of another LB's, whose packets come here now. How far this side has come is what it says;
 * the other side is not to be judged by numbers of the past. A FIN is believed, since it will be
 * repeated until it is acknowledged, and a RST leaves the flow in doubt.
 */
static __always_inline __u8 take_over(const struct packet *packet, struct flow *mine,
				      struct flow *theirs)
{
	__u32 fin = !!(packet->tcp_flags & TCP_FLAG_FIN);

	if (packet->tcp_flags & TCP_FLAG_RST) {
		mine->flags |= FLOW_DOUBTED;
		return FLOW_TCP_CLOSING;
	}
	if ((packet->tcp_flags & TCP_FLAG_SYN) || !(packet->tcp_flags & TCP_FLAG_ACK))
		return FLOW_FREE;
	if (mine->flags & FLOW_REPLICA) {
		mine->flags &= ~(FLOW_REPLICA | FLOW_DOUBTED);
		mine->end = packet->tcp->sequence + packet->tcp->payload;
		mine->acked = packet->tcp->acknowledged;
		mine->edge = packet->tcp->acknowledged +
			     ((__u32)packet->tcp->window << (mine->scale & 15));
	} else if (!learn(packet, mine)) {
		return FLOW_FREE;
	}
	if (fin && !(mine->flags & FLOW_FIN)) {
		mine->flags |= FLOW_FIN;
		mine->end = packet->tcp->sequence + packet->tcp->payload + 1;
	}
	return (mine->flags | theirs->flags) & (FLOW_FIN | FLOW_DOUBTED) ? FLOW_TCP_CLOSING
									 : FLOW_TCP_ESTABLISHED;
}

/* The state of an established or closing flow after this packet; numbers and flags of both entries
 * are brought up to date. FLOW_FREE: its receiver would ignore it.
 *
 * The caller holds the lock of the request's bucket, and both are alive.
 */
static __always_inline __u8 follow_living(const struct packet *packet, struct flow *mine,
					  struct flow *theirs)
{
	__u32 sent, acked;

	if (unlikely((mine->flags | theirs->flags) & FLOW_REPLICA))
		return take_over(packet, mine, theirs);
	correct_numbers(mine, theirs);
	correct_numbers(theirs, mine);
	sent = mine->end;
	if (packet->tcp_flags & TCP_FLAG_RST)
		return state_after_reset(packet, mine, theirs);
	acked = mine->acked;
	if ((packet->tcp_flags & TCP_FLAG_SYN) || !learn(packet, mine))
		return FLOW_FREE;
	mine->flags &= ~FLOW_DOUBTED;
	check_fin(packet, mine, theirs, sent);
	settle_acknowledged(mine, theirs, acked);
	if (packet->tcp_flags & TCP_FLAG_FIN)
		note_fin(packet, mine, theirs, sent);
	if (is_finished(mine, theirs))
		return FLOW_TCP_TIME_WAIT;
	return (mine->flags | theirs->flags) & (FLOW_FIN | FLOW_DOUBTED) ? FLOW_TCP_CLOSING
									 : FLOW_TCP_ESTABLISHED;
}

/* Both entries go on in `state`; what is to be told of it. */
static __always_inline enum note go_on_as(__u8 state, struct pair *pair, const struct settings *own,
					  __u32 now)
{
	struct flow *mine = pair->mine, *theirs = pair->theirs;
	__u32 deadline = deadline_of(state, own, now);
	enum note note = NOTE_NONE;

	if (is_closed(state))
		note = NOTE_CLOSED;
	else if (mine == pair->request && is_renewal_due(mine, timeout_of(own, state), deadline))
		note = NOTE_RENEWED;
	mine->state = theirs->state = state;
	mine->deadline = theirs->deadline = deadline;
	return note;
}

/* Both entries of a flow that is alive take note of the packet; what is to be told of it.
 *
 * A segment that its receiver would ignore says nothing of where the client's packets come from. It
 * does keep the flow: a forged SYN on top may have left numbers here that are not the connection's.
 * A RST does neither.
 */
static __always_inline enum note track_living(const struct packet *packet, struct pair *pair,
					      const struct settings *own, __u32 now)
{
	struct flow *mine = pair->mine, *theirs = pair->theirs;
	int is_reset = packet->tcp_flags & TCP_FLAG_RST;
	enum note note = NOTE_NONE;
	__u8 state, was_replica;

	bpf_spin_lock(&pair->request_lock->lock);
	state = mine->state;
	if (entry_word(pair->request) == pair->request_word &&
	    entry_word(pair->reply) == pair->reply_word && is_protected(state) &&
	    is_protected(theirs->state)) {
		was_replica = mine->flags & FLOW_REPLICA;
		if (is_tcp(packet))
			state = follow_living(packet, mine, theirs);
		else
			mine->flags &= ~FLOW_REPLICA;
		if (state != FLOW_FREE && !is_reset) {
			note_last_hop(packet, mine);
			note_last_hop(packet, theirs);
		}
		if (state == FLOW_FREE && !is_reset)
			state = mine->state;
		if (state != FLOW_FREE)
			note = go_on_as(state, pair, own, now);
		if (state != FLOW_FREE && was_replica && note == NOTE_NONE)
			note = NOTE_RENEWED; /* its packets come here from now on */
	}
	bpf_spin_unlock(&pair->request_lock->lock);
	return note;
}

/* --------------------------------------------------------------------- the handshake */

/* A node's SYN-ACK must acknowledge the SYN, and of the data that came with it (RFC 7413) as much
 * as it likes. While a flow is OPENING, its request's `acked` keeps the number after the SYN.
 */
static __always_inline int answers_syn(const struct packet *packet, const struct flow *request)
{
	return !is_after(request->acked, packet->tcp->acknowledged) &&
	       !is_after(packet->tcp->acknowledged, request->end);
}

static __always_inline void note_syn(const struct packet *packet, struct flow *request)
{
	request->acked = packet->tcp->sequence + 1;
	request->end = packet->tcp->sequence + 1 + packet->tcp->payload;
	request->scale = packet->tcp->scale;
	request->edge = 0;
	request->flags = 0;
}

/* What the node has chosen: the client must acknowledge the number after it. Windows are scaled
 * only if both sides say so.
 */
static __always_inline void note_syn_ack(const struct packet *packet, struct pair *pair)
{
	struct flow *request = pair->request, *reply = pair->reply;
	int scaled = packet->tcp->scale != NO_SCALE && request->scale != NO_SCALE;

	request->scale = scaled ? request->scale : 0;
	reply->scale = scaled ? packet->tcp->scale : 0;
	request->reach = reply->reach = reach_of(request->scale, reply->scale);
	request->end = packet->tcp->acknowledged;
	request->acked = packet->tcp->sequence;
	request->edge = packet->tcp->sequence;
	reply->end = packet->tcp->sequence + 1 + packet->tcp->payload;
	reply->acked = packet->tcp->acknowledged;
	reply->edge = packet->tcp->acknowledged + packet->tcp->window;
	request->flags = reply->flags = 0;
}

/* What the node sends before the client has acknowledged its SYN-ACK (RFC 7413). */
static __always_inline void note_early(const struct packet *packet, struct flow *reply)
{
	int fin = !!(packet->tcp_flags & TCP_FLAG_FIN);
	__u32 end = packet->tcp->sequence + packet->tcp->payload + fin;

	if (!is_near(packet->tcp->sequence, reply->end, reply->reach) || !is_after(end, reply->end))
		return;
	reply->end = end;
	if (fin)
		reply->flags |= FLOW_FIN;
}

/* Whether a client's packet acknowledges what the node has sent, its SYN-ACK at the least: nobody
 * can who has not seen it. (Its first ACK may have been lost; RFC 7413 lets data follow the
 * SYN-ACK.)
 */
static __always_inline int completes_handshake(const struct packet *packet, const struct pair *pair)
{
	return (packet->tcp_flags & TCP_FLAG_ACK) && !(packet->tcp_flags & TCP_FLAG_SYN) &&
	       is_after(packet->tcp->acknowledged, pair->request->acked) &&
	       !is_after(packet->tcp->acknowledged, pair->reply->end);
}

/* --------------------------------------------------------------------- ordinary packets */

#define UNUSUAL_FLAGS (TCP_FLAG_FIN | TCP_FLAG_SYN | TCP_FLAG_RST)

/* Whether the flow is established, the packet one among many, and nothing is to be looked after.
 * Learns its numbers, and renews its deadline where that needs no look at the other direction: TCP
 * that lives is heard both ways, so each direction keeps itself; a stream of datagrams may be
 * one-way. A packet whose numbers do not fit is looked at beside what the other direction has said.
 */
static __always_inline int is_ordinary(const struct packet *packet, struct flow *flow,
				       const struct rewrite *to, const struct settings *own,
				       __u32 now)
{
	__s32 left = flow->deadline - now, timeout = timeout_of(own, to->state);

	if (is_tcp(packet)) {
		if (unlikely(to->state != FLOW_TCP_ESTABLISHED || to->flags ||
			     left <= timeout - IDLE_TICKS || left <= 0 ||
			     (packet->tcp_flags & UNUSUAL_FLAGS)))
			return 0;
		if (unlikely(left <= timeout)) {
			if (own->notes && packet->key.direction == DIRECTION_REQUEST &&
			    is_renewal_due(flow, timeout, now + timeout + TOUCH_TICKS))
				return 0;
			flow->deadline = now + timeout + TOUCH_TICKS;
		}
		return learn(packet, flow);
	}
	return to->state == FLOW_UDP_ESTABLISHED && left > timeout;
}

#endif
