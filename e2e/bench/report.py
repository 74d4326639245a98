"""From results to a page: a Markdown table and a plot for each benchmark. Pure but for the writing.

docs/benchmarks.md is written by hand except between the marks `<!-- cost -->` and `<!-- /cost -->`
(and likewise for the others), which a run replaces with what it saw, the command that made it and
the machine it was made on.
"""

from __future__ import annotations

import platform
import re
from dataclasses import dataclass
from pathlib import Path

from e2e.bench.samples import Goal, Sample

PAGE = Path(__file__).resolve().parents[2] / "docs" / "benchmarks.md"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of a table."""

    name: str
    cells: tuple[str, ...]
    bar: Sample
    judged: float
    """What is compared with the goal."""
    goal: Goal | None = None
    peers: str = ""
    against: str = ""
    """What it is compared with, where that differs from line to line."""

    @property
    def bar_name(self) -> str:
        return f"{self.name} / {self.against}" if self.against else self.name


@dataclass(frozen=True, slots=True)
class Result:
    """What a benchmark has to say."""

    key: str
    title: str
    columns: tuple[str, ...]
    lines: tuple[Line, ...]
    bar_label: str
    remark: str
    dots: bool = False
    """Whether the plot shows every trial."""


def rows(result: Result) -> list[tuple[str, ...]]:
    """The table's cells, its head first."""
    head = ("", *result.columns, "goal", "", "others")
    return [
        head,
        *((line.name, *line.cells, *_goal_cells(line), line.peers) for line in result.lines),
    ]


def table(result: Result) -> str:
    """The table in Markdown."""
    head, *rest = rows(result)
    return "\n".join(_row(cells) for cells in (head, ("---",) * len(head), *rest))


def _goal_cells(line: Line) -> tuple[str, str]:
    if line.goal is None:
        return "", ""
    return line.goal.text, "reached" if line.goal.is_met(line.judged) else "not reached"


def _row(cells: tuple[str, ...]) -> str:
    return f"| {' | '.join(cells)} |"


def block(result: Result, command: str, machine: str) -> str:
    """What stands between the marks."""
    return "\n\n".join(
        (
            table(result),
            result.remark,
            f"Made by `{command}` on {machine}.",
            f"![{result.title}](benchmarks-{result.key}.svg)",
        )
    )


def with_block(page: str, key: str, text: str) -> str:
    """The page with what is between the marks of `key` replaced."""
    begin, end = f"<!-- {key} -->", f"<!-- /{key} -->"
    pattern = re.compile(re.escape(begin) + ".*?" + re.escape(end), re.DOTALL)
    if len(pattern.findall(page)) != 1:
        raise ValueError(f"the page has no single pair of marks {begin} and {end}")
    return pattern.sub(lambda _: f"{begin}\n\n{text}\n\n{end}", page)


def write(result: Result, command: str) -> None:
    """Put a result into the page, and its plot beside it."""
    text = block(result, command, machine())
    PAGE.write_text(with_block(PAGE.read_text(), result.key, text))
    plot(result, PAGE.with_name(f"benchmarks-{result.key}.svg"))


def machine() -> str:
    """The machine, without its name: kernel, processor, cores."""
    cpu_info = Path("/proc/cpuinfo").read_text()
    models = re.findall(r"^model name\s*: (.*)$", cpu_info, re.MULTILINE)
    cores = len(re.findall(r"^processor\s*:", cpu_info, re.MULTILINE))
    model = models[0].strip() if models else platform.machine()
    kernel = ".".join(re.findall(r"\d+", platform.release())[:2])
    return f"{cores} cores of {model}, Linux {kernel}"


def plot(result: Result, path: Path) -> None:
    """A horizontal bar for each line: median, middle half, goal."""
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "gale"
    from matplotlib import pyplot

    lines = result.lines[::-1]
    figure, axes = pyplot.subplots(figsize=(9, 0.8 + 0.36 * len(lines)))
    for place, line in enumerate(lines):
        lower, upper = line.bar.quartiles
        middle = line.bar.median
        axes.barh(place, middle, color="#4c8bb5", height=0.6)
        axes.errorbar(middle, place, xerr=[[middle - lower], [upper - middle]], color="#222222")
        if result.dots:
            axes.plot(line.bar.trials, [place] * len(line.bar.trials), ".", color="#222222", ms=4)
        if line.goal is not None and line.judged == middle:
            axes.plot([line.goal.limit] * 2, [place - 0.4, place + 0.4], color="#c0392b", lw=2)
    axes.set_yticks(range(len(lines)), [line.bar_name for line in lines])
    figure.supxlabel(f"{result.bar_label} (red: the goal)", fontsize="medium")
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None, "Creator": None})
    pyplot.close(figure)
