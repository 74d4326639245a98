"""What operators have asked for and is not agreed on yet, at the LB that was asked and at the
leader. Pure.

Who was asked passes it on to the leader, and again every `RESEND_MS`, since the leader may change.
Each is known by the id of the operator's command. It is answered when the table that has it is
committed, or where its desk (`orders.Desk`, `membership.Changes`) knows better; after `WAIT_MS`
without an answer it is refused, though it may yet be carried out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, TypeVar

RESEND_MS = 100
WAIT_MS = 1_500
"""Less than the two seconds for which a command's sender waits."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Answer:
    """To what was asked for; `refusal` empty: all LBs go by it."""

    id: str
    asker: str | None
    """The address of the LB that passed it on; None: it was asked for here."""
    refusal: str


@dataclass(slots=True)
class Waiting(Generic[T]):
    asked: T
    asker: str | None
    since_ms: int
    epoch: int | None = None
    """Of the table into which this LB, as the leader, has written it."""
    sent_ms: int | None = None


class Queue(Generic[T]):
    """Those that wait, by their ids, and the answers that have come of others."""

    def __init__(self) -> None:
        self._waiting: dict[str, Waiting[T]] = {}
        self._answers: list[Answer] = []

    def ask(self, number: str, asked: T, asker: str | None, now_ms: int) -> None:
        """`number`: the id of the operator's command; `asker`: who passed it on; None: nobody."""
        if number not in self._waiting:
            self._waiting[number] = Waiting(asked, asker, now_ms)

    def items(self) -> list[tuple[str, Waiting[T]]]:
        """All that wait; they may be answered meanwhile."""
        return list(self._waiting.items())

    @property
    def unwritten(self) -> list[tuple[str, Waiting[T]]]:
        """Those that stand in no table that this LB has made."""
        return [(number, each) for number, each in self._waiting.items() if each.epoch is None]

    def lead_ended(self) -> None:
        """What was written into a table that may never be committed has to be asked for again."""
        for each in self._waiting.values():
            each.epoch = None

    def answer(self, number: str, refusal: str) -> None:
        """Nothing, of one that does not wait here."""
        if (waiting := self._waiting.pop(number, None)) is not None:
            self._answers.append(Answer(number, waiting.asker, refusal))

    def take_answers(self) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def to_pass_on(self, now_ms: int) -> list[tuple[str, T]]:
        """What to send to the leader, which is another LB, now."""
        due = [
            (number, each)
            for number, each in self._waiting.items()
            if each.asker is None and (each.sent_ms is None or now_ms >= each.sent_ms + RESEND_MS)
        ]
        for _, each in due:
            each.sent_ms = now_ms
        return [(number, each.asked) for number, each in due]

    def tick(self, now_ms: int) -> None:
        for number, each in self.items():
            if now_ms >= each.since_ms + WAIT_MS:
                self.answer(number, f"the load balancers have not agreed on it within {WAIT_MS} ms")

    def next_due_ms(self, *, passes_on: bool) -> int | None:
        """When `tick`, or `to_pass_on` where that is possible, has something to do."""
        if not self._waiting:  # it is asked in every turn, and nearly always so
            return None
        waiting = self._waiting.values()
        due = [each.since_ms + WAIT_MS for each in waiting]
        due += [
            each.sent_ms + RESEND_MS
            for each in waiting
            if passes_on and each.sent_ms is not None and each.asker is None
        ]
        return min(due)
