"""Flows told from one LB to another: how late, at what cost, and what a newcomer has to wait for.

Two processes with maps of their own, each with the dataplane's whole replication in it, speak by
TCP over the loopback of a namespace. At one, flows are opened by a program that enters them and
notes them as the forwarding programs do (replication.c), so many a second.

* *lag*: from when a flow is to be told of, 50 ms after it was established, until its follower's
  word that it is entered has come back: the worst in each turn of the loop, and of those the 99th
  percentile;
* *CPU*: of a core, for telling and for entering, without the opening itself;
* *snapshot*: a table of a million flows, to an LB that starts: until it has all of them;
* *full*: into a table that is full of the follower's own flows; how many of these are lost.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from e2e.bench.report import Line, Result
from e2e.bench.samples import Sample, at_most

NETWORK = "gale-bench-flows"
ADDRESSES = ("127.0.0.1", "127.0.0.2")
RATE = 50_000
MILLION = 1_000_000
BUCKETS = 262_144
SMALL_BUCKETS = 4_096
PATIENCE_S = 300.0
_UNTIL_LEVEL_S = 0.05


class _Lb:
    """A process of `replication_lb`, asked and answering by lines."""

    def __init__(self, number: int, buckets: int) -> None:
        address, other = ADDRESSES[number], ADDRESSES[1 - number]
        command = ("-m", "e2e.bench.replication_lb", address, other, str(buckets))
        self._process = subprocess.Popen(
            ("nsenter", f"--net=/run/netns/{NETWORK}", sys.executable, *command),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.hear()

    def ask(self, **wanted: Any) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(wanted) + "\n")
        self._process.stdin.flush()

    def hear(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError("a process of the benchmark has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def report(self) -> dict[str, Any]:
        self.ask(do="report")
        return self.hear()

    def until(self, is_so: Callable[[dict[str, Any]], bool], what: str) -> dict[str, Any]:
        end_s = time.monotonic() + PATIENCE_S
        while time.monotonic() < end_s:
            report = self.report()
            if is_so(report):
                return report
            time.sleep(_UNTIL_LEVEL_S)
        raise RuntimeError(f"never {what}: {report['standing']}, {report['counts']}")

    def end(self) -> None:
        self._process.terminate()
        self._process.wait(10)


@contextmanager
def _network() -> Iterator[None]:
    subprocess.run(("ip", "netns", "add", NETWORK), check=True)
    try:
        loopback = ("ip", "-n", NETWORK)
        subprocess.run((*loopback, "link", "set", "lo", "up"), check=True)
        subprocess.run((*loopback, "address", "add", "127.0.0.2/8", "dev", "lo"), check=True)
        yield
    finally:
        subprocess.run(("ip", "netns", "delete", NETWORK), check=False)


@contextmanager
def _lbs(*buckets: int) -> Iterator[list[_Lb]]:
    lbs: list[_Lb] = []
    try:
        lbs += [_Lb(number, size) for number, size in enumerate(buckets)]
        yield lbs
    finally:
        for each in lbs:
            each.end()


def run(seconds: int, million: int, progress: Callable[[str], None]) -> Result:
    """`seconds` of new flows; `million`: how many a snapshot has."""
    with _network():
        progress(f"{RATE:,} new flows a second")
        lag_ms, told, entered = _rate(seconds)
        progress("a snapshot")
        snapshot_s = _snapshot(million)
        progress("a full table")
        lost, refused = _full()
    return Result(
        key="replication",
        title="Flows told from one LB to another",
        columns=("seen",),
        lines=(
            _line("lag, 99th percentile", lag_ms, at_most(20, " ms", 0), " ms", 0),
            _line("CPU, telling", told, at_most(25, " %", 0), " %", 0),
            _line("CPU, entering", entered, at_most(25, " %", 0), " %", 0),
            _line(f"snapshot of {million:,} flows", snapshot_s, at_most(3, " s", 0), " s", 1),
            _line("a full table's flows that were lost", lost, at_most(0, "", 0), "", 0),
        ),
        bar_label="",
        remark=f"{RATE:,} new flows a second for {seconds} s; the full table refused {refused:,}",
    )


def _line(name: str, value: float, goal: Any, unit: str, digits: int) -> Line:
    return Line(name, (f"{value:.{digits}f}{unit}",), Sample((value,)), value, goal)


def _rate(seconds: int) -> tuple[float, float, float]:
    """The lag's 99th percentile in ms, and percents of a core for telling and entering."""
    with _lbs(BUCKETS, BUCKETS) as (one, other):
        one.until(lambda report: report["standing"] == "level", "level")
        other.until(lambda report: report["standing"] == "level", "level")
        before = [each.report()["cpu_s"] for each in (one, other)]
        begun_s = time.monotonic()
        one.ask(do="open", rate=RATE, seconds=seconds)
        time.sleep(seconds)
        # Nothing is asked meanwhile: a report reads the whole table.
        took_s = time.monotonic() - begun_s
        reports = [one.report(), other.report()]
        cpu = [
            100 * (report["cpu_s"] - cpu_s) / took_s
            for report, cpu_s in zip(reports, before, strict=True)
        ]
        # One in a thousand found no place where it was opened, so nobody is told of it.
        wanted = reports[0]["flows"]
        other.until(lambda report: report["flows"] >= wanted, f"{wanted} flows")
        return float(np.percentile(reports[0]["lags_ms"], 99)), cpu[0], cpu[1]


def _snapshot(count: int) -> float:
    with _lbs(BUCKETS) as (one,):
        one.ask(do="fill", count=count)
        one.hear()
        held = one.report()["flows"]
        begun_s = time.monotonic()
        newcomer = _Lb(1, BUCKETS)
        started_s = time.monotonic() - begun_s
        try:
            newcomer.until(lambda report: report["standing"] == "level", "level")
            took_s = time.monotonic() - begun_s - started_s
            flows = newcomer.report()["flows"]
        finally:
            newcomer.end()
        if flows != held:
            raise RuntimeError(f"{flows} of {held} flows have come")
        return took_s


def _full() -> tuple[float, int]:
    """How many of its own flows a follower has lost, and how many it has refused."""
    with _lbs(BUCKETS, SMALL_BUCKETS) as (one, other):
        # So many that hardly a place is left.
        other.ask(do="fill", count=SMALL_BUCKETS * 16)
        other.hear()
        own = other.report()["own"]
        one.ask(do="open", rate=RATE, seconds=2)
        report = other.until(
            lambda report: (
                sum(report["counts"].get(name, 0) for name in ("entered", "full")) >= 2 * RATE
            ),
            "told of everything",
        )
        return own - report["own"], report["counts"].get("full", 0)
