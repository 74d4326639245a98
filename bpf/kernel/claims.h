/* Floating addresses: of all LBs together, and answered for by the one that holds the lease.
 *
 * Discovery is gated, forwarding never: whatever still arrives is forwarded by whoever gets it.
 * What is gated are the answers to "who has it?" (discovery.h) and to a ping, since these are a
 * claim. The quorum process writes until when it may be made, so an LB whose processes have stopped
 * ceases to claim by itself. A question that is not answered is dropped: the host's own stack would
 * answer it, on every LB, if the address stood on one of its interfaces (a node has it on its
 * loopback).
 *
 * A VIP is asked for on the public side, an SNAT address on the private one.
 */
#ifndef GALE_CLAIMS_H
#define GALE_CLAIMS_H

#include "maps.h"
#include "ctx.h"

#define MOVING_TICKS TICKS_PER_SECOND /* long enough for a client to send again */

static __always_inline struct floating_key ipv4_key(__be32 address)
{
	return (struct floating_key){ .address = { 0, 0, bpf_htonl(0xffff), address } };
}

static __always_inline struct vip_claim *claim_of(__be32 address)
{
	struct floating_key key = ipv4_key(address);

	return claims.lookup(&key);
}

/* Whether the address is one of those asked for on the side that the packet came from. */
static __always_inline int is_of_side(const struct vip_claim *claim, int direction)
{
#ifdef GALE_ONE_ARM
	return 1;
#else
	return claim->sides & (direction == DIRECTION_REQUEST ? ASKED_IN_PUBLIC : ASKED_IN_PRIVATE);
#endif
}

static __always_inline int is_held(const struct vip_claim *claim)
{
	return bpf_ktime_get_ns() < claim->until;
}

/* Whether another LB may know flows of this VIP that are not known here: it holds the VIP, or did
 * until a moment ago, and what it opened last is still on its way here.
 */
static __always_inline int may_be_known_elsewhere(__be32 address, __u32 now)
{
	struct vip_claim *claim = claim_of(address);

	return claim && (!is_held(claim) || (__s32)(now - claim->moved) < MOVING_TICKS);
}

/* ICMP that is about no flow; undecided where no floating address is meant. Nobody but a ping's
 * sender is answered.
 */
static __always_inline struct decision take_icmp(context_t *ctx, struct packet *packet,
						 int direction)
{
	struct icmphdr *icmp = (void *)(packet->ip + 1);
	struct vip_claim *claim = claim_of(packet->ip->daddr);

	if (likely(!claim))
		return UNDECIDED;
	if ((void *)(icmp + 1) > packet_end(ctx) || packet->ip->ihl != 5 ||
	    packet->first_fragment || icmp->type != ICMP_ECHO || icmp->code)
		return decide(REASON_drop_no_service);
	if (packet->ip->saddr == packet->ip->daddr)
		return decide(REASON_drop_source_is_vip);
	if (is_martian(packet->ip->saddr))
		return decide(REASON_drop_martian_source);
	if (!is_of_side(claim, direction) || !is_held(claim))
		return decide(REASON_drop_not_claimed);
	packet->answer = ANSWER_ECHO;
	return decide(REASON_echo_answered);
}

#endif
