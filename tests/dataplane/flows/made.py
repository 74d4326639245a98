"""Flows by the thousand, made as columns and written into the real table."""

from __future__ import annotations

import socket
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import write_entries
from bpf.table import Table
from services.dataplane.flows.record import REPLY, REQUEST, TCP, FlowState
from services.dataplane.flows.table import FlowTable, TablePair

_BUCKETS_AT_ONCE = 4096
VIP, SNAT = "10.80.0.100", "10.81.0.99"


def address(text: str) -> int:
    return int.from_bytes(socket.inet_aton(text), "little")


def flow_type(table: Table) -> np.dtype[Any]:
    """Of one record, as the compiler describes it."""
    subtype = np.dtype(table.Leaf)["flow"].subdtype
    assert subtype is not None
    flow: np.dtype[Any] = subtype[0]
    return flow


def requests(kind: np.dtype[Any], count: int, now: int, **fields: Any) -> NDArray[Any]:
    """The requests' records of so many flows, each of another client; `fields` are columns or
    single values, those of the key among them by `key_…`.
    """
    number = np.arange(count, dtype=np.uint32)
    made = np.zeros(count, kind)
    key = made["key"]
    key["saddr"] = address("192.0.2.1") + (number >> 14 << 24)
    key["daddr"] = address(VIP)
    key["sport"] = (number & 0x3FFF) + 1
    key["dport"] = socket.htons(8080)
    key["protocol"] = TCP
    key["direction"] = REQUEST
    made["saddr"] = address(SNAT)
    made["daddr"] = address("10.81.0.20")
    made["sport"] = (number & 0x3FFF) + 1
    made["dport"] = socket.htons(80)
    made["seat"] = 1
    made["state"] = FlowState.TCP_ESTABLISHED
    made["begin"] = now - 100
    made["deadline"] = now + 1000
    for name, values in fields.items():
        column = key[name.removeprefix("key_")] if name.startswith("key_") else made[name]
        column[:] = values
    return made


def replies(of: NDArray[Any]) -> NDArray[Any]:
    """The other direction's records."""
    made = of.copy()
    key = made["key"]
    key["saddr"], key["daddr"] = of["daddr"], of["saddr"]
    key["sport"], key["dport"] = of["dport"], of["sport"]
    key["direction"] = REPLY
    made["saddr"], made["daddr"] = of["key"]["daddr"], of["key"]["saddr"]
    made["sport"], made["dport"] = of["key"]["dport"], of["key"]["sport"]
    return made


def both(of: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([of, replies(of)])


def write(table: Table, records: NDArray[Any], seed: int = 1) -> NDArray[np.intp]:
    """Put them anywhere, in the place of all that was there; returns where."""
    ways = len(table.Leaf().flow)
    buckets = table.info.max_entries
    places = np.random.default_rng(seed).permutation(buckets * ways)[: len(records)]
    whole = np.zeros(buckets * ways, records.dtype)
    whole[places] = records
    for first in range(0, buckets, _BUCKETS_AT_ONCE):
        some = range(first, min(first + _BUCKETS_AT_ONCE, buckets))
        keys = np.array(some, np.uint32)
        values = whole[some.start * ways : some.stop * ways]
        write_entries(table.map_fd, keys.tobytes(), values.tobytes())
    return places


def reader(table: Table) -> FlowTable:
    return FlowTable(table.map_fd, np.dtype(table.Leaf), table.info.max_entries)


def readers(bpf: dict[bytes, Table]) -> TablePair:
    return TablePair(reader(bpf[b"flows"]), reader(bpf[b"old_flows"]))
