"""The LB's own probe: what is due and what is believed, and the sockets against real ports."""

from __future__ import annotations

import socket
import time

from services.health.places import HASTE, MOST_PER_S, Outcome, Places, Spot
from services.health.probe import LONGEST_MS, MOST_OPEN, Prober

OPEN, REFUSED, UNANSWERED = Outcome.OPEN, Outcome.REFUSED, Outcome.UNANSWERED
ROUND_MS = 1_000
HERE = Spot("10.81.0.20", 80)


def drained(places: Places, from_ms: int, to_ms: int, most: int = 1_000) -> list[tuple[int, Spot]]:
    return [
        (now_ms, spot)
        for now_ms in range(from_ms, to_ms)
        for spot in places.take_due(most, ROUND_MS, now_ms)
    ]


def test_each_place_is_looked_at_once_in_a_round() -> None:
    places = Places()
    spots = [Spot("10.81.0.20", port) for port in range(1, 51)]
    places.want(dict.fromkeys(spots, True), ROUND_MS, 0)
    taken = drained(places, 0, ROUND_MS - 1)
    assert sorted(spot for _, spot in taken) == spots
    again = drained(places, ROUND_MS - 1, 2 * ROUND_MS - 2)
    assert len(again) == 50
    assert max(sum(1 for _, s in taken if s == spot) for spot in spots) == 1


def test_a_place_that_failed_is_looked_at_sooner() -> None:
    places = Places()
    places.want({HERE: True}, ROUND_MS, 0)
    drained(places, 0, 10)
    places.found(HERE, REFUSED)
    (second,) = drained(places, 10, ROUND_MS + 10)[:1]
    (third,) = drained(places, second[0] + 1, second[0] + 1 + ROUND_MS // HASTE)[:1]
    assert third[0] - second[0] == ROUND_MS // HASTE


def looks(places: Places, from_ms: int) -> int:
    return len(drained(places, from_ms, from_ms + 10 * ROUND_MS))


def test_where_a_refusal_is_no_fault_there_is_no_haste_once_it_is_believed() -> None:
    places = Places()
    places.want({HERE: False}, ROUND_MS, 0)
    drained(places, 0, 10)
    assert places.found(HERE, REFUSED) is None
    assert len(drained(places, 10, 1_103)) == 2, "it may be otherwise"
    assert places.found(HERE, REFUSED) is REFUSED
    assert looks(places, 2_000) == 10
    assert places.found(HERE, UNANSWERED) is UNANSWERED
    assert looks(places, 20_000) == 10 * HASTE
    places.found(HERE, REFUSED)
    drained(places, 30_000, 31_000)
    places.want({HERE: True}, ROUND_MS, 40_000)
    assert looks(places, 40_000) == 10 * HASTE, "by another configuration it is one"


def test_one_failure_is_not_believed_and_a_success_is_at_once() -> None:
    places = Places()
    places.want({HERE: True}, ROUND_MS, 0)
    assert places.found(HERE, OPEN) is OPEN
    assert places.found(HERE, UNANSWERED) is None
    assert places.found(HERE, OPEN) is None
    assert places.found(HERE, UNANSWERED) is None
    assert places.found(HERE, UNANSWERED) is UNANSWERED
    assert places.found(HERE, UNANSWERED) is None, "that is no news"
    assert places.found(HERE, REFUSED) is REFUSED
    assert places.found(HERE, OPEN) is OPEN


def test_a_place_that_went_is_nobodys() -> None:
    places = Places()
    other = Spot("10.81.0.21", 80)
    places.want({HERE: True, other: True}, ROUND_MS, 0)
    assert places.want({other: True}, ROUND_MS, 1) == [HERE]
    assert places.found(HERE, OPEN) is None
    assert {spot for _, spot in drained(places, 0, 3 * ROUND_MS)} == {other}


def test_very_many_places_cost_no_more_than_so_many_a_second() -> None:
    places = Places()
    places.want({Spot("10.81.0.20", port): True for port in range(1, 10_000)}, ROUND_MS, 0)
    assert len(drained(places, 0, ROUND_MS)) <= MOST_PER_S
    due_ms = places.next_due_ms()
    assert due_ms is not None
    assert due_ms >= ROUND_MS - 1
    assert places.take_due(3, ROUND_MS, 10 * ROUND_MS) != []
    assert len(places.take_due(3, ROUND_MS, 11 * ROUND_MS)) <= 3


def outcomes(prober: Prober, *spots: Spot) -> dict[Spot, Outcome]:
    """What is believed of all of these, by a clock that runs as fast as need be."""
    found: dict[Spot, Outcome] = {}
    prober.places.want(dict.fromkeys(spots, True), ROUND_MS, 0)
    end_s = time.monotonic() + 10
    for now_ms in range(0, 1_000 * LONGEST_MS, 20):
        found.update(prober.turn(ROUND_MS, now_ms))
        if len(found) == len(spots):
            break
        assert time.monotonic() < end_s
        time.sleep(0.001)
    return found


def test_open_and_refused_are_told_apart() -> None:
    prober = Prober()
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        heard, deaf = (Spot("127.0.0.1", each.getsockname()[1]) for each in (server, closed))
        assert outcomes(prober, heard, deaf) == {heard: OPEN, deaf: REFUSED}
    prober.close()


def test_a_server_that_does_not_accept_any_more_does_not_answer() -> None:
    """Its queue is full, so the kernel drops the SYN."""
    prober = Prober()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        spot = Spot(*server.getsockname())
        held = [socket.socket() for _ in range(4)]
        for each in held:
            each.setblocking(False)
            each.connect_ex(spot)
        assert outcomes(prober, spot) == {spot: UNANSWERED}
        for each in held:
            each.close()
    prober.close()


def test_no_more_than_so_many_are_open_at_a_time() -> None:
    prober = Prober()
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen(0)
        held = [socket.socket() for _ in range(4)]
        for each in held:
            each.setblocking(False)
            each.connect_ex(server.getsockname())
        port = server.getsockname()[1]
        spots = [Spot(f"127.0.{a}.{b}", port) for a in range(2) for b in range(1, 200)]
        prober.places.want(dict.fromkeys(spots, True), ROUND_MS, 0)
        for now_ms in range(0, ROUND_MS, 10):
            prober.turn(ROUND_MS, now_ms)
            assert len(prober._attempts) <= MOST_OPEN
        for each in held:
            each.close()
    prober.close()
