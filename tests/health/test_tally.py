"""Counting nodes by their services: what is counted, and that equal lists are one object."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.states import NodeService
from services.health import tally
from services.health.tally import Alike, Tally
from tests.health.rig import POLICY, Agent, Rig, offered

BOTH = (NodeService("a", 1), NodeService("b", 2))


def test_each_node_counts_once_at_each_of_its_services() -> None:
    count = Tally()
    for services in (BOTH, BOTH, (NodeService("a", 1), NodeService("b", 2)), BOTH[:1], ()):
        count.add(services)
    assert count.by_service() == {"a": 4, "b": 3}


def test_a_service_that_is_named_twice_counts_once() -> None:
    count = Tally()
    count.add((NodeService("a", 1), NodeService("a", 2)))
    assert count.by_service() == {"a": 1}


def test_equal_lists_become_one_and_there_are_not_ever_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(tally, "MOST_LISTS", 3)
    alike = Alike()
    first = alike.one((NodeService("a", 1),))
    assert alike.one((NodeService("a", 1),)) is first
    for port in range(2, 4):
        alike.one((NodeService("a", port),))
    again = (NodeService("a", 1),)
    assert alike.one(again) is again, "it starts anew rather than keep all that was ever named"


def test_nodes_of_the_same_services_share_their_list_through_hellos_beats_and_restarts() -> None:
    rig = Rig(replace(POLICY, services=(offered("a", 1), offered("b", 2))))
    agents = [Agent(rig, f"n{i}", f"10.81.1.{i}").bring_up() for i in range(5)]
    assert len({id(node.services) for node in rig.registry.view(rig.now_ms).nodes}) == 1
    rig.restart()
    for agent in agents[:3]:
        agent.connect()
        agent.hello()
        agent.beat()
    assert len({id(node.services) for node in rig.registry.view(rig.now_ms).nodes}) == 1
