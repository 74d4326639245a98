/* SPDX-License-Identifier: GPL-2.0 */
/* A node's packet on its way back (L4): find its flow by the reply's key, undo the rewrite, send it
 * to the client. In TC by default: there the kernel hands over many segments as one, which is what
 * makes bulk cheap. `reply_hook = "xdp"` is for cards where native XDP is the better way back: it
 * leaves to TC what it cannot finish.
 *
 * A packet from a node's port to an SNAT port is an answer to somebody. If there is no flow for it
 * any more it is dropped by name: the host's own stack would answer the node with a RST.
 */
#ifndef GALE_REPLY_H
#define GALE_REPLY_H

#include "verifier.h"
#include "ports.h"
#include "service.h"
#include "strays.h"
#include "fragment.h"
#include "icmp.h"
#include "tcp.h"
#include "vlan.h"

static __always_inline struct decision send_to_client(context_t *ctx, struct packet *packet,
						      const struct flow *flow,
						      const struct rewrite *to,
						      const struct settings *own, enum reason done)
{
	int index = to->seat;
	struct seat_counters *counters = seat_counters.lookup(&index);

	if (unlikely(packet->first_fragment) &&
	    note_fragment(packet, to->seat, MODE_L4, 0, to, flow->last_hop))
		return decide(REASON_drop_fragment_clash);
	if (counters) {
		counters->packets_out += packet->segments;
		counters->bytes_out += packet->bytes;
	}
	if (rewrite_l4(ctx, packet, to))
		return decide(REASON_drop_rewrite_failed);
	packet->verdict = send_back(ctx, packet, flow->last_hop, to, own);
	return decide(done);
}

/* The node answers a half-open flow. */
static __always_inline void follow_answer(const struct packet *packet, struct pair *pair,
					  const struct rewrite *to, const struct settings *own,
					  __u32 now)
{
	__u8 state = to->state;

	if (!is_tcp(packet)) {
		state = state == FLOW_UDP_FRESH ? FLOW_UDP_FRESH : FLOW_UDP_ANSWERED;
	} else if (packet->tcp_flags & TCP_FLAG_RST) {
		if (!answers_syn(packet, pair->request) && state == FLOW_TCP_OPENING)
			return;
		if (state == FLOW_TCP_ANSWERED && packet->tcp->sequence != pair->reply->end)
			return;
		state = FLOW_TCP_RESET;
	} else if (is_syn_ack(packet)) {
		state = FLOW_TCP_ANSWERED; /* whichever SYN it answers: the node knows */
	} else if (state == FLOW_TCP_OPENING) {
		return; /* a challenge ACK: the client will answer it with a RST, and try again */
	}
	if (state == to->state && !is_tcp(packet)) {
		renew_pair(packet, pair, state, deadline_of(state, own, now));
		return;
	}
	if (change_pair(packet, pair, state, deadline_of(state, own, now)) ||
	    state != FLOW_TCP_ANSWERED)
		return;
	bpf_spin_lock(&pair->request_lock->lock);
	if (entry_word(pair->request) == pair->request_word) {
		if (!is_syn_ack(packet))
			note_early(packet, pair->reply);
		else if (to->state == FLOW_TCP_OPENING ||
			 packet->tcp->sequence != pair->request->acked)
			note_syn_ack(packet, pair); /* the first time that it says so */
	}
	bpf_spin_unlock(&pair->request_lock->lock);
}

/* A node that answers a SYN on top of a flow has forgotten that flow: it begins anew. */
static __always_inline void begin_anew(const struct packet *packet, struct pair *pair,
				       const struct settings *own, __u32 now)
{
	if (change_pair(packet, pair, FLOW_TCP_ANSWERED, deadline_of(FLOW_TCP_ANSWERED, own, now)))
		return;
	bpf_spin_lock(&pair->request_lock->lock);
	if (entry_word(pair->request) == pair->request_word) {
		pair->request->begin = now;
		pair->reply->begin = 0;
		note_syn_ack(packet, pair);
	}
	bpf_spin_unlock(&pair->request_lock->lock);
}

#define MOST_SYN_DATA 1460 /* a segment's */

/* Whether a SYN-ACK is about a SYN that came on top of the flow, and of its data as much as it
 * likes (RFC 7413); or about one that came before the RST which ended another.
 */
static __always_inline int answers_syn_on_top(const struct packet *packet, const struct pair *pair,
					      const struct rewrite *to)
{
	__u32 after = pair->reply->begin;

	if (to->state == FLOW_TCP_RESET)
		return packet->tcp->acknowledged != pair->reply->acked;
	return after && packet->tcp->acknowledged - after <= MOST_SYN_DATA;
}

static __always_inline enum note follow_reply(const struct packet *packet, struct pair *pair,
					      const struct rewrite *to, const struct settings *own,
					      __u32 now)
{
	if (is_forgeable(to->state)) {
		follow_answer(packet, pair, to, own, now);
	} else if (is_tcp(packet) && is_syn_ack(packet)) {
		if (answers_syn_on_top(packet, pair, to))
			begin_anew(packet, pair, own, now);
	} else if (is_protected(to->state)) {
		return track_living(packet, pair, own, now);
	} else if (to->state == FLOW_TCP_TIME_WAIT && (packet->tcp_flags & TCP_FLAG_FIN)) {
		change_pair(packet, pair, to->state, deadline_of(to->state, own, now));
	}
	return NOTE_NONE;
}

static __always_inline struct decision reply_fragment(context_t *ctx, struct packet *packet,
						      const struct settings *own)
{
	struct fragment *first = first_of(packet);
	struct seat_counters *counters;
	struct decision refused;
	struct rewrite to = {};
	int index;

	if (!first)
		return decide(REASON_pass_fragment_alone);
	refused = may_reply(ctx, packet, first->last_hop, own);
	if (is_decided(refused))
		return refused;
	index = first->seat;
	counters = seat_counters.lookup(&index);
	if (counters) {
		counters->packets_out += packet->segments;
		counters->bytes_out += packet->bytes;
	}
	to.saddr = first->saddr;
	to.daddr = first->daddr;
	to.sport = first->to_sport;
	to.dport = first->to_dport;
	translate_fragment(packet, first);
	packet->verdict = send_back(ctx, packet, first->last_hop, &to, own);
	return decide(REASON_fragment_forwarded);
}

/* About a packet that the client sent. */
static __always_inline struct decision error_to_client(context_t *ctx, struct packet *packet,
						       const struct flow *flow,
						       const struct rewrite *to,
						       const struct settings *own)
{
	struct decision refused = may_reply(ctx, packet, flow->last_hop, own);

	if (!is_decided(refused))
		refused = translate_error(ctx, packet, to);
	if (is_decided(refused))
		return refused;
	packet->verdict = send_back(ctx, packet, flow->last_hop, to, own);
	return decide(REASON_icmp_to_client);
}

/* A request by the nodes' side: from here no node's answer would find its way back through this LB.
 * Whoever sent it is told at once; but for what another LB sends here in L2 because this machine is
 * a node, too: the host answers that. With one interface for both sides a request is one like any
 * other, and does not come here.
 */
static __always_inline struct decision refuse_hairpin(struct packet *packet)
{
#ifndef GALE_ONE_ARM
	struct service *service = packet->icmp_error ? 0 : find_service(&packet->key);

	if (service && service->mode == MODE_L2 && service->flags & SERVICE_OF_THIS_NODE)
		return decide(REASON_pass_own_node);
	if (service) {
		packet->answer =
			packet->key.protocol == IPPROTO_TCP ? ANSWER_RESET : ANSWER_UNREACHABLE;
		return decide(REASON_hairpin_refused);
	}
#endif
	return decide(packet->icmp_error ? REASON_pass_icmp_other : REASON_pass_no_flow);
}

/* No flow: from a node's port to one of this LB's SNAT ports it was meant for one. */
static __always_inline struct decision pass_or_drop_reply(struct packet *packet)
{
	__be32 address = packet->key.daddr;
	struct address_info *info = addresses.lookup(&address);

	if (!is_for_snat_port(packet, info))
		return refuse_hairpin(packet);
	if (!(info->flags & ADDRESS_FLOATING) && !is_from_node(packet))
		return decide(packet->icmp_error ? REASON_pass_icmp_other : REASON_pass_no_flow);
	return decide(REASON_drop_no_flow);
}

/* About no flow: a node's ping of an SNAT address, perhaps. */
static __always_inline struct decision icmp_of_no_reply(context_t *ctx, struct packet *packet)
{
	struct decision taken = take_icmp(ctx, packet, DIRECTION_REPLY);

	return is_decided(taken) ? taken : decide(REASON_pass_icmp_other);
}

static __always_inline struct decision forward_reply(context_t *ctx, struct packet *packet,
						     const struct settings *own)
{
	struct decision refused;
	struct rewrite to;
	struct place place;
	struct pair pair;
	enum note note;
	__u32 now;

	packet->key.direction = DIRECTION_REPLY;
	if (unlikely(packet->later_fragment))
		return reply_fragment(ctx, packet, own);
	if (unlikely(packet->key.protocol == IPPROTO_ICMP) && !adopt_quoted_key(ctx, packet))
		return icmp_of_no_reply(ctx, packet);
	forget_how_it_was_read(packet, own);
	if (is_tcp(packet) && read_numbers(ctx, packet))
		return decide(REASON_pass_malformed);
	place = find_flow(&packet->key, own);
	now = ticks_now();
	if (unlikely(packet->tcp_flags & TCP_FLAG_SYN))
		packet->tcp->scale = window_scale(ctx, packet);
	if (!place.flow || has_passed(place.flow->deadline, now) ||
	    read_rewrite(place.flow, &packet->key, &to))
		return pass_or_drop_reply(packet);
	if (unlikely(packet->icmp_error))
		return error_to_client(ctx, packet, place.flow, &to, own);
	refused = may_reply(ctx, packet, place.flow->last_hop, own);
	if (unlikely(is_decided(refused)))
		return refused;
	if (unlikely(!is_ordinary(packet, place.flow, &to, own, now))) {
		if (fetch_pair(packet, &place, &to, &pair))
			return pass_or_drop_reply(packet);
		note = unknown(own, follow_reply(packet, &pair, &to, own, now));
		if (unlikely(note))
			tell(&place, own, note);
	}
	return send_to_client(ctx, packet, place.flow, &to, own, REASON_l4_reply);
}

#endif
