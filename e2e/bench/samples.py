"""Trials and what is said of them: medians, spreads, ratios, goals. Pure.

A shared machine is never quiet, so no single time means anything. Those that are compared take
turns, in an order that is reversed every round (whoever runs second finds caches and clock
as the first has left them); a ratio is made of two neighbours of one round; and what is told is the
median of all rounds with the quartiles beside it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median, quantiles
from typing import TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Sample:
    """Trials of one thing."""

    trials: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.trials)

    @property
    def quartiles(self) -> tuple[float, float]:
        """The spread: half of the trials lie between these."""
        if len(self.trials) < 2:
            return self.trials[0], self.trials[0]
        lower, _, upper = quantiles(self.trials, n=4, method="inclusive")
        return lower, upper

    def text(self, digits: int, unit: str = "") -> str:
        lower, upper = self.quartiles
        spread = f"{lower:.{digits}f}–{upper:.{digits}f}"
        return f"{self.median:.{digits}f}{unit} ({spread})"


@dataclass(frozen=True, slots=True)
class Goal:
    """What a median should be, at most or at least."""

    limit: float
    at_most: bool
    digits: int = 1
    unit: str = ""

    def is_met(self, value: float) -> bool:
        return value <= self.limit if self.at_most else value >= self.limit

    @property
    def text(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.limit:.{self.digits}f}{self.unit}"


def at_most(limit: float, unit: str = "", digits: int = 1) -> Goal:
    return Goal(limit, True, digits, unit)


def at_least(limit: float, unit: str = "", digits: int = 1) -> Goal:
    return Goal(limit, False, digits, unit)


def ratios(over: Sample, under: Sample) -> Sample:
    """Round by round, so that what slowed both in a round does not count."""
    pairs = zip(over.trials, under.trials, strict=True)
    return Sample(tuple(mine / theirs for mine, theirs in pairs))


def differences(more: Sample, less: Sample) -> Sample:
    """Trial by trial."""
    return Sample(tuple(a - b for a, b in zip(more.trials, less.trials, strict=True)))


def turns(contestants: Sequence[T], rounds: int) -> Iterator[tuple[int, T]]:
    """Who runs when: every round all of them, every other round backwards."""
    for number in range(rounds):
        for one in contestants if number % 2 == 0 else reversed(contestants):
            yield number, one


def pieces(total: int, size: int) -> Iterator[int]:
    """`total` in parts of `size`, the last one what is left."""
    while total > 0:
        yield min(size, total)
        total -= size
