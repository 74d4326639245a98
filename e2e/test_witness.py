"""Two LBs and a witness on a node: either LB may die, and the connections through it live on.

The witness makes a majority with whichever LB is left. It forwards nothing, so it leads nobody and
holds nothing, whoever is dead.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

import pytest

from e2e.cluster import agreed, others, quorum
from e2e.failover import Outage, links_down, outage, the_holder
from e2e.held import hold
from e2e.hosts import (
    LabHosts,
    events,
    lab_hosts,
    newest_event,
    traffic,
    wait_for,
    with_steady_rig,
)
from e2e.lab import Plan
from e2e.lab.plan import WITNESS
from e2e.replicas import all_know

FLOWS = 100
WORST_GAP_MS = 1_000
"""As in test_failover: docs/benchmarks.md has the figures."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    plan = Plan(lbs=2, nodes=2, witness=True)
    with lab_hosts(plan, lambda text: print(text, file=sys.stderr)) as machines:
        yield machines


def dies(hosts: LabHosts) -> Outage:
    """The holder, for some seconds."""

    def attempt() -> Outage:
        all_know(hosts, FLOWS)
        return outage(hosts, links_down)

    return with_steady_rig(attempt, lambda seen: seen.lag_ms)


def test_either_lb_dies_and_the_connections_live_on(hosts: LabHosts) -> None:
    """First the holder; when it is back, the other one, which holds the VIP since then."""
    since = {lb: newest_event(hosts, lb) for lb in hosts.lbs}
    dead: list[str] = []
    with hold(hosts, count=FLOWS, every_ms=200) as held:
        while set(dead) != set(hosts.lbs):
            dead.append(the_holder(hosts))
            seen = dies(hosts)
            print(f"{dead[-1]} dies: {seen}")
            assert 0 < seen.gap_ms <= WORST_GAP_MS
            assert seen.heal_gap_ms <= WORST_GAP_MS
            assert held.ended == {}
            assert held.ask() == FLOWS
            assert len(dead) < 2 * len(hosts.lbs), f"only these were holders: {dead}"
    assert said_of_witness(hosts, since) == []


def said_of_witness(hosts: LabHosts, since: dict[str, str]) -> list[str]:
    """Where it was said to lead or to hold something: by its name, as all are called in events."""
    return [
        f"{topic} at {lb}"
        for lb in hosts.lbs
        for topic in ("quorum.leader.", "vip.acquired.")
        for event in events(hosts, lb, topic, since[lb])
        if WITNESS in event["data"].values()
    ]


def test_the_witness_votes_and_nothing_else(hosts: LabHosts) -> None:
    leader = agreed(hosts)
    for lb in hosts.lbs:
        state = quorum(hosts, lb)
        assert state is not None
        known = {member["name"]: member for member in state["members"]}
        assert known.keys() == {*hosts.lbs, WITNESS}
        assert known[WITNESS]["alive"]
        assert known[WITNESS]["why_not"] == ["it only votes"]
        assert [vip["holder"] for vip in state["vips"]] == [the_holder(hosts)]
    assert leader in hosts.lbs


def test_the_death_of_the_witness_costs_nothing(hosts: LabHosts) -> None:
    leader, has_vip = agreed(hosts), the_holder(hosts)
    node = hosts.nodes[0]
    requests = traffic(hosts, rate=50)
    hosts.supervisorctl(node, "stop", f"gale-{WITNESS}:quorum")
    wait_for(lambda: not is_alive(hosts, leader, WITNESS), "the witness to be missed")
    (other,) = others(hosts, leader)
    assert is_alive(hosts, leader, other)
    hosts.supervisorctl(node, "start", f"gale-{WITNESS}:quorum")
    wait_for(lambda: is_alive(hosts, leader, WITNESS), "the witness to be back")
    assert not requests.stop().failures
    assert (agreed(hosts), the_holder(hosts)) == (leader, has_vip)


def is_alive(hosts: LabHosts, lb: str, name: str) -> bool:
    state = quorum(hosts, lb)
    members = state["members"] if state is not None else []
    return any(member["name"] == name and member["alive"] for member in members)
