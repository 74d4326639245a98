"""The registry as a whole: its first answer, another configuration, and what comes out of it."""

from __future__ import annotations

from dataclasses import replace

from bus.node_protocol import Heartbeat, Hello, Welcome, encode_node
from bus.states import NodeService
from bus.topics import Topic
from bus.words import Mode, NodeState
from services.health.door import KEY_GONE
from services.health.places import Outcome, Spot
from services.health.registry import Registry
from services.health.roster import MOST_NODES_OF_ADDRESS
from tests.health.rig import (
    INTERVAL_MS,
    NOT_SERVING,
    POLICY,
    PROBATION_MS,
    SERVING,
    START_MS,
    TIMEOUT_MS,
    Agent,
    Rig,
    brought_up,
    offered,
    table,
    table_node,
)

PROBATION, UP, SUSPECT, DOWN, BANNED = (
    NodeState.PROBATION,
    NodeState.UP,
    NodeState.SUSPECT,
    NodeState.DOWN,
    NodeState.BANNED,
)


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


def test_a_shorter_timeout_holds_from_when_the_agents_can_have_heard_of_it() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.configure(checks_timeout_ms=TIMEOUT_MS // 5)
    rig.wait(TIMEOUT_MS // 5 + INTERVAL_MS - 1)
    assert agent.state is UP
    rig.wait(1)
    assert agent.state is DOWN


def test_every_part_goes_by_another_configuration() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=-1))
    first, second, third = brought_up(rig, 3)
    rig.configure(
        black_list_after_fails=1,
        min_healthy_percent=100,
        services=(replace(offered(), mode=Mode.L3),),
    )
    rig.registry.probed(Spot(second.address, 8080), Outcome.REFUSED, rig.now_ms)
    for agent in (first, second, third):
        agent.beat()
    assert second.state is UP, "the probe: in L3 a refused connection says nothing"
    first.beat(NOT_SERVING)
    assert first.state is BANNED, "the judge: after one failure"
    rig.wait(10 * TIMEOUT_MS, beating=[second])
    assert third.state is SUSPECT, "silence: no service can do without any"
    rig = Rig()
    rig.configure(checks_before_routing=5)
    rig.registry.adopt_table(table(table_node("n0")), rig.now_ms)
    assert rig.observe("n0@10.81.0.20").checks_passed == 5, "what is adopted has passed so many"


# ----------------------------------------------------------------- where keys are used


def with_keys(rig: Rig, owners: dict[str, str]) -> None:
    """From now on this LB asks for keys; `owners`: by key, whose it is."""
    rig.registry = Registry(rig.policy, rig.now_ms, owners.get)


def say_hello(rig: Rig, name: str, address: str, key: str) -> None:
    hello = encode_node(Hello(1, name, "boot", 1, ()))
    rig.registry.receive(b"\0%s" % key.encode(), address, hello, rig.now_ms, key)
    rig.collect()


def say_fine(rig: Rig, key: str, number: int) -> None:
    beat = Heartbeat(number, rig.now_ms, SERVING, 0.5, "")
    rig.registry.receive(b"\0%s" % key.encode(), "", encode_node(beat), rig.now_ms)
    rig.collect()


def brought_up_by_key(rig: Rig, name: str, address: str, key: str) -> None:
    say_hello(rig, name, address, key)
    for number in range(1, 4):
        rig.now_ms += PROBATION_MS
        say_fine(rig, key, number)
    assert rig.observe(name).state is UP


def test_a_node_that_comes_from_another_address_is_looked_at_anew() -> None:
    rig = Rig()
    with_keys(rig, {f"k{i}": f"n{i}" for i in range(MOST_NODES_OF_ADDRESS + 1)})
    brought_up_by_key(rig, "n0", "10.0.0.1", "k0")
    say_hello(rig, "n0", "10.0.0.2", "k0")
    seen = rig.observe("n0")
    assert (seen.state, seen.address, seen.fails) == (DOWN, "10.0.0.2", 0)
    assert seen.reason == "now at 10.0.0.2, before at 10.0.0.1"
    say_fine(rig, "k0", 4)
    assert rig.observe("n0").state is PROBATION
    for number in range(1, MOST_NODES_OF_ADDRESS + 1):
        say_hello(rig, f"n{number}", "10.0.0.1", f"k{number}")
    assert rig.registry.rejected == {}, "there is room where it was"


def test_a_node_whose_key_is_taken_off_the_list_is_down_and_has_not_failed() -> None:
    rig = Rig()
    owners = {"k0": "n0", "k1": "n1"}
    with_keys(rig, owners)
    brought_up_by_key(rig, "n0", "10.0.0.1", "k0")
    brought_up_by_key(rig, "n1", "10.0.0.2", "k1")
    del owners["k0"]
    rig.registry.keys_changed(rig.now_ms)
    rig.collect()
    seen = rig.observe("n0")
    assert (seen.state, seen.fails, seen.reason) == (DOWN, 0, KEY_GONE)
    assert rig.observe("n1").state is UP


def test_a_node_that_was_known_before_keys_were_used_is_there_once() -> None:
    rig = Rig()
    agent = Agent(rig, "n0", "10.0.0.1").bring_up()
    kept = rig.registry.kept(rig.now_ms)
    with_keys(rig, {"k0": "n0"})
    rig.registry.adopt(kept, 0, rig.now_ms)
    assert rig.knows(agent.id)
    say_hello(rig, "n0", "10.0.0.1", "k0")
    assert [node.id for node in rig.decided] == ["n0"]
