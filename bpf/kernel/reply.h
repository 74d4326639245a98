/* A node's packet on its way back (L4): find its flow by the reply's key, undo the rewrite, send it
 * to the client. In TC by default: there the kernel hands over many segments as one, which is what
 * makes bulk cheap. `reply_hook = "xdp"` is for cards where native XDP is the better way back: it
 * answers through whom the client's packets came from, and leaves to TC what it cannot finish.
 */
#ifndef GALE_REPLY_H
#define GALE_REPLY_H

#include "conntrack.h"
#include "nat.h"
#include "deliver.h"
#include "fragment.h"
#include "icmp.h"
#include "answer.h"

static __always_inline enum reason send_reply(context_t *ctx, struct packet *packet,
					      const struct flow *flow, const struct settings *own,
					      enum reason done)
{
	int index = flow->seat;
	struct seat_counters *counters = seat_counters.lookup(&index);
	enum reason refused;

	if (counters) {
		counters->packets_out += packet->segments;
		counters->bytes_out += packet->bytes;
		counters->flows += done == REASON_l4_promoted;
	}
	note_fragment(packet, flow->seat, MODE_L4, 0, flow);
	refused = rewrite_l4(ctx, packet, flow);
	if (refused)
		return refused;
	packet->verdict = deliver_to_client(ctx, packet, flow->last_hop, own);
	return done;
}

static __always_inline enum reason established_reply(context_t *ctx, struct packet *packet,
						     struct flow *flow, const struct settings *own)
{
	enum reason refused = may_reply(ctx, packet, flow->last_hop, own);

	if (unlikely(refused))
		return refused;
	if (unlikely(changes_state(packet, flow)))
		track_state(packet, flow);
	if (unlikely(touch_is_due(flow))) {
		refused = touch_flow(packet, flow);
		if (refused)
			return refused;
	}
	return send_reply(ctx, packet, flow, own, REASON_l4_reply);
}

/* The node answers a half-open flow: note which number the client must acknowledge. */
static __always_inline void note_syn_ack(const struct packet *packet, const struct flow *flow)
{
	struct flow_key request_key = opposite_key(&packet->key, flow);
	struct flow *request = half.lookup(&request_key);

	if (!request || !are_opposite(&packet->key, request))
		return;
	request->expected = packet->sequence + 1;
	request->state = FLOW_SYN_RECEIVED;
}

static __always_inline enum reason half_open_reply(context_t *ctx, struct packet *packet,
						   struct flow *flow, const struct settings *own)
{
	enum reason reason = REASON_l4_reply, refused;
	struct flow rewrite = *flow;

	refused = may_reply(ctx, packet, flow->last_hop, own);
	if (refused)
		return refused;
	if (packet->key.protocol == IPPROTO_UDP) {
		reason = promote(&packet->key, flow, bpf_ktime_get_coarse_ns());
		if (reason != REASON_l4_promoted)
			return reason;
	} else if (packet->tcp_flags & TCP_FLAG_RST) {
		forget_half(&packet->key, flow);
	} else if (packet->tcp_flags & TCP_FLAG_SYN) {
		note_syn_ack(packet, flow);
	}
	return send_reply(ctx, packet, &rewrite, own, reason);
}

static __always_inline enum reason reply_fragment(context_t *ctx, struct packet *packet,
						  const struct settings *own)
{
	struct fragment *first = first_of(packet);
	struct seat_counters *counters;
	enum reason refused;
	int index;

	if (!first)
		return REASON_pass_fragment_alone;
	refused = may_reply(ctx, packet, first->last_hop, own);
	if (refused)
		return refused;
	index = first->seat;
	counters = seat_counters.lookup(&index);
	if (counters) {
		counters->packets_out += packet->segments;
		counters->bytes_out += packet->bytes;
	}
	rewrite_ipv4(packet->ip, first->saddr, first->daddr, first->address_delta);
	packet->verdict = deliver_to_client(ctx, packet, first->last_hop, own);
	return REASON_fragment_forwarded;
}

/* About a packet that the client sent. */
static __always_inline enum reason error_to_client(context_t *ctx, struct packet *packet,
						   const struct flow *flow,
						   const struct settings *own)
{
	enum reason refused = may_reply(ctx, packet, flow->last_hop, own);

	if (!refused)
		refused = translate_error(ctx, packet, flow);
	if (refused)
		return refused;
	packet->verdict = deliver_to_client(ctx, packet, flow->last_hop, own);
	return REASON_icmp_to_client;
}

static __always_inline enum reason forward_reply(context_t *ctx, struct packet *packet,
						 const struct settings *own)
{
	struct flow *flow;

	packet->key.direction = DIRECTION_REPLY;
	if (unlikely(packet->later_fragment))
		return reply_fragment(ctx, packet, own);
	if (unlikely(packet->key.protocol == IPPROTO_ICMP) && !adopt_quoted_key(ctx, packet))
		return REASON_pass_icmp_other;
	flow = est.lookup(&packet->key);
	if (likely(flow && !packet->icmp_error))
		return established_reply(ctx, packet, flow, own);
	if (!flow)
		flow = half.lookup(&packet->key);
	if (!flow)
		return REASON_pass_no_flow;
	return packet->icmp_error ? error_to_client(ctx, packet, flow, own)
				  : half_open_reply(ctx, packet, flow, own);
}

static __always_inline enum reason handle_reply(context_t *ctx, struct packet *packet)
{
	enum reason reason = parse_packet(ctx, packet);
	struct settings *own;
	int zero = 0;

	if (reason)
		return reason;
	own = settings.lookup(&zero);
	if (!own || !own->public_ifindex)
		return REASON_pass_not_ready;
	reason = forward_reply(ctx, packet, own);
	return unlikely(reason == REASON_too_long) ? answer_too_big(ctx, packet) : reason;
}

#endif
