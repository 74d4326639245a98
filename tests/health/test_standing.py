"""The steps there are, and one service of a node by itself."""

from __future__ import annotations

import pytest

from bus.topics import Topic
from bus.words import NodeState
from services.health.standing import (
    DEAD,
    ROUTED,
    TRANSITIONS,
    IllegalTransitionError,
    Standing,
    checked_step,
)

PROBATION, UP, DOWN, BANNED = (
    NodeState.PROBATION,
    NodeState.UP,
    NodeState.DOWN,
    NodeState.BANNED,
)


def test_a_ban_ends_in_down_and_nobody_is_up_without_checks() -> None:
    assert {to for state, to in TRANSITIONS if state is BANNED} == {DOWN}
    assert {to for state, to in TRANSITIONS if state is DOWN} == {PROBATION, BANNED}
    from_outside = {state for state, to in TRANSITIONS if to is UP and state not in ROUTED}
    assert from_outside == {PROBATION}
    assert not DEAD & ROUTED


def test_a_step_is_told_or_it_raises_and_changes_nothing() -> None:
    standing = Standing(UP, "", 0)
    assert standing.enter("web of n", DOWN, "sick", 5) is Topic.NODE_DOWN
    assert (standing.state, standing.reason, standing.since_ms) == (DOWN, "sick", 5)
    with pytest.raises(IllegalTransitionError, match="web of n: down to up"):
        standing.enter("web of n", UP, "well", 6)
    assert (standing.state, standing.reason, standing.since_ms) == (DOWN, "sick", 5)
    assert checked_step("n", DOWN, PROBATION, "") is None, "legal, and not told"


def test_checks_too_close_together_count_once() -> None:
    standing = Standing(DOWN, "", 0)
    for sent_ms in (0, 24, 25, 26, 50):
        standing.count(sent_ms, 25)
    assert standing.passed == 3
    standing.start_anew()
    standing.count(51, 25)
    assert standing.passed == 1, "what went before is no measure"


def test_failures_fade_while_it_is_up_and_then_it_is_spent() -> None:
    standing = Standing(UP, "", 0, fails=2)
    standing.fade(1_000, 1_500)
    assert (standing.fails, standing.is_spent) == (1, False)
    standing.fade(1_000, 2_000)
    assert (standing.fails, standing.is_spent) == (0, True)
    down = Standing(DOWN, "", 0, fails=2)
    down.fade(1_000, 9_000)
    assert (down.fails, down.is_spent) == (2, False)


def test_a_ban_lasts_while_it_is_banned() -> None:
    standing = Standing(BANNED, "", 0, ban_until_ms=500)
    assert [standing.banned_for_ms(ms) for ms in (100, 600)] == [400, 0]
    standing.state = DOWN
    assert standing.banned_for_ms(100) == 0
