"""Faults put into the C sources on purpose: each must be caught, or the model has a hole.

    python -m tests.bpf.sequences.mutants [NAME …]

A mutant is a place in a header of bpf/ and what is to stand there instead. It is made in a copy of
the sources, compiled, and played until the first seed that fails with it and not without. Exit
status 1: some were not caught within `SEEDS`, or their place is not in the sources any more.
"""

from __future__ import annotations

import shutil
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bpf.loader import SOURCE_DIR
from tests.bpf.harness import SMALL_TABLES, Rig
from tests.bpf.scene import Scene
from tests.bpf.sequences.balancer import RealBalancer, pinned_to_cpu
from tests.bpf.sequences.trial import play_seed

SEEDS = 2000


@dataclass(frozen=True, slots=True)
class Mutant:
    name: str
    header: str
    """Its path within bpf/."""
    old: str
    """Stands there exactly once."""
    new: str


MUTANTS = (
    Mutant(
        "the node's first number is acknowledged one too high",
        "reply.h",
        "request->expected = packet->sequence + 1;",
        "request->expected = packet->sequence + 2;",
    ),
    Mutant(
        "a reply's port checksum is not undone",
        "conntrack.h",
        "other.port_delta = ~flow->port_delta;",
        "other.port_delta = flow->port_delta;",
    ),
)


def by_name(name: str) -> Mutant:
    return next(mutant for mutant in MUTANTS if mutant.name == name)


@contextmanager
def sources_with(mutant: Mutant) -> Iterator[Path]:
    """A copy of bpf/'s C sources with the fault in it. Raises ValueError if there is no place."""
    with tempfile.TemporaryDirectory(prefix="gale-mutant-") as folder:
        copy = Path(folder) / "bpf"
        # A header that is missing beside the one that includes it would be taken from the
        # original, unchanged: so all of them come along.
        shutil.copytree(SOURCE_DIR, copy, ignore=shutil.ignore_patterns("*.py", "__pycache__"))
        header = copy / mutant.header
        text = header.read_text()
        if text.count(mutant.old) != 1:
            raise ValueError(f"{mutant.header}: {text.count(mutant.old)} places: {mutant.old}")
        header.write_text(text.replace(mutant.old, mutant.new))
        yield copy


def balancer_with(mutant: Mutant | None) -> RealBalancer:
    """The programs with that fault; None: without any."""
    if mutant is None:
        return RealBalancer(Scene(Rig(dict(SMALL_TABLES))))
    with sources_with(mutant) as sources:
        return RealBalancer(Scene(Rig(dict(SMALL_TABLES), sources)))


def first_catch(mutant: Mutant, sound: RealBalancer) -> tuple[int, str] | None:
    """The first seed that fails with the fault and not without, and how it fails."""
    faulty = balancer_with(mutant)
    for seed in range(SEEDS):
        failure = play_seed(seed, faulty).failure
        if failure is not None and play_seed(seed, sound).failure is None:
            return seed, failure.text
    return None


def main(names: list[str]) -> int:
    missed = 0
    with pinned_to_cpu(0):
        sound = balancer_with(None)
        for mutant in [by_name(name) for name in names] or MUTANTS:
            try:
                caught = first_catch(mutant, sound)
                said = f"seed {caught[0]}: {caught[1]}" if caught else f"not within {SEEDS} seeds"
            except ValueError as error:
                caught, said = None, str(error)
            missed += caught is None
            print(f"{'caught' if caught else 'MISSED'}  {mutant.name}  ({said})", flush=True)
    return 1 if missed else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
