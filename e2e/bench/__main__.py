"""The command: `python -m e2e.bench [cost] [veth] ...`, as root. See `--help`."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from rich.console import Console
from rich.table import Table

from e2e.bench import (
    connections,
    consoles,
    control,
    core,
    cost,
    failover,
    healing,
    replication,
    report,
    tcp,
    thousand,
    veth,
)
from e2e.bench.report import Result
from e2e.lab import LabError

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Extent:
    """How much of a benchmark is to be run."""

    quick: bool = False
    rows: tuple[str, ...] = ()
    """Of `cost`: only those with one of these in their names; none: all."""
    trials: int | None = None
    repeats: int | None = None
    """Of `cost`; None: as many as usual."""

    @property
    def is_whole(self) -> bool:
        """Whether what comes out is for the page."""
        return self == Extent()


def _cost(extent: Extent, progress: Progress) -> Result:
    trials, repeats = (3, 200_000) if extent.quick else (7, 1_000_000)
    rows = cost.chosen(extent.rows)
    return cost.run(extent.trials or trials, extent.repeats or repeats, progress, rows)


def _veth(extent: Extent, progress: Progress) -> Result:
    return veth.run(2, 250_000, progress) if extent.quick else veth.run(5, 1_000_000, progress)


def _tcp(extent: Extent, progress: Progress) -> Result:
    return tcp.run(2, 1, progress) if extent.quick else tcp.run(5, 2, progress)


def _connections(extent: Extent, progress: Progress) -> Result:
    return connections.run(3 if extent.quick else 60, progress)


def _services(extent: Extent, progress: Progress) -> Result:
    return thousand.run(2 if extent.quick else 5, progress)


def _control(extent: Extent, progress: Progress) -> Result:
    return control.run(500, 10, progress) if extent.quick else control.run(10_000, 60, progress)


def _failover(extent: Extent, progress: Progress) -> Result:
    return failover.run(2 if extent.quick else 10, progress)


def _consoles(extent: Extent, progress: Progress) -> Result:
    return consoles.run(*((5, 3.0) if extent.quick else (consoles.CONSOLES, 60.0)), progress)


def _healing(extent: Extent, progress: Progress) -> Result:
    return healing.run(2 if extent.quick else 20, progress)


def _replication(extent: Extent, progress: Progress) -> Result:
    return replication.run(*((3, 200_000) if extent.quick else (20, 1_000_000)), progress)


BENCHMARKS: dict[str, tuple[str, Callable[[Extent, Progress], Result]]] = {
    "cost": ("what a packet costs in each program, run without sending any (2 minutes)", _cost),
    "veth": ("packets per second through veth, beside a bare redirect and nftables (3)", _veth),
    "tcp": ("requests, connections and downloads, beside nftables, HAProxy and nginx (4)", _tcp),
    "services": ("1,000 of them: a start, a reload and a death (half a minute)", _services),
    "replication": (
        "flows told to another LB: lag, CPU, a snapshot (1)",
        _replication,
    ),
    "control": ("what the processes cost with 10,000 nodes while nothing changes (5)", _control),
    "failover": ("for how long nobody answers for a VIP, beside keepalived (40)", _failover),
    "healing": ("how soon an LB is heard again that was cut off (4)", _healing),
    "consoles": ("what fifty open consoles cost each process of an LB (3)", _consoles),
    "connections": ("new ones for a minute, the kernel's settings as they are (4)", _connections),
}


def main() -> int:
    parser = _options()
    options = parser.parse_args()
    unknown = ", ".join(set(options.benchmarks) - set(BENCHMARKS))
    if unknown:
        parser.error(f"no such benchmark: {unknown}")
    extent = Extent(options.quick, tuple(options.rows), options.trials, options.repeats)
    if options.benchmarks != ["cost"] and extent not in (Extent(), Extent(quick=True)):
        parser.error("--rows, --trials and --repeats are of `cost` alone")
    if os.geteuid() != 0:
        print("loading BPF programs takes root", file=sys.stderr)
        return 2
    notes = Console(stderr=True)
    begin = time.monotonic()
    for name in options.benchmarks or BENCHMARKS:
        try:
            with core.urgent():
                result = _measure(name, extent, notes)
        except (LabError, RuntimeError, ValueError) as error:
            notes.print(str(error), style="red", markup=False, highlight=False)
            return 1
        _show(result)
        if extent.is_whole:
            report.write(result, f"python -m e2e.bench {name}")
    notes.print(f"{time.monotonic() - begin:.0f} s")
    return 0


def _measure(name: str, extent: Extent, notes: Console) -> Result:
    _, run = BENCHMARKS[name]
    if not notes.is_terminal:
        return run(extent, partial(notes.print, style="dim", highlight=False, markup=False))
    with notes.status(name) as status:
        return run(extent, lambda text: status.update(f"{name}: {text}"))


def _show(result: Result) -> None:
    table = Table(title=result.title, title_justify="left", box=None, pad_edge=False)
    head, *rows = report.rows(result)
    for column in head:
        table.add_column(column)
    for row in rows:
        table.add_row(*row)
    Console(width=None if sys.stdout.isatty() else 160).print(table, result.remark, highlight=False)


def _options() -> argparse.ArgumentParser:
    listed = "\n".join(f"  {name:11} {what}" for name, (what, _) in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m e2e.bench",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Measure the programs against their peers on this machine, as root, and write\n"
        "the tables and plots of docs/benchmarks.md. Without a name, all of them:\n\n" + listed,
        epilog="Everything happens in network namespaces of its own, which are removed at the end.",
    )
    parser.add_argument("benchmarks", nargs="*", metavar="BENCHMARK", help=", ".join(BENCHMARKS))
    parser.add_argument(
        "--quick", action="store_true", help="few and short trials; nothing is written"
    )
    few = parser.add_argument_group("a part of `cost`, of which nothing is written either")
    few.add_argument(
        "--rows",
        action="append",
        default=[],
        metavar="TEXT",
        help="only rows with this in their names, and what they are judged by; may be repeated",
    )
    few.add_argument("--trials", type=int, metavar="N")
    few.add_argument("--repeats", type=int, metavar="N", help="packets in a trial")
    return parser


if __name__ == "__main__":
    sys.exit(main())
