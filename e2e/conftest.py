"""One set of machines per module of tests; a failing test shows what their logs say."""

from __future__ import annotations

import sys
from collections.abc import Generator, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import pytest

from e2e.hosts import Hosts, LabHosts, lab_hosts
from e2e.inventory import inventory_hosts
from e2e.lab import Plan


class MachinesOf(Protocol):
    """Machines for as long as a block lasts: a lab by this plan, or those of the inventory."""

    def __call__(self, plan: Plan) -> AbstractContextManager[Hosts]: ...


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--inventory",
        type=Path,
        help="run the tests marked `anywhere` against the machines of this Ansible inventory",
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers", "anywhere: asks for nothing that only a lab can do, so it runs on any machines"
    )
    config.addinivalue_line(
        "markers",
        "lasting: shows over minutes what others show in seconds: `make e2e` runs it, and not"
        " `make test`, which has to stay short",
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Of machines that are not of a lab, only what they can be asked."""
    if config.getoption("--inventory") is not None:
        others = [item for item in items if item.get_closest_marker("anywhere") is None]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in others]


def say(text: str) -> None:
    print(text, file=sys.stderr)


@pytest.fixture(scope="session")
def machines_of(request: pytest.FixtureRequest) -> MachinesOf:
    inventory: Path | None = request.config.getoption("--inventory")
    if inventory is not None:
        return lambda plan: inventory_hosts(inventory)
    return lambda plan: lab_hosts(plan, say)


@pytest.fixture(scope="module")
def hosts(machines_of: MachinesOf) -> Iterator[Hosts]:
    with machines_of(Plan()) as machines:
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
