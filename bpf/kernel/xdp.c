// SPDX-License-Identifier: GPL-2.0
/* The XDP hooks: requests, as they leave the driver, before the kernel spends anything on them.
 *
 * What this program cannot finish it passes on unmodified to tc.c, which decides by the same
 * source.
 */
#define GALE_XDP
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/icmp.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "handle.h"
#include "verdict.h"

int gale_xdp_public(struct xdp_md *ctx)
{
	struct packet packet = {};

	show_entry(ctx, HOOK_XDP_PUBLIC);
	return finish(ctx, &packet, HOOK_XDP_PUBLIC, handle(ctx, &packet, DIRECTION_REQUEST));
}

/* Only with reply_hook = "xdp". */
int gale_xdp_reply(struct xdp_md *ctx)
{
	struct packet packet = {};

	show_entry(ctx, HOOK_XDP_PRIVATE);
	return finish(ctx, &packet, HOOK_XDP_PRIVATE, handle(ctx, &packet, DIRECTION_REPLY));
}
