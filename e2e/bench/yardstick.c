/* Programs over the tables of the one under test, run in its place by wrapper.c.
 *
 * bench_refresh marks the flow whose turn it is as touched this instant, bench_age as touched long
 * ago, both in place: user space could only write whole entries anew, which an LRU table takes as
 * new ones, elsewhere in memory.
 *
 * bench_lookup is a yardstick: one look-up in the table of established flows and a read of what was
 * found. What a packet of an established flow costs above that is Gale's, what is below is
 * memory's.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "maps.h"

#define LONG_AGO 1000000 /* jiffies */

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

static __always_inline int read_key(struct xdp_md *ctx, struct flow_key *key)
{
	struct frame *frame = (void *)(long)ctx->data;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return -1;
	key->saddr = frame->ip.saddr;
	key->daddr = frame->ip.daddr;
	key->sport = frame->tcp.source;
	key->dport = frame->tcp.dest;
	key->protocol = IPPROTO_TCP;
	return 0;
}

static __always_inline int touch(struct xdp_md *ctx, __u32 jiffies)
{
	struct flow_key key = {};
	struct flow *flow;

	if (read_key(ctx, &key))
		return XDP_ABORTED;
	flow = est.lookup(&key);
	if (!flow)
		return XDP_DROP;
	flow->touched = jiffies;
	return XDP_TX;
}

int bench_refresh(struct xdp_md *ctx)
{
	return touch(ctx, bpf_jiffies64());
}

int bench_age(struct xdp_md *ctx)
{
	return touch(ctx, bpf_jiffies64() - LONG_AGO);
}

int bench_lookup(struct xdp_md *ctx)
{
	struct flow_key key = {};
	struct flow *flow;

	if (read_key(ctx, &key))
		return XDP_ABORTED;
	flow = est.lookup(&key);
	return flow && flow->state == FLOW_ESTABLISHED ? XDP_TX : XDP_DROP;
}
