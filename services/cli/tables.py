"""How answers look on a terminal: tables, and numbers as people say them.

On a terminal a table is as wide as that; into a pipe it is as wide as it needs to be, so that
`gale nodes | grep` finds every word whole. Nothing is cut off: where a table has no room, some of
its columns stand below each other, and what is long goes on in the next line of its column.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

PIPE_WIDTH = 1_000
LEAST_WORDS = 16
"""Room for a column of words, if the terminal has it."""

STATE_STYLES = {
    "up": "green",
    "suspect": "bold yellow",
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


Cell = str | Text


@dataclass(frozen=True, slots=True)
class _Layout:
    """One way to show a table: its columns, a name that ends in `#` being one of numbers."""

    columns: tuple[str, ...]
    rows: tuple[tuple[Text, ...], ...]

    def drawn(self, title: str, *, whole: bool) -> Table:
        """`whole`: all but the last column have room; else each takes its part, and goes on below.

        A narrow table saves on what stands between its columns too.
        """
        made = Table(
            title=title or None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            pad_edge=False,
            show_edge=False,
            collapse_padding=any("\n" in column for column in self.columns),
        )
        for index, column in enumerate(self.columns):
            made.add_column(
                column.removesuffix("#"),
                justify="right" if column.endswith("#") else "left",
                no_wrap=whole and index < len(self.columns) - 1,
                overflow="fold",
            )
        for row in self.rows:
            made.add_row(*row)
        return made

    def needs(self, console: Console) -> int:
        """How wide it must be: as wide as it is, but for a last column of words."""
        unbounded = console.options.update(width=PIPE_WIDTH)
        width = Measurement.get(console, unbounded, self.drawn("", whole=True)).maximum
        if self.columns[-1].endswith("#"):
            return width
        lines = [line for row in self.rows for line in row[-1].plain.split("\n")]
        last = max(map(cell_len, [*lines, *self.columns[-1].split("\n")]))
        return width - last + min(last, LEAST_WORDS)


class _Fitting:
    """Of several layouts, the first one that has room; the last one if none has."""

    def __init__(self, title: str, *layouts: _Layout) -> None:
        self._title = title
        self._layouts = layouts

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for layout in self._layouts:
            if layout.needs(console) <= options.max_width:
                yield layout.drawn(self._title, whole=True)
                return
        yield self._layouts[-1].drawn(self._title, whole=False)


def table(
    title: str,
    columns: Sequence[str],
    rows: Iterable[Sequence[Cell]],
    stacked: Sequence[tuple[str, ...]] = (),
) -> RenderableType:
    """A plain table; a column whose name ends in `#` is of numbers, to the right.

    `stacked`: how the columns stand below each other where there is no room for all of them side by
    side, each group by its names without the `#`. The last column, if it is of words, goes on in
    the next line before anything else does.
    """
    texts = [[cell if isinstance(cell, Text) else Text(cell) for cell in row] for row in rows]
    layouts = [_Layout(tuple(columns), tuple(map(tuple, texts)))]
    if stacked:
        names = [column.removesuffix("#") for column in columns]
        numbers = {column.removesuffix("#") for column in columns if column.endswith("#")}
        heads = ("\n".join(group) + ("#" if group[-1] in numbers else "") for group in stacked)
        narrow = (
            tuple(Text("\n").join(row[names.index(name)] for name in group) for group in stacked)
            for row in texts
        )
        layouts.append(_Layout(tuple(heads), tuple(narrow)))
    return _Fitting(title, *layouts)


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
