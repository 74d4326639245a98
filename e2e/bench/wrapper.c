/* What stands before the program under test in the benchmark of a packet's cost.
 *
 * BPF_PROG_TEST_RUN gives every repetition the packet as the one before has left it. So each begins
 * by undoing that: the headroom that an encapsulation took is given back, and the bytes are
 * written anew.
 *
 * The cost of a program is then that of wrapper and program less that of wrapper and `bench_floor`.
 */
#include "generator.h"

BPF_PROG_ARRAY(under_test, 1);

int bench_wrapper(struct xdp_md *ctx)
{
	int zero = 0, grown = (int)(ctx->data_end - ctx->data) - FRAME_BYTES;
	struct generator *generator = generators.lookup(&zero);

	if (!generator || (grown && bpf_xdp_adjust_head(ctx, grown)))
		return XDP_ABORTED;
	if (make_packet(ctx, generator))
		return XDP_ABORTED;
	under_test.call(ctx, 0);
	return XDP_ABORTED;
}

int bench_floor(struct xdp_md *ctx)
{
	return XDP_TX;
}
