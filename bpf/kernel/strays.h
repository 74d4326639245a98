/* SPDX-License-Identifier: GPL-2.0 */
/* A node's answer that no flow expects. Addressed to an SNAT port of this LB it was meant for one,
 * so it is dropped by name: the host's own stack would answer the node with a RST, which ends a
 * connection that is alive at another LB, or of which this one has lost a half.
 *
 * What else comes to such a port of an address of this host is the host's own, which may have
 * chosen that port for itself.
 */
#ifndef GALE_STRAYS_H
#define GALE_STRAYS_H

#include "maps.h"
#include "packet.h"

static __always_inline int is_in(__u16 port, __u16 first, __u16 ports)
{
	return (__u16)(port - first) < ports;
}

/* Whether the packet comes to an SNAT port; `info`: what is known of its destination, 0 if nothing.
 */
static __always_inline int is_for_snat_port(const struct packet *packet,
					    const struct address_info *info)
{
	__u16 port = bpf_ntohs(packet->key.dport);

	return info && (info->flags & ADDRESS_SNAT) &&
	       (is_in(port, info->snat_first_port, info->snat_ports) ||
		is_in(port, info->low_first_port, info->low_ports));
}

static __always_inline int is_from_node(const struct packet *packet)
{
	struct service_key endpoint = {
		.address = packet->key.saddr,
		.port = packet->key.sport,
		.protocol = packet->key.protocol,
	};

	return endpoints.lookup(&endpoint) != 0;
}

#endif
