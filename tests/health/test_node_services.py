"""Which services a node serves; and one service of a node, of which the others must not hear."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.node_protocol import Heartbeat, Prepared, encode_node
from bus.states import NodeService
from bus.topics import Topic
from bus.words import Mode, NodeState
from tests.health.rig import (
    INTERVAL_MS,
    NOT_SERVING,
    POLICY,
    PROBATION_MS,
    SERVING,
    SHUTTING_DOWN,
    TIMEOUT_MS,
    Agent,
    Rig,
    offered,
)

PROBATION, UP, DRAINING, DOWN, BANNED = (
    NodeState.PROBATION,
    NodeState.UP,
    NodeState.DRAINING,
    NodeState.DOWN,
    NodeState.BANNED,
)


# ----------------------------------------------------------------- which, in which modes

TWO = replace(POLICY, services=(offered("a", 1), offered("b", 2)))
A_IN_L3 = (Prepared((Mode.L3, Mode.L2), ("a",)),)


def beat_prepared(agent: Agent, prepared: tuple[Prepared, ...] | None) -> None:
    agent.seq += 1
    sent_ms = agent.rig.now_ms + agent.clock_offset_ms
    beat = Heartbeat(agent.seq, sent_ms, SERVING, 0.5, "", prepared)
    agent.deliver(encode_node(beat))


def modes_of(rig: Rig, agent: Agent) -> dict[str, tuple[Mode, ...]]:
    return {service.name: service.modes for service in rig.observe(agent.id).services}


def test_named_services_stay_as_the_agent_named_them() -> None:
    rig = Rig()
    named = (NodeService("default", 8888),)
    agent = Agent(rig, services=named).bring_up()
    rig.configure(services=(offered(), offered("echo", 9000)))
    assert rig.observe(agent.id).services == named


def test_an_agent_that_does_not_say_is_prepared_for_all() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    assert modes_of(rig, agent) == {"a": (), "b": ()}


def test_what_a_node_is_prepared_for_is_in_the_view_until_it_says_otherwise() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    rig.view_changes = 0
    beat_prepared(agent, A_IN_L3)
    said = {"a": (Mode.L2, Mode.L3, Mode.L4), "b": (Mode.L4,)}
    assert modes_of(rig, agent) == said
    assert rig.view_changes == 1
    agent.beat()
    beat_prepared(agent, A_IN_L3)
    agent.connect()
    agent.hello()
    agent.beat()
    assert modes_of(rig, agent) == said
    assert rig.view_changes == 1
    beat_prepared(agent, ())
    assert modes_of(rig, agent) == {"a": (Mode.L4,), "b": (Mode.L4,)}
    assert rig.view_changes == 2


def test_the_first_beat_of_a_new_agent_decides() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    beat_prepared(agent, ())
    agent.restart()
    assert modes_of(rig, agent)["a"] == (Mode.L4,)
    agent.beat()
    assert modes_of(rig, agent)["a"] == (), "an older agent, which does not say"


def test_a_service_that_is_offered_later_is_prepared_when_its_node_says_so() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    beat_prepared(agent, A_IN_L3)
    rig.configure(services=(offered("a", 1), offered("b", 2)))
    assert modes_of(rig, agent) == {"a": (Mode.L2, Mode.L3, Mode.L4), "b": (Mode.L4,)}


def test_named_services_have_their_modes_and_ports() -> None:
    rig = Rig(TWO)
    agent = Agent(rig, services=(NodeService("b", 22), NodeService("a", 11))).bring_up()
    beat_prepared(agent, A_IN_L3)
    assert rig.observe(agent.id).services == (
        NodeService("b", 22, (Mode.L4,)),
        NodeService("a", 11, (Mode.L2, Mode.L3, Mode.L4)),
    )


def test_modes_survive_a_restart_until_the_agent_speaks() -> None:
    rig = Rig(TWO)
    speaks, mute = Agent(rig, "speaks").bring_up(), Agent(rig, "mute").bring_up()
    beat_prepared(speaks, A_IN_L3)
    rig.restart()
    assert modes_of(rig, speaks) == {"a": (Mode.L2, Mode.L3, Mode.L4), "b": (Mode.L4,)}
    assert modes_of(rig, mute) == {"a": (), "b": ()}
    for agent in (speaks, mute):
        agent.connect()
        agent.hello()
    beat_prepared(speaks, ())
    mute.beat()
    assert modes_of(rig, speaks) == {"a": (Mode.L4,), "b": (Mode.L4,)}
    assert modes_of(rig, mute) == {"a": (), "b": ()}


@pytest.mark.parametrize(
    "prepared",
    [
        (Prepared((Mode.L3,), ("",)),),
        (Prepared((Mode.L3,), ("a b",)),),
        (Prepared((Mode.L3,), tuple(f"s{i}" for i in range(1_001))),),
        tuple(Prepared((Mode.L3,), (f"s{i}",)) for i in range(1_001)),
    ],
)
def test_what_cannot_be_prepared_is_refused(prepared: tuple[Prepared, ...]) -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    beat_prepared(agent, prepared)
    assert rig.registry.checks(rig.now_ms).rejected == {"bad_heartbeat": 1}
    assert modes_of(rig, agent) == {"default": ()}


# ----------------------------------------------------------------- those that stand apart


def states(agent: Agent) -> tuple[NodeState, NodeState, NodeState]:
    """Of the node, of service a, of service b."""
    return agent.state, agent.state_at("a"), agent.state_at("b")


def recover(agent: Agent, *sick: str) -> None:
    """As many beats as a probation takes."""
    for _ in range(agent.rig.policy.checks_before_routing):
        agent.rig.now_ms += PROBATION_MS
        agent.say_sick(*sick)


def test_one_sick_service_is_down_and_the_other_is_not() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    assert states(agent) == (UP, UP, DOWN)
    (apart,) = rig.observe(agent.id).apart
    assert apart.reason == "not serving: port 2: connection refused"
    topic, event = rig.events[-1]
    assert (topic, event.service, event.state, event.previous) == (Topic.NODE_DOWN, "b", DOWN, UP)
    assert (event.id, event.fails, event.reason) == (agent.id, 1, apart.reason)
    assert rig.observe(agent.id).fails == 0, "the node as a whole has not failed"


def test_it_is_on_probation_when_it_is_served_again_and_beats_come_faster() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    rig.now_ms += PROBATION_MS
    agent.say_sick()
    assert states(agent) == (UP, UP, PROBATION)
    assert agent.messages()[-1].interval_ms == PROBATION_MS  # type: ignore[union-attr]
    recover(agent)
    assert states(agent) == (UP, UP, UP)
    assert agent.messages()[-1].interval_ms == INTERVAL_MS  # type: ignore[union-attr]
    assert [(topic, event.service) for topic, event in rig.events[-2:]] == [
        (Topic.NODE_DOWN, "b"),
        (Topic.NODE_UP, "b"),
    ]


def test_checks_in_a_row_begin_anew_with_each_bad_one_and_haste_earns_nothing() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    for _ in range(2):
        rig.now_ms += PROBATION_MS
        agent.say_sick()
    agent.say_sick("b")
    assert states(agent) == (UP, UP, DOWN)
    for _ in range(2):
        rig.now_ms += PROBATION_MS
        agent.say_sick()
    assert states(agent) == (UP, UP, PROBATION)
    for _ in range(10):
        agent.say_sick()
    assert states(agent) == (UP, UP, PROBATION)


def test_beats_without_a_word_of_it_mean_that_all_is_as_it_was_said() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    for _ in range(5):
        rig.now_ms += PROBATION_MS
        agent.beat(NOT_SERVING)
    assert states(agent) == (UP, UP, DOWN)


def test_a_node_of_which_all_services_are_sick_is_down_itself() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    agent.say_sick("a", "b")
    assert states(agent) == (DOWN, DOWN, DOWN)
    assert rig.observe(agent.id).fails == 1
    recover(agent, "b")
    assert states(agent) == (UP, UP, DOWN)
    recover(agent)
    assert states(agent) == (UP, UP, UP)


def test_not_serving_without_names_is_said_of_all() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING, "stopped by the operator")
    assert states(agent) == (DOWN, DOWN, DOWN)


def test_a_service_that_this_lb_does_not_have_is_nobodys_business() -> None:
    rig = Rig(TWO)
    named = (NodeService("a", 1), NodeService("ghost", 3))
    agent = Agent(rig, services=named).bring_up()
    agent.say_sick("ghost")
    assert agent.state_at("a") is UP
    agent.say_sick("a")
    assert agent.state is DOWN, "there is nothing else that it serves here"


def test_a_node_joins_without_the_service_that_is_sick() -> None:
    rig = Rig(TWO)
    agent = Agent(rig)
    agent.hello()
    recover(agent, "b")
    assert states(agent) == (UP, UP, DOWN)
    assert rig.topics(agent.id) == [Topic.NODE_JOINED, Topic.NODE_UP], "b never was up"


def test_one_check_may_be_enough_and_a_sick_service_is_still_left_out() -> None:
    rig = Rig(replace(TWO, checks_before_routing=1))
    agent = Agent(rig)
    agent.hello()
    agent.say_sick("b")
    assert states(agent) == (UP, UP, DOWN)
    assert rig.topics(agent.id) == [Topic.NODE_JOINED, Topic.NODE_UP]


def test_a_draining_node_drains_without_the_service_that_is_sick() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    agent.beat(SHUTTING_DOWN)
    assert states(agent) == (DRAINING, DRAINING, DOWN)


def test_an_added_service_is_routed_to_when_it_has_been_checked() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.configure(services=(offered(), offered("b", 2)))
    assert (agent.state, agent.state_at("default"), agent.state_at("b")) == (UP, UP, PROBATION)
    agent.say_sick("b", reason="not checked yet")
    assert (agent.state_at("default"), agent.state_at("b")) == (UP, DOWN)
    recover(agent)
    assert (agent.state_at("default"), agent.state_at("b")) == (UP, UP)
    rig.configure(services=(offered(),))
    assert rig.observe(agent.id).apart == ()


def test_a_service_that_fails_again_and_again_is_banned_alone() -> None:
    rig = Rig(TWO)
    agent, other = Agent(rig).bring_up(), Agent(rig, "node-1", "10.81.0.21").bring_up()
    for _ in range(3):
        agent.say_sick("b")
        recover(agent)
        other.beat()
    assert states(agent) == (UP, UP, BANNED)
    assert rig.events[-1][0] is Topic.NODE_BANNED
    assert (rig.events[-1][1].service, rig.events[-1][1].banned_for_ms) == ("b", 60_000)
    left_ms = [
        rig.registry.view(rig.now_ms + ms).nodes[0].apart[0].banned_for_ms for ms in (0, 20_000)
    ]
    assert 59_000 < left_ms[0] == left_ms[1] + 20_000
    for _ in range(3):
        other.say_sick("b")
        recover(other)
        agent.beat()
    assert states(other) == (UP, UP, UP), "of two nodes no more than one is banned"
    rig.wait(60_000, beating=[agent, other])
    recover(agent)
    assert states(agent) == (UP, UP, UP)
    assert Topic.NODE_PARDONED in rig.topics(agent.id)


def test_failures_of_a_service_fade_while_it_serves() -> None:
    rig = Rig(replace(TWO, black_list_after_fails=2))
    agents = [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(2)]
    for _ in range(3):
        agents[0].say_sick("b")
        recover(agents[0])
        rig.wait(60_000, beating=agents)
    assert states(agents[0]) == (UP, UP, UP)
    assert Topic.NODE_BANNED not in rig.topics(agents[0].id)


def test_a_silent_node_takes_all_its_services_with_it() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    rig.wait(2 * TIMEOUT_MS)
    assert states(agent) == (DOWN, DOWN, DOWN)
    recover(agent)
    assert states(agent) == (UP, UP, UP)


def test_a_restart_forgets_neither_the_sick_service_nor_its_ban() -> None:
    rig = Rig(replace(TWO, black_list_after_fails=2))
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    rig.restart()
    assert states(agent) == (UP, UP, DOWN)
    agent.connect()
    agent.hello()
    recover(agent)
    agent.say_sick("b")
    assert states(agent) == (UP, UP, BANNED)
    rig.restart()
    assert states(agent) == (UP, UP, BANNED)
    agent.connect()
    agent.hello()
    recover(agent)
    assert states(agent) == (UP, UP, BANNED)
    rig.wait(60_000, beating=[agent])
    recover(agent)
    assert states(agent) == (UP, UP, UP)


def test_an_agent_that_starts_anew_is_asked_anew() -> None:
    rig = Rig(TWO)
    agent = Agent(rig).bring_up()
    agent.say_sick("b")
    agent.restart()
    for _ in range(3):
        rig.now_ms += PROBATION_MS
        agent.beat()
    assert states(agent) == (UP, UP, UP), "one that names no service means all by what it says"


def test_bans_of_one_service_count_among_those_of_which_half_may_be_banned() -> None:
    rig = Rig(TWO)
    agents = [Agent(rig, f"n{i}", f"10.81.1.{i}").bring_up() for i in range(3)]
    for failing in agents[:2]:
        for _ in range(3):
            failing.say_sick("b")
            rig.wait(2 * rig.policy.checks_timeout_ms, beating=agents)
            recover(failing)
            for agent in agents:
                agent.beat()
    assert [agent.state_at("b") for agent in agents] == [BANNED, UP, UP]
    assert [agent.state for agent in agents] == [UP, UP, UP]
