"""What operators ask for: passed on, and answered where it was asked."""

from __future__ import annotations

from bus.orders import Asked, OrderKind
from bus.peer_protocol import MemberAsked, OrderAnswered, OrderAsked
from bus.words import MemberChange
from services.quorum.desks import Desks
from services.quorum.durable import Outbox
from services.quorum.membership import Wish
from services.quorum.waiting import RESEND_MS, WAIT_MS, Answer
from tests.quorum.rig import table_of

DRAIN = Asked("n@10.0.0.1", OrderKind.DRAIN, "me", "")
ADD = Wish(MemberChange.ADD, "lb-1")


def desks() -> tuple[Desks, Outbox]:
    outbox = Outbox()
    return Desks("lb-0", outbox), outbox


def test_both_kinds_go_to_the_leader_and_again_until_they_are_answered() -> None:
    made, outbox = desks()
    made.order("1", DRAIN, None, 0)
    made.change("2", ADD, None, 0)
    made.pass_on(None, 0)
    assert outbox.take(0) == (), "nobody leads, or this LB does"
    for now_ms in (0, RESEND_MS):
        made.pass_on("lb-9", now_ms)
        sent = [(each.to, each.message) for each in outbox.take(0)]
        assert sent == [
            ("lb-9", OrderAsked("lb-0", "1", DRAIN)),
            ("lb-9", MemberAsked("lb-0", "2", MemberChange.ADD, "lb-1")),
        ]
        made.pass_on("lb-9", now_ms + RESEND_MS - 1)
        assert outbox.take(0) == ()
    made.answered(OrderAnswered("lb-9", "2", "no"))
    made.answered(OrderAnswered("lb-9", "1", ""))
    made.pass_on("lb-9", 2 * RESEND_MS)
    assert outbox.take(0) == ()
    assert made.take_answers() == (Answer("1", None, ""), Answer("2", None, "no"))
    assert made.take_answers() == ()


def test_whoever_passed_it_on_is_answered_and_nobody_else() -> None:
    made, outbox = desks()
    made.change("2", ADD, "lb-2", 0)
    made.committed(table_of("lb-0"))
    made.pass_on(None, 5)
    assert outbox.take(0) == ()
    made.committed(table_of("lb-0", "lb-1"))
    made.pass_on(None, 6)
    (sent,) = outbox.take(0)
    assert (sent.to, sent.message) == ("lb-2", OrderAnswered("lb-0", "2", ""))
    assert made.take_answers() == ()


def test_what_nobody_agrees_on_is_refused_in_time() -> None:
    made, _ = desks()
    assert made.next_due_ms(passes_on=True) is None
    made.order("1", DRAIN, None, 10)
    assert made.next_due_ms(passes_on=True) == 10 + WAIT_MS
    made.pass_on("lb-9", 10)
    assert made.next_due_ms(passes_on=True) == 10 + RESEND_MS
    assert made.next_due_ms(passes_on=False) == 10 + WAIT_MS
    made.tick(10 + WAIT_MS)
    made.pass_on(None, 10 + WAIT_MS)
    (answer,) = made.take_answers()
    assert "have not agreed" in answer.refusal
