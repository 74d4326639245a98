"""The flow table as user space sees it: read through mmap, block by block, never written.

The maps `flows` and `old_flows` are arrays of buckets in the kernel's memory. Reading them costs no
system call for an entry, and disturbs no program. A block of buckets is mapped for as long as it is
read: the whole table would count as this process's resident memory.

**Torn records.** Programs write while we read. A record's version is odd while its key is being
written, and differs afterwards; so a record is good if its version was even and the same before
and after it was copied. Those that are not are copied again, and after some tries left out: a
record that is written for so long is being given away, again and again, to flows of this moment.

**Two tables.** While a table of another size is chained behind the new one, a flow may move from
the old to the new. So the old one is read first: what moves meanwhile is met twice, never missed.

A block of 1,024 buckets takes about a millisecond. Free places cost next to nothing but the memory
access: only what is alive is copied.
"""

from __future__ import annotations

import mmap
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.clock import ticks
from services.dataplane.flows.record import Records, is_living, take, where

BLOCK_BUCKETS = 1024
TRIES = 8

Places = NDArray[np.intp]
"""Which records of a table: bucket * ways + way."""


@dataclass(frozen=True, slots=True, eq=False)
class Block:
    """The living records of some neighbouring buckets, as they were at tick `now`."""

    table: FlowTable
    places: Places
    records: Records
    now: int


class FlowTable:
    """One array map of buckets; `fd` is borrowed."""

    def __init__(self, fd: int, bucket: np.dtype[Any], buckets: int) -> None:
        self._fd = fd
        self._bucket = bucket
        flow, ways = bucket["flow"].subdtype or (bucket["flow"], (1,))
        self._flow: np.dtype[Any] = flow
        self._ways: int = ways[0]
        self._buckets = buckets

    @property
    def places(self) -> int:
        """How many records it has room for."""
        return self._buckets * self._ways

    def blocks(self) -> Iterator[Block]:
        """All that lives, in the order of places. Each step reads memory for a millisecond."""
        for first in range(0, self._buckets, BLOCK_BUCKETS):
            yield self._read(first, min(BLOCK_BUCKETS, self._buckets - first))

    @property
    def buckets(self) -> int:
        return self._buckets

    def mapped(self) -> Records:
        """All records, in the kernel's memory: this process's resident memory while it is held."""
        return self._window(0, self._buckets)

    def block(self, first: int, count: int) -> Block:
        """All that lives in these buckets."""
        return self._read(first, min(count, self._buckets - first))

    def _read(self, first: int, count: int) -> Block:
        window = self._window(first, count)
        now = ticks(time.monotonic_ns())
        places, records = whole(window, np.flatnonzero(is_living(window, now)))
        # A place may have changed hands between the two looks.
        living = is_living(records, now)
        return Block(self, places[living] + first * self._ways, where(records, living), now)

    def _window(self, first: int, count: int) -> Records:
        """Buckets in the kernel's memory; unmapped when the last array over it is gone."""
        size = self._bucket.itemsize
        begin = first * size
        skipped = begin % mmap.PAGESIZE
        memory = mmap.mmap(
            self._fd,
            skipped + count * size,
            flags=mmap.MAP_SHARED,
            prot=mmap.PROT_READ,
            offset=begin - skipped,
        )
        return np.frombuffer(memory, self._flow, count * self._ways, skipped)


def whole(window: Records, places: Places) -> tuple[Places, Records]:
    """Copies of the records at these places, but for those that stay torn; see above."""
    versions = window["key"]["version"]
    whole_places: Places = np.flatnonzero([])
    parts: list[bytes] = []
    for _ in range(TRIES):
        before = versions[places]
        records = take(window, places)
        is_good = (before & 1 == 0) & (before == records["key"]["version"])
        is_good &= before == versions[places]
        if is_good.all() and not parts:
            return places, records
        whole_places = np.concatenate([whole_places, places[is_good]])
        parts.append(where(records, is_good).tobytes())
        places = places[~is_good]
        if not len(places):
            break
    return whole_places, np.frombuffer(b"".join(parts), window.dtype)


class TablePair:
    """The table, and before it the one that is chained behind it."""

    def __init__(self, flows: FlowTable, old_flows: FlowTable) -> None:
        self.flows = flows
        self.old_flows = old_flows

    def blocks(self) -> Iterator[Block]:
        """One pass over both."""
        tables: Sequence[FlowTable] = (self.old_flows, self.flows)
        for table in tables:
            yield from table.blocks()
