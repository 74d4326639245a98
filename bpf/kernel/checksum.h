/* One's complement arithmetic of the Internet checksum (RFC 1071), incremental (RFC 1624, eqn. 3).
 *
 * A rewrite changes the checksum by the same amount whatever else is in the packet; so the amount
 * is calculated once, when a flow is created, and stands in its conntrack entry.
 */
#ifndef GALE_CHECKSUM_H
#define GALE_CHECKSUM_H

static __always_inline __u16 fold(__u32 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* What must be added to a sum over `old` to make it one over `fresh`. */
static __always_inline __u32 delta32(__be32 old, __be32 fresh)
{
	old = ~old;
	return (old & 0xffff) + (old >> 16) + (fresh & 0xffff) + (fresh >> 16);
}

static __always_inline __u32 delta16(__be16 old, __be16 fresh)
{
	return (__u16)~old + (__u32)fresh;
}

static __always_inline __u16 checksum_adjust(__u16 checksum, __u32 delta)
{
	return ~fold((__u16)~checksum + delta);
}

/* A time to live one less takes 0x0100 (network order) from the header's sum. */
static __always_inline void decrement_ttl(struct iphdr *ip)
{
	ip->check = checksum_adjust(ip->check, delta16(bpf_htons(0x0100), 0));
	ip->ttl--;
}

#endif
