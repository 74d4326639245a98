/* All maps, shared by every program and by user space, and pinned by it below `maps/`.
 *
 * Sizes come from the configuration as -D; a size that differs from a pin's is migrated or refused
 * by name before any program is loaded (pins.py).
 */
#ifndef GALE_MAPS_H
#define GALE_MAPS_H

#include "map_macros.h"
#include "types.h"
#include "reasons.h"

#ifndef CONNTRACK_ENTRIES
#define CONNTRACK_ENTRIES 524288
#endif
#ifndef HALF_OPEN_ENTRIES
#define HALF_OPEN_ENTRIES 131072
#endif

GALE_MAP("array", int, struct settings, settings, 1, 0);
GALE_MAP("array", int, struct service, services, SERVICE_PLACES, 0);
GALE_MAP("array", int, struct ring_entry, ring, MAX_SERVICES *RING_ENTRIES, 0);
GALE_MAP("array", int, struct seat, seats, MAX_SEATS, 0);

/* Established flows and half-open ones lie apart, so that a flood of SYNs evicts only its like. */
GALE_MAP("lru_hash", struct flow_key, struct flow, est, CONNTRACK_ENTRIES, 0);
GALE_MAP("lru_hash", struct flow_key, struct flow, half, HALF_OPEN_ENTRIES, 0);

/* Guards on the rate of new flows: on all, and on each source. */
GALE_MAP("array", int, struct rate, flow_rate, 1, 0);
GALE_MAP("lru_hash", u32, struct rate, sources, 65536, 0);

GALE_MAP("lru_hash", struct fragment_key, struct fragment, fragments, 8192, 0);

GALE_MAP("percpu_array", int, struct seat_counters, seat_counters, MAX_SEATS, 0);
GALE_MAP("percpu_array", int, u64, verdicts, HOOK_COUNT * 64, 0);

_Static_assert(REASON_COUNT <= 64, "a hook has room for 64 reasons");

#endif
