/* SPDX-License-Identifier: GPL-2.0 */
/* The packet as XDP has it: one frame, straight from the driver, its checksums complete.
 *
 * What XDP cannot finish it passes on unmodified to TC: a next hop that is not resolved, a device
 * that takes no frames from XDP (a bridge, a VLAN, ...), a tag that has to come off, IP options. So
 * everything that may refuse is asked before anything is written.
 */
#ifndef GALE_CTX_XDP_H
#define GALE_CTX_XDP_H

#include "packet.h"
#include "checksum.h"
#include "nat.h"

#define context_t struct xdp_md
#define VERDICT_PASS XDP_PASS
#define VERDICT_DROP XDP_DROP

static __always_inline void *packet_start(context_t *ctx)
{
	return (void *)(long)ctx->data;
}

static __always_inline void *packet_end(context_t *ctx)
{
	return (void *)(long)ctx->data_end;
}

static __always_inline int arrived_on(context_t *ctx)
{
	return ctx->ingress_ifindex;
}

static __always_inline struct decision parse_packet(context_t *ctx, struct packet *packet)
{
	struct cursor cursor = { packet_start(ctx), packet_end(ctx) };
	struct decision decision = parse_headers(&cursor, packet);

	packet->segments = 1;
	/* A frame with a large MTU may come in pieces, of which the cursor sees the first: only
	 * then is the kernel asked for the length of them all.
	 */
	if (unlikely(packet->ip && (void *)packet->ethernet + packet->bytes > packet_end(ctx)) &&
	    packet->bytes > bpf_xdp_get_buff_len(ctx))
		return decide(REASON_pass_malformed);
	return decision;
}

static __always_inline __u32 frame_bytes(context_t *ctx)
{
	return bpf_xdp_get_buff_len(ctx);
}

/* Such short frames come in one piece. */
static __always_inline void gather(context_t *ctx)
{
}

/* Whether the frame was sent to the interface's MAC address. */
static __always_inline int is_for_us(context_t *ctx, const struct packet *packet, const __u8 *mac)
{
	return has_destination(packet, mac);
}

/* Of a packet that stands for many, the length of one of them on the wire, as IP counts it. */
static __always_inline __u32 longest_segment(context_t *ctx, const struct packet *packet)
{
	return packet->ip_bytes;
}

/* --------------------------------------------------------------------- sending it on */

static __always_inline struct decision can_deliver(context_t *ctx, const struct packet *packet,
						   const struct seat *seat, __u16 overhead)
{
	if (unlikely((seat->flags & (SEAT_RESOLVED | SEAT_BY_TC)) != SEAT_RESOLVED))
		return decide(seat->flags & SEAT_RESOLVED ? REASON_slow_output
							  : REASON_slow_next_hop);
	/* Nor is an outer header put between a tag and what it belongs to. */
	if (unlikely(packet->tags && (overhead || seat->ifindex != ctx->ingress_ifindex)))
		return decide(REASON_slow_vlan);
	return UNDECIDED;
}

static __always_inline int deliver_to_seat(context_t *ctx, struct packet *packet,
					   const struct seat *seat)
{
	copy_mac(packet->ethernet->h_dest, seat->destination_mac);
	copy_mac(packet->ethernet->h_source, seat->source_mac);
	return bpf_redirect(seat->ifindex, 0);
}

static __always_inline struct decision can_reach_client(const struct packet *packet,
							const __u8 *last_hop,
							const struct settings *own)
{
	if (unlikely(packet->tags))
		return decide(REASON_slow_vlan);
	if (unlikely(own->public_by_tc))
		return decide(REASON_slow_output);
	if (unlikely(!is_known(last_hop)))
		return decide(REASON_slow_next_hop);
	return unlikely(packet->ip->ihl != 5) ? decide(REASON_slow_ip_options) : UNDECIDED;
}

static __always_inline int deliver_to_client(context_t *ctx, struct packet *packet,
					     const __u8 *last_hop, const struct settings *own)
{
	copy_mac(packet->ethernet->h_dest, last_hop);
	copy_mac(packet->ethernet->h_source, own->public_mac);
	return bpf_redirect(own->public_ifindex, 0);
}

/* IP options make headers of a length that the programs would have to carry along. Which VLAN the
 * client is in, TC keeps in mind.
 */
static __always_inline struct decision can_translate(const struct packet *packet)
{
	if (unlikely(packet->is_tagged))
		return decide(REASON_slow_vlan);
	return unlikely(packet->ip->ihl != 5) ? decide(REASON_slow_ip_options) : UNDECIDED;
}

/* --------------------------------------------------------------------- changing it */

/* Whether the packet was rewritten; the caller has seen to it that there are no IP options. */
static __always_inline int rewrite_l4(context_t *ctx, struct packet *packet,
				      const struct rewrite *to)
{
	struct tcphdr *tcp = (void *)(packet->ip + 1);
	struct udphdr *udp = (void *)tcp;
	__u64 addresses = address_delta(packet, to);
	__u64 all = addresses + port_delta(packet, to);

	/* The verifier has forgotten by now which header the parser saw. */
	if ((void *)(udp + 1) > packet_end(ctx))
		return -1;
	rewrite_ipv4(packet->ip, to->saddr, to->daddr, addresses);
	if (packet->key.protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > packet_end(ctx))
			return -1;
		tcp->source = to->sport;
		tcp->dest = to->dport;
		tcp->check = checksum_adjust(tcp->check, all);
	} else {
		udp->source = to->sport;
		udp->dest = to->dport;
		if (udp->check) { /* 0: the sender calculated none, and so do we (RFC 768) */
			udp->check = checksum_adjust(udp->check, all);
			udp->check = udp->check ? udp->check : 0xffff;
		}
	}
	return 0;
}

/* Puts `bytes` of an outer header behind the Ethernet header; the flags say which it is. */
static __always_inline int put_outer(context_t *ctx, struct packet *packet, void *outer,
				     __u32 bytes, int udp)
{
	struct ethhdr *ethernet;

	if (bpf_xdp_adjust_head(ctx, -(int)bytes))
		return -1;
	ethernet = packet_start(ctx);
	if ((void *)(ethernet + 1) + bytes > packet_end(ctx))
		return -1;
	__builtin_memcpy(ethernet + 1, outer, bytes);
	ethernet->h_proto = bpf_htons(ETH_P_IP);
	packet->ethernet = ethernet;
	return 0;
}

static __always_inline void strip_tags(context_t *ctx, const struct packet *packet)
{
}

static __always_inline void read_tags(context_t *ctx, const struct packet *packet,
				      struct vlan_client *client)
{
}

static __always_inline int put_on_tags(context_t *ctx, const struct vlan_client *client)
{
	return -1;
}

/* Whether XDP may answer this packet. TC has tags beside the bytes, where they are in nobody's
 * way, and sends by any device.
 */
static __always_inline struct decision can_answer(context_t *ctx, const struct packet *packet,
						  const struct settings *own)
{
	if (unlikely(packet->tags))
		return decide(REASON_slow_vlan);
#ifdef GALE_GENERIC_XDP
	/* Generic XDP comes after the kernel has merged segments, and does not tell. */
	if (packet->answer == ANSWER_TOO_BIG)
		return decide(REASON_slow_merged);
#endif
	if (unlikely(ctx->ingress_ifindex == own->public_ifindex ? own->public_by_tc
								 : own->private_by_tc))
		return decide(REASON_slow_output);
	return UNDECIDED;
}

/* Cuts the frame to its first `kept` bytes. */
static __always_inline int cut_to(context_t *ctx, __u32 kept)
{
	return bpf_xdp_adjust_tail(ctx, (int)kept - (int)bpf_xdp_get_buff_len(ctx));
}

/* Makes room for `bytes` between the Ethernet header and what follows. */
static __always_inline int make_room(context_t *ctx, __u32 bytes)
{
	return bpf_xdp_adjust_head(ctx, -(int)bytes);
}

/* Whether the device is yet to finish the transport checksum of this packet. */
static __always_inline int has_partial_checksum(context_t *ctx, const struct packet *packet)
{
	return 0;
}

#endif
