/* "Who has it?": ARP (RFC 826, RFC 5227) and neighbour discovery (RFC 4861) for floating addresses,
 * and ICMPv6 echo.
 *
 * A question about an address that this LB claims is answered with the MAC address of the interface
 * that it came to, by the question itself, turned around: what lies behind it (padding, a tag)
 * stays as it is. One about a floating address that it does not claim is dropped (claims.h), any
 * other is the host's.
 *
 * Whoever else says that it has a claimed address is kept out of the host's neighbour table and
 * written down (`rivals`): the dataplane announces the address anew, and tells people. As long as
 * this LB does not claim the address it is most likely the LB that does.
 *
 * Nothing but what has neither an IPv4 header nor one that is malformed comes here, so the packets
 * of services pay nothing for it. It reads the frame anew, by pointers of its own.
 */
#ifndef GALE_DISCOVERY_H
#define GALE_DISCOVERY_H

#include "claims.h"

#define ARP_ETHERNET 1
#define ARP_REQUEST 1
#define ARP_REPLY 2
#define ICMPV6 58
#define ICMPV6_ECHO_REQUEST 128
#define ICMPV6_ECHO_REPLY 129
#define ND_SOLICITATION 135
#define ND_ADVERTISEMENT 136
#define ND_HOP_LIMIT 255 /* nothing that a router has passed on */
#define ND_TARGET_MAC 2
#define ND_SOLICITED 0x40000000
#define ND_OVERRIDE 0x20000000
#define ECHO_BYTES 8   /* at least */
#define OPTION_BYTES 8 /* one with a MAC address or a nonce */

struct arp {
	__be16 hardware;
	__be16 protocol;
	__u8 hardware_bytes;
	__u8 protocol_bytes;
	__be16 operation;
	__u8 sender_mac[ETH_ALEN];
	__be32 sender;
	__u8 target_mac[ETH_ALEN];
	__be32 target;
} __attribute__((packed));

struct ipv6 {
	__be32 flow;
	__be16 payload;
	__u8 next;
	__u8 hops;
	__be32 source[4];
	__be32 destination[4];
};

/* A solicitation or an advertisement; an echo request has the first four bytes of it. */
struct neighbour {
	struct ipv6 ip;
	__u8 type;
	__u8 code;
	__be16 checksum;
	__be32 flags;
	__be32 target[4];
};

static __always_inline int is_same_mac(const __u8 *one, const __u8 *other)
{
	return *(const __u16 *)one == *(const __u16 *)other &&
	       *(const __u16 *)(one + 2) == *(const __u16 *)(other + 2) &&
	       *(const __u16 *)(one + 4) == *(const __u16 *)(other + 4);
}

/* Somebody else says that it has a floating address. */
static __always_inline enum reason meet_rival(struct floating_key *key,
					      const struct vip_claim *claim, const __u8 *mac)
{
	struct rival fresh = { .seen = 1, .last = bpf_ktime_get_ns() };
	struct rival *known;

	if (fresh.last >= claim->until)
		return REASON_pass_claimed_elsewhere;
	__builtin_memcpy(fresh.mac, mac, ETH_ALEN);
	known = rivals.lookup(key);
	if (known)
		fresh.seen += known->seen;
	rivals.update(key, &fresh);
	return REASON_drop_rival;
}

/* Whether this LB may answer for an address: the claim's holder, asked on the claim's side. */
static __always_inline int may_claim(const struct vip_claim *claim, int direction)
{
	return is_of_side(claim, direction) && is_held(claim);
}

/* Back to whom the frame came from. */
static __always_inline void turn_around(struct ethhdr *ethernet, const __u8 *mac)
{
	__builtin_memcpy(ethernet->h_dest, ethernet->h_source, ETH_ALEN);
	__builtin_memcpy(ethernet->h_source, mac, ETH_ALEN);
}

/* --------------------------------------------------------------------- ARP */

static __always_inline void answer_arp(struct ethhdr *ethernet, struct arp *arp, const __u8 *mac)
{
	__be32 asked = arp->target;

	turn_around(ethernet, mac);
	arp->operation = bpf_htons(ARP_REPLY);
	__builtin_memcpy(arp->target_mac, arp->sender_mac, ETH_ALEN);
	arp->target = arp->sender;
	__builtin_memcpy(arp->sender_mac, mac, ETH_ALEN);
	arp->sender = asked;
}

static __always_inline enum reason take_arp(context_t *ctx, struct packet *packet, __u32 network,
					    const struct settings *own, int direction)
{
	const __u8 *mac = direction == DIRECTION_REQUEST ? own->public_mac : own->private_mac;
	struct ethhdr *ethernet = packet_start(ctx);
	struct arp *arp = (void *)ethernet + network;
	struct floating_key key;
	struct decision refused;
	struct vip_claim *claim;

	if ((void *)(ethernet + 1) > packet_end(ctx) || (void *)(arp + 1) > packet_end(ctx) ||
	    arp->hardware != bpf_htons(ARP_ETHERNET) || arp->protocol != bpf_htons(ETH_P_IP) ||
	    arp->hardware_bytes != ETH_ALEN || arp->protocol_bytes != sizeof(__be32))
		return REASON_pass_not_ipv4;
	if (!(ethernet->h_dest[0] & 1) && !is_same_mac(ethernet->h_dest, mac))
		return REASON_pass_other_mac;
	key = ipv4_key(arp->sender);
	claim = claims.lookup(&key);
	if (claim && is_of_side(claim, direction) && !is_same_mac(arp->sender_mac, mac))
		return meet_rival(&key, claim, arp->sender_mac);
	key = ipv4_key(arp->target);
	claim = claims.lookup(&key);
	if (!claim || arp->operation != bpf_htons(ARP_REQUEST))
		return REASON_pass_not_ipv4;
	if (!may_claim(claim, direction))
		return REASON_drop_not_claimed;
	refused = can_answer(ctx, packet, own);
	if (is_decided(refused))
		return reason_of(refused);
	answer_arp(ethernet, arp, mac);
	packet->verdict = bpf_redirect(arrived_on(ctx), 0);
	return REASON_arp_answered;
}

/* --------------------------------------------------------------------- IPv6 */

/* What stands for an IPv4 address is none that anybody asks for in IPv6. */
static __always_inline int is_ipv6_address(const struct floating_key *key)
{
	return key->address[0] || key->address[1];
}

/* Of a solicitation of so many bytes: with none, one or two options. */
static __always_inline int has_right_sum(context_t *ctx, struct neighbour *question, __u32 bytes)
{
	void *options = question + 1;
	__u32 sum = bpf_htons(bytes) + bpf_htons(ICMPV6);

	sum = bpf_csum_diff(0, 0, (void *)question->ip.source,
			    sizeof(*question) - __builtin_offsetof(struct neighbour, ip.source),
			    sum);
	if (bytes > sizeof(*question) - sizeof(struct ipv6)) {
		if (options + OPTION_BYTES > packet_end(ctx))
			return 0;
		sum = bpf_csum_diff(0, 0, options, OPTION_BYTES, sum);
	}
	if (bytes > sizeof(*question) - sizeof(struct ipv6) + OPTION_BYTES) {
		if (options + 2 * OPTION_BYTES > packet_end(ctx))
			return 0;
		sum = bpf_csum_diff(0, 0, options + OPTION_BYTES, OPTION_BYTES, sum);
	}
	return fold(sum) == 0xffff;
}

/* RFC 4861, 7.1.1, and nobody sends more options than those. */
static __always_inline int is_solicitation(context_t *ctx, struct neighbour *question)
{
	__u32 bytes = bpf_ntohs(question->ip.payload);
	__u32 plain = sizeof(*question) - sizeof(struct ipv6);

	if (question->type != ND_SOLICITATION || question->code ||
	    question->ip.hops != ND_HOP_LIMIT ||
	    (bytes != plain && bytes != plain + OPTION_BYTES && bytes != plain + 2 * OPTION_BYTES))
		return 0;
	return has_right_sum(ctx, question, bytes);
}

/* Makes the advertisement; who asks without an address of its own (DAD) is told with all others. */
static __always_inline void advertise(struct ethhdr *ethernet, struct neighbour *answer,
				      const __u8 *mac)
{
	__u8 *option = (void *)(answer + 1);
	__be32 *to = answer->ip.source;
	int is_probe = !(to[0] | to[1] | to[2] | to[3]);
	__u32 bytes = sizeof(*answer) - sizeof(struct ipv6) + OPTION_BYTES;

	turn_around(ethernet, mac);
	__builtin_memcpy(answer->ip.destination, to, sizeof(answer->ip.destination));
	if (is_probe) {
		*(__be32 *)ethernet->h_dest = bpf_htonl(0x33330000);
		*(__be16 *)(ethernet->h_dest + 4) = bpf_htons(1);
		answer->ip.destination[0] = bpf_htonl(0xff020000);
		answer->ip.destination[3] = bpf_htonl(1);
	}
	__builtin_memcpy(answer->ip.source, answer->target, sizeof(answer->ip.source));
	answer->ip.payload = bpf_htons(bytes);
	answer->type = ND_ADVERTISEMENT;
	answer->checksum = 0;
	answer->flags = bpf_htonl(is_probe ? ND_OVERRIDE : ND_OVERRIDE | ND_SOLICITED);
	option[0] = ND_TARGET_MAC;
	option[1] = 1;
	__builtin_memcpy(option + 2, mac, ETH_ALEN);
	answer->checksum = ~fold(bpf_csum_diff(
		0, 0, (void *)answer->ip.source,
		sizeof(*answer) - __builtin_offsetof(struct neighbour, ip.source) + OPTION_BYTES,
		bpf_htons(bytes) + bpf_htons(ICMPV6)));
}

static __always_inline enum reason answer_solicitation(context_t *ctx, struct packet *packet,
						       __u32 network, const struct settings *own,
						       const __u8 *mac)
{
	struct decision refused = can_answer(ctx, packet, own);
	struct neighbour *answer;
	struct ethhdr *ethernet;

	if (is_decided(refused))
		return reason_of(refused);
	if (cut_to(ctx, network + sizeof(*answer) + OPTION_BYTES))
		return REASON_slow_no_room;
	ethernet = packet_start(ctx);
	answer = (void *)ethernet + network;
	if ((void *)(ethernet + 1) > packet_end(ctx) ||
	    (void *)(answer + 1) + OPTION_BYTES > packet_end(ctx))
		return REASON_drop_rewrite_failed;
	advertise(ethernet, answer, mac);
	packet->verdict = bpf_redirect(arrived_on(ctx), 0);
	return REASON_nd_answered;
}

static __always_inline enum reason answer_echo(context_t *ctx, struct packet *packet,
					       struct ethhdr *ethernet, struct neighbour *echo,
					       const struct settings *own, const __u8 *mac)
{
	struct decision refused = can_answer(ctx, packet, own);
	struct floating_key asked;

	if (is_decided(refused))
		return reason_of(refused);
	turn_around(ethernet, mac);
	__builtin_memcpy(&asked, echo->ip.destination, sizeof(asked));
	__builtin_memcpy(echo->ip.destination, echo->ip.source, sizeof(asked));
	__builtin_memcpy(echo->ip.source, &asked, sizeof(asked));
	echo->ip.hops = ANSWER_TTL;
	echo->type = ICMPV6_ECHO_REPLY;
	echo->checksum =
		checksum_adjust(echo->checksum, delta16(bpf_htons(ICMPV6_ECHO_REQUEST << 8),
							bpf_htons(ICMPV6_ECHO_REPLY << 8)));
	packet->verdict = bpf_redirect(arrived_on(ctx), 0);
	return REASON_echo_answered;
}

static __always_inline enum reason take_echo(context_t *ctx, struct packet *packet, __u32 network,
					     const struct settings *own, int direction)
{
	const __u8 *mac = direction == DIRECTION_REQUEST ? own->public_mac : own->private_mac;
	struct ethhdr *ethernet = packet_start(ctx);
	struct neighbour *echo = (void *)ethernet + network;
	struct floating_key key;
	struct vip_claim *claim;

	if ((void *)(ethernet + 1) > packet_end(ctx) || (void *)&echo->target > packet_end(ctx) ||
	    echo->code ||
	    network + sizeof(echo->ip) + bpf_ntohs(echo->ip.payload) > frame_bytes(ctx) ||
	    bpf_ntohs(echo->ip.payload) < ECHO_BYTES)
		return REASON_pass_not_ipv4;
	__builtin_memcpy(&key, echo->ip.destination, sizeof(key));
	claim = is_ipv6_address(&key) ? claims.lookup(&key) : 0;
	if (!claim)
		return REASON_pass_not_ipv4;
	if (!is_same_mac(ethernet->h_dest, mac))
		return REASON_pass_other_mac;
	if (!may_claim(claim, direction))
		return REASON_drop_not_claimed;
	return answer_echo(ctx, packet, ethernet, echo, own, mac);
}

static __always_inline enum reason take_neighbour(context_t *ctx, struct packet *packet,
						  __u32 network, const struct settings *own,
						  int direction)
{
	const __u8 *mac = direction == DIRECTION_REQUEST ? own->public_mac : own->private_mac;
	struct ethhdr *ethernet = packet_start(ctx);
	struct neighbour *question = (void *)ethernet + network;
	struct floating_key key;
	struct vip_claim *claim;

	if ((void *)(ethernet + 1) > packet_end(ctx) || (void *)(question + 1) > packet_end(ctx))
		return REASON_pass_not_ipv4;
	__builtin_memcpy(&key, question->target, sizeof(key));
	claim = is_ipv6_address(&key) ? claims.lookup(&key) : 0;
	if (!claim)
		return REASON_pass_not_ipv4;
	if (!(ethernet->h_dest[0] & 1) && !is_same_mac(ethernet->h_dest, mac))
		return REASON_pass_other_mac;
	if (question->type == ND_ADVERTISEMENT) {
		if (!is_of_side(claim, direction) || is_same_mac(ethernet->h_source, mac))
			return REASON_pass_not_ipv4;
		return meet_rival(&key, claim, ethernet->h_source);
	}
	if (!is_solicitation(ctx, question))
		return REASON_pass_not_ipv4;
	if (!may_claim(claim, direction))
		return REASON_drop_not_claimed;
	return answer_solicitation(ctx, packet, network, own, mac);
}

static __always_inline enum reason take_ipv6(context_t *ctx, struct packet *packet, __u32 network,
					     const struct settings *own, int direction)
{
	struct neighbour *icmp = packet_start(ctx) + network;

	/* The host's own traffic, mostly: it is left as it lies. */
	if ((void *)(&icmp->ip + 1) <= packet_end(ctx) && icmp->ip.next != ICMPV6)
		return REASON_pass_not_ipv4;
	gather(ctx);
	icmp = packet_start(ctx) + network;
	if ((void *)&icmp->checksum > packet_end(ctx) || icmp->ip.next != ICMPV6)
		return REASON_pass_not_ipv4;
	switch (icmp->type) {
	case ICMPV6_ECHO_REQUEST:
		return take_echo(ctx, packet, network, own, direction);
	case ND_SOLICITATION:
	case ND_ADVERTISEMENT:
		return take_neighbour(ctx, packet, network, own, direction);
	default:
		return REASON_pass_not_ipv4;
	}
}

/* --------------------------------------------------------------------- both */

/* A frame without an IPv4 header. */
static __always_inline enum reason discover(context_t *ctx, struct packet *packet, int direction)
{
	int zero = 0;
	struct settings *own = settings.lookup(&zero);
	struct ethhdr *last;
	__u32 tags;

	if (!own || !own->public_ifindex)
		return REASON_pass_not_ipv4;
	packet->tags = unknown(own, packet->tags);
	tags = (packet->tags & 3) * sizeof(struct vlan_tag);
	/* As if the last tag were the second half of an Ethernet header. */
	last = packet_start(ctx) + tags;
	keep_together(last);
	if ((void *)(last + 1) > packet_end(ctx))
		return REASON_pass_not_ipv4;
	if (last->h_proto == bpf_htons(ETH_P_ARP))
		return take_arp(ctx, packet, tags + sizeof(*last), own, direction);
	if (last->h_proto == bpf_htons(ETH_P_IPV6))
		return take_ipv6(ctx, packet, tags + sizeof(*last), own, direction);
	return REASON_pass_not_ipv4;
}

#endif
