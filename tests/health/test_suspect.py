"""The registry: silence alone does not empty a ring, and what the LB's own probe has to say."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.topics import Topic
from bus.words import Mode, NodeState, Protocol
from services.health.model import Policy
from services.health.places import Outcome, Spot
from tests.health.rig import (
    NOT_SERVING,
    POLICY,
    SHUTTING_DOWN,
    TIMEOUT_MS,
    Agent,
    Rig,
    offered,
)

UP, SUSPECT, DRAINING, DOWN, BANNED = (
    NodeState.UP,
    NodeState.SUSPECT,
    NodeState.DRAINING,
    NodeState.DOWN,
    NodeState.BANNED,
)
HALF = replace(POLICY, min_healthy_percent=50)
LONG_MS = 10 * TIMEOUT_MS


def brought_up(rig: Rig, count: int) -> list[Agent]:
    return [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(count)]


def probe(rig: Rig, agent: Agent, outcome: Outcome | None, port: int = 8080) -> None:
    rig.registry.probed(Spot(agent.address, port), outcome, rig.now_ms)
    rig.collect()


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


def test_a_suspect_that_does_not_answer_the_probe_is_down() -> None:
    rig = Rig(HALF)
    first, second = brought_up(rig, 2)
    rig.wait(LONG_MS)
    (suspect,) = [agent for agent in (first, second) if agent.state is SUSPECT]
    probe(rig, suspect, Outcome.OPEN)
    assert suspect.state is SUSPECT
    probe(rig, suspect, Outcome.UNANSWERED)
    assert suspect.state is DOWN
    assert rig.observe(suspect.id).silent
    assert rig.observe(suspect.id).fails == 0


def test_who_does_not_answer_the_probe_is_down_when_it_falls_silent() -> None:
    rig = Rig(HALF)
    (agent,) = brought_up(rig, 1)
    rig.wait(TIMEOUT_MS // 2)
    probe(rig, agent, Outcome.UNANSWERED)
    assert agent.state is UP, "until it is time"
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN


def direct(mode: Mode, protocol: Protocol) -> Policy:
    return replace(HALF, services=(replace(offered(), mode=mode, protocol=protocol),))


@pytest.mark.parametrize(
    ("mode", "protocol", "believed"),
    [
        (Mode.L4, Protocol.TCP, True),
        (Mode.L4, Protocol.UDP, False),
        (Mode.L3, Protocol.TCP, False),
        (Mode.L2, Protocol.TCP, False),
    ],
)
def test_where_a_connection_proves_nothing_only_no_answer_at_all_confirms_silence(
    mode: Mode, protocol: Protocol, believed: bool
) -> None:
    rig = Rig(direct(mode, protocol))
    (agent,) = brought_up(rig, 1)
    probe(rig, agent, Outcome.REFUSED)
    agent.beat()
    assert agent.state is (DOWN if believed else UP)
    rig.wait(LONG_MS)
    assert agent.state is (DOWN if believed else SUSPECT)
    probe(rig, agent, Outcome.UNANSWERED)
    assert agent.state is DOWN


def test_an_agent_that_says_fine_is_not_believed_where_this_lb_cannot_connect() -> None:
    rig = Rig(replace(HALF, services=(offered("a", 1), offered("b", 2))))
    (agent,) = brought_up(rig, 1)
    probe(rig, agent, Outcome.REFUSED, port=2)
    agent.beat()
    assert (agent.state, agent.state_at("a"), agent.state_at("b")) == (UP, UP, DOWN)
    (apart,) = rig.observe(agent.id).apart
    assert apart.reason == (
        "not serving: this load balancer cannot connect to port 2: connection refused"
    )
    probe(rig, agent, Outcome.UNANSWERED, port=1)
    agent.beat()
    assert agent.state is DOWN
    assert rig.observe(agent.id).reason.endswith("cannot connect to port 1: no answer")
    probe(rig, agent, Outcome.OPEN, port=1)
    probe(rig, agent, None, port=2)
    rig.wait(TIMEOUT_MS, beating=[agent])
    rig.wait(TIMEOUT_MS, beating=[agent])
    assert (agent.state, agent.state_at("b")) == (UP, UP)


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


def test_what_falls_silent_together_bans_nobody() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agents = brought_up(rig, 4)
    rig.wait(LONG_MS)
    assert {agent.state for agent in agents} == {DOWN}
    assert {rig.observe(agent.id).fails for agent in agents} == {0}


def test_each_node_is_looked_at_before_the_second_place_of_any() -> None:
    rig = Rig(replace(HALF, services=(offered("a", 1), offered("b", 2))))
    first, second = brought_up(rig, 2)
    of = [Spot(agent.address, port) for port in (1, 2) for agent in (first, second)]
    assert rig.registry.spots(10) == of
    assert rig.registry.spots(3) == of[:3]
    first.beat(NOT_SERVING)
    assert set(rig.registry.spots(10)) == set(of), "it may come back"
    rig.wait(LONG_MS, beating=[second])
    assert {spot.address for spot in rig.registry.spots(10)} == {second.address}


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
