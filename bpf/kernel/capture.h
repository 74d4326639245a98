/* SPDX-License-Identifier: GPL-2.0 */
/* Showing packets to user space as they come into a program and as they leave it, with the reason.
 *
 * GALE_CAPTURE is the same source compiled with this in it; its programs take the place of the
 * ordinary ones, over the same maps, for as long as somebody captures (bpf/capture.py). Without
 * GALE_CAPTURE nothing of it is there, so what is not captured costs nothing.
 *
 * The first bytes of the packet are kept when it comes. When it leaves, its reason is known and
 * what it has become: then both forms go to user space in one record, if the filter wants them.
 * Each term of the filter must fit the packet as it came or as it leaves: so a client's address
 * finds its requests, and the nodes' replies, which bear it only once they are rewritten.
 *
 * The clock in `until_ns` ends it, even if nobody is left who would put the ordinary programs back.
 */
#ifndef GALE_CAPTURE_H
#define GALE_CAPTURE_H

#include "maps.h"
#include "ctx.h"

#ifndef GALE_CAPTURE
static __always_inline void show_entry(context_t *ctx, enum hook hook)
{
}

static __always_inline int show_exit(context_t *ctx, enum reason reason, int verdict)
{
	return verdict;
}
#else
#define MOST_KEPT 8192 /* bytes of a packet; a power of two */
#define CAPTURE_TERMS 8
#define CAPTURE_PAGES 4096 /* 16 MiB of records */

enum capture_part { PART_NONE, PART_ETHERTYPE, PART_PROTOCOL, PART_ADDRESS, PART_PORT };
enum capture_side { SIDE_SOURCE = 1, SIDE_DESTINATION = 2 };

/* What one word of the filter asks for; PART_NONE ends them. */
struct capture_term {
	__be32 address;
	__be32 mask;
	__be16 number; /* the port, or the Ethernet type */
	__u8 protocol;
	__u8 part;
	__u8 sides;
	__u8 padding[3];
};

struct capture_setup {
	__u64 until_ns; /* of the monotonic clock; 0: never begun */
	__u64 reasons;	/* a bit for each that is wanted */
	__u32 hooks;	/* likewise */
	__u32 kept;	/* so many bytes of each packet, at most */
	struct capture_term terms[CAPTURE_TERMS];
};

/* A packet on its way through one program. User space gets as much of it as is filled. */
struct passage {
	__u64 time_ns;
	__u32 entry_bytes; /* how long it was, and how long it is */
	__u32 exit_bytes;
	__u32 entry_kept; /* how many of them stand in `bytes`, one packet behind the other */
	__u32 exit_kept;  /* 0: it was dropped */
	__u32 ifindex;
	__u32 wanted; /* 0: nobody captures here */
	int verdict;
	__be16 entry_tag[2]; /* what lies beside the bytes: type and content; 0: nothing does */
	__be16 exit_tag[2];
	__u8 hook;
	__u8 reason;
	__u8 padding[10];
	__u8 bytes[2 * MOST_KEPT];
};

#define PASSAGE_HEAD __builtin_offsetof(struct passage, bytes)

/* What a filter may look at. */
struct view {
	__be32 saddr;
	__be32 daddr;
	__be16 sport;
	__be16 dport;
	__be16 ethertype;
	__u8 protocol;
	__u8 padding;
};

_Static_assert(REASON_COUNT <= 64, "each reason has a bit of capture_setup.reasons");

GALE_MAP("array", int, struct capture_setup, capture_setup, 1, 0);
GALE_MAP("percpu_array", int, struct passage, passing, 1, 0);
GALE_MAP("percpu_array", int, u64, capture_lost, 1, 0);
BPF_RINGBUF_OUTPUT(captured, CAPTURE_PAGES);

static __always_inline void read_tag(context_t *ctx, __be16 *tag)
{
#ifdef GALE_XDP
	tag[0] = tag[1] = 0;
#else
	tag[0] = ctx->vlan_present ? ctx->vlan_proto : 0;
	tag[1] = bpf_htons(ctx->vlan_tci);
#endif
}

/* Copies the packet's first bytes, 1 to MOST_KEPT of them; how many. */
static __always_inline __u32 keep(context_t *ctx, __u8 *bytes, __u32 most)
{
	__u32 kept = frame_bytes(ctx) < most ? frame_bytes(ctx) : most;

	kept = ((kept - 1) & (MOST_KEPT - 1)) + 1;
#ifdef GALE_XDP
	return bpf_xdp_load_bytes(ctx, 0, bytes, kept) ? 0 : kept;
#else
	return bpf_skb_load_bytes(ctx, 0, bytes, kept) ? 0 : kept;
#endif
}

static __always_inline void show_entry(context_t *ctx, enum hook hook)
{
	int zero = 0;
	struct passage *passage = passing.lookup(&zero);
	struct capture_setup *setup = capture_setup.lookup(&zero);

	if (!passage || !setup)
		return;
	passage->time_ns = bpf_ktime_get_ns();
	passage->wanted = setup->hooks >> hook & 1 && passage->time_ns < setup->until_ns;
	if (!passage->wanted)
		return;
	passage->hook = hook;
	passage->ifindex = arrived_on(ctx);
	passage->entry_bytes = frame_bytes(ctx);
	read_tag(ctx, passage->entry_tag);
	passage->entry_kept = keep(ctx, passage->bytes, setup->kept);
}

/* What stands in these bytes, behind up to two tags. A later fragment has no ports. */
static __always_inline void look(const __u8 *bytes, __u32 kept, struct view *view)
{
	const struct iphdr *ip;
	const __be16 *ports;
	__u32 at = ETH_HLEN;

	if (kept < ETH_HLEN)
		return;
	view->ethertype = *(__be16 *)(bytes + ETH_HLEN - 2);
#pragma clang loop unroll(full)
	for (int tag = 0; tag < 2; tag++) {
		if (view->ethertype != bpf_htons(ETH_P_8021Q) &&
		    view->ethertype != bpf_htons(ETH_P_8021AD))
			break;
		view->ethertype = *(__be16 *)(bytes + at + 2);
		at += sizeof(struct vlan_tag);
	}
	ip = (void *)(bytes + at);
	if (view->ethertype != bpf_htons(ETH_P_IP) || kept < at + sizeof(*ip))
		return;
	view->saddr = ip->saddr;
	view->daddr = ip->daddr;
	view->protocol = ip->protocol;
	at += ip->ihl * 4;
	ports = (void *)(bytes + at);
	if (ip->frag_off & bpf_htons(0x1fff) || kept < at + 4 ||
	    (view->protocol != IPPROTO_TCP && view->protocol != IPPROTO_UDP))
		return;
	view->sport = ports[0];
	view->dport = ports[1];
}

static __always_inline int fits(const struct capture_term *term, const struct view *view)
{
	int source = term->sides & SIDE_SOURCE, destination = term->sides & SIDE_DESTINATION;

	switch (term->part) {
	case PART_ETHERTYPE:
		return view->ethertype == term->number;
	case PART_PROTOCOL:
		return view->protocol == term->protocol;
	case PART_ADDRESS:
		return (source && view->saddr && (view->saddr & term->mask) == term->address) ||
		       (destination && view->daddr && (view->daddr & term->mask) == term->address);
	case PART_PORT:
		return (source && view->sport == term->number) ||
		       (destination && view->dport == term->number);
	}
	return 1;
}

static __always_inline int is_wanted(const struct capture_setup *setup, const struct view *entry,
				     const struct view *exit)
{
#pragma clang loop unroll(disable)
	for (int number = 0; number < CAPTURE_TERMS; number++) {
		const struct capture_term *term = &setup->terms[number];

		if (!term->part)
			break;
		if (!fits(term, entry) && !fits(term, exit))
			return 0;
	}
	return 1;
}

static __always_inline void hand_over(context_t *ctx, struct passage *passage,
				      const struct capture_setup *setup)
{
	__u32 entry_kept = ((passage->entry_kept - 1) & (MOST_KEPT - 1)) + 1;
	struct view entry = {}, exit = {};
	__u32 exit_kept = 0;
	u64 *lost;
	int zero = 0;

	if (passage->reason < REASON_drop_first) {
		exit_kept = keep(ctx, passage->bytes + entry_kept, setup->kept);
		look(passage->bytes + entry_kept, exit_kept, &exit);
	}
	look(passage->bytes, entry_kept, &entry);
	if (!is_wanted(setup, &entry, &exit))
		return;
	passage->exit_kept = exit_kept;
	passage->exit_bytes = frame_bytes(ctx);
	read_tag(ctx, passage->exit_tag);
	lost = capture_lost.lookup(&zero);
	if (captured.ringbuf_output(passage, PASSAGE_HEAD + entry_kept + exit_kept, 0) && lost)
		*lost += 1;
}

/* The verdict, through the map: so the verifier follows what comes after it once, and not for every
 * way through the program.
 */
static __always_inline int show_exit(context_t *ctx, enum reason reason, int verdict)
{
	int zero = 0;
	struct passage *passage = passing.lookup(&zero);
	struct capture_setup *setup = capture_setup.lookup(&zero);

	if (!passage || !setup || !passage->wanted)
		return verdict;
	passage->reason = reason;
	passage->verdict = verdict;
	if (passage->entry_kept && setup->reasons >> (reason & 63) & 1)
		hand_over(ctx, passage, setup);
	return passage->verdict;
}
#endif

#endif
