"""Who is granted what, and what an LB claims by it."""

from __future__ import annotations

from dataclasses import replace

from bus.peer_protocol import Grant, Release
from services.quorum.grants import ALONE_CLAIM_MS, Grants
from services.quorum.ownership import Standing
from services.quorum.register import Dated
from services.quorum.timing import passed_on
from tests.quorum.cluster import VIP
from tests.quorum.rig import Rig, rig, table_of

LEASE_MS = 112


def grants_of(made: Rig) -> Grants:
    return Grants("b", made.roster, made.election, made.register, made.outbox)


def granted_to(made: Rig, grants: Grants, entry: str) -> tuple[str, ...]:
    (ack,) = made.answer(entry, now_ms=10)
    grants.answer(entry, ack, 20)
    return tuple(
        vip
        for to, message in made.sent()
        if isinstance(message, Grant) and to == entry
        for vip in message.vips
    )


def test_the_owner_is_granted_what_is_left_of_the_leaders_lease() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2", owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    assert grants.new_claims(5) is None, "it owns none itself"
    assert granted_to(made, grants, "lb-2") == ()
    (ack,) = made.answer("lb-1", now_ms=10, boot="x", asked=3)
    grants.answer("lb-1", ack, 20)
    assert made.sent() == [("lb-1", Grant("lb-0", 1, "x", 3, (VIP,), 10 + LEASE_MS - 20))]
    assert not grants.is_free(VIP, 10 + LEASE_MS - 1)
    assert grants.is_free(VIP, 10 + LEASE_MS)


def test_nothing_is_granted_that_is_not_agreed_in_this_term() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2", owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    table = table_of("lb-0", "lb-1", "lb-2", owner="lb-1")
    made.register.accepted = Dated(table_of("lb-0", "lb-1", "lb-2", owner="lb-2", epoch=2), 0)
    assert granted_to(made, grants, "lb-1") == (), "another owner is proposed"
    assert granted_to(made, grants, "lb-2") == (), "and not committed"
    made.register.accepted = made.register.committed = Dated(replace(table, term=0), 0)
    assert granted_to(made, grants, "lb-1") == ()


def test_nobody_is_granted_anything_who_may_not_hold_it() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2", owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    (ack,) = made.answer("lb-1", now_ms=10)
    made.roster.answered("lb-1", replace(ack, why=("it is so",)))
    grants.answer("lb-1", ack, 20)
    assert made.sent() == []


FIVE = ("lb-1", "lb-2", "lb-3", "lb-4")


def hears(made: Rig, grants: Grants, entry: str, seq: int, asked: int = 1) -> list[tuple[str, int]]:
    """At 20 the answer of that one to a beat comes; who is granted for how long after it."""
    grants.answer(entry, made.answer_beat(seq, entry, 20, asked=asked), 20)
    sent = made.sent()
    return [(to, message.left_ms) for to, message in sent if isinstance(message, Grant)]


def test_the_first_of_five_to_answer_is_granted_the_new_lease_once_a_majority_has_answered() -> (
    None
):
    made = rig(*FIVE, table=table_of("lb-0", *FIVE, owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    seq = made.election.next_beat(10)
    assert hears(made, grants, "lb-1", seq) == [("lb-1", LEASE_MS - 20)], "of the beat before"
    assert hears(made, grants, "lb-2", seq) == [("lb-1", 10 + LEASE_MS - 20)]
    assert hears(made, grants, "lb-3", seq) == [], "nothing has grown"
    assert not grants.is_free(VIP, 10 + LEASE_MS - 1)
    assert hears(made, grants, "lb-1", seq) == [("lb-1", 10 + LEASE_MS - 20)], (
        "answered all the same"
    )


def test_an_answer_to_an_older_beat_is_not_granted_again() -> None:
    made = rig(*FIVE, table=table_of("lb-0", *FIVE, owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    older, newer = made.election.next_beat(5), made.election.next_beat(10)
    hears(made, grants, "lb-1", older)
    assert hears(made, grants, "lb-2", newer) == []
    assert hears(made, grants, "lb-3", newer) == [], "the next answer of lb-1 is waited for"
    assert hears(made, grants, "lb-4", older) == [], "nor does a late one make any difference"
    assert grants.is_free(VIP, LEASE_MS), "lb-1 may be dead"


def test_what_was_released_is_not_granted_again() -> None:
    made = rig(*FIVE, table=table_of("lb-0", *FIVE, owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    seq = made.election.next_beat(10)
    assert hears(made, grants, "lb-1", seq, asked=3)
    grants.released(Release("lb-1", "b", 2, VIP))
    grants.released(Release("lb-1", "another start", 3, VIP))
    grants.released(Release("lb-2", "b", 3, VIP))
    assert hears(made, grants, "lb-2", seq), "that was another answer, another start, another LB"
    seq = made.election.next_beat(15)
    assert hears(made, grants, "lb-1", seq, asked=4)
    grants.released(Release("lb-1", "b", 4, VIP))
    assert hears(made, grants, "lb-2", seq) == []
    assert grants.is_free(VIP, 20)


def test_a_new_lead_grants_nothing_for_answers_to_the_one_before() -> None:
    made = rig(*FIVE, table=table_of("lb-0", *FIVE, owner="lb-1"))
    grants = grants_of(made)
    made.lead()
    seq = made.election.next_beat(10)
    hears(made, grants, "lb-1", seq)
    grants.begin_to_lead(20, 0)
    assert hears(made, grants, "lb-2", seq) == []
    assert grants.is_free(VIP, 20)


def test_a_holder_claims_from_when_it_asked_until_it_gives_up_and_says_so() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    grants = grants_of(made)
    made.election.leader = "lb-1"
    made.roster.hear("lb-1", "lb-1", 0)
    asked = grants.held.ask(30)
    grants.take(Grant("lb-1", 2, "b", asked, (VIP,), 100))
    assert grants.new_claims(40) is None, "of another term"
    grants.take(Grant("lb-1", 1, "b", asked, (VIP,), 100))
    assert grants.new_claims(40) == {VIP: 30 + passed_on(100)}
    assert grants.new_claims(41) is None, "as the shell knows"
    grants.give_up(50)
    assert grants.new_claims(50) == {}
    assert made.sent() == [("lb-1", Release("lb-0", "b", asked, VIP))]


def test_the_leader_claims_its_own_under_its_lease_and_only_if_it_may() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1", owner="lb-0"))
    grants = grants_of(made)
    made.lead()
    assert grants.new_claims(5) == {VIP: LEASE_MS}
    made.roster.own.standing = Standing(eligible=False, fitness=0)
    assert grants.new_claims(6) == {}
    assert grants.next_due_ms() is None, "beats wake it"


def test_whoever_was_chosen_grants_nothing_of_what_the_one_before_may_have_granted() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    grants = grants_of(made)
    grants.begin_to_lead(100, 50)
    assert not grants.is_free(VIP, 149)
    assert grants.is_free(VIP, 150)


def test_one_alone_claims_far_ahead_and_renews_at_half() -> None:
    made = rig(table=table_of("lb-0", owner="lb-0"))
    grants = grants_of(made)
    made.lead()
    assert grants.next_due_ms() is None
    assert grants.new_claims(100) == {VIP: 100 + ALONE_CLAIM_MS}
    due_ms = grants.next_due_ms()
    assert due_ms == 100 + ALONE_CLAIM_MS // 2
    assert grants.new_claims(due_ms - 1) is None
    assert grants.new_claims(due_ms) == {VIP: due_ms + ALONE_CLAIM_MS}
