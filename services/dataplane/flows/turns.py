"""Long work in short turns: passes over the flow table between the turns of the process's loop.

The loop must not stand still: while it does, a dead node is not masked. So whatever goes through
the table is a generator whose steps take about a millisecond, and each turn of the loop runs it for
`TURN_MS` at most. Who is asked a question runs it until it is answered (`Questions`); who counts
begins again and again, so seldom that it costs `SHARE` of a core (`Rounds`).
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from typing import Any, Generic, TypeVar

TURN_MS = 4
"""For each kind of work: with both, and the last step of each, a turn stays below 10 ms."""
SHARE = 0.02

T = TypeVar("T")


class Rounds(Generic[T]):
    """Runs a pass again and again, a little in each turn of the process's loop.

    The next one begins `interval_ms` after the last one's end, and so late that passing costs
    `SHARE` of a core at most, however large the table and slow the machine.
    """

    def __init__(
        self, begin: Callable[[], Generator[None, None, T]], interval_ms: int, now_ms: int
    ) -> None:
        self._begin = begin
        self._interval_ms = interval_ms
        self._pass: Generator[None, None, T] | None = None
        self._is_urged = False
        self._spent_ms = 0.0
        self.next_ms = now_ms
        """When there is something to do; the past while a pass is under way."""
        self.result: T | None = None
        """Of the last whole pass."""
        self.cpu_ms = 0.0
        """What that pass cost."""

    def urge(self, now_ms: int) -> None:
        """A whole pass from its beginning is wanted as soon as can be."""
        self._is_urged = True
        self.next_ms = min(self.next_ms, now_ms)

    def turn(self, now_ms: int) -> bool:
        """Go on for a moment; whether a pass has come to its end."""
        if now_ms < self.next_ms:
            return False
        if self._pass is None:
            self._is_urged = False
            self._pass = self._begin()
            self._spent_ms = 0.0
        cpu_ns = time.thread_time_ns()
        ended, result = _run(self._pass)
        self._spent_ms += (time.thread_time_ns() - cpu_ns) / 1e6
        if not ended:
            return False
        self._pass = None
        self.result = result
        self.cpu_ms = self._spent_ms
        pause_ms = 0 if self._is_urged else max(self._interval_ms, int(self.cpu_ms / SHARE))
        self.next_ms = now_ms + pause_ms
        return True


class Questions:
    """Runs each question to its answer, one after the other, a little in each turn."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Generator[None, None, Any], Callable[[Any], None]]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def ask(self, question: Generator[None, None, T], answer: Callable[[T | None], None]) -> None:
        """`answer` is given what the question returns; None: it was given up."""
        self._waiting.append((question, answer))

    def turn(self) -> bool:
        """Go on with the first for a moment; whether it has been answered."""
        if not self._waiting:
            return False
        question, answer = self._waiting[0]
        ended, result = _run(question)
        if ended:
            self._waiting.popleft()
            answer(result)
        return ended

    def give_up(self) -> None:
        """What they ask about is there no more."""
        while self._waiting:
            question, answer = self._waiting.popleft()
            question.close()
            answer(None)


def _run(work: Generator[None, None, T]) -> tuple[bool, T | None]:
    """Whether it came to its end within `TURN_MS`, and what it returned."""
    end_ns = time.monotonic_ns() + TURN_MS * 1_000_000
    try:
        while time.monotonic_ns() < end_ns:
            next(work)
    except StopIteration as end:
        return True, end.value
    return False, None
