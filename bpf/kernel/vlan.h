/* SPDX-License-Identifier: GPL-2.0 */
/* L4: a client that is in a VLAN of the public interface gets its replies in that VLAN.
 *
 * Whoever forwards tagged frames of an interface without a device for each VLAN has to put the tags
 * back: the reply of a node comes without. A flow's entry has room for the MAC address of the
 * client's last hop and none for tags, so of such a client the entry keeps nothing and a table
 * beside it keeps both, by the key of the client's packets. It is written and read in TC alone.
 */
#ifndef GALE_VLAN_H
#define GALE_VLAN_H

#include "maps.h"
#include "ctx.h"

/* Called with a client's packet that has tags, before anything of it is changed. */
static __always_inline void note_vlan_client(context_t *ctx, struct packet *packet)
{
	struct vlan_client *fresh, *known;
	struct draft *draft;
	int zero = 0;

	draft = drafts.lookup(&zero);
	if (!draft)
		return;
	fresh = &draft->vlan_client;
	*fresh = (struct vlan_client){};
	__builtin_memcpy(fresh->mac, packet->ethernet->h_source, ETH_ALEN);
	read_tags(ctx, packet, fresh);
	known = vlan_clients.lookup(&packet->key);
	if (!known || *(__u64 *)known != *(__u64 *)fresh ||
	    *((__u64 *)known + 1) != *((__u64 *)fresh + 1))
		vlan_clients.update(&packet->key, fresh);
}

/* A reply, translated, goes to the client. `to`: its rewrite. */
static __always_inline int send_back(context_t *ctx, struct packet *packet, const __u8 *last_hop,
				     const struct rewrite *to, const struct settings *own)
{
	struct vlan_client *client;
	struct flow_key key;

	strip_tags(ctx, packet);
	if (likely(is_known(last_hop)))
		return deliver_to_client(ctx, packet, last_hop, own);
	key = opposite_key(&packet->key, to);
	client = vlan_clients.lookup(&key);
	if (client && !put_on_tags(ctx, client))
		last_hop = client->mac;
	return deliver_to_client(ctx, packet, last_hop, own);
}

#endif
