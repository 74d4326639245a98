/* Sending a finished packet on: to a node's seat, or back to the client.
 *
 * XDP sends by itself what has a resolved next hop and no tag to take off; everything else it has
 * passed on unmodified before anything was rewritten (`can_deliver`). TC asks the kernel's
 * neighbour table, which holds a packet back until ARP has answered, so that no first packet is
 * lost.
 */
#ifndef GALE_DELIVER_H
#define GALE_DELIVER_H

#include "packet.h"

#ifdef GALE_XDP

static __always_inline enum reason can_deliver(context_t *ctx, const struct packet *packet,
					       const struct seat *seat, __u16 overhead)
{
	if (unlikely(!(seat->flags & SEAT_RESOLVED)))
		return REASON_slow_next_hop;
	/* Nor is an outer header put between a tag and what it belongs to. */
	if (unlikely(packet->tags && (overhead || seat->ifindex != ctx->ingress_ifindex)))
		return REASON_slow_vlan;
	return REASON_parsed;
}

static __always_inline __u32 longest_segment(context_t *ctx, const struct packet *packet)
{
	return bpf_ntohs(packet->ip->tot_len);
}

static __always_inline int deliver_to_seat(context_t *ctx, struct packet *packet,
					   const struct seat *seat)
{
	__builtin_memcpy(packet->ethernet->h_dest, seat->destination_mac, ETH_ALEN);
	__builtin_memcpy(packet->ethernet->h_source, seat->source_mac, ETH_ALEN);
	return bpf_redirect(seat->ifindex, 0);
}

static __always_inline enum reason can_reach_client(const struct packet *packet,
						    const __u8 *last_hop)
{
	__u8 known = 0;

#pragma unroll
	for (int i = 0; i < ETH_ALEN; i++)
		known |= last_hop[i];
	if (unlikely(packet->tags))
		return REASON_slow_vlan;
	if (unlikely(!known))
		return REASON_slow_next_hop;
	return unlikely(packet->ip->ihl != 5) ? REASON_slow_ip_options : REASON_parsed;
}

static __always_inline int deliver_to_client(context_t *ctx, struct packet *packet,
					     const __u8 *last_hop, const struct settings *own)
{
	__builtin_memcpy(packet->ethernet->h_dest, last_hop, ETH_ALEN);
	__builtin_memcpy(packet->ethernet->h_source, own->public_mac, ETH_ALEN);
	return bpf_redirect(own->public_ifindex, 0);
}

#else

/* bcc declares this helper with three arguments; it takes four. */
static long (*redirect_neighbour)(u32 ifindex, void *params, int params_bytes,
				  u64 flags) = (void *)BPF_FUNC_redirect_neigh;

struct next_hop {
	__u32 family;
	__be32 address;
	__u32 padding[3];
};

static __always_inline enum reason can_deliver(context_t *ctx, const struct packet *packet,
					       const struct seat *seat, __u16 overhead)
{
	return unlikely(!seat->ifindex) ? REASON_drop_no_route : REASON_parsed;
}

/* Of a packet that stands for many, the length of one of them on the wire, as IP counts it. */
static __always_inline __u32 longest_segment(context_t *ctx, const struct packet *packet)
{
	if (ctx->gso_segs > 1)
		return ctx->gso_size + packet->ip->ihl * 4 + packet->transport_bytes;
	return bpf_ntohs(packet->ip->tot_len);
}

static __always_inline void strip_tags(context_t *ctx, const struct packet *packet)
{
	if (unlikely(ctx->vlan_present))
		bpf_skb_vlan_pop(ctx);
	if (unlikely(packet->tags))
		bpf_skb_vlan_pop(ctx);
}

static __always_inline int deliver_to_seat(context_t *ctx, struct packet *packet,
					   const struct seat *seat)
{
	struct next_hop next_hop = { .family = 2 /* AF_INET */, .address = seat->next_hop };

	if (seat->ifindex != ctx->ifindex)
		strip_tags(ctx, packet);
	return redirect_neighbour(seat->ifindex, &next_hop, sizeof(next_hop), 0);
}

/* The kernel's routes say how the client is reached; it need not own the source address. */
static __always_inline enum reason can_reach_client(const struct packet *packet,
						    const __u8 *last_hop)
{
	return REASON_parsed;
}

static __always_inline int deliver_to_client(context_t *ctx, struct packet *packet,
					     const __u8 *last_hop, const struct settings *own)
{
	strip_tags(ctx, packet);
	return redirect_neighbour(own->public_ifindex, 0, 0, 0);
}

#endif

/* Whether the packet can go to this seat at all, before anything of it is changed. `overhead`: what
 * will be put around it.
 */
static __always_inline enum reason may_forward(context_t *ctx, struct packet *packet,
					       const struct seat *seat, __u16 overhead)
{
	enum reason refused = can_deliver(ctx, packet, seat, overhead);

	if (unlikely(refused))
		return refused;
	if (likely(longest_segment(ctx, packet) + overhead <= seat->mtu))
		return REASON_parsed;
	packet->mtu = seat->mtu - overhead;
	return REASON_too_long;
}

/* The same for a reply: whether it can go back to the client as it is. */
static __always_inline enum reason may_reply(context_t *ctx, struct packet *packet,
					     const __u8 *last_hop, const struct settings *own)
{
	enum reason refused = can_reach_client(packet, last_hop);

	if (unlikely(refused))
		return refused;
	if (unlikely(longest_segment(ctx, packet) > own->public_mtu)) {
		packet->mtu = own->public_mtu;
		return REASON_too_long;
	}
	return unlikely(packet->ip->ttl <= 1) ? REASON_drop_ttl : REASON_parsed;
}

#endif
