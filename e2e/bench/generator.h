/* Making the packets of a benchmark, one after the other, each in full.
 *
 * Flows come in the order counter × odd & mask: all of them, once each, in no order a cache
 * could guess. With `mixed`, every other packet opens a flow that never was before.
 */
#ifndef GALE_BENCH_GENERATOR_H
#define GALE_BENCH_GENERATOR_H

#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "map_macros.h"
#include "checksum.h"

#define FRAME_BYTES 60
#define FRAME_WORDS 7 /* of 8 bytes; 4 bytes follow */
#define ODD 2654435761U
#define PORT_BITS 15
#define NEW_CLIENTS 0x20000000 /* 32.0.0.0 */
#define TCP_FLAGS 13
#define SYN 0x02

struct generator {
	__u32 counter;
	__u32 mask;	    /* flows - 1 */
	__u32 first_client; /* host order */
	__u32 first_port;
	__u64 words[FRAME_WORDS];
	__u32 rest;
	__u32 mixed;
	__u32 header_sum; /* of the IP header, but for its source and its checksum */
	__u32 padding;
};

GALE_MAP("array", int, struct generator, generators, 1, 0);

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

/* The frame must be FRAME_BYTES long. */
static __always_inline int make_packet(struct xdp_md *ctx, struct generator *generator)
{
	struct headers *headers = (void *)(long)ctx->data;
	__u64 *words = (void *)headers;
	__u32 counter = generator->counter++, client = generator->first_client;
	__u32 flow = counter * ODD & generator->mask;

	if ((void *)words + FRAME_BYTES > (void *)(long)ctx->data_end)
		return -1;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		words[i] = generator->words[i];
	*(__u32 *)(words + FRAME_WORDS) = generator->rest;
	if (generator->mixed && (counter & 1)) {
		client = NEW_CLIENTS;
		flow = counter * ODD;
		((__u8 *)&headers->tcp)[TCP_FLAGS] = SYN;
	}
	headers->ip.saddr = bpf_htonl(client + (flow >> PORT_BITS));
	headers->ip.check = ~fold(generator->header_sum + (headers->ip.saddr >> 16) +
				  (headers->ip.saddr & 0xffff));
	headers->tcp.source = bpf_htons(generator->first_port + (flow & ((1 << PORT_BITS) - 1)));
	return 0;
}

#endif
