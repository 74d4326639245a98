/* SPDX-License-Identifier: GPL-2.0 */
/* L3: the client's packet travels whole, inside an outer header to the node.
 *
 * IP in IP (RFC 2003), or UDP with a GUE header (draft-ietf-intarea-gue, variant 0, no options).
 * DSCP and ECN are copied outward (RFC 6040, normal mode), and the time to live inside is one less
 * (RFC 2003): a load balancer of L3 is a router, and seen as one. The outer packet is never
 * fragmented, so its length is checked before. What tells one flow's outer header from another's,
 * so that the node's network card spreads flows over its queues: with GUE the UDP source port, with
 * IP in IP the outer source address, taken from a /16 that is set apart for it.
 */
#ifndef GALE_ENCAP_H
#define GALE_ENCAP_H

#include "ctx.h"

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

/* Of what is merged and has become too long for the field it says 0, as the kernel does. */
static __always_inline __be16 length_field(__u32 bytes)
{
	return bytes > 0xffff ? 0 : bpf_htons(bytes);
}

/* Fills in the outer header; of `outer` only the IP part counts where the service uses IP in IP. */
static __always_inline void make_outer(struct outer_gue *outer, const struct packet *packet,
				       const struct seat *seat, __u8 flags, __u32 entropy,
				       const struct settings *own)
{
	__u32 inner_bytes = packet->ip_bytes;
	struct iphdr *ip = &outer->ip;

	*ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tos = packet->ip->tos,
		.tot_len = length_field(inner_bytes + outer_bytes(flags)),
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
		.len = length_field(inner_bytes + sizeof(struct udphdr) +
				    sizeof(struct gue_header)),
	};
	outer->gue = (struct gue_header){ .protocol = IPPROTO_IPIP };
}

static __always_inline int encapsulate(context_t *ctx, struct packet *packet,
				       const struct seat *seat, __u8 flags, __u32 entropy,
				       const struct settings *own)
{
	struct outer_gue outer;

	decrease_ttl(packet->ip); /* RFC 2003, 3.1: whoever wraps a packet forwards it */
	make_outer(&outer, packet, seat, flags, entropy, own);
	if (seat->ifindex != arrived_on(ctx))
		strip_tags(ctx, packet); /* the kernel makes no room behind a tag */
	return flags & SERVICE_GUE ? put_outer(ctx, packet, &outer, sizeof(outer), 1)
				   : put_outer(ctx, packet, &outer, sizeof(outer.ip), 0);
}

#endif
