/* SPDX-License-Identifier: GPL-2.0 */
/* What is known of a packet, and the cursor that reads it: bounds are checked once per header, and
 * each parser returns the next protocol.
 *
 * A parser never changes anything and never follows a length that the packet claims without
 * comparing it with the length that the packet has. What cannot be read is passed, not dropped: a
 * load balancer has no business with packets it does not understand.
 *
 * What differs between the hooks stands in ctx_xdp.h and ctx_skb.h.
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

#define TCP_FLAG_FIN 0x01
#define TCP_FLAG_SYN 0x02
#define TCP_FLAG_RST 0x04
#define TCP_FLAG_PSH 0x08
#define TCP_FLAG_ACK 0x10

#define VLAN_ID 0x0fff

struct cursor {
	void *position;
	void *end;
	__u32 merged; /* bytes of a frame that stands for many packets; 0: it stands for itself */
};

/* What is sent back instead of the packet, made of it. */
enum answer {
	ANSWER_NONE,
	ANSWER_TOO_BIG,
	ANSWER_RESET,
	ANSWER_UNREACHABLE,
	ANSWER_TIME_EXCEEDED,
	ANSWER_ECHO,
};

/* What TCP's header says beyond its ports and flags. */
struct tcp_numbers {
	__u32 sequence;
	__u32 acknowledged;
	__u32 payload; /* bytes behind the TCP header */
	__u16 window;  /* as it stands in the header */
	__u8 scale;    /* a SYN's or SYN-ACK's window scale, or NO_SCALE */
};

struct packet {
	struct ethhdr *ethernet;
	struct iphdr *ip;
	struct flow_key key;
	__u32 bytes;	/* on the wire, with what lies outside of linear memory */
	__u32 segments; /* packets on the wire: TC sees many as one */
	__u8 tcp_flags;
	__u8 transport_bytes; /* of its header */
	__u8 tags;	      /* VLAN tags among the bytes */
	__u8 is_tagged;	      /* it is of a VLAN: an id stands among the bytes or beside them */
	__u8 first_fragment;
	__u8 later_fragment; /* has no ports */
	__u8 icmp_error;     /* the key is that of the flow it is about */
	__u32 ip_bytes;	     /* of the IP packet, which may stand for many */
	int verdict;	     /* what the kernel is told, once a packet has been forwarded */
	/* Eight bytes of the stack that nobody writes to where a packet is sent on, so that the
	 * verifier knows there that it is not answered.
	 */
	__u32 mtu;		 /* what it would have to fit into, where it does not */
	__u32 answer;		 /* enum answer */
	struct tcp_numbers *tcp; /* set once the headers are parsed, filled in by tcp.h */
};

/* Either a reason, which is final, or none yet. A type of its own, so that the one is never taken
 * for the other.
 */
struct decision {
	__u32 code; /* 0: none yet; otherwise the reason and one */
};

#define UNDECIDED ((struct decision){ 0 })

static __always_inline struct decision decide(enum reason reason)
{
	return (struct decision){ reason + 1 };
}

static __always_inline int is_decided(struct decision decision)
{
	return decision.code != 0;
}

static __always_inline enum reason reason_of(struct decision decision)
{
	return decision.code - 1;
}

static __always_inline int parse_ethernet(struct cursor *cursor, struct packet *packet)
{
	struct ethhdr *ethernet = cursor->position;

	if ((void *)(ethernet + 1) > cursor->end)
		return -1;
	packet->ethernet = ethernet;
	cursor->position = ethernet + 1;
	return *(const __be16 *)&ethernet->h_proto; /* in one go: the struct is packed */
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
	/* Id 0 is a priority alone: the packet is of no VLAN (IEEE 802.1Q). */
	packet->is_tagged |= !!(tag->tci & bpf_htons(VLAN_ID));
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
	packet->ip = ip;
	packet->ip_bytes = bpf_ntohs(ip->tot_len);
	/* What is merged may be longer than the header has digits for, and says 0 (BIG TCP). */
	if (unlikely(!packet->ip_bytes && cursor->merged))
		packet->ip_bytes = cursor->merged - ((void *)ip - (void *)packet->ethernet);
	if (packet->ip_bytes < header)
		return -1;
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

/* What lies between the network header's end and the packet's claimed end. */
static __always_inline __u32 network_payload(const struct packet *packet)
{
	return packet->ip_bytes - packet->ip->ihl * 4;
}

static __always_inline int transport_fits(const struct packet *packet, __u32 bytes)
{
	return packet->ip_bytes >= packet->ip->ihl * 4 + bytes;
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

	return (void *)(icmp + 1) > cursor->end ? -1 : 0;
}

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

/* Whether the frame is addressed to this MAC address, and so to neither another nor many. */
static __always_inline int has_destination(const struct packet *packet, const __u8 *mac)
{
	const __u8 *destination = packet->ethernet->h_dest;

	return !((*(const __u32 *)destination ^ *(const __u32 *)mac) |
		 (*(const __u16 *)(destination + 4) ^ *(const __u16 *)(mac + 4)));
}

/* In two goes: of bytes the compiler does not know that they may be read otherwise. */
static __always_inline void copy_mac(__u8 *to, const __u8 *from)
{
	*(__u32 *)to = *(const __u32 *)from;
	*(__u16 *)(to + 4) = *(const __u16 *)(from + 4);
}

static __always_inline int is_known(const __u8 *mac)
{
	return *(const __u16 *)mac | *(const __u16 *)(mac + 2) | *(const __u16 *)(mac + 4);
}

/* Addresses that no packet from outside can come from (RFC 1812, 5.3.7; RFC 6890): this network,
 * loopback, multicast, reserved, broadcast.
 */
static __always_inline int is_martian(__be32 address)
{
	__u8 first = *(__u8 *)&address;

	return first == 0 || first == 127 || first >= 224;
}

/* Fills `packet` as far as its kind goes, from bytes that begin at the cursor.
 */
static __always_inline struct decision parse_headers(struct cursor *cursor, struct packet *packet)
{
	int protocol = parse_ethernet(cursor, packet);

	protocol = parse_vlan(cursor, packet, protocol);
	protocol = parse_vlan(cursor, packet, protocol);
	if (protocol < 0)
		return decide(REASON_pass_malformed);
	if (protocol != bpf_htons(ETH_P_IP))
		return decide(REASON_pass_not_ipv4);
	protocol = parse_ipv4(cursor, packet);
	if (protocol < 0)
		return decide(REASON_pass_malformed);
	packet->bytes = (void *)packet->ip - (void *)packet->ethernet + packet->ip_bytes;
	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP && protocol != IPPROTO_ICMP)
		return decide(REASON_pass_not_for_service);
	if (unlikely(packet->later_fragment))
		return UNDECIDED;
	return parse_transport(cursor, packet, protocol) < 0 ? decide(REASON_pass_malformed)
							     : UNDECIDED;
}

#endif
