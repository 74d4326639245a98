"""Flows for people: what `gale flows` and `/v1/flows` show. Pure.

A listing goes through the table block by block, as a generator: each step is a few milliseconds'
work, so whoever asks for ten thousand rows of a large table does not stop the process. It counts
all flows that are asked for, and describes the first `limit` of them, in the table's order.

Ages come from the records: a flow's from its first tick, how long it has been idle from what is
left of its timeout. An established flow's deadline is renewed every four seconds only, so it may
have been idle for that much less than it says.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from bpf.clock import TICK_MS
from services.dataplane.flows.record import (
    ESTABLISHED,
    PROTOCOL_NAMES,
    REQUEST,
    TOUCH_TICKS,
    FlowState,
    Records,
    take,
    ticks_left,
    ticks_since,
)
from services.dataplane.words import endpoint_text

ROWS_AT_ONCE = 200

Rows = list[dict[str, Any]]
Listing = Generator[None, None, tuple[Rows, int]]
"""Returns the rows, and how many flows there are in all."""


@dataclass(frozen=True, slots=True)
class Seated:
    """Whose a seat is."""

    node: str
    service: str


def list_flows(
    blocks: Iterable[tuple[Records, int]],
    wanted: frozenset[int] | None,
    names: Mapping[int, Seated],
    timeouts: Sequence[int],
    limit: int,
) -> Listing:
    """The flows to any of the seats `wanted` (None: all).

    `blocks` are living records with the tick at which they were read; `timeouts` are ticks, by
    state.
    """
    rows: Rows = []
    total = 0
    seats = None if wanted is None else np.array(sorted(wanted), np.uint16)
    for records, now in blocks:
        chosen = records["key"]["direction"] == REQUEST
        if seats is not None:
            chosen &= np.isin(records["seat"], seats)
        total += int(np.count_nonzero(chosen))
        some = take(records, np.flatnonzero(chosen)[: limit - len(rows)])
        yield
        for first in range(0, len(some), ROWS_AT_ONCE):
            rows += _rows(some[first : first + ROWS_AT_ONCE], now, names, timeouts)
            yield
    return rows, total


def _rows(
    records: Records, now: int, names: Mapping[int, Seated], timeouts: Sequence[int]
) -> Iterable[dict[str, Any]]:
    states = records["state"]
    given = np.array(timeouts, np.int64)[states]
    given += np.where(np.isin(states, ESTABLISHED), TOUCH_TICKS, 0)
    idle_ms = np.maximum(given - ticks_left(records, now), 0) * TICK_MS
    age_ms = ticks_since(records["begin"], now) * TICK_MS
    for record, idle, age in zip(records.tolist(), idle_ms.tolist(), age_ms.tolist(), strict=True):
        flow = dict(zip(records.dtype.names or (), record, strict=True))
        key = dict(zip(records.dtype["key"].names or (), flow["key"], strict=True))
        seated = names.get(flow["seat"])
        yield {
            "protocol": PROTOCOL_NAMES.get(key["protocol"], str(key["protocol"])),
            "client": endpoint_text(key["saddr"], key["sport"]),
            "vip": endpoint_text(key["daddr"], key["dport"]),
            "snat": endpoint_text(flow["saddr"], flow["sport"]),
            "node": endpoint_text(flow["daddr"], flow["dport"]),
            "state": FlowState(flow["state"]).word,
            "idle_ms": int(idle),
            "age_ms": int(age),
            "node_id": seated.node if seated else None,
            "service": seated.service if seated else None,
        }
