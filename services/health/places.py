"""Which places of its nodes an LB is to look at, when, and what it believes of what it saw. Pure.

Only `MISSES` failures in a row are told (`Places.found`): a SYN may be lost. A place that did not
answer is looked at `HASTE` times as often until it does; where a refusal is no fault, as of a port
that is UDP's, only until it is believed. No more than `MOST_PER_S` looks begin in a second, so a
round among very many places takes longer than a `checks_timeout`. What a look proves stands in
`probe`, which makes them.
"""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

MISSES = 2
HASTE = 10
"""How many times as often a place is looked at that does not answer as it should."""
MOST_PER_S = 500
PAUSE_MS = 20


class Outcome(Enum):
    OPEN = "open"
    REFUSED = "refused"
    UNANSWERED = "unanswered"


class Spot(NamedTuple):
    """Where a node serves a service."""

    address: str
    port: int


@dataclass(slots=True)
class _Place:
    due_ms: int
    misses: int = 0
    judged: Outcome | None = None
    refuses_by_fault: bool = False

    @property
    def is_urgent(self) -> bool:
        is_no_fault = self.judged is Outcome.REFUSED and not self.refuses_by_fault
        return self.misses > 0 and not is_no_fault


class Places:
    """Which places there are, when each is due, and what is to be believed of it. Pure."""

    def __init__(self) -> None:
        self._places: dict[Spot, _Place] = {}
        self._due: list[tuple[int, Spot]] = []
        self._budget = 0.0
        self._budget_ms: int | None = None

    def want(self, spots: Mapping[Spot, bool], round_ms: int, now_ms: int) -> list[Spot]:
        """From now on look at these places, and no others; returns those that are gone.

        `spots`: with each, whether a refused connection is a fault there.
        """
        for number, spot in enumerate(spot for spot in spots if spot not in self._places):
            self._places[spot] = _Place(now_ms + number * 2 % round_ms)
            heapq.heappush(self._due, (self._places[spot].due_ms, spot))
        for spot, is_fault in spots.items():
            self._places[spot].refuses_by_fault = is_fault
        gone = [spot for spot in self._places if spot not in spots]
        for spot in gone:
            del self._places[spot]
        return gone

    def take_due(self, most: int, round_ms: int, now_ms: int) -> list[Spot]:
        """At most so many places that are to be connected to now."""
        elapsed_ms = now_ms - (now_ms if self._budget_ms is None else self._budget_ms)
        self._budget_ms = now_ms
        self._budget = min(MOST_PER_S / 10, self._budget + elapsed_ms * MOST_PER_S / 1_000)
        due: list[Spot] = []
        while self._due and self._due[0][0] <= now_ms and len(due) + 1 <= min(most, self._budget):
            at_ms, spot = heapq.heappop(self._due)
            place = self._places.get(spot)
            if place is None or place.due_ms != at_ms:
                continue  # it went, and may have come again
            due.append(spot)
            place.due_ms = now_ms + max(1, round_ms // (HASTE if place.is_urgent else 1))
            heapq.heappush(self._due, (place.due_ms, spot))
        self._budget -= len(due)
        return due

    def next_due_ms(self) -> int | None:
        """When `take_due` has something, as far as the budget goes."""
        if not self._due:
            return None
        wait_ms = 0 if self._budget >= 1 else PAUSE_MS
        return max(self._due[0][0], (self._budget_ms or 0) + wait_ms)

    def found(self, spot: Spot, outcome: Outcome) -> Outcome | None:
        """Take one outcome; returns what is to be believed from now on, if that is news."""
        place = self._places.get(spot)
        if place is None:
            return None
        place.misses = 0 if outcome is Outcome.OPEN else place.misses + 1
        if outcome is not Outcome.OPEN and place.misses < MISSES:
            return None
        if outcome is place.judged:
            return None
        place.judged = outcome
        return outcome


def in_words(spot: Spot, outcome: Outcome) -> str:
    """What an outcome that is no good says of a node's service."""
    what = "connection refused" if outcome is Outcome.REFUSED else "no answer"
    return f"this load balancer cannot connect to port {spot.port}: {what}"
