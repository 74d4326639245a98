// SPDX-License-Identifier: GPL-2.0
/* The TC hooks. On ingress: on the public side what XDP passed on, on the private side the replies.
 * On the private side's egress, where this machine is a node too: its own replies (own_node.h).
 *
 * GALE_ONE_ARM: public and private are the same interface, so a packet there may be either.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/icmp.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "handle.h"
#include "own_node.h"
#include "verdict.h"

int gale_tc_public(struct __sk_buff *ctx)
{
	struct packet packet = {};
	enum reason reason;

	show_entry(ctx, HOOK_TC_PUBLIC);
	reason = handle(ctx, &packet, DIRECTION_REQUEST);

#ifdef GALE_ONE_ARM
	if (reason == REASON_pass_not_for_service || reason == REASON_pass_icmp_other ||
	    reason == REASON_pass_fragment_alone) {
		packet = (struct packet){};
		reason = handle(ctx, &packet, DIRECTION_REPLY);
	}
#endif
	return finish(ctx, &packet, HOOK_TC_PUBLIC, reason);
}

int gale_tc_private(struct __sk_buff *ctx)
{
	struct packet packet = {};

	show_entry(ctx, HOOK_TC_PRIVATE);
	return finish(ctx, &packet, HOOK_TC_PRIVATE, handle(ctx, &packet, DIRECTION_REPLY));
}

int gale_tc_own(struct __sk_buff *ctx)
{
	struct packet packet = {};
	enum reason reason;

	if (!is_for_this_lb(ctx))
		return VERDICT_PASS;
	show_entry(ctx, HOOK_TC_PRIVATE);
	reason = handle(ctx, &packet, DIRECTION_REPLY);
	if (unlikely(is_answered(&packet, reason)))
		packet.verdict = bpf_redirect(ctx->ifindex, BPF_F_INGRESS);
	return finish(ctx, &packet, HOOK_TC_PRIVATE, reason);
}
