"""The census: what a pass over the flow table has met. Pure.

In come the blocks of one pass, out comes a `Census`. It is what the counters show, and what the
plan asks before it gives away a seat's number, takes a service's front out of the map, or forgets
an SNAT address: *does a flow still need it?* Seats are counted for all. Fronts and SNAT addresses
only for those that a plan has doubts about (`Watch`), which are mostly none: so a pass costs no
sorting.

A pass takes a while and flows go on meanwhile. What it did not meet may have begun after it looked,
so "none" holds only for what takes no new flow since before the pass began (`began_ms`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from bus.words import Protocol
from services.dataplane.flows.record import (
    HALF_OPEN,
    REQUEST,
    TCP,
    UDP,
    FlowState,
    Records,
    where,
)
from services.dataplane.words import ServiceKey, address_word, port_word

PROTOCOLS = {Protocol.TCP: TCP, Protocol.UDP: UDP}


@dataclass(frozen=True, slots=True)
class Watch:
    """What a pass is to look out for besides seats."""

    fronts: frozenset[ServiceKey] = frozenset()
    snat_addresses: frozenset[str] = frozenset()
    own_ports: Mapping[str, tuple[range, ...]] | None = None
    """By SNAT address, the ports of it that are this LB's: a flow that another LB has told of holds
    one of that LB's. None: no other LB takes any.
    """


@dataclass(frozen=True, slots=True)
class Census:
    """What one whole pass has met."""

    began_ms: int
    """When the pass began, by the caller's monotonic clock."""
    established: int
    """Flows that are not half-open, those that are about to end included."""
    half_open: int
    """Flows that only one side has spoken in, or that have seen one question and one answer."""
    snat_ports: int
    """Flows that hold a source port of this LB's."""
    old_records: int
    """What is left in the table before this one, in records: flows have two."""
    seats: frozenset[int]
    """Named by some flow, in either direction."""
    fronts: Mapping[ServiceKey, int]
    """Flows of each front that was watched."""
    snat_addresses: Mapping[str, int]
    """Flows by each SNAT address that was watched."""
    flows_of: Mapping[int, int] = field(default_factory=dict)
    """By seat, the flows that it has now, in mode L4."""


class Counting:
    """Adds up the blocks of one pass."""

    def __init__(self, began_ms: int, watch: Watch) -> None:
        self._began_ms = began_ms
        self._states = np.zeros(len(FlowState), np.int64)
        self._seats: NDArray[np.bool_] = np.zeros(1 << 16, np.bool_)
        self._flows_of = np.zeros(1 << 16, np.int64)
        self._snat_ports = self._old_records = 0
        self._own_ports = None if watch.own_ports is None else _by_ports(watch.own_ports)
        self._fronts = dict.fromkeys(watch.fronts, 0)
        self._snat_addresses = dict.fromkeys(watch.snat_addresses, 0)

    def add(self, records: Records, *, old: bool) -> None:
        """Living records; `old`: of the table before this one."""
        self._seats[records["seat"]] = True
        self._old_records += len(records) if old else 0
        requests = where(records, records["key"]["direction"] == REQUEST)
        self._flows_of += np.bincount(requests["seat"], minlength=1 << 16)
        states = np.bincount(requests["state"], minlength=len(FlowState))
        self._states += states[: len(FlowState)]
        by_us = requests["saddr"] != requests["key"]["saddr"]
        self._snat_ports += self._count_held(requests, by_us)
        for front in self._fronts:
            self._fronts[front] += _count_front(requests, front)
        for address in self._snat_addresses:
            word = address_word(address)
            self._snat_addresses[address] += int(
                np.count_nonzero(by_us & (requests["saddr"] == word))
            )

    def _count_held(self, requests: Records, by_us: NDArray[np.bool_]) -> int:
        if self._own_ports is None:
            return int(np.count_nonzero(by_us))
        ports = requests["sport"].astype(np.uint16).view(">u2")
        held = 0
        for ranges, addresses in self._own_ports.items():
            here = by_us & np.isin(requests["saddr"], addresses)
            for each in ranges:
                held += int(np.count_nonzero(here & (ports >= each.start) & (ports < each.stop)))
        return held

    def result(self) -> Census:
        half_open = int(self._states[list(HALF_OPEN)].sum())
        return Census(
            began_ms=self._began_ms,
            established=int(self._states.sum()) - half_open,
            half_open=half_open,
            snat_ports=self._snat_ports,
            old_records=self._old_records,
            seats=frozenset(np.flatnonzero(self._seats).tolist()),
            fronts=self._fronts,
            snat_addresses=self._snat_addresses,
            flows_of={int(s): int(self._flows_of[s]) for s in np.flatnonzero(self._flows_of)},
        )


def _by_ports(own: Mapping[str, tuple[range, ...]]) -> dict[tuple[range, ...], list[int]]:
    """Addresses, as the records have them, of each of which the same ports are this LB's."""
    found: dict[tuple[range, ...], list[int]] = {}
    for address, ranges in own.items():
        found.setdefault(ranges, []).append(address_word(address))
    return found


def _count_front(requests: Records, front: ServiceKey) -> int:
    key = requests["key"]
    same = key["daddr"] == address_word(front.address)
    same &= key["dport"] == port_word(front.port)
    same &= key["protocol"] == PROTOCOLS[front.protocol]
    return int(np.count_nonzero(same))
