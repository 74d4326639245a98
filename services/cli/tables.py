"""How answers look on a terminal: tables, and numbers as people say them.

On a terminal a table is as wide as that; into a pipe it is as wide as it needs to be, so that
`gale nodes | grep` finds every word whole.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable

from rich import box
from rich.console import Console, RenderableType
from rich.table import Table

PIPE_WIDTH = 1_000

STATE_STYLES = {
    "up": "green",
    "draining": "cyan",
    "probation": "yellow",
    "down": "red",
    "banned": "bold red",
}


def console() -> Console:
    """Where tables go: stdout as it is now."""
    width = None if sys.stdout.isatty() else PIPE_WIDTH
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, soft_wrap=False)


def show(*parts: RenderableType) -> None:
    """Print tables and lines, one below the other."""
    out = console()
    for part in parts:
        out.print(part)


def table(title: str, columns: Iterable[str], rows: Iterable[Iterable[RenderableType]]) -> Table:
    """A plain table; a column whose name ends in `#` is of numbers, to the right."""
    made = Table(
        title=title or None,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        show_edge=False,
    )
    for column in columns:
        made.add_column(
            column.removesuffix("#"), justify="right" if column.endswith("#") else "left"
        )
    for row in rows:
        made.add_row(*row)
    return made


def span(duration_ms: float | None) -> str:
    """`340 ms`, `2.5 s`, `4 m 10 s`, `3 h 5 m`, `2 d 4 h`."""
    if duration_ms is None:
        return "never"
    if duration_ms < 1_000:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1_000:.1f} s"
    seconds = int(duration_ms // 1_000)
    for unit, name, below, below_name in (
        (86_400, "d", 3_600, "h"),
        (3_600, "h", 60, "m"),
        (60, "m", 1, "s"),
    ):
        if seconds >= unit:
            return f"{seconds // unit} {name} {seconds % unit // below} {below_name}"
    raise AssertionError(f"{duration_ms} ms is below a minute")


def count(number: int) -> str:
    """`1 234 567`: digits in threes."""
    return f"{number:,}".replace(",", " ")


def size(number: int) -> str:
    """`999 B`, `1.5 kB`, `12 MB`: bytes, in steps of a thousand."""
    amount = float(number)
    for unit in ("B", "kB", "MB", "GB", "TB"):
        if amount < 1_000 or unit == "TB":
            return f"{amount:.0f} {unit}" if amount >= 10 or unit == "B" else f"{amount:.1f} {unit}"
        amount /= 1_000
    raise AssertionError("the last unit takes all")


def percent(share: float) -> str:
    return f"{100 * share:.1f} %"
