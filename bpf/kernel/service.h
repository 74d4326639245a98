/* SPDX-License-Identifier: GPL-2.0 */
/* Which service a packet is for: a table that every packet asks, with one entry for each address,
 * port and protocol that is served ("front"); a range of ports has one for each of its ports.
 *
 * A kernel hash map costs four nested calls per look-up, more than all the rest of an L2 packet. So
 * this is a hash table of our own in an array, whose look-ups the verifier turns into loads: cuckoo
 * hashing (Pagh and Rodler 2004) with two hashes and two places for each. Nearly every entry stands
 * in the first place looked at, and user space finds a place for every new one by moving others
 * (front_table.py): each is written to its new place before the old one is given away.
 */
#ifndef GALE_SERVICE_H
#define GALE_SERVICE_H

#include "maps.h"
#include "packet.h"

#define SERVICE_HASH_FACTOR 0x9e3779b97f4a7c15ULL
#define SERVICE_SECOND_FACTOR 0xbf58476d1ce4e5b9ULL
#define SERVICE_PLACE_SHIFT 49 /* the upper bits: those that every bit of the key has reached */

/* At this place or the other one of its bucket. */
static __always_inline struct service *service_at(__u64 hash, __u64 word)
{
	int place = hash >> SERVICE_PLACE_SHIFT;
	struct service *service = services.lookup(&place);

	if (likely(service && *(__u64 *)service == word))
		return service;
	place ^= 1;
	service = services.lookup(&place);
	return service && *(__u64 *)service == word ? service : 0;
}

static __always_inline struct service *find_service(const struct flow_key *key)
{
	struct service_key wanted = {
		.address = key->daddr,
		.port = key->dport,
		.protocol = key->protocol,
	};
	__u64 word = *(__u64 *)&wanted, hash = word * SERVICE_HASH_FACTOR;
	struct service *service = service_at(hash, word);

	if (likely(service))
		return service;
	hash = (hash ^ hash >> 32) * SERVICE_SECOND_FACTOR;
	return service_at(hash, word);
}

#endif
