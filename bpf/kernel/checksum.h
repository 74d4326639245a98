/* SPDX-License-Identifier: GPL-2.0 */
/* One's complement arithmetic of the Internet checksum (RFC 1071), incremental (RFC 1624, eqn. 3).
 *
 * A rewrite changes the checksum by an amount that does not depend on what else is in the packet.
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

#endif
