// SPDX-License-Identifier: GPL-2.0
/* On a node (L3): takes off the outer header that a load balancer put around a client's packet, so
 * that the node's kernel sees the packet as the client sent it and answers the client directly.
 *
 * In TC by default, where a packet may stand for many; in XDP for who has native XDP to spare.
 * Unwrapped is only what carries a packet to one of the VIPs in `vips`; everything else, other
 * tunnels included, passes untouched. A mark of congestion that the way from the load balancer has
 * left on the outer header is carried inside (RFC 6040, 4.2), where the client's connection learns
 * of it.
 *
 * The agent fills `vips` before it attaches the program, and a new agent replaces program and map
 * in one step, so that its death or restart interrupts nothing.
 */
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/icmp.h>
#include <linux/tcp.h>
#include <linux/udp.h>

#include "map_macros.h"
#include "ctx.h"
#include "encap.h"

#define ECN_MASK 3
#define ECN_ECT_1 1
#define ECN_CE 3

enum outcome {
	OUTCOME_UNWRAPPED,
	OUTCOME_CONGESTION_DROPPED, /* marked, of a sender that knows no marks: to it, a loss */
	OUTCOME_COUNT,
};

GALE_MAP("hash", u32, u32, vips, 256, 0);

/* What became of packets to VIPs, by enum outcome. */
GALE_MAP("percpu_array", int, u64, unwrapped, OUTCOME_COUNT, 0);

/* How many bytes lie in front of the inner packet; 0: nothing to take off. */
static __always_inline __u32 outer_length(context_t *ctx)
{
	struct ethhdr *ethernet = packet_start(ctx);
	struct outer_gue *outer = (void *)(ethernet + 1);
	void *end = packet_end(ctx);
	struct iphdr *inner = (void *)outer + sizeof(struct iphdr);
	__u32 length = sizeof(struct iphdr), vip;

	if ((void *)(inner + 1) > end || ethernet->h_proto != bpf_htons(ETH_P_IP))
		return 0;
	if (outer->ip.version != 4 || outer->ip.ihl != 5 ||
	    (outer->ip.frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET)))
		return 0;
	if (outer->ip.protocol == IPPROTO_UDP) {
		inner = (void *)(outer + 1);
		length = sizeof(*outer);
		if ((void *)(inner + 1) > end || outer->udp.dest != bpf_htons(GUE_PORT) ||
		    outer->gue.version_length || outer->gue.flags ||
		    outer->gue.protocol != IPPROTO_IPIP)
			return 0;
	} else if (outer->ip.protocol != IPPROTO_IPIP) {
		return 0;
	}
	vip = inner->daddr;
	return inner->version == 4 && vips.lookup(&vip) ? length : 0;
}

static __always_inline void count(enum outcome outcome)
{
	int index = outcome;
	u64 *packets = unwrapped.lookup(&index);

	if (packets)
		*packets += 1;
}

/* Makes the outer header's mark the inner one's, as the table of RFC 6040, 4.2 has it: congestion
 * goes in whatever stands there, ECT(1) in place of ECT(0), and nothing else. -1: the sender of
 * what is inside takes no mark, only a loss, for congestion. The checksum makes up for it: the sum
 * of the header is what it was.
 */
static __always_inline int carry_mark(context_t *ctx, __u32 length)
{
	struct iphdr *outer = packet_start(ctx) + sizeof(struct ethhdr);
	struct iphdr *inner = (void *)outer + length;
	__u8 mark, own, tos;

	if ((void *)(inner + 1) > packet_end(ctx))
		return 0;
	mark = outer->tos & ECN_MASK;
	own = inner->tos & ECN_MASK;
	if (likely(mark == own || (mark != ECN_CE && mark != ECN_ECT_1)))
		return 0;
	if (!own)
		return mark == ECN_CE ? -1 : 0;
	if (own == ECN_CE)
		return 0;
	tos = (inner->tos & ~ECN_MASK) | mark;
	inner->check =
		checksum_adjust(inner->check, delta16(bpf_htons(inner->tos), bpf_htons(tos)));
	inner->tos = tos;
	return 0;
}

static __always_inline int drop_for_congestion(void)
{
	count(OUTCOME_CONGESTION_DROPPED);
	return VERDICT_DROP;
}

#ifdef GALE_XDP

int gale_unwrap(struct xdp_md *ctx)
{
	__u32 length = outer_length(ctx);
	struct ethhdr *ethernet = packet_start(ctx);
	struct ethhdr header;

	if (!length || (void *)(ethernet + 1) > packet_end(ctx))
		return XDP_PASS;
	if (carry_mark(ctx, length))
		return drop_for_congestion();
	header = *ethernet;
	if (bpf_xdp_adjust_head(ctx, length))
		return XDP_DROP;
	ethernet = packet_start(ctx);
	if ((void *)(ethernet + 1) > packet_end(ctx))
		return XDP_DROP;
	*ethernet = header;
	count(OUTCOME_UNWRAPPED);
	return XDP_PASS;
}

#else

int gale_unwrap(struct __sk_buff *ctx)
{
	__u32 length;

	pull(ctx, LINEAR_BYTES);
	length = outer_length(ctx);
	if (!length)
		return TC_ACT_UNSPEC;
	if (carry_mark(ctx, length))
		return drop_for_congestion();
	if (bpf_skb_adjust_room(ctx, -(int)length, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	count(OUTCOME_UNWRAPPED);
	return TC_ACT_UNSPEC;
}

#endif
