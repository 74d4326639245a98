/* SPDX-License-Identifier: GPL-2.0 */
/* A machine that is a load balancer and a node: what the LB sends to itself.
 *
 * The seat of such a node is SEAT_OWN. XDP cannot hand a packet to the host, so it leaves those to
 * TC (`slow_output`), and from there on:
 *
 * - L2 and L3: the packet lies there as the client sent it, the agent has put the VIP on `lo`, and
 *   TC passes it on to the host. Nothing is wrapped.
 * - L4: the packet is translated as for any other node and comes in once more, by the nodes' side,
 *   just as one that another LB has sent. So the node sees one connection, whichever LB it comes
 *   through, and the VIP may move while it is open.
 *
 * The answer of L4 goes to an SNAT address, which is none of this host's: out by the nodes' side,
 * to the LB that claims the address. If that is this one nobody on the wire answers the host's ARP,
 * and no frame comes back from there. So a program on the egress of that interface takes what is
 * meant for this LB: answers to an address that it claims now, whatever the host's neighbour table
 * still says after a VIP has moved here; answers to its own MAC address, of the time before a VIP
 * moved away; and the host's questions for an address claimed here. It is attached only where
 * there is such a seat (programs.py).
 *
 * What answers to an address of the host's own never goes out anywhere, so L4 has no such seat
 * without an SNAT address that all LBs share (seats.py).
 */
#ifndef GALE_OWN_NODE_H
#define GALE_OWN_NODE_H

#include "handle.h"

/* Whether the host asks by ARP for an address that this LB claims. What this LB says of its own
 * claims goes out by the same way: there the sender is the floating address.
 */
static __always_inline int asks_for_claim(struct __sk_buff *ctx, const struct arp *arp)
{
	struct vip_claim *claim;

	if ((void *)(arp + 1) > packet_end(ctx) || claim_of(arp->sender))
		return 0;
	claim = claim_of(arp->target);
	return claim && is_held(claim);
}

/* Whether what leaves the host by the nodes' side is for this LB. */
static __always_inline int is_for_this_lb(struct __sk_buff *ctx)
{
	struct ethhdr *ethernet;
	struct vip_claim *claim;
	struct iphdr *ip;

	pull(ctx, PLAIN_BYTES);
	ethernet = packet_start(ctx);
	ip = (void *)(ethernet + 1);
	if ((void *)(ip + 1) > packet_end(ctx))
		return 0;
	if (ethernet->h_proto == bpf_htons(ETH_P_ARP))
		return asks_for_claim(ctx, (void *)ip);
	if (ethernet->h_proto != bpf_htons(ETH_P_IP))
		return 0;
	claim = claim_of(ip->daddr);
	return claim && (is_held(claim) || is_same_mac(ethernet->h_dest, ethernet->h_source));
}

/* An answer to the host's own packet goes to the host. */
static __always_inline int is_answered(const struct packet *packet, enum reason reason)
{
	return packet->answer || reason == REASON_arp_answered;
}

#endif
