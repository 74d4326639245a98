/* Which service a packet is for: a table of few entries that every packet asks.
 *
 * A kernel hash map costs four nested calls per look-up, more than all the rest of an L2 packet. So
 * this is a hash table of our own in an array, whose look-ups the verifier turns into loads: open
 * addressing, but only SERVICE_PROBES places in a row, so that an entry never has to move when
 * another comes or goes. User space puts an entry in any of its places that is free (kernel.py).
 */
#ifndef GALE_SERVICE_H
#define GALE_SERVICE_H

#include "maps.h"
#include "packet.h"

#define SERVICE_HASH_FACTOR 0x9e3779b97f4a7c15ULL
#define SERVICE_PLACE_SHIFT 54 /* the upper bits: those that every bit of the key has reached */

static __always_inline struct service *find_service(const struct flow_key *key)
{
	struct service_key wanted = {
		.address = key->daddr,
		.port = key->dport,
		.protocol = key->protocol,
	};
	__u64 word = *(__u64 *)&wanted;
	__u32 place = (word * SERVICE_HASH_FACTOR) >> SERVICE_PLACE_SHIFT;
	struct service *service;

#pragma unroll
	for (int probe = 0; probe < SERVICE_PROBES; probe++) {
		int index = (place + probe) % SERVICE_PLACES;

		service = services.lookup(&index);
		if (service && *(__u64 *)service == word)
			return service;
	}
	return 0;
}

#endif
