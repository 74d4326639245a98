"""`gale apply` on three LBs: staged on one after the other, in force on the last, or by a majority.

The tests build upon each other: a service comes, another one comes by two of three, and files that
are refused change nothing.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest

from e2e.conftest import MachinesOf
from e2e.held import hold
from e2e.hosts import Hosts, events, newest_event, read_config, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text

FIRST = {"name": "first", "port": 9100, "node_port": 9000}
SECOND = {"name": "second", "port": 9200, "node_port": 9000}
FLOWS = 6
PROCESSES = 4
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts(machines_of: MachinesOf) -> Iterator[Hosts]:
    with machines_of(Plan(lbs=3, nodes=2)) as machines:
        yield machines


def with_service(hosts: Hosts, lb: str, service: dict[str, Any]) -> str:
    """The LB's own file, with one service more."""
    config = tomllib.loads(read_config(hosts, lb))
    return toml_text(config | {"services": [*config["services"], service]})


def apply(
    hosts: Hosts, lb: str, text: str, *options: str
) -> subprocess.CompletedProcess[str]:
    place = f"{hosts.environment(lb)['GALE_CONFIG']}.wanted"
    assert hosts.run(lb, "tee", place, stdin=text).returncode == 0
    return hosts.run(lb, "gale", "apply", place, "--yes", *options)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stdout.split())


def status(hosts: Hosts, lb: str) -> str:
    return hosts.run(lb, "gale", "status").stdout


def serves(hosts: Hosts, lb: str, service: dict[str, Any]) -> bool:
    """Whether the service is agreed on, and the kernel has a ring for it."""
    for each in hosts.api(lb, "/v1/services")["services"]:
        if each["name"] == service["name"]:
            return sum(seat["slots"] for seat in each["nodes"]) > 0
    return False


def leader(hosts: Hosts) -> str:
    def found() -> str | None:
        leaders = {hosts.api(lb, "/v1/quorum")["leader"] for lb in hosts.lbs}
        return leaders.pop() if len(leaders) == 1 else None

    return wait_for(found, "one leader", timeout_s=30)


def test_it_is_staged_on_one_after_the_other_and_in_force_on_the_last(hosts: Hosts) -> None:
    since = {lb: newest_event(hosts, lb) for lb in hosts.lbs}
    before = {lb: read_config(hosts, lb) for lb in hosts.lbs}
    *early, last = hosts.lbs
    staged: list[str] = []
    for lb in early:
        staged.append(lb)
        done = apply(hosts, lb, with_service(hosts, lb, FIRST))
        assert done.returncode == 1, done.stderr
        so_far = f"staged on {len(staged)} of 3:"
        assert f" is {so_far}" in said(done), said(done)
        assert "it holds once every LB that lives has staged the same" in said(done)
        assert f"({leader(hosts)} leads)" in said(done)
        assert done.stdout.count("runs it") == PROCESSES
        for each in hosts.lbs:
            wait_for(lambda: so_far in status(hosts, each), f"{each} to show it")  # noqa: B023
            assert not serves(hosts, each, FIRST)
    done = apply(hosts, last, with_service(hosts, last, FIRST))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is applied, and the kernel routes by it" in said(done)
    for lb in hosts.lbs:
        wait_for(lambda: serves(hosts, lb, FIRST), f"{lb} to serve it")  # noqa: B023
        wait_for(lambda: "staged on" not in status(hosts, lb), "nothing to wait")  # noqa: B023
        assert len(events(hosts, lb, "config.committed.", since[lb])) == 1
        path = f"{hosts.environment(lb)['GALE_CONFIG']}.before"
        assert hosts.run(lb, "cat", path).stdout == before[lb]
    with hold(hosts, count=FLOWS, port=FIRST["port"]) as held:
        assert held.ask() == FLOWS


def test_a_majority_is_enough_where_the_leader_is_asked(hosts: Hosts) -> None:
    leads = leader(hosts)
    follower, late = (lb for lb in hosts.lbs if lb != leads)
    alone = apply(hosts, leads, with_service(hosts, leads, SECOND), "--majority")
    assert alone.returncode == 1
    assert "staged on 1 of 3: that is no majority" in said(alone)
    elsewhere = apply(hosts, follower, with_service(hosts, follower, SECOND), "--majority")
    assert elsewhere.returncode == 1
    assert f"{leads} leads: ask there" in said(elsewhere)
    assert not any(serves(hosts, lb, SECOND) for lb in hosts.lbs)
    done = apply(hosts, leads, read_config(hosts, leads), "--majority")
    assert done.returncode == 0, done.stdout + done.stderr
    for lb in hosts.lbs:
        wait_for(lambda: serves(hosts, lb, SECOND), f"{lb} to serve it")  # noqa: B023
    wait_for(lambda: f"staged on 1 of 3: {late}" in status(hosts, leads), "who lacks it is named")
    done = apply(hosts, late, with_service(hosts, late, SECOND))
    assert done.returncode == 0, done.stdout + done.stderr
    wait_for(lambda: "staged on" not in status(hosts, leads), "all to have it")


def test_a_wrong_file_is_refused_before_anything_is_changed(hosts: Hosts) -> None:
    lb = hosts.lbs[0]
    before = read_config(hosts, lb)
    lines = [*before.splitlines(), "[log]", "level = 7"]
    done = apply(hosts, lb, "\n".join(lines))
    assert done.returncode == 2
    assert f".wanted:{len(lines)}: log.level" in done.stderr
    assert read_config(hosts, lb) == before


def test_a_file_that_one_lbs_processes_refuse_is_taken_back(hosts: Hosts) -> None:
    """They may not read it there, since somebody has taken it into his own hands."""
    lb, others = hosts.lbs[0], hosts.lbs[1:]
    place, before = hosts.environment(lb)["GALE_CONFIG"], read_config(hosts, lb)
    hosts.run(lb, "chmod", "600", place)
    wanted = with_service(hosts, lb, {"name": "third", "port": 9300, "node_port": 9000})
    done = apply(hosts, lb, wanted)
    hosts.run(lb, "chmod", "640", place)
    assert done.returncode == 1
    assert done.stdout.count("KEEPS THE OLD ONE") == PROCESSES
    assert f"it is refused, and not in force; {place} is as it was" in said(done)
    assert read_config(hosts, lb) == before
    assert hosts.run(lb, "gale", "reload").returncode == 0
    assert not any("staged on" in status(hosts, each) for each in (lb, *others))
