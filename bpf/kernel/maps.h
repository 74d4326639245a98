/* SPDX-License-Identifier: GPL-2.0 */
/* All maps, shared by every program and by user space, and pinned by it below `maps/`.
 *
 * Sizes come from the configuration as -D. A table of flows of another size is chained behind the
 * new one until it is empty (pins.py); any other difference is refused by name before a program
 * is loaded.
 */
#ifndef GALE_MAPS_H
#define GALE_MAPS_H

#include "map_macros.h"
#include "types.h"
#include "reasons.h"

/* FLOW_BUCKETS and OLD_FLOW_BUCKETS come with every compilation (bpf/compiler.py). User space gives
 * a flow table twice the places that flows may take: a bucket is then full once in a hundred when
 * half of all places are taken.
 */
#ifndef HALF_OPEN_WAYS
#define HALF_OPEN_WAYS 4 /* of a bucket's: the share of half-open flows and one-answer UDP */
#endif
#define FLOW_LOCKS 4096
#ifndef NOTE_PAGES
#define NOTE_PAGES 1024 /* of notes, 16 bytes each there: 5 s at 50,000 a second */
#endif

GALE_MAP("array", int, struct settings, settings, 1, 0);
GALE_MAP("array", int, struct service, services, SERVICE_PLACES, 0);

/* Made with as many entries as the rings take that the services may need (programs.py). */
GALE_MAP("array", int, struct ring_entry, ring, 1, 0);
GALE_MAP("array", int, struct seat, seats, MAX_SEATS, 0);
GALE_MAP("array", int, struct port_cursor, port_cursors, MAX_SEATS, 0);
GALE_MAP("hash", u32, struct address_info, addresses, 4096, 0);

/* Floating addresses, and until when this LB may answer for them. Written by services/quorum alone,
 * and by nobody for it: whoever else extended a claim would speak for a process that may be dead.
 */
GALE_MAP("hash", struct floating_key, struct vip_claim, claims, 4096, 0);
GALE_MAP("lru_hash", struct floating_key, struct rival, rivals, 1024, 0);

/* Nodes' addresses and ports: what comes from one of them to an SNAT port is an answer, to
 * somebody.
 */
GALE_MAP("hash", struct service_key, u32, endpoints, MAX_ENDPOINTS, BPF_F_NO_PREALLOC);

/* The flow table, and the one before it after a change of size. Both are mapped into user space's
 * memory, which reads them and writes nothing. Made with FLOW_BUCKETS and OLD_FLOW_BUCKETS entries.
 */
GALE_MAP("array", int, struct flow_bucket, flows, 1, BPF_F_MMAPABLE);
GALE_MAP("array", int, struct flow_bucket, old_flows, 1, BPF_F_MMAPABLE);
GALE_MAP("array", int, struct flow_lock, flow_locks, FLOW_LOCKS, 0);

/* Where a new flow is put together: the stack has no room for it, and what has been through a map
 * the verifier does not follow through every branch that may have made it.
 */
GALE_MAP("percpu_array", int, struct draft, drafts, 1, 0);

/* The time in ticks and the jiffies at which it was asked for, as one word. */
GALE_MAP("array", int, u64, clocks, 1, 0);

/* Guards: on all new flows, on each source's, and on the answers that strangers provoke. */
GALE_MAP("array", int, struct rate, flow_rate, 1, 0);
GALE_MAP("array", int, struct rate, answer_rate, 1, 0);
GALE_MAP("lru_hash", u32, struct rate, sources, 65536, 0);

GALE_MAP("lru_hash", struct fragment_key, struct fragment, fragments, 8192, 0);
GALE_MAP("array", int, u64, fragment_ids, 1, 0);

/* By the key of the client's packets; none of those that carry no tag. */
GALE_MAP("lru_hash", struct flow_key, struct vlan_client, vlan_clients, 16384, 0);

/* What becomes of flows (notes.h): one word of eight bytes each, and how many found no room. */
BPF_RINGBUF_OUTPUT(notes, NOTE_PAGES);
GALE_MAP("percpu_array", int, u64, lost_notes, 1, 0);

GALE_MAP("percpu_array", int, struct seat_counters, seat_counters, MAX_SEATS, 0);
GALE_MAP("percpu_array", int, u64, verdicts, HOOK_COUNT * 64, 0);

_Static_assert(REASON_COUNT <= 64, "a hook has room for 64 reasons");

#endif
