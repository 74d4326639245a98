"""What a node says, and how often it fails, and what becomes of it: checks, failures, bans."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.node_protocol import Refused, Welcome
from bus.topics import Topic
from bus.words import NodeState
from services.health.standing import (
    BANNED,
    DOWN,
    DRAINING,
    PROBATION,
    SUSPECT,
    TRANSITIONS,
    UP,
    IllegalTransitionError,
    Standing,
)
from tests.health.parts import DNS, WEB, Parts, make_node
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
)

# ----------------------------------------------------------------- the road to UP


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


# ----------------------------------------------------------------- the roads down


def test_not_serving_takes_a_node_down_at_once_and_says_why() -> None:
    rig = Rig()
    agent = Agent(rig).bring_up()
    agent.beat(NOT_SERVING, "default: port 8080: connection refused")
    seen = rig.observe(agent.id)
    assert (seen.state, seen.fails) == (DOWN, 1)
    assert seen.reason == "not serving: default: port 8080: connection refused"


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


# ----------------------------------------------------------------- the judge alone

ONCE = replace(POLICY, black_list_after_fails=1)


def test_every_step_that_the_table_lacks_raises() -> None:
    for before in NodeState:
        for after in NodeState:
            parts, node = Parts(), make_node("n", before, apart={"web": before})
            parts.add(node)
            if (before, after) in TRANSITIONS:
                parts.judge.enter(node, after, "so", START_MS)
                parts.judge.step(node, "web", after, "so", START_MS)
                assert (node.state, node.apart["web"].state) == (after, after)
                continue
            with pytest.raises(IllegalTransitionError):
                parts.judge.enter(node, after, "so", START_MS)
            with pytest.raises(IllegalTransitionError):
                parts.judge.step(node, "web", after, "so", START_MS)
            assert (node.state, node.apart["web"].state) == (before, before)


def test_a_step_is_told_to_the_bus_the_view_and_the_agent() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    parts.judge.enter(node, DOWN, "so", START_MS)
    output = parts.outbox.take()
    ((topic, event),) = output.events
    assert (topic, event.state, event.previous, event.reason) == (Topic.NODE_DOWN, DOWN, UP, "so")
    assert (output.keep, output.view_changed, parts.answered) == (True, True, [node.id])


def test_a_service_of_a_node_that_is_not_routed_to_steps_in_silence() -> None:
    parts, node = Parts(), make_node("n", DOWN, WEB, DNS, apart={"dns": UP})
    parts.add(node)
    parts.judge.step(node, "dns", DOWN, "so", START_MS)
    output = parts.outbox.take()
    assert (output.events, output.view_changed, parts.answered) == ([], True, [])


def test_the_agent_is_told_when_a_service_needs_faster_beats_and_when_no_more() -> None:
    parts, node = Parts(), make_node("n", UP, WEB, DNS, apart={"dns": DOWN})
    parts.add(node)
    parts.judge.step(node, "dns", PROBATION, "so", START_MS)
    assert parts.answered == [node.id]
    parts.judge.step(node, "dns", UP, "so", START_MS)
    assert parts.answered == [node.id] * 2
    parts.judge.step(node, "dns", DOWN, "so", START_MS)
    assert parts.answered == [node.id] * 2


def test_what_does_not_count_is_no_failure() -> None:
    parts = Parts(ONCE)
    nodes = [make_node(f"n{i}", UP, WEB) for i in range(9)]
    parts.add(*nodes)
    parts.judge.take_down(nodes[0], "so", START_MS, counts=False)
    nodes[1].heard = False
    parts.judge.take_down(nodes[1], "so", START_MS)
    nodes[2].state = DRAINING
    parts.judge.take_down(nodes[2], "so", START_MS)
    assert [(node.state, node.fails) for node in nodes[:3]] == [(DOWN, 0)] * 3
    parts.judge.take_down(nodes[3], "so", START_MS)
    assert (nodes[3].state, nodes[3].fails) == (BANNED, 1)
    assert nodes[3].ban_until_ms == START_MS + EXPIRY_MS


def test_a_failure_of_a_service_is_none_of_the_node_nor_the_other_way_round() -> None:
    parts = Parts(ONCE)
    nodes = [make_node(f"n{i}", UP, WEB, DNS, apart={"dns": UP}) for i in range(5)]
    parts.add(*nodes)
    parts.judge.take_service_down(nodes[0], "dns", "so", START_MS)
    assert (nodes[0].state, nodes[0].fails) == (UP, 0)
    standing = nodes[0].apart["dns"]
    assert (standing.state, standing.fails) == (BANNED, 1)
    assert standing.ban_until_ms == START_MS + EXPIRY_MS
    parts.judge.take_down(nodes[1], "so", START_MS)
    assert (nodes[1].state, nodes[1].fails) == (BANNED, 1)
    assert (nodes[1].apart["dns"].state, nodes[1].apart["dns"].fails) == (UP, 0)


def test_a_pardon_ends_all_bans_of_the_node_and_forgets_all_its_failures() -> None:
    parts = Parts()
    node = make_node("n", BANNED, WEB, DNS, apart={"dns": BANNED, "web": UP})
    node.fails = node.apart["web"].fails = node.apart["dns"].fails = 3
    parts.add(node)
    parts.judge.pardon(node, 8, "pardoned by ada", START_MS)
    assert (node.state, node.fails) == (DOWN, 0)
    apart = {name: (each.state, each.fails) for name, each in node.apart.items()}
    assert apart == {"dns": (DOWN, 0), "web": (UP, 0)}
    assert node.reason == "pardoned by ada"
    node.fails = 1
    parts.judge.pardon(node, 8, "pardoned by ada", START_MS)
    assert node.fails == 1, "that one has been carried out"
    parts.judge.pardon(node, 9, "pardoned by ada", START_MS)
    assert node.fails == 0


def test_a_ban_that_the_others_impose_is_told_to_the_agent_and_is_no_event() -> None:
    parts, node = Parts(), make_node("n")
    node.passed = 5
    parts.add(node)
    parts.judge.impose_ban(node, 4, START_MS + 500, START_MS)
    assert (node.state, node.fails, node.passed) == (BANNED, 4, 0)
    output = parts.outbox.take()
    assert (output.events, output.keep, parts.answered) == ([], True, [node.id])
    assert parts.deadlines.next_due_ms() == START_MS + 500


def test_a_node_that_is_held_is_up_until_a_step_or_a_good_check_ends_it() -> None:
    parts, node = Parts(), make_node("n")
    parts.add(node)
    parts.judge.hold(node, "held for now", START_MS)
    assert (node.state, node.held, node.reason) == (UP, True, "held for now")
    output = parts.outbox.take()
    assert (output.view_changed, output.keep, output.events) == (True, False, [])
    parts.judge.hold(node, "held by more", START_MS)
    assert (node.reason, parts.outbox.take().view_changed) == ("held for now", False)
    parts.judge.good_check(node, START_MS, START_MS)
    assert (node.held, node.reason, parts.outbox.take().view_changed) == (
        False, "heard again", True,
    )  # fmt: skip
    parts.judge.hold(node, "held for now", START_MS)
    parts.judge.missed(node, START_MS + 9, counts=False)
    assert (node.state, node.held, node.reason) == (DOWN, False, "no heartbeat for 9 ms")


def test_silence_is_one_bad_check_however_long_it_is_suspected() -> None:
    parts, node = Parts(), make_node("n", UP, WEB, DNS)
    parts.add(node)
    for _ in range(3):
        parts.judge.suspect(node, "too few others serve web", START_MS + 9)
    assert (node.state, node.bad_total) == (SUSPECT, 1)
    assert node.reason == "no heartbeat for 9 ms; too few others serve web"
    node.apart["dns"] = Standing(UP, "", START_MS, fails=1, passed=3)
    parts.judge.spare_service(node, "dns", START_MS + 9)
    spared = node.apart["dns"]
    assert (spared.state, spared.fails, spared.passed) == (DOWN, 1, 0), "to be checked anew"
    assert node.taken() == ["web"]
    parts.judge.missed(node, START_MS + 10, counts=True)
    assert (node.state, node.bad_total, node.fails) == (DOWN, 2, 0), "from UP alone it is a failure"
