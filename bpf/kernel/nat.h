/* Rewriting an L4 packet in place, on either hook, by the amounts its conntrack entry holds.
 *
 * XDP sees packets whose checksum is complete and adjusts it by itself. In TC a packet of this very
 * host's neighbour namespace or a virtual machine may carry only the pseudo header's sum, to be
 * finished by the sending device: only the kernel's helper knows which, so it is told the
 * addresses' part (pseudo header) and the ports' part apart.
 */
#ifndef GALE_NAT_H
#define GALE_NAT_H

#include "packet.h"
#include "checksum.h"

static __always_inline void rewrite_ipv4(struct iphdr *ip, __be32 saddr, __be32 daddr, __u16 delta)
{
	ip->saddr = saddr;
	ip->daddr = daddr;
	ip->check = checksum_adjust(ip->check, delta);
	decrement_ttl(ip);
}

#ifdef GALE_XDP

static __always_inline enum reason rewrite_l4(context_t *ctx, struct packet *packet,
					      const struct flow *flow)
{
	__u32 delta = (__u32)flow->address_delta + flow->port_delta;

	struct tcphdr *tcp = (void *)(packet->ip + 1); /* options went the slow way */
	struct udphdr *udp = (void *)tcp;

	/* The verifier has forgotten by now which header the parser saw. */
	if ((void *)(udp + 1) > (void *)(long)ctx->data_end)
		return REASON_drop_rewrite_failed;
	rewrite_ipv4(packet->ip, flow->saddr, flow->daddr, flow->address_delta);
	if (packet->key.protocol == IPPROTO_TCP) {
		if ((void *)(tcp + 1) > (void *)(long)ctx->data_end)
			return REASON_drop_rewrite_failed;
		tcp->source = flow->sport;
		tcp->dest = flow->dport;
		tcp->check = checksum_adjust(tcp->check, delta);
	} else {
		udp->source = flow->sport;
		udp->dest = flow->dport;
		if (udp->check) { /* 0: the sender calculated none, and so do we (RFC 768) */
			udp->check = checksum_adjust(udp->check, delta);
			udp->check = udp->check ? udp->check : 0xffff;
		}
	}
	return REASON_parsed;
}

#else

static __always_inline enum reason rewrite_l4(context_t *ctx, struct packet *packet,
					      const struct flow *flow)
{
	__u32 network = (void *)packet->ip - (void *)packet->ethernet;
	__u32 transport = network + packet->ip->ihl * 4;
	int tcp = packet->key.protocol == IPPROTO_TCP;
	__u32 check = transport + (tcp ? __builtin_offsetof(struct tcphdr, check)
				       : __builtin_offsetof(struct udphdr, check));
	__u64 flags = tcp ? 0 : BPF_F_MARK_MANGLED_0;
	struct iphdr *ip;
	__be16 *ports;

	if (bpf_l4_csum_replace(ctx, check, 0, flow->address_delta, flags | BPF_F_PSEUDO_HDR) ||
	    bpf_l4_csum_replace(ctx, check, 0, flow->port_delta, flags))
		return REASON_drop_rewrite_failed;
	ip = (void *)(long)ctx->data + (network & 0x1f);
	ports = (void *)(long)ctx->data + (transport & 0x7f);
	if ((void *)(ip + 1) > (void *)(long)ctx->data_end ||
	    (void *)(ports + 2) > (void *)(long)ctx->data_end)
		return REASON_drop_rewrite_failed;
	rewrite_ipv4(ip, flow->saddr, flow->daddr, flow->address_delta);
	ports[0] = flow->sport;
	ports[1] = flow->dport;
	return REASON_parsed;
}

#endif

#endif
