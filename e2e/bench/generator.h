/* Making the packets of a benchmark, one after the other, each in full.
 *
 * Flows come in the order counter × stride & mask: all of them, once each, and with a large odd
 * stride in no order a cache could guess. With `mixed`, every other packet opens a flow that never
 * was before. Each time a flow's turn comes its sender is one byte further: a load balancer that
 * follows sequence numbers has something to note, as of nearly all packets.
 *
 * A reply is a node's packet of the same flow, in the same order: flow i is at node i % nodes and
 * has that node's SNAT port i / nodes, as flows.c has entered it.
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
#define PORT_BITS 15
#define NEW_CLIENTS 0x20000000 /* 32.0.0.0 */
#define TCP_FLAGS 13
#define SYN 0x02

struct generator {
	__u32 counter;
	__u32 mask; /* flows - 1 */
	__u32 stride;
	__u32 first_client; /* host order */
	__u32 first_port;
	__u64 words[FRAME_WORDS];
	__u32 rest;
	__u32 mixed;
	__u32 header_sum; /* of the IP header, but for its source and its checksum */
	__u32 nodes;	  /* of a reply */
	__u32 first_node; /* host order */
	__u32 first_snat_port;
	__u32 turn_bits; /* of the counter, down to the number of its turn */
};

GALE_MAP("array", int, struct generator, generators, 1, 0);

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

/* Writes the frame as the generator has it; -1 unless it is FRAME_BYTES long. */
static __always_inline int write_frame(void *data, void *end, const struct generator *generator)
{
	__u64 *words = data;

	if (data + FRAME_BYTES > end)
		return -1;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		words[i] = generator->words[i];
	*(__u32 *)(words + FRAME_WORDS) = generator->rest;
	return 0;
}

static __always_inline void write_source(struct headers *headers, const struct generator *generator,
					 __u32 address)
{
	headers->ip.saddr = bpf_htonl(address);
	headers->ip.check = ~fold(generator->header_sum + (headers->ip.saddr >> 16) +
				  (headers->ip.saddr & 0xffff));
}

static __always_inline __be32 sequence(const struct generator *generator, __u32 counter)
{
	return bpf_htonl(1 + ((__u64)counter >> (generator->turn_bits & 63)));
}

static __always_inline int make_packet(void *data, void *end, struct generator *generator)
{
	struct headers *headers = data;
	__u32 counter = generator->counter++, client = generator->first_client;
	__u32 flow = counter * generator->stride & generator->mask;

	if (write_frame(data, end, generator))
		return -1;
	if (generator->mixed && (counter & 1)) {
		client = NEW_CLIENTS;
		flow = counter * generator->stride;
		((__u8 *)&headers->tcp)[TCP_FLAGS] = SYN;
	}
	write_source(headers, generator, client + (flow >> PORT_BITS));
	headers->tcp.seq = sequence(generator, counter);
	headers->tcp.source = bpf_htons(generator->first_port + (flow & ((1 << PORT_BITS) - 1)));
	return 0;
}

static __always_inline int make_reply(void *data, void *end, struct generator *generator)
{
	struct headers *headers = data;
	__u32 counter = generator->counter++, nodes = generator->nodes;
	__u32 flow = counter * generator->stride & generator->mask;

	if (!nodes || write_frame(data, end, generator))
		return -1;
	write_source(headers, generator, generator->first_node + flow % nodes);
	headers->tcp.seq = sequence(generator, counter);
	headers->tcp.dest = bpf_htons(generator->first_snat_port + flow / nodes);
	return 0;
}

#endif
