"""What an operator's orders mean to the health process: pardons, and who does not count."""

from __future__ import annotations

from dataclasses import replace

from bus.node_protocol import Welcome
from bus.orders import Asked, Order, OrderKind
from bus.states import Ban, NodeTable
from bus.topics import Topic
from bus.words import NodeState
from tests.health.rig import NOT_SERVING, POLICY, TIMEOUT_MS, Agent, Rig, table

BANNED, DOWN, SUSPECT, UP = NodeState.BANNED, NodeState.DOWN, NodeState.SUSPECT, NodeState.UP


def ordered(kind: OrderKind, *nodes: str, epoch: int = 8) -> NodeTable:
    orders = tuple(
        Order(f"{node}-{epoch}", Asked(node, kind, "ada"), epoch, None) for node in nodes
    )
    return replace(table(), epoch=epoch, orders=orders)


def banned(rig: Rig) -> Agent:
    agent = Agent(rig)
    for _ in range(POLICY.black_list_after_fails):
        agent.bring_up()
        agent.beat(NOT_SERVING)
    assert agent.state is BANNED
    return agent


def test_a_pardon_ends_a_ban_forgets_the_failures_and_tells_the_agent() -> None:
    rig = Rig()
    agent = banned(rig)
    rig.registry.heed(ordered(OrderKind.PARDON, agent.id), rig.now_ms)
    rig.collect()
    seen = rig.observe(agent.id)
    assert (seen.state, seen.fails, seen.banned_for_ms) == (DOWN, 0, 0)
    assert seen.reason == "pardoned by ada"
    assert rig.events[-1][0] is Topic.NODE_PARDONED
    assert isinstance(agent.messages()[-1], Welcome)
    agent.bring_up()


def test_a_pardon_counts_once() -> None:
    rig = Rig()
    agent = banned(rig)
    pardon = ordered(OrderKind.PARDON, agent.id)
    rig.registry.heed(pardon, rig.now_ms)
    agent.bring_up()
    agent.beat(NOT_SERVING)
    rig.registry.heed(replace(pardon, epoch=9), rig.now_ms)
    assert rig.observe(agent.id).fails == 1
    rig.restart()
    rig.registry.heed(replace(pardon, epoch=10), rig.now_ms)
    assert rig.observe(agent.id).fails == 1
    rig.registry.heed(ordered(OrderKind.PARDON, agent.id, epoch=11), rig.now_ms)
    assert rig.observe(agent.id).fails == 0


def test_a_pardon_from_before_a_node_joined_is_not_about_its_failures() -> None:
    rig = Rig()
    agent = Agent(rig)
    pardon = ordered(OrderKind.PARDON, agent.id)
    rig.registry.heed(pardon, rig.now_ms)
    agent.bring_up()
    agent.beat(NOT_SERVING)
    rig.registry.heed(replace(pardon, epoch=9), rig.now_ms)
    assert rig.observe(agent.id).fails == 1


def test_an_lb_that_was_away_hears_of_a_pardon() -> None:
    rig = Rig()
    agent = banned(rig)
    rig.restart()
    assert rig.observe(agent.id).state is BANNED
    pardon = replace(ordered(OrderKind.PARDON, agent.id), bans=(Ban(agent.id, 9_000, 3),))
    rig.registry.adopt_table(pardon, rig.now_ms)
    rig.registry.heed(pardon, rig.now_ms)
    assert rig.observe(agent.id).state is DOWN


def test_a_node_that_is_drained_or_banned_by_order_is_none_that_a_service_has_left() -> None:
    for kind in (OrderKind.DRAIN, OrderKind.BAN):
        rig = Rig(policy=replace(POLICY, min_healthy_percent=50))
        agents = [Agent(rig, f"n{i}", f"10.81.0.2{i}").bring_up() for i in range(3)]
        for each in agents:
            each.beat()
        rig.registry.heed(ordered(kind, agents[0].id, agents[1].id), rig.now_ms)
        for _ in range(6):
            rig.wait(TIMEOUT_MS // 2)
            for each in agents[:2]:
                each.beat()
        assert agents[2].state is SUSPECT
        rig.registry.heed(ordered(OrderKind.ENABLE, agents[0].id, agents[1].id), rig.now_ms)
        for _ in range(6):
            rig.wait(TIMEOUT_MS // 2)
            for each in agents[:2]:
                each.beat()
        assert agents[2].state is DOWN
