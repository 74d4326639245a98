"""A service that begins is given its nodes together, or when a grace is over."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.states import NodeService, NodeView, ServiceState, TableNode
from bus.topics import Topic
from bus.words import NodeState
from services.quorum.core import Quorum
from services.quorum.durable import BLANK, HardState
from services.quorum.opening import LONGEST_GRACE_MS, Opening, living
from services.quorum.table import Report, TableConfig
from tests.quorum.cluster import Cluster
from tests.quorum.views import ECHO, WEB, quorum_config, seen, view, work_off

UP, SUSPECT, DOWN, BANNED = NodeState.UP, NodeState.SUSPECT, NodeState.DOWN, NodeState.BANNED
PROBATION, DRAINING = NodeState.PROBATION, NodeState.DRAINING
GRACE_MS = 1_000


def offering(node: NodeView, *services: str) -> NodeView:
    return replace(node, services=tuple(NodeService(each, 80) for each in services))


def agreed(node: NodeView, state: NodeState | None = None) -> TableNode:
    return TableNode(
        *(node.id, node.name, node.address, state or node.state, 1, node.services), apart=node.apart
    )


def held(
    opening: Opening,
    now_ms: int,
    *nodes: NodeView,
    listed: tuple[TableNode, ...] = (),
    settled: bool = True,
) -> set[str]:
    """The names of those that one LB sees, and whom it does not let in yet."""
    report = {"lb-0": Report(view(*nodes), settled, 0)}
    coming = tuple(agreed(each) for each in nodes if each.state in (UP, SUSPECT, DRAINING, BANNED))
    there = {each.id for each in listed}
    table = listed + tuple(each for each in coming if each.id not in there)
    return {each.partition("@")[0] for each in opening.held_back(listed, table, report, now_ms)}


def some(state: NodeState, names: str) -> list[NodeView]:
    return [seen(name, state) for name in names]


@pytest.mark.parametrize(
    ("up", "waited_for", "waits"),
    [
        ("a", "", False),
        ("a", "b", False),
        ("a", "bc", True),
        ("ab", "cde", True),
        ("abc", "def", False),
    ],
)
def test_half_of_those_that_are_known_open_it(up: str, waited_for: str, waits: bool) -> None:
    nodes = some(UP, up) + some(PROBATION, waited_for)
    assert held(Opening(GRACE_MS), 0, *nodes) == (set(up) if waits else set())


def test_the_dead_and_the_banned_are_not_waited_for() -> None:
    nodes = some(UP, "a") + some(DOWN, "bcd") + some(PROBATION, "e")
    assert held(Opening(GRACE_MS), 0, *nodes) == set()


def test_the_grace_counts_from_the_first_that_is_up() -> None:
    opening = Opening(GRACE_MS)
    assert held(opening, 0, *some(PROBATION, "abcd")) == set()
    assert opening.next_due_ms() is None
    assert held(opening, 300, *some(UP, "a"), *some(PROBATION, "bcd")) == {"a"}
    assert opening.next_due_ms() == 300 + GRACE_MS
    assert held(opening, 900, *some(PROBATION, "abcd")) == set(), "it is down again"
    assert opening.over(299 + GRACE_MS) == frozenset()
    assert opening.over(300 + GRACE_MS) == {"default"}
    assert held(opening, 300 + GRACE_MS, *some(UP, "a"), *some(PROBATION, "bcd")) == set()
    assert opening.next_due_ms() is None


def test_what_is_open_is_never_closed() -> None:
    opening = Opening(GRACE_MS)
    assert held(opening, 0, *some(UP, "ab"), *some(PROBATION, "c")) == set()
    assert held(opening, 1, *some(UP, "c"), *some(PROBATION, "defg")) == set(), "all were forgotten"


def test_a_table_with_nodes_is_open_whoever_leads() -> None:
    for state in (UP, DOWN):
        listed = (agreed(seen("a", UP), state),)
        now = [*some(UP, "b"), *some(PROBATION, "cdef")]
        assert held(Opening(GRACE_MS), 0, *now, listed=listed) == set()


def test_each_service_opens_for_itself_and_a_node_waits_for_the_last_of_its_own() -> None:
    opening = Opening(GRACE_MS)
    web = [offering(each, "web") for each in some(PROBATION, "ab")]
    both = offering(seen("c", UP), "web", "dns")
    dns = offering(seen("d", UP), "dns")
    more = [offering(each, "dns") for each in some(PROBATION, "efg")]
    assert held(opening, 0, *web, both, dns, *more) == {"c", "d"}
    assert held(opening, 1, *web, both, dns, *more[:-1]) == set(), "two of four for dns"


def test_where_a_node_comes_in_it_opens_all_that_it_offers() -> None:
    opening = Opening(GRACE_MS)
    both = offering(seen("c", UP), "web", "dns")
    dns = [offering(each, "dns") for each in some(PROBATION, "defg")]
    assert held(opening, 0, both, *dns) == set(), "it is the only one of web"
    up = offering(seen("d", UP), "dns")
    assert held(Opening(GRACE_MS), 1, both, up, *dns[1:], listed=(agreed(both),)) == set()


def test_a_service_that_a_node_does_not_serve_yet_is_not_opened_by_it() -> None:
    apart = replace(offering(seen("a", UP), "dns"), apart=(ServiceState("dns", DOWN),))
    rest = [offering(each, "dns") for each in some(PROBATION, "b")]
    assert held(Opening(GRACE_MS), 0, apart, *rest) == {"a"}


def test_known_is_what_most_of_those_say_that_have_an_opinion() -> None:
    a, b = seen("a", PROBATION), seen("b", PROBATION)
    views = {"lb-0": view(a, b), "lb-1": view(a), "lb-2": view()}
    for settled, known in ((True, {a.id}), (False, {a.id, b.id})):
        reports = {lb: Report(each, settled, 0) for lb, each in views.items()}
        assert living(reports, ["default", "echo"]) == {"default": known, "echo": set()}


def test_an_lb_that_has_only_just_begun_has_an_opinion_of_what_it_names() -> None:
    reports = {
        "lb-0": Report(view(*some(PROBATION, "ab")), False, 0),
        "lb-1": Report(view(*some(DOWN, "a")), False, 0),
    }
    assert living(reports, ["default"]) == {"default": {seen("b", UP).id}}


def test_a_node_that_offers_nothing_waits_for_nothing() -> None:
    nodes = [offering(seen("a", UP)), *some(UP, "b"), *some(PROBATION, "cd")]
    assert held(Opening(GRACE_MS), 0, *nodes) == {"b"}


# --------------------------------------------------------------------------- together


def nodes_of(core: Quorum, now_ms: int) -> set[str]:
    held = core.committed(now_ms)
    assert held is not None
    return {node.name for node in held.table.nodes}


def begun(now_ms: int = 10) -> tuple[Quorum, list[HardState]]:
    """One LB with an empty disk that has just heard of four nodes, one of which is UP."""
    disk: list[HardState] = []
    core = Quorum(quorum_config(), BLANK, 7, 0)
    work_off(core, 0, disk)
    core.report("b", view(*some(UP, "a"), *some(PROBATION, "bcd")), now_ms)
    work_off(core, now_ms, disk)
    return core, disk


def test_one_lb_alone_opens_with_half_of_its_nodes() -> None:
    core, _ = begun()
    assert nodes_of(core, 10) == set()
    core.report("b", view(*some(UP, "ab"), *some(PROBATION, "cd"), version=2), 20)
    work_off(core, 20)
    assert nodes_of(core, 20) == {"a", "b"}
    core.report("b", view(*some(UP, "abc"), *some(PROBATION, "d"), version=3), 30)
    work_off(core, 30)
    assert nodes_of(core, 30) == {"a", "b", "c"}


def test_a_ban_is_listed_with_its_node() -> None:
    core, _ = begun(10)
    banned = seen("e", BANNED, ban_ms=9_000, fails=3)
    for now_ms, state, bans in ((20, PROBATION, 0), (30, UP, 1)):
        nodes = (*some(UP, "a"), *some(state, "b"), *some(PROBATION, "cd"), banned)
        core.report("b", view(*nodes, version=now_ms), now_ms)
        work_off(core, now_ms)
        committed = core.committed(now_ms)
        assert committed is not None
        assert len(committed.table.bans) == bans


def test_it_wakes_by_itself_when_the_grace_is_over_and_once() -> None:
    core, disk = begun(10)
    assert core.next_due_ms() == 10 + GRACE_MS
    core.tick(9 + GRACE_MS)
    work_off(core, 9 + GRACE_MS, disk)
    assert nodes_of(core, 9 + GRACE_MS) == set()
    core.tick(10 + GRACE_MS)
    work_off(core, 10 + GRACE_MS, disk)
    assert nodes_of(core, 10 + GRACE_MS) == {"a"}
    due_ms = core.next_due_ms()
    assert due_ms is None or due_ms > 10 + GRACE_MS
    again = Quorum(quorum_config(), disk[-1], 7, 5_000)
    work_off(again, 5_000)
    again.report("c", view(*some(UP, "b"), *some(PROBATION, "acd")), 5_001)
    work_off(again, 5_001)
    assert nodes_of(again, 5_001) == {"a", "b"}, "what is adopted is open"


def test_a_reload_changes_the_grace_which_is_never_long() -> None:
    core, _ = begun(10)
    core.reconfigure(quorum_config(checks_timeout_ms=3_600_000), 15)
    work_off(core, 15)
    assert core.next_due_ms() == 10 + LONGEST_GRACE_MS
    core.reconfigure(quorum_config(checks_timeout_ms=300), 20)
    work_off(core, 20)
    assert core.next_due_ms() == 310


def test_a_cluster_opens_once_for_all() -> None:
    made = Cluster("lb-0", "lb-1", "lb-2", table=TableConfig((WEB, ECHO), ()))
    made.until(made.leader)
    first = view(*some(UP, "a"), *some(PROBATION, "bcd"))
    made.see(*((name, first) for name in made.cores))
    made.run(GRACE_MS // 2)
    assert [nodes_of(core, made.now_ms) for core in made.cores.values()] == [set()] * 3
    began_ms = made.now_ms
    more = view(*some(UP, "abc"), *some(PROBATION, "d"), version=2)
    made.see(*((name, more) for name in made.cores))
    made.until(lambda: all(nodes_of(core, made.now_ms) for core in made.cores.values()))
    assert made.now_ms - began_ms < GRACE_MS // 4
    assert [nodes_of(core, made.now_ms) for core in made.cores.values()] == [{"a", "b", "c"}] * 3
    assert Topic.TABLE_COMMITTED in {topic for _, topic, _ in made.events}


def test_a_new_leader_gives_a_grace_of_its_own() -> None:
    made = Cluster("lb-0", "lb-1", "lb-2", table=TableConfig((WEB,), ()))
    made.until(made.leader)
    first = view(*some(UP, "a"), *some(PROBATION, "bcd"))
    made.see(*((name, first) for name in made.cores))
    made.run(GRACE_MS // 2)
    leader = made.leader()
    assert leader is not None
    made.silent = {leader}
    made.until(lambda: made.leader() not in (None, leader))
    began_ms = made.now_ms
    left = [name for name in made.cores if name != leader]
    made.until(lambda: all(nodes_of(made.cores[name], made.now_ms) for name in left))
    assert GRACE_MS <= made.now_ms - began_ms < GRACE_MS + 300
