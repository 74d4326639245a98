/* SPDX-License-Identifier: GPL-2.0 */
/* One's complement arithmetic of the Internet checksum (RFC 1071), incremental (RFC 1624, eqn. 3).
 *
 * A rewrite changes the checksum by an amount that does not depend on what else is in the packet.
 *
 * Sums are kept in 64 bits until they are folded: this instruction set has no narrower arithmetic,
 * so each step of a narrower sum would cost two instructions more, which cut it off.
 */
#ifndef GALE_CHECKSUM_H
#define GALE_CHECKSUM_H

/* Of a sum below 2^36: after two steps it may be 0x10000, never more than a few above that. */
static __always_inline __u16 fold(__u64 sum)
{
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (sum & 0xffff) + (sum >> 16);
}

/* What must be added to a sum over `old` to make it one over `fresh`: of two halves at once, since
 * 2^16 counts as one.
 */
static __always_inline __u64 delta32(__be32 old, __be32 fresh)
{
	return (old ^ 0xffffffffULL) + fresh;
}

static __always_inline __u64 delta16(__be16 old, __be16 fresh)
{
	return (old ^ 0xffffULL) + fresh;
}

static __always_inline __u16 checksum_adjust(__u16 checksum, __u64 delta)
{
	return ~fold((checksum ^ 0xffffULL) + delta);
}

#endif
