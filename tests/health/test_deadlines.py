"""When a node must have been heard, whatever this process missed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.node_protocol import Refused
from bus.topics import Topic
from bus.words import NodeState
from services.health.deadlines import FORGET_MS, STRANGER_MS, TICK_SPACING_MS
from tests.health.parts import Parts, make_node
from tests.health.rig import INTERVAL_MS, NOT_SERVING, START_MS, TIMEOUT_MS, Agent, Rig, brought_up

UP, DOWN = NodeState.UP, NodeState.DOWN


# ----------------------------------------------------------------- pauses and queues


def test_a_missed_deadline_takes_a_node_down_on_the_millisecond() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS - 1)
    assert agent.state is UP
    rig.wait(1)
    assert agent.state is DOWN
    seen = rig.observe(agent.id)
    assert (seen.fails, seen.checks_passed, seen.reason) == (1, 0, "no heartbeat for 1000 ms")
    assert rig.events[-1][0] is Topic.NODE_DOWN
    assert rig.events[-1][1].previous is UP


def test_a_node_that_beats_is_never_taken_down() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(60_000, beating=[agent])
    assert agent.state is UP
    assert rig.topics(agent.id) == [Topic.NODE_JOINED, Topic.NODE_UP]


def test_beats_that_were_queued_do_not_revive_a_dead_node() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    queue = []
    for _ in range(4):
        rig.now_ms += INTERVAL_MS
        queue.append(agent.make_beat())
    rig.now_ms += 20_000  # then it dies, and nobody here has read anything
    rig.registry.lagged(22_000, rig.now_ms)
    for frames in queue:
        agent.deliver(frames)
    seen = rig.observe(agent.id)
    assert seen.observed_ms == 20_000
    rig.wait(22_000)
    assert agent.state is DOWN
    for frames in (agent.make_beat() for _ in range(2)):
        rig.now_ms += 5_000
        agent.deliver(frames)
    assert agent.state is DOWN


def test_a_pause_of_this_process_kills_no_living_node() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.wait(700, beating=agents)
    rig.now_ms += 10_000
    rig.registry.lagged(10_000, rig.now_ms)
    rig.tick()
    assert {agent.state for agent in agents} == {UP}
    rig.wait(5_000, beating=agents)
    assert {agent.state for agent in agents} == {UP}


def test_a_pause_of_this_process_makes_no_dead_node_silent() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    rig.now_ms += 10 * TIMEOUT_MS
    rig.registry.lagged(10 * TIMEOUT_MS, rig.now_ms)
    rig.tick()
    assert not rig.observe(agent.id).silent
    rig.wait(TIMEOUT_MS)
    assert rig.observe(agent.id).silent


def test_queued_beats_from_a_pause_do_not_use_up_the_extension() -> None:
    """Those that were sent before the agent lost its connection prove less than a fresh one."""
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.now_ms += 300
    queued = agent.make_beat()
    rig.now_ms += 1_700
    rig.registry.lagged(2_000, rig.now_ms)
    agent.deliver(queued)
    rig.tick()
    assert agent.state is UP
    rig.wait(1_299)
    assert agent.state is UP
    rig.wait(1)
    assert agent.state is DOWN


def test_the_extension_ends_with_the_next_beat() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.registry.lagged(10_000, rig.now_ms)
    rig.now_ms += 100
    agent.beat()
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN


# ----------------------------------------------------------------- forgetting


def test_dead_nodes_are_forgotten_after_a_day() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS)
    rig.wait(FORGET_MS - TIMEOUT_MS - 1)
    assert agent.state is DOWN
    rig.wait(1)
    assert rig.registry.view(rig.now_ms).nodes == ()
    agent.beat()
    assert agent.messages()[-1] == Refused("say hello first", 0)


def test_who_was_never_up_is_forgotten_soon_and_who_was_is_not() -> None:
    rig = Rig()
    known, stranger = Agent(rig).bring_up(), Agent(rig, "stranger")
    stranger.hello()
    refusing = Agent(rig, "refusing", "10.81.0.22")
    refusing.hello()
    for _ in range(5 * STRANGER_MS // INTERVAL_MS):
        refusing.beat(NOT_SERVING)
        rig.wait(INTERVAL_MS)
    there = {node.id for node in rig.registry.view(rig.now_ms).nodes}
    assert there == {known.id, refusing.id}, "one whose agent goes on to speak is there"
    rig.restart()
    rig.wait(2 * STRANGER_MS)
    assert {node.id for node in rig.registry.view(rig.now_ms).nodes} == {known.id}


# ----------------------------------------------------------------- the heap and the marks


def due(parts: Parts, ms: int) -> list[str]:
    """Whose time is up so long after the start."""
    return [node.name for node in parts.deadlines.take_due(START_MS + ms)]


@pytest.mark.parametrize(
    ("state", "silent", "was_up", "due_ms"),
    [
        (UP, False, True, TIMEOUT_MS),
        (DOWN, False, True, TIMEOUT_MS),
        (DOWN, True, True, FORGET_MS),
        (DOWN, True, False, STRANGER_MS),
        (NodeState.SUSPECT, False, True, 7),
        (NodeState.BANNED, True, True, 30_000),
        (NodeState.BANNED, False, True, TIMEOUT_MS),
    ],
)
def test_what_a_node_is_due_for(state: NodeState, silent: bool, was_up: bool, due_ms: int) -> None:
    parts, node = Parts(), make_node("n", state)
    node.silent, node.was_up = silent, was_up
    node.ban_until_ms, node.suspect_until_ms = START_MS + 30_000, START_MS + 7
    assert parts.deadlines.due_ms(node) == START_MS + due_ms


def test_a_beat_leaves_the_heap_alone_and_the_node_is_not_due() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    for ms in range(0, TIMEOUT_MS, 10):
        parts.deadlines.heard(node, START_MS + ms)
    assert len(parts.deadlines) == 1
    assert due(parts, TIMEOUT_MS) == []
    assert due(parts, TIMEOUT_MS + 990 - 1) == []
    assert due(parts, TIMEOUT_MS + 990) == ["n"]
    assert due(parts, 10 * TIMEOUT_MS) == [], "whoever takes it sees to what comes next"


def test_the_heap_does_not_grow_with_time_and_loses_nobody() -> None:
    parts, nodes = Parts(), [make_node(f"n{i}") for i in range(3)]
    parts.add(*nodes)
    for sooner_ms in range(1, 900):
        for node in nodes:
            parts.deadlines.schedule(node, START_MS + TIMEOUT_MS - sooner_ms)
        assert len(parts.deadlines) <= 4 * len(nodes) + 65
    assert sorted(due(parts, TIMEOUT_MS)) == ["n0", "n1", "n2"]


def test_who_is_forgotten_is_not_due() -> None:
    parts, gone, stays = Parts(), make_node("gone"), make_node("stays")
    parts.add(gone, stays)
    parts.roster.remove(gone)
    assert due(parts, TIMEOUT_MS) == ["stays"]


def test_what_is_scheduled_while_others_are_taken_may_be_among_them() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    taken = parts.deadlines.take_due(START_MS + TIMEOUT_MS)
    assert next(taken) is node
    parts.deadlines.schedule(node, START_MS + TIMEOUT_MS)
    assert list(taken) == [node]


def test_a_lag_moves_all_deadlines_until_the_next_beat() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    parts.deadlines.lagged(400, START_MS + 100)
    assert parts.deadlines.due_ms(node) == START_MS + TIMEOUT_MS + 400
    parts.deadlines.heard(node, START_MS + 200)
    assert parts.deadlines.due_ms(node) == START_MS + 200 + TIMEOUT_MS


def test_a_beat_from_before_a_lag_does_not_use_it_up_though_it_is_read_after_it() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    for noticed_ms in (500, 800):
        parts.deadlines.lagged(100, START_MS + noticed_ms)
    parts.deadlines.heard(node, START_MS + 400)
    assert parts.deadlines.due_ms(node) == START_MS + 400 + TIMEOUT_MS + 200
    parts.deadlines.heard(node, START_MS + 600)
    assert parts.deadlines.due_ms(node) == START_MS + 600 + TIMEOUT_MS + 100
    parts.deadlines.heard(node, START_MS + 300)
    assert node.last_seen_ms == START_MS + 600, "an older one says nothing"


def test_a_node_that_is_new_has_no_part_in_what_was_before() -> None:
    parts, node = Parts(), make_node("n")
    parts.deadlines.lagged(5_000, START_MS - 1)
    parts.add(node)
    assert parts.deadlines.due_ms(node) == START_MS + TIMEOUT_MS


def test_late_is_who_has_missed_a_beat_of_ours_that_we_could_have_heard() -> None:
    parts, late, heard = Parts(), make_node("late"), make_node("heard")
    parts.add(late, heard)
    parts.deadlines.heard(heard, START_MS + 300)
    assert parts.deadlines.late([late, heard], START_MS + 549) == []
    assert parts.deadlines.late([late, heard], START_MS + 550) == [late]
    parts.deadlines.lagged(100, START_MS + 550)
    assert parts.deadlines.late([late, heard], START_MS + 550) == []
    assert parts.deadlines.late([late, heard], START_MS + 650) == [late]


def test_deadlines_close_together_come_up_together_the_more_nodes_there_are() -> None:
    parts = Parts()
    parts.add(*[make_node(f"n{i}") for i in range(500)])
    at_ms = START_MS + TIMEOUT_MS
    assert parts.deadlines.next_due_ms() == at_ms
    list(parts.deadlines.take_due(at_ms - 1))
    assert parts.deadlines.next_due_ms() == at_ms - 1 + TICK_SPACING_MS + 2


def test_nobody_is_waited_for_where_there_is_nobody() -> None:
    assert Parts().deadlines.next_due_ms() is None


def test_after_another_configuration_the_heap_is_built_by_it() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    parts.deadlines.policy = replace(parts.policy, checks_timeout_ms=TIMEOUT_MS // 4)
    parts.deadlines.rebuild()
    assert (len(parts.deadlines), due(parts, TIMEOUT_MS // 4)) == (1, ["n"])
