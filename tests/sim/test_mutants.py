"""Each fault that is put in on purpose has its place in the sources, and is caught.

Those that a schedule is yet to be found for are left to `python -m tests.sim.mutants`.
"""

from __future__ import annotations

import pytest

from tests.sim.mutant import Mutant
from tests.sim.mutants import ALL, SOURCES, caught


def name(mutant: Mutant) -> str:
    return mutant.name


@pytest.mark.parametrize("mutant", ALL, ids=name)
def test_its_place_is_there_once(mutant: Mutant) -> None:
    mutant.made_in((SOURCES / mutant.path).read_text())


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mutant", [m for m in ALL if m.test or m.first is not None], ids=name)
def test_it_is_caught(mutant: Mutant) -> None:
    assert caught(mutant), "nothing fails with it"
