"""Conntrack's housekeeping: what is idle goes, and what is there can be asked for.

The kernel's programs create, promote, repair and close flows by themselves (bpf/conntrack.h); what
they cannot do is notice that nothing happens any more. So a sweep reads both tables in batches and
deletes what has been idle for longer than its state admits: the request's entry first, then the
reply's, which is the one that reserves the SNAT port.

Timeouts follow RFC 5382 (TCP: established at least 2 h 4 min, transitory at least 4 min) and RFC
4787 (UDP: at least 2 min). A closed flow is kept only for stray repetitions of its last segments;
the programs recycle its port before that if they need one.

If this process is dead nothing is swept: the tables are LRU, so the oldest entries make room.

`expired` and `opposite_keys` are pure; `Table` does the system calls.
"""

from __future__ import annotations

import ipaddress
import socket
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bus.messages import SeatState
from services.dataplane.bpf_syscall import delete_entries, map_shape, read_entries

SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSING, CLOSED = range(5)
STATE_NAMES = ("syn_sent", "syn_received", "established", "closing", "closed")
REQUEST, REPLY = 0, 1
TCP, UDP = 6, 17
PROTOCOL_NAMES = {TCP: "tcp", UDP: "udp"}

TCP_TIMEOUTS_S = (10, 30, 7_440, 240, 10)
"""By state, seconds."""
UDP_TIMEOUTS_S = (30, 30, 120, 120, 10)
LONGEST_TIMEOUT_MS = max(TCP_TIMEOUTS_S + UDP_TIMEOUTS_S) * 1000

SWEEP_HALF_MS = 2_000
SWEEP_ESTABLISHED_MS = 5_000

Entries = NDArray[Any]


def _timeouts_ns() -> NDArray[np.uint64]:
    table = np.zeros((256, len(STATE_NAMES)), np.uint64)
    table[:] = np.array(UDP_TIMEOUTS_S, np.uint64) * 1_000_000_000
    table[TCP] = np.array(TCP_TIMEOUTS_S, np.uint64) * 1_000_000_000
    return table


_TIMEOUTS_NS = _timeouts_ns()


def expired(keys: Entries, flows: Entries, now_ns: int) -> NDArray[np.bool_]:
    """Which of these entries have been idle for longer than their state admits."""
    state = np.minimum(flows["state"], CLOSED)
    idle = np.maximum(np.int64(now_ns) - flows["last_seen"].astype(np.int64), 0)
    overdue: NDArray[np.bool_] = idle.astype(np.uint64) > _TIMEOUTS_NS[keys["protocol"], state]
    return overdue


def opposite_keys(keys: Entries, flows: Entries) -> Entries:
    """The keys of the other directions, as `opposite_key` of bpf/conntrack.h has them."""
    other = keys.copy()
    other["saddr"], other["daddr"] = flows["daddr"], flows["saddr"]
    other["sport"], other["dport"] = flows["dport"], flows["sport"]
    other["direction"] = 1 - keys["direction"]
    return other


@dataclass(frozen=True, slots=True)
class SweepResult:
    """What one sweep of one table found."""

    entries: int
    """Flows that stay, counted by their reply's entries: each holds one SNAT port."""
    deleted: int


@dataclass(frozen=True, slots=True)
class FlowView:
    """One flow, for people; addresses are text, times are ages."""

    protocol: str
    client: str
    vip: str
    snat: str
    node: str
    seat: int
    state: str
    idle_ms: int
    age_ms: int


class Table:
    """One conntrack table: batches of entries as numpy records with the C struct's fields."""

    def __init__(self, table: Any) -> None:
        self._fd = table.map_fd
        self._key_type = np.dtype(table.Key)
        self._flow_type = np.dtype(table.Leaf)

    def batches(self) -> Iterator[tuple[Entries, Entries]]:
        for keys, values in read_entries(self._fd):
            yield np.frombuffer(keys, self._key_type), np.frombuffer(values, self._flow_type)

    def all(self) -> tuple[Entries, Entries]:
        batches = list(self.batches())
        if not batches:
            return np.empty(0, self._key_type), np.empty(0, self._flow_type)
        return np.concatenate([keys for keys, _ in batches]), np.concatenate(
            [flows for _, flows in batches]
        )

    def delete(self, keys: Entries) -> None:
        """Requests before replies: a port is free only when nothing leads to it any more."""
        for direction in (REQUEST, REPLY):
            chosen = keys[keys["direction"] == direction]
            if len(chosen):
                delete_entries(self._fd, chosen.tobytes())

    @property
    def capacity(self) -> int:
        return map_shape(self._fd)[3]


def sweep_established(table: Table, now_ns: int) -> SweepResult:
    """Each packet of a flow touches both its entries, so each can be judged alone."""
    kept = deleted = 0
    doomed = []
    for keys, flows in table.batches():
        overdue = expired(keys, flows, now_ns)
        doomed.append(keys[overdue])
        kept += int(np.count_nonzero(keys["direction"][~overdue] == REPLY))
    for keys in doomed:
        table.delete(keys)
        deleted += len(keys)
    return SweepResult(kept, deleted)


def sweep_half(table: Table, now_ns: int) -> SweepResult:
    """A half-open flow lives as long as its request's entry; a reply without one is litter."""
    keys, flows = table.all()
    overdue = expired(keys, flows, now_ns)
    requests = keys["direction"] == REQUEST
    alive = opposite_keys(keys[requests & ~overdue], flows[requests & ~overdue])
    claimed = np.isin(_as_bytes(keys), _as_bytes(alive))
    # A reply's entry is there a moment before its request's: only an old one is litter.
    doomed = np.where(requests, overdue, overdue & ~claimed)
    table.delete(keys[doomed])
    return SweepResult(int(np.count_nonzero(~requests & ~doomed)), int(np.count_nonzero(doomed)))


def _as_bytes(keys: Entries) -> NDArray[Any]:
    # All keys have one length, so that "S" stripping trailing zeros cannot make two of them equal.
    return np.ascontiguousarray(keys).view(f"S{keys.dtype.itemsize}")


def list_flows(
    table: Table, now_ns: int, seats: frozenset[int] | None, limit: int
) -> tuple[list[FlowView], int]:
    """The first `limit` flows to any of `seats` (None: all) and how many there are in all."""
    listed: list[FlowView] = []
    total = 0
    for keys, flows in table.batches():
        wanted = keys["direction"] == REQUEST
        if seats is not None:
            wanted &= np.isin(flows["seat"], list(seats))
        total += int(np.count_nonzero(wanted))
        for index in np.flatnonzero(wanted)[: limit - len(listed)]:
            listed.append(_view(keys[index], flows[index], now_ns))
    return listed, total


def _view(key: Any, flow: Any, now_ns: int) -> FlowView:
    return FlowView(
        protocol=PROTOCOL_NAMES.get(int(key["protocol"]), str(key["protocol"])),
        client=endpoint(key["saddr"], key["sport"]),
        vip=endpoint(key["daddr"], key["dport"]),
        snat=endpoint(flow["saddr"], flow["sport"]),
        node=endpoint(flow["daddr"], flow["dport"]),
        seat=int(flow["seat"]),
        state=STATE_NAMES[min(int(flow["state"]), CLOSED)],
        idle_ms=max(now_ns - int(flow["last_seen"]), 0) // 1_000_000,
        age_ms=max(now_ns - int(flow["created"]), 0) // 1_000_000,
    )


def endpoint(address: Any, port: Any) -> str:
    """`10.0.0.1:80` of an address and a port as they stand in the maps, in network order."""
    octets = int(address).to_bytes(4, sys.byteorder)
    return f"{ipaddress.IPv4Address(octets)}:{socket.ntohs(int(port))}"


def as_row(flow: FlowView, seat: SeatState | None) -> dict[str, Any]:
    """A flow for `gale flows`, with its node and service by name where the seat still says so."""
    row: dict[str, Any] = {name: getattr(flow, name) for name in FlowView.__slots__}
    del row["seat"]
    row["node_id"] = seat.node if seat else None
    row["service"] = seat.service if seat else None
    return row
