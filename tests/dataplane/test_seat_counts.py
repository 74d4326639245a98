"""Counters of seats as columns: each seat's own numbers, in the order asked for, from real maps."""

from __future__ import annotations

from typing import cast

import pytest

from bus.states import SeatState
from services.dataplane import seat_counts
from services.dataplane.counters import Counters
from services.dataplane.seat_counts import Reading
from tests.bpf.harness import Rig
from tests.dataplane.test_counters import FIELDS


def _seat(number: int, node: str) -> SeatState:
    return SeatState(number, "web", node, 1, 0.5, resolved=True)


def _count(maps: Rig, seat: int) -> None:
    """Field by field: a thousand times the seat's number, and the field's place."""
    table = maps.table("seat_counters")
    leaf = table.Leaf()
    for place, name in enumerate(FIELDS):
        setattr(leaf[0], name, 1000 * seat + place)
    table[table.Key(seat)] = leaf


def _read(counters: Counters, seats: list[SeatState], cursors: list[int]) -> Reading:
    """In as many turns as that takes."""
    reading = seat_counts.read(counters, seats, cursors)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            return cast("Reading", end.value)


def test_each_seat_has_its_own_numbers_whatever_the_order(maps: Rig, counters: Counters) -> None:
    for seat in (2, 5, 7):
        _count(maps, seat)
    cursors = maps.table("port_cursors")
    cursors[cursors.Key(4)] = cursors.Leaf(next=3, rest=1000, taken_at=5)
    seats = [_seat(7, "b"), _seat(2, "a"), _seat(3, "c")]
    reading = _read(counters, seats, [4, 1, 4])
    _count(maps, 9)  # whatever is counted from now on is for the next reading
    columns = seat_counts.columns(reading, {2: 12, 5: 99})
    assert columns.node == ("b", "a", "c")
    assert columns.service == ("web", "web", "web")
    for place, name in enumerate(FIELDS):
        assert getattr(columns, name) == (7000 + place, 2000 + place, 0)
    assert columns.flows_now == (0, 12, 0)
    rests = columns.snat_port_rest_seconds
    assert rests[1] is None
    assert [rests[0], rests[2]] == pytest.approx([67.108864, 67.108864])


def test_without_seats_there_are_no_rows(counters: Counters) -> None:
    columns = seat_counts.columns(_read(counters, [], []), {})
    assert len(columns.service) == len(columns.flows) == len(columns.snat_port_rest_seconds) == 0


def test_every_seat_of_a_full_table_is_read(maps: Rig, counters: Counters) -> None:
    last = len(maps.table("seat_counters")) - 1
    _count(maps, last)
    reading = _read(counters, [_seat(last, "z")], [len(maps.table("port_cursors")) - 1])
    assert seat_counts.columns(reading, {}).packets_in == (1000 * last,)
