/* Answering a packet that is too long for its way: ICMP "fragmentation needed" (RFC 792, RFC 1191).
 *
 * The answer is made of the packet itself: cut down to the 28 bytes that are quoted, a header put
 * in front, sent back the way it came. It speaks as the address the client wrote to. Neither
 * an error nor a later fragment is ever answered (RFC 1122, 3.2.2).
 */
#ifndef GALE_ANSWER_H
#define GALE_ANSWER_H

#include "packet.h"
#include "checksum.h"

#define QUOTED_BYTES 28 /* the header and the first eight bytes behind it */

struct too_big {
	struct iphdr ip;
	struct icmphdr icmp;
} __attribute__((packed));

#ifdef GALE_XDP

static __always_inline int make_room_for_answer(context_t *ctx, const struct packet *packet)
{
	int quoted = sizeof(struct ethhdr) + QUOTED_BYTES;
	int frame = bpf_xdp_get_buff_len(ctx);

	return bpf_xdp_adjust_tail(ctx, quoted - frame) ||
	       bpf_xdp_adjust_head(ctx, -(int)sizeof(struct too_big));
}

static __always_inline int arrived_on(context_t *ctx)
{
	return ctx->ingress_ifindex;
}

#else

static __always_inline int make_room_for_answer(context_t *ctx, const struct packet *packet)
{
	return bpf_skb_change_tail(ctx, sizeof(struct ethhdr) + QUOTED_BYTES, 0) ||
	       bpf_skb_adjust_room(ctx, sizeof(struct too_big), BPF_ADJ_ROOM_MAC, 0);
}

static __always_inline int arrived_on(context_t *ctx)
{
	return ctx->ifindex;
}

#endif

static __always_inline enum reason answer_too_big(context_t *ctx, struct packet *packet)
{
	struct ethhdr from = *packet->ethernet;
	__be32 client = packet->ip->saddr, vip = packet->ip->daddr;
	struct ethhdr *ethernet;
	struct too_big *answer;

	if (!(packet->ip->frag_off & bpf_htons(IP_DONT_FRAGMENT)) || packet->ip->ihl != 5 ||
	    packet->icmp_error || packet->later_fragment || packet->tags ||
	    packet->bytes < sizeof(struct ethhdr) + QUOTED_BYTES)
		return REASON_drop_too_big;
	if (make_room_for_answer(ctx, packet))
		return REASON_drop_too_big;
	ethernet = (void *)(long)ctx->data;
	answer = (void *)(ethernet + 1);
	if ((void *)(answer + 1) + QUOTED_BYTES > (void *)(long)ctx->data_end)
		return REASON_drop_too_big;
	__builtin_memcpy(ethernet->h_dest, from.h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, from.h_dest, ETH_ALEN);
	ethernet->h_proto = bpf_htons(ETH_P_IP);
	answer->ip = (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tot_len = bpf_htons(sizeof(struct too_big) + QUOTED_BYTES),
		.ttl = 64,
		.protocol = IPPROTO_ICMP,
		.saddr = vip,
		.daddr = client,
	};
	answer->ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&answer->ip, sizeof(answer->ip), 0));
	answer->icmp = (struct icmphdr){ .type = ICMP_DEST_UNREACH, .code = ICMP_FRAG_NEEDED };
	answer->icmp.un.frag.mtu = bpf_htons(packet->mtu);
	answer->icmp.checksum = ~fold(
		bpf_csum_diff(0, 0, (void *)&answer->icmp, sizeof(answer->icmp) + QUOTED_BYTES, 0));
	packet->verdict = bpf_redirect(arrived_on(ctx), 0);
	return REASON_too_big_answered;
}

#endif
