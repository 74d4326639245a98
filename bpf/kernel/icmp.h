/* SPDX-License-Identifier: GPL-2.0 */
/* ICMP errors about a flow's packets: path MTU discovery and refusals work only if they arrive.
 *
 * An error quotes the packet it is about. Quoted is a packet that left here or a node, so the flow
 * is found by turning the quoted addresses and ports around; in L4 the quote is translated like the
 * packet itself, or its receiver would not know it. The quoted transport checksum is left as it is:
 * of TCP's it is not even there.
 */
#ifndef GALE_ICMP_H
#define GALE_ICMP_H

#include "ctx.h"

struct quote {
	struct iphdr ip;
	__be16 sport;
	__be16 dport;
} __attribute__((packed));

static __always_inline int is_icmp_error(const struct icmphdr *icmp)
{
	return icmp->type == ICMP_DEST_UNREACH || icmp->type == ICMP_TIME_EXCEEDED ||
	       icmp->type == ICMP_PARAMETERPROB;
}

static __always_inline struct quote *quote_of(context_t *ctx, const struct packet *packet)
{
	struct quote *quote = (void *)(packet->ip + 1) + sizeof(struct icmphdr);

	return (void *)(quote + 1) > packet_end(ctx) ? 0 : quote;
}

/* If the packet is an error about a packet that a flow could have sent, its key becomes the one of
 * packets that come as answers to that: from here on it is looked up as one of the flow's.
 */
static __always_inline int adopt_quoted_key(context_t *ctx, struct packet *packet)
{
	struct quote *quote = quote_of(ctx, packet);

	if (!quote || packet->ip->ihl != 5 || packet->first_fragment ||
	    packet->ip->daddr != quote->ip.saddr || /* errors go to whom they are about */
	    !is_icmp_error((struct icmphdr *)quote - 1) || quote->ip.version != 4 ||
	    quote->ip.ihl != 5 || (quote->ip.frag_off & bpf_htons(IP_FRAGMENT_OFFSET)) ||
	    !transport_fits(packet, sizeof(struct icmphdr) + sizeof(*quote)))
		return 0;
	if (quote->ip.protocol != IPPROTO_TCP && quote->ip.protocol != IPPROTO_UDP)
		return 0;
	packet->icmp_error = 1;
	packet->key.saddr = quote->ip.daddr;
	packet->key.daddr = quote->ip.saddr;
	packet->key.sport = quote->dport;
	packet->key.dport = quote->sport;
	packet->key.protocol = quote->ip.protocol;
	return 1;
}

/* Into the quote go the addresses that the receiver used: the flow's rewrite, turned around. The
 * quoted header's own checksum follows its addresses, so of all this the ICMP checksum sees only
 * the ports.
 */
static __always_inline void translate_quote(struct quote *quote, const struct rewrite *to)
{
	struct icmphdr *icmp = (struct icmphdr *)quote - 1;
	__u64 addresses = delta32(quote->ip.saddr, to->daddr) + delta32(quote->ip.daddr, to->saddr);
	__u64 ports = delta16(quote->sport, to->dport) + delta16(quote->dport, to->sport);

	quote->ip.saddr = to->daddr;
	quote->ip.daddr = to->saddr;
	quote->ip.check = checksum_adjust(quote->ip.check, addresses);
	quote->sport = to->dport;
	quote->dport = to->sport;
	icmp->checksum = checksum_adjust(icmp->checksum, ports);
}

/* Translates the error for the flow's other side. Who reports it: the flow's own end becomes what
 * the receiver knows it as, a router stays itself.
 */
static __always_inline struct decision translate_error(context_t *ctx, struct packet *packet,
						       const struct rewrite *to)
{
	struct quote *quote = quote_of(ctx, packet);
	struct iphdr *ip = packet->ip;
	__be32 source = ip->saddr == packet->key.saddr ? to->saddr : ip->saddr;

	if (!quote)
		return decide(REASON_drop_rewrite_failed);
	if (ip->ttl <= 1)
		return decide(REASON_drop_ttl);
	translate_quote(quote, to);
	rewrite_ipv4(ip, source, to->daddr,
		     delta32(ip->saddr, source) + delta32(ip->daddr, to->daddr));
	return UNDECIDED;
}

#endif
