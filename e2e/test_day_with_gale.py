"""docs/day-with-gale.md does what it says: its commands are run, their outputs compared."""

from __future__ import annotations

import sys

import pytest

from e2e.day import PAGE, PLAN, Day, steps
from e2e.hosts import lab_hosts

pytestmark = pytest.mark.timeout(600)


def test_the_page_is_what_happens() -> None:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    done = 0
    with lab_hosts(PLAN, say) as hosts:
        day = Day(hosts)
        for step in steps(PAGE.read_text()):
            expected = step.masked(step.output)
            output = day.do(step, expected)
            say(f"{step.who[0]}: {step.words}\n{output}")
            where = f"docs/day-with-gale.md:{step.line}: {step.words}\n{output}"
            assert step.masked(output) == expected, f"{where}\n{hosts.lab.log_tails()}"
            done += 1
    assert done > 20
