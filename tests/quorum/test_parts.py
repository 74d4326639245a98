"""Slow start: how a node's part of its weight rises, who decides that, and what it costs."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.events import TableEvent
from bus.states import NodeService, NodeTable, NodeView, ServiceState
from bus.words import NodeState
from services.quorum.core import Quorum
from services.quorum.durable import HardState
from services.quorum.parts import FIRST, STEPS, level, next_step_ms, step_gap_ms
from services.quorum.table import Report, TableConfig, aged, bootstrap, merge
from tests.quorum.cluster import Cluster
from tests.quorum.views import ECHO, WEB, quorum_config, seen, view, work_off

UP, SUSPECT, DRAINING = NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING
DOWN, PROBATION = NodeState.DOWN, NodeState.PROBATION
SLOW_MS = 9_000
SLOW = replace(WEB, slow_start_ms=SLOW_MS)
CONFIG = TableConfig((SLOW,), ())


def merged(
    before: NodeTable, *nodes: NodeView, config: TableConfig = CONFIG, step: bool = False
) -> NodeTable:
    reports = {"lb-0": Report(view(*nodes), settled=True, age_ms=0)}
    return merge(before, reports, config, ["lb-0"], term=1, step=step)


def percents(table: NodeTable) -> dict[str, int]:
    """Of all nodes that are in slow start."""
    return {part.node.partition("@")[0]: part.percent for part in table.parts}


def warm(*names: str) -> NodeTable:
    """A table in which these nodes have their whole weight."""
    table = merged(bootstrap(1, 7), *(seen(name, UP) for name in names))
    return merged(aged(table, SLOW_MS), *(seen(name, UP) for name in names), step=True)


def returned(state: NodeState = UP) -> NodeTable:
    """Three warm nodes, of which one went and is back."""
    gone = merged(warm("a", "b", "c"), seen("a", UP), seen("b", UP), seen("c", DOWN))
    return merged(gone, seen("a", UP), seen("b", UP), seen("c", state))


def test_levels_rise_in_equal_steps_from_the_first_to_all() -> None:
    left = [SLOW_MS - number * 1_000 for number in range(STEPS + 1)]
    assert [level(ms, SLOW_MS) for ms in left] == [10, 20, 30, 40, 50, 60, 70, 80, 90, 100]
    assert level(SLOW_MS - 999, SLOW_MS) == FIRST


@pytest.mark.parametrize("state", [UP, SUSPECT])
def test_a_node_that_is_back_begins_with_little(state: NodeState) -> None:
    table = returned(state)
    assert percents(table) == {"c": 10}
    assert table.nodes[2].weight == 1
    assert table.parts[0].remaining_ms == SLOW_MS


def test_time_raises_it_to_all_of_its_weight() -> None:
    table, nodes = returned(), [seen(name, UP) for name in "abc"]
    found = []
    while table.parts:
        wait_ms = next_step_ms(table)
        assert wait_ms == 1_000
        table = merged(aged(table, wait_ms), *nodes, step=True)
        found.append(percents(table).get("c"))
    assert found == [20, 30, 40, 50, 60, 70, 80, 90, None]
    assert next_step_ms(table) is None


def test_without_a_slow_start_all_have_their_whole_weight() -> None:
    gone = merged(warm("a", "b"), seen("a", UP), seen("b", DOWN))
    plain = TableConfig((WEB,), ())
    assert merged(gone, seen("a", UP), seen("b", UP), config=plain).parts == ()


def test_the_first_nodes_of_an_empty_service_have_their_whole_weight() -> None:
    table = merged(bootstrap(1, 7), seen("a", UP), seen("b", UP))
    assert percents(table) == {"a": 100, "b": 100}
    alone = merged(bootstrap(1, 7), seen("a", UP))
    assert percents(alone) == {"a": 100}


def test_those_that_follow_soon_do_not_leave_the_work_to_the_first() -> None:
    first = merged(bootstrap(1, 7), seen("a", UP))
    later = merged(aged(first, 1_500), seen("a", UP), seen("b", UP), step=True)
    assert percents(later) == {"a": 100, "b": 50}
    end = merged(aged(later, 5_000), seen("a", UP), seen("b", UP), step=True)
    assert percents(end) == {"a": 100, "b": 60 * 100 // 70}


def test_when_all_that_were_warm_are_gone_the_others_have_it_all() -> None:
    cold = merged(returned(), seen("a", DOWN), seen("b", DOWN), seen("c", UP))
    assert percents(cold) == {"c": 100}
    again = merged(aged(cold, 2_000), seen("a", UP), seen("b", DOWN), seen("c", UP), step=True)
    assert percents(again) == {"a": 33, "c": 100}


def test_a_node_of_no_weight_is_no_measure() -> None:
    idle = merged(warm("a"), seen("a", UP, weight=0))
    assert percents(merged(idle, seen("a", UP, weight=0), seen("b", UP))) == {"b": 100}


def test_a_drain_that_ends_is_a_return_and_doubt_is_not() -> None:
    table = warm("a", "b")
    drained = merged(table, seen("a", UP), seen("b", DRAINING))
    assert percents(merged(drained, seen("a", UP), seen("b", UP))) == {"b": 10}
    doubted = merged(table, seen("a", UP), seen("b", SUSPECT))
    assert percents(merged(doubted, seen("a", UP), seen("b", UP))) == {}


def test_a_service_of_a_node_that_comes_back_begins_anew_and_its_others_go_on() -> None:
    config = TableConfig((replace(ECHO, slow_start_ms=SLOW_MS), SLOW), ())
    services = (NodeService("default", 8080), NodeService("echo", 9000))
    both = [replace(seen(name, UP), services=services) for name in "ab"]
    sick = [both[0], replace(both[1], apart=(ServiceState("echo", DOWN),))]
    table = merged(bootstrap(1, 7), *both, config=config)
    table = merged(aged(table, SLOW_MS), *both, config=config, step=True)
    back = merged(merged(table, *sick, config=config), *both, config=config)
    assert [(part.node[0], part.service, part.percent) for part in back.parts] == [
        ("b", "echo", 10)
    ]


def test_who_goes_in_the_middle_begins_anew() -> None:
    half = merged(aged(returned(), 4_000), *(seen(name, UP) for name in "abc"), step=True)
    assert percents(half) == {"c": 50}
    gone = merged(half, seen("a", UP), seen("b", UP), seen("c", DOWN))
    assert gone.parts == ()
    assert percents(merged(gone, *(seen(name, UP) for name in "abc"))) == {"c": 10}


def test_a_table_made_for_another_reason_steps_nobody() -> None:
    table = aged(returned(), 4_500)
    after = merged(table, seen("a", UP), seen("b", DRAINING), seen("c", UP))
    assert percents(after) == {"c": 10}


def test_time_is_no_content_and_a_step_that_changes_no_part_is_no_new_table() -> None:
    nodes = [seen(name, UP) for name in "abc"]
    table = returned()
    assert merged(aged(table, 300), *nodes, step=True).epoch == table.epoch
    assert merged(aged(table, 1_000), *nodes, step=True).epoch == table.epoch + 1
    first = merged(bootstrap(1, 7), *nodes)
    over = merged(aged(first, SLOW_MS), *nodes, step=True)
    assert (over.parts, over.epoch) == ((), first.epoch)


def test_another_slow_start_holds_for_those_that_are_in_one() -> None:
    nodes = [seen(name, UP) for name in "abc"]
    shorter = TableConfig((replace(WEB, slow_start_ms=900),), ())
    assert merged(returned(), *nodes, config=shorter).parts[0].remaining_ms == 900
    assert merged(returned(), *nodes, config=TableConfig((WEB,), ())).parts == ()


def test_what_a_step_did_is_told() -> None:
    core, _ = alone()
    events = [event for ready in run(core, 12_000) for event in ready]
    assert "default at c: 20 % of its weight" in events
    assert events[-1] == "default at c: 100 % of its weight"


# --------------------------------------------------------------------------- backups

PLAIN = TableConfig((replace(WEB, min_healthy=50),), ())


def guarded(*states: NodeState, config: TableConfig = PLAIN, backups: int = 1) -> dict[str, int]:
    """What parts the backups have when the four others are in these states."""
    names = "abcd"[: len(states)]
    spare = [replace(seen(f"z{number}", UP), backup=True) for number in range(backups)]
    table = merged(bootstrap(1, 7), *(seen(name, UP) for name in names), *spare, config=config)
    nodes = [seen(name, state) for name, state in zip(names, states, strict=True)]
    return percents(merged(table, *nodes, *spare, config=config))


@pytest.mark.parametrize(
    ("states", "percent", "idle"),
    [
        ([UP, UP, UP, UP], 50, True),
        ([UP, UP, DOWN, DOWN], 50, True),
        ([UP, DOWN, DOWN, DOWN], 50, False),
        ([UP, UP, UP, DOWN], 100, False),
        ([UP, DOWN, DOWN, DOWN], 0, True),
        ([DOWN, DOWN, DOWN, DOWN], 0, False),
        ([UP, SUSPECT, SUSPECT, SUSPECT], 50, False),
        ([UP, DRAINING, DRAINING, DRAINING], 50, False),
        ([], 50, False),
    ],
)
def test_a_backup_serves_while_too_few_others_do(
    states: list[NodeState], percent: int, *, idle: bool
) -> None:
    config = TableConfig((replace(WEB, min_healthy=percent),), ())
    expected = {"z0": 0, "z1": 0} if idle else {}
    assert guarded(*states, config=config, backups=2) == expected


def test_a_backup_is_judged_service_by_service() -> None:
    services = (NodeService("default", 8080), NodeService("echo", 9000))
    config = TableConfig((ECHO, WEB), ())
    spare = replace(seen("z", UP), services=services, backup=True)
    only_one = replace(seen("a", UP), services=services, apart=(ServiceState("echo", DOWN),))
    table = merged(bootstrap(1, 7), only_one, spare, config=config)
    assert [(part.node[0], part.service, part.percent) for part in table.parts] == [
        ("z", "default", 0)
    ]


def test_a_backup_that_is_idle_is_no_measure_and_asks_for_no_step() -> None:
    spare = replace(seen("z", UP), backup=True)
    table = merged(bootstrap(1, 7), seen("a", UP), spare)
    table = merged(aged(table, SLOW_MS), seen("a", UP), spare, step=True)
    assert (percents(table), next_step_ms(table)) == ({"z": 0}, None)
    called = merged(table, seen("a", DOWN), spare)
    assert percents(called) == {}
    both = merged(called, seen("a", UP), spare)
    assert percents(both) == {"a": 100, "z": 0}


# --------------------------------------------------------------------------- who decides, and when


def alone() -> tuple[Quorum, list[HardState]]:
    """A quorum of one with three nodes, the last of which has just come back."""
    disk: list[HardState] = []
    core = Quorum(quorum_config(table=CONFIG), HardState(1, None, returned()), 7, 0)
    work_off(core, 0, disk)
    core.report("health", view(*(seen(name, UP) for name in "abc")), 0)
    work_off(core, 0, disk)
    return core, disk


def run(core: Quorum, until_ms: int, disk: list[HardState] | None = None) -> list[tuple[str, ...]]:
    """Only wake it when it asks for that; what each table changed."""
    told: list[tuple[str, ...]] = []
    now_ms = 0
    while (due_ms := core.next_due_ms()) is not None and due_ms <= until_ms:
        now_ms = max(now_ms, due_ms)
        core.tick(now_ms)
        for ready in work_off(core, now_ms, disk):
            told += [each.changes for _, each in ready.events if isinstance(each, TableEvent)]
    return told


def test_the_leader_wakes_by_itself_for_each_step_and_no_more_often() -> None:
    core, disk = alone()
    assert len(run(core, 20_000, disk)) == STEPS
    table = disk[-1].table
    assert table is not None
    assert table.parts == ()


def test_many_that_came_back_at_different_moments_step_together() -> None:
    core, _ = alone()
    nodes = {name: seen(name, UP) for name in "abc"}
    begun = 0
    for number in range(20):
        at_ms = number * 47
        nodes[f"n{number}"] = seen(f"n{number}", UP)
        core.report("health", view(*nodes.values(), version=2 + number), at_ms)
        begun += len(work_off(core, at_ms))
    steps = 0
    now_ms = 940
    while now_ms < 11_000:
        now_ms += 1
        core.tick(now_ms)
        steps += sum(ready.committed is not None for ready in work_off(core, now_ms))
    assert STEPS <= steps <= STEPS + 2
    held = core.committed(now_ms)
    assert held is not None
    assert held.table.parts == ()


def test_the_gap_is_a_step_of_the_shortest_slow_start() -> None:
    assert step_gap_ms(returned()) == SLOW_MS // STEPS
    assert step_gap_ms(warm("a")) == 0


def test_a_slow_start_goes_on_under_another_leader() -> None:
    cluster = Cluster("lb-0", "lb-1", "lb-2", table=CONFIG)
    nodes = [seen(name, UP) for name in "abc"]

    def tell(version: int, *views: NodeView) -> None:
        cluster.see(*((lb, view(*views, version=version)) for lb in cluster.cores))

    def parts() -> dict[str, int]:
        heard = [core for name, core in cluster.cores.items() if name not in cluster.silent]
        tables = [core.committed(cluster.now_ms) for core in heard]
        found = [percents(each.table) if each is not None else None for each in tables]
        return found[0] if found[0] is not None and found.count(found[0]) == len(found) else {}

    cluster.until(cluster.leader)
    tell(1, *nodes)
    cluster.run(SLOW_MS + 2_000)
    tell(2, *nodes[:2], seen("c", DOWN))
    cluster.run(100)
    tell(3, *nodes)
    cluster.until(lambda: parts() == {"c": 10}, 100)
    begun_ms = cluster.now_ms
    cluster.until(lambda: parts() == {"c": 40}, 3_200)
    leader = cluster.leader()
    assert leader is not None
    cluster.silent.add(leader)
    cluster.until(lambda: cluster.leader() not in (None, leader))
    cluster.run(100)
    assert parts() == {"c": 40}
    cluster.until(lambda: parts() == {"c": 90}, SLOW_MS)
    assert 8_000 <= cluster.now_ms - begun_ms < 9_100


def test_a_level_that_no_leader_gives_does_no_harm() -> None:
    odd = replace(returned(), parts=(replace(returned().parts[0], level=0, percent=0),))
    assert percents(merged(odd, *(seen(name, UP) for name in "abc"))) == {"c": 10}
    alone = merged(odd, seen("a", DOWN), seen("b", DOWN), seen("c", UP))
    assert percents(alone) == {"c": 100}
