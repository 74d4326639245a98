"""Whole conversations through the real programs, each seed a scenario (sequences/ says how).

A failure names its seed and shows what happened, packet by packet. To look for more:
`python -m tests.bpf.sequences --seeds 100000 --jobs 2`.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.bpf.scene import Scene
from tests.bpf.sequences.balancer import RealBalancer, pinned_to_cpu
from tests.bpf.sequences.mutants import MUTANTS, Mutant, sources_with
from tests.bpf.sequences.trial import play_seed, shortened, transcript

SEEDS, PARTS = 1200, 24


@pytest.fixture
def balancer(scene: Scene) -> Iterator[RealBalancer]:
    with pinned_to_cpu(0):
        yield RealBalancer(scene)


@pytest.mark.parametrize("part", range(PARTS))
def test_sequences(balancer: RealBalancer, part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        failure = play_seed(seed, balancer).failure
        if failure is not None:
            short = shortened(failure, balancer)
            balancer.tells = True
            pytest.fail(f"{failure}\n\n{transcript(short, balancer)}", pytrace=False)


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_has_its_place_in_the_sources(mutant: Mutant) -> None:
    with sources_with(mutant) as sources:
        assert (sources / "xdp.c").is_file()
