"""What is said about a number of requests, against cases worked out by hand."""

from __future__ import annotations

from e2e.traffic import Result, Summary, read_results


def result(
    sent_ms: float, took_ms: float = 1.0, answer: str = "node-0", error: str = "", lag_ms: float = 0
) -> Result:
    return Result(sent_ms, took_ms, lag_ms, "" if error else answer, error)


def test_lines_are_read_as_results() -> None:
    line = '{"sent_ms": 1, "took_ms": 2, "lag_ms": 0, "answer": "", "error": "reset"}'
    assert list(read_results([line])) == [Result(1, 2, 0, "", "reset")]


def test_the_longest_gap_is_between_good_answers_only() -> None:
    seen = Summary([result(0), result(100, error="refused"), result(50, took_ms=200), result(10)])
    assert seen.longest_gap_ms == 250 - 11


def test_the_time_of_failing_is_from_the_first_failed_request_to_the_last() -> None:
    seen = Summary([result(0), result(100, error="reset"), result(390, error="x"), result(500)])
    assert seen.failing_ms == 290
    assert seen.errors == {"reset": 1, "x": 1}


def test_shares_count_answers_not_failures() -> None:
    seen = Summary([result(0), result(1, answer="node-1"), result(2), result(3, error="reset")])
    assert seen.shares(["node-0", "node-1", "node-2"]) == {
        "node-0": 2 / 3,
        "node-1": 1 / 3,
        "node-2": 0,
    }


def test_nothing_sent_is_no_error() -> None:
    seen = Summary([])
    assert (seen.longest_gap_ms, seen.failing_ms, seen.slowest_ms) == (0, 0, 0)
    assert seen.shares(["node-0"]) == {"node-0": 0}


def test_the_slowest_answer_and_the_worst_lag() -> None:
    seen = Summary([result(0, took_ms=7), result(1, lag_ms=3)])
    assert (seen.slowest_ms, seen.largest_lag_ms) == (7, 3)
