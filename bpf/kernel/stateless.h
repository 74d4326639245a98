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

/* The seat that the ring names for this hash; NO_SEAT where the service has no node. */
static __always_inline int seat_of_hash(const struct service *service, __u64 hash)
{
	__u32 slot = slot_of(hash);
	int index = service->id * RING_ENTRIES + slot / RING_LANES;
	struct ring_entry *entry = ring.lookup(&index);

	return entry ? entry->seat[slot % RING_LANES] : NO_SEAT;
}

/* Whether the packet is a flow's first; the flags of a UDP packet are zero. */
static __always_inline int is_syn(const struct packet *packet)
{
	return (packet->tcp_flags & (TCP_FLAG_SYN | TCP_FLAG_ACK)) == TCP_FLAG_SYN;
}

static __always_inline enum reason forward_stateless(context_t *ctx, struct packet *packet,
						     const struct service *service,
						     const struct settings *own)
{
	__u64 hash = flow_hash(&packet->key, service->flags, own->hash_seed);
	int index = seat_of_hash(service, hash);
	__u16 overhead = service->mode == MODE_L3 ? outer_bytes(service->flags) : 0;
	struct seat_counters *counters;
	enum reason refused;
	struct seat *seat;

	if (unlikely(index == NO_SEAT))
		return REASON_drop_no_node;
	seat = seats.lookup(&index);
	counters = seat_counters.lookup(&index);
	if (unlikely(!seat || !counters))
		return REASON_drop_no_node;
	refused = may_forward(ctx, packet, seat, overhead);
	if (unlikely(refused))
		return refused;
	note_fragment(packet, index, service->mode, service->flags, 0);
	counters->packets_in += packet->segments;
	counters->bytes_in += packet->bytes;
	counters->flows += is_syn(packet);
	if (overhead && encapsulate(ctx, packet, seat, service->flags, hash, own))
		return REASON_drop_rewrite_failed;
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	if (unlikely(packet->icmp_error))
		return REASON_icmp_to_node;
	return overhead ? REASON_l3_forwarded : REASON_l2_forwarded;
}

#endif
