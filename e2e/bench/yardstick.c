/* The yardstick of a packet's cost: one look-up in a table of the kernel's own.
 *
 * What a flow costs among a million is memory's doing first, and memory differs from machine to
 * machine and from hour to hour. So it is told in look-ups: an LRU hash map with a key of 16 bytes
 * and a value of 64, as a load balancer that leaves its flows to the kernel would have it, filled
 * to two thirds with both directions of a million flows, which are asked for in random order.
 *
 * The map is this benchmark's alone, whatever the programs under test keep their flows in: figures
 * of different years stay comparable.
 */
#include <linux/bpf.h>
#include <linux/if_ether.h>
#include <linux/in.h>
#include <linux/ip.h>
#include <linux/tcp.h>

#include "map_macros.h"

#define YARDSTICK_ENTRIES 3145728
#define IN_USE 1

struct yardstick_key {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__u8 protocol;
	__u8 direction;
	__u16 padding;
};

struct yardstick_value {
	__u32 state;
	__u32 rest[15];
};

GALE_MAP("lru_hash", struct yardstick_key, struct yardstick_value, yardstick, YARDSTICK_ENTRIES, 0);

_Static_assert(sizeof(struct yardstick_key) == 16, "a key is 16 bytes");
_Static_assert(sizeof(struct yardstick_value) == 64, "a value is one cache line");

struct frame {
	struct ethhdr ethernet;
	struct iphdr ip;
	struct tcphdr tcp;
} __attribute__((packed));

int bench_lookup(struct xdp_md *ctx)
{
	struct frame *frame = (void *)(long)ctx->data;
	struct yardstick_key key = { .protocol = IPPROTO_TCP };
	struct yardstick_value *value;

	if ((void *)(frame + 1) > (void *)(long)ctx->data_end)
		return XDP_ABORTED;
	key.saddr = frame->ip.saddr;
	key.daddr = frame->ip.daddr;
	key.sport = frame->tcp.source;
	key.dport = frame->tcp.dest;
	value = yardstick.lookup(&key);
	return value && value->state == IN_USE ? XDP_TX : XDP_DROP;
}
