"""What is believed of a node that is not heard; and that silence alone does not empty a ring."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.states import NodeService
from bus.topics import Topic
from services.health.silence import LOOK_AGAIN_MS
from services.health.standing import (
    BANNED,
    DOWN,
    DRAINING,
    PROBATION,
    SUSPECT,
    UP,
)
from tests.health.rig import (
    INTERVAL_MS,
    NOT_SERVING,
    POLICY,
    SHUTTING_DOWN,
    TIMEOUT_MS,
    Agent,
    Rig,
    brought_up,
    offered,
)

# ----------------------------------------------------------------- silent, or only out of service


def test_silence_on_probation_is_no_failure() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN
    assert rig.observe(agent.id).fails == 0


def test_a_node_that_missed_its_deadline_is_silent_until_it_is_heard() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    assert not rig.observe(agent.id).silent
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN
    assert rig.observe(agent.id).silent
    rig.view_changes = 0
    agent.beat(NOT_SERVING)
    assert (agent.state, rig.observe(agent.id).silent) == (DOWN, False)
    assert rig.view_changes == 1
    agent.beat()
    assert (agent.state, rig.observe(agent.id).silent) == (PROBATION, False)


def test_a_node_that_says_not_serving_is_silent_only_once_it_says_no_more() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(5):
        agent.beat(NOT_SERVING, "its server is down")
        rig.wait(TIMEOUT_MS - 1)
        assert not rig.observe(agent.id).silent
    before = len(rig.events)
    rig.view_changes = 0
    rig.wait(1)
    assert rig.observe(agent.id).silent
    assert rig.observe(agent.id).reason == f"no heartbeat for {TIMEOUT_MS} ms"
    assert (rig.view_changes, len(rig.events)) == (1, before), "no event: it was down before"
    assert rig.observe(agent.id).fails == 1


def test_a_node_on_probation_and_a_draining_one_fall_silent_too() -> None:
    rig = Rig()
    new, drained = Agent(rig, "new"), Agent(rig, "drained").bring_up()
    drained.beat(SHUTTING_DOWN)
    new.hello()
    rig.wait(TIMEOUT_MS)
    assert [(a.state, rig.observe(a.id).silent) for a in (new, drained)] == [(DOWN, True)] * 2


def test_an_old_beat_that_was_queued_breaks_no_silence() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    queued = [agent.make_beat(NOT_SERVING) for _ in range(2)]
    rig.wait(TIMEOUT_MS)
    assert rig.observe(agent.id).silent
    for frames in queued:
        agent.deliver(frames)
        assert rig.observe(agent.id).silent


def test_a_banned_node_is_silent_while_nothing_is_heard_of_it() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    assert (agent.state, rig.observe(agent.id).silent) == (BANNED, False)
    rig.wait(TIMEOUT_MS)
    assert (agent.state, rig.observe(agent.id).silent) == (BANNED, True)
    assert rig.observe(agent.id).reason == "banned after 1 failures"
    agent.beat()
    assert (agent.state, rig.observe(agent.id).silent) == (BANNED, False)
    rig.wait(60_000)
    assert (agent.state, rig.observe(agent.id).silent) == (DOWN, True)


# ----------------------------------------------------------------- nobody is heard any more


def deaf(rig: Rig) -> bool:
    return rig.registry.view(rig.now_ms).deaf


def test_an_lb_that_hears_none_of_its_nodes_says_so_before_it_judges_them() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.wait(2 * TIMEOUT_MS, beating=agents)
    rig.view_changes = 0
    rig.wait(POLICY.late_ms - 1)
    assert not deaf(rig)
    rig.wait(1)
    assert deaf(rig)
    assert {agent.state for agent in agents} == {UP}
    assert rig.view_changes == 1
    agents[0].beat()
    assert not deaf(rig)
    assert rig.view_changes == 2


def test_who_hears_one_of_them_is_not_deaf() -> None:
    rig = Rig()
    heard, *_ = brought_up(rig, 3)
    rig.wait(3 * TIMEOUT_MS, beating=[heard])
    assert not deaf(rig)


def test_a_beat_that_waited_for_long_ends_no_deafness() -> None:
    rig = Rig()
    agents = brought_up(rig, 2)
    queued = agents[0].make_beat()
    rig.wait(POLICY.late_ms)
    assert deaf(rig)
    agents[0].deliver(queued)
    assert deaf(rig)


def test_of_one_node_nobody_can_say_whose_fault_it_is() -> None:
    rig = Rig()
    brought_up(rig, 1)
    rig.wait(TIMEOUT_MS)
    assert not deaf(rig)


def test_nodes_that_left_in_order_are_not_missed() -> None:
    rig = Rig()
    for agent in brought_up(rig, 2):
        agent.beat(SHUTTING_DOWN)
    rig.wait(TIMEOUT_MS)
    assert not deaf(rig)


def test_who_was_late_itself_listens_for_as_long_again() -> None:
    rig = Rig()
    agents = brought_up(rig, 2)
    rig.now_ms += POLICY.late_ms
    rig.registry.lagged(POLICY.late_ms, rig.now_ms)
    rig.tick()
    rig.wait(POLICY.late_ms - LOOK_AGAIN_MS)
    assert not deaf(rig)
    rig.wait(2 * LOOK_AGAIN_MS)
    assert deaf(rig)
    agents[1].beat()
    assert not deaf(rig)


def test_after_a_restart_nodes_are_missed_only_once_they_have_spoken() -> None:
    rig = Rig()
    agents = brought_up(rig, 2)
    rig.restart()
    rig.wait(POLICY.late_ms + LOOK_AGAIN_MS)
    assert not deaf(rig)
    for agent in agents:
        agent.hello()
        agent.beat()
    rig.wait(POLICY.late_ms + LOOK_AGAIN_MS)
    assert deaf(rig)


# ----------------------------------------------------------------- mass silence


def test_mass_silence_is_held_for_one_more_timeout_and_then_believed() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.wait(TIMEOUT_MS + 300, beating=())
    assert {agent.state for agent in agents} == {UP}
    assert "fell silent together" in rig.observe(agents[0].id).reason
    rig.wait(TIMEOUT_MS - 300)
    assert {agent.state for agent in agents} == {DOWN}
    assert {rig.observe(agent.id).fails for agent in agents} == {0}, "that is nobody's failure"


def test_a_minority_is_taken_down_in_time() -> None:
    rig = Rig()
    dead, *living = brought_up(rig, 3)
    rig.wait(TIMEOUT_MS + INTERVAL_MS, beating=living)
    assert dead.state is DOWN
    assert {agent.state for agent in living} == {UP}


@pytest.mark.parametrize("count", [4, 5])
def test_two_of_so_many_are_no_mass(count: int) -> None:
    rig = Rig()
    silent, living = (agents := brought_up(rig, count))[:2], agents[2:]
    for agent in agents:
        agent.beat()
    rig.wait(TIMEOUT_MS + 50, beating=living)
    assert {agent.state for agent in silent} == {DOWN}
    assert {agent.state for agent in living} == {UP}


def test_the_hold_ends_when_the_others_are_heard() -> None:
    rig = Rig()
    dead, *living = brought_up(rig, 3)
    rig.wait(TIMEOUT_MS)
    assert dead.state is UP
    for agent in living:
        agent.beat()
    rig.wait(50)
    assert dead.state is DOWN
    assert {agent.state for agent in living} == {UP}


def test_a_held_node_that_is_heard_again_was_never_down() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.wait(TIMEOUT_MS + 500)
    for agent in agents:
        agent.beat()
    rig.wait(TIMEOUT_MS * 5, beating=agents)
    assert {agent.state for agent in agents} == {UP}
    assert rig.observe(agents[0].id).reason == "heard again"
    assert all(Topic.NODE_DOWN not in rig.topics(agent.id) for agent in agents)


def test_not_serving_is_never_held() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    for agent in agents:
        agent.beat(NOT_SERVING)
        assert agent.state is DOWN


def test_a_service_of_one_node_has_no_mass() -> None:
    rig = Rig()
    alone = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS)
    assert alone.state is DOWN


def test_mass_silence_is_judged_by_service() -> None:
    rig = Rig(replace(POLICY, services=(offered("a", 1), offered("b", 2))))
    on_a = [Agent(rig, f"a{i}", f"10.0.0.{i}", (NodeService("a", 1),)) for i in range(2)]
    on_b = [Agent(rig, f"b{i}", f"10.0.1.{i}", (NodeService("b", 2),)) for i in range(5)]
    for agent in (*on_a, *on_b):
        agent.bring_up()
    for agent in (*on_a, *on_b):
        agent.beat()
    rig.wait(TIMEOUT_MS + 100, beating=on_b)
    assert {agent.state for agent in on_a} == {UP}  # 2 of 7 nodes, but 2 of 2 of service a
    rig.wait(TIMEOUT_MS, beating=on_b)
    assert {agent.state for agent in on_a} == {DOWN}


def test_our_own_lag_before_is_no_silence_of_the_others() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.registry.lagged(2 * TIMEOUT_MS, rig.now_ms)
    rig.wait(2 * INTERVAL_MS, beating=agents)
    rig.wait(TIMEOUT_MS + INTERVAL_MS, beating=agents[1:])
    assert [agent.state for agent in agents] == [DOWN, UP, UP]


def test_a_lag_before_does_not_hide_that_most_are_silent_together() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.registry.lagged(2 * TIMEOUT_MS, rig.now_ms)
    rig.wait(2 * INTERVAL_MS, beating=agents)
    rig.wait(TIMEOUT_MS + INTERVAL_MS, beating=agents[2:])
    assert [agent.state for agent in agents] == [UP, UP, UP]
    assert rig.observe(agents[0].id).reason.startswith("held for now: 2 of 3 nodes")


def test_what_falls_silent_together_bans_nobody() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agents = brought_up(rig, 4)
    rig.wait(LONG_MS)
    assert {agent.state for agent in agents} == {DOWN}
    assert {rig.observe(agent.id).fails for agent in agents} == {0}


# ----------------------------------------------------------------- suspects

HALF = replace(POLICY, min_healthy_percent=50)
LONG_MS = 10 * TIMEOUT_MS


@pytest.mark.parametrize(("count", "kept"), [(1, 1), (2, 1), (3, 2), (4, 2), (5, 3)])
def test_of_nodes_that_all_fall_silent_the_last_half_is_routed_to_for_good(
    count: int, kept: int
) -> None:
    rig = Rig(HALF)
    agents = brought_up(rig, count)
    rig.wait(LONG_MS)
    states = [agent.state for agent in agents]
    assert (states.count(SUSPECT), states.count(DOWN)) == (kept, count - kept)
    suspects = [agent.id for agent in agents if agent.state is SUSPECT]
    told = [event for topic, event in rig.events if topic is Topic.NODE_SUSPECT]
    assert [event.id for event in told] == suspects, "each is told once"
    assert "too few others serve default" in told[0].reason
    assert all(rig.observe(agent.id).fails == 0 for agent in agents if count > 1)


def test_a_node_that_can_be_spared_is_down() -> None:
    rig = Rig(HALF)
    first, *others = brought_up(rig, 3)
    rig.wait(2 * TIMEOUT_MS, beating=others)
    assert first.state is DOWN
    second, third = others
    rig.wait(2 * TIMEOUT_MS, beating=[third])
    assert (second.state, third.state) == (SUSPECT, UP)
    assert rig.observe(second.id).fails == 0


def test_what_was_taken_by_its_own_word_is_missing_all_the_same() -> None:
    rig = Rig(HALF)
    first, second, third = brought_up(rig, 3)
    first.beat(NOT_SERVING)
    second.beat(NOT_SERVING)
    rig.wait(LONG_MS)
    assert (first.state, second.state, third.state) == (DOWN, DOWN, SUSPECT)


def test_who_is_down_has_not_failed_if_the_next_is_in_doubt_at_once() -> None:
    """Their beats come at different moments of an interval, so their deadlines do too."""
    rig = Rig(HALF)
    agents = brought_up(rig, 3)
    for agent in agents:
        agent.beat()
    rig.wait(INTERVAL_MS - 10)
    for agent in agents[1:]:
        agent.beat()
    rig.wait(TIMEOUT_MS - INTERVAL_MS + 20)
    assert [agent.state for agent in agents] == [DOWN, UP, UP]
    assert rig.observe(agents[0].id).fails == 1
    rig.wait(TIMEOUT_MS // 2)
    assert [rig.observe(agent.id).fails for agent in agents] == [0, 0, 0], "the others are held"
    rig.wait(TIMEOUT_MS)
    assert [agent.state for agent in agents] == [DOWN, SUSPECT, SUSPECT]
    assert [rig.observe(agent.id).fails for agent in agents] == [0, 0, 0]


def test_a_suspect_that_is_heard_is_up_at_once_and_has_not_failed() -> None:
    rig = Rig(HALF)
    (agent,) = brought_up(rig, 1)
    rig.wait(LONG_MS)
    assert agent.state is SUSPECT
    agent.beat()
    assert agent.state is UP
    assert rig.observe(agent.id).fails == 0
    assert rig.topics(agent.id)[-2:] == [Topic.NODE_SUSPECT, Topic.NODE_UP]


def test_a_suspect_goes_by_its_own_word() -> None:
    for status, state in ((NOT_SERVING, DOWN), (SHUTTING_DOWN, DRAINING)):
        rig = Rig(HALF)
        (agent,) = brought_up(rig, 1)
        rig.wait(LONG_MS)
        agent.beat(status)
        assert agent.state is state


def test_a_suspect_is_missing_where_it_can_be_spared() -> None:
    rig = Rig(replace(HALF, services=(offered("a", 1), offered("b", 2))))
    agents = brought_up(rig, 3)
    for agent in agents[1:]:
        agent.say_sick("b")
    alone, *others = agents
    for _ in range(10):
        rig.now_ms += TIMEOUT_MS // 2
        for agent in others:
            agent.say_sick("b")
        rig.tick()
    assert (alone.state, alone.state_at("b"), alone.state_at("a")) == (SUSPECT, SUSPECT, DOWN)
    assert [agent.state_at("a") for agent in others] == [UP, UP]
    alone.say_sick()
    assert (alone.state, alone.state_at("b")) == (UP, UP)


def test_a_service_has_a_percentage_of_its_own() -> None:
    rig = Rig(replace(HALF, min_healthy=(("default", 0),)))
    agents = brought_up(rig, 2)
    rig.wait(LONG_MS)
    assert {agent.state for agent in agents} == {DOWN}


def test_strangers_that_never_were_up_do_not_count_as_known() -> None:
    rig = Rig(HALF)
    first, *others = brought_up(rig, 3)
    for number in range(5):
        Agent(rig, f"stranger-{number}", "10.81.0.99").hello()
    rig.wait(TIMEOUT_MS + 100, beating=others)
    assert first.state is DOWN


def test_after_a_restart_a_suspect_is_one_again() -> None:
    rig = Rig(HALF)
    (agent,) = brought_up(rig, 1)
    rig.wait(LONG_MS)
    rig.restart()
    assert agent.state is SUSPECT
    rig.wait(LONG_MS)
    assert agent.state is SUSPECT
    agent.connect()
    agent.hello()
    agent.beat()
    assert agent.state is UP


def test_of_those_that_are_judged_at_one_time_half_are_left_too() -> None:
    rig = Rig(HALF)
    agents = brought_up(rig, 4)
    rig.now_ms += LONG_MS
    rig.tick()
    assert sorted(agent.state for agent in agents) == sorted([SUSPECT, SUSPECT, DOWN, DOWN])


def test_after_a_restart_nobody_is_judged_before_the_grace_is_over() -> None:
    rig = Rig(HALF)
    (agent,) = brought_up(rig, 1)
    rig.wait(LONG_MS)
    rig.policy = POLICY
    rig.restart()
    rig.wait(TIMEOUT_MS - 1)
    assert agent.state is SUSPECT
    rig.wait(2)
    assert agent.state is DOWN


def one_of_three_is_back(rig: Rig) -> tuple[Agent, Agent, Agent]:
    """All fell silent: one is a suspect yet, one is heard again, and one is down."""
    agents = brought_up(rig, 3)
    rig.wait(LONG_MS)
    suspect, back = [agent for agent in agents if agent.state is SUSPECT]
    (down,) = [agent for agent in agents if agent.state is DOWN]
    back.beat()
    return suspect, back, down


def test_a_suspect_is_looked_at_again_and_again_until_it_can_be_spared() -> None:
    rig = Rig(HALF)
    suspect, back, down = one_of_three_is_back(rig)
    rig.wait(LONG_MS, beating=[back])
    assert suspect.state is SUSPECT
    down.bring_up()
    rig.wait(2 * TIMEOUT_MS, beating=[back, down])
    assert [agent.state for agent in (suspect, back, down)] == [DOWN, UP, UP]
    assert rig.observe(suspect.id).fails == 0


def test_our_own_lag_is_no_silence_of_a_suspect() -> None:
    rig = Rig(HALF)
    suspect, back, down = one_of_three_is_back(rig)
    down.bring_up()
    rig.now_ms += 2 * TIMEOUT_MS
    rig.registry.lagged(2 * TIMEOUT_MS, rig.now_ms)
    rig.tick()
    assert suspect.state is SUSPECT, "it could be spared, and nobody has listened"
    rig.wait(TIMEOUT_MS, beating=[back, down])
    assert suspect.state is DOWN


def test_who_has_failed_by_its_own_word_has_not_if_the_last_one_is_in_doubt_at_once() -> None:
    rig = Rig(HALF)
    first, second = brought_up(rig, 2)
    second.beat()
    rig.wait(TIMEOUT_MS - 100)
    first.beat(NOT_SERVING)
    assert rig.observe(first.id).fails == 1
    rig.wait(100)
    assert [agent.state for agent in (first, second)] == [DOWN, SUSPECT]
    assert [rig.observe(agent.id).fails for agent in (first, second)] == [0, 0]
