/* SPDX-License-Identifier: GPL-2.0 */
/* What every hook does with a packet, whichever way it goes: read it, see whether it is ours, send
 * it on, or answer it.
 */
#ifndef GALE_HANDLE_H
#define GALE_HANDLE_H

#include "request.h"
#include "reply.h"
#include "answer.h"
#include "discovery.h"

static __always_inline enum reason handle(context_t *ctx, struct packet *packet, int direction)
{
	struct decision decision = parse_packet(ctx, packet);
	int is_reply = direction == DIRECTION_REPLY;
	struct tcp_numbers numbers = {};
	struct settings *own;
	enum reason reason;
	int zero = 0;

	if (unlikely(is_decided(decision)))
		return reason_of(decision) == REASON_pass_not_ipv4
			       ? discover(ctx, packet, direction)
			       : reason_of(decision);
	packet->tcp = &numbers;
	own = settings.lookup(&zero);
	if (unlikely(!own || !own->public_ifindex))
		return REASON_pass_not_ready;
	if (unlikely(!is_for_us(ctx, packet, is_reply ? own->private_mac : own->public_mac)))
		return REASON_pass_other_mac;
	reason = reason_of(is_reply ? forward_reply(ctx, packet, own)
				    : forward_request(ctx, packet, own));
	return unlikely(packet->answer) ? give_answer(ctx, packet, own, reason) : reason;
}

#endif
