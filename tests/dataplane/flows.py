"""Conntrack entries by the thousand, made as columns and written by batches."""

from __future__ import annotations

import socket

import numpy as np

from bpf.syscall import read_entries, write_entries
from services.dataplane import conntrack
from services.dataplane.conntrack import ESTABLISHED, REPLY, REQUEST, TCP, Sweep, SweepResult
from tests.bpf.harness import Rig

SECOND_NS = 1_000_000_000
NOW_NS = 1_000_000 * SECOND_NS
_AT_ONCE = 1 << 15


def address(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text), "little")


class Made:
    """Flows as columns: requests' entries and replies' entries, by number."""

    def __init__(
        self,
        maps: Rig,
        count: int,
        *,
        state: int = ESTABLISHED,
        protocol: int = TCP,
        idle_s: float = 0.0,
        now_ns: int = NOW_NS,
        first: int = 0,
    ) -> None:
        key, leaf = np.dtype(maps.table("est").Key), np.dtype(maps.table("est").Leaf)
        number = np.arange(first, first + count, dtype=np.uint32)
        requests, values = np.zeros(count, key), np.zeros(count, leaf)
        requests["saddr"] = address("192.0.2.1") + (number >> 14 << 24)
        requests["daddr"] = address("10.80.0.100")
        requests["sport"] = (number & 0x3FFF) + 1
        requests["dport"] = socket.htons(8080)
        requests["protocol"] = protocol
        values["saddr"] = address("10.81.0.99")
        values["daddr"] = address("10.81.0.20") + (number >> 14 << 24)
        values["sport"] = (number & 0x3FFF) + 1
        values["dport"] = socket.htons(80)
        values["seat"] = 1 + number % 2
        values["state"] = state
        values["created"] = now_ns - int(idle_s * SECOND_NS) - SECOND_NS
        values["last_seen"] = now_ns - int(idle_s * SECOND_NS)
        replies = conntrack.opposite_keys(requests, values)
        others = values.copy()
        others["saddr"], others["daddr"] = requests["daddr"], requests["saddr"]
        others["sport"], others["dport"] = requests["dport"], requests["sport"]
        self.requests, self.request_values = requests, values
        self.replies, self.reply_values = replies, others

    def write(self, maps: Rig, table: str, directions: tuple[int, ...] = (REQUEST, REPLY)) -> Made:
        sides = {
            REQUEST: (self.requests, self.request_values),
            REPLY: (self.replies, self.reply_values),
        }
        for direction in directions:
            keys, values = sides[direction]
            for at in range(0, len(keys), _AT_ONCE):
                some = slice(at, at + _AT_ONCE)
                write_entries(
                    maps.table(table).map_fd, keys[some].tobytes(), values[some].tobytes()
                )
        return self


def entries(maps: Rig, table: str) -> int:
    key_bytes = maps.table(table).info.key_size
    return sum(len(keys) for keys, _ in read_entries(maps.table(table).map_fd)) // key_bytes


def finish(sweep: Sweep) -> SweepResult:
    while True:
        try:
            next(sweep)
        except StopIteration as end:
            result: SweepResult = end.value
            return result
