"""Conntrack's housekeeping: what is idle goes, and what is there can be asked for.

The kernel's programs create, promote, repair and close flows by themselves (bpf/conntrack.h); what
they cannot do is notice that nothing happens any more. So a sweep reads both tables in batches and
deletes what has been idle for longer than its state admits: requests' entries as they are found,
replies' after the last of them, because those reserve the SNAT ports. A pass is made in small
pieces between the turns of the process's loop (`Sweeper`). Between reading and deleting, a client
may have used the same ports for a new flow: only what is still as it was read is deleted.

Timeouts follow RFC 5382 (TCP: established at least 2 h 4 min, transitory at least 4 min) and RFC
4787 (UDP: at least 2 min). A closed flow is kept only for stray repetitions of its last segments;
the programs recycle its port before that if they need one.

If this process is dead nothing is swept: the tables are LRU, so the oldest entries make room.

`expired` and `opposite_keys` are pure; `Table` does the system calls, `Sweeper` minds the clock.
"""

from __future__ import annotations

import socket
import sys
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import delete_unchanged, map_shape, read_entries
from bus.messages import SeatState

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
"""The shortest time between two passes."""
TURN_MS = 10
SHARE = 0.02
DELETED_AT_ONCE = 2_000
"""A few milliseconds' worth."""
_ODD = np.uint64(0x9E3779B97F4A7C15)

Entries = NDArray[Any]
Batch = tuple[Entries, Entries]
"""Keys, and the flows under them as they were read."""


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
    """Entries, of either direction."""


Sweep = Generator[None, None, SweepResult]
"""A pass over a table that can be left and resumed after each batch."""


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

    def delete(self, keys: Entries, flows: Entries) -> None:
        """Those that have not changed since they were read."""
        delete_unchanged(self._fd, keys.tobytes(), flows.tobytes())

    @property
    def capacity(self) -> int:
        return map_shape(self._fd)[3]


def sweep_established(table: Table, now_ns: int) -> Sweep:
    """Each packet of a flow touches both its entries, so each can be judged alone."""
    kept = deleted = 0
    idle_replies: list[Batch] = []
    for keys, flows in table.batches():
        overdue = expired(keys, flows, now_ns)
        replies = keys["direction"] == REPLY
        kept += int(np.count_nonzero(replies & ~overdue))
        deleted += int(np.count_nonzero(overdue))
        table.delete(keys[overdue & ~replies], flows[overdue & ~replies])
        idle_replies.append((keys[overdue & replies], flows[overdue & replies]))
        yield
    yield from _delete(table, idle_replies)
    return SweepResult(kept, deleted)


def sweep_half(table: Table, now_ns: int) -> Sweep:
    """A half-open flow lives as long as its request's entry; a reply without one is litter."""
    replies_seen = requests_deleted = 0
    idle_replies: list[Batch] = []
    claimed: list[NDArray[np.uint64]] = []
    for keys, flows in table.batches():
        overdue = expired(keys, flows, now_ns)
        replies = keys["direction"] == REPLY
        alive = ~replies & ~overdue
        replies_seen += int(np.count_nonzero(replies))
        requests_deleted += int(np.count_nonzero(overdue & ~replies))
        table.delete(keys[overdue & ~replies], flows[overdue & ~replies])
        # A reply's entry is there a moment before its request's: only an old one is litter.
        idle_replies.append((keys[overdue & replies], flows[overdue & replies]))
        claimed.append(_numbers(opposite_keys(keys[alive], flows[alive])))
        yield
    alive_replies = _joined(claimed)
    doomed: list[Batch] = []
    for keys, flows in idle_replies:
        # Mostly there are none, and to look them up among the living costs as much as the batch.
        if len(keys):
            unclaimed = ~np.isin(_numbers(keys), alive_replies)
            doomed.append((keys[unclaimed], flows[unclaimed]))
            yield
    yield from _delete(table, doomed)
    litter = sum(len(keys) for keys, _ in doomed)
    return SweepResult(replies_seen - litter, requests_deleted + litter)


def _delete(table: Table, batches: list[Batch]) -> Generator[None, None, None]:
    for keys, flows in batches:
        for begin in range(0, len(keys), DELETED_AT_ONCE):
            some = slice(begin, begin + DELETED_AT_ONCE)
            table.delete(keys[some], flows[some])
            yield


def _joined(numbers: list[NDArray[np.uint64]]) -> NDArray[np.uint64]:
    return np.concatenate([np.empty(0, np.uint64), *numbers])


def _numbers(keys: Entries) -> NDArray[np.uint64]:
    """One number for each key. Two keys with the same one: litter stays a little longer."""
    words = np.ascontiguousarray(keys).view(np.uint64).reshape(-1, 2)
    mixed: NDArray[np.uint64] = words[:, 0] * _ODD ^ words[:, 1]
    return mixed


class Sweeper:
    """Sweeps a table again and again, a little in each turn of the process's loop.

    A turn takes `TURN_MS` at most, so that a dead node is masked while a large table is being
    swept; and the next pass begins so late that sweeping costs `SHARE` of a core at most, however
    large the table and slow the machine.
    """

    def __init__(self, begin: Callable[[int], Sweep], interval_ms: int, now_ms: int) -> None:
        self._begin = begin
        self._interval_ms = interval_ms
        self._sweep: Sweep | None = None
        self._spent_ms = 0.0
        self.next_ms = now_ms
        """When there is something to do; the past while a pass is under way."""
        self.result = SweepResult(0, 0)
        """Of the last whole pass."""
        self.cpu_ms = 0.0
        """What that pass cost."""

    def turn(self, now_ms: int) -> None:
        if now_ms < self.next_ms:
            return
        if self._sweep is None:
            self._sweep = self._begin(time.monotonic_ns())
            self._spent_ms = 0.0
        began_ns, cpu_ns = time.monotonic_ns(), time.thread_time_ns()
        try:
            while time.monotonic_ns() - began_ns < TURN_MS * 1_000_000:
                next(self._sweep)
        except StopIteration as end:
            self._sweep = None
            self.result = end.value
        self._spent_ms += (time.thread_time_ns() - cpu_ns) / 1e6
        if self._sweep is None:
            self.cpu_ms = self._spent_ms
            self.next_ms = now_ms + max(self._interval_ms, int(self.cpu_ms / SHARE))


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
    return f"{socket.inet_ntoa(octets)}:{socket.ntohs(int(port))}"


def as_row(flow: FlowView, seat: SeatState | None) -> dict[str, Any]:
    """A flow for `gale flows`, with its node and service by name where the seat still says so."""
    row: dict[str, Any] = {name: getattr(flow, name) for name in FlowView.__slots__}
    del row["seat"]
    row["node_id"] = seat.node if seat else None
    row["service"] = seat.service if seat else None
    return row
