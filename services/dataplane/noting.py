"""Reads the programs' notes, for all who want to know what becomes of flows.

In: the ring of notes, over the maps that are attached at the moment. Out: the flows as they stand
in the table when their notes are due, to replication and to the NAT log, whichever there is.

One reader: what is taken from the ring is gone. While notes are held the ring is read by the clock,
since its fd would wake the loop for each of them; when none are held, the fd wakes it.

**Failure.** Notes that found no room are counted by the programs, and both readers are told.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

from services.dataplane.flows.listing import Seated
from services.dataplane.flows.told import Flows
from services.dataplane.maps import Seat
from services.dataplane.nat_log import NatLog
from services.dataplane.replication import Replication
from services.process import Loop

LOSS_PAUSE_MS = 5_000
"""Between two looks for lost notes: each makes replication tell all flows anew."""
REST_MS = 1_000


class Noting:
    """Of a process that replicates, keeps a NAT log, or both."""

    def __init__(
        self, loop: Loop, replication: Replication | None, nat_log: NatLog | None, now_ms: int
    ) -> None:
        self._loop = loop
        self._replication, self._nat_log = replication, nat_log
        self._flows: Flows | None = None
        self._ring: int | None = None
        self._lost_ms = now_ms - LOSS_PAUSE_MS

    def attached(self, flows: Flows) -> None:
        """Programs are attached, over these maps; until then, nothing is told or entered."""
        if self._replication is not None:
            self._replication.attached(flows)
        self._flows = flows
        self._watch_ring(None)

    def detached(self) -> None:
        """What was handed over is about to be closed."""
        if self._replication is not None:
            self._replication.detached()
        self._flows = None
        self._watch_ring(None)

    def name(self, seats: Mapping[int, Seat], names: Mapping[int, Seated]) -> None:
        """The seats of the plan, and whose they are: elsewhere nodes are known by identities."""
        if self._flows is not None:
            self._flows.name_seats(seats)
        if self._nat_log is not None:
            # A seat may have been known that the maps attached now do not have.
            named = {seats[n].identity: name for n, name in names.items() if n in seats}
            self._nat_log.name(named)

    def turn(self, now_ms: int) -> None:
        """Some milliseconds of work."""
        flows = self._flows
        if flows is None:
            return
        self._read(flows, now_ms)
        if self._nat_log is not None:
            self._nat_log.turn(now_ms)
        is_busy = False
        if self._replication is not None:
            self._replication.turn(now_ms)
            is_busy = self._replication.is_busy
        flows.rest(now_ms, is_busy=is_busy)
        self._watch_ring(flows.ring_fd)

    def next_ms(self, now_ms: int) -> int:
        if self._flows is None:
            return now_ms + REST_MS
        moments = [self._flows.next_ms(now_ms)]
        if self._replication is not None:
            moments.append(self._replication.next_ms(now_ms))
        if self._nat_log is not None and (due_ms := self._nat_log.next_ms(now_ms)) is not None:
            moments.append(due_ms)
        return min(moments)

    def _read(self, flows: Flows, now_ms: int) -> None:
        if now_ms >= self._lost_ms + LOSS_PAUSE_MS:
            self._lost_ms = now_ms
            self._tell_lost(flows.take_lost())
        due = flows.due(now_ms)
        if due is None:
            return
        if self._replication is not None:
            self._replication.noted(flows.records_of(due), due.since_ms)
        if self._nat_log is not None:
            wall_ms = time.time_ns() // 1_000_000
            self._nat_log.opened(flows.records_of(due.only_opened), wall_ms)
            self._nat_log.closed(flows.records_of(due.only_closed), wall_ms)

    def _tell_lost(self, notes: int) -> None:
        if notes and self._replication is not None:
            self._replication.lost(notes)
        if notes and self._nat_log is not None:
            self._nat_log.lost(notes)

    def _watch_ring(self, ring: int | None) -> None:
        if ring == self._ring:
            return
        if self._ring is not None:
            self._loop.poller.unregister(self._ring)
        if ring is not None:
            self._loop.watch(ring)
        self._ring = ring
