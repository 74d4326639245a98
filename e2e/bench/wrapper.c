/* What stands before the program under test in the benchmark of a packet's cost.
 *
 * BPF_PROG_TEST_RUN gives every repetition the packet as the one before has left it. So each begins
 * by undoing that: the headroom that an encapsulation took is given back, and the bytes are
 * written anew. In TC, where a reply is only ever rewritten in place, the bytes are all.
 *
 * The cost of a program is then that of wrapper and program less that of wrapper and floor. Each
 * hook has its own of both: the kernel does more for a packet that is given to TC.
 */
#include <linux/pkt_cls.h>

#include "generator.h"

BPF_PROG_ARRAY(under_test_xdp, 1);
BPF_PROG_ARRAY(under_test_tc, 1);

int bench_wrap_xdp(struct xdp_md *ctx)
{
	int zero = 0, grown = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;
	struct generator *generator = generators.lookup(&zero);

	if (!generator || (grown && bpf_xdp_adjust_head(ctx, grown)))
		return XDP_ABORTED;
	if (make_packet((void *)(long)ctx->data, (void *)(long)ctx->data_end, generator))
		return XDP_ABORTED;
	under_test_xdp.call(ctx, 0);
	return XDP_ABORTED;
}

int bench_floor_xdp(struct xdp_md *ctx)
{
	return XDP_TX;
}

int bench_wrap_tc(struct __sk_buff *ctx)
{
	int zero = 0;
	struct generator *generator = generators.lookup(&zero);

	if (!generator)
		return TC_ACT_SHOT;
	if (make_reply((void *)(long)ctx->data, (void *)(long)ctx->data_end, generator))
		return TC_ACT_SHOT;
	under_test_tc.call(ctx, 0);
	return TC_ACT_SHOT;
}

int bench_floor_tc(struct __sk_buff *ctx)
{
	return TC_ACT_SHOT;
}
