"""What the benchmark of connections says of outcomes that were made up."""

from __future__ import annotations

from dataclasses import replace

import pytest

from e2e.bench.connections import CAST, result
from e2e.bench.report import Line, table
from e2e.bench.tcp_network import GALE, NFTABLES
from e2e.connections import Outcome, Spread, Unhappy

QUICK = Spread(0.3, 0.9, 4.0)
WELL = Outcome(1000, 1.0, {}, 0, QUICK, QUICK, QUICK, ())
LATE = replace(WELL, slow=2, worst=(Unhappy(1.0, 1001.0, 1002.5, ""),))
BROKEN = replace(WELL, errors={"timeout": 3}, worst=(Unhappy(1.0, 0.0, 10_000.0, "timeout"),))


def gale(outcome: Outcome) -> Line:
    seen = dict.fromkeys(CAST, WELL) | {GALE: outcome}
    return next(line for line in result(seen, 1).lines if line.name == "Gale")


@pytest.mark.parametrize(("outcome", "missed"), [(WELL, 0), (LATE, 2), (BROKEN, 3)])
def test_what_failed_and_what_was_slow_miss_the_goal(outcome: Outcome, missed: int) -> None:
    line = gale(outcome)
    assert line.judged == missed
    assert line.goal is not None
    assert line.goal.is_met(line.judged) is (missed == 0)


def test_only_gale_has_a_goal() -> None:
    seen = dict.fromkeys(CAST, WELL) | {NFTABLES: BROKEN}
    judged = [line.name for line in result(seen, 1).lines if line.goal is not None]
    assert judged == ["Gale"]


def test_a_failed_connection_counts_among_the_slowest() -> None:
    assert BROKEN.slowest_ms == 10_000
    said = table(result(dict.fromkeys(CAST, WELL) | {GALE: BROKEN}, 1))
    assert "| Gale | 1,000 | 3 timeout | 0 | 0.3 | 0.9 | 10000 | 4 |" in said


def test_an_outcome_in_words() -> None:
    assert LATE.text == (
        "1000 connections in 1.0 s: 0 failed, 2 slow, slowest 1002.5 ms, own lag 4.0 ms"
    )
    assert "3 failed (3 timeout)" in BROKEN.text
