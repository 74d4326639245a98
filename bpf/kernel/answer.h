/* Answering a packet instead of sending it on: made of the packet itself, sent back the way it
 * came.
 *
 * - Too long for its way, DF set: ICMP "fragmentation needed" (RFC 792, RFC 1191).
 * - TCP that belongs to no flow, whose node is dead, or whose service has no node: RST (RFC 9293,
 *   3.5.2), so that a client connects anew within a round trip instead of waiting for minutes.
 * - A datagram to a service without a node: ICMP "port unreachable".
 *
 * The answer speaks as the address the client wrote to. Neither an error nor a later fragment, nor
 * a RST, is ever answered (RFC 1122, 3.2.2). What strangers can provoke is limited to so many a
 * second (`settings.answers_per_second`); what is beyond is dropped by name.
 */
#ifndef GALE_ANSWER_H
#define GALE_ANSWER_H

#include "ctx.h"
#include "rate.h"
#include "tcp.h"

#define QUOTED_BYTES 28 /* the header and the first eight bytes behind it */
#define ANSWER_TTL 64

struct icmp_answer {
	struct iphdr ip;
	struct icmphdr icmp;
} __attribute__((packed));

struct reset_answer {
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

static __always_inline struct iphdr answer_header(__u8 protocol, __u16 bytes, __be32 from,
						  __be32 to)
{
	return (struct iphdr){
		.version = 4,
		.ihl = 5,
		.tot_len = bpf_htons(bytes),
		.frag_off = bpf_htons(IP_DONT_FRAGMENT),
		.ttl = ANSWER_TTL,
		.protocol = protocol,
		.saddr = from,
		.daddr = to,
	};
}

/* The Ethernet header of the answer: from whom it came, back to there. */
static __always_inline void turn_ethernet(struct ethhdr *ethernet, const struct ethhdr *from)
{
	__builtin_memcpy(ethernet->h_dest, from->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, from->h_dest, ETH_ALEN);
	ethernet->h_proto = bpf_htons(ETH_P_IP);
}

static __always_inline int send_icmp(context_t *ctx, struct packet *packet, __u8 code, __u16 mtu)
{
	struct ethhdr from = *packet->ethernet;
	__be32 client = packet->ip->saddr, vip = packet->ip->daddr;
	struct icmp_answer *answer;
	struct ethhdr *ethernet;

	if (packet->ip->ihl != 5 || packet->icmp_error || packet->later_fragment || packet->tags ||
	    packet->bytes < sizeof(struct ethhdr) + QUOTED_BYTES)
		return -1;
	if (cut_to(ctx, sizeof(struct ethhdr) + QUOTED_BYTES) || make_room(ctx, sizeof(*answer)))
		return -1;
	ethernet = packet_start(ctx);
	answer = (void *)(ethernet + 1);
	if ((void *)(answer + 1) + QUOTED_BYTES > packet_end(ctx))
		return -1;
	turn_ethernet(ethernet, &from);
	answer->ip = answer_header(IPPROTO_ICMP, sizeof(*answer) + QUOTED_BYTES, vip, client);
	answer->ip.frag_off = 0;
	answer->ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&answer->ip, sizeof(answer->ip), 0));
	answer->icmp = (struct icmphdr){ .type = ICMP_DEST_UNREACH, .code = code };
	answer->icmp.un.frag.mtu = bpf_htons(mtu);
	answer->icmp.checksum = ~fold(
		bpf_csum_diff(0, 0, (void *)&answer->icmp, sizeof(answer->icmp) + QUOTED_BYTES, 0));
	packet->verdict = bpf_redirect(arrived_on(ctx), 0);
	return 0;
}

/* The numbers by which whoever sent the packet accepts the RST (RFC 9293, 3.5.2). */
static __always_inline void fill_reset(struct tcphdr *tcp, const struct packet *packet)
{
	__u32 length = packet->tcp->payload + !!(packet->tcp_flags & TCP_FLAG_SYN) +
		       !!(packet->tcp_flags & TCP_FLAG_FIN);

	*tcp = (struct tcphdr){
		.source = packet->key.dport,
		.dest = packet->key.sport,
		.doff = sizeof(*tcp) / 4,
		.rst = 1,
	};
	if (packet->tcp_flags & TCP_FLAG_ACK) {
		tcp->seq = bpf_htonl(packet->tcp->acknowledged);
	} else {
		tcp->ack = 1;
		tcp->ack_seq = bpf_htonl(packet->tcp->sequence + length);
	}
}

static __always_inline __u32 pseudo_header_sum(const struct iphdr *ip, __u16 bytes)
{
	return (ip->saddr & 0xffff) + (ip->saddr >> 16) + (ip->daddr & 0xffff) + (ip->daddr >> 16) +
	       bpf_htons(ip->protocol) + bpf_htons(bytes);
}

static __always_inline int send_reset(context_t *ctx, struct packet *packet)
{
	struct ethhdr from = *packet->ethernet;
	__be32 client = packet->ip->saddr, vip = packet->ip->daddr;
	struct reset_answer *answer;
	struct ethhdr *ethernet;
	int is_partial;
	__u32 sum;

	if (packet->ip->ihl != 5 || packet->tags || packet->later_fragment ||
	    (packet->tcp_flags & TCP_FLAG_RST) || read_numbers(ctx, packet))
		return -1;
	is_partial = has_partial_checksum(ctx, packet);
	if (cut_to(ctx, sizeof(struct ethhdr) + sizeof(*answer)))
		return -1;
	ethernet = packet_start(ctx);
	answer = (void *)(ethernet + 1);
	if ((void *)(answer + 1) > packet_end(ctx))
		return -1;
	turn_ethernet(ethernet, &from);
	answer->ip = answer_header(IPPROTO_TCP, sizeof(*answer), vip, client);
	answer->ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&answer->ip, sizeof(answer->ip), 0));
	fill_reset(&answer->tcp, packet);
	sum = pseudo_header_sum(&answer->ip, sizeof(answer->tcp));
	/* The device adds the rest to the pseudo header's sum, or it is done here. */
	if (is_partial)
		answer->tcp.check = fold(sum);
	else
		answer->tcp.check = ~fold(
			bpf_csum_diff(0, 0, (void *)&answer->tcp, sizeof(answer->tcp), fold(sum)));
	packet->verdict = bpf_redirect(arrived_on(ctx), 0);
	return 0;
}

static __always_inline int may_answer(const struct settings *own)
{
	struct rate *rate;
	int zero = 0;

	rate = answer_rate.lookup(&zero);
	return rate && within(rate, own->answers_per_second, bpf_ktime_get_coarse_ns());
}

/* What is counted where no answer is possible. */
static __always_inline enum reason reason_without_answer(enum reason reason)
{
	switch (reason) {
	case REASON_too_big_answered:
		return REASON_drop_too_big;
	case REASON_no_flow_reset:
		return REASON_drop_no_flow;
	default:
		return REASON_drop_no_node;
	}
}

static __always_inline int send_answer(context_t *ctx, struct packet *packet)
{
	switch (packet->answer) {
	case ANSWER_TOO_BIG:
		if (!(packet->ip->frag_off & bpf_htons(IP_DONT_FRAGMENT)))
			return -1;
		return send_icmp(ctx, packet, ICMP_FRAG_NEEDED, packet->mtu);
	case ANSWER_RESET:
		return send_reset(ctx, packet);
	default:
		return send_icmp(ctx, packet, ICMP_PORT_UNREACH, 0);
	}
}

/* Carries out what was decided. `reason`: what is counted if the answer goes. */
static __always_inline enum reason give_answer(context_t *ctx, struct packet *packet,
					       const struct settings *own, enum reason reason)
{
	struct decision refused = can_answer(ctx, packet, own);

	if (is_decided(refused))
		return reason_of(refused);
	if (packet->answer != ANSWER_TOO_BIG && !may_answer(own))
		return REASON_drop_answer_rate;
	return send_answer(ctx, packet) ? reason_without_answer(reason) : reason;
}

#endif
