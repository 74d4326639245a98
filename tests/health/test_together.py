"""What fails together has not failed: by silence, by word, as a whole or at one service."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace

import pytest

from bus.words import NodeState
from services.health.together import Failure, RecentFailures
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


# ----------------------------------------------------------------- the record alone

WINDOW_MS = 1_000


@dataclass
class Record:
    """What failed lately, where so many nodes of each service are UP to begin with."""

    up: dict[str, int]
    recent: RecentFailures = field(default_factory=RecentFailures)

    def fail(
        self, now_ms: int, node: str, *services: str, of: str = "", doubt: bool = False
    ) -> tuple[bool, set[str]]:
        """Whether it came with others, and whose failures do not count any more."""
        said, news = self.recent.add(
            Failure(node, of), services, now_ms, WINDOW_MS, lambda: Counter(self.up), doubt=doubt
        )
        return bool(said), {each.node for each in news}


def test_each_failure_is_taken_back_once() -> None:
    record = Record({"web": 3, "dns": 9})
    assert record.fail(0, "a", "web") == (False, set())
    assert record.fail(1, "b", "web") == (True, {"a"})
    assert record.fail(2, "x", "dns") == (False, set())
    assert record.fail(3, "c", "web") == (True, set()), "b never counted, and a does no more"


def test_one_that_concerns_several_services_is_taken_back_for_all_of_them() -> None:
    record = Record({"web": 2, "dns": 3})
    record.fail(0, "a", "web", "dns")
    assert record.fail(1, "b", "web") == (True, {"a"})
    assert record.fail(2, "c", "dns") == (True, set())


def test_one_that_fails_again_counts_again_and_is_taken_back_again() -> None:
    record = Record({"web": 3, "dns": 9})
    record.fail(0, "a", "web")
    record.fail(1, "b", "web")
    assert record.fail(900, "x", "dns") == (False, set())
    assert record.fail(1_500, "a", "web") == (False, set()), "the others' are too long ago"
    assert record.fail(1_600, "c", "web") == (True, {"a"})


def test_what_is_longer_ago_than_the_window_has_nothing_to_do_with_it() -> None:
    record = Record({"web": 2})
    record.fail(0, "a", "web")
    assert record.fail(WINDOW_MS, "b", "web") == (False, set())
    assert record.fail(2 * WINDOW_MS - 1, "a", "web") == (True, {"b"})


def test_a_node_that_fails_twice_is_one_node() -> None:
    record = Record({"web": 4})
    record.fail(0, "a", "web")
    record.fail(10, "a", "web")
    record.fail(20, "a", "web", of="web")
    assert record.fail(30, "b", "web") == (False, set())
    record.fail(1_015, "x", "dns")
    assert record.fail(1_016, "b", "web") == (False, set()), "a is still there once"
    assert record.fail(1_017, "c", "web") == (False, set()), "four are UP, and two were"
    assert record.fail(1_018, "d", "web") == (True, {"a", "b", "c"})


def test_whoever_is_in_doubt_shows_it_and_has_nothing_to_be_taken_back() -> None:
    record = Record({"web": 3})
    assert record.fail(0, "a", "web") == (False, set())
    assert record.fail(1, "b", "web", doubt=True) == (True, {"a"})
    assert record.fail(2, "c", "web") == (True, set())


def test_whoever_fails_after_all_was_in_doubt_before() -> None:
    record = Record({"web": 3})
    assert record.fail(0, "a", "web", doubt=True) == (False, set())
    assert record.fail(1, "a", "web") == (False, set())
    assert record.fail(2, "b", "web") == (True, {"a"})


def test_whoever_is_in_doubt_first_has_nothing_to_be_taken_back_either() -> None:
    record = Record({"web": 3})
    assert record.fail(0, "a", "web", doubt=True) == (False, set())
    assert record.fail(1, "b", "web") == (True, set())


@pytest.mark.parametrize(
    ("times", "came"),
    [(1, [False, True]), (2, [False, False, True])],
    ids=["it was forgotten when it was asked who is up", "it is forgotten later"],
)
def test_whose_failures_are_all_too_long_ago_is_none_of_the_nodes(
    times: int, came: list[bool]
) -> None:
    record = Record({"web": 4, "dns": 9})
    for number in range(times):
        record.fail(number, "a", "web")
    record.fail(500, "b", "web")
    record.fail(1_000, "x", "dns")  # then four are up, and those that have failed lately were
    others = [record.fail(1_200, f"c{number}", "web")[0] for number in range(len(came))]
    assert others == came


def test_a_failure_does_not_take_back_what_its_own_node_did_before() -> None:
    record = Record({"web": 4, "dns": 9})
    record.fail(0, "x", "dns")
    record.fail(1, "a", "web")
    assert record.fail(900, "b", "web") == (False, set())
    record.up["web"] = 1
    assert record.fail(1_000, "a", "web") == (True, {"b"})
