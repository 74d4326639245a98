"""The flow table as replication needs it: what has become of flows, parts of the table, entering.

What is told is read from the mapped table when it is due. The whole table is mapped only while
there is something to tell, since it counts as this process's memory, and given back after a moment
without. The ring of notes is drained every `READ_MS` while there are notes; when none are held, its
fd wakes the loop.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from bpf.clock import ticks
from bpf.loader import LoadedObject
from bpf.ring import WordRing
from bpf.syscall import map_shape, read_entries
from bus.replica_protocol import NO_POSITION
from services.dataplane.entering import Entering
from services.dataplane.flows.held import Due, Held
from services.dataplane.flows.pairs import pairs_at, select
from services.dataplane.flows.record import REQUEST, FlowState, Records, ticks_left, where
from services.dataplane.flows.records import (
    CLOSED,
    LIVING,
    WIRE,
    SeatIndex,
    Wire,
    from_wire,
    ranges_of,
    to_wire,
)
from services.dataplane.flows.table import FlowTable, TablePair
from services.dataplane.maps import Seat
from services.dataplane.words import address_word

READ_MS = 10
PART_BUCKETS = 256
"""A part of a table half full is about a thousand flows."""
REST_MS = 1_000
SEATS = 1 << 16
COMPARED = (FlowState.TCP_ESTABLISHED, FlowState.TCP_CLOSING, FlowState.UDP_ESTABLISHED)


class Flows:
    """Over the maps of one attachment of the programs."""

    def __init__(
        self,
        objects: LoadedObject,
        tables: TablePair,
        entering: Entering,
        timeouts: Sequence[int],
    ) -> None:
        """`timeouts`: ticks by state."""
        fd = objects.rings["notes"]
        self.entering = entering
        self.timeouts = timeouts
        self._tables = tables
        self._ring = WordRing(fd, map_shape(fd)[3])
        self._lost_fd = objects.bpf[b"lost_notes"].map_fd
        self._lost = self.lost()
        self._held = Held()
        self._read_ms = 0
        self._windows: dict[bool, Records] = {}
        self._used_ms = 0
        self._identities = np.zeros(SEATS, np.uint64)
        self._index = SeatIndex.of({})

    @property
    def tick(self) -> int:
        """This machine's clock, as the table has it."""
        return ticks(time.monotonic_ns())

    def name_seats(self, seats: Mapping[int, Seat]) -> None:
        self._identities = np.zeros(SEATS, np.uint64)
        for number, seat in seats.items():
            self._identities[number] = seat.identity
        known = {n: (seat.identity, address_word(seat.address)) for n, seat in seats.items()}
        self._index = SeatIndex.of(known)

    # ------------------------------------------------------------------ what has become of flows

    @property
    def ring_fd(self) -> int | None:
        """Readable when the first note has come; None while the ring is read by the clock."""
        return self._ring.fd if self._held.next_ms is None else None

    def lost(self) -> int:
        """Notes that found no room, ever."""
        return sum(
            int(np.frombuffer(raw, np.uint64).sum()) for _, raw in read_entries(self._lost_fd)
        )

    def take_lost(self) -> int:
        """Since this was asked last."""
        before, self._lost = self._lost, self.lost()
        return self._lost - before

    def due(self, now_ms: int) -> Due | None:
        if now_ms >= self._read_ms:
            self._held.add(self._ring.take(), now_ms)
            self._read_ms = now_ms + READ_MS if self._held.next_ms is not None else now_ms
        return self._held.take(now_ms)

    def next_ms(self, now_ms: int) -> int:
        """When the ring is to be read, or something is due."""
        due_ms = self._held.next_ms
        return now_ms + REST_MS if due_ms is None else min(due_ms, self._read_ms)

    def records_of(self, due: Due) -> Wire:
        """What these flows are by now, where that is what was noted of them."""
        parts = [np.zeros(0, WIRE)]
        for is_old in (True, False):
            chosen = due.is_old == is_old
            if chosen.any():
                parts.append(self._told(is_old, due.places[chosen], due.closes[chosen]))
        return np.concatenate(parts)

    def _told(self, is_old: bool, places: NDArray[np.intp], closes: NDArray[np.bool_]) -> Wire:
        requests, replies, good = pairs_at(self._window(is_old), places)
        now = self.tick
        states = requests["state"]
        ended = np.isin(states, (*CLOSED, FlowState.FREE))
        living = np.isin(states, LIVING) & (ticks_left(requests, now) > 0)
        good &= np.where(closes, ended, living)
        return self._wire(*select(requests, replies, good), now)

    def _wire(self, requests: Records, replies: Records, now: int) -> Wire:
        return to_wire(requests, replies, now, self._identities, self.timeouts)

    def _window(self, is_old: bool) -> Records:
        window = self._windows.get(is_old)
        if window is None:
            table = self._tables.old_flows if is_old else self._tables.flows
            window = self._windows[is_old] = table.mapped()
        self._used_ms = 0
        return window

    def rest(self, now_ms: int, *, is_busy: bool) -> None:
        """Gives the memory back when nothing has been told for a moment."""
        if is_busy or self._used_ms == 0:
            self._used_ms = now_ms
        elif self._windows and now_ms >= self._used_ms + REST_MS:
            self._windows.clear()

    # ------------------------------------------------------------------ the table as a whole

    def part(self, position: int, differs: NDArray[np.bool_] | None = None) -> tuple[Wire, int]:
        """The flows of the part at `position`, and where the next one is.

        `differs`: only those of ranges for which it is true.
        """
        table, first, is_old = self._part_at(position)
        block = table.block(first, PART_BUCKETS)
        is_wanted = block.records["key"]["direction"] == REQUEST
        is_wanted &= np.isin(block.records["state"], LIVING)
        requests, replies, good = pairs_at(self._window(is_old), block.places[is_wanted])
        good &= np.isin(requests["state"], LIVING)
        if differs is not None:
            good &= differs[ranges_of(requests)]
        following = position + 1 if position + 1 < self._parts else NO_POSITION
        return self._wire(*select(requests, replies, good), block.now), following

    @property
    def _old_parts(self) -> int:
        buckets = self._tables.old_flows.buckets
        return -(-buckets // PART_BUCKETS) if buckets > 1 else 0

    @property
    def _parts(self) -> int:
        return self._old_parts + -(-self._tables.flows.buckets // PART_BUCKETS)

    def _part_at(self, position: int) -> tuple[FlowTable, int, bool]:
        """The table before this one comes first: flows move from there to here, never back."""
        old = self._old_parts
        if position < old:
            return self._tables.old_flows, position * PART_BUCKETS, True
        position = min(position, self._parts - 1)
        return self._tables.flows, (position - old) * PART_BUCKETS, False

    def requests_begun_before(self, tick: int) -> Iterator[Records]:
        """Of all flows that both sides have been heard in."""
        for block in self._tables.blocks():
            records = block.records
            chosen = records["key"]["direction"] == REQUEST
            chosen &= np.isin(records["state"], COMPARED)
            chosen &= (np.uint32(tick) - records["begin"]).view(np.int32) >= 0
            yield where(records, chosen)

    # ------------------------------------------------------------------ entering

    def enter(self, wire: Wire, begun: int) -> dict[str, int]:
        """Records made at our tick `begun`: how many had which outcome."""
        entries, refused = from_wire(
            wire, self.tick, begun, self._index, self.timeouts, self.entering.record
        )
        return {**refused, **self.entering.enter(entries)}

    def close(self) -> None:
        self._windows.clear()
        self._ring.close()
        self.entering.close()
