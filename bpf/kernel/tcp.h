/* SPDX-License-Identifier: GPL-2.0 */
/* What TCP's header says beyond its ports and flags: read where a flow is followed or a RST is
 * made, since the stateless modes have no use for it. Of its options one matters here: how windows
 * are scaled (RFC 7323), said in a SYN and in the SYN-ACK only.
 */
#ifndef GALE_TCP_H
#define GALE_TCP_H

#include "ctx.h"
#include "verifier.h"

/* Where the transport header begins, from the frame's first byte. */
static __always_inline __u32 transport_offset(const struct packet *packet)
{
	return (void *)packet->ip - (void *)packet->ethernet + packet->ip->ihl * 4;
}

/* Of a TCP packet that was parsed and not changed since. */
static __always_inline int read_numbers(context_t *ctx, struct packet *packet)
{
	struct tcphdr *tcp = packet_start(ctx) + (transport_offset(packet) & 0x7f);
	struct tcp_numbers *numbers = packet->tcp;
	__u32 bytes = network_payload(packet);

	if ((void *)(tcp + 1) > packet_end(ctx))
		return -1; /* never: the parser has seen that header */
	keep_together(numbers);
	numbers->sequence = bpf_ntohl(tcp->seq);
	numbers->acknowledged = bpf_ntohl(tcp->ack_seq);
	numbers->window = bpf_ntohs(tcp->window);
	/* A header longer than its packet is its receiver's business; here it has no payload. */
	numbers->payload = bytes > packet->transport_bytes ? bytes - packet->transport_bytes : 0;
	return 0;
}

#define OPTION_END 0
#define OPTION_NOTHING 1
#define OPTION_SCALE 3
#define LARGEST_SCALE 14
#define MOST_OPTIONS 12

/* 0 to 14, or NO_SCALE. */
static __always_inline __u8 window_scale(context_t *ctx, const struct packet *packet)
{
	__u32 start = transport_offset(packet);
	__u32 at = start + sizeof(struct tcphdr), end = start + packet->transport_bytes;

#pragma clang loop unroll(disable)
	for (int i = 0; i < MOST_OPTIONS; i++) {
		__u8 *option = packet_start(ctx) + (at & 0xff);

		if (at >= end || (void *)(option + 3) > packet_end(ctx) || *option == OPTION_END)
			break;
		if (*option == OPTION_SCALE)
			return option[2] < LARGEST_SCALE ? option[2] : LARGEST_SCALE;
		at += *option == OPTION_NOTHING ? 1 : option[1];
	}
	return NO_SCALE;
}

#endif
