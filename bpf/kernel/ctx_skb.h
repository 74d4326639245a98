/* SPDX-License-Identifier: GPL-2.0 */
/* The packet as TC has it: an sk_buff, which may stand for many packets (GSO), keep its bytes in
 * pieces, carry its VLAN tag beside the bytes, and have a checksum that is yet to be finished.
 *
 * TC sends through the kernel's neighbour table, which holds a packet back until ARP has answered,
 * so that no first packet is lost. Only replies whose way back is known from the client's own
 * packets are sent there at once.
 */
#ifndef GALE_CTX_SKB_H
#define GALE_CTX_SKB_H

#include "packet.h"
#include "checksum.h"
#include "nat.h"

#define context_t struct __sk_buff
#define PACKET_HOST 0		   /* linux/if_packet.h: to this machine */
#define VERDICT_PASS TC_ACT_UNSPEC /* whoever else has a filter here still gets to see it */
#define VERDICT_DROP TC_ACT_SHOT

#define PLAIN_BYTES 54	 /* Ethernet, IP and TCP without options */
#define LINEAR_BYTES 128 /* enough for two tags, IP with options, TCP, and a quoted packet */

/* The verifier knows packet pointers by the fields they are read from. The compiler sees numbers of
 * 32 bits there, and where it carries one over a branch it widens it by arithmetic, which the
 * verifier forbids. So they are read as what they are.
 */
#define READ_POINTER(ctx, field)                                                                   \
	({                                                                                         \
		void *pointer;                                                                     \
		asm volatile("%0 = *(u32 *)(%1 + %2)"                                              \
			     : "=r"(pointer)                                                       \
			     : "r"(ctx), "i"(__builtin_offsetof(context_t, field)));               \
		pointer;                                                                           \
	})

static __always_inline void *packet_start(context_t *ctx)
{
	return READ_POINTER(ctx, data);
}

static __always_inline void *packet_end(context_t *ctx)
{
	return READ_POINTER(ctx, data_end);
}

static __always_inline int arrived_on(context_t *ctx)
{
	return ctx->ifindex;
}

/* Sees to it that so many of the packet's first bytes are in one piece, if it has so many. */
static __always_inline void pull(context_t *ctx, __u32 bytes)
{
	__u32 wanted = ctx->len < bytes ? ctx->len : bytes;

	if (packet_start(ctx) + (wanted & 0xff) > packet_end(ctx))
		bpf_skb_pull_data(ctx, wanted);
}

static __always_inline __u32 frame_bytes(context_t *ctx)
{
	return ctx->len;
}

/* Sees to it that all of what asks for a neighbour is in one piece. */
static __always_inline void gather(context_t *ctx)
{
	pull(ctx, LINEAR_BYTES);
}

/* How many packets of the wire this one stands for, and their bytes. Not everybody who merges says
 * how many: a virtual machine's host tells their size alone.
 */
static __always_inline void count_segments(context_t *ctx, struct packet *packet)
{
	__u32 network = (void *)packet->ip - (void *)packet->ethernet;
	__u32 headers = packet->ip->ihl * 4 + packet->transport_bytes;

	if (packet->ip_bytes <= headers + ctx->gso_size)
		return;
	packet->segments = (packet->ip_bytes - headers + ctx->gso_size - 1) / ctx->gso_size;
	packet->bytes += (packet->segments - 1) * (network + headers);
}

/* Of the tag that lies beside the bytes. Id 0 is a priority alone. */
static __always_inline int is_in_vlan(context_t *ctx)
{
	return ctx->vlan_present && (ctx->vlan_tci & VLAN_ID);
}

/* Headers are in one piece nearly always, and pulling costs a call and often a copy: so more is
 * pulled only where parsing has failed without it.
 */
static __always_inline struct decision parse_packet(context_t *ctx, struct packet *packet)
{
	struct decision decision = UNDECIDED;
	__u32 piece = PLAIN_BYTES;

#pragma clang loop unroll(disable)
	for (int attempt = 0; attempt < 2; attempt++) {
		struct cursor cursor;

		pull(ctx, piece);
		cursor.position = packet_start(ctx);
		cursor.end = packet_end(ctx);
		cursor.merged = ctx->gso_size ? ctx->len : 0;
		*packet = (struct packet){};
		decision = parse_headers(&cursor, packet);
		if (likely(decision.code != decide(REASON_pass_malformed).code &&
			   packet->key.protocol != IPPROTO_ICMP))
			break;
		piece = LINEAR_BYTES;
	}
	packet->segments = 1;
	packet->is_tagged |= is_in_vlan(ctx);
	if (packet->bytes > ctx->len)
		return decide(REASON_pass_malformed);
	if (ctx->gso_size && packet->ip)
		count_segments(ctx, packet);
	return decision;
}

/* Whether the frame was sent to the interface's MAC address: the kernel has compared them, and a
 * device that stands on others (a VLAN, a macvlan) has had its say. The bytes say it too, before
 * the kernel has looked.
 */
static __always_inline int is_for_us(context_t *ctx, const struct packet *packet, const __u8 *mac)
{
	return ctx->pkt_type == PACKET_HOST || has_destination(packet, mac);
}

/* Of a packet that stands for many, the length of one of them on the wire, as IP counts it. Old
 * virtual machines merge what is to leave as fragments of one datagram, whose headers are IP's
 * alone: such a one may be cut, and others of that length come from nobody.
 */
static __always_inline __u32 longest_segment(context_t *ctx, const struct packet *packet)
{
	__u32 headers = packet->ip->ihl * 4 + packet->transport_bytes;
	__u32 longest;

	if (likely(!ctx->gso_size))
		return packet->ip_bytes;
	if (packet->key.protocol == IPPROTO_UDP &&
	    !(packet->ip->frag_off & bpf_htons(IP_DONT_FRAGMENT)))
		headers -= packet->transport_bytes;
	longest = ctx->gso_size + headers;
	return longest < packet->ip_bytes ? longest : packet->ip_bytes;
}

static __always_inline void strip_tags(context_t *ctx, const struct packet *packet)
{
	if (unlikely(ctx->vlan_present))
		bpf_skb_vlan_pop(ctx);
	if (unlikely(packet->tags))
		bpf_skb_vlan_pop(ctx);
}

/* The tags that the packet came with: the outer one the kernel has taken from the bytes. */
static __always_inline void read_tags(context_t *ctx, const struct packet *packet,
				      struct vlan_client *client)
{
	const struct ethhdr *ethernet = packet_start(ctx);
	const struct vlan_tag *tag = (void *)(ethernet + 1);

	if (ctx->vlan_present) {
		client->outer_protocol = ctx->vlan_proto;
		client->outer_id = ctx->vlan_tci & VLAN_ID;
	}
	if (packet->tags && (void *)(tag + 1) <= packet_end(ctx)) {
		client->inner_protocol = ethernet->h_proto;
		client->inner_id = bpf_ntohs(tag->tci) & VLAN_ID;
	}
}

static __always_inline int put_on_tags(context_t *ctx, const struct vlan_client *client)
{
	if (client->inner_protocol &&
	    bpf_skb_vlan_push(ctx, client->inner_protocol, client->inner_id))
		return -1;
	return client->outer_protocol
		       ? bpf_skb_vlan_push(ctx, client->outer_protocol, client->outer_id)
		       : 0;
}

/* --------------------------------------------------------------------- sending it on */

/* bcc declares this helper with three arguments; it takes four. */
static long (*redirect_neighbour)(u32 ifindex, void *params, int params_bytes,
				  u64 flags) = (void *)BPF_FUNC_redirect_neigh;

struct next_hop {
	__u32 family;
	__be32 address;
	__u32 padding[3];
};

static __always_inline struct decision can_deliver(context_t *ctx, const struct packet *packet,
						   const struct seat *seat, __u16 overhead)
{
	return unlikely(!seat->ifindex) ? decide(REASON_drop_no_route) : UNDECIDED;
}

/* To this machine itself (own_node.h): by the seat's device, as if it had come in there. */
static __always_inline int deliver_to_own(context_t *ctx, struct packet *packet,
					  const struct seat *seat)
{
	struct ethhdr *ethernet;

	strip_tags(ctx, packet);
	ethernet = packet_start(ctx);
	if ((void *)(ethernet + 1) > packet_end(ctx))
		return VERDICT_DROP;
	copy_mac(ethernet->h_dest, seat->destination_mac);
	copy_mac(ethernet->h_source, seat->source_mac);
	return bpf_redirect(seat->ifindex, BPF_F_INGRESS);
}

static __always_inline int deliver_to_seat(context_t *ctx, struct packet *packet,
					   const struct seat *seat)
{
	struct next_hop next_hop = { .family = 2 /* AF_INET */, .address = seat->next_hop };

	if (unlikely(seat->flags & SEAT_OWN))
		return deliver_to_own(ctx, packet, seat);
	if (seat->ifindex != ctx->ifindex)
		strip_tags(ctx, packet);
	/* A router of the other family: the kernel's own routes know it. */
	if (unlikely(!seat->next_hop))
		return redirect_neighbour(seat->ifindex, 0, 0, 0);
	return redirect_neighbour(seat->ifindex, &next_hop, sizeof(next_hop), 0);
}

/* Without a known last hop the kernel's routes say how the client is reached; it need not own the
 * source address.
 */
static __always_inline struct decision can_reach_client(const struct packet *packet,
							const __u8 *last_hop,
							const struct settings *own)
{
	return UNDECIDED;
}

/* Back to whom the client's packets come from, where that is known: a routing look-up for each
 * reply costs as much as all the rest. The table learns at once when it changes (flow_table.h).
 */
static __always_inline int deliver_to_client(context_t *ctx, struct packet *packet,
					     const __u8 *last_hop, const struct settings *own)
{
	struct ethhdr *ethernet = packet_start(ctx);

	if (unlikely(!is_known(last_hop) || (void *)(ethernet + 1) > packet_end(ctx)))
		return redirect_neighbour(own->public_ifindex, 0, 0, 0);
	copy_mac(ethernet->h_dest, last_hop);
	copy_mac(ethernet->h_source, own->public_mac);
	return bpf_redirect(own->public_ifindex, 0);
}

static __always_inline struct decision can_translate(const struct packet *packet)
{
	return UNDECIDED;
}

/* --------------------------------------------------------------------- changing it */

/* A packet of a virtual machine or of another namespace may carry only the pseudo header's sum, to
 * be finished by the sending device: only the kernel's helper knows which, so it is told the
 * addresses' part (pseudo header) and the ports' part apart.
 */
static __always_inline int rewrite_l4(context_t *ctx, struct packet *packet,
				      const struct rewrite *to)
{
	__u32 network = (void *)packet->ip - (void *)packet->ethernet;
	__u32 transport = network + packet->ip->ihl * 4;
	int tcp = packet->key.protocol == IPPROTO_TCP;
	__u32 check = transport + (tcp ? __builtin_offsetof(struct tcphdr, check)
				       : __builtin_offsetof(struct udphdr, check));
	__u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	__u32 addresses = fold(address_delta(packet, to));
	struct iphdr *ip;
	__be16 *ports;

	if (bpf_l4_csum_replace(ctx, check, 0, addresses, flags | BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(ctx, check, 0, fold(port_delta(packet, to)), flags))
		return -1;
	ip = packet_start(ctx) + (network & 0x1f);
	ports = packet_start(ctx) + (transport & 0x7f);
	if ((void *)(ip + 1) > packet_end(ctx) || (void *)(ports + 2) > packet_end(ctx))
		return -1;
	rewrite_ipv4(ip, to->saddr, to->daddr, addresses);
	ports[0] = to->sport;
	ports[1] = to->dport;
	return 0;
}

/* Puts `bytes` of an outer header behind the Ethernet header; the kernel is told which it is. */
static __always_inline int put_outer(context_t *ctx, struct packet *packet, void *outer,
				     __u32 bytes, int udp)
{
	__u64 room = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;

	if (udp)
		room |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, room))
		return -1;
	return bpf_skb_store_bytes(ctx, sizeof(struct ethhdr), outer, bytes, 0);
}

static __always_inline struct decision can_answer(context_t *ctx, const struct packet *packet,
						  const struct settings *own)
{
	return UNDECIDED;
}

/* Cuts the frame to its first `kept` bytes. */
static __always_inline int cut_to(context_t *ctx, __u32 kept)
{
	return bpf_skb_change_tail(ctx, kept, 0);
}

/* Makes room for `bytes` between the Ethernet header and what follows. */
static __always_inline int make_room(context_t *ctx, __u32 bytes)
{
	return bpf_skb_adjust_room(ctx, bytes, BPF_ADJ_ROOM_MAC, 0);
}

/* Whether the device is yet to finish the transport checksum of this packet, TCP or UDP: the kernel
 * does not say, but a partial checksum is left alone when it is told of changed data. The packet is
 * afterwards as it was before; pointers into it are to be fetched again.
 */
static __always_inline int has_partial_checksum(context_t *ctx, const struct packet *packet)
{
	__u32 transport = (void *)packet->ip - (void *)packet->ethernet + packet->ip->ihl * 4;
	__u32 check = transport + (packet->key.protocol == IPPROTO_TCP
					   ? __builtin_offsetof(struct tcphdr, check)
					   : __builtin_offsetof(struct udphdr, check));
	__u16 before = 0, after = 0;

	bpf_skb_load_bytes(ctx, check, &before, sizeof(before));
	bpf_l4_csum_replace(ctx, check, 0, 1, 0);
	bpf_skb_load_bytes(ctx, check, &after, sizeof(after));
	if (before != after)
		bpf_skb_store_bytes(ctx, check, &before, sizeof(before), 0);
	return before == after;
}

#endif
