"""Two LBs in one process: each with its own maps, and with seats of other numbers.

What becomes of flows at the one is told to the other as it is over the wire: as bytes.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from services.dataplane.entering import Entering
from services.dataplane.flows.held import HOLD_MS
from services.dataplane.flows.records import WIRE, Wire
from services.dataplane.flows.table import FlowTable, TablePair
from services.dataplane.flows.told import READ_MS, Flows
from services.dataplane.maps import Seat
from tests.bpf.harness import SMALL_TABLES, Rig, clear_map
from tests.bpf.scene import NODE, TIMEOUTS_S, Scene, now_ticks, ticks

IDENTITY = 0x1122_3344_5566_7788


def _table(table: Any) -> FlowTable:
    return FlowTable(table.map_fd, np.dtype(table.Leaf), table.info.max_entries)


class ReplicatingLb:
    """A scene, and what replication does with its table."""

    def __init__(self, seat: int, first_port: int, **defines: str | int) -> None:
        """`seat`: the number that the one node has here; `first_port`: of this LB's slice."""
        self.rig = Rig({**SMALL_TABLES, **defines}, more=("replica.c",))
        self.scene = Scene(self.rig)
        self.seat, self.first_port = seat, first_port
        bpf = self.rig.tc_object.bpf
        timeouts = [0] * 16
        for state, seconds in TIMEOUTS_S.items():
            timeouts[state] = ticks(seconds)
        self.flows = Flows(
            self.rig.tc_object,
            TablePair(_table(bpf[b"flows"]), _table(bpf[b"old_flows"])),
            Entering(self.rig.more[0]),
            timeouts,
        )
        self._now_ms = 0
        self.told: list[Wire] = []

    def forget(self) -> None:
        self.scene.forget()
        for each in self.rig.more:
            clear_map(each.bpf[b"replica_progress"].map_fd)
        clear_map(self.rig.table("old_flows").map_fd)
        self.scene.settings(notes=1)
        self.pass_by(1_000)
        self.flows.take_lost()
        self.told.clear()

    def serve(self, protocol: str = "tcp", **fields: Any) -> None:
        """One service of one node, whose seat's number here is this LB's own."""
        scene = self.scene
        scene.seat(self.seat, at=NODE, identity=IDENTITY)
        values = {"snat_first_port": self.first_port, **fields}
        scene.service("l4", protocol=protocol, seats=(self.seat,), **values)
        scene.snat_slice(20_000, 4_000)
        seat = Seat(IDENTITY, 0, NODE[0], NODE[1], 0, True, False, False, None)
        self.flows.name_seats({self.seat: seat})

    # ------------------------------------------------------------------ telling

    def pass_by(self, duration_ms: int) -> Wire:
        """So much time for the notes; what is told of them then."""
        parts = [np.zeros(0, WIRE)]
        end_ms = self._now_ms + duration_ms
        while self._now_ms < end_ms:
            self._now_ms += READ_MS
            due = self.flows.due(self._now_ms)
            if due is not None:
                parts.append(self.flows.records_of(due))
        told = np.concatenate(parts)
        self.told.append(told)
        return told

    def tells(self) -> Wire:
        """All that is to be told by now."""
        return self.pass_by(HOLD_MS + 2 * READ_MS)

    def whole(self) -> Wire:
        """All that a snapshot has."""
        parts, position = [], 0
        while position >= 0:
            records, position = self.flows.part(position)
            parts.append(records)
        return np.concatenate(parts)

    # ------------------------------------------------------------------ hearing

    def hears(self, wire: Wire, delay_ticks: int = 0) -> dict[str, int]:
        """Records as bytes, made so long ago; what became of them."""
        copy = np.frombuffer(wire.tobytes(), WIRE)
        return dict(Counter(self.flows.enter(copy, now_ticks() - delay_ticks)))
