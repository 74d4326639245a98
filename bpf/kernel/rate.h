/* How many new flows a second: a limit on each source address, and one on all. In this order, so
 * that what one source is refused takes nothing from the others.
 *
 * Counting is by windows of a second, which lets twice the limit through around a boundary and
 * costs one look-up. Where no limit is set it costs nothing.
 */
#ifndef GALE_RATE_H
#define GALE_RATE_H

#include "maps.h"
#include "packet.h"

#define WINDOW_NS 1000000000ULL

static __always_inline int within(struct rate *rate, __u32 limit, __u64 now)
{
	if (now - rate->since >= WINDOW_NS) {
		rate->since = now;
		rate->flows = 0;
	}
	return __sync_fetch_and_add(&rate->flows, 1) < limit;
}

static __always_inline enum reason may_open(const struct packet *packet, const struct settings *own,
					    __u64 now)
{
	__u32 source = packet->key.saddr;
	struct rate first = { .since = now, .flows = 1 };
	struct rate *rate;
	int zero = 0;

	if (own->new_flows_per_second_per_source) {
		rate = sources.lookup(&source);
		if (!rate)
			sources.insert(&source, &first);
		else if (!within(rate, own->new_flows_per_second_per_source, now))
			return REASON_drop_source_rate;
	}
	if (own->new_flows_per_second) {
		rate = flow_rate.lookup(&zero);
		if (rate && !within(rate, own->new_flows_per_second, now))
			return REASON_drop_flow_rate;
	}
	return REASON_parsed;
}

#endif
