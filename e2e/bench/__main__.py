"""The command: `python -m e2e.bench [cost] [veth] [tcp]`, as root. See `--help`."""

from __future__ import annotations

import argparse
import os
import sys
import time

from rich.console import Console
from rich.markdown import Markdown

from e2e.bench import cost, report

BENCHMARKS = ("cost",)
FULL_TRIALS, QUICK_TRIALS = 9, 3
FULL_REPEATS, QUICK_REPEATS = 1_000_000, 200_000


def main() -> int:
    options = _options().parse_args()
    if os.geteuid() != 0:
        print("loading BPF programs takes root", file=sys.stderr)
        return 2
    console = Console(stderr=True)
    begin = time.monotonic()
    trials = QUICK_TRIALS if options.quick else FULL_TRIALS
    repeats = QUICK_REPEATS if options.quick else FULL_REPEATS
    with console.status("") as status:
        result = cost.run(trials, repeats, status.update)
    command = " ".join(["python -m e2e.bench", *options.benchmarks])
    Console().print(Markdown(f"## {result.title}\n\n{report.table(result)}\n\n{result.remark}"))
    if not options.quick:
        report.write(result, command)
    console.print(f"{time.monotonic() - begin:.0f} s")
    return 0


def _options() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m e2e.bench", description=__doc__)
    parser.add_argument("benchmarks", nargs="*", choices=BENCHMARKS)
    parser.add_argument("--quick", action="store_true")
    return parser


if __name__ == "__main__":
    sys.exit(main())
