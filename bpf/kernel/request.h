/* SPDX-License-Identifier: GPL-2.0 */
/* A client's packet: which service it is for, and so what is done with it. Runs in XDP, and again
 * in TC for what XDP passed on.
 */
#ifndef GALE_REQUEST_H
#define GALE_REQUEST_H

#include "verifier.h"
#include "l4.h"
#include "service.h"

/* Addresses that no packet from outside can come from (RFC 1812, 5.3.7; RFC 6890): this network,
 * loopback, multicast, reserved, broadcast.
 */
static __always_inline int is_martian(__be32 address)
{
	__u8 first = *(__u8 *)&address;

	return first == 0 || first == 127 || first >= 224;
}

/* For no service: the host's own, unless the address is one that no host has. */
static __always_inline struct decision pass_or_drop(struct packet *packet, enum reason pass)
{
	__be32 address = packet->ip->daddr;
	struct address_info *info = addresses.lookup(&address);

	if (likely(!info))
		return decide(pass);
	/* Replies come to SNAT addresses, by the same interface if there is but one. */
	if ((info->flags & (ADDRESS_FLOATING | ADDRESS_SNAT)) == ADDRESS_FLOATING)
		return decide(REASON_drop_no_service);
	if (unlikely(packet->first_fragment))
		note_fragment(packet, NO_SEAT, 0, 0, 0, 0);
	return decide(pass);
}

static __always_inline struct decision forward_request(context_t *ctx, struct packet *packet,
						       const struct settings *own)
{
	struct service *service;

	if (unlikely(packet->later_fragment))
		return forward_fragment(ctx, packet, own);
	if (unlikely(packet->key.protocol == IPPROTO_ICMP) && !adopt_quoted_key(ctx, packet))
		return pass_or_drop(packet, REASON_pass_icmp_other);
	forget_how_it_was_read(packet, own);
	service = find_service(&packet->key);
	if (!service)
		return pass_or_drop(packet, packet->icmp_error ? REASON_pass_icmp_other
							       : REASON_pass_not_for_service);
	if (unlikely(packet->key.saddr == packet->key.daddr))
		return decide(REASON_drop_source_is_vip);
	if (unlikely(is_martian(packet->key.saddr)))
		return decide(REASON_drop_martian_source);
	return service->flags & SERVICE_HAS_FLOWS ? forward_l4(ctx, packet, service, own)
						  : forward_stateless(ctx, packet, service, own);
}

#endif
