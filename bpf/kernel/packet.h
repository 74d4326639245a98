/* Reading a packet: a cursor checks the bounds once per header and returns the next protocol.
 *
 * A parser never changes anything and never follows a length that the packet claims without
 * comparing it with the length that the packet has. What cannot be read is passed, not dropped: a
 * load balancer has no business with packets it does not understand.
 */
#ifndef GALE_PACKET_H
#define GALE_PACKET_H

#include "types.h"
#include "reasons.h"

#define likely(x) __builtin_expect(!!(x), 1)
#define unlikely(x) __builtin_expect(!!(x), 0)

#define IP_DONT_FRAGMENT 0x4000
#define IP_MORE_FRAGMENTS 0x2000
#define IP_FRAGMENT_OFFSET 0x1fff
#define IP_HEADER_BYTES 20
#define LINEAR_BYTES 128 /* enough for two tags, IP with options, TCP, and a quoted packet */

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_ACK 0x10

/* What the hooks call their contexts and verdicts, so that one source serves both. */
#ifdef GALE_XDP
#define context_t struct xdp_md
#define VERDICT_PASS XDP_PASS
#define VERDICT_DROP XDP_DROP
#else
#define context_t struct __sk_buff
#define VERDICT_PASS TC_ACT_UNSPEC /* whoever else has a filter here still gets to see it */
#define VERDICT_DROP TC_ACT_SHOT
#endif

struct cursor {
	void *position;
	void *end;
};

struct packet {
	struct ethhdr *ethernet;
	struct iphdr *ip;
	struct flow_key key;
	__u32 bytes;	/* of the frame, with what lies outside of linear memory */
	__u32 segments; /* packets on the wire: TC sees many as one */
	__u32 sequence;
	__u32 acknowledged;
	__u8 tcp_flags;
	__u8 transport_bytes; /* of its header */
	__u8 tags;
	__u8 first_fragment;
	__u8 later_fragment; /* has no ports */
	__u8 icmp_error;     /* the key is that of the flow it is about */
	__u16 mtu;	     /* what it would have to fit into, where it does not */
	int verdict;	     /* what the kernel is told, once a packet has been forwarded */
};

static __always_inline int parse_ethernet(struct cursor *cursor, struct packet *packet)
{
	struct ethhdr *ethernet = cursor->position;

	if ((void *)(ethernet + 1) > cursor->end)
		return -1;
	packet->ethernet = ethernet;
	cursor->position = ethernet + 1;
	return ethernet->h_proto;
}

struct vlan_tag {
	__be16 tci;
	__be16 protocol;
};

static __always_inline int parse_vlan(struct cursor *cursor, struct packet *packet, int protocol)
{
	struct vlan_tag *tag = cursor->position;

	if (likely(protocol != bpf_htons(ETH_P_8021Q) && protocol != bpf_htons(ETH_P_8021AD)))
		return protocol;
	if ((void *)(tag + 1) > cursor->end)
		return -1;
	packet->tags++;
	cursor->position = tag + 1;
	return tag->protocol;
}

static __always_inline int parse_ipv4(struct cursor *cursor, struct packet *packet)
{
	struct iphdr *ip = cursor->position;
	__u32 header;

	if ((void *)(ip + 1) > cursor->end)
		return -1;
	header = ip->ihl * 4;
	if (ip->version != 4 || header < IP_HEADER_BYTES)
		return -1;
	if (bpf_ntohs(ip->tot_len) < header)
		return -1;
	packet->ip = ip;
	if (unlikely(ip->frag_off & bpf_htons(IP_MORE_FRAGMENTS | IP_FRAGMENT_OFFSET))) {
		packet->later_fragment = !!(ip->frag_off & bpf_htons(IP_FRAGMENT_OFFSET));
		packet->first_fragment = !packet->later_fragment;
	}
	packet->key.saddr = ip->saddr;
	packet->key.daddr = ip->daddr;
	packet->key.protocol = ip->protocol;
	cursor->position = (void *)ip + header;
	return ip->protocol;
}

static __always_inline int parse_tcp(struct cursor *cursor, struct packet *packet)
{
	struct tcphdr *tcp = cursor->position;

	if ((void *)(tcp + 1) > cursor->end)
		return -1;
	packet->key.sport = tcp->source;
	packet->key.dport = tcp->dest;
	packet->tcp_flags = ((__u8 *)tcp)[13];
	packet->transport_bytes = tcp->doff * 4;
	packet->sequence = bpf_ntohl(tcp->seq);
	packet->acknowledged = bpf_ntohl(tcp->ack_seq);
	return 0;
}

static __always_inline int parse_udp(struct cursor *cursor, struct packet *packet)
{
	struct udphdr *udp = cursor->position;

	if ((void *)(udp + 1) > cursor->end)
		return -1;
	packet->key.sport = udp->source;
	packet->key.dport = udp->dest;
	packet->transport_bytes = sizeof(*udp);
	return 0;
}

static __always_inline int parse_icmp(struct cursor *cursor, struct packet *packet)
{
	struct icmphdr *icmp = cursor->position;

	if ((void *)(icmp + 1) > cursor->end)
		return -1;
	return 0;
}

/* What lies between the network header's end and the packet's claimed end. */
static __always_inline int transport_fits(const struct packet *packet, __u32 bytes)
{
	return bpf_ntohs(packet->ip->tot_len) >= packet->ip->ihl * 4 + bytes;
}

#ifdef GALE_XDP

static __always_inline struct cursor open_packet(context_t *ctx, struct packet *packet)
{
	struct cursor cursor = { (void *)(long)ctx->data, (void *)(long)ctx->data_end };

	packet->segments = 1;
	return cursor;
}

/* Whether the frame holds what its IP header claims. A frame with a large MTU may come in pieces,
 * of which the cursor sees the first: only then is the kernel asked for the length of them all.
 */
static __always_inline int holds_claimed_length(context_t *ctx, struct packet *packet)
{
	__u32 offset = (void *)packet->ip - (void *)packet->ethernet;

	packet->bytes = offset + bpf_ntohs(packet->ip->tot_len);
	return (void *)packet->ethernet + packet->bytes <= (void *)(long)ctx->data_end ||
	       packet->bytes <= bpf_xdp_get_buff_len(ctx);
}

#else

static __always_inline struct cursor open_packet(context_t *ctx, struct packet *packet)
{
	__u32 wanted = ctx->len < LINEAR_BYTES ? ctx->len : LINEAR_BYTES;

	/* A short packet is in one piece already, and pulling would cost it a call for nothing. */
	if (ctx->data_end - ctx->data < wanted)
		bpf_skb_pull_data(ctx, wanted);
	packet->segments = ctx->gso_segs ? ctx->gso_segs : 1;
	return (struct cursor){ (void *)(long)ctx->data, (void *)(long)ctx->data_end };
}

static __always_inline int holds_claimed_length(context_t *ctx, struct packet *packet)
{
	packet->bytes =
		(void *)packet->ip - (void *)packet->ethernet + bpf_ntohs(packet->ip->tot_len);
	return packet->bytes <= ctx->len;
}

#endif

/* The transport header, whose length the IP header must cover. */
static __always_inline int parse_transport(struct cursor *cursor, struct packet *packet,
					   int protocol)
{
	switch (protocol) {
	case IPPROTO_TCP:
		return transport_fits(packet, sizeof(struct tcphdr)) ? parse_tcp(cursor, packet)
								     : -1;
	case IPPROTO_UDP:
		return transport_fits(packet, sizeof(struct udphdr)) ? parse_udp(cursor, packet)
								     : -1;
	default:
		return transport_fits(packet, sizeof(struct icmphdr)) ? parse_icmp(cursor, packet)
								      : -1;
	}
}

/* Fills `packet` as far as its kind goes. Returns a reason to pass it, or 0 (REASON_parsed). */
static __always_inline enum reason parse_packet(context_t *ctx, struct packet *packet)
{
	struct cursor cursor = open_packet(ctx, packet);
	int protocol = parse_ethernet(&cursor, packet);

	protocol = parse_vlan(&cursor, packet, protocol);
	protocol = parse_vlan(&cursor, packet, protocol);
	if (protocol < 0)
		return REASON_pass_malformed;
	if (protocol != bpf_htons(ETH_P_IP))
		return REASON_pass_not_ipv4;
	protocol = parse_ipv4(&cursor, packet);
	if (protocol < 0 || !holds_claimed_length(ctx, packet))
		return REASON_pass_malformed;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_ICMP)
		return REASON_pass_not_for_service;
	if (unlikely(packet->later_fragment))
		return REASON_parsed;
	return parse_transport(&cursor, packet, protocol) < 0 ? REASON_pass_malformed
							      : REASON_parsed;
}

#endif
