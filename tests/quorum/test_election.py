"""Whom an LB elects and when, where leases and promises of before are still about."""

from __future__ import annotations

import pytest

from bus.peer_protocol import Ack, Version, Vote, VoteReply
from bus.words import Role
from tests.quorum.cluster import VIP, led


def test_whoever_was_chosen_waits_for_the_leases_of_a_slower_leader() -> None:
    """The leader before has seen many changes, so its leases are longer than the successor's."""
    made = led("lb-0", "lb-1", "lb-2")
    before = made.leader()
    assert before is not None
    old = made.cores[before]
    old._election._slow_down(8, made.now_ms)
    made.run(1_000)
    left_ms = old.lease_ms(made.now_ms)
    old._grants.granted.grant(
        VIP, Ack("lb-1", 1, 1, Version(1, 1), "x", 1, (), 0), made.now_ms + left_ms
    )
    old.hand_over(made.now_ms)
    made.settle()
    after = made.leader()
    assert after not in (None, before)
    new = made.cores[after or ""]
    assert left_ms > 4 * new._election.timing.lease_ms
    assert not new._grants.granted.is_free(VIP, made.now_ms + left_ms - 1)
    assert new._grants.granted.is_free(VIP, made.now_ms + left_ms)


def test_slower_timing_is_used_once_a_start_would_find_it_on_the_disk() -> None:
    """An LB that led by it, and starts again, waits for as long as it may have granted."""
    made = led("lb-0", "lb-1", "lb-2")
    leader = made.leader()
    assert leader is not None
    core, election = made.cores[leader], made.cores[leader]._election
    assert election.promise_ms == election.timing.promise_ms, "its vote has stored it"
    usual_ms = election.timing.promise_ms
    election._slow_down(4, made.now_ms)
    assert election.timing.promise_ms == usual_ms
    ready = core.take(made.now_ms)
    assert ready is not None
    assert ready.persist is not None
    assert ready.persist.state.promise_ms == 4 * usual_ms
    assert election.timing.promise_ms == usual_ms
    core.stored(ready.persist.mark, made.now_ms)
    assert election.timing.promise_ms == 4 * usual_ms
    election._slow_down(1, made.now_ms)
    assert election.timing.promise_ms == usual_ms, "less than is on record needs no new one"
    assert election.promise_ms == 4 * usual_ms, "what was granted may still last"


@pytest.mark.parametrize("how", ["hands over", "hears of a larger term", "its disk hangs"])
def test_who_led_elects_nobody_while_what_it_granted_lasts(how: str) -> None:
    """The third LB has not heard the leader for long, and its promise is over."""
    made = led("lb-0", "lb-1", "lb-2")
    before = made.leader()
    assert before is not None
    old, term = made.cores[before], made.cores[before].term
    third = next(name for name in made.cores if name != before)
    lease_ms, now_ms = old.lease_ms(made.now_ms), made.now_ms
    if how == "hands over":
        old.hand_over(now_ms)
    elif how == "hears of a larger term":
        old.receive(third, Ack(third, term + 1, 1, Version(term, 1), "b", 1, (), 0), now_ms)
    else:
        old._election.stall(now_ms)
    assert old.role is Role.FOLLOWER
    assert lease_ms > 0
    question = Vote(third, term + 2, Version(term, 100), None)
    for at_ms, votes in ((now_ms + lease_ms - 1, False), (now_ms + lease_ms, True)):
        old._election.outbox.clear()
        old._election.asked_for_vote(third, question, at_ms)
        (reply,) = (each.message for each in old._election.outbox)
        assert isinstance(reply, VoteReply)
        assert reply.granted is votes
