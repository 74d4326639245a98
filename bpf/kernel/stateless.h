/* SPDX-License-Identifier: GPL-2.0 */
/* L2 and L3: the ring alone decides, nothing is remembered, and the node answers the client
 * directly.
 *
 * L2 changes the MAC addresses and nothing else; L3 puts an outer header around the packet. Every
 * LB that has the same ring does the same with the same packet.
 */
#ifndef GALE_STATELESS_H
#define GALE_STATELESS_H

#include "maps.h"
#include "hash.h"
#include "encap.h"
#include "fragment.h"
#include "deliver.h"
#include "flow.h"

/* The seat that the ring names for this hash; NO_SEAT where the service has no node. */
static __always_inline int seat_of_hash(const struct service *service, __u64 hash)
{
	__u32 slot = slot_of(hash);
	int index = service->ring * RING_ENTRIES + slot / RING_LANES;
	struct ring_entry *entry = ring.lookup(&index);
	__u32 found = entry ? entry->seat_less_id[slot % RING_LANES] : 0;

	return likely(found) ? found + service->id : NO_SEAT;
}

/* Nobody is left to serve it: its client is told at once. */
static __always_inline struct decision refuse_for_no_node(struct packet *packet)
{
	if (packet->icmp_error || packet->key.protocol == IPPROTO_ICMP)
		return decide(REASON_drop_no_node);
	packet->answer = packet->key.protocol == IPPROTO_TCP ? ANSWER_RESET : ANSWER_UNREACHABLE;
	return decide(REASON_no_node_refused);
}

static __always_inline struct decision forward_stateless(context_t *ctx, struct packet *packet,
							 const struct service *service,
							 const struct settings *own)
{
	__u64 hash = flow_hash(&packet->key, service->flags, own->hash_seed);
	int index = seat_of_hash(service, hash);
	__u16 overhead = service->mode == MODE_L3 ? outer_bytes(service->flags) : 0;
	struct seat_counters *counters;
	struct decision refused;
	struct seat *seat;

	if (unlikely(index == NO_SEAT))
		return refuse_for_no_node(packet);
	seat = seats.lookup(&index);
	counters = seat_counters.lookup(&index);
	if (unlikely(!seat || !counters))
		return decide(REASON_drop_no_node);
	overhead = is_own(seat) ? 0 : overhead;
	refused = may_forward(ctx, packet, seat, overhead);
	if (unlikely(is_decided(refused)))
		return refused;
	if (unlikely(packet->first_fragment) &&
	    note_fragment(packet, index, service->mode, service->flags, 0, 0))
		return decide(REASON_drop_fragment_clash);
	counters->packets_in += packet->segments;
	counters->bytes_in += packet->bytes;
	counters->flows += is_syn(packet);
	if (unlikely(is_own(seat)))
		return decide(REASON_pass_own_node);
	if (overhead && encapsulate(ctx, packet, seat, service->flags, hash, own))
		return decide(REASON_drop_rewrite_failed);
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	if (unlikely(packet->icmp_error))
		return decide(REASON_icmp_to_node);
	return decide(overhead ? REASON_l3_forwarded : REASON_l2_forwarded);
}

#endif
