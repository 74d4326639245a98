/* Fragments: the first one has the ports and decides; those that follow find its decision by
 * (source, destination, id, protocol), the four that name a datagram (RFC 791). One that comes
 * before its first cannot be told from the host's own and is passed by name.
 */
#ifndef GALE_FRAGMENT_H
#define GALE_FRAGMENT_H

#include "maps.h"
#include "packet.h"
#include "nat.h"
#include "encap.h"
#include "deliver.h"

#define REASSEMBLY_NS 30000000000ULL

static __always_inline struct fragment_key fragment_key(const struct packet *packet)
{
	return (struct fragment_key){
		.saddr = packet->key.saddr,
		.daddr = packet->key.daddr,
		.id = packet->ip->id,
		.protocol = packet->key.protocol,
		.direction = packet->key.direction,
	};
}

/* Called with every packet of a service; `flow` is null in the stateless modes. */
static __always_inline void note_fragment(const struct packet *packet, __u16 seat, __u8 mode,
					  __u8 flags, const struct flow *flow)
{
	struct fragment fragment = { .seat = seat, .mode = mode, .flags = flags };
	struct fragment_key key;

	if (likely(!packet->first_fragment))
		return;
	key = fragment_key(packet);
	fragment.created = bpf_ktime_get_coarse_ns();
	if (flow) {
		fragment.saddr = flow->saddr;
		fragment.daddr = flow->daddr;
		fragment.address_delta = flow->address_delta;
		__builtin_memcpy(fragment.last_hop, flow->last_hop, ETH_ALEN);
	}
	fragments.update(&key, &fragment);
}

static __always_inline struct fragment *first_of(const struct packet *packet)
{
	struct fragment_key key = fragment_key(packet);
	struct fragment *first = fragments.lookup(&key);

	return first && bpf_ktime_get_coarse_ns() - first->created < REASSEMBLY_NS ? first : 0;
}

static __always_inline enum reason forward_fragment(context_t *ctx, struct packet *packet,
						    const struct settings *own)
{
	struct fragment *first = first_of(packet);
	struct seat_counters *counters;
	enum reason refused;
	struct seat *seat;
	__u16 overhead;
	int index;

	if (!first)
		return REASON_pass_fragment_alone;
	index = first->seat;
	seat = seats.lookup(&index);
	counters = seat_counters.lookup(&index);
	if (!seat || !counters)
		return REASON_drop_no_node;
	overhead = first->mode == MODE_L3 ? outer_bytes(first->flags) : 0;
	refused = may_forward(ctx, packet, seat, overhead);
	if (refused)
		return refused;
	if (first->mode == MODE_L4) {
		if (packet->ip->ttl <= 1)
			return REASON_drop_ttl;
		rewrite_ipv4(packet->ip, first->saddr, first->daddr, first->address_delta);
	} else if (first->mode == MODE_L3 &&
		   encapsulate(ctx, packet, seat, first->flags, packet->key.saddr, own)) {
		return REASON_drop_rewrite_failed;
	}
	counters->packets_in += packet->segments;
	counters->bytes_in += packet->bytes;
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	return REASON_fragment_forwarded;
}

#endif
