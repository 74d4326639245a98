"""What the record of one node says of itself."""

from __future__ import annotations

import pytest

from bus.states import ServiceState
from bus.words import NodeState
from tests.health.parts import DNS, WEB, make_node
from tests.health.rig import START_MS

PROBATION, UP, SUSPECT, DOWN, BANNED = (
    NodeState.PROBATION,
    NodeState.UP,
    NodeState.SUSPECT,
    NodeState.DOWN,
    NodeState.BANNED,
)
EXPIRY_MS = 1_000


def test_failures_fade_one_for_each_expiry_and_what_is_begun_is_kept() -> None:
    node = make_node()
    node.fails = 2
    assert not node.fade(EXPIRY_MS, START_MS + 999)
    assert node.fade(EXPIRY_MS, START_MS + 1_600)
    assert node.fails == 1
    assert node.fade(EXPIRY_MS, START_MS + 2_000), "four tenths after the last look"
    assert node.fails == 0
    assert not node.fade(EXPIRY_MS, START_MS + 9_000), "there is none to forget"
    node.fails = 1
    assert not node.fade(EXPIRY_MS, START_MS + 9_999), "nothing was saved up"


@pytest.mark.parametrize("state", [PROBATION, SUSPECT, DOWN, BANNED])
def test_failures_fade_of_a_node_that_is_up_alone(state: NodeState) -> None:
    node = make_node("n", state)
    node.fails = 2
    assert not node.fade(EXPIRY_MS, START_MS + 9_000)
    assert node.fails == 2


def test_services_apart_are_told_of_a_node_that_is_routed_to() -> None:
    node = make_node("n", UP, WEB, DNS, apart={"web": DOWN, "dns": UP})
    assert node.taken() == ["dns"]
    assert node.states_apart(START_MS) == (ServiceState("web", DOWN, "", 0),)
    node.state = DOWN
    assert node.states_apart(START_MS) == ()


def test_a_service_that_is_banned_for_itself_has_its_time() -> None:
    node = make_node("n", UP, WEB, DNS, apart={"web": BANNED, "dns": DOWN})
    node.apart["web"].ban_until_ms = START_MS + 500
    assert node.banned_alone() == {"web"}
    left_ms = [each.banned_for_ms for each in node.states_apart(START_MS + 100)]
    assert left_ms == [0, 400]


def test_a_ban_lasts_while_the_node_is_banned_and_never_less_than_nothing() -> None:
    node = make_node("n", BANNED)
    node.ban_until_ms = START_MS + 500
    assert [node.banned_for_ms(START_MS + ms) for ms in (0, 400, 600)] == [500, 100, 0]
    node.state = DOWN
    assert node.banned_for_ms(START_MS) == 0


def test_a_node_is_watched_for_a_service_on_probation_while_it_is_routed_to() -> None:
    node = make_node("n", UP, WEB, DNS, apart={"web": PROBATION})
    assert node.is_watched
    node.apart["web"].state = DOWN
    assert not node.is_watched
    assert not make_node("n", DOWN, WEB, apart={"web": PROBATION}).is_watched


def test_silence_in_words() -> None:
    node = make_node()
    assert node.silence(START_MS + 1_234) == "no heartbeat for 1234 ms"
    node.heard = False
    assert node.silence(START_MS).startswith("not heard since")
