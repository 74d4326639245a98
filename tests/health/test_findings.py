"""What this LB's own probe found, and what that proves."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.states import NodeService
from bus.words import Mode, NodeState, Protocol
from services.health.findings import Findings
from services.health.places import Outcome, Spot
from services.health.policy import Policy
from services.health.roster import Roster
from tests.health.parts import DNS, WEB, make_node
from tests.health.rig import NOT_SERVING, POLICY, TIMEOUT_MS, Agent, Rig, brought_up, offered

UP, SUSPECT, DOWN = NodeState.UP, NodeState.SUSPECT, NodeState.DOWN
HALF = replace(POLICY, min_healthy_percent=50)
LONG_MS = 10 * TIMEOUT_MS


def probe(rig: Rig, agent: Agent, outcome: Outcome | None, port: int = 8080) -> None:
    rig.registry.probed(Spot(agent.address, port), outcome, rig.now_ms)
    rig.collect()


def test_a_suspect_that_does_not_answer_the_probe_is_down() -> None:
    rig = Rig(HALF)
    first, second = brought_up(rig, 2)
    rig.wait(LONG_MS)
    (suspect,) = [agent for agent in (first, second) if agent.state is SUSPECT]
    probe(rig, suspect, Outcome.OPEN)
    assert suspect.state is SUSPECT
    probe(rig, suspect, Outcome.UNANSWERED)
    assert suspect.state is DOWN
    assert rig.observe(suspect.id).silent
    assert rig.observe(suspect.id).fails == 0


def test_who_does_not_answer_the_probe_is_down_when_it_falls_silent() -> None:
    rig = Rig(HALF)
    (agent,) = brought_up(rig, 1)
    rig.wait(TIMEOUT_MS // 2)
    probe(rig, agent, Outcome.UNANSWERED)
    assert agent.state is UP, "until it is time"
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN


def direct(mode: Mode, protocol: Protocol) -> Policy:
    return replace(HALF, services=(replace(offered(), mode=mode, protocol=protocol),))


@pytest.mark.parametrize(
    ("mode", "protocol", "believed"),
    [
        (Mode.L4, Protocol.TCP, True),
        (Mode.L4, Protocol.UDP, False),
        (Mode.L3, Protocol.TCP, False),
        (Mode.L2, Protocol.TCP, False),
    ],
)
def test_where_a_connection_proves_nothing_only_no_answer_at_all_confirms_silence(
    mode: Mode, protocol: Protocol, believed: bool
) -> None:
    rig = Rig(direct(mode, protocol))
    (agent,) = brought_up(rig, 1)
    probe(rig, agent, Outcome.REFUSED)
    agent.beat()
    assert agent.state is (DOWN if believed else UP)
    rig.wait(LONG_MS)
    assert agent.state is (DOWN if believed else SUSPECT)
    probe(rig, agent, Outcome.UNANSWERED)
    assert agent.state is DOWN


def test_an_agent_that_says_fine_is_not_believed_where_this_lb_cannot_connect() -> None:
    rig = Rig(replace(HALF, services=(offered("a", 1), offered("b", 2))))
    (agent,) = brought_up(rig, 1)
    probe(rig, agent, Outcome.REFUSED, port=2)
    agent.beat()
    assert (agent.state, agent.state_at("a"), agent.state_at("b")) == (UP, UP, DOWN)
    (apart,) = rig.observe(agent.id).apart
    assert apart.reason == (
        "not serving: this load balancer cannot connect to port 2: connection refused"
    )
    probe(rig, agent, Outcome.UNANSWERED, port=1)
    agent.beat()
    assert agent.state is DOWN
    assert rig.observe(agent.id).reason.endswith("cannot connect to port 1: no answer")
    probe(rig, agent, Outcome.OPEN, port=1)
    probe(rig, agent, None, port=2)
    rig.wait(TIMEOUT_MS, beating=[agent])
    rig.wait(TIMEOUT_MS, beating=[agent])
    assert (agent.state, agent.state_at("b")) == (UP, UP)


def test_each_node_is_looked_at_before_the_second_place_of_any() -> None:
    rig = Rig(replace(HALF, services=(offered("a", 1), offered("b", 2))))
    first, second = brought_up(rig, 2)
    of = [Spot(agent.address, port) for port in (1, 2) for agent in (first, second)]
    assert list(rig.registry.spots(10)) == of
    assert list(rig.registry.spots(3)) == of[:3]
    first.beat(NOT_SERVING)
    assert set(rig.registry.spots(10)) == set(of), "it may come back"
    rig.wait(LONG_MS, beating=[second])
    assert {spot.address for spot in rig.registry.spots(10)} == {second.address}


# ----------------------------------------------------------------- the findings alone

SERVICES = (offered("web", WEB.port), replace(offered("dns", DNS.port), protocol=Protocol.UDP))


def findings() -> Findings:
    return Findings(replace(POLICY, services=SERVICES), Roster())


def test_a_refusal_is_a_fault_where_a_client_would_connect_to_that_place() -> None:
    both = (*SERVICES, replace(offered("quic", WEB.port), protocol=Protocol.UDP))
    roster = Roster()
    found = Findings(replace(POLICY, services=both), roster)
    node = make_node("n", UP, NodeService("quic", WEB.port), DNS, WEB)
    roster.add(node)
    web, dns = Spot(node.address, WEB.port), Spot(node.address, DNS.port)
    assert found.spots(10) == {web: True, dns: False}, "one port, of TCP and of UDP"


def test_what_cannot_be_reached_is_remembered_until_it_can_or_is_not_looked_at() -> None:
    found, node = findings(), make_node("n", UP, WEB, DNS)
    web, dns = Spot(node.address, WEB.port), Spot(node.address, DNS.port)
    assert found.note(web, Outcome.REFUSED)
    assert found.note(dns, Outcome.UNANSWERED)
    assert found.note(web, Outcome.OPEN), "the other is not open"
    assert not found.note(dns, None)
    assert found.note(web, Outcome.UNANSWERED)
    assert not found.note(web, Outcome.OPEN)
    assert found.sick_of(node, None) == {}


def test_the_agent_is_believed_for_what_it_says_and_the_probe_for_what_it_proves() -> None:
    found, node = findings(), make_node("n", UP, WEB, DNS)
    said = {"dns": "it fell"}
    assert found.sick_of(node, said) == said
    for service in (WEB, DNS):
        found.note(Spot(node.address, service.port), Outcome.REFUSED)
    refused = "this load balancer cannot connect to port 80: connection refused"
    assert found.sick_of(node, None) == {"web": refused}, "of UDP it proves nothing"
    assert found.sick_of(node, said) == {"web": refused, "dns": "it fell"}
    assert found.sick_of(node, {"web": "its own word"}) == {"web": "its own word"}
    elsewhere = make_node("n", UP, WEB, address="10.81.0.99")
    assert found.sick_of(elsewhere, None) == {}


@pytest.mark.parametrize(
    ("outcome", "web", "dns"),
    [
        (Outcome.OPEN, False, False),
        (Outcome.REFUSED, True, False),
        (Outcome.UNANSWERED, True, True),
    ],
)
def test_silence_is_borne_out_by_no_answer_and_where_it_says_all_by_a_refusal(
    outcome: Outcome, web: bool, dns: bool
) -> None:
    found, node = findings(), make_node("n", UP, WEB, DNS)
    for service in (WEB, DNS):
        found.note(Spot(node.address, service.port), outcome)
    assert (found.bear_out(node, "web"), found.bear_out(node, "dns")) == (web, dns)
    assert not found.bear_out(node, "other")
