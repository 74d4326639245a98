"""What an operator wants of a node, by `gale`; and what takes no more with it than it must.

A node is drained (open connections go on, new ones go elsewhere), cut off at its deadline, banned,
pardoned and back. One sick service of a node leaves the node's other services alone, and agents
that fall silent all at once take no service away.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from e2e.held import hold
from e2e.hosts import (
    Hosts,
    newest_event,
    node_states,
    pid_of,
    send_signal,
    traffic,
    wait_for,
)
from e2e.hosts import events as events_of
from e2e.traffic import Summary, Traffic

CONNECTIONS = 60
pytestmark = pytest.mark.timeout(300)


def gale(hosts: Hosts, lb: str, *words: str) -> str:
    done = hosts.run(lb, "gale", *words)
    assert done.returncode == 0, done.stderr
    return done.stdout


def node(hosts: Hosts, lb: str, name: str) -> dict[str, Any]:
    return next(each for each in hosts.api(lb, "/v1/nodes")["nodes"] if each["name"] == name)


def rings(hosts: Hosts, lb: str) -> dict[str, dict[str, int]]:
    """By service and node, the slots."""
    return {
        service["name"]: {seat["node"]: seat["slots"] for seat in service["nodes"]}
        for service in hosts.api(lb, "/v1/services")["services"]
    }


def all_up(hosts: Hosts, lb: str) -> None:
    """Without orders, whatever a test before has left."""
    for each in hosts.api(lb, "/v1/nodes")["nodes"]:
        if each["order"] is not None:
            gale(hosts, lb, "node", "enable", each["id"])
    everybody = dict.fromkeys(hosts.nodes, "up")
    wait_for(lambda: node_states(hosts, lb) == everybody, "all nodes to be up", timeout_s=30)


def nothing_lost(seen: Summary) -> None:
    assert seen.results
    assert not seen.failures, seen.errors


def answers_from_now_on(requests: Traffic, count: int = 60) -> set[str]:
    before = len(requests.results)
    wait_for(lambda: len(requests.results) >= before + count, "answers")
    return set(requests.since(before).answers)


def test_a_drained_node_keeps_its_connections_and_gets_no_new_ones(hosts: Hosts, lb: str) -> None:
    all_up(hosts, lb)
    victim = hosts.nodes[1]
    since = newest_event(hosts, lb)
    with hold(hosts, count=CONNECTIONS) as held:
        assert held.of_node(victim)
        requests = traffic(hosts, rate=100)
        said = gale(hosts, lb, "node", "drain", victim, "--why", "new disks")
        assert "agreed" in said
        shown = node(hosts, lb, victim)
        assert (shown["state"], shown["order"]["why"]) == ("draining", "new disks")
        wait_for(lambda: node(hosts, lb, victim)["share"] == 0, "the ring to name others")
        assert victim not in answers_from_now_on(requests)
        # Flows are counted every few seconds.
        its = len(held.of_node(victim))
        wait_for(lambda: node(hosts, lb, victim)["flows"] >= its, "its flows to be shown")
        send_signal(hosts, lb, "gale:quorum", "KILL")
        send_signal(hosts, lb, "gale:health", "KILL")
        assert victim not in answers_from_now_on(requests)
        assert held.ask() == CONNECTIONS
        gale(hosts, lb, "node", "enable", victim)
        wait_for(lambda: victim in answers_from_now_on(requests), f"an answer of {victim}")
        assert held.ask() == CONNECTIONS
        nothing_lost(requests.stop())
    told = [each["data"]["order"] for each in events_of(hosts, lb, "order.given.", since)]
    assert told == ["drain", "enable"]


def test_at_the_deadline_of_a_drain_its_connections_end(hosts: Hosts, lb: str) -> None:
    all_up(hosts, lb)
    victim = hosts.nodes[1]
    with hold(hosts, count=CONNECTIONS) as held:
        gale(hosts, lb, "node", "drain", victim, "--within", "4s")
        begun = time.monotonic()
        its = held.of_node(victim)
        assert its
        wait_for(lambda: its <= held.ended.keys(), "its connections to end")
        assert time.monotonic() - begun >= 3
        assert {held.ended[number].how for number in its} == {"reset"}
        assert held.ask() == CONNECTIONS - len(its)
        assert node(hosts, lb, victim)["state"] == "down"
        gale(hosts, lb, "node", "enable", victim)
        all_up(hosts, lb)


@pytest.mark.anywhere
def test_a_node_is_banned_and_pardoned(hosts: Hosts, lb: str) -> None:
    all_up(hosts, lb)
    victim = hosts.nodes[-1]
    requests = traffic(hosts, rate=100)
    gale(hosts, lb, "node", "ban", victim)
    wait_for(lambda: node(hosts, lb, victim)["share"] == 0, "the ring to name others")
    assert victim not in answers_from_now_on(requests)
    time.sleep(2)  # two checks_timeouts of good beats: none of them undoes the ban
    assert node_states(hosts, lb)[victim] == "banned"
    gale(hosts, lb, "node", "pardon", victim)
    wait_for(lambda: victim in answers_from_now_on(requests), f"an answer of {victim}")
    nothing_lost(requests.stop())


@pytest.mark.anywhere
def test_a_stopped_agent_takes_its_node_out_and_a_started_one_brings_it_back(
    hosts: Hosts, lb: str
) -> None:
    all_up(hosts, lb)
    victim = hosts.nodes[0]
    requests = traffic(hosts, rate=100)
    hosts.supervisorctl(victim, "stop", "gale-node:*")
    wait_for(lambda: node(hosts, lb, victim)["share"] == 0, "the ring to name others")
    assert victim not in answers_from_now_on(requests)
    hosts.supervisorctl(victim, "start", "gale-node:*")
    wait_for(lambda: victim in answers_from_now_on(requests), f"an answer of {victim}")
    nothing_lost(requests.stop())
    assert node(hosts, lb, victim)["fails"] == 0


def test_a_weight_changes_the_shares(hosts: Hosts, lb: str) -> None:
    all_up(hosts, lb)
    heavy = hosts.nodes[0]
    gale(hosts, lb, "node", "weight", heavy, "2")
    wait_for(lambda: abs(node(hosts, lb, heavy)["share"] - 0.5) < 0.02, "half of the ring")
    gale(hosts, lb, "node", "weight", heavy, "own")
    wait_for(lambda: abs(node(hosts, lb, heavy)["share"] - 1 / 3) < 0.02, "a third of it")


def test_one_sick_service_of_a_node_moves_nothing_of_the_others(hosts: Hosts, lb: str) -> None:
    all_up(hosts, lb)
    victim, before = hosts.nodes[1], rings(hosts, lb)
    with hold(hosts, count=CONNECTIONS) as held:
        requests = traffic(hosts, rate=100)
        hosts.supervisorctl(victim, "stop", "server:udp")
        wait_for(lambda: 0 in rings(hosts, lb)["udp"].values(), "udp to leave the node")
        during = rings(hosts, lb)
        assert (during["default"], during["echo"]) == (before["default"], before["echo"])
        assert node_states(hosts, lb) == dict.fromkeys(hosts.nodes, "up")
        assert victim in answers_from_now_on(requests)
        assert held.ask() == CONNECTIONS
        hosts.supervisorctl(victim, "start", "server:udp")
        wait_for(lambda: rings(hosts, lb) == before, "udp to be back")
        assert not held.ended
        nothing_lost(requests.stop())


def test_all_agents_silent_at_once_take_no_service_away(hosts: Hosts, lb: str) -> None:
    all_up(hosts, lb)
    before = rings(hosts, lb)
    with hold(hosts, count=CONNECTIONS) as held:
        requests = traffic(hosts, rate=100)
        agents = [(each, pid_of(hosts, each, "gale-node:agent")) for each in hosts.nodes]
        for each, pid in agents:  # one right after the other
            hosts.run(each, "kill", "-STOP", str(pid))
        wait_for(lambda: "up" not in node_states(hosts, lb).values(), "all to be missed")
        time.sleep(3)  # three checks_timeouts more
        states = node_states(hosts, lb)
        kept = {name for name, state in states.items() if state == "suspect"}
        assert len(kept) >= 2, states  # half of three
        assert answers_from_now_on(requests, 100) == kept
        # Those first that are still routed to: they are needed until the third one is back.
        for each, pid in sorted(agents, key=lambda agent: agent[0] not in kept):
            hosts.run(each, "kill", "-CONT", str(pid))
        all_up(hosts, lb)
        others = {name for each in kept for name in held.of_node(each)}
        assert not others & held.ended.keys()
        wait_for(lambda: rings(hosts, lb) == before, "the rings to be as before")
        nothing_lost(requests.stop())
    assert {each["fails"] for each in hosts.api(lb, "/v1/nodes")["nodes"]} == {0}
