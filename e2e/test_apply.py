"""`gale apply` on three LBs: staged on one after the other, in force on the last, or by a majority.

The tests build upon each other: a service gets another port, and one more by two of three, and
files that are refused change nothing.
"""

from __future__ import annotations

import subprocess
import tomllib
from collections.abc import Iterator

import pytest

from e2e.conftest import MachinesOf
from e2e.held import hold
from e2e.hosts import Hosts, events, newest_event, read_config, wait_for
from e2e.lab import Plan
from e2e.lab.files import toml_text

NODES_PORT = 9000
FIRST, SECOND, THIRD = 9100, 9200, 9300
"""The ports that clients of `echo` are to use, one after the other; the nodes' stays."""
FLOWS = 6
PROCESSES = 4
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts(machines_of: MachinesOf) -> Iterator[Hosts]:
    with machines_of(Plan(lbs=3, nodes=2)) as machines:
        yield machines


def at_port(hosts: Hosts, lb: str, port: int) -> str:
    """The LB's own file, with the service `echo` at this port."""
    config = tomllib.loads(read_config(hosts, lb))
    wanted = {"port": port, "node_port": NODES_PORT}
    services = [each | wanted if each["name"] == "echo" else each for each in config["services"]]
    return toml_text(config | {"services": services})


def apply(hosts: Hosts, lb: str, text: str, *options: str) -> subprocess.CompletedProcess[str]:
    place = f"{hosts.environment(lb)['GALE_CONFIG']}.wanted"
    assert hosts.run(lb, "tee", place, stdin=text).returncode == 0
    return hosts.run(lb, "gale", "apply", place, "--yes", *options)


def said(done: subprocess.CompletedProcess[str]) -> str:
    return " ".join(done.stdout.split())


def status(hosts: Hosts, lb: str) -> str:
    return hosts.run(lb, "gale", "status").stdout


def serves(hosts: Hosts, lb: str, port: int) -> bool:
    """Whether that port is agreed on, and the kernel has a ring for it."""
    there = hosts.api(lb, "/v1/services")["services"]
    found = [each["nodes"] for each in there if each["port"] == port]
    return any(seat["slots"] for seats in found for seat in seats)


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
        done = apply(hosts, lb, at_port(hosts, lb, FIRST))
        assert done.returncode == 1, done.stderr
        so_far = f"staged on {len(staged)} of 3:"
        assert f" is {so_far}" in said(done), said(done)
        assert "it holds once every LB that lives has staged the same" in said(done)
        assert f"on the one that leads ({leader(hosts)})" in said(done)
        assert done.stdout.count("runs it") == PROCESSES
        for each in hosts.lbs:
            wait_for(lambda: so_far in status(hosts, each), f"{each} to show it")  # noqa: B023
            assert not serves(hosts, each, FIRST)
    done = apply(hosts, last, at_port(hosts, last, FIRST))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "is applied, and the kernel routes by it" in said(done)
    for lb in hosts.lbs:
        wait_for(lambda: serves(hosts, lb, FIRST), f"{lb} to serve it")  # noqa: B023
        wait_for(lambda: "staged on" not in status(hosts, lb), "nothing to wait")  # noqa: B023
        assert len(events(hosts, lb, "config.committed.", since[lb])) == 1
        path = f"{hosts.environment(lb)['GALE_CONFIG']}.before"
        assert hosts.run(lb, "cat", path).stdout == before[lb]
    with hold(hosts, count=FLOWS, port=FIRST) as held:
        assert held.ask() == FLOWS


def test_a_majority_is_enough_where_the_leader_is_asked(hosts: Hosts) -> None:
    leads = leader(hosts)
    follower, late = (lb for lb in hosts.lbs if lb != leads)
    alone = apply(hosts, leads, at_port(hosts, leads, SECOND), "--majority")
    assert alone.returncode == 1
    assert "staged on 1 of 3: that is no majority" in said(alone)
    elsewhere = apply(hosts, follower, at_port(hosts, follower, SECOND), "--majority")
    assert elsewhere.returncode == 1
    assert f"{leads} leads: ask there" in said(elsewhere)
    assert not any(serves(hosts, lb, SECOND) for lb in hosts.lbs)
    done = apply(hosts, leads, read_config(hosts, leads), "--majority")
    assert done.returncode == 0, done.stdout + done.stderr
    for lb in hosts.lbs:
        wait_for(lambda: serves(hosts, lb, SECOND), f"{lb} to serve it")  # noqa: B023
    wait_for(lambda: f"staged on 1 of 3: {late}" in status(hosts, leads), "who lacks it is named")
    done = apply(hosts, late, at_port(hosts, late, SECOND))
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
    wanted = at_port(hosts, lb, THIRD)
    done = apply(hosts, lb, wanted)
    hosts.run(lb, "chmod", "640", place)
    assert done.returncode == 1
    assert done.stdout.count("KEEPS THE OLD ONE") == PROCESSES
    assert f"it is refused, and not in force; {place} is as it was" in said(done)
    assert read_config(hosts, lb) == before
    assert hosts.run(lb, "gale", "reload").returncode == 0
    assert not any("staged on" in status(hosts, each) for each in (lb, *others))
