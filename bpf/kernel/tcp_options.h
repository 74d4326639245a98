/* The one TCP option that matters here: how windows are scaled (RFC 7323), said in a SYN and in the
 * SYN-ACK only.
 */
#ifndef GALE_TCP_OPTIONS_H
#define GALE_TCP_OPTIONS_H

#include "ctx.h"

#define OPTION_END 0
#define OPTION_NOTHING 1
#define OPTION_SCALE 3
#define LARGEST_SCALE 14
#define MOST_OPTIONS 12

/* 0 to 14, or NO_SCALE. */
static __always_inline __u8 window_scale(context_t *ctx, const struct packet *packet)
{
	__u32 start = (void *)packet->ip - (void *)packet->ethernet + packet->ip->ihl * 4;
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
