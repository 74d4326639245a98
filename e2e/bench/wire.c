/* The programs at both ends of the wire in the benchmark of packets per second.
 *
 * bench_generate is run by the kernel on live frames, which leave the interface they are said to
 * have come in by. bench_sink counts what arrives and drops it. bench_redirect is what every load
 * balancer in XDP is measured against: the verb alone.
 */
#include <linux/in.h>

#include "generator.h"

struct arrivals {
	__u64 packets;
	__u64 syns;
};

struct way {
	__u32 ifindex;
	__u32 padding;
};

GALE_MAP("percpu_array", int, struct arrivals, arrivals, 1, 0);
GALE_MAP("array", int, struct way, ways, 1, 0);

int bench_generate(struct xdp_md *ctx)
{
	int zero = 0;
	struct generator *generator = generators.lookup(&zero);

	if (!generator ||
	    make_packet((void *)(long)ctx->data, (void *)(long)ctx->data_end, generator))
		return XDP_DROP;
	return XDP_TX;
}

int bench_redirect(struct xdp_md *ctx)
{
	int zero = 0;
	struct way *way = ways.lookup(&zero);

	return way ? bpf_redirect(way->ifindex, 0) : XDP_DROP;
}

int bench_pass(struct xdp_md *ctx)
{
	return XDP_PASS;
}

int bench_sink(struct xdp_md *ctx)
{
	struct headers *headers = (void *)(long)ctx->data;
	int zero = 0;
	struct arrivals *seen = arrivals.lookup(&zero);

	if (!seen || (void *)(headers + 1) > (void *)(long)ctx->data_end)
		return XDP_DROP;
	seen->packets++;
	if (headers->ip.protocol == IPPROTO_TCP && ((__u8 *)&headers->tcp)[TCP_FLAGS] & SYN)
		seen->syns++;
	return XDP_DROP;
}
