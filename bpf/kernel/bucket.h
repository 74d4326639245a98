/* SPDX-License-Identifier: GPL-2.0 */
/* Where the flow table's buckets come from: out of the table, for the programs that forward.
 *
 * GALE_TRACE is the same source compiled to ask what would become of a packet (bpf/trace.py). Its
 * programs get every map that a packet may write to as one of their own. Of the flow table, which
 * is too large for that, they get the buckets that the packet meets: each is copied when it is
 * asked for first. So they write like the others, and nothing of it reaches a living flow.
 */
#ifndef GALE_BUCKET_H
#define GALE_BUCKET_H

#include "maps.h"

#ifdef GALE_TRACE
/* More than a packet can meet: its own, its flow's other one, five where a port is looked for. */
#define TRACED_BUCKETS 64

GALE_MAP("hash", int, struct flow_bucket, traced, TRACED_BUCKETS, 0);
GALE_MAP("hash", int, struct flow_bucket, old_traced, TRACED_BUCKETS, 0);

static __always_inline struct flow_bucket *bucket_of(int number)
{
	struct flow_bucket *copy = traced.lookup(&number), *living;

	if (copy)
		return copy;
	living = flows.lookup(&number);
	if (!living)
		return 0;
	traced.update(&number, living);
	return traced.lookup(&number);
}

static __always_inline struct flow_bucket *old_bucket_of(int number)
{
	struct flow_bucket *copy = old_traced.lookup(&number), *living;

	if (copy)
		return copy;
	living = old_flows.lookup(&number);
	if (!living)
		return 0;
	old_traced.update(&number, living);
	return old_traced.lookup(&number);
}
#else
static __always_inline struct flow_bucket *bucket_of(int number)
{
	return flows.lookup(&number);
}

static __always_inline struct flow_bucket *old_bucket_of(int number)
{
	return old_flows.lookup(&number);
}
#endif

#endif
