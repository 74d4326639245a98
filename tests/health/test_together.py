"""What fails together has not failed: by silence, by word, as a whole or at one service."""

from __future__ import annotations

from dataclasses import replace

from bus.words import NodeState
from tests.health.rig import NOT_SERVING, POLICY, TIMEOUT_MS, Agent, Rig, offered

BANNED, DOWN, UP = NodeState.BANNED, NodeState.DOWN, NodeState.UP


def up(rig: Rig, count: int) -> list[Agent]:
    agents = [Agent(rig, f"n{i}", f"10.81.0.{20 + i}").bring_up() for i in range(count)]
    for agent in agents:
        agent.beat()
    return agents


def fails(rig: Rig, agents: list[Agent]) -> list[int]:
    return [rig.observe(agent.id).fails for agent in agents]


def test_more_than_half_that_stop_serving_together_have_not_failed() -> None:
    rig = Rig()
    agents = up(rig, 5)
    for number in range(2):
        agents[number].beat(NOT_SERVING)
        rig.now_ms += 100
    assert fails(rig, agents) == [1, 1, 0, 0, 0], "two of five: each for itself"
    agents[2].beat(NOT_SERVING, "the database is gone")
    assert fails(rig, agents) == [0, 0, 0, 0, 0], "three of five: nobody's"
    assert [agent.state for agent in agents] == [DOWN, DOWN, DOWN, UP, UP]
    assert rig.observe(agents[2].id).reason == (
        "not serving: the database is gone; not counted: 3 of 5 nodes of default failed together"
    )
    agents[3].beat(NOT_SERVING)
    assert fails(rig, agents) == [0, 0, 0, 0, 0]


def test_failures_far_apart_count() -> None:
    rig = Rig()
    agents = up(rig, 3)
    for agent in agents[:2]:
        rig.now_ms += TIMEOUT_MS
        agent.beat(NOT_SERVING)
    assert fails(rig, agents) == [1, 1, 0]


def test_the_nodes_that_were_down_before_are_none_of_those_that_were_up() -> None:
    rig = Rig()
    agents = up(rig, 6)
    for agent in agents[:3]:
        rig.now_ms += TIMEOUT_MS
        agent.beat(NOT_SERVING)
    rig.now_ms += TIMEOUT_MS
    for agent in agents[3:5]:
        agent.beat(NOT_SERVING)
    assert fails(rig, agents) == [1, 1, 1, 0, 0, 0], "two of the three that were left"


def test_a_ban_that_came_of_it_is_taken_back() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agents = up(rig, 2)
    agents[0].beat(NOT_SERVING)
    assert agents[0].state is BANNED
    agents[1].beat(NOT_SERVING)
    assert [agent.state for agent in agents] == [DOWN, DOWN]
    assert fails(rig, agents) == [0, 0]
    assert "failed together" in rig.observe(agents[0].id).reason
    for agent in agents:
        agent.bring_up()


def test_one_node_that_fails_again_and_again_is_alone() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=-1))
    (agent,) = up(rig, 1)
    for _ in range(3):
        agent.beat(NOT_SERVING)
        agent.bring_up()
    assert fails(rig, [agent]) == [3]


def test_what_was_failing_before_keeps_its_count() -> None:
    rig = Rig()
    agents = up(rig, 3)
    agents[0].fail_and_return()
    rig.now_ms += TIMEOUT_MS
    for agent in agents:
        agent.beat(NOT_SERVING)
    assert fails(rig, agents) == [1, 0, 0]


def test_one_service_that_most_nodes_stop_to_serve() -> None:
    rig = Rig(
        replace(POLICY, services=(offered("a", 1), offered("b", 2)), black_list_after_fails=1)
    )
    agents = up(rig, 3)
    agents[0].say_sick("b")
    assert agents[0].state_at("b") is BANNED
    agents[1].say_sick("b")
    assert [agent.state_at("b") for agent in agents] == [DOWN, DOWN, UP]
    assert [agent.state for agent in agents] == [UP, UP, UP]


def test_silence_and_words_add_up() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agents = up(rig, 3)
    rig.wait(TIMEOUT_MS, beating=agents[1:])
    assert agents[0].state is BANNED
    agents[1].beat(NOT_SERVING)
    assert [agent.state for agent in agents] == [DOWN, DOWN, UP]
