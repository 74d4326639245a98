"""Play many seeds against the real programs, in several processes.

Failing seeds are told as they come, each kind of failure once with its transcript, made short.
Exit status 1: something failed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import queue
import sys
import time
from collections import Counter
from dataclasses import dataclass
from multiprocessing.queues import Queue

from tests.bpf.sequences.balancer import pinned_to_cpu
from tests.bpf.sequences.mutants import MUTANTS, balancer_with, by_name
from tests.bpf.sequences.trial import Failure, play_seed, shortened, transcript

_TELL_EVERY_S = 5.0
_LOOK_EVERY_S = 1.0
_SEEDS_AT_ONCE = 20


@dataclass(frozen=True, slots=True)
class _Orders:
    seeds: range
    mutant: str | None
    overlooked: frozenset[str]


@dataclass(frozen=True, slots=True)
class _News:
    seeds: int
    packets: int
    failures: list[tuple[Failure, str]]
    """Each with its transcript, if it is the first of its kind."""
    is_last: bool = False


def _work(number: int, orders: _Orders, news: Queue[_News]) -> None:
    told: set[str] = set()
    with pinned_to_cpu(number):
        balancer = balancer_with(by_name(orders.mutant) if orders.mutant else None)
        for start in range(0, len(orders.seeds), _SEEDS_AT_ONCE):
            failures, packets, seeds = [], 0, orders.seeds[start : start + _SEEDS_AT_ONCE]
            for seed in seeds:
                played = play_seed(seed, balancer, orders.overlooked)
                packets += played.packets
                if played.failure is None:
                    continue
                text = ""
                if played.failure.kind not in told:
                    told.add(played.failure.kind)
                    short = shortened(played.failure, balancer, orders.overlooked)
                    balancer.tells = True
                    text = transcript(short, balancer, orders.overlooked)
                    balancer.tells = False
                failures.append((played.failure, text))
            news.put(_News(len(seeds), packets, failures))
    news.put(_News(0, 0, [], is_last=True))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bpf.sequences")
    parser.add_argument("--seeds", type=int, default=600, help="how many")
    parser.add_argument("--first", type=int, default=0, help="the first of them")
    parser.add_argument("--jobs", type=int, default=1, help="processes, each on a CPU of its own")
    parser.add_argument("--mutant", choices=[mutant.name for mutant in MUTANTS])
    parser.add_argument(
        "--overlook",
        action="append",
        default=[],
        metavar="KIND",
        help="go on after failures of this kind, where the model can: "
        '"passed to the host", "outlived its deadline", "table"',
    )
    return parser.parse_args()


class _Report:
    def __init__(self, wanted: int) -> None:
        self._wanted = wanted
        self._seeds = self._packets = 0
        self._began = self._told_at = time.monotonic()
        self._transcripts: set[str] = set()
        self.kinds: Counter[str] = Counter()

    def add(self, news: _News) -> None:
        self._seeds += news.seeds
        self._packets += news.packets
        for failure, text in news.failures:
            self.kinds[failure.kind] += 1
            print(f"✗ {failure}")
            if text and failure.kind not in self._transcripts:
                self._transcripts.add(failure.kind)
                print(f"\n{text}\n", flush=True)
        if time.monotonic() - self._told_at > _TELL_EVERY_S:
            self.tell()

    def tell(self) -> None:
        self._told_at = time.monotonic()
        speed = self._packets / max(self._told_at - self._began, 0.001)
        print(
            f"{self._seeds} of {self._wanted} seeds, {self._packets} packets, {speed:.0f} a "
            f"second; failed: {dict(self.kinds) or 'none'}",
            file=sys.stderr,
            flush=True,
        )


def main() -> int:
    arguments = _arguments()
    context = multiprocessing.get_context("spawn")
    news: Queue[_News] = context.Queue()
    last = arguments.first + arguments.seeds
    workers = []
    for number in range(arguments.jobs):
        seeds = range(arguments.first + number, last, arguments.jobs)
        orders = _Orders(seeds, arguments.mutant, frozenset(arguments.overlook))
        workers.append(context.Process(target=_work, args=(number, orders, news), daemon=True))
        workers[-1].start()
    report = _Report(arguments.seeds)
    running = len(workers)
    while running:
        try:
            told = news.get(timeout=_LOOK_EVERY_S)
        except queue.Empty:
            if any(worker.exitcode for worker in workers):
                print("a worker has ended before its time", file=sys.stderr)
                return 1
            continue
        running -= told.is_last
        report.add(told)
    report.tell()
    return 1 if report.kinds else 0
