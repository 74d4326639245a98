"""The registry as a whole: its first answer, another configuration, and what comes out of it."""

from __future__ import annotations

from bus.node_protocol import Welcome
from bus.states import NodeService
from bus.topics import Topic
from bus.words import NodeState
from services.health.registry import Registry
from tests.health.rig import (
    INTERVAL_MS,
    POLICY,
    PROBATION_MS,
    START_MS,
    TIMEOUT_MS,
    Agent,
    Rig,
    brought_up,
    offered,
)

PROBATION, UP, DOWN = NodeState.PROBATION, NodeState.UP, NodeState.DOWN


def test_a_hello_puts_a_node_on_probation_and_is_welcomed_with_what_it_must_know() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    assert agent.state is PROBATION
    assert rig.topics(agent.id) == [Topic.NODE_JOINED]
    assert agent.messages() == [
        Welcome("lb-0", agent.id, TIMEOUT_MS, PROBATION_MS, PROBATION, (offered(),))
    ]


def test_a_new_configuration_is_told_to_everybody_and_takes_nobody_down() -> None:
    rig = Rig()
    agents = brought_up(rig, 3)
    rig.wait(INTERVAL_MS)
    rig.configure(checks_timeout_ms=200, services=(offered(), offered("echo", 9000)))
    for agent in agents:
        last = agent.messages()[-1]
        assert isinstance(last, Welcome)
        assert (last.checks_timeout_ms, last.interval_ms, len(last.services)) == (200, 10, 2)
        assert rig.observe(agent.id).services == (
            NodeService("default", 8080),
            NodeService("echo", 9000),
        )
    rig.tick()
    assert {agent.state for agent in agents} == {UP}
    for agent in agents:
        agent.beat()
    rig.wait(400)
    assert {agent.state for agent in agents} == {DOWN}


def test_the_same_configuration_again_says_nothing() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    before = len(agent.messages())
    rig.configure()
    assert len(agent.messages()) == before


def test_a_steady_heartbeat_changes_nothing() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    changes, keeps, sent, events = rig.view_changes, rig.keeps, len(rig.sent), len(rig.events)
    rig.wait(60_000, beating=[agent])
    after = (rig.view_changes, rig.keeps, len(rig.sent), len(rig.events))
    assert after == (changes, keeps, sent, events)


def test_every_view_has_a_version_of_its_own() -> None:
    rig = Rig()
    assert rig.registry.view(START_MS).version < rig.registry.view(START_MS).version


def test_that_a_node_is_a_backup_is_told_and_kept() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello(backup=True)
    agent.beat()
    assert [node.backup for node in rig.decided] == [True]
    rig.restart()
    rig.collect()
    assert [node.backup for node in rig.decided] == [True]
    agent.connect()
    agent.hello(backup=False)
    assert [node.backup for node in rig.decided] == [False]


def test_an_empty_registry_waits_for_nothing() -> None:
    registry = Registry(POLICY, START_MS)
    registry.tick(START_MS + 1_000_000)
    assert registry.next_due_ms() is None
