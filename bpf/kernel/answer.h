/* SPDX-License-Identifier: GPL-2.0 */
/* Answering a packet instead of sending it on: made of the packet itself, sent back the way it
 * came.
 *
 * - Too long for its way: ICMP "fragmentation needed" (RFC 792, RFC 1191), also where DF is not
 *   set. A router would cut such a packet; here nobody can, and a sender that believes the answer
 *   cuts what it sends next. So do Linux's, also of datagrams that it sends in fragments.
 * - TCP that belongs to no flow, whose node is dead, or whose service has no node: RST (RFC 9293,
 *   3.5.2), so that a client connects anew within a round trip instead of waiting for minutes.
 * - A datagram to a service without a node: ICMP "port unreachable".
 * - A ping of a floating address that this LB holds (claims.h): ICMP echo reply (RFC 792). It costs
 *   no more than the ping did, and counts towards no limit.
 * - Where the LB is a router (L3, L4) and the packet's time runs out: ICMP "time exceeded"
 *   (RFC 1812, 5.3.1), so that traceroute sees the LB. L2 bridges, and counts nothing down.
 *
 * The answer speaks as the address the client wrote to, of a time that ran out as the LB's own. A
 * tag that lies beside the bytes stays where it is: the answer goes back into its VLAN. IP options
 * are not taken over, and an error quotes them with the header that has them. Neither an
 * error nor a later fragment, nor a RST, is ever answered (RFC 1122, 3.2.2). What strangers can
 * provoke is limited to so many a second (`settings.answers_per_second`); what is beyond is dropped
 * by name.
 */
#ifndef GALE_ANSWER_H
#define GALE_ANSWER_H

#include "ctx.h"
#include "rate.h"
#include "tcp.h"

#define QUOTED_BYTES 28 /* the header and the first eight bytes behind it; more with IP options */
#define QUOTED_TCP_BYTES 40
#define QUOTED_WORDS 12 /* at the most, behind a header of 20 bytes: ten of options and two */
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

/* Where the device is yet to finish the quoted packet's checksum, it will do so in the quote: it
 * adds up the transport's bytes that are left and writes the complement where the checksum is.
 * Nobody can tell it not to. So there stands a number that this does not change: half of the
 * complement of all the rest, in one's complement arithmetic a rotation by one bit.
 */
static __always_inline void settle_quoted_checksum(void *transport, __be16 *check, __u32 bytes)
{
	__u16 rest;

	*check = 0;
	rest = ~fold(bpf_csum_diff(0, 0, transport, bytes, 0));
	*check = rest >> 1 | rest << 15;
}

/* Adds IP's options, and what is quoted behind them, to the error's sum; -1: it is not there. */
static __always_inline int add_words(context_t *ctx, __be32 *words, __u32 bytes, __u32 *sum)
{
	void *end = packet_end(ctx);

	/* The verifier of Linux 6.1 sees no end of what the compiler makes of a loop here. */
#pragma clang loop unroll(full)
	for (__u32 i = 0; i < QUOTED_WORDS; i++) {
		if (i * sizeof(*words) >= bytes)
			break;
		if ((void *)(words + i + 1) > end)
			return -1;
		*sum = bpf_csum_diff(0, 0, (void *)(words + i), sizeof(*words), *sum);
	}
	return 0;
}

/* Adds what is quoted behind the header to the error's sum; -1: it is not there. */
static __always_inline int add_quoted(context_t *ctx, struct icmp_answer *answer, __u32 quoted,
				      int is_partial, __u32 *sum)
{
	struct tcphdr *tcp = (void *)(answer + 1) + IP_HEADER_BYTES;
	struct udphdr *udp = (void *)tcp;

	if (unlikely(quoted != QUOTED_BYTES && !is_partial))
		return add_words(ctx, (void *)tcp, quoted - IP_HEADER_BYTES, sum);
	if (quoted == QUOTED_TCP_BYTES) {
		if ((void *)(tcp + 1) > packet_end(ctx))
			return -1;
		settle_quoted_checksum(tcp, &tcp->check, sizeof(*tcp));
		*sum = bpf_csum_diff(0, 0, (void *)tcp, sizeof(*tcp), *sum);
		return 0;
	}
	if (is_partial)
		settle_quoted_checksum(udp, &udp->check, sizeof(*udp));
	*sum = bpf_csum_diff(0, 0, (void *)udp, sizeof(*udp), *sum);
	return 0;
}

/* From whom the error comes: who the client wrote to, or the router that this LB is. */
static __always_inline __be32 error_source(const struct packet *packet, const struct settings *own)
{
	if (packet->answer != ANSWER_TIME_EXCEEDED)
		return packet->ip->daddr;
	return packet->key.direction == DIRECTION_REQUEST ? own->public_address
							  : own->private_address;
}

static __always_inline struct icmphdr error_header(const struct packet *packet)
{
	struct icmphdr icmp = { .type = ICMP_DEST_UNREACH, .code = ICMP_PORT_UNREACH };

	if (packet->answer == ANSWER_TIME_EXCEEDED) {
		icmp.type = ICMP_TIME_EXCEEDED;
		icmp.code = ICMP_EXC_TTL;
	} else if (packet->answer == ANSWER_TOO_BIG) {
		icmp.code = ICMP_FRAG_NEEDED;
		icmp.un.frag.mtu = bpf_htons(packet->mtu);
	}
	return icmp;
}

/* Quoted is as much as RFC 792 asks for, or as much as has a checksum that the device will write:
 * where the packet had it, so not behind IP options.
 */
static __always_inline int send_icmp(context_t *ctx, struct packet *packet,
				     const struct settings *own)
{
	struct ethhdr from = *packet->ethernet;
	__be32 client = packet->ip->saddr, source = error_source(packet, own);
	__u32 quoted = packet->ip->ihl * 4 + QUOTED_BYTES - IP_HEADER_BYTES, sum;
	struct icmp_answer *answer;
	struct ethhdr *ethernet;
	int is_partial;

	if (packet->icmp_error || packet->later_fragment || packet->tags ||
	    packet->bytes < sizeof(struct ethhdr) + quoted)
		return -1;
	is_partial = has_partial_checksum(ctx, packet);
	if (is_partial && quoted != QUOTED_BYTES)
		return -1;
	if (is_partial && packet->key.protocol == IPPROTO_TCP)
		quoted = QUOTED_TCP_BYTES;
	if (cut_to(ctx, sizeof(struct ethhdr) + quoted) || make_room(ctx, sizeof(*answer)))
		return -1;
	ethernet = packet_start(ctx);
	answer = (void *)(ethernet + 1);
	if ((void *)(answer + 1) + QUOTED_BYTES > packet_end(ctx))
		return -1;
	turn_ethernet(ethernet, &from);
	answer->ip = answer_header(IPPROTO_ICMP, sizeof(*answer) + quoted, source, client);
	answer->ip.frag_off = 0;
	answer->ip.check = ~fold(bpf_csum_diff(0, 0, (void *)&answer->ip, sizeof(answer->ip), 0));
	answer->icmp = error_header(packet);
	sum = bpf_csum_diff(0, 0, (void *)&answer->icmp, sizeof(answer->icmp) + IP_HEADER_BYTES, 0);
	if (add_quoted(ctx, answer, quoted, is_partial, &sum))
		return -1;
	answer->icmp.checksum = ~fold(sum);
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
	int is_partial, options = packet->ip->ihl * 4 - IP_HEADER_BYTES;
	struct reset_answer *answer;
	struct ethhdr *ethernet;
	__u32 sum;

	if (packet->tags || packet->later_fragment || (packet->tcp_flags & TCP_FLAG_RST) ||
	    read_numbers(ctx, packet))
		return -1;
	is_partial = has_partial_checksum(ctx, packet);
	/* The device will write the checksum where the options have put it. */
	if (unlikely(options) && (is_partial || make_room(ctx, -options)))
		return -1;
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

/* The packet itself, its addresses turned around, which changes no sum. */
static __always_inline int send_echo(context_t *ctx, struct packet *packet)
{
	__u32 network = (void *)packet->ip - (void *)packet->ethernet;
	struct ethhdr *ethernet = packet_start(ctx), from;
	struct iphdr *ip = (void *)ethernet + (network & 0x1f);
	struct icmphdr *icmp = (void *)(ip + 1);
	__be32 client;
	__u8 ttl;

	if ((void *)(ethernet + 1) > packet_end(ctx) || (void *)(icmp + 1) > packet_end(ctx))
		return -1;
	from = *ethernet;
	__builtin_memcpy(ethernet->h_dest, from.h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, from.h_dest, ETH_ALEN);
	client = ip->saddr;
	ip->saddr = ip->daddr;
	ip->daddr = client;
	ttl = ip->ttl;
	ip->ttl = ANSWER_TTL;
	ip->check = checksum_adjust(ip->check,
				    delta16(bpf_htons(ttl << 8), bpf_htons(ANSWER_TTL << 8)));
	icmp->type = ICMP_ECHOREPLY;
	icmp->checksum = checksum_adjust(icmp->checksum, delta16(bpf_htons(ICMP_ECHO << 8), 0));
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
	case REASON_ttl_answered:
		return REASON_drop_ttl;
	case REASON_echo_answered:
		return REASON_drop_rewrite_failed;
	case REASON_no_flow_reset:
	case REASON_hairpin_refused:
		return REASON_drop_no_flow;
	default:
		return REASON_drop_no_node;
	}
}

static __always_inline int send_answer(context_t *ctx, struct packet *packet,
				       const struct settings *own)
{
	if (packet->answer == ANSWER_RESET)
		return send_reset(ctx, packet);
	if (packet->answer == ANSWER_ECHO)
		return send_echo(ctx, packet);
	return send_icmp(ctx, packet, own);
}

/* Carries out what was decided. `reason`: what is counted if the answer goes. */
static __always_inline enum reason give_answer(context_t *ctx, struct packet *packet,
					       const struct settings *own, enum reason reason)
{
	struct decision refused = can_answer(ctx, packet, own);

	if (is_decided(refused))
		return reason_of(refused);
	packet->answer = unknown(own, packet->answer);
	packet->mtu = unknown(own, packet->mtu);
	reason = unknown(own, reason);
	if (packet->answer != ANSWER_TOO_BIG && packet->answer != ANSWER_ECHO && !may_answer(own))
		return REASON_drop_answer_rate;
	return send_answer(ctx, packet, own) ? reason_without_answer(reason) : reason;
}

#endif
