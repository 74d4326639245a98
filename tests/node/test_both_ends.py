"""What the agent's core says, the registry must take: both, as they are, on one virtual clock."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bpf.syscall import VerifierError
from bus.topics import Topic
from bus.words import NodeState
from services.health.door import MOST_SESSIONS
from services.node.core import Activity
from tests.health.rig import POLICY
from tests.node.pair import LB, PLAN, Pair

DOWN, UP = NodeState.DOWN, NodeState.UP
VERIFIER = "\n".join(
    (
        "gale_unwrap: [Errno 13] bpf(PROG_LOAD): Permission denied",
        "0: (bf) r6 = r1",
        "\tR7 invalid mem access 'scalar'",
    )
)


# ----------------------------------------------------------------- reasons


def test_a_reason_of_many_lines_arrives_as_one() -> None:
    pair = Pair().bring_up()
    pair.agent.prepared(True, f"unwrapper: {VerifierError(VERIFIER)}", pair.now_ms)
    pair.run(20_000)
    assert pair.node.state is DOWN
    assert pair.node.reason.startswith("not serving: not prepared: unwrapper: gale_unwrap: [Errno")
    assert "Permission denied 0: (bf) r6 = r1 R7 invalid" in pair.node.reason
    assert (pair.rejected, pair.refusals) == ({}, [])
    # The agent's own doing: an LB may be older, and not forgive it.
    assert pair.agent.status(pair.now_ms)["reason"].isprintable()


@settings(max_examples=50)
@given(st.text(min_size=1, max_size=300))
def test_whatever_a_check_gives_as_its_reason_is_no_misbehaviour(reason: str) -> None:
    pair = Pair().bring_up()
    pair.agent.checked(PLAN, False, reason, pair.now_ms)
    pair.run(6_000)
    assert (pair.node.state, pair.rejected) == (DOWN, {})
    assert pair.node.reason.isprintable()
    pair.agent.checked(PLAN, True, "", pair.now_ms)
    pair.run(1_000)
    assert pair.node.state is UP


# ----------------------------------------------------------------- planned stops


def test_planned_restarts_of_the_agent_are_no_failures() -> None:
    pair = Pair().bring_up()
    for _ in range(2 * POLICY.black_list_after_fails):
        pair.agent.leave(pair.now_ms)
        pair.run(1_000)
        assert pair.agent.activity is Activity.ENDED
        pair.run(3_000, agent_lives=False)
        assert (pair.node.state, pair.node.fails) == (DOWN, 0)
        pair.start_agent()
        pair.run(1_000)
        assert pair.node.state is UP


@pytest.mark.parametrize("drain_ms", [0, 1, 300])
def test_a_stop_by_the_operator_is_no_failure_however_short_the_drain(drain_ms: int) -> None:
    pair = Pair().bring_up()
    for _ in range(2 * POLICY.black_list_after_fails):
        pair.agent.stop(drain_ms, pair.now_ms)
        pair.agent.tick(pair.now_ms)
        pair.deliver()
        pair.run(1_000)
        assert (pair.node.state, pair.node.fails) == (DOWN, 0)
        assert pair.topics()[-2:] == [Topic.NODE_DRAINING, Topic.NODE_DOWN]
        pair.agent.start(pair.now_ms)
        pair.agent.checked(PLAN, True, "accepts", pair.now_ms)
        pair.run(1_000)
        assert pair.node.state is UP


# ----------------------------------------------------------------- sessions


def test_an_lb_that_was_taken_out_of_the_file_and_put_back_is_heard_at_once() -> None:
    pair = Pair().bring_up()
    pair.run(60_000)
    pair.configure()
    pair.run(5_000)
    assert pair.node.state is DOWN
    pair.configure(LB)
    pair.run(500)
    assert (pair.node.state, pair.rejected) == (UP, {})


def test_an_lb_of_another_name_is_the_same_lb_and_the_node_stays_up() -> None:
    pair = Pair().bring_up()
    pair.run(60_000)
    pair.configure("lb-0.local:7070")
    pair.run(10_000)
    assert (pair.node.state, pair.rejected) == (UP, {})
    assert Topic.NODE_DOWN not in pair.topics()


def test_an_lb_that_the_file_names_twice_is_no_trouble() -> None:
    pair = Pair(lbs=(LB, "lb-0.local:7070")).bring_up()
    pair.run(120_000)
    assert (pair.node.state, pair.rejected, pair.refusals) == (UP, {}, [])
    assert Topic.NODE_DOWN not in pair.topics()
    pair.agent.checked(PLAN, False, "refused", pair.now_ms)
    pair.run(100)
    states = [session["state"] for session in pair.agent.status(pair.now_ms)["load_balancers"]]
    assert states == ["down", "down"], "both entries show where the node stands"


def test_connections_that_were_lost_unnoticed_do_not_add_up() -> None:
    pair = Pair().bring_up()
    for _ in range(50):
        pair.connect(LB)
        pair.run(100)
    assert (pair.node.state, pair.rejected) == (UP, {})
    pair.registry.configure(replace(pair.policy, lb="lb-1"), pair.now_ms)
    told = pair.registry.take_output().messages
    assert len(told) == MOST_SESSIONS, "everybody is told of it, on each connection"
