"""Three LBs that lose one another, their disk, whoever restarts them, and two of three for good.

What is cut is the way from one LB to another: nodes and clients reach all of them all the while.
"""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from itertools import permutations
from typing import Any

import pytest

from e2e import clocks, disks
from e2e.cluster import (
    PATIENCE_S,
    agreed,
    all_serve,
    are_of_one_move,
    members,
    one_table,
    others,
    quorum,
    quorum_lost,
    tables,
)
from e2e.failover import holders, the_holder
from e2e.held import hold
from e2e.hosts import LabHosts, lab_hosts, read_config, traffic, wait_for, write_config
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.replicas import all_know, is_level
from e2e.traffic import Traffic

FLOWS = 40
STOPPED_S = 15.0
RECOVERY_S = 10.0
"""In which whoever has asked for it may still think better of it."""
HEALED_S = 15.0
"""The goal is five seconds until there is a lease again."""

pytestmark = pytest.mark.timeout(300)


@pytest.fixture(scope="module")
def hosts() -> Iterator[LabHosts]:
    plan = Plan(lbs=3, nodes=2)
    with lab_hosts(plan, lambda text: print(text, file=sys.stderr)) as machines:
        yield machines


@pytest.fixture(autouse=True)
def well(hosts: LabHosts) -> Iterator[None]:
    all_serve(hosts)
    the_holder(hosts)
    yield
    for lb in hosts.lbs:
        hosts.set_cut(lb, cut=False)


@contextmanager
def nothing_moves(hosts: LabHosts) -> Iterator[Traffic]:
    """Under requests, none of which fails: no other leader, no other holder, no election."""
    before = agreed(hosts), the_holder(hosts), terms(hosts)
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    yield requests
    seen = requests.stop()
    assert not seen.failures, seen.errors
    assert (agreed(hosts), the_holder(hosts), terms(hosts)) == before


def terms(hosts: LabHosts) -> set[int]:
    return {state["term"] for lb in hosts.lbs if (state := quorum(hosts, lb)) is not None}


# --------------------------------------------------------------------------- one another


def test_a_chain_with_the_leader_in_its_middle_costs_nothing(hosts: LabHosts) -> None:
    """Its ends hear nothing of each other, and need not. (With the leader at one end it is two
    that do not hear each other, in test_cluster.)
    """
    one, other = others(hosts, agreed(hosts))
    with nothing_moves(hosts) as requests:
        hosts.cut_way(one, other)
        hosts.cut_way(other, one)
        wait_for(lambda: not is_level(hosts, one), "the cut to be felt", PATIENCE_S)
        count = len(requests.results)
        wait_for(lambda: len(requests.results) > count + 50, "answers")


def test_each_alone_agrees_on_nothing_new_until_they_are_heard(hosts: LabHosts) -> None:
    """Nobody claims the VIP, so nothing comes any more; the connections wait for that."""
    with hold(hosts, count=FLOWS) as held:
        all_know(hosts, FLOWS)
        for sender, receiver in permutations(hosts.lbs, 2):
            hosts.cut_way(sender, receiver)
        for lb in hosts.lbs:
            wait_for(partial(quorum_lost, hosts, lb), f"{lb} to hear nobody")
        wait_for(lambda: not holders(hosts), "no claim to the VIP")
        frozen = tables(hosts)
        refused = hosts.run(hosts.lbs[0], "gale", "node", "drain", hosts.nodes[0])
        assert refused.returncode == 1, refused.stdout
        assert tables(hosts) == frozen
        assert not holders(hosts)
        for lb in hosts.lbs:
            hosts.set_cut(lb, cut=False)
        began = time.monotonic()
        wait_for(lambda: len(holders(hosts)) == 1, "a holder again", PATIENCE_S)
        took_s = time.monotonic() - began
        print(f"a holder again {took_s:.1f} s after healing")
        assert took_s < HEALED_S
        the_holder(hosts)
        assert held.ended == {}
        assert held.ask() == FLOWS


# --------------------------------------------------------------------------- supervisord


def test_a_holder_s_supervisord_that_stands_still_costs_nothing(hosts: LabHosts) -> None:
    lb = the_holder(hosts)
    pid = str(hosts.supervisord_pid(lb))
    with nothing_moves(hosts):
        hosts.run(lb, "kill", "-STOP", pid)
        try:
            time.sleep(STOPPED_S)
        finally:
            hosts.run(lb, "kill", "-CONT", pid)


# --------------------------------------------------------------------------- disks


@pytest.mark.parametrize(
    ("fault", "complaint"),
    [(disks.full, "No space left on device"), (disks.hung, "the disk does not answer")],
    ids=["full", "hung"],
)
def test_a_leader_whose_disk_takes_nothing_lets_another_lead(
    hosts: LabHosts, fault: Callable[[LabHosts, str], AbstractContextManager[None]], complaint: str
) -> None:
    """The order that could not be stored there is agreed on by the others."""
    leader = agreed(hosts)
    one, other = others(hosts, leader)
    requests = traffic(hosts, rate=50)
    wait_for(lambda: requests.results, "the first answer")
    with fault(hosts, leader):
        order_weight(hosts, one, 50)
        assert agreed(hosts, one, other, without=leader) in (one, other)
        wait_for(lambda: complaint in waits_for(hosts, leader), f"{leader} to say {complaint}")
        wait_for(lambda: weight(hosts, one) == weight(hosts, other) == 50, "the order at both")
    one_table(hosts)
    wait_for(lambda: not waits_for(hosts, leader), f"{leader} to wait for nothing")
    wait_for(lambda: weight(hosts, leader) == 50, f"the order at {leader}")
    are_of_one_move(requests.stop())
    order_weight(hosts, leader, 100)


def waits_for(hosts: LabHosts, lb: str) -> str:
    state = quorum(hosts, lb)
    return str(state["waiting_for"]) if state is not None else ""


def order_weight(hosts: LabHosts, lb: str, number: int) -> None:
    """Of the first node; returns when that is agreed."""
    done = hosts.run(lb, "gale", "node", "weight", hosts.nodes[0], str(number))
    assert done.returncode == 0, done.stdout + done.stderr


def weight(hosts: LabHosts, lb: str) -> int:
    """Of the first node, as that LB has it."""
    nodes = hosts.api(lb, "/v1/nodes")["nodes"]
    return next((int(each["weight"]) for each in nodes if each["name"] == hosts.nodes[0]), 0)


# --------------------------------------------------------------------------- clocks


def test_a_wall_clock_that_is_an_hour_ahead_costs_nothing(hosts: LabHosts) -> None:
    """It is for people alone: what was agreed lasts as long as it was said to, at all three, and
    over a restart of the processes there, by which clock they may go.
    """
    lb = others(hosts, the_holder(hosts))[0]
    with clocks.an_hour_ahead(hosts, lb):
        all_serve(hosts)
        with nothing_moves(hosts):
            done = hosts.run(lb, "gale", "node", "drain", hosts.nodes[0], "--within", "10m")
            assert done.returncode == 0, done.stderr
            given_ms, left_ms = drain_at(hosts, lb)
            assert given_ms > 1_000 * (time.time() + clocks.AHEAD_S - 60), "by its own clock"
            for other in hosts.lbs:
                wait_for(partial(drained, hosts, other), f"the drain at {other}")
                assert abs(drain_at(hosts, other)[1] - left_ms) < 30_000
            hosts.supervisorctl(lb, "restart", "gale:health")
            wait_for(partial(drained, hosts, lb), f"the drain at {lb}")
            assert drain_at(hosts, lb)[1] <= left_ms
    wait_for(lambda: quorum(hosts, lb) and drained(hosts, lb), f"the drain at {lb}", PATIENCE_S)
    assert 0 < drain_at(hosts, lb)[1] <= left_ms
    assert hosts.run(lb, "gale", "node", "enable", hosts.nodes[0]).returncode == 0


def drained(hosts: LabHosts, lb: str) -> dict[str, Any] | None:
    """The order to drain the first node, as that LB has it."""
    found: list[dict[str, Any]] = [
        order
        for each in hosts.api(lb, "/v1/nodes")["nodes"]
        if each["name"] == hosts.nodes[0]
        for order in each["orders"]
        if order["what"] == "drain"
    ]
    return found[0] if found else None


def drain_at(hosts: LabHosts, lb: str) -> tuple[int, int]:
    """When that was given, by the clock of who was asked, and how long is left of it, in ms."""
    order = drained(hosts, lb)
    assert order is not None
    return int(order["given_ms"]), int(order["remaining_ms"])


# --------------------------------------------------------------------------- for good


def test_the_last_of_three_decides_alone_once_it_is_told_to(hosts: LabHosts) -> None:
    """Not while another one is heard, nor unless whoever asks means it. It goes by the table of
    before, and does so after a restart; two new machines make a cluster with it again.
    """
    left = agreed(hosts)
    gone = others(hosts, left)
    order_weight(hosts, left, 50)
    refused = recover(hosts, left, "y")
    assert refused.returncode == 1
    assert "is heard: nothing is lost that will not come back" in refused.stderr
    for lb in gone:
        hosts.run(lb, "kill", "-KILL", str(hosts.supervisord_pid(lb)))
    wait_for(partial(quorum_lost, hosts, left), "quorum lost", PATIENCE_S)
    wait_for(lambda: not hosts.lab.holds_the_vip(left), "the VIP to be nobody's", PATIENCE_S)
    wait_for(lambda: not heard_at(hosts, left), "nobody to be heard", PATIENCE_S)
    not_wanted = recover(hosts, left, "n")
    assert not_wanted.returncode == 1
    assert "Go on?" in not_wanted.stderr
    assert quorum_lost(hosts, left)
    decides_alone(hosts, left, gone)
    goes_on_alone_over_a_restart(hosts, left)
    as_new_machines(hosts, left, gone)


def heard_at(hosts: LabHosts, lb: str) -> list[str]:
    """Whom of the others that LB has heard lately."""
    state = quorum(hosts, lb)
    return [each["name"] for each in state["members"][1:] if each["alive"]] if state else []


def recover(hosts: LabHosts, lb: str, answer: str) -> subprocess.CompletedProcess[str]:
    return hosts.run(lb, "gale", "quorum", "recover", stdin=f"{answer}\n")


def decides_alone(hosts: LabHosts, left: str, gone: tuple[str, ...]) -> None:
    began = time.monotonic()
    done = recover(hosts, left, "y")
    assert done.returncode == 0, done.stderr
    assert time.monotonic() - began >= RECOVERY_S
    assert f"Be sure that all the others are off: {', '.join(gone)}." in done.stderr
    assert f"{left} decides alone from now on." in done.stdout
    wait_for(lambda: hosts.lab.holds_the_vip(left), "the VIP to be its own")
    assert members(hosts, left) == {left}
    assert weight(hosts, left) == 50, "what was agreed before"
    order_weight(hosts, left, 60)
    serves(hosts)


def goes_on_alone_over_a_restart(hosts: LabHosts, left: str) -> None:
    """As it is told to: the others are taken out of its list."""
    own = hosts.lab.plan.links(left)[-1].address
    config = tomllib.loads(read_config(hosts, left))
    listed = config["load_balancer_quorum"]["addresses"]
    alone = [each for each in listed if each["ip"] == own]
    restarted_with(hosts, left, alone)
    wait_for(lambda: hosts.lab.holds_the_vip(left), "the VIP to be its own again", PATIENCE_S)
    assert members(hosts, left) == {left}
    wait_for(lambda: weight(hosts, left) == 60, "what it has agreed on alone")
    serves(hosts)


def restarted_with(hosts: LabHosts, lb: str, addresses: list[dict[str, Any]]) -> None:
    """Between one LB and several a reload is not enough."""
    config = tomllib.loads(read_config(hosts, lb))
    config["load_balancer_quorum"]["addresses"] = addresses
    write_config(hosts, lb, toml_text(config))
    hosts.supervisorctl(lb, "restart", "gale:*")


def as_new_machines(hosts: LabHosts, left: str, gone: tuple[str, ...]) -> None:
    """The two come back with empty disks, and the one that is left lists them again."""
    config = tomllib.loads(read_config(hosts, gone[0]))
    restarted_with(hosts, left, config["load_balancer_quorum"]["addresses"])
    for lb in gone:
        hosts.run(lb, "sh", "-c", 'rm "$GALE_STATE_DIR"/*.state')
        hosts.start_supervisord(lb)
    all_serve(hosts)
    the_holder(hosts)
    assert all(members(hosts, lb) == set(hosts.lbs) for lb in hosts.lbs)
    assert {weight(hosts, lb) for lb in hosts.lbs} == {60}, "what was agreed on alone"
    serves(hosts)


def serves(hosts: LabHosts) -> None:
    requests = traffic(hosts, rate=50)
    wait_for(lambda: len(requests.results) > 50, "answers")
    seen = requests.stop()
    assert not seen.failures, seen.errors
