"""What the benchmark of healing says of times that were made up."""

from __future__ import annotations

from e2e.bench import report
from e2e.bench.healing import GOAL_MS, result


def test_each_time_counts_and_not_the_median() -> None:
    made = result({"LBs": (10.0, 20.0, 30.0), "agent": (10.0, 20.0, GOAL_MS + 1.0)})
    rows = report.rows(made)[1:]
    assert [row[0] for row in rows] == ["LBs hear it again", "the agent is admitted again"]
    assert [row[1:3] for row in rows] == [("20 (15–25)", "30"), ("20 (15–260)", "501")]
    assert [row[4] for row in rows] == ["reached", "not reached"]
    assert made.remark.startswith("3 silent cuts of 8 s")
