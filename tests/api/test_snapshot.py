"""The shapes of `/v1/...`: names that may be relied on, and ages that go on."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from bus import topics
from bus.states import (
    CommittedTable,
    NodeTable,
    Part,
    QuorumMember,
    SeatCounters,
    ServiceState,
)
from bus.topics import Topic
from bus.words import NodeState
from services.api import snapshot
from services.api.fold import Fold
from services.api.snapshot import Local
from tests.api.samples import (
    checks,
    counters,
    dataplane,
    envelope,
    everything,
    node,
    node_id,
    quorum,
    seat,
    started,
    table,
    view,
)

NOBODY = seat("node-0", 0, 9)
LOCAL = Local("lb-0", "l4", "0.1.0", 99, "10.80.0.10", "")
SOURCES = {
    Topic.STATE_VIEW: topics.HEALTH,
    Topic.STATE_CHECKS: topics.HEALTH,
    Topic.STATE_TABLE: topics.QUORUM,
    Topic.STATE_QUORUM: topics.QUORUM,
    Topic.STATE_DATAPLANE: topics.DATAPLANE,
    Topic.STATE_COUNTERS: topics.DATAPLANE,
}


def fold_with(at_ms: int = 0, **states: Any) -> Fold:
    """A fold that received the given states: `view=...`, `table=...`, ... at one moment."""
    fold = Fold("api", {})
    for name, data in states.items():
        topic = Topic(f"state.{name}.")
        fold.receive(envelope(SOURCES[topic], topic, data, made_ms=at_ms), at_ms)
    return fold


def nodes_of(fold: Fold, now_ms: int = 0) -> list[snapshot.NodeShape]:
    shape = snapshot.nodes(fold, now_ms)
    assert shape is not None
    return shape.nodes


def test_the_names_that_may_be_relied_on() -> None:
    relied_on = {
        snapshot.NodeShape: "id name address state reason weight share fails banned_for_ms"
        " observed_ms",
        snapshot.QuorumShape: "name role term leader epoch quorum lease_remaining_ms vips members"
        " observed_ms",
        snapshot.MemberShape: "name address alive term epoch",
        snapshot.StatusShape: "name mode version processes services observed_ms",
        snapshot.ProcessShape: "age_ms boot pid",
        snapshot.ServiceShape: "name address port protocol mode observed_ms",
    }
    for shape, names in relied_on.items():
        assert set(names.split()) <= {field.name for field in fields(shape)}, shape


def test_nothing_known_is_none_and_not_empty() -> None:
    fold = Fold("api", {})
    assert snapshot.nodes(fold, 0) is None
    assert snapshot.services(fold, LOCAL, 0) is None
    assert snapshot.quorum(fold, 0) is None


def test_a_node_with_its_share_of_all_rings() -> None:
    seats = (
        seat("node-0", 60, 100),
        seat("node-1", 40, 100),
        seat("node-1", 100, 100, service="echo"),
    )
    fold = fold_with(view=view(node(), node("node-1")), dataplane=dataplane(*seats))
    first, second = nodes_of(fold)
    assert (first.name, first.state, first.share) == ("node-0", "up", 0.3)
    assert second.share == 0.7
    assert [(at.service, at.port, at.share) for at in second.services] == [
        ("default", 8080, 0.4),
        ("echo", None, 1.0),
    ]


def test_a_node_in_slow_start_says_what_it_has_and_for_how_long() -> None:
    starting = (Part(node_id("node-0"), "default", 30, 30, 6_000),)
    committed = table("node-0", "node-1")
    fold = fold_with(
        view=view(node(), node("node-1")),
        table=replace(committed, table=replace(committed.table, parts=starting)),
        dataplane=dataplane(seat("node-0", 30, 130), seat("node-1", 100, 130)),
    )
    shown = [(at.percent, at.slow_start_ms) for n in nodes_of(fold, 2_500) for at in n.services]
    assert shown == [(30, 3_500), (100, 0)]
    offered = snapshot.services(fold, LOCAL, 2_500)
    assert offered is not None
    assert [at.percent for at in offered.services[0].nodes] == [30, 100]


def test_the_ban_of_one_service_runs_down() -> None:
    banned = ServiceState("default", NodeState.BANNED, "banned after 3 failures", 50_000)
    fold = fold_with(view=view(node(apart=(banned,))), dataplane=dataplane(seat("node-0", 0, 100)))
    (shown,) = nodes_of(fold, 20_000)
    assert (shown.banned_for_ms, shown.services[0].banned_for_ms) == (0, 30_000)
    assert nodes_of(fold, 60_000)[0].services[0].banned_for_ms == 0


def test_a_backup_that_is_not_needed_says_so() -> None:
    committed = table("node-0")
    idle = replace(committed.table, parts=(Part(node_id("node-0"), "default", 0, 100, 0),))
    fold = fold_with(
        view=view(node(backup=True)),
        table=replace(committed, table=idle),
        dataplane=dataplane(seat("node-0", 0, 100)),
    )
    (shown,) = nodes_of(fold)
    assert shown.backup
    assert [at.reason for at in shown.services] == [snapshot.IDLE_BACKUP]


def test_why_a_node_takes_no_new_flows_at_a_service() -> None:
    """What the dataplane says of the very service outranks what is known of the node."""
    far = replace(seat("node-0", 0, 100, service="echo"), reason="it is behind the router")
    seats = [seat(f"node-{number}", 25, 100) for number in range(4)]
    fold = fold_with(
        view=view(
            node(),
            node("node-1", state=NodeState.DOWN, reason="port 8080 refuses"),
            node("node-2", weight=0),
            node("node-3"),
        ),
        table=CommittedTable(1, with_state(table("node-0", "node-3"), "node-3", NodeState.DOWN)),
        dataplane=dataplane(*seats, far),
    )
    told = {
        (at.node, at.service): (at.state, at.reason) for n in nodes_of(fold) for at in n.services
    }
    expected = {
        (node_id("node-0"), "default"): ("up", ""),
        (node_id("node-0"), "echo"): ("up", "it is behind the router"),
        (node_id("node-1"), "default"): ("down", "port 8080 refuses"),
        (node_id("node-2"), "default"): ("up", "its weight is 0"),
        (node_id("node-3"), "default"): ("up", "the load balancers have agreed that it is down"),
    }
    assert told == expected
    offered = snapshot.services(fold, LOCAL, 0)
    assert offered is not None
    (service,) = offered.services
    assert {at.node: (at.state, at.reason) for at in service.nodes} == {
        number: said for (number, name), said in expected.items() if name == "default"
    }


def with_state(committed: CommittedTable, name: str, state: NodeState) -> NodeTable:
    nodes = (replace(n, state=state) if n.name == name else n for n in committed.table.nodes)
    return replace(committed.table, nodes=tuple(nodes))


def test_what_is_left_out_is_a_warning_and_the_lb_is_ready() -> None:
    left_out = "node n@10.81.0.29 at web: all 65,535 seats are taken"
    forwards = replace(dataplane(seat("node-0", 9, 9)), left_out=(left_out,))
    fold = fold_with(dataplane=forwards, table=table("node-0"), quorum=quorum())
    status = snapshot.status(fold, LOCAL, 0)
    assert (status.warnings, status.ready) == ([left_out], True)


def test_whether_there_are_keys_is_said() -> None:
    fold = fold_with(quorum=quorum())
    said = [snapshot.status(fold, replace(LOCAL, keys=there), 0).keys for there in (True, False)]
    assert said == [True, False]


def test_ages_and_remainders_go_on() -> None:
    fold = fold_with(
        at_ms=1000,
        view=view(node(banned_for_ms=500)),
        checks=checks(node()),
        quorum=quorum(
            lease_remaining_ms=200,
            members=(QuorumMember("lb-1", "10.81.0.11:8081", True, 3, 1, 40),),
        ),
    )
    (shown,) = nodes_of(fold, 1300)
    assert (shown.observed_ms, shown.banned_for_ms) == (400, 200)
    assert nodes_of(fold, 9000)[0].banned_for_ms == 0
    agreement = snapshot.quorum(fold, 1150)
    assert agreement is not None
    assert (agreement.lease_remaining_ms, agreement.observed_ms) == (50, 150)
    assert agreement.members[0].heard_ms == 190
    later = snapshot.quorum(fold, 5000)
    assert later is not None
    assert later.lease_remaining_ms == 0


def test_a_node_is_shown_as_seen_from_here_beside_what_is_agreed() -> None:
    fold = fold_with(view=view(node(state=NodeState.DOWN)), table=table("node-0", "node-9"))
    seen, agreed = nodes_of(fold)
    assert (seen.state, seen.agreed_state) == ("down", "up")
    assert (agreed.name, agreed.state) == ("node-9", "up")
    assert "not heard of it" in agreed.reason


def test_a_node_nobody_agreed_on_yet() -> None:
    fold = fold_with(view=view(node(state=NodeState.PROBATION)), table=table())
    assert [(shown.state, shown.agreed_state) for shown in nodes_of(fold)] == [("probation", None)]


def test_a_node_that_waits_for_its_service_to_begin_says_so() -> None:
    seen = view(node(), node("node-1", state=NodeState.PROBATION))
    waiting = fold_with(view=seen, table=table(), dataplane=dataplane())
    first, second = nodes_of(waiting)
    assert first.reason == snapshot.NOT_OPEN
    assert second.reason != snapshot.NOT_OPEN, "it is not up"
    (reason,) = (each for each in snapshot.readiness(waiting, 0) if each.startswith("nodes"))
    assert reason.startswith("nodes: none is routed to yet, though some are up")
    for agreed in (table("node-0"), table("node-9")):
        (first, *_) = nodes_of(fold_with(view=seen, table=agreed))
        assert first.reason != snapshot.NOT_OPEN, "its service is open"
    (first, *_) = nodes_of(fold_with(view=seen))
    assert first.reason != snapshot.NOT_OPEN, "nothing is known of the table"


def test_a_service_with_its_nodes_and_counters() -> None:
    counted = SeatCounters("default", node_id("node-0"), 1, 2, 3, 4, 5)
    fold = fold_with(
        table=table("node-0"),
        dataplane=dataplane(seat("node-0", 65537, 65537), seat("node-1", 0, 65537)),
        counters=counters(counted),
    )
    shape = snapshot.services(fold, LOCAL, 70)
    assert shape is not None
    (service,) = shape.services
    assert (service.name, service.address, service.port) == ("default", "10.80.0.10", 8080)
    assert (service.nodes_up, service.observed_ms) == (1, 70)
    first = service.nodes[0]
    assert (first.port, first.packets_in, first.bytes_out, first.flows) == (8080, 1, 4, 5)
    assert service.nodes[1].packets_in == 0


def test_status_at_a_glance() -> None:
    fold = Fold("api-boot", {})
    for message in everything():
        fold.receive(message, 1000)
    status = snapshot.status(fold, LOCAL, 1040)
    assert (status.name, status.mode, status.version, status.ready) == ("lb-0", "l4", "0.1.0", True)
    assert list(status.processes) == ["dataplane", "health", "quorum", "api"]
    assert {process.age_ms for process in status.processes.values()} == {0, 40}
    assert status.processes["health"].pid == 4242
    assert (status.processes["api"].boot, status.processes["api"].pid) == ("api-boot", 99)
    assert status.nodes == {
        "probation": 0,
        "up": 1,
        "suspect": 0,
        "draining": 0,
        "down": 0,
        "banned": 0,
    }
    assert [service.name for service in status.services] == ["default"]
    assert status.dataplane is not None
    assert status.dataplane.conntrack_established == 5
    assert status.observed_ms == 40


def test_a_process_never_heard_has_no_age() -> None:
    status = snapshot.status(Fold("api", {}), LOCAL, 0)
    assert status.processes["health"].age_ms is None
    assert not status.processes["health"].alive
    assert status.observed_ms is None
    assert not status.ready


def test_a_silent_process_is_not_alive() -> None:
    fold = Fold("api", {})
    fold.receive(envelope(topics.HEALTH, Topic.PROCESS_STARTED, started("health")), 0)
    assert snapshot.status(fold, LOCAL, snapshot.STALE_MS).processes["health"].alive
    assert not snapshot.status(fold, LOCAL, snapshot.STALE_MS + 1).processes["health"].alive


@pytest.mark.parametrize(
    ("states", "now_ms", "reason"),
    [
        ({}, 0, None),
        ({}, 5000, None),
        ({}, 7000, "dataplane: nothing heard for 7 s"),
        ({"dataplane": dataplane(ready=False, waiting_for="pub0")}, 0, "dataplane: pub0"),
        ({"dataplane": dataplane(ready=False)}, 0, "dataplane: not ready"),
        ({"quorum": quorum(quorum=False)}, 0, "quorum: no majority is heard"),
        ({"table": None}, 0, "node table: nothing known yet"),
        ({"quorum": None}, 0, "quorum: nothing known yet"),
        ({"dataplane": None}, 0, "dataplane: nothing known yet"),
        ({"view": None}, 0, None),
        ({"dataplane": dataplane()}, 0, "nodes: none is up for any service"),
        ({"dataplane": dataplane(NOBODY, replace(NOBODY, service="echo"))}, 0, "nodes: none is up"),
        ({"dataplane": dataplane(NOBODY, seat("node-1", 1, 9, service="echo"))}, 0, None),
    ],
)
def test_readiness(states: dict[str, Any], now_ms: int, reason: str | None) -> None:
    forwards = dataplane(seat("node-0", 9, 9))
    well = {"view": view(), "table": table(), "quorum": quorum(), "dataplane": forwards}
    known: dict[str, Any] = {
        name: state for name, state in (well | states).items() if state is not None
    }
    reasons = snapshot.readiness(fold_with(**known), now_ms)
    if reason is None:
        assert reasons == []
    else:
        assert any(said.startswith(reason) for said in reasons)


@pytest.mark.parametrize(
    ("name", "process"),
    [("view", "health"), ("quorum", "quorum"), ("dataplane", "dataplane")],
)
def test_what_a_process_waits_for_is_shown(name: str, process: str) -> None:
    well: dict[str, Any] = {"view": view(), "quorum": quorum(), "dataplane": dataplane()}
    states: dict[str, Any] = {name: replace(well[name], waiting_for="priv0: no address")}
    fold = fold_with(**states)
    processes = snapshot.status(fold, LOCAL, 0).processes
    assert processes[process].waiting_for == "priv0: no address"


def test_where_another_list_of_lbs_is_staged_is_said_and_why_it_waits() -> None:
    def shown(*lists: str, agreed: str = "old", why: str = "") -> tuple[str, list[bool]]:
        members = tuple(
            QuorumMember(f"lb-{number}", f"10.81.0.1{number}:8081", True, 3, 1, 0, listed=each)
            for number, each in enumerate(lists)
        )
        state = quorum(members=members, listed=agreed, why_not_listed=why)
        said = snapshot.quorum(fold_with(quorum=state), 0)
        assert said is not None
        return said.listed, [member.listed for member in said.members]

    assert shown("old", "old", "") == ("", [False] * 3)
    assert shown("old", "new", "") == ("staged on 1 of 2: lb-1", [False, True, False])
    waits = shown("new", "new", why="lb-0 leads")
    assert waits == ("staged on 2 of 2: lb-0, lb-1; waits: lb-0 leads", [True, True])
    assert shown("new", "new", agreed="") == ("", [False, False])
    assert shown("old", "old", why="of before") == ("", [False, False])


@pytest.mark.parametrize(("voters", "words"), [(1, ""), (2, "2 vote"), (3, ""), (4, "than of 3")])
def test_an_even_number_of_voters_is_said_to_be_one(voters: int, words: str) -> None:
    members = tuple(
        QuorumMember(f"lb-{number}", f"10.81.0.1{number}:8081", True, 3, 1, 0)
        for number in range(voters)
    )
    said = snapshot.quorum(fold_with(quorum=quorum(members=members)), 0)
    assert said is not None
    assert words in said.advice
    assert bool(said.advice) == bool(words)


def test_a_node_is_found_by_its_id_or_by_a_name_of_its_own() -> None:
    one, other = node("n", id="n@10.81.0.1"), node("n", id="n@10.81.0.2")
    nodes = nodes_of(fold_with(view=view(node("node-0"), one, other)))
    for who, meant in (
        ("node-0", node_id("node-0")),
        (one.id, one.id),
        ("n", "n"),
        ("nosuch", "nosuch"),
    ):
        assert snapshot.id_of(who, nodes) == meant
