/* SPDX-License-Identifier: GPL-2.0 */
/* Fragments: the first one has the ports and decides; those that follow find its decision by
 * (source, destination, id, protocol), the four that name a datagram (RFC 791). One that comes
 * before its first is dropped if it is for a VIP: it could go to one node only by chance.
 *
 * A decision stands for a second, or until the last fragment has gone by, against first fragments
 * of other ports: somebody who sends those under another's address and id does not lead that
 * other's datagrams elsewhere. It may not stand for longer: a client whose sockets draw their ids
 * by chance, as Linux has it for connected ones, meets one of its own of the last second soon
 * enough.
 *
 * In L4 all clients look alike to a node, and two of them may use one id: so each fragmented
 * datagram gets an id of this LB's own counting (RFC 6864 wants it unique per address pair).
 */
#ifndef GALE_FRAGMENT_H
#define GALE_FRAGMENT_H

#include "flow_table.h"
#include "encap.h"
#include "deliver.h"

#define REASSEMBLY_TICKS (30 * TICKS_PER_SECOND)

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

/* The next id, and what this packet's becomes. */
static __always_inline __be16 next_fragment_id(void)
{
	int zero = 0;
	u64 *next = fragment_ids.lookup(&zero);

	return next ? bpf_htons((__u16)__sync_fetch_and_add(next, 1)) : 0;
}

static __always_inline void change_id(struct packet *packet, __be16 id)
{
	packet->ip->check = checksum_adjust(packet->ip->check, delta16(packet->ip->id, id));
	packet->ip->id = id;
}

/* Called with the first fragment of a service's packet; `to` is null in the stateless modes. -1:
 * another datagram of the same name is under way.
 */
static __always_inline int note_fragment(struct packet *packet, __u16 seat, __u8 mode, __u8 flags,
					 const struct rewrite *to, const __u8 *last_hop)
{
	struct fragment_key key = fragment_key(packet);
	struct fragment *held = fragments.lookup(&key), *fresh;
	struct draft *draft;
	int zero = 0;

	draft = drafts.lookup(&zero);
	if (!draft)
		return -1;
	fresh = &draft->fragment;
	*fresh = (struct fragment){
		.seat = seat,
		.mode = mode,
		.flags = flags,
		.id = packet->ip->id,
		.sport = packet->key.sport,
		.dport = packet->key.dport,
		.since = ticks_now(),
	};
	if (held && !held->is_over && fresh->since - held->since < TICKS_PER_SECOND &&
	    (held->sport != fresh->sport || held->dport != fresh->dport))
		return -1;
	if (to) {
		fresh->saddr = to->saddr;
		fresh->daddr = to->daddr;
		fresh->to_sport = to->sport;
		fresh->to_dport = to->dport;
		fresh->address_delta = fold(address_delta(packet, to));
		if (packet->key.direction == DIRECTION_REQUEST && to->saddr != packet->key.saddr)
			fresh->id = next_fragment_id();
		if (last_hop)
			__builtin_memcpy(fresh->last_hop, last_hop, ETH_ALEN);
	}
	fragments.update(&key, fresh);
	if (fresh->id != packet->ip->id)
		change_id(packet, fresh->id);
	return 0;
}

/* The decision that a later fragment goes by. */
static __always_inline struct fragment *first_of(const struct packet *packet)
{
	struct fragment_key key = fragment_key(packet);
	struct fragment *first = fragments.lookup(&key);

	if (!first || ticks_now() - first->since >= REASSEMBLY_TICKS)
		return 0;
	if (!(packet->ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS)))
		first->is_over = 1;
	return first;
}

/* A later fragment without a first one: for a VIP it is for nobody, unless it is one of a reply,
 * which comes by the same interface if there is but one.
 */
static __always_inline struct decision pass_or_drop_alone(const struct packet *packet)
{
#ifndef GALE_ONE_ARM
	__be32 address = packet->key.daddr;
	struct address_info *info = addresses.lookup(&address);

	if (info && (info->flags & ADDRESS_OF_SERVICE))
		return decide(REASON_drop_fragment_alone);
#endif
	return decide(REASON_pass_fragment_alone);
}

static __always_inline void translate_fragment(struct packet *packet, const struct fragment *first)
{
	rewrite_ipv4(packet->ip, first->saddr, first->daddr, first->address_delta);
	if (first->id != packet->ip->id)
		change_id(packet, first->id);
}

static __always_inline struct decision forward_fragment(context_t *ctx, struct packet *packet,
							const struct settings *own)
{
	struct fragment *first = first_of(packet);
	struct seat_counters *counters;
	struct decision refused;
	struct seat *seat;
	__u16 overhead;
	int index;

	if (!first)
		return pass_or_drop_alone(packet);
	index = first->seat;
	if (index == NO_SEAT)
		return decide(REASON_pass_fragment_alone); /* the host's own datagram */
	seat = seats.lookup(&index);
	counters = seat_counters.lookup(&index);
	if (!seat || !counters)
		return decide(REASON_drop_no_node);
	overhead = first->mode == MODE_L3 && !is_own(seat) ? outer_bytes(first->flags) : 0;
	refused = may_forward(ctx, packet, seat, overhead);
	if (is_decided(refused))
		return refused;
	if (first->mode == MODE_L4) {
		if (packet->ip->ttl <= 1)
			return decide(REASON_drop_ttl);
		translate_fragment(packet, first);
	} else if (overhead &&
		   encapsulate(ctx, packet, seat, first->flags, packet->key.saddr, own)) {
		return decide(REASON_drop_rewrite_failed);
	}
	counters->packets_in += packet->segments;
	counters->bytes_in += packet->bytes;
	if (unlikely(is_own(seat) && first->mode != MODE_L4))
		return decide(REASON_pass_own_node);
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	return decide(REASON_fragment_forwarded);
}

#endif
