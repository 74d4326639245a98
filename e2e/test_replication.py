"""Open connections outlive the load balancer that they came through.

Three load balancers, one VIP. Whoever holds it is cut off from everything, silently, which is what
its death looks like from outside; another one takes the VIP, and has all flows.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import pytest

from e2e.held import Held, hold
from e2e.hosts import Hosts, LabHosts, lab_hosts, wait_for
from e2e.lab import Plan
from e2e.replicas import flows_of, is_level

IDLE, MOVING = 200, 20
PATIENCE_S = 60.0
DOWNLOAD = "200m.bin"


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    with lab_hosts(Plan(lbs=3), lambda text: print(text, file=sys.stderr)) as machines:
        yield machines


def holder_of(hosts: Hosts, asked: str) -> str | None:
    """Who holds the VIP, as that LB has it; None: nobody, or it says nothing."""
    try:
        (vip,) = hosts.api(asked, "/v1/quorum")["vips"]
    except OSError:
        return None
    holder: str | None = vip["holder"]
    return holder


def all_level(hosts: Hosts) -> bool:
    return all(is_level(hosts, lb) for lb in hosts.lbs)


def alive(held: Held, count: int) -> None:
    assert held.ended == {}
    assert held.ask() == count


def death_of_holder(hosts: LabHosts, flows: int) -> str:
    """Cut it off once the others have the flows; its name, when another one holds the VIP."""
    lbs = set(hosts.lbs)
    wait_for(lambda: all_level(hosts), "all to be level", PATIENCE_S)
    dead = wait_for(lambda: holder_of(hosts, hosts.lbs[0]), "somebody to hold the VIP", PATIENCE_S)
    others = sorted(lbs - {dead})
    wait_for(
        lambda: all(flows_of(hosts, lb) >= flows for lb in others),
        "the flows at the others",
        PATIENCE_S,
    )
    hosts.set_cut(dead, cut=True)
    wait_for(
        lambda: holder_of(hosts, others[0]) in others, "another one to hold the VIP", PATIENCE_S
    )
    return str(dead)


def test_connections_outlive_their_load_balancers(hosts: LabHosts) -> None:
    """Idle ones, ones that move data, and a download with its hash; twice in a row."""
    with ExitStack() as opened:
        idle = opened.enter_context(hold(hosts, count=IDLE))
        moving = opened.enter_context(hold(hosts, count=MOVING, every_ms=50))
        url = f"http://{hosts.vip()}:8080/{DOWNLOAD}"
        fetch = f"curl --silent --noproxy '*' --limit-rate 2M {url} | sha256sum"
        download = hosts.start(hosts.client, "bash", "-c", fetch)
        opened.callback(download.kill)
        for _ in range(2):
            dead = death_of_holder(hosts, IDLE + MOVING)
            alive(idle, IDLE)
            alive(moving, MOVING)
            assert download.poll() is None, "the download was to be under way"
            hosts.set_cut(dead, cut=False)
        fetched = download.communicate(timeout=300)[0].split()[0]
        wanted = hosts.run(
            hosts.client, "curl", "--silent", "--noproxy", "*", f"{url}.sha256"
        ).stdout.split()[0]
        assert fetched == wanted
        alive(idle, IDLE)
        alive(moving, MOVING)


def test_a_dataplane_process_that_dies_on_a_standby_loses_nothing(hosts: LabHosts) -> None:
    with hold(hosts, count=IDLE) as held:
        wait_for(lambda: all_level(hosts), "all to be level", PATIENCE_S)
        for lb in hosts.lbs:
            hosts.supervisorctl(lb, "signal", "KILL", "gale:dataplane")
        death_of_holder(hosts, IDLE)
        alive(held, IDLE)
        for lb in hosts.lbs:
            hosts.set_cut(lb, cut=False)
