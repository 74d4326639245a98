/* SPDX-License-Identifier: GPL-2.0 */
/* The amounts by which a rewrite changes checksums: addresses (they count in the header's own and,
 * as part of the pseudo header, in the transport's) apart from ports.
 */
#ifndef GALE_NAT_H
#define GALE_NAT_H

#include "packet.h"
#include "checksum.h"

/* What a flow's packets become, and whose they are: bytes 16 to 31 of `struct flow`, copied out
 * of it in one go so that nobody acts on half of a change.
 */
struct rewrite {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u16 seat;
	__u8 state;
	__u8 flags;
};

/* The key under which packets of the other direction arrive. */
static __always_inline struct flow_key opposite_key(const struct flow_key *key,
						    const struct rewrite *to)
{
	return (struct flow_key){
		.saddr = to->daddr,
		.daddr = to->saddr,
		.sport = to->dport,
		.dport = to->sport,
		.protocol = key->protocol,
		.direction = !key->direction,
	};
}

static __always_inline __u64 address_delta(const struct packet *packet, const struct rewrite *to)
{
	return delta32(packet->key.saddr, to->saddr) + delta32(packet->key.daddr, to->daddr);
}

static __always_inline __u64 port_delta(const struct packet *packet, const struct rewrite *to)
{
	return delta16(packet->key.sport, to->sport) + delta16(packet->key.dport, to->dport);
}

static __always_inline void decrease_ttl(struct iphdr *ip)
{
	/* One less takes 0x0100 (network order) from the header's sum. */
	ip->check = checksum_adjust(ip->check, delta16(bpf_htons(0x0100), 0));
	ip->ttl--;
}

static __always_inline void rewrite_ipv4(struct iphdr *ip, __be32 saddr, __be32 daddr, __u64 delta)
{
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = checksum_adjust(ip->check, delta + delta16(bpf_htons(0x0100), 0));
	ip->ttl--;
}

#endif
