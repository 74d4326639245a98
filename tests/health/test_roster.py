"""How many nodes may be known."""

from __future__ import annotations

import pytest

from bus.node_protocol import Refused, Welcome
from services.health import roster as roster_module
from services.health.deadlines import STRANGER_MS
from services.health.roster import MOST_NODES_OF_ADDRESS, Roster
from tests.health.parts import make_node
from tests.health.rig import Agent, Rig


def test_there_is_an_end_to_the_nodes_of_one_address() -> None:
    rig = Rig()
    agents = [Agent(rig, f"node-{i}") for i in range(MOST_NODES_OF_ADDRESS + 5)]
    for agent in agents:
        agent.hello()
    refused = [a for a in agents if isinstance(a.messages()[-1], Refused)]
    assert refused == agents[MOST_NODES_OF_ADDRESS:]
    assert rig.registry.checks(rig.now_ms).rejected == {"registry_full": 5}
    other = Agent(rig, "node-0", "10.81.0.21")
    other.hello()
    assert isinstance(other.messages()[-1], Welcome)
    agents[0].hello()
    assert isinstance(agents[0].messages()[-1], Welcome), "who is known is never refused"
    rig.wait(STRANGER_MS)
    assert rig.registry.view(rig.now_ms).nodes == ()
    refused[0].hello()
    assert isinstance(refused[0].messages()[-1], Welcome), "there is room again"


def test_there_is_an_end_to_how_many_nodes_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "MAX_NODES", 2)
    rig = Rig()
    agents = [Agent(rig, f"node-{i}") for i in range(3)]
    for agent in agents:
        agent.hello()
    assert [type(agent.messages()[-1]) for agent in agents] == [Welcome, Welcome, Refused]


def test_who_goes_or_moves_leaves_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(roster_module, "MOST_NODES_OF_ADDRESS", 2)
    roster = Roster()
    first, second = make_node("a", address="10.0.0.1"), make_node("b", address="10.0.0.1")
    roster.add(first)
    assert roster.why_full("10.0.0.1") == ""
    roster.add(second)
    assert roster.why_full("10.0.0.1") == "this load balancer already knows 2 nodes at 10.0.0.1"
    roster.move(second, "10.0.0.2")
    assert (second.address, roster.why_full("10.0.0.1")) == ("10.0.0.2", "")
    third, fourth = make_node("c", address="10.0.0.1"), make_node("d", address="10.0.0.2")
    roster.add(third)
    roster.add(fourth)
    assert roster.why_full("10.0.0.1") != "" != roster.why_full("10.0.0.2")
    roster.remove(second)
    assert roster.why_full("10.0.0.2") == ""
    assert (list(roster), len(roster)) == ([first, third, fourth], 3)
    assert (roster.get(second.id), second.id in roster, first.id in roster) == (None, False, True)
