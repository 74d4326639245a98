"""The NAT log: which client's flow left under which address and port, and when. Pure.

Whoever runs a NAT may have to say later whose connection it was that a server saw coming from
`snat address:port`. With `[log] nat = true` each flow whose two sides have been heard is told as
`flow.opened.`, and its end as `flow.closed.`, on the bus and so on the public event stream. What is
told comes from the same notes of the programs that replication reads (bpf/kernel/notes.h): a packet
of an established flow pays nothing for it.

    notes of opened and closed flows ──records──► waiting, MOST_WAITING at most
                                                        │ MOST_AT_ONCE each PAUSE_MS, at most
                                                        ▼
                                                  flow.opened., flow.closed.

**A flow that is over within 50 ms** is told once, by its end, which says when it began: it is known
whole. A UDP flow has no end that could be heard. A half-open TCP flow was nobody's connection.

**Bounds.** An attack opens flows faster than anybody can write them down. Of each kind so many wait
and so many are told at once; those beyond are counted, and the next event says how many it was
(`left_out`). So a flood costs this process some milliseconds twice a second, and a log that lacks
something says so.

**Failure.** While this process does not run nothing is told; the ring keeps the notes meanwhile, as
far as it has room, and what was lost is in `left_out`.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.clock import TICK_MS
from bus.events import FlowsEvent, NatFlow
from bus.topics import Topic
from bus.words import Protocol
from services.dataplane.flows.listing import Seated
from services.dataplane.flows.record import PROTOCOL_NAMES
from services.dataplane.flows.records import Wire
from services.dataplane.words import address_text

MOST_WAITING = 16_384
MOST_AT_ONCE = 512
PAUSE_MS = 500

Tell = Callable[[Topic, FlowsEvent], object]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    records: Wire
    at_ms: int
    """The wall clock when they were read."""


class _Kind:
    """What waits to be told under one topic."""

    def __init__(self, topic: Topic) -> None:
        self.topic = topic
        self.left_out = 0
        self._waiting: deque[_Waiting] = deque()
        self._count = 0
        self._told_ms: int | None = None

    def add(self, records: Wire, wall_ms: int) -> None:
        taken = records[: MOST_WAITING - self._count]
        self.left_out += len(records) - len(taken)
        if len(taken):
            self._waiting.append(_Waiting(taken, wall_ms))
            self._count += len(taken)

    def next_ms(self, now_ms: int) -> int | None:
        """When something is to be told; None: there is nothing."""
        if not self._count and not self.left_out:
            return None
        return now_ms if self._told_ms is None else self._told_ms + PAUSE_MS

    def take(self, now_ms: int) -> list[_Waiting]:
        """The oldest that wait."""
        taken, room = [], MOST_AT_ONCE
        while self._waiting and room:
            first = self._waiting.popleft()
            part = first.records[:room]
            if len(part) < len(first.records):
                self._waiting.appendleft(_Waiting(first.records[room:], first.at_ms))
            taken.append(_Waiting(part, first.at_ms))
            room -= len(part)
        self._count -= MOST_AT_ONCE - room
        self._told_ms = now_ms
        return taken


class NatLog:
    """Collects what became of flows and tells of it, not too often and not too much."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._kinds = (_Kind(Topic.FLOW_OPENED), _Kind(Topic.FLOW_CLOSED))
        self._names: Mapping[int, Seated] = {}

    def name(self, names: Mapping[int, Seated]) -> None:
        """Whose flows these are, by the identity that records have."""
        self._names = names

    def opened(self, records: Wire, wall_ms: int) -> None:
        """Flows of which both sides have been heard, as they are at `wall_ms` of Unix time."""
        self._kinds[0].add(records, wall_ms)

    def closed(self, records: Wire, wall_ms: int) -> None:
        self._kinds[1].add(records, wall_ms)

    def lost(self, notes: int) -> None:
        """So many notes found no room; most of them are of openings."""
        self._kinds[0].left_out += notes

    def next_ms(self, now_ms: int) -> int | None:
        moments = [each.next_ms(now_ms) for each in self._kinds]
        return min((moment for moment in moments if moment is not None), default=None)

    def turn(self, now_ms: int) -> None:
        """Tell what is due, of each kind once."""
        for kind in self._kinds:
            due_ms = kind.next_ms(now_ms)
            if due_ms is None or now_ms < due_ms:
                continue
            flows = [flow for part in kind.take(now_ms) for flow in self._flows(part)]
            left_out, kind.left_out = kind.left_out, 0
            self._tell(kind.topic, FlowsEvent(tuple(flows), left_out))

    def _flows(self, part: _Waiting) -> list[NatFlow]:
        wire = part.records
        ends = [
            _endpoints(wire[address], wire[port])
            for address, port in (
                ("client_address", "client_port"),
                ("vip", "vip_port"),
                ("snat_address", "snat_port"),
                ("node_address", "node_port"),
            )
        ]
        began = part.at_ms - (wire["age_ticks"] * TICK_MS).astype(np.int64)
        owners = [self._names.get(identity, _NOBODY) for identity in wire["node"].tolist()]
        protocols = [Protocol(PROTOCOL_NAMES[number]) for number in wire["protocol"].tolist()]
        rows = zip(protocols, *ends, owners, began.tolist(), strict=True)
        return [
            NatFlow(protocol, client, vip, snat, node, owner.service, owner.node, max(0, began_ms))
            for protocol, client, vip, snat, node, owner, began_ms in rows
        ]


_NOBODY = Seated(node="", service="")


def _endpoints(addresses: NDArray[Any], ports: NDArray[Any]) -> list[str]:
    """`10.0.0.1:80` of each; most of many addresses are the same few."""
    words, which = np.unique(addresses, return_inverse=True)
    texts = [address_text(word) for word in words.tolist()]
    numbers = ports.byteswap() if sys.byteorder == "little" else ports
    return [
        f"{texts[at]}:{port}" for at, port in zip(which.tolist(), numbers.tolist(), strict=True)
    ]
