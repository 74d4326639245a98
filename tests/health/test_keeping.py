"""What outlives this process, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

from bus.node_protocol import Refused
from bus.states import Ban
from bus.words import NodeState
from tests.health.rig import (
    NOT_SERVING,
    POLICY,
    PROBATION_MS,
    SERVING,
    SHUTTING_DOWN,
    TIMEOUT_MS,
    Agent,
    Rig,
    brought_up,
    table,
    table_node,
)

UP, DRAINING, DOWN, BANNED = NodeState.UP, NodeState.DRAINING, NodeState.DOWN, NodeState.BANNED


# ----------------------------------------------------------------- what was kept


def test_a_restart_adopts_and_waits_one_timeout() -> None:
    rig = Rig()
    living, dead, drained = brought_up(rig, 3)
    drained.beat(SHUTTING_DOWN)
    rig.restart()
    assert [agent.state for agent in (living, dead, drained)] == [UP, UP, DRAINING]
    rig.wait(TIMEOUT_MS - 1, beating=())
    assert [agent.state for agent in (living, dead, drained)] == [UP, UP, DRAINING]
    living.beat()
    assert living.messages()[-1] == Refused("say hello first", 0)
    living.hello()
    living.beat()
    rig.wait(TIMEOUT_MS, beating=[living])
    assert [agent.state for agent in (living, dead, drained)] == [UP, DOWN, DOWN]
    assert rig.observe(dead.id).fails == 0, "nobody saw it fail"


def test_an_adopted_node_that_drained_and_serves_again_is_up_at_once() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(SHUTTING_DOWN)
    rig.restart()
    agent.connect()
    agent.hello()
    agent.beat()
    assert agent.state is UP


def test_during_grace_a_node_that_says_not_serving_is_believed() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.restart()
    agent.connect()
    agent.hello()
    agent.beat(NOT_SERVING)
    assert agent.state is DOWN
    assert rig.observe(agent.id).fails == 1


def test_probation_does_not_survive_a_restart() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    agent.beat()
    rig.restart()
    seen = rig.observe(agent.id)
    assert (seen.state, seen.checks_passed) == (DOWN, 0)


def test_bans_and_failures_survive_a_restart_with_the_time_that_passed() -> None:
    rig = Rig()
    banned = Agent(rig).bring_up()
    failed_once = Agent(rig, "node-1", "10.81.0.21").bring_up()
    for _ in range(3):
        banned.fail_and_return()
    failed_once.fail_and_return()
    kept = rig.registry.kept(rig.now_ms)
    later = Rig(now_ms=5_000)  # another clock: the machine was booted in between
    later.registry.adopt(kept, 20_000, later.now_ms)
    left_ms = rig.observe(banned.id).banned_for_ms - 20_000
    assert later.observe(banned.id).banned_for_ms == left_ms
    assert later.observe(failed_once.id).fails == 1
    later.wait(left_ms)
    assert later.observe(banned.id).state is DOWN


def test_a_ban_that_ended_while_nobody_looked_is_over() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    kept = rig.registry.kept(rig.now_ms)
    later = Rig()
    later.registry.adopt(kept, 60_000, later.now_ms)
    seen = later.observe(agent.id)
    assert (seen.state, seen.fails) == (DOWN, 0)


def test_a_node_that_was_kept_twice_is_one_node() -> None:
    rig = Rig()
    Agent(rig).bring_up()
    kept = rig.registry.kept(rig.now_ms)
    later = Rig()
    later.registry.adopt(kept * 2, 0, later.now_ms)
    assert len(later.registry.view(later.now_ms).nodes) == 1


def test_silence_survives_a_restart_and_is_adopted_from_the_table() -> None:
    rig = Rig()
    silent, spoke = Agent(rig, "silent").bring_up(), Agent(rig, "spoke").bring_up()
    rig.wait(TIMEOUT_MS, beating=[spoke])
    spoke.beat(NOT_SERVING)
    rig.restart()
    assert [rig.observe(agent.id).silent for agent in (silent, spoke)] == [True, False]
    dead = replace(table_node("dead", DOWN), silent=True)
    rig.registry.adopt_table(table(dead, table_node("stopped", DOWN)), rig.now_ms)
    stopped = rig.observe("stopped@10.81.0.20")
    assert (rig.observe(dead.id).silent, stopped.silent) == (True, False)


def test_what_a_restart_must_know_is_kept_at_each_step() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for status in (NOT_SERVING, SERVING):
        before = rig.keeps
        agent.beat(status)
        assert rig.keeps == before + 1


# ----------------------------------------------------------------- the committed table


def test_the_committed_table_is_adopted_where_the_state_file_says_nothing() -> None:
    rig = Rig()
    known = Agent(rig, "known").bring_up()
    known.beat(NOT_SERVING)
    rig.restart()
    committed = table(table_node("known"), table_node("unknown"))
    rig.registry.adopt_table(committed, rig.now_ms)
    assert known.state is DOWN
    assert rig.observe("unknown@10.81.0.20").state is UP
    rig.wait(TIMEOUT_MS)
    assert rig.observe("unknown@10.81.0.20").state is DOWN


def test_the_table_is_not_adopted_when_the_grace_is_over() -> None:
    rig = Rig()
    rig.wait(TIMEOUT_MS)
    rig.registry.adopt_table(table(table_node("late")), rig.now_ms)
    assert rig.registry.view(rig.now_ms).nodes == ()


def test_bans_of_the_table_are_adopted() -> None:
    rig = Rig()
    known = Agent(rig, "known").bring_up()
    rig.restart()
    bans = (Ban(known.id, 30_000, 4), Ban("stranger@10.81.0.77", 20_000, 5))
    rig.registry.adopt_table(table(table_node("known"), bans=bans), rig.now_ms)
    seen = rig.observe(known.id)
    assert (seen.state, seen.fails, seen.banned_for_ms) == (BANNED, 4, 30_000)
    stranger = Agent(rig, "stranger", "10.81.0.77")
    stranger.hello()
    assert stranger.messages() == [Refused("banned after 5 failures", 20_000)]


def test_a_ban_of_the_table_reaches_a_node_that_has_said_hello_already() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.restart()
    agent.connect()
    agent.hello()
    rig.registry.adopt_table(table(bans=(Ban(agent.id, 30_000, 4),)), rig.now_ms)
    rig.collect()
    assert agent.messages()[-1] == Refused("banned after 4 failures", 30_000)
    for _ in range(10):
        rig.now_ms += PROBATION_MS
        agent.beat()
    assert agent.state is BANNED
    assert isinstance(agent.messages()[-1], Refused), "what is listed is what it is told"
    rig.wait(30_000)
    assert agent.state is DOWN
    agent.bring_up()


def test_a_ban_of_the_table_that_is_over_bans_nobody() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.restart()
    bans = (Ban(agent.id, 0, 4), Ban("stranger@10.81.0.77", 0, 4))
    rig.registry.adopt_table(table(bans=bans), rig.now_ms)
    assert [node.id for node in rig.registry.view(rig.now_ms).nodes] == [agent.id]
    assert agent.state is UP
