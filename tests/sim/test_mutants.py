"""Each fault that is put in on purpose has its place in the sources, and is caught."""

from __future__ import annotations

import pytest

from tests.sim.mutant import Mutant
from tests.sim.mutants import ALL, SOURCES, caught

each_mutant = pytest.mark.parametrize("mutant", ALL, ids=lambda mutant: mutant.name)


@each_mutant
def test_its_place_is_there_once(mutant: Mutant) -> None:
    mutant.made_in((SOURCES / mutant.path).read_text())


@pytest.mark.timeout(600)
@each_mutant
def test_it_is_caught(mutant: Mutant) -> None:
    assert caught(mutant), "nothing fails with it"
