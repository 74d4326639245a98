/* A client's packet: find its flow or its service, and send it to a node. Runs in XDP, and again in
 * TC for what XDP passed on.
 */
#ifndef GALE_REQUEST_H
#define GALE_REQUEST_H

#include "conntrack.h"
#include "nat.h"
#include "deliver.h"
#include "stateless.h"
#include "fragment.h"
#include "icmp.h"
#include "rate.h"
#include "service.h"
#include "answer.h"

static __always_inline void count_in(struct seat_counters *counters, const struct packet *packet)
{
	counters->packets_in += packet->segments;
	counters->bytes_in += packet->bytes;
}

/* The last step of every L4 request; `done` is the reason to give if all goes well. */
static __always_inline enum reason send_l4(context_t *ctx, struct packet *packet,
					   const struct flow *flow, const struct seat *seat,
					   struct seat_counters *counters, enum reason done)
{
	enum reason refused;

	count_in(counters, packet);
	note_fragment(packet, flow->seat, MODE_L4, 0, flow);
	refused = rewrite_l4(ctx, packet, flow);
	if (refused)
		return refused;
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	return done;
}

static __always_inline enum reason may_forward_l4(context_t *ctx, struct packet *packet,
						  const struct seat *seat)
{
	enum reason refused = may_forward(ctx, packet, seat, 0);

	if (unlikely(refused))
		return refused;
#ifdef GALE_XDP
	if (unlikely(packet->ip->ihl != 5))
		return REASON_slow_ip_options;
#endif
	return unlikely(packet->ip->ttl <= 1) ? REASON_drop_ttl : REASON_parsed;
}

static __always_inline enum reason established_request(context_t *ctx, struct packet *packet,
						       struct flow *flow)
{
	int index = flow->seat;
	struct seat *seat = seats.lookup(&index);
	struct seat_counters *counters = seat_counters.lookup(&index);
	enum reason refused;

	if (!seat || !counters)
		return REASON_drop_no_node;
	refused = may_forward_l4(ctx, packet, seat);
	if (unlikely(refused))
		return refused;
	if (unlikely(changes_state(packet, flow)))
		track_state(packet, flow);
	if (unlikely(touch_is_due(flow))) {
		refused = touch_flow(packet, flow);
		if (refused)
			return refused;
	}
	return send_l4(ctx, packet, flow, seat, counters, REASON_l4_established);
}

/* The flow is half-open: a repeated SYN, the ACK that establishes it, or a forgery. */
static __always_inline enum reason half_open_request(context_t *ctx, struct packet *packet,
						     struct flow *flow, const struct seat *seat,
						     struct seat_counters *counters)
{
	enum reason reason = REASON_l4_opening, refused;
	struct flow rewrite = *flow;

	refused = may_forward_l4(ctx, packet, seat);
	if (refused)
		return refused;
	if (packet->key.protocol == IPPROTO_TCP && (packet->tcp_flags & TCP_FLAG_RST)) {
		forget_half(&packet->key, flow);
	} else if (packet->key.protocol == IPPROTO_TCP && !(packet->tcp_flags & TCP_FLAG_SYN)) {
		if (flow->state != FLOW_SYN_RECEIVED || packet->acknowledged != flow->expected)
			return REASON_drop_handshake_mismatch;
		reason = promote(&packet->key, flow, bpf_ktime_get_coarse_ns());
		if (reason != REASON_l4_promoted)
			return reason;
		counters->flows++;
		flow = est.lookup(&packet->key);
		if (flow && changes_state(packet, flow))
			track_state(packet, flow);
	}
	return send_l4(ctx, packet, &rewrite, seat, counters, reason);
}

static __always_inline enum reason new_l4_flow(context_t *ctx, struct packet *packet,
					       const struct service *service,
					       const struct settings *own, int index)
{
	struct seat *seat = seats.lookup(&index);
	struct seat_counters *counters = seat_counters.lookup(&index);
	struct flow flow = { .service = service->id, .seat = index, .state = FLOW_SYN_SENT };
	enum reason reason;

	if (!seat || !counters)
		return REASON_drop_no_node;
	reason = may_forward_l4(ctx, packet, seat);
	if (reason)
		return reason;
	flow.created = flow.last_seen = bpf_ktime_get_coarse_ns();
	reason = may_open(packet, own, flow.created);
	if (reason)
		return reason;
	flow.saddr = service->flags & SERVICE_NO_SNAT ? packet->key.saddr : service->snat_address;
	flow.daddr = seat->address;
	flow.dport = seat->port;
	reason = open_flow(packet, service, counters, own->cpus, &flow);
	if (reason != REASON_l4_new_flow)
		return reason;
	return send_l4(ctx, packet, &flow, seat, counters, reason);
}

static __always_inline int is_opening(const struct packet *packet)
{
	__u8 flags = packet->tcp_flags;

	return packet->key.protocol != IPPROTO_TCP ||
	       (flags & (TCP_FLAG_SYN | TCP_FLAG_ACK | TCP_FLAG_RST | TCP_FLAG_FIN)) ==
		       TCP_FLAG_SYN;
}

static __always_inline enum reason l4_request(context_t *ctx, struct packet *packet,
					      const struct service *service,
					      const struct settings *own)
{
	struct flow *flow = half.lookup(&packet->key);
	int index;

	if (flow) {
		struct seat_counters *counters;
		struct seat *seat;

		index = flow->seat;
		seat = seats.lookup(&index);
		counters = seat_counters.lookup(&index);
		/* Repeated because its node has died, it gets another node; because its port
		 * has gone to another flow, another port.
		 */
		if (seat && counters &&
		    (!is_opening(packet) ||
		     ((seat->flags & SEAT_UP) &&
		      touch_half(&packet->key, flow, bpf_ktime_get_coarse_ns()))))
			return half_open_request(ctx, packet, flow, seat, counters);
		forget_half(&packet->key, flow);
	}
	if (!is_opening(packet))
		return REASON_drop_no_flow;
	index = seat_of_hash(service, flow_hash(&packet->key, service->flags, own->hash_seed));
	if (index == NO_SEAT)
		return REASON_drop_no_node;
	return new_l4_flow(ctx, packet, service, own, index);
}

/* About a packet that a node sent. */
static __always_inline enum reason error_to_node(context_t *ctx, struct packet *packet,
						 const struct flow *flow)
{
	int index = flow->seat;
	struct seat *seat = seats.lookup(&index);
	enum reason refused;

	if (!seat)
		return REASON_drop_no_node;
	refused = may_forward(ctx, packet, seat, 0);
	if (!refused)
		refused = translate_error(ctx, packet, flow);
	if (refused)
		return refused;
	packet->verdict = deliver_to_seat(ctx, packet, seat);
	return REASON_icmp_to_node;
}

static __always_inline enum reason forward_request(context_t *ctx, struct packet *packet,
						   const struct settings *own)
{
	struct service *service;
	struct flow *flow;

	if (unlikely(packet->later_fragment))
		return forward_fragment(ctx, packet, own);
	if (unlikely(packet->key.protocol == IPPROTO_ICMP) && !adopt_quoted_key(ctx, packet))
		return REASON_pass_icmp_other;
	if (own->l4_services) {
		flow = est.lookup(&packet->key);
		if (likely(flow)) {
			if (unlikely(packet->icmp_error))
				return error_to_node(ctx, packet, flow);
			if (likely(flow->state != FLOW_CLOSED || !is_opening(packet)))
				return established_request(ctx, packet, flow);
			forget_established(&packet->key, flow); /* the same ports, a new flow */
		}
	}
	service = find_service(&packet->key);
	if (!service)
		return REASON_pass_not_for_service;
	if (unlikely(packet->key.saddr == packet->key.daddr))
		return REASON_drop_source_is_vip;
	if (service->mode != MODE_L4)
		return forward_stateless(ctx, packet, service, own);
	if (unlikely(packet->icmp_error))
		return REASON_pass_icmp_other;
	return l4_request(ctx, packet, service, own);
}

static __always_inline enum reason handle_request(context_t *ctx, struct packet *packet)
{
	enum reason reason = parse_packet(ctx, packet);
	struct settings *own;
	int zero = 0;

	if (reason)
		return reason;
	own = settings.lookup(&zero);
	if (!own || !own->public_ifindex)
		return REASON_pass_not_ready;
	reason = forward_request(ctx, packet, own);
	return unlikely(reason == REASON_too_long) ? answer_too_big(ctx, packet) : reason;
}

#endif
