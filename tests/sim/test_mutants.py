"""Each fault that is put in on purpose has its place in the sources, whatever was moved since."""

from __future__ import annotations

import pytest

from tests.sim.mutant import Mutant
from tests.sim.mutants import MUTANTS, SOURCES
from tests.sim.node_mutants import NODE_MUTANTS


@pytest.mark.parametrize("mutant", [*MUTANTS, *NODE_MUTANTS], ids=lambda mutant: mutant.name)
def test_its_place_is_there_once(mutant: Mutant) -> None:
    text = (SOURCES / "services" / mutant.service / mutant.module).read_text()
    assert text.count(mutant.old) == 1
