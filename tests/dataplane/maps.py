"""The real maps, without the programs: for tests of what user space reads and writes there."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

from bpf.loader import LoadedObject, compile_program
from tests.bpf.harness import IMAGES, clear_map, source_file

SOURCE = """
#include <linux/bpf.h>
#include "maps.h"

int touch(struct xdp_md *ctx)
{
	struct service_key key = {};
	int zero = 0;
	u32 address = 0;

	settings.lookup(&zero);
	services.lookup(&zero);
	ring.lookup(&zero);
	seats.lookup(&zero);
	seat_counters.lookup(&zero);
	verdicts.lookup(&zero);
	port_cursors.lookup(&zero);
	addresses.lookup(&address);
	endpoints.lookup(&key);
	flows.lookup(&zero);
	old_flows.lookup(&zero);
	return XDP_PASS;
}
"""
SIZES = {"FLOW_BUCKETS": 2048, "OLD_FLOW_BUCKETS": 1024}


@cache
def _compiled(defines: tuple[tuple[str, int], ...]) -> LoadedObject:
    return compile_program(str(source_file(SOURCE)), defines=dict(defines), cache_dir=IMAGES)


@contextmanager
def maps(**defines: int) -> Iterator[LoadedObject]:
    """All of them, empty; made once per process and set of `defines`."""
    loaded = _compiled(tuple(sorted({**SIZES, **defines}.items())))
    for table in loaded.bpf.values():
        clear_map(table.map_fd)
    yield loaded
