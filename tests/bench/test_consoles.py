"""What the benchmark of consoles says of percentages that were made up."""

from __future__ import annotations

from bus import topics
from e2e.bench import report
from e2e.bench.consoles import NONE, result


def test_the_api_is_judged_by_what_all_consoles_cost_it() -> None:
    idle = dict.fromkeys(topics.SERVICES, 1.0)
    made = result({NONE: idle, "50 consoles": {**idle, topics.API: 31.0}}, 60, 1.24)
    without, looked_at = report.rows(made)[1:]
    place = 1 + topics.SERVICES.index(topics.API)
    assert (without[place], without[-2]) == ("1.0", "")
    assert (looked_at[place], looked_at[-2]) == ("31.0", "not reached")
    assert "each console got 1.2 kB/s" in made.remark
