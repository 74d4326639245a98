"""Every transition of the registry, and every rule beside them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.node_protocol import (
    Heartbeat,
    Hello,
    Prepared,
    Refused,
    Welcome,
    encode_node,
)
from bus.states import (
    Ban,
    NodeService,
    NodeTable,
    TableNode,
    TableService,
)
from bus.topics import Topic
from bus.words import (
    Affinity,
    Mode,
    NodeState,
    Protocol,
)
from services.health import registry as registry_module
from services.health.registry import (
    FORGET_MS,
    MOST_NODES_OF_ADDRESS,
    STRANGER_MS,
    Registry,
)
from services.health.standing import TRANSITIONS, IllegalTransitionError
from tests.health.rig import (
    INTERVAL_MS,
    NOT_SERVING,
    POLICY,
    PROBATION_MS,
    SERVING,
    SHUTTING_DOWN,
    START_MS,
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


def three_up(rig: Rig) -> list[Agent]:
    return [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(3)]


# ----------------------------------------------------------------- the road to UP


def test_a_hello_puts_a_node_on_probation_and_is_welcomed_with_what_it_must_know() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    assert agent.state is PROBATION
    assert rig.topics(agent.id) == [Topic.NODE_JOINED]
    assert agent.messages() == [
        Welcome("lb-0", agent.id, TIMEOUT_MS, PROBATION_MS, PROBATION, (offered(),))
    ]


def test_consecutive_good_checks_make_a_node_up_and_slow_it_down() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    for expected in (PROBATION, PROBATION, UP):
        rig.now_ms += PROBATION_MS
        agent.beat()
        assert agent.state is expected
    last = agent.messages()[-1]
    assert isinstance(last, Welcome)
    assert (last.state, last.interval_ms) == (UP, INTERVAL_MS)
    assert rig.topics(agent.id) == [Topic.NODE_JOINED, Topic.NODE_UP]


def test_one_bad_check_sets_the_count_to_nothing() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    for status in (SERVING, SERVING, NOT_SERVING, SERVING, SERVING):
        rig.now_ms += PROBATION_MS
        agent.beat(status)
    assert agent.state is PROBATION
    assert rig.observe(agent.id).checks_passed == 2
    rig.now_ms += PROBATION_MS
    agent.beat()
    assert agent.state is UP


def test_haste_earns_nothing() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    for _ in range(20):
        rig.now_ms += 1
        agent.beat()
    assert agent.state is PROBATION


def test_one_check_is_enough_where_the_configuration_says_so() -> None:
    rig = Rig(replace(POLICY, checks_before_routing=1))
    agent = Agent(rig)
    agent.hello()
    agent.beat()
    assert agent.state is UP
    agent.beat(NOT_SERVING)
    rig.now_ms += PROBATION_MS
    agent.beat()
    assert agent.state is UP
    # Through PROBATION nevertheless, which has no event of its own.
    assert rig.topics(agent.id)[1:] == [Topic.NODE_UP, Topic.NODE_DOWN, Topic.NODE_UP]


def test_silence_on_probation_is_no_failure() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN
    assert rig.observe(agent.id).fails == 0


# ----------------------------------------------------------------- the roads down


def test_a_missed_deadline_takes_a_node_down_on_the_millisecond() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS - 1)
    assert agent.state is UP
    rig.wait(1)
    assert agent.state is DOWN
    seen = rig.observe(agent.id)
    assert (seen.fails, seen.checks_passed, seen.reason) == (1, 0, "no heartbeat for 1000 ms")
    assert rig.events[-1][0] is Topic.NODE_DOWN
    assert rig.events[-1][1].previous is UP


def test_not_serving_takes_a_node_down_at_once_and_says_why() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING, "default: port 8080: connection refused")
    seen = rig.observe(agent.id)
    assert (seen.state, seen.fails) == (DOWN, 1)
    assert seen.reason == "not serving: default: port 8080: connection refused"


def test_a_node_that_beats_is_never_taken_down() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(60_000, beating=[agent])
    assert agent.state is UP
    assert rig.topics(agent.id) == [Topic.NODE_JOINED, Topic.NODE_UP]


def test_a_down_node_returns_by_probation_only() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS)
    states = []
    for _ in range(3):
        agent.beat()
        states.append(agent.state)
        rig.now_ms += PROBATION_MS
    assert states == [PROBATION, PROBATION, UP]


def test_shutting_down_drains_and_its_end_is_no_failure() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(SHUTTING_DOWN)
    assert agent.state is DRAINING
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN
    assert rig.observe(agent.id).fails == 0
    assert rig.topics(agent.id)[2:] == [Topic.NODE_DRAINING, Topic.NODE_DOWN]


def test_a_drained_node_that_stops_serving_has_not_failed() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(SHUTTING_DOWN)
    agent.beat(NOT_SERVING)
    assert agent.state is DOWN
    assert rig.observe(agent.id).fails == 0


def test_a_draining_node_that_serves_again_is_up_at_once() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(SHUTTING_DOWN)
    agent.beat()
    assert agent.state is UP


def test_shutting_down_on_probation_ends_it_without_a_failure() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    agent.beat()
    agent.beat(SHUTTING_DOWN)
    seen = rig.observe(agent.id)
    assert (seen.state, seen.fails, seen.checks_passed) == (DOWN, 0, 0)


# ----------------------------------------------------------------- restarts of the agent


@pytest.mark.parametrize("says_goodbye", [False, True])
def test_an_agent_that_restarts_within_the_timeout_keeps_its_node_up(says_goodbye: bool) -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    if says_goodbye:
        agent.beat(SHUTTING_DOWN)
    rig.wait(TIMEOUT_MS - 100)
    agent.restart()
    agent.beat()
    assert agent.state is UP
    rig.wait(10 * TIMEOUT_MS, beating=[agent])
    assert agent.state is UP
    assert Topic.NODE_DOWN not in rig.topics(agent.id)


def test_a_hello_alone_keeps_nobody_up() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS - 100)
    agent.restart()
    rig.wait(100)
    assert agent.state is DOWN


def test_a_second_agent_of_the_same_name_takes_over_once_and_for_all() -> None:
    rig = Rig()
    first = Agent(rig).bring_up()
    second = Agent(rig, boot="boot-2")
    second.hello()
    second.beat()
    first.beat()
    assert first.messages()[-1] == Refused("say hello first", 0)
    first.hello()
    refusal = first.messages()[-1]
    assert isinstance(refusal, Refused)
    assert "another agent named node-0" in refusal.reason
    rig.wait(2 * TIMEOUT_MS, beating=[second])
    assert second.state is UP


def test_the_same_agent_may_reconnect_as_often_as_it_likes() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(5):
        rig.wait(400)
        agent.connect()
        agent.hello()
        agent.beat()
        assert isinstance(agent.messages()[-1], Welcome)
    assert agent.state is UP


def test_a_connection_speaks_for_the_node_it_named_last() -> None:
    rig = Rig()
    first = Agent(rig).bring_up()
    second = Agent(rig, "node-1", connection=first.connection)
    second.hello()
    rig.sent.clear()
    rig.wait(TIMEOUT_MS)
    assert first.state is DOWN
    assert {m.node_id for _, m in rig.sent if isinstance(m, Welcome)} == {second.id}


# ----------------------------------------------------------------- silent, or only out of service


def test_a_node_that_missed_its_deadline_is_silent_until_it_is_heard() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    assert not rig.observe(agent.id).silent
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN
    assert rig.observe(agent.id).silent
    rig.view_changes = 0
    agent.beat(NOT_SERVING)
    assert (agent.state, rig.observe(agent.id).silent) == (DOWN, False)
    assert rig.view_changes == 1
    agent.beat()
    assert (agent.state, rig.observe(agent.id).silent) == (PROBATION, False)


def test_a_node_that_says_not_serving_is_silent_only_once_it_says_no_more() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(5):
        agent.beat(NOT_SERVING, "its server is down")
        rig.wait(TIMEOUT_MS - 1)
        assert not rig.observe(agent.id).silent
    before = len(rig.events)
    rig.view_changes = 0
    rig.wait(1)
    assert rig.observe(agent.id).silent
    assert rig.observe(agent.id).reason == f"no heartbeat for {TIMEOUT_MS} ms"
    assert (rig.view_changes, len(rig.events)) == (1, before), "no event: it was down before"
    assert rig.observe(agent.id).fails == 1


def test_a_node_on_probation_and_a_draining_one_fall_silent_too() -> None:
    rig = Rig()
    new, drained = Agent(rig, "new"), Agent(rig, "drained").bring_up()
    drained.beat(SHUTTING_DOWN)
    new.hello()
    rig.wait(TIMEOUT_MS)
    assert [(a.state, rig.observe(a.id).silent) for a in (new, drained)] == [(DOWN, True)] * 2


def test_an_old_beat_that_was_queued_breaks_no_silence() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    queued = [agent.make_beat(NOT_SERVING) for _ in range(2)]
    rig.wait(TIMEOUT_MS)
    assert rig.observe(agent.id).silent
    for frames in queued:
        agent.deliver(frames)
        assert rig.observe(agent.id).silent


def test_a_pause_of_this_process_makes_no_dead_node_silent() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    rig.now_ms += 10 * TIMEOUT_MS
    rig.registry.lagged(10 * TIMEOUT_MS, rig.now_ms)
    rig.tick()
    assert not rig.observe(agent.id).silent
    rig.wait(TIMEOUT_MS)
    assert rig.observe(agent.id).silent


def test_a_banned_node_is_silent_while_nothing_is_heard_of_it() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    assert (agent.state, rig.observe(agent.id).silent) == (BANNED, False)
    rig.wait(TIMEOUT_MS)
    assert (agent.state, rig.observe(agent.id).silent) == (BANNED, True)
    assert rig.observe(agent.id).reason == "banned after 1 failures"
    agent.beat()
    assert (agent.state, rig.observe(agent.id).silent) == (BANNED, False)
    rig.wait(60_000)
    assert (agent.state, rig.observe(agent.id).silent) == (DOWN, True)


def test_silence_survives_a_restart_and_is_adopted_from_the_table() -> None:
    rig = Rig()
    silent, spoke = Agent(rig, "silent").bring_up(), Agent(rig, "spoke").bring_up()
    rig.wait(TIMEOUT_MS, beating=[spoke])
    spoke.beat(NOT_SERVING)
    rig.restart()
    assert [rig.observe(agent.id).silent for agent in (silent, spoke)] == [True, False]
    dead = replace(table_node("dead", DOWN), silent=True)
    rig.registry.adopt_table(table(dead, table_node("stopped", DOWN)), rig.now_ms)
    stopped = rig.observe("stopped@10.81.0.20")
    assert (rig.observe(dead.id).silent, stopped.silent) == (True, False)


# ----------------------------------------------------------------- prepared for which modes


def beat_prepared(agent: Agent, prepared: tuple[Prepared, ...] | None) -> None:
    agent.seq += 1
    sent_ms = agent.rig.now_ms + agent.clock_offset_ms
    beat = Heartbeat(agent.seq, sent_ms, SERVING, 0.5, "", prepared)
    agent.deliver(encode_node(beat))


def modes_of(rig: Rig, agent: Agent) -> dict[str, tuple[Mode, ...]]:
    return {service.name: service.modes for service in rig.observe(agent.id).services}


TWO = replace(POLICY, services=(offered("a", 1), offered("b", 2)))
A_IN_L3 = (Prepared((Mode.L3, Mode.L2), ("a",)),)


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


# ----------------------------------------------------------------- bans


def test_too_many_failures_ban_and_the_end_of_the_ban_starts_from_nothing() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for expected in (UP, UP, BANNED):
        agent.fail_and_return()
        assert agent.state is expected
    assert rig.topics(agent.id)[-2:] == [Topic.NODE_DOWN, Topic.NODE_BANNED]
    assert rig.events[-1][1].banned_for_ms == 60_000
    rig.wait(60_000 - PROBATION_MS - 1)
    assert agent.state is BANNED
    rig.wait(1)
    seen = rig.observe(agent.id)
    assert (seen.state, seen.fails, seen.banned_for_ms) == (DOWN, 0, 0)
    assert rig.events[-1][0] is Topic.NODE_PARDONED
    assert isinstance(agent.messages()[-1], Welcome)  # which is how its agent starts again


def test_a_banned_node_is_told_how_long_and_nothing_it_says_counts() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    for _ in range(10):
        rig.wait(1000)
        agent.beat()
    assert agent.messages()[-1] == Refused("banned after 1 failures", 50_000)
    assert agent.state is BANNED
    agent.restart()
    assert agent.messages()[-1] == Refused("banned after 1 failures", 50_000)
    assert rig.observe(agent.id).banned_for_ms == 50_000


def test_minus_one_never_bans() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=-1))
    agent = Agent(rig).bring_up()
    for _ in range(50):
        agent.fail_and_return()
    seen = rig.observe(agent.id)
    assert (seen.state, seen.fails) == (UP, 50)


EXPIRY_MS = POLICY.black_list_expiry_ms


def test_failures_fade_while_a_node_serves() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(20):  # restarts of the server, each some ban's length after the other
        agent.fail_and_return()
        assert agent.state is UP
        rig.wait(EXPIRY_MS + INTERVAL_MS, beating=[agent])
        assert rig.observe(agent.id).fails == 0
    for _ in range(2):
        agent.fail_and_return()
    rig.wait(EXPIRY_MS - INTERVAL_MS, beating=[agent])
    assert rig.observe(agent.id).fails == 2, "not before the whole time is over"
    rig.wait(2 * INTERVAL_MS, beating=[agent])
    assert rig.observe(agent.id).fails == 1
    rig.wait(EXPIRY_MS, beating=[agent])
    assert rig.observe(agent.id).fails == 0
    rig.wait(3 * EXPIRY_MS, beating=[agent])
    assert rig.observe(agent.id).fails == 0, "nothing is saved up for later"
    agent.fail_and_return()
    assert rig.observe(agent.id).fails == 1


def test_failures_fade_for_time_in_up_alone() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.fail_and_return()
    agent.beat(NOT_SERVING)
    for _ in range(200):
        rig.wait(TIMEOUT_MS // 2)
        agent.beat(NOT_SERVING)
    assert rig.observe(agent.id).fails == 2


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
    rig.wait(EXPIRY_MS, beating=agents[2:])
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


def test_bans_and_failures_survive_a_restart_with_the_time_that_passed() -> None:
    rig = Rig()
    banned = Agent(rig).bring_up()
    failed_once = Agent(rig, "node-1", "10.81.0.21").bring_up()
    for _ in range(3):
        banned.fail_and_return()
    failed_once.fail_and_return()
    kept = rig.registry.kept(rig.now_ms)
    later = Rig(now_ms=5_000)  # another clock: the machine was booted in between
    later.registry.adopt(kept, 20_000, later.now_ms)
    left_ms = rig.observe(banned.id).banned_for_ms - 20_000
    assert later.observe(banned.id).banned_for_ms == left_ms
    assert later.observe(failed_once.id).fails == 1
    later.wait(left_ms)
    assert later.observe(banned.id).state is DOWN


def test_a_node_that_was_kept_twice_is_one_node() -> None:
    rig = Rig()
    Agent(rig).bring_up()
    kept = rig.registry.kept(rig.now_ms)
    later = Rig()
    later.registry.adopt(kept * 2, 0, later.now_ms)
    assert len(later.registry.view(later.now_ms).nodes) == 1


def test_a_ban_that_ended_while_nobody_looked_is_over() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=1))
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING)
    kept = rig.registry.kept(rig.now_ms)
    later = Rig()
    later.registry.adopt(kept, 60_000, later.now_ms)
    seen = later.observe(agent.id)
    assert (seen.state, seen.fails) == (DOWN, 0)


# ----------------------------------------------------------------- pauses, queues, clocks


def test_beats_that_were_queued_do_not_revive_a_dead_node() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    queue = []
    for _ in range(4):
        rig.now_ms += INTERVAL_MS
        queue.append(agent.make_beat())
    rig.now_ms += 20_000  # then it dies, and nobody here has read anything
    rig.registry.lagged(22_000, rig.now_ms)
    for frames in queue:
        agent.deliver(frames)
    seen = rig.observe(agent.id)
    assert seen.observed_ms == 20_000
    rig.wait(22_000)
    assert agent.state is DOWN
    for frames in (agent.make_beat() for _ in range(2)):
        rig.now_ms += 5_000
        agent.deliver(frames)
    assert agent.state is DOWN


def test_a_pause_of_this_process_kills_no_living_node() -> None:
    rig = Rig()
    agents = three_up(rig)
    rig.wait(700, beating=agents)
    rig.now_ms += 10_000
    rig.registry.lagged(10_000, rig.now_ms)
    rig.tick()
    assert {agent.state for agent in agents} == {UP}
    rig.wait(5_000, beating=agents)
    assert {agent.state for agent in agents} == {UP}


def test_queued_beats_from_a_pause_do_not_use_up_the_extension() -> None:
    """Those that were sent before the agent lost its connection prove less than a fresh one."""
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.now_ms += 300
    queued = agent.make_beat()
    rig.now_ms += 1_700
    rig.registry.lagged(2_000, rig.now_ms)
    agent.deliver(queued)
    rig.tick()
    assert agent.state is UP
    rig.wait(1_299)
    assert agent.state is UP
    rig.wait(1)
    assert agent.state is DOWN


def test_the_extension_ends_with_the_next_beat() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.registry.lagged(10_000, rig.now_ms)
    rig.now_ms += 100
    agent.beat()
    rig.wait(TIMEOUT_MS)
    assert agent.state is DOWN


def test_the_offset_follows_clocks_that_drift_apart() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for beat in range(4 * 3600 * 2):  # four hours of a clock that is slow by 500 ppm: 7.2 s
        rig.now_ms += INTERVAL_MS
        if beat % 8 == 0:
            agent.clock_offset_ms -= 2
        agent.beat()
        rig.tick()
        assert rig.observe(agent.id).observed_ms <= 70
    assert agent.state is UP


def test_a_pause_across_windows_of_the_offset_forgets_nothing() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    queued = agent.make_beat()
    rig.now_ms += 200_000
    agent.deliver(queued)
    assert rig.observe(agent.id).observed_ms == 200_000
    rig.now_ms += 10
    agent.beat()
    assert rig.observe(agent.id).observed_ms == 0


def test_a_repeated_beat_counts_once() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    frames = agent.make_beat()
    for _ in range(5):
        agent.deliver(frames)
    assert rig.observe(agent.id).checks_passed == 1
    assert rig.registry.checks(rig.now_ms).rejected == {"repeated": 4}


# ----------------------------------------------------------------- mass silence


def test_mass_silence_is_held_for_one_more_timeout_and_then_believed() -> None:
    rig = Rig()
    agents = three_up(rig)
    rig.wait(TIMEOUT_MS + 300, beating=())
    assert {agent.state for agent in agents} == {UP}
    assert "fell silent together" in rig.observe(agents[0].id).reason
    rig.wait(TIMEOUT_MS - 300)
    assert {agent.state for agent in agents} == {DOWN}
    assert {rig.observe(agent.id).fails for agent in agents} == {0}, "that is nobody's failure"


def test_a_minority_is_taken_down_in_time() -> None:
    rig = Rig()
    dead, *living = three_up(rig)
    rig.wait(TIMEOUT_MS + INTERVAL_MS, beating=living)
    assert dead.state is DOWN
    assert {agent.state for agent in living} == {UP}


def test_two_of_five_are_a_minority() -> None:
    rig = Rig()
    agents = [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(5)]
    for agent in agents:
        agent.beat()
    rig.wait(TIMEOUT_MS + 50, beating=agents[2:])
    assert [agent.state for agent in agents] == [DOWN, DOWN, UP, UP, UP]


def test_the_hold_ends_when_the_others_are_heard() -> None:
    rig = Rig()
    dead, *living = three_up(rig)
    rig.wait(TIMEOUT_MS)
    assert dead.state is UP
    for agent in living:
        agent.beat()
    rig.wait(50)
    assert dead.state is DOWN
    assert {agent.state for agent in living} == {UP}


def test_a_held_node_that_is_heard_again_was_never_down() -> None:
    rig = Rig()
    agents = three_up(rig)
    rig.wait(TIMEOUT_MS + 500)
    for agent in agents:
        agent.beat()
    rig.wait(TIMEOUT_MS * 5, beating=agents)
    assert {agent.state for agent in agents} == {UP}
    assert rig.observe(agents[0].id).reason == "heard again"
    assert all(Topic.NODE_DOWN not in rig.topics(agent.id) for agent in agents)


def test_not_serving_is_never_held() -> None:
    rig = Rig()
    agents = three_up(rig)
    for agent in agents:
        agent.beat(NOT_SERVING)
        assert agent.state is DOWN


def test_a_service_of_one_node_has_no_mass() -> None:
    rig = Rig()
    alone = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS)
    assert alone.state is DOWN


def test_mass_silence_is_judged_by_service() -> None:
    rig = Rig(replace(POLICY, services=(offered("a", 1), offered("b", 2))))
    on_a = [Agent(rig, f"a{i}", f"10.0.0.{i}", (NodeService("a", 1),)) for i in range(2)]
    on_b = [Agent(rig, f"b{i}", f"10.0.1.{i}", (NodeService("b", 2),)) for i in range(5)]
    for agent in (*on_a, *on_b):
        agent.bring_up()
    for agent in (*on_a, *on_b):
        agent.beat()
    rig.wait(TIMEOUT_MS + 100, beating=on_b)
    assert {agent.state for agent in on_a} == {UP}  # 2 of 7 nodes, but 2 of 2 of service a
    rig.wait(TIMEOUT_MS, beating=on_b)
    assert {agent.state for agent in on_a} == {DOWN}


# ----------------------------------------------------------------- restarts of this process


def test_a_restart_adopts_and_waits_one_timeout() -> None:
    rig = Rig()
    living, dead, drained = three_up(rig)
    drained.beat(SHUTTING_DOWN)
    rig.restart()
    assert [agent.state for agent in (living, dead, drained)] == [UP, UP, DRAINING]
    rig.wait(TIMEOUT_MS - 1, beating=())
    assert [agent.state for agent in (living, dead, drained)] == [UP, UP, DRAINING]
    living.beat()
    assert living.messages()[-1] == Refused("say hello first", 0)
    living.hello()
    living.beat()
    rig.wait(TIMEOUT_MS, beating=[living])
    assert [agent.state for agent in (living, dead, drained)] == [UP, DOWN, DOWN]
    assert rig.observe(dead.id).fails == 0, "nobody saw it fail"


def test_an_adopted_node_that_drained_and_serves_again_is_up_at_once() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(SHUTTING_DOWN)
    rig.restart()
    agent.connect()
    agent.hello()
    agent.beat()
    assert agent.state is UP


def test_during_grace_a_node_that_says_not_serving_is_believed() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.restart()
    agent.connect()
    agent.hello()
    agent.beat(NOT_SERVING)
    assert agent.state is DOWN
    assert rig.observe(agent.id).fails == 1


def test_probation_does_not_survive_a_restart() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    agent.beat()
    rig.restart()
    seen = rig.observe(agent.id)
    assert (seen.state, seen.checks_passed) == (DOWN, 0)


def table(*nodes: TableNode, bans: tuple[Ban, ...] = ()) -> NodeTable:
    service = TableService("default", None, 8080, Protocol.TCP, Mode.L4, 8080, Affinity.FLOW)
    return NodeTable(1, 7, 42, (service,), nodes, bans, (), ())


def table_node(name: str, state: NodeState = UP) -> TableNode:
    services = (NodeService("default", 8080),)
    return TableNode(f"{name}@10.81.0.20", name, "10.81.0.20", state, 1, services)


def test_the_committed_table_is_adopted_where_the_state_file_says_nothing() -> None:
    rig = Rig()
    known = Agent(rig, "known").bring_up()
    known.beat(NOT_SERVING)
    rig.restart()
    committed = table(table_node("known"), table_node("unknown"))
    rig.registry.adopt_table(committed, rig.now_ms)
    assert known.state is DOWN
    assert rig.observe("unknown@10.81.0.20").state is UP
    rig.wait(TIMEOUT_MS)
    assert rig.observe("unknown@10.81.0.20").state is DOWN


def test_the_table_is_not_adopted_when_the_grace_is_over() -> None:
    rig = Rig()
    rig.wait(TIMEOUT_MS)
    rig.registry.adopt_table(table(table_node("late")), rig.now_ms)
    assert rig.registry.view(rig.now_ms).nodes == ()


def test_bans_of_the_table_are_adopted() -> None:
    rig = Rig()
    known = Agent(rig, "known").bring_up()
    rig.restart()
    bans = (Ban(known.id, 30_000, 4), Ban("stranger@10.81.0.77", 20_000, 5))
    rig.registry.adopt_table(table(table_node("known"), bans=bans), rig.now_ms)
    seen = rig.observe(known.id)
    assert (seen.state, seen.fails, seen.banned_for_ms) == (BANNED, 4, 30_000)
    stranger = Agent(rig, "stranger", "10.81.0.77")
    stranger.hello()
    assert stranger.messages() == [Refused("banned after 5 failures", 20_000)]


def test_a_ban_of_the_table_reaches_a_node_that_has_said_hello_already() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.restart()
    agent.connect()
    agent.hello()
    rig.registry.adopt_table(table(bans=(Ban(agent.id, 30_000, 4),)), rig.now_ms)
    rig.collect()
    assert agent.messages()[-1] == Refused("banned after 4 failures", 30_000)
    for _ in range(10):
        rig.now_ms += PROBATION_MS
        agent.beat()
    assert agent.state is BANNED
    assert isinstance(agent.messages()[-1], Refused), "what is listed is what it is told"
    rig.wait(30_000)
    assert agent.state is DOWN
    agent.bring_up()


def test_a_ban_of_the_table_that_is_over_bans_nobody() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.restart()
    bans = (Ban(agent.id, 0, 4), Ban("stranger@10.81.0.77", 0, 4))
    rig.registry.adopt_table(table(bans=bans), rig.now_ms)
    assert [node.id for node in rig.registry.view(rig.now_ms).nodes] == [agent.id]
    assert agent.state is UP


# ----------------------------------------------------------------- configuration


def test_a_new_configuration_is_told_to_everybody_and_takes_nobody_down() -> None:
    rig = Rig()
    agents = three_up(rig)
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


def test_named_services_stay_as_the_agent_named_them() -> None:
    rig = Rig()
    named = (NodeService("default", 8888),)
    agent = Agent(rig, services=named).bring_up()
    rig.configure(services=(offered(), offered("echo", 9000)))
    assert rig.observe(agent.id).services == named


def test_the_same_configuration_again_says_nothing() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    before = len(agent.messages())
    rig.configure()
    assert len(agent.messages()) == before


# ----------------------------------------------------------------- what comes out


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


def test_dead_nodes_are_forgotten_after_a_day() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    rig.wait(TIMEOUT_MS)
    rig.wait(FORGET_MS - TIMEOUT_MS - 1)
    assert agent.state is DOWN
    rig.wait(1)
    assert rig.registry.view(rig.now_ms).nodes == ()
    agent.beat()
    assert agent.messages()[-1] == Refused("say hello first", 0)


def test_the_heap_does_not_grow_with_time() -> None:
    rig = Rig(replace(POLICY, black_list_after_fails=-1))
    agent = Agent(rig).bring_up()
    for _ in range(200):
        rig.wait(TIMEOUT_MS)
        agent.fail_and_return()
    assert len(rig.registry._deadlines) < 100


def test_what_a_restart_must_know_is_kept_at_each_step() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for status in (NOT_SERVING, SERVING):
        before = rig.keeps
        agent.beat(status)
        assert rig.keeps == before + 1


# ----------------------------------------------------------------- the peers' faults


def test_malformed_messages_count_and_then_cut_the_connection_off() -> None:
    rig = Rig()
    bad = b"\0bad"
    for frames in ([b"hello"], [b"noise", b"{}"], [b"hello", b"{}"], [b"heartbeat", b"\xff"]):
        for _ in range(3):
            rig.raw(bad, frames)
    rejected = rig.registry.checks(rig.now_ms).rejected
    assert rejected == {"malformed": 9, "cut_off": 3}
    refusals = [message for connection, message in rig.sent if connection == bad]
    assert [type(message) for message in refusals] == [Refused]
    honest = Agent(rig).bring_up()
    assert honest.state is UP
    rig.now_ms += 60_000
    rig.raw(bad, encode_node(Hello(1, "late", "b", 1, ())))
    assert rig.observe("late@10.81.0.99").state is PROBATION


def test_a_fault_now_and_then_is_borne() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(100):
        rig.now_ms += 5_000
        rig.raw(agent.connection, [b"noise", b""])
    agent.beat()
    assert not any(isinstance(message, Refused) for message in agent.messages())


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        (Hello(2, "n", "b", 1, ()), "version"),
        (Hello(1, "", "b", 1, ()), "bad_hello"),
        (Hello(1, "a b", "b", 1, ()), "bad_hello"),
        (Hello(1, "x" * 65, "b", 1, ()), "bad_hello"),
        (Hello(1, "a@b", "b", 1, ()), "bad_hello"),
        (Hello(1, "n", "", 1, ()), "bad_hello"),
        (Hello(1, "n", "b", 0, ()), "bad_hello"),
        (Hello(1, "n", "b", 1_001, ()), "bad_hello"),
        (Hello(1, "n", "b", 1, (NodeService("s", 0),)), "malformed"),
        (Hello(1, "n", "b", 1, (NodeService("s", 65_536),)), "malformed"),
        (Hello(1, "n", "b", 1, (NodeService("s", 1),) * 1_001), "bad_hello"),
        (Welcome("lb", "n", 1, 1, UP, ()), "unexpected_kind"),
        (Refused("no", 1), "unexpected_kind"),
    ],
)
def test_what_is_well_typed_and_wrong_is_refused_by_name(
    message: Hello | Welcome | Refused, reason: str
) -> None:
    rig = Rig()
    rig.raw(b"\0x", encode_node(message))
    view = rig.registry.view(rig.now_ms)
    assert (view.nodes, rig.registry.checks(rig.now_ms).rejected) == ((), {reason: 1})


@pytest.mark.parametrize("load", [-1.0, 1e9])
def test_a_beat_that_is_wrong_is_not_a_check(load: float) -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    agent.deliver(encode_node(Heartbeat(1, 1, SERVING, load, "")))
    assert rig.observe(agent.id).checks_passed == 0
    assert rig.registry.checks(rig.now_ms).rejected == {"bad_heartbeat": 1}


@pytest.mark.parametrize(
    ("reason", "shown"),
    [
        ("two\nlines\x1b[2J\u2028and a half", "two lines [2J and a half"),
        ("x" * 201, "x" * 200),
        (" \t\n", ""),
        ("\n" * 10_000 + "late", ""),
    ],
)
def test_a_reason_that_is_no_line_is_made_one_and_is_no_fault(reason: str, shown: str) -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for _ in range(20):
        agent.beat(NOT_SERVING, reason)
    assert rig.observe(agent.id).reason == (f"not serving: {shown}" if shown else "not serving")
    assert rig.registry.checks(rig.now_ms).rejected == {}


def test_a_load_that_is_no_number_is_refused() -> None:
    rig = Rig()
    agent = Agent(rig)
    agent.hello()
    for load in (b"NaN", b"Infinity", b"1e999", b'"x"'):
        body = b'{"seq":9,"sent_ms":1,"status":"serving","load":%s,"reason":""}' % load
        agent.deliver([b"heartbeat", body])
    assert rig.observe(agent.id).checks_passed == 0


def test_there_is_an_end_to_the_names_of_one_connection() -> None:
    rig = Rig()
    honest = Agent(rig).bring_up()
    for number in range(20_000):
        rig.raw(b"\0many", encode_node(Hello(1, f"name-{number}", "b", 1, ())))
    assert len(rig.registry.view(rig.now_ms).nodes) < 12
    rejected = rig.registry.checks(rig.now_ms).rejected
    assert rejected["another_name"] == 9
    assert rejected["cut_off"] > 19_900
    rig.wait(STRANGER_MS + 1, beating=[honest])
    assert [node.id for node in rig.registry.view(rig.now_ms).nodes] == [honest.id]
    assert honest.state is UP


def test_an_agent_may_be_renamed_now_and_then() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    for number in range(20):
        rig.now_ms += 2_000
        renamed = Agent(rig, f"name-{number}", connection=agent.connection)
        renamed.hello()
        renamed.beat()
        assert isinstance(renamed.messages()[-1], Welcome)


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


def test_who_was_never_up_is_forgotten_soon_and_who_was_is_not() -> None:
    rig = Rig()
    known, stranger = Agent(rig).bring_up(), Agent(rig, "stranger")
    stranger.hello()
    refusing = Agent(rig, "refusing", "10.81.0.22")
    refusing.hello()
    for _ in range(5 * STRANGER_MS // INTERVAL_MS):
        refusing.beat(NOT_SERVING)
        rig.wait(INTERVAL_MS)
    there = {node.id for node in rig.registry.view(rig.now_ms).nodes}
    assert there == {known.id, refusing.id}, "one whose agent goes on to speak is there"
    rig.restart()
    rig.wait(2 * STRANGER_MS)
    assert {node.id for node in rig.registry.view(rig.now_ms).nodes} == {known.id}


def test_there_is_an_end_to_how_many_nodes_may_join(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry_module, "MAX_NODES", 2)
    rig = Rig()
    agents = [Agent(rig, f"node-{i}") for i in range(3)]
    for agent in agents:
        agent.hello()
    assert [type(agent.messages()[-1]) for agent in agents] == [Welcome, Welcome, Refused]


# ----------------------------------------------------------------- the table itself


def test_every_step_that_the_table_lacks_raises() -> None:
    for before in NodeState:
        for after in NodeState:
            rig = Rig()
            agent = Agent(rig)
            agent.hello()
            node = rig.registry._nodes[agent.id]
            node.state = before
            if (before, after) in TRANSITIONS:
                rig.registry._enter(node, after, "", rig.now_ms)
            else:
                with pytest.raises(IllegalTransitionError):
                    rig.registry._enter(node, after, "", rig.now_ms)


def test_an_empty_registry_waits_for_nothing() -> None:
    registry = Registry(POLICY, START_MS)
    registry.tick(START_MS + 1_000_000)
    assert registry.next_due_ms() is None


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
