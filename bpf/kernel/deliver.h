/* SPDX-License-Identifier: GPL-2.0 */
/* Whether a packet can go where it is to go, before anything of it is changed. */
#ifndef GALE_DELIVER_H
#define GALE_DELIVER_H

#include "ctx.h"

/* Told to be too long, its sender sends shorter ones. */
static __always_inline struct decision answer_too_big(struct packet *packet, __u16 mtu)
{
	packet->answer = ANSWER_TOO_BIG;
	packet->mtu = mtu;
	return decide(REASON_too_big_answered);
}

/* This LB is a router on the packet's way, and its last one (RFC 1812, 5.3.1). */
static __always_inline struct decision answer_time_exceeded(struct packet *packet)
{
	packet->answer = ANSWER_TIME_EXCEEDED;
	return decide(REASON_ttl_answered);
}

/* Whether the seat's node is this machine (own_node.h). */
static __always_inline int is_own(const struct seat *seat)
{
	return seat->flags & SEAT_OWN;
}

/* To a seat. `overhead`: what will be put around it, by a router then (L3). */
static __always_inline struct decision may_forward(context_t *ctx, struct packet *packet,
						   const struct seat *seat, __u16 overhead)
{
	struct decision refused = can_deliver(ctx, packet, seat, overhead);

	if (unlikely(is_decided(refused)))
		return refused;
	if (unlikely(overhead && packet->ip->ttl <= 1))
		return answer_time_exceeded(packet);
	if (likely(longest_segment(ctx, packet) + overhead <= seat->mtu))
		return UNDECIDED;
	return answer_too_big(packet, seat->mtu - overhead);
}

/* To a seat, translated (L4). */
static __always_inline struct decision may_translate(context_t *ctx, struct packet *packet,
						     const struct seat *seat)
{
	struct decision refused = may_forward(ctx, packet, seat, 0);

	if (likely(!is_decided(refused)))
		refused = can_translate(packet);
	if (unlikely(is_decided(refused)))
		return refused;
	return unlikely(packet->ip->ttl <= 1) ? answer_time_exceeded(packet) : UNDECIDED;
}

/* A reply, back to the client. */
static __always_inline struct decision may_reply(context_t *ctx, struct packet *packet,
						 const __u8 *last_hop, const struct settings *own)
{
	struct decision refused = can_reach_client(packet, last_hop, own);

	if (unlikely(is_decided(refused)))
		return refused;
	if (unlikely(longest_segment(ctx, packet) > own->public_mtu))
		return answer_too_big(packet, own->public_mtu);
	return unlikely(packet->ip->ttl <= 1) ? answer_time_exceeded(packet) : UNDECIDED;
}

#endif
