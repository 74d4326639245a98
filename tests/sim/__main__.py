"""Play many schedules: `python -m tests.sim --lbs 3 --seeds 1000`; of nodes: `--lbs 0`.

Prints the seeds that failed, with what was drawn for them, and in the end how many were played, how
long that took, and which faults were drawn how often. Exit status 1: some failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from collections.abc import Iterable
from concurrent.futures import ProcessPoolExecutor

from tests.sim.nodes import NodeSchedule
from tests.sim.schedule import Schedule
from tests.sim.world import ViolationError

CHUNK = 50


def play_some(seeds: range, size: int) -> tuple[list[str], Counter[str], int]:
    """What failed, which faults were drawn, and how many steps were taken."""
    failed: list[str] = []
    drawn: Counter[str] = Counter()
    steps = 0
    for seed in seeds:
        schedule = Schedule(seed, size) if size else NodeSchedule(seed)
        drawn.update(schedule.words().split(", "))
        try:
            steps += schedule.play()
        except ViolationError as violation:
            at_s = schedule.world.now_ms / 1_000
            failed.append(f"seed {seed}: {violation}, at {at_s:.3f} s ({schedule.words()})")
    return failed, drawn, steps


def chunks(first: int, count: int, size: int = CHUNK) -> Iterable[range]:
    for start in range(first, first + count, size):
        yield range(start, min(start + size, first + count))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--lbs", type=int, default=3, help="how many LBs; 0: one, and its nodes")
    parser.add_argument("--seeds", type=int, default=1_000, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--first-failure", action="store_true", help="stop at the first that fails")
    options = parser.parse_args()
    began = time.monotonic()
    failed: list[str] = []
    drawn: Counter[str] = Counter()
    steps = played = 0
    size = 1 if options.first_failure else CHUNK
    todo = list(chunks(options.first, options.seeds, size))
    with ProcessPoolExecutor(options.jobs) as pool:
        results = (
            pool.map(play_some, todo, [options.lbs] * len(todo))
            if options.jobs > 1
            else map(play_some, todo, [options.lbs] * len(todo))
        )
        for seeds, (said, kinds, took) in zip(todo, results, strict=True):
            failed += said
            drawn += kinds
            steps += took
            played += len(seeds)
            for line in said:
                print(line, flush=True)
            if said and options.first_failure:
                return 1
            if sys.stderr.isatty():
                print(f"\r{played} of {options.seeds}", end="", file=sys.stderr, flush=True)
    took_s = time.monotonic() - began
    cluster, cpus = f"{played} schedules of {options.lbs or 'nodes, 1'} LBs", os.cpu_count()
    print(f"{cluster}, {steps} steps, {took_s:.0f} s on {cpus} CPUs")
    print("faults drawn: " + ", ".join(f"{kind} {number}" for kind, number in drawn.most_common()))
    print(f"{len(failed)} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
