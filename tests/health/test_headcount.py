"""How many nodes of a service there are, and that no more than half of them are banned."""

from __future__ import annotations

from dataclasses import replace

from bus.states import NodeService
from bus.topics import Topic
from bus.words import NodeState
from services.health.headcount import Headcount
from services.health.node import Node
from services.health.roster import Roster
from services.health.standing import Standing
from tests.health.parts import DNS, WEB, make_node
from tests.health.rig import POLICY, Agent, Rig, offered

PROBATION, UP, SUSPECT, DOWN, BANNED = (
    NodeState.PROBATION,
    NodeState.UP,
    NodeState.SUSPECT,
    NodeState.DOWN,
    NodeState.BANNED,
)


def test_of_one_service_no_more_than_half_are_banned_at_a_time() -> None:
    rig = Rig()
    agents = [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(5)]
    for _ in range(POLICY.black_list_after_fails):
        for agent in agents:
            agent.fail_and_return()
    assert [agent.state for agent in agents] == [BANNED, BANNED, UP, UP, UP]
    spared = [e for t, e in rig.events if t is Topic.NODE_DOWN and "not banned" in e.reason]
    assert [event.reason for event in spared] == [
        "not serving; not banned after 3 failures: 2 of 5 nodes of default are"
    ] * 3
    for agent in agents[2:]:
        agent.beat()
    rig.wait(POLICY.black_list_expiry_ms, beating=agents[2:])
    for agent in agents[:2]:
        agent.bring_up()
    assert rig.observe(agents[2].id).fails == POLICY.black_list_after_fails - 1
    agents[2].fail_and_return()
    assert agents[2].state is BANNED, "there is room again"


def test_the_half_is_judged_by_service() -> None:
    rig = Rig(
        replace(POLICY, services=(offered("a", 1), offered("b", 2)), black_list_after_fails=1)
    )
    both = NodeService("a", 1), NodeService("b", 2)
    on_a = [Agent(rig, f"a{i}", f"10.0.0.{i}", both[:1]).bring_up() for i in range(2)]
    on_both = [Agent(rig, f"b{i}", f"10.0.1.{i}", both).bring_up() for i in range(2)]
    on_both[0].fail_and_return()
    assert on_both[0].state is BANNED
    on_both[1].fail_and_return()
    assert on_both[1].state is UP, "the last of b, though three of four of a would be left"
    on_a[0].fail_and_return()
    assert on_a[0].state is BANNED
    on_a[1].fail_and_return()
    assert on_a[1].state is UP


def test_a_node_that_joins_or_goes_is_counted() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agents = [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(2)]
    for agent in agents:
        agent.fail_and_return()
    assert [agent.state for agent in agents] == [BANNED, UP]
    agents += [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in (2, 3)]
    agents[1].fail_and_return()
    assert agents[1].state is BANNED


def counted(*nodes: Node) -> Headcount:
    roster = Roster()
    for node in nodes:
        roster.add(node)
    return Headcount(roster)


def test_the_nodes_that_are_up_are_counted_by_service() -> None:
    headcount = counted(
        make_node("a", UP, WEB, DNS), make_node("b", UP, WEB), make_node("c", DOWN, WEB)
    )
    assert headcount.up() == {"web": 2, "dns": 1}


def test_whoever_takes_new_flows_is_up_or_suspect_and_not_ordered_out() -> None:
    stranger = make_node("stranger", PROBATION, WEB)
    stranger.was_up = False
    ordered = make_node("ordered", UP, WEB)
    headcount = counted(
        make_node("a", UP, WEB, DNS),
        make_node("b", SUSPECT, WEB, DNS, apart={"dns": DOWN}),
        make_node("c", DOWN, WEB),
        stranger,
        ordered,
    )
    assert headcount.taking() == ({"web": 4, "dns": 2}, {"web": 3, "dns": 1})
    headcount.leave_out([ordered.id])
    assert headcount.taking() == ({"web": 3, "dns": 2}, {"web": 2, "dns": 1})
    headcount.leave_out([])
    assert headcount.taking()[0]["web"] == 4


def test_a_ban_is_added_to_what_was_counted_and_its_end_is_counted_anew() -> None:
    nodes = [make_node(f"n{i}", UP, WEB, DNS) for i in range(4)]
    nodes[0].apart["dns"] = Standing(BANNED, "", 0)
    headcount = counted(*nodes)
    assert headcount.why_spared(nodes[3], ["web", "dns"], 3) == ""
    nodes[0].state = BANNED
    headcount.banned(nodes[0])
    assert headcount.why_spared(nodes[3], ["dns"], 3) == "", (
        "one of four: it was banned there before"
    )
    nodes[1].state = BANNED
    headcount.banned(nodes[1])
    spared = "not banned after 3 failures: 2 of 4 nodes of web are"
    assert headcount.why_spared(nodes[3], ["web"], 3) == spared
    headcount.changed()
    assert headcount.why_spared(nodes[3], ["web"], 3) == spared, "counted anew, it is as many"
    nodes[1].state = DOWN
    assert headcount.why_spared(nodes[3], ["web"], 3) == spared, "nobody has said that it changed"
    headcount.changed()
    assert headcount.why_spared(nodes[3], ["web"], 3) == ""


def test_a_lone_node_may_be_banned() -> None:
    lone = make_node("a", UP, WEB)
    assert counted(lone).why_spared(lone, ["web"], 1) == ""


def test_a_node_that_is_banned_from_one_service_may_be_banned_as_a_whole() -> None:
    """One of its servers is seen to be gone a moment before the others, again and again."""
    nodes = [make_node(f"n{i}", UP, WEB, DNS) for i in range(3)]
    nodes[0].apart["dns"] = Standing(BANNED, "", 0)
    headcount = counted(*nodes)
    assert headcount.why_spared(nodes[0], ["web", "dns"], 3) == ""
    spared = "not banned after 3 failures: 1 of 3 nodes of dns are"
    assert headcount.why_spared(nodes[1], ["web", "dns"], 3) == spared
