/* L3: the client's packet travels whole, inside an outer header to the node.
 *
 * IP in IP (RFC 2003), or UDP with a GUE header (draft-ietf-intarea-gue, variant 0, no options).
 * DSCP and ECN are copied outward (RFC 6040); the outer packet is never fragmented, so its length
 * is checked before. What tells one flow's outer header from another's, so that the node's network
 * card spreads flows over its queues: with GUE the UDP source port, with IP in IP the outer source
 * address, taken from a /16 that is set apart for it.
 */
#ifndef GALE_ENCAP_H
#define GALE_ENCAP_H

#include "packet.h"
#include "checksum.h"
#include "deliver.h"

#define GUE_PORT 6080
#define OUTER_TTL 64

struct gue_header {
	__u8 version_length; /* version 0, no optional words */
	__u8 protocol;
	__be16 flags;
};

struct outer_gue {
	struct iphdr ip;
	struct udphdr udp;
	struct gue_header gue;
} __attribute__((packed));

static __always_inline __u16 outer_bytes(__u8 flags)
{
	return flags & SERVICE_GUE ? sizeof(struct outer_gue) : sizeof(struct iphdr);
}

static __always_inline __u16 header_checksum(const struct iphdr *ip)
{
	const __u16 *words = (const void *)ip;
	__u32 sum = 0;

#pragma unroll
	for (int i = 0; i < 10; i++)
		sum += words[i];
	return ~fold(sum);
}

static __always_inline __be32 outer_source(const struct seat *seat, __u8 flags, __u32 entropy,
					   const struct settings *own)
{
	if ((flags & SERVICE_GUE) || !own->outer_prefix)
		return seat->outer_source;
	return own->outer_prefix | bpf_htonl(entropy & 0xffff);
}

/* Fills in the outer header; of `outer` only the IP part counts where the service uses IP in IP. */
static __always_inline void make_outer(struct outer_gue *outer, const struct packet *packet,
				       const struct seat *seat, __u8 flags, __u32 entropy,
				       const struct settings *own)
{
	__u16 inner_bytes = bpf_ntohs(packet->ip->tot_len);
	struct iphdr *ip = &outer->ip;

	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = packet->ip->tos,
		.tot_len = bpf_htons(inner_bytes + outer_bytes(flags)),
		.frag_off = bpf_htons(IP_DONT_FRAGMENT),
		.ttl = OUTER_TTL,
		.protocol = flags & SERVICE_GUE ? IPPROTO_UDP : IPPROTO_IPIP,
		.saddr = outer_source(seat, flags, entropy, own),
		.daddr = seat->address,
	};
	ip->check = header_checksum(ip);
	outer->udp = (struct udphdr){
		.source = bpf_htons(0xc000 | (entropy & 0x3fff)),
		.dest = bpf_htons(GUE_PORT),
		.len = bpf_htons(inner_bytes + sizeof(struct udphdr) + sizeof(struct gue_header)),
	};
	outer->gue = (struct gue_header){ .protocol = IPPROTO_IPIP };
}

#ifdef GALE_XDP

static __always_inline int encapsulate(context_t *ctx, struct packet *packet,
				       const struct seat *seat, __u8 flags, __u32 entropy,
				       const struct settings *own)
{
	struct outer_gue outer;
	struct ethhdr *ethernet;
	void *end;

	make_outer(&outer, packet, seat, flags, entropy, own);
	if (bpf_xdp_adjust_head(ctx, -(int)outer_bytes(flags)))
		return -1;
	ethernet = (void *)(long)ctx->data;
	end = (void *)(long)ctx->data_end;
	if (flags & SERVICE_GUE) {
		if ((void *)(ethernet + 1) + sizeof(outer) > end)
			return -1;
		__builtin_memcpy(ethernet + 1, &outer, sizeof(outer));
	} else {
		if ((void *)(ethernet + 1) + sizeof(outer.ip) > end)
			return -1;
		__builtin_memcpy(ethernet + 1, &outer.ip, sizeof(outer.ip));
	}
	ethernet->h_proto = bpf_htons(ETH_P_IP);
	packet->ethernet = ethernet;
	return 0;
}

#else

static __always_inline int encapsulate(context_t *ctx, struct packet *packet,
				       const struct seat *seat, __u8 flags, __u32 entropy,
				       const struct settings *own)
{
	__u64 room = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4;
	struct outer_gue outer;

	make_outer(&outer, packet, seat, flags, entropy, own);
	if (seat->ifindex != ctx->ifindex)
		strip_tags(ctx, packet); /* the kernel makes no room behind a tag */
	if (flags & SERVICE_GUE)
		room |= BPF_F_ADJ_ROOM_ENCAP_L4_UDP;
	if (bpf_skb_adjust_room(ctx, outer_bytes(flags), BPF_ADJ_ROOM_MAC, room))
		return -1;
	return flags & SERVICE_GUE
		       ? bpf_skb_store_bytes(ctx, sizeof(struct ethhdr), &outer, sizeof(outer), 0)
		       : bpf_skb_store_bytes(ctx, sizeof(struct ethhdr), &outer.ip,
					     sizeof(outer.ip), 0);
}

#endif

#endif
