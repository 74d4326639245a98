"""Conntrack's housekeeping: who is overdue, what a sweep deletes of real maps, what is listed."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from bpf.syscall import delete_entries, read_entries
from bus.messages import SeatState
from services.dataplane import conntrack
from services.dataplane.conntrack import (
    CLOSED,
    CLOSING,
    ESTABLISHED,
    REPLY,
    REQUEST,
    SYN_RECEIVED,
    SYN_SENT,
    TCP,
    UDP,
    Entries,
    FlowView,
    Sweep,
    Sweeper,
    SweepResult,
)
from tests.bpf.harness import Rig, rig
from tests.dataplane.flows import NOW_NS, SECOND_NS, Made, entries, finish


@pytest.fixture
def maps() -> Iterator[Rig]:
    # All of a test's entries fit, none is evicted: the tables are several times as large.
    with rig(CONNTRACK_ENTRIES=65536, HALF_OPEN_ENTRIES=65536) as programs:
        yield programs


def sweep_established(maps: Rig, now_ns: int = NOW_NS) -> SweepResult:
    return finish(conntrack.sweep_established(conntrack.Table(maps.table("est")), now_ns))


def sweep_half(maps: Rig, now_ns: int = NOW_NS) -> SweepResult:
    return finish(conntrack.sweep_half(conntrack.Table(maps.table("half")), now_ns))


# --------------------------------------------------------------------------- pure

TIMEOUTS_S = [
    (TCP, SYN_SENT, 10),
    (TCP, SYN_RECEIVED, 30),
    (TCP, ESTABLISHED, 7440),
    (TCP, CLOSING, 240),
    (TCP, CLOSED, 10),
    (UDP, SYN_SENT, 30),
    (UDP, SYN_RECEIVED, 30),
    (UDP, ESTABLISHED, 120),
    (UDP, CLOSING, 120),
    (UDP, CLOSED, 10),
]


@pytest.mark.parametrize(("protocol", "state", "timeout_s"), TIMEOUTS_S)
def test_each_state_has_its_timeout(maps: Rig, protocol: int, state: int, timeout_s: int) -> None:
    made = Made(maps, 3, state=state, protocol=protocol)
    limit = NOW_NS - timeout_s * SECOND_NS
    made.request_values["last_seen"] = [limit - 1, limit, limit + 1]
    assert list(conntrack.expired(made.requests, made.request_values, NOW_NS)) == [
        True,
        False,
        False,
    ]


def test_what_is_seen_in_the_future_is_not_overdue(maps: Rig) -> None:
    """The programs' clock is read later than the sweep's; and a state from a later version."""
    made = Made(maps, 2, state=CLOSED, idle_s=-5)
    made.request_values["state"][1] = 200
    assert not conntrack.expired(made.requests, made.request_values, NOW_NS).any()


def test_the_longest_timeout_covers_all() -> None:
    assert max(timeout_s for *_, timeout_s in TIMEOUTS_S) * 1000 == conntrack.LONGEST_TIMEOUT_MS


def test_the_opposite_of_the_opposite_is_the_same(maps: Rig) -> None:
    made = Made(maps, 50)
    assert (conntrack.opposite_keys(made.replies, made.reply_values) == made.requests).all()
    assert set(made.replies["direction"]) == {REPLY}


# --------------------------------------------------------------------------- est


@pytest.mark.parametrize(("protocol", "state", "timeout_s"), TIMEOUTS_S)
def test_an_established_flow_goes_when_its_time_is_over(
    maps: Rig, protocol: int, state: int, timeout_s: int
) -> None:
    Made(maps, 3, state=state, protocol=protocol, idle_s=timeout_s - 1).write(maps, "est")
    assert sweep_established(maps) == SweepResult(3, 0)
    assert sweep_established(maps, NOW_NS + 2 * SECOND_NS) == SweepResult(0, 6)
    assert entries(maps, "est") == 0


def test_of_many_only_the_idle_go(maps: Rig) -> None:
    """Over several batches, with the idle and the live in the same ones."""
    kept = Made(maps, 9000).write(maps, "est")
    Made(maps, 9000, idle_s=8000, first=9000).write(maps, "est")
    assert sweep_established(maps) == SweepResult(9000, 18000)
    left = b"".join(keys for keys, _ in read_entries(maps.table("est").map_fd))
    keys = np.frombuffer(left, kept.requests.dtype)
    ports = keys["sport"][keys["direction"] == REQUEST].tolist()  # type: ignore[call-overload]
    assert sorted(ports) == sorted(kept.requests["sport"].tolist())
    assert sweep_established(maps) == SweepResult(9000, 0)


class Watched(conntrack.Table):
    """A table that notes what is deleted, and lets something happen before."""

    def __init__(self, table: Any) -> None:
        super().__init__(table)
        self.deleted: list[int] = []
        self.before: Any = lambda: None

    def delete(self, keys: Entries, flows: Entries) -> None:
        self.before()
        super().delete(keys, flows)
        self.deleted += [int(direction) for direction in keys["direction"]]


@pytest.mark.parametrize("table", ["est", "half"])
def test_requests_go_before_the_replies_that_hold_their_ports(maps: Rig, table: str) -> None:
    Made(maps, 9000, idle_s=8000).write(maps, table)
    watched = Watched(maps.table(table))
    sweep = conntrack.sweep_established if table == "est" else conntrack.sweep_half
    assert finish(sweep(watched, NOW_NS)) == SweepResult(0, 18000)
    assert watched.deleted == [REQUEST] * 9000 + [REPLY] * 9000


@pytest.mark.parametrize("table", ["est", "half"])
def test_entries_that_vanish_meanwhile_hide_none_of_the_others(maps: Rig, table: str) -> None:
    made = Made(maps, 8000, idle_s=8000).write(maps, table)
    watched = Watched(maps.table(table))

    def vanish() -> None:
        watched.before = lambda: None
        for keys in (made.requests[::2], made.replies[::2]):
            delete_entries(maps.table(table).map_fd, keys.tobytes())

    watched.before = vanish
    sweep = conntrack.sweep_established if table == "est" else conntrack.sweep_half
    began_s = time.thread_time()
    finish(sweep(watched, NOW_NS))
    assert entries(maps, table) == 0
    # Each that is missing costs a call of its own, but must not cost a copy of all that follow.
    assert time.thread_time() - began_s < 2.0


@pytest.mark.parametrize("table", ["est", "half"])
def test_a_flow_that_comes_back_on_the_same_ports_meanwhile_stays(maps: Rig, table: str) -> None:
    """The client's ports first, then the port of the SNAT address, are used for something new."""
    Made(maps, 3000, idle_s=8000).write(maps, table)
    again = Made(maps, 1000)
    watched = Watched(maps.table(table))

    def come_back() -> None:
        again.write(maps, table, (REQUEST,) if not watched.deleted else (REPLY,))
        if watched.deleted:
            watched.before = lambda: None

    watched.before = come_back
    sweep = conntrack.sweep_established if table == "est" else conntrack.sweep_half
    finish(sweep(watched, NOW_NS))
    assert entries(maps, table) == 2000
    left = np.concatenate([values["last_seen"] for _, values in watched.batches()])
    assert (left == NOW_NS).all()


# --------------------------------------------------------------------------- half


@pytest.mark.parametrize(
    ("protocol", "state", "timeout_s"),
    [(TCP, SYN_SENT, 10), (TCP, SYN_RECEIVED, 30), (UDP, SYN_SENT, 30)],
)
def test_a_half_open_flow_goes_when_its_time_is_over(
    maps: Rig, protocol: int, state: int, timeout_s: int
) -> None:
    Made(maps, 3, state=state, protocol=protocol, idle_s=timeout_s - 1).write(maps, "half")
    assert sweep_half(maps) == SweepResult(3, 0)
    assert sweep_half(maps, NOW_NS + 2 * SECOND_NS) == SweepResult(0, 6)
    assert entries(maps, "half") == 0


def test_a_half_open_flow_lives_as_long_as_its_request(maps: Rig) -> None:
    """A repeated SYN touches the request's entry alone; the reply's must not lose its port."""
    made = Made(maps, 3, state=SYN_SENT, idle_s=20)
    made.request_values["last_seen"] = NOW_NS - SECOND_NS
    made.write(maps, "half")
    assert sweep_half(maps) == SweepResult(3, 0)
    assert entries(maps, "half") == 6


def test_the_answered_one_lives_longer_although_its_reply_entry_says_syn_sent(maps: Rig) -> None:
    made = Made(maps, 3, state=SYN_SENT, idle_s=20)
    made.request_values["state"] = SYN_RECEIVED
    made.write(maps, "half")
    assert sweep_half(maps) == SweepResult(3, 0)


def test_a_reply_without_its_request_is_litter_only_when_old(maps: Rig) -> None:
    young = Made(maps, 3, state=SYN_SENT, idle_s=1).write(maps, "half", (REPLY,))
    old = Made(maps, 4, state=SYN_SENT, idle_s=11, first=100).write(maps, "half", (REPLY,))
    living = Made(maps, 5, state=SYN_SENT, idle_s=11, first=200)
    living.request_values["last_seen"] = NOW_NS
    living.write(maps, "half")
    assert sweep_half(maps) == SweepResult(8, 4)
    left = b"".join(keys for keys, _ in read_entries(maps.table("half").map_fd))
    sports = set(np.frombuffer(left, young.replies.dtype)["dport"].tolist())
    assert set(young.replies["dport"].tolist()) <= sports
    assert not set(old.replies["dport"].tolist()) & sports


def test_a_reply_is_not_saved_by_a_request_that_leads_elsewhere(maps: Rig) -> None:
    made = Made(maps, 2, state=SYN_SENT, idle_s=11)
    made.request_values["last_seen"] = NOW_NS
    made.request_values["sport"] += 7
    made.write(maps, "half")
    assert sweep_half(maps) == SweepResult(0, 2)
    assert entries(maps, "half") == 2


# --------------------------------------------------------------------------- a little at a time


def test_empty_tables_are_swept_too(maps: Rig) -> None:
    assert sweep_established(maps) == SweepResult(0, 0)
    assert sweep_half(maps) == SweepResult(0, 0)


def test_a_sweeper_works_in_short_turns_and_then_rests(maps: Rig) -> None:
    steps = 6

    def slow(now_ns: int) -> Sweep:
        assert abs(now_ns - time.monotonic_ns()) < 10 * SECOND_NS
        for _ in range(steps):
            until_s = time.thread_time() + 0.02
            while time.thread_time() < until_s:
                pass
            yield
        return SweepResult(7, 8)

    sweeper = Sweeper(slow, 1000, 500)
    sweeper.turn(499)
    assert sweeper.result == SweepResult(0, 0)
    for turn in range(steps):
        sweeper.turn(500 + turn)
        assert sweeper.next_ms == 500, "more to do at once"
        assert sweeper.result == SweepResult(0, 0)
    sweeper.turn(600)
    assert sweeper.result == SweepResult(7, 8)
    assert sweeper.cpu_ms >= steps * 20
    # What it cost is a fiftieth of the time until the next pass.
    assert sweeper.next_ms == 600 + int(sweeper.cpu_ms / conntrack.SHARE)
    assert sweeper.next_ms - 600 >= 50 * steps * 20


def test_a_cheap_pass_is_repeated_at_its_interval(maps: Rig) -> None:
    Made(maps, 3).write(maps, "est")
    table = conntrack.Table(maps.table("est"))
    sweeper = Sweeper(lambda _: conntrack.sweep_established(table, NOW_NS), 60_000, 0)
    while sweeper.next_ms == 0:
        sweeper.turn(1)
    assert sweeper.next_ms == 60_001
    assert sweeper.result == SweepResult(3, 0)


# --------------------------------------------------------------------------- listing


def test_a_flow_is_listed_in_words(maps: Rig) -> None:
    Made(maps, 1, idle_s=2.5).write(maps, "est")
    table = conntrack.Table(maps.table("est"))
    flows, total = conntrack.list_flows(table, NOW_NS, None, 10)
    assert total == 1
    assert flows == [
        FlowView(
            protocol="tcp",
            client="192.0.2.1:256",
            vip="10.80.0.100:8080",
            snat="10.81.0.99:256",
            node="10.81.0.20:80",
            seat=1,
            state="established",
            idle_ms=2500,
            age_ms=3500,
        )
    ]
    row = conntrack.as_row(flows[0], SeatState(1, "default", "node-0@10.81.0.20", 9, 0.5, True))
    assert (row["node_id"], row["service"]) == ("node-0@10.81.0.20", "default")
    assert "seat" not in row
    nobody = conntrack.as_row(flows[0], None)
    assert (nobody["node_id"], nobody["service"]) == (None, None)


def test_protocols_and_states_of_a_later_version_are_listed_too(maps: Rig) -> None:
    Made(maps, 1, protocol=132, state=77).write(maps, "est")
    flows, _ = conntrack.list_flows(conntrack.Table(maps.table("est")), NOW_NS, None, 10)
    assert (flows[0].protocol, flows[0].state) == ("132", "closed")


@pytest.mark.parametrize("limit", [1, 10, 9999, 10_000, 20_000])
def test_limits_hold_over_batches_and_the_total_is_all(maps: Rig, limit: int) -> None:
    Made(maps, 10_000).write(maps, "est")
    table = conntrack.Table(maps.table("est"))
    flows, total = conntrack.list_flows(table, NOW_NS, None, limit)
    assert (len(flows), total) == (min(limit, 10_000), 10_000)
    assert len({flow.client for flow in flows}) == len(flows)


def test_only_flows_to_the_seats_asked_for(maps: Rig) -> None:
    Made(maps, 100).write(maps, "est")
    table = conntrack.Table(maps.table("est"))
    flows, total = conntrack.list_flows(table, NOW_NS, frozenset({2}), 7)
    assert (len(flows), total) == (7, 50)
    assert {flow.seat for flow in flows} == {2}
    assert conntrack.list_flows(table, NOW_NS, frozenset(), 7) == ([], 0)
