/* SPDX-License-Identifier: GPL-2.0 */
/* SNAT ports, and a new flow that takes one.
 *
 * A port belongs to a flow towards one (node address, node port), so there it may not be used twice
 * at a time, and after a connection it should rest: the node may keep it in TIME_WAIT for a minute,
 * and answers a SYN from there with an old ACK, which costs the client a second. So ports are taken
 * in a row, over all the SNAT addresses, by one cursor that all CPUs and all services share: each
 * port rests for a whole turn of the slice. Who comes back from the same address and port gets the
 * same node and port again (request.h), which the node's TIME_WAIT welcomes (RFC 6191).
 *
 * Where long flows hold a stretch of the slice, later tries jump. Where everything is held, a
 * half-open flow gives its port away, that which took it longest ago; an established or a closed
 * one never does.
 *
 * A client's port below 1024 becomes one below 1024 (RFC 4787, REQ-3a), where the LB has such.
 */
#ifndef GALE_PORTS_H
#define GALE_PORTS_H

#include "flow.h"
#include "verifier.h"

#define SOFT_TRIES 2 /* so many half-open flows are passed over before one gives its port away */

struct source {
	__be32 address;
	__be16 port;
};

/* The `number`th source of the service's: ports of the first address, then of the next. */
static __always_inline struct source source_at(const struct service *service, __u64 number, int low)
{
	__u32 ports = low ? service->low_ports : service->snat_ports;
	__u32 first = low ? service->low_first_port : service->snat_first_port;
	__u32 place, address;

	if (!ports || !service->snat_count)
		return (struct source){};
	place = (__u32)number % (ports * service->snat_count);
	address = place / ports;
	return (struct source){
		.address = service->snat_address[address % SNAT_ADDRESSES],
		.port = bpf_htons(first + place % ports),
	};
}

static __always_inline int wants_low_port(const struct packet *packet,
					  const struct service *service)
{
	return bpf_ntohs(packet->key.sport) < 1024 && service->low_ports;
}

static __always_inline __u64 next_number(struct port_cursor *cursor, int low)
{
	return __sync_fetch_and_add(low ? &cursor->low_next : &cursor->next, 1);
}

/* The key of the node's answers to the flow. */
static __always_inline struct flow_key reply_key(const struct flow *request)
{
	return (struct flow_key){
		.saddr = request->daddr,
		.daddr = request->saddr,
		.sport = request->dport,
		.dport = request->sport,
		.protocol = request->key.protocol,
		.direction = DIRECTION_REPLY,
	};
}

/* What a look without a lock says of a key: whether a claim to it would be granted. */
static __always_inline enum claim judge_key(const struct flow_key *key, const struct settings *own,
					    __u32 now)
{
	struct place place = find_flow(key, own);

	if (!place.flow)
		return CLAIM_GRANTED;
	/* A place in the table before this one is not given to anybody any more. */
	if (place.is_old)
		return is_takeable(place.flow, now) ? CLAIM_GRANTED : CLAIM_TAKEN;
	return judge_holder(place.flow, now, 0);
}

/* Whether the search for a port is over with this one. The draft remembers what it has met. */
static __always_inline int is_port_found(const struct service *service, const struct settings *own,
					 __u64 number, __u32 now, int low, struct draft *draft)
{
	struct source source = source_at(service, number, low);
	struct flow_key key;
	enum claim claim;

	draft->request.saddr = source.address;
	draft->request.sport = source.port;
	key = reply_key(&draft->request);
	claim = unknown(own, judge_key(&key, own, now));
	if (claim == CLAIM_SOFT && !draft->soft_count++)
		draft->number = number;
	if (claim != CLAIM_GRANTED)
		return draft->soft_count >= SOFT_TRIES;
	draft->number = number;
	draft->force = 0;
	return 1;
}

/* Looks for a port, in a row at first, then anywhere: one that nobody holds, or else the first that
 * could be taken if need be. Its number is the draft's; -1: there is none. Nearly always the first
 * is free. (Written out, since the verifier has no patience with a loop of so many branches; and
 * looked for before one is claimed, since it has even less with several claims.)
 */
static __always_inline void choose_port(const struct service *service, const struct settings *own,
					struct port_cursor *cursor, __u32 now, int low,
					struct draft *draft)
{
	draft->number = -1;
	draft->soft_count = 0;
	draft->force = 1;
	if (is_port_found(service, own, next_number(cursor, low), now, low, draft) ||
	    is_port_found(service, own, next_number(cursor, low), now, low, draft) ||
	    is_port_found(service, own, bpf_get_prandom_u32(), now, low, draft) ||
	    is_port_found(service, own, bpf_get_prandom_u32(), now, low, draft))
		return;
	is_port_found(service, own, bpf_get_prandom_u32(), now, low, draft);
}

/* Reserves a port: enters the reply's direction of the draft, whose source is filled in. `place` is
 * where.
 */
static __always_inline struct decision reserve_port(const struct packet *packet,
						    const struct service *service,
						    const struct settings *own,
						    struct port_cursor *cursor, __u32 now,
						    struct draft *draft, struct place *place)
{
	int low = wants_low_port(packet, service), keeps = service->flags & SERVICE_NO_SNAT;
	struct source source = { packet->key.saddr, packet->key.sport };
	struct flow_key key;
	enum claim claim;

	draft->force = 1;
	if (!keeps) {
		if (!service->snat_count || !(low || service->snat_ports))
			return decide(REASON_drop_no_port);
		choose_port(service, own, cursor, now, low, draft);
		if (draft->number < 0)
			return decide(REASON_drop_no_port);
		source = source_at(service, draft->number, low);
	}
	draft->request.saddr = source.address;
	draft->request.sport = source.port;
	draft->request.other = ~0U; /* no place yet */
	key = reply_key(&draft->request);
	*place = place_of(&key, own);
	claim = claim_place(place, &key, draft, DIRECTION_REPLY, own, now, draft->force);
	claim = unknown(own, claim);
	if (claim == CLAIM_GRANTED) {
		if (draft->rested)
			cursor->rest = draft->rested;
		cursor->taken_at = now;
		return UNDECIDED;
	}
	if (claim == CLAIM_FULL)
		return decide(REASON_drop_table_full);
	/* At rest for too short a time; or else another CPU was faster, unless it was the only one.
	 */
	return decide(keeps || (draft->force && claim == CLAIM_SOFT) ? REASON_drop_no_port
								     : REASON_drop_flow_taken);
}

/* Enters both directions of a new flow. The reply's comes first: it is what reserves the port. */
static __always_inline struct decision open_flow(const struct packet *packet,
						 const struct service *service,
						 const struct settings *own,
						 struct port_cursor *cursor, __u32 now,
						 struct place *place, struct draft *draft)
{
	struct place reply = {};
	struct decision decision;
	struct flow_lock *lock;
	struct flow_key key;
	enum claim claim;

	decision = reserve_port(packet, service, own, cursor, now, draft, &reply);
	if (is_decided(decision))
		return decision;
	lock = lock_of(reply.index);
	if (!lock || !reply.flow)
		return decide(REASON_drop_table_full);
	draft->request.other = reply.index;
	claim = claim_place(place, &packet->key, draft, DIRECTION_REQUEST, own, now, 0);
	claim = unknown(own, claim);
	key = reply_key(&draft->request);
	bpf_spin_lock(&lock->lock);
	if (has_key(reply.flow, &key)) {
		if (claim == CLAIM_GRANTED)
			reply.flow->other = place->index;
		else
			reply.flow->state = FLOW_FREE;
	}
	bpf_spin_unlock(&lock->lock);
	if (claim == CLAIM_GRANTED)
		return UNDECIDED;
	/* Another CPU has opened the very same flow this instant, and forwards it. */
	return decide(claim == CLAIM_FULL ? REASON_drop_table_full : REASON_drop_flow_taken);
}

#endif
