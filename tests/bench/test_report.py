"""The page: what a run may replace and what it may not, and what stands in a table."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from e2e.bench.__main__ import BENCHMARKS
from e2e.bench.report import PAGE, Line, Result, block, machine, plot, table, with_block
from e2e.bench.samples import Sample, at_least

RESULT = Result(
    key="cost",
    title="Cost",
    columns=("T/F",),
    lines=(
        Line("L2", ("2.0 (1.9–2.1)",), Sample((1.9, 2.1)), 2.0, at_least(3), "xvs 12.5"),
        Line("L3", ("4.0 (4.0–4.0)",), Sample((4.0,)), 4.0, at_least(3), against="nothing"),
        Line("L4", ("1.0 (1.0–1.0)",), Sample((1.0,)), 1.0),
    ),
    bar_label="times",
    remark="As seen.",
)


def test_a_table_says_which_goals_are_reached() -> None:
    assert table(RESULT).splitlines() == [
        "|  | T/F | goal |  | others |",
        "| --- | --- | --- | --- | --- |",
        "| L2 | 2.0 (1.9–2.1) | ≥ 3.0 | not reached | xvs 12.5 |",
        "| L3 | 4.0 (4.0–4.0) | ≥ 3.0 | reached |  |",
        "| L4 | 1.0 (1.0–1.0) |  |  |  |",
    ]


def test_only_what_stands_between_the_marks_is_replaced() -> None:
    page = "a\n<!-- cost -->\nold\n<!-- /cost -->\nb\n<!-- tcp -->\nkept\n<!-- /tcp -->\n"
    replaced = with_block(page, "cost", r"new \1")
    assert replaced == page.replace("\nold\n", "\n\nnew \\1\n\n")
    assert with_block(replaced, "cost", r"new \1") == replaced


@pytest.mark.parametrize("page", ["", "<!-- cost -->", "<!-- cost --><!-- /cost -->" * 2])
def test_a_page_without_one_pair_of_marks_is_left_alone(page: str) -> None:
    with pytest.raises(ValueError, match="marks"):
        with_block(page, "cost", "new")


def test_the_shipped_page_has_all_marks() -> None:
    for key in BENCHMARKS:
        assert with_block(PAGE.read_text(), key, "new")


def test_a_block_has_its_command_and_the_machine_but_not_its_name() -> None:
    text = block(RESULT, "python -m e2e.bench cost", machine())
    assert "Made by `python -m e2e.bench cost` on " in text
    assert " cores of " in text
    assert "](benchmarks-cost.svg)" in text
    assert socket.gethostname() not in machine().split()


def test_the_same_result_makes_the_same_plot(tmp_path: Path) -> None:
    first, second = tmp_path / "first.svg", tmp_path / "second.svg"
    plot(RESULT, first)
    plot(RESULT, second)
    assert first.read_bytes() == second.read_bytes()
    assert "<svg" in first.read_text()
