"""Whom an LB elects and when, where leases and promises of before are still about."""

from __future__ import annotations

import pytest

from bus.peer_protocol import Ack, Beat, PreVote, Version, Vote, VoteReply
from bus.words import Role
from services.quorum.election import Election, Outgoing
from services.quorum.register import Register
from services.quorum.timing import Timing
from tests.quorum.cluster import VIP, led
from tests.quorum.rig import Rig, rig, table_of

PROMISE_MS = 125


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


def voter() -> Rig:
    """Of three, with a table of term 1, whose last promise is over at 1,000 ms."""
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    made.election.outbox.clear()
    return made


def ask(election: Election, message: Vote, now_ms: int = 1_000) -> Outgoing:
    """What it answers."""
    election.asked_for_vote(message.sender, message, now_ms)
    (answer,) = election.outbox
    election.outbox.clear()
    return answer


def is_granted(answer: Outgoing) -> bool:
    assert isinstance(answer.message, VoteReply)
    return answer.message.granted


def test_a_vote_is_told_once_it_is_stored() -> None:
    election = voter().election
    before = election.mark
    answer = ask(election, Vote("lb-1", 2, Version(1, 1), None))
    assert is_granted(answer)
    assert answer.mark == election.mark > before
    assert (election.term, election.vote) == (2, "lb-1")


def test_nobody_is_elected_who_has_an_older_table() -> None:
    made = voter()
    made.register.accept(table_of("lb-0", "lb-1", "lb-2", epoch=2), 0)
    answer = ask(made.election, Vote("lb-1", 2, Version(1, 1), None))
    assert not is_granted(answer)
    assert isinstance(answer.message, VoteReply)
    assert answer.message.table is not None
    assert is_granted(ask(made.election, Vote("lb-2", 2, Version(1, 2), None)))


def blank() -> Election:
    """Of three, at the first start of a cluster, in the start "b" of its process."""
    election = Election("lb-0", ("lb-1", "lb-2"), Timing(), Register(), "b", lambda: 0.5, 0)
    election.restore(0, None, 0, 0, blank=True)
    return election


def test_a_blank_lb_votes_once_all_others_have_told_it_that_they_have_no_table() -> None:
    late_ms = 10_000
    election = blank()
    told = VoteReply("lb-1", 3, 1, False, "b", False, None)
    election.vote_reply("lb-1", told, late_ms)
    question = Vote("lb-1", 4, Version(0, 0), None)
    assert not is_granted(ask(election, question, late_ms)), "lb-2 has told nothing"
    of_earlier_start = VoteReply("lb-2", 2, 1, False, "a", False, None)
    election.vote_reply("lb-2", of_earlier_start, late_ms)
    assert not is_granted(ask(election, question, late_ms)), "the disk was lost since"
    election.vote_reply("lb-2", VoteReply("lb-2", 2, 1, False, "b", False, None), late_ms)
    assert not is_granted(ask(election, Vote("lb-1", 3, Version(0, 0), None), late_ms)), (
        "it may have voted in that term before"
    )
    assert is_granted(ask(election, question, late_ms))


def following(election: Election, now_ms: int) -> None:
    """It takes a beat of lb-1, which leads in term 2, and has promised it to elect nobody else."""
    election.saw_term(2, now_ms)
    beat = Beat("lb-1", 2, 1, PROMISE_MS, Version(1, 1), Version(1, 1), None, None, ())
    assert election.beat(beat, now_ms)
    election.outbox.clear()


@pytest.mark.parametrize(
    ("term", "resigned", "granted"),
    [(3, "lb-1", True), (4, "lb-1", False), (3, "lb-2", False), (3, None, False)],
)
def test_a_promise_ends_early_for_whom_the_leader_has_chosen_in_the_next_term(
    term: int, resigned: str | None, granted: bool
) -> None:
    """Whoever was chosen asks for the term after that leader's: others that name it are late."""
    election = voter().election
    following(election, 1_000)
    question = Vote("lb-2", term, Version(1, 1), resigned)
    assert is_granted(ask(election, question, 1_001)) is granted


def test_a_promise_is_kept_to_its_end() -> None:
    election = voter().election
    following(election, 1_000)
    question = PreVote("lb-2", 3, Version(1, 1), "x")
    for at_ms, granted in ((1_000 + PROMISE_MS - 1, False), (1_000 + PROMISE_MS, True)):
        election.pre_vote("lb-2", question, at_ms)
        assert is_granted(election.outbox.pop()) is granted


def test_a_lease_counts_from_when_the_beat_went() -> None:
    """When an answer comes says nothing of when the promise began."""
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    election = made.election
    election.role, election.leader = Role.LEADER, "lb-0"
    seq = election.next_beat(1_000)
    until_ms = 1_000 + election.timing.lease_ms
    for late_ms in (1, until_ms - 1_001, 5_000):
        election.ack("lb-1", Ack("lb-1", 1, seq, Version(1, 1), "b", 1, (), 0), 1_000 + late_ms)
        assert election.lease_until_ms(1_000 + late_ms) == until_ms
    assert election.has_lease(until_ms - 1)
    assert not election.has_lease(until_ms)
