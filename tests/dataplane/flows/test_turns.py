"""Work in turns: none is long, passes are paced, questions are answered."""

from __future__ import annotations

import time
from collections.abc import Generator

import pytest

from services.dataplane.flows import turns
from services.dataplane.flows.turns import SHARE, TURN_MS, Questions, Rounds


class Clock:
    """Stands still but for what a step of work takes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.ns = 5_000_000_000
        monkeypatch.setattr(turns, "time", self)

    def monotonic_ns(self) -> int:
        return self.ns

    thread_time_ns = monotonic_ns

    def work(self, steps: int, step_ms: float, result: str) -> Generator[None, None, str]:
        for _ in range(steps):
            self.ns += int(step_ms * 1e6)
            yield
        return result


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def test_a_turn_ends_after_its_time_and_the_next_goes_on(clock: Clock) -> None:
    rounds = Rounds(lambda: clock.work(10, 1, "done"), 1000, 0)
    ended: list[bool] = []
    while not ended or not ended[-1]:
        began_ns = clock.ns
        ended.append(rounds.turn(0))
        assert clock.ns - began_ns <= TURN_MS * 1e6
        assert (rounds.result == "done") == ended[-1]
    assert ended == [False, False, True]
    assert rounds.cpu_ms == 10


@pytest.mark.parametrize(("steps", "pause_ms"), [(1, 1000), (20, 1000), (21, 1050), (100, 5000)])
def test_passes_are_so_seldom_that_they_cost_a_share(
    clock: Clock, steps: int, pause_ms: int
) -> None:
    assert SHARE == 0.02
    rounds = Rounds(lambda: clock.work(steps, 1, "done"), 1000, 0)
    while not rounds.turn(7):
        assert rounds.next_ms <= 7
    assert rounds.next_ms == 7 + pause_ms
    assert not rounds.turn(6 + pause_ms)
    before_ns = clock.ns
    rounds.turn(7 + pause_ms)
    assert clock.ns > before_ns


def test_an_urged_pass_begins_at_once(clock: Clock) -> None:
    begun = []

    def begin() -> Generator[None, None, str]:
        begun.append(clock.ns)
        return clock.work(6, 1, "done")

    rounds = Rounds(begin, 1000, 0)
    rounds.turn(0)
    # While one is under way: that one ends, and another follows without a pause.
    rounds.urge(0)
    assert rounds.turn(0)
    assert rounds.next_ms == 0
    rounds.turn(0)
    assert len(begun) == 2
    assert rounds.turn(0)
    assert rounds.next_ms == 1000
    # While it rests.
    rounds.urge(300)
    assert rounds.next_ms == 300
    rounds.turn(300)
    assert len(begun) == 3
    assert rounds.turn(301)
    assert rounds.next_ms == 1301


def test_questions_are_answered_one_after_the_other(clock: Clock) -> None:
    questions = Questions()
    answers: list[str | None] = []
    assert not questions.turn()
    for steps, name in ((6, "first"), (1, "second")):
        questions.ask(clock.work(steps, 1, name), answers.append)
    assert len(questions) == 2
    assert [questions.turn() for _ in range(4)] == [False, True, True, False]
    assert answers == ["first", "second"]
    assert len(questions) == 0


def test_questions_that_are_given_up_get_no_answer_and_are_closed(clock: Clock) -> None:
    questions = Questions()
    closed = []
    answers: list[str | None] = []

    def question() -> Generator[None, None, str]:
        try:
            while True:
                clock.ns += 1_000_000
                yield
        finally:
            closed.append(True)

    questions.ask(question(), answers.append)
    questions.ask(clock.work(1, 1, "never"), answers.append)
    questions.turn()
    questions.give_up()
    assert (answers, closed, len(questions)) == ([None, None], [True], 0)


def test_real_time_is_minded_too() -> None:
    def endless() -> Generator[None, None, None]:
        while True:
            time.sleep(0.001)
            yield

    questions = Questions()
    questions.ask(endless(), lambda _: None)
    began_s = time.monotonic()
    assert not questions.turn()
    # A step more than a turn at most, on a machine that may be busy.
    assert time.monotonic() - began_s < 1
