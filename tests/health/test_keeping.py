"""What outlives this process, and what is made of it."""

from __future__ import annotations

from dataclasses import replace

from bus.node_protocol import Refused
from bus.states import Ban
from bus.words import NodeState
from services.health.keeping import kept_of
from services.health.registry import Registry
from tests.health.parts import DNS, WEB, make_node
from tests.health.rig import (
    NOT_SERVING,
    POLICY,
    PROBATION_MS,
    SERVING,
    SHUTTING_DOWN,
    START_MS,
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


def test_a_ban_of_the_table_is_as_much_shorter_as_the_table_is_old() -> None:
    rig = Rig()
    bans = (Ban("a@10.81.0.77", 20_000, 5), Ban("b@10.81.0.78", 4_000, 5))
    rig.registry.adopt_table(table(bans=bans), rig.now_ms, 5_000)
    assert rig.observe("a@10.81.0.77").banned_for_ms == 15_000
    assert not rig.knows("b@10.81.0.78")


def test_a_ban_of_the_table_leaves_alone_who_was_heard_here_or_is_banned_here() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    banned, heard = Agent(rig, "banned").bring_up(), Agent(rig, "heard").bring_up()
    rig.now_ms += TIMEOUT_MS - 1
    heard.beat()
    banned.beat(NOT_SERVING)
    rig.restart()
    heard.connect()
    heard.hello()
    heard.beat()
    bans = (Ban(banned.id, 5, 9), Ban(heard.id, 30_000, 9))
    rig.registry.adopt_table(table(bans=bans), rig.now_ms)
    assert (heard.state, rig.observe(banned.id).fails) == (UP, 1)
    assert rig.observe(banned.id).banned_for_ms == 60_000


# ----------------------------------------------------------------- a record alone


def test_what_is_kept_of_a_node_makes_the_same_of_it_again() -> None:
    node = make_node("n", UP, WEB, DNS, apart={"dns": DOWN})
    node.fails, node.backup, node.pardoned_epoch, node.apart["dns"].fails = 2, True, 7, 1
    kept = kept_of(node, START_MS)
    registry = Registry(POLICY, START_MS)
    assert registry.adopt((kept,), 0, START_MS) == 1
    assert registry.kept(START_MS) == (kept,)


def test_the_ban_of_one_service_goes_on_with_the_time_that_is_left() -> None:
    node = make_node("n", UP, WEB, DNS, apart={"dns": BANNED, "web": BANNED})
    node.apart["dns"].ban_until_ms, node.apart["web"].ban_until_ms = START_MS + 900, START_MS + 100
    registry = Registry(POLICY, 5_000)
    registry.adopt((kept_of(node, START_MS),), 200, 5_000)
    (again,) = registry.kept(5_000)
    left = {each.service: (each.state, each.ban_remaining_ms) for each in again.apart}
    assert left == {"dns": (BANNED, 700), "web": (DOWN, 0)}


def test_what_is_routed_to_is_not_silent() -> None:
    silent = [
        replace(table_node(f"n{i}", state), silent=True) for i, state in enumerate((UP, DOWN))
    ]
    rig = Rig()
    rig.registry.adopt_table(table(*silent), rig.now_ms)
    assert [node.silent for node in rig.registry.view(rig.now_ms).nodes] == [False, True]
