/* SPDX-License-Identifier: GPL-2.0 */
/* A client's packet: which service it is for, and so what is done with it. Runs in XDP, and again
 * in TC for what XDP passed on.
 */
#ifndef GALE_REQUEST_H
#define GALE_REQUEST_H

#include "verifier.h"
#include "l4.h"
#include "service.h"
#include "claims.h"
#include "strays.h"

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
#ifndef GALE_ONE_ARM
	/* By the wrong side: its flow, if there is one, is not looked for here. */
	if (!packet->icmp_error && is_for_snat_port(packet, info) && is_from_node(packet))
		return decide(REASON_drop_no_flow);
#endif
	if (unlikely(packet->first_fragment))
		note_fragment(packet, NO_SEAT, 0, 0, 0, 0);
	return decide(pass);
}

/* About no flow: a ping, perhaps of a floating address. */
static __always_inline struct decision icmp_of_no_flow(context_t *ctx, struct packet *packet)
{
	struct decision taken = take_icmp(ctx, packet, DIRECTION_REQUEST);

	return is_decided(taken) ? taken : pass_or_drop(packet, REASON_pass_icmp_other);
}

static __always_inline struct decision forward_request(context_t *ctx, struct packet *packet,
						       const struct settings *own)
{
	struct service *service;

	if (unlikely(packet->later_fragment))
		return forward_fragment(ctx, packet, own);
	if (unlikely(packet->key.protocol == IPPROTO_ICMP) && !adopt_quoted_key(ctx, packet))
		return icmp_of_no_flow(ctx, packet);
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
