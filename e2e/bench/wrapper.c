/* What stands before the program under test in the benchmark of a packet's cost.
 *
 * BPF_PROG_TEST_RUN gives every repetition the packet as the one before has left it. So each begins
 * by undoing that: the headroom that an encapsulation took is given back, the bytes are
 * written anew, with the addresses and ports of the flow whose turn it is. Flows come in the order
 * counter × odd & mask: all of them, once each, in no order a cache could guess.
 *
 * The cost of a program is then that of wrapper and program less that of wrapper and `floor_tx`.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "map_macros.h"

#define FRAME_BYTES 60
#define FRAME_WORDS 7 /* of 8 bytes; 4 bytes follow */
#define ODD 2654435761U

struct generator {
	__u32 counter;
	__u32 mask;         /* flows - 1 */
	__u32 first_client; /* host order */
	__u32 first_port;
	__u64 words[FRAME_WORDS];
	__u32 rest;
	__u32 padding;
};

GALE_MAP("array", int, struct generator, generators, 1, 0);
BPF_PROG_ARRAY(under_test, 1);

struct headers {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

int bench_wrapper(struct xdp_md *ctx)
{
	int zero = 0, grown = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;
	struct generator *generator = generators.lookup(&zero);
	struct headers *headers;
	__u64 *words;
	__u32 flow;

	if (!generator || (grown && bpf_xdp_adjust_head(ctx, grown)))
		return XDP_ABORTED;
	headers = (void *)(long)ctx->data;
	words = (void *)headers;
	if ((void *)words + FRAME_BYTES > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
#pragma unroll
	for (int i = 0; i < FRAME_WORDS; i++)
		words[i] = generator->words[i];
	*(__u32 *)(words + FRAME_WORDS) = generator->rest;
	flow = generator->counter++ * ODD & generator->mask;
	headers->ip.saddr = bpf_htonl(generator->first_client + (flow >> 14));
	headers->tcp.source = bpf_htons(generator->first_port + (flow & 0x3fff));
	under_test.call(ctx, 0);
	return XDP_ABORTED;
}

int bench_floor(struct xdp_md *ctx)
{
	return XDP_TX;
}
