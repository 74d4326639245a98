/* SPDX-License-Identifier: GPL-2.0 */
/* From a reason to what the kernel is told, counted on the way. */
#ifndef GALE_VERDICT_H
#define GALE_VERDICT_H

#include "maps.h"
#include "ctx.h"

static __always_inline int finish(const struct packet *packet, enum hook hook, enum reason reason)
{
	int index = hook * 64 + reason;
	u64 *count = verdicts.lookup(&index);

	if (count)
		*count += 1;
	if (likely(reason > REASON_forward_first && reason < REASON_drop_first))
		return packet->verdict;
	return reason < REASON_forward_first ? VERDICT_PASS : VERDICT_DROP;
}

#endif
