"""One set of machines per module of tests; a failing test shows what their logs say."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from typing import Any

import pytest

from e2e.hosts import Hosts, LabHosts, lab_hosts
from e2e.lab import Plan


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with lab_hosts(Plan(), say) as machines:
        yield machines


@pytest.fixture
def lb(hosts: Hosts) -> str:
    """The LB under test."""
    return hosts.lbs[0]


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, Any, None]:
    outcome = yield
    report: pytest.TestReport = outcome.get_result()
    machines = getattr(item, "funcargs", {}).get("hosts")
    if report.failed and isinstance(machines, LabHosts):
        report.sections.append(("logs of the lab", machines.lab.log_tails()))
