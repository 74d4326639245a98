/* SPDX-License-Identifier: GPL-2.0 */
/* The keyed hash that picks a slot: the same on every LB, unpredictable without the seed.
 *
 * Two rounds of multiply and xor-shift (the finaliser of SplitMix64, Steele et al. 2014), the seed
 * mixed in before each: no look-up, no loop, about two nanoseconds.
 */
#ifndef GALE_HASH_H
#define GALE_HASH_H

#include "types.h"

static __always_inline __u64 mix(__u64 value, __u64 seed)
{
	value ^= seed;
	value = (value ^ (value >> 30)) * 0xbf58476d1ce4e5b9ULL;
	value ^= seed;
	value = (value ^ (value >> 27)) * 0x94d049bb133111ebULL;
	return value ^ (value >> 31);
}

static __always_inline __u64 flow_hash(const struct flow_key *key, __u8 flags, __u64 seed)
{
	__u64 value = (__u64)key->saddr << 32;

	if (!(flags & SERVICE_AFFINITY_CLIENT))
		value |= (__u32)key->sport << 16 | key->dport;
	return mix(value, seed);
}

/* The upper half of the hash, scaled to the slots: a multiplication instead of a division. */
static __always_inline __u32 slot_of(__u64 hash)
{
	return ((hash >> 32) * RING_SLOTS) >> 32;
}

#endif
