"""Schedules of LBs that agree, or do not: see world.py for what must hold.

CI plays these; `make sim SEEDS=100000` plays as many as one likes.
"""

from __future__ import annotations

import pytest

from tests.sim.schedule import Schedule

CHUNK = 25


@pytest.mark.parametrize("first", range(0, 1000, CHUNK))
def test_three_lbs(first: int) -> None:
    for seed in range(first, first + CHUNK):
        Schedule(seed, 3).play()


@pytest.mark.parametrize("size", [1, 2, 5, 7])
def test_other_numbers_of_them(size: int) -> None:
    for seed in range(15):
        Schedule(seed, size).play()


FOUND = ((17_979, 3), (16_595, 5))
"""Seeds, and of how many LBs, beyond those above: each has found a fault once."""


@pytest.mark.parametrize(("seed", "size"), FOUND)
def test_what_has_failed_before(seed: int, size: int) -> None:
    Schedule(seed, size).play()
