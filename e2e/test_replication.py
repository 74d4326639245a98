"""Open connections outlive the load balancer that they came through.

Three load balancers, one VIP, and 500 connections: idle ones, ones that move data, and a long
download. Whoever holds the VIP is cut off from everything, silently, which is what its death looks
like from outside; another one takes the VIP, and has all flows. The same connections then live
through a restart of everything, and a change of services, on one load balancer after the other.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from e2e.cluster import agreed, holder, one_table, others, quorum, reconfigure
from e2e.failover import the_holder
from e2e.held import Held, hold
from e2e.hosts import LabHosts, lab_hosts, read_config, traffic, wait_for
from e2e.lab import Plan
from e2e.replicas import PATIENCE_S, all_know

IDLE, MOVING, DOWNLOADS = 400, 99, 1
ALL = IDLE + MOVING + DOWNLOADS
EVERY_MS = 250
DOWNLOAD = "/200m.bin"
FETCHER_PROGRAM = Path(__file__).with_name("fetcher.py").read_text()
SECOND_DEATH_S = 10.0

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    with lab_hosts(Plan(lbs=3), lambda text: print(text, file=sys.stderr)) as machines:
        yield machines


@dataclass(frozen=True, slots=True)
class Kept:
    """Connections that are to outlive whatever happens."""

    idle: Held
    moving: Held
    download: subprocess.Popen[str]

    def live(self) -> None:
        for held, count in ((self.idle, IDLE), (self.moving, MOVING)):
            assert held.ended == {}
            assert held.ask() == count
        assert self.download.poll() is None, "the download is over, and was to be under way"

    def fetched(self) -> dict[str, object]:
        """The rest of the download, and what it was."""
        said, complaint = self.download.communicate(timeout=120)
        assert self.download.returncode == 0, complaint
        fetched: dict[str, object] = json.loads(said)
        return fetched


@pytest.fixture(scope="module")
def kept(hosts: LabHosts) -> Iterator[Kept]:
    """The same ones for all tests that ask for them."""
    with ExitStack() as opened:
        idle = opened.enter_context(hold(hosts, count=IDLE))
        moving = opened.enter_context(hold(hosts, count=MOVING, every_ms=EVERY_MS))
        words = ("python3", "-c", FETCHER_PROGRAM, hosts.vip(), "8080", DOWNLOAD)
        download = hosts.start(hosts.client, *words)
        opened.callback(download.kill)
        yield Kept(idle, moving, download)


def death_of_holder(hosts: LabHosts) -> str:
    """Cut it off; its name, when another one holds the VIP."""
    dead = the_holder(hosts)
    hosts.set_cut(dead, cut=True)
    heirs = others(hosts, dead)
    wait_for(lambda: holder(hosts, heirs[0]) in heirs, "another one to hold the VIP", PATIENCE_S)
    return dead


def test_the_holder_dies_and_the_next_one_within_ten_seconds(hosts: LabHosts, kept: Kept) -> None:
    """The first is back by then, since one of three alone holds nothing."""
    all_know(hosts, ALL)
    began = time.monotonic()
    first = death_of_holder(hosts)
    kept.live()
    hosts.set_cut(first, cut=False)
    second = death_of_holder(hosts)
    took_s = time.monotonic() - began
    print(f"two deaths within {took_s:.1f} s")
    kept.live()
    hosts.set_cut(second, cut=False)
    assert first != second
    assert took_s < SECOND_DEATH_S


def test_a_rolling_restart_of_everything(hosts: LabHosts, kept: Kept) -> None:
    for lb in hosts.lbs:
        all_know(hosts, ALL)
        hosts.supervisorctl(lb, "restart", "gale:*")
        the_holder(hosts)
        kept.live()


def test_a_rolling_change_of_services(hosts: LabHosts, kept: Kept) -> None:
    """Until all have the new ones the old ones run everywhere; no lead and no VIP moves."""
    leader, has_vip = agreed(hosts), the_holder(hosts)
    services = tomllib.loads(read_config(hosts, leader))["services"]
    wanted = [one | {"affinity": "client"} for one in services if one["name"] != "udp"]
    requests = traffic(hosts, rate=50)
    for number, lb in enumerate(hosts.lbs, start=1):
        assert names_of_services(hosts) == {one["name"] for one in services}
        reconfigure(hosts, lb, {"services": wanted})
        if lb != hosts.lbs[-1]:
            staged_on(hosts, leader, number)
        kept.live()
    wait_for(lambda: names_of_services(hosts) == {"default", "echo"}, "the new services")
    one_table(hosts)
    kept.live()
    seen = requests.stop()
    assert seen.results
    assert not seen.failures, seen.errors
    assert (agreed(hosts), the_holder(hosts)) == (leader, has_vip)


def names_of_services(hosts: LabHosts) -> set[str]:
    """What any LB forwards."""
    shown = [hosts.api(lb, "/v1/services")["services"] for lb in hosts.lbs]
    return {service["name"] for services in shown for service in services}


def staged_on(hosts: LabHosts, lb: str, number: int) -> None:
    """Wait until that LB says so."""
    wanted = f"staged on {number} of {len(hosts.lbs)}: "
    wait_for(lambda: (s := quorum(hosts, lb)) and s["staged"].startswith(wanted), wanted)


def test_what_was_downloaded_all_the_while_is_whole(hosts: LabHosts, kept: Kept) -> None:
    url = f"http://{hosts.vip()}:8080{DOWNLOAD}.sha256"
    wanted = hosts.run(hosts.client, "curl", "--silent", "--noproxy", "*", url).stdout.split()[0]
    kept.live()
    assert kept.fetched()["sha256"] == wanted


def test_a_dataplane_process_that_dies_on_a_standby_loses_nothing(hosts: LabHosts) -> None:
    with hold(hosts, count=IDLE) as held:
        all_know(hosts, IDLE)
        for lb in hosts.lbs:
            hosts.supervisorctl(lb, "signal", "KILL", "gale:dataplane")
        all_know(hosts, IDLE)
        dead = death_of_holder(hosts)
        assert held.ended == {}
        assert held.ask() == IDLE
        hosts.set_cut(dead, cut=False)
