/* On a node (L3): takes off the outer header that a load balancer put around a client's packet, so
 * that the node's kernel sees the packet as the client sent it and answers the client directly.
 *
 * In TC by default, where a packet may stand for many; in XDP for who has native XDP to spare.
 * Unwrapped is only what carries a packet to one of the VIPs in `vips`; everything else, other
 * tunnels included, passes untouched. The agent fills `vips` before it attaches the program, and a
 * new agent replaces program and map in one step, so that its death or restart interrupts nothing.
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

GALE_MAP("hash", u32, u32, vips, 256, 0);
GALE_MAP("percpu_array", int, u64, unwrapped, 1, 0);

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

static __always_inline void count_unwrapped(void)
{
	int zero = 0;
	u64 *count = unwrapped.lookup(&zero);

	if (count)
		*count += 1;
}

#ifdef GALE_XDP

int gale_unwrap(struct xdp_md *ctx)
{
	__u32 length = outer_length(ctx);
	struct ethhdr *ethernet = packet_start(ctx);
	struct ethhdr header;

	if (!length || (void *)(ethernet + 1) > packet_end(ctx))
		return XDP_PASS;
	header = *ethernet;
	if (bpf_xdp_adjust_head(ctx, length))
		return XDP_DROP;
	ethernet = packet_start(ctx);
	if ((void *)(ethernet + 1) > packet_end(ctx))
		return XDP_DROP;
	*ethernet = header;
	count_unwrapped();
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
	if (bpf_skb_adjust_room(ctx, -(int)length, BPF_ADJ_ROOM_MAC, BPF_F_ADJ_ROOM_FIXED_GSO))
		return TC_ACT_SHOT;
	count_unwrapped();
	return TC_ACT_UNSPEC;
}

#endif
