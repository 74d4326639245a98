"""Alert rules, each with its trouble made in the lab: it fires, and no other one.

tests/api/test_prometheus.py has all of them, by invented samples. Made here are what an LB, a node
or a flood can do in seconds. The rest take minutes, other versions, a full table or a starved
machine.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator

import pytest

from e2e.alerts import Scraped, check, scrape
from e2e.failover import the_holder
from e2e.hosts import LabHosts, lab_hosts, node_states, wait_for
from e2e.lab import Plan

DATAGRAMS = 5_000
pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    with lab_hosts(Plan(lbs=3), say) as machines:
        yield machines


@pytest.fixture(autouse=True)
def well(hosts: LabHosts) -> None:
    """Whatever the test before has done is mended."""
    the_holder(hosts)
    up = dict.fromkeys(hosts.nodes, "up")
    wait_for(lambda: all(node_states(hosts, lb) == up for lb in hosts.lbs), "all to be up", 60)


def until(hosts: LabHosts, is_so: Callable[[Scraped], bool], what: str) -> Scraped:
    """The first scrape of which this is so."""

    def look() -> Scraped | None:
        scraped = scrape(hosts)
        return scraped if is_so(scraped) else None

    return wait_for(look, what, timeout_s=60, every_s=0.2)


def in_state(seen: Scraped, state: str) -> float:
    """How many nodes are, of all LBs together."""
    return sum(value for name, value in seen.values.items() if f'state="{state}"' in name)


def test_a_node_is_down_then_all_are(hosts: LabHosts) -> None:
    first, *others = hosts.nodes
    try:
        hosts.lab.set_server(first, running=False)
        down = until(hosts, lambda seen: in_state(seen, "down") == 3, "one to be down")
        check(down, ["GaleNodeDown"])
        for node in others:
            hosts.lab.set_server(node, running=False)
        empty = until(hosts, lambda seen: seen.sum("gale_ring_slots{") == 0, "none to be left")
        check(empty, ["GaleServiceEmpty", "GaleNodeDown"], maybe=["GaleNotReady"])
    finally:
        for node in hosts.nodes:
            hosts.lab.set_server(node, running=True)


def test_an_lb_is_gone_then_the_majority(hosts: LabHosts) -> None:
    holder = the_holder(hosts)
    follower, other = (lb for lb in hosts.lbs if lb != holder)
    majority, alive = "gale_quorum_has_majority{", "gale_quorum_members_alive{"
    # Whoever is cut off misses the nodes, too.
    maybe = ["GaleNodeDown", "GaleNodeSuspect", "GaleNotReady", "GaleServiceEmpty"]
    maybe += ["GaleTableBehind"]
    try:
        hosts.set_cut(follower, cut=True)
        lost = until(
            hosts, lambda seen: seen.sum(majority) == 2 and seen.sum(alive) <= 5, "one to be missed"
        )
        check(lost, ["GaleLbGone", "GaleQuorumLost"], maybe=maybe)
        hosts.set_cut(other, cut=True)
        lost = until(
            hosts,
            lambda seen: seen.sum(majority) == 0 and seen.sum("gale_quorum_is_leader{") == 0,
            "nobody to lead",
        )
        check(lost, ["GaleLbGone", "GaleQuorumLost", "GaleNoLeader"], maybe=maybe)
    finally:
        for lb in (follower, other):
            hosts.set_cut(lb, cut=False)


def test_many_packets_are_dropped(hosts: LabHosts) -> None:
    first = scrape(hosts)
    script = (
        "import socket; s = socket.socket(type=socket.SOCK_DGRAM)\n"
        f"for _ in range({DATAGRAMS}): s.sendto(b'x', ('{hosts.vip()}', 9))"
    )
    hosts.run(hosts.client, "python3", "-c", script)

    def dropped(seen: Scraped) -> float:
        return sum(v for n, v in seen.values.items() if 'reason="drop_no_service"' in n)

    # All are counted, in a metric that is a second old at most.
    enough = dropped(first) + DATAGRAMS * 0.9
    last = until(hosts, lambda seen: dropped(seen) >= enough, "all to be counted")
    check(last, ["GaleDrops"], first=first)
