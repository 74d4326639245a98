/* SPDX-License-Identifier: GPL-2.0 */
/* So many a second: new flows, from one source and from all, and answers that strangers provoke.
 *
 * Counting is by windows of a second, which lets twice the limit through around a boundary and
 * costs one look-up. Where no limit is set it costs nothing.
 */
#ifndef GALE_RATE_H
#define GALE_RATE_H

#include "maps.h"
#include "packet.h"

#define WINDOW_NS 1000000000ULL

static __always_inline int within(struct rate *rate, __u32 limit, __u64 now_ns)
{
	if (now_ns - rate->since >= WINDOW_NS) {
		rate->since = now_ns;
		rate->flows = 0;
	}
	return __sync_fetch_and_add(&rate->flows, 1) < limit;
}

/* The source's limit comes first, so that what one source is refused takes nothing from others. */
static __always_inline struct decision may_open(const struct packet *packet,
						const struct settings *own)
{
	__u64 now_ns;
	__u32 source = packet->key.saddr;
	struct rate *rate;
	int zero = 0;

	if (likely(!own->new_flows_per_second_per_source && !own->new_flows_per_second))
		return UNDECIDED;
	now_ns = bpf_ktime_get_coarse_ns();
	if (own->new_flows_per_second_per_source) {
		struct rate first = { .since = now_ns, .flows = 1 };

		rate = sources.lookup(&source);
		if (!rate)
			sources.insert(&source, &first);
		else if (!within(rate, own->new_flows_per_second_per_source, now_ns))
			return decide(REASON_drop_source_rate);
	}
	if (own->new_flows_per_second) {
		rate = flow_rate.lookup(&zero);
		if (rate && !within(rate, own->new_flows_per_second, now_ns))
			return decide(REASON_drop_flow_rate);
	}
	return UNDECIDED;
}

#endif
