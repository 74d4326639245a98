/* SPDX-License-Identifier: GPL-2.0 */
/* From a reason to what the kernel is told, counted on the way, and shown to who captures. */
#ifndef GALE_VERDICT_H
#define GALE_VERDICT_H

#include "maps.h"
#include "ctx.h"
#include "capture.h"

static __always_inline int finish(context_t *ctx, const struct packet *packet, enum hook hook,
				  enum reason reason)
{
	int index = hook * 64 + reason;
	u64 *count = verdicts.lookup(&index);
	int verdict = VERDICT_DROP;

	if (count)
		*count += 1;
	if (likely(reason > REASON_forward_first && reason < REASON_drop_first))
		verdict = packet->verdict;
	else if (reason < REASON_forward_first)
		verdict = VERDICT_PASS;
	return show_exit(ctx, reason, verdict);
}

#endif
