"""What only a leader does, and what comes of it where an LB does not lead."""

from __future__ import annotations

import pytest

from bus.orders import Asked, OrderKind
from bus.peer_protocol import Ack, Beat, Go, MemberAsked, OrderAsked, Release, Version
from bus.states import NodeTable
from bus.words import MemberChange, Role
from services.quorum.desks import Desks
from services.quorum.grants import Grants
from services.quorum.leading import Leading
from services.quorum.opening import Opening
from services.quorum.proposal import Proposer
from services.quorum.reports import OwnView, Reports
from services.quorum.seen import Seen
from services.quorum.staged import Staging
from tests.quorum.cluster import OLD, VIP
from tests.quorum.rig import Rig, rig, table_of

DRAIN = Asked("n@10.0.0.1", OrderKind.DRAIN, "me", "")


class Leader:
    """A rig of three LBs, and what leads in it."""

    def __init__(self) -> None:
        self.made: Rig = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
        made = self.made
        self.accepted: list[NodeTable] = []
        reports = Reports(OwnView("lb-0", alone=False), 2_000)
        self.grants = Grants("b", made.roster, made.election, made.register, made.outbox)
        staging = Staging(OLD, None, alone=False, witness=False)
        self.desks = Desks("lb-0", made.outbox)
        seen = Seen(made.roster, made.election, made.register, staging, reports, 0)
        proposer = Proposer(
            7,
            1_000,
            Opening(1_000),
            made.roster,
            made.election,
            made.register,
            reports,
            self.grants,
            staging,
            self.desks,
            0,
        )
        self.leading = Leading(
            self.accept,
            made.roster,
            made.election,
            made.register,
            reports,
            self.grants,
            self.desks,
            proposer,
            seen,
            made.outbox,
            0,
        )

    def accept(self, table: NodeTable, _now_ms: int) -> None:
        self.accepted.append(table)

    def waiting(self) -> int:
        return len(self.desks.orders.waiting.items()) + len(self.desks.changes.waiting.items())


def test_who_does_not_lead_takes_no_orders_and_sends_nothing() -> None:
    one = Leader()
    one.leading.asked_for_order("lb-1", OrderAsked("lb-1", "1", DRAIN), 5)
    one.leading.asked_for_member("lb-1", MemberAsked("lb-1", "2", MemberChange.ADD, "lb-9"), 5)
    one.leading.propose(5)
    one.leading.send_beats(5)
    one.leading.members_changed({"lb-9": ""}, 5)
    assert (one.waiting(), one.accepted, one.made.sent()) == (0, [], [])
    assert not one.leading.parting
    assert one.leading.next_due_ms() is None


def test_a_leader_takes_them_and_proposes_what_it_makes_of_them() -> None:
    one = Leader()
    one.made.lead()
    one.leading.propose(1)
    one.made.register.accepted = one.made.register.committed
    one.leading.asked_for_member("lb-1", MemberAsked("lb-1", "2", MemberChange.REMOVE, "lb-2"), 5)
    one.made.answer("lb-1", "lb-2", now_ms=120)
    one.leading.propose(130)
    assert len(one.accepted[-1].members) == 2
    assert one.leading.next_due_ms() == 130, "and all are to hear of it"


def test_who_begins_to_lead_forgets_what_it_knew_and_beats_at_once() -> None:
    one = Leader()
    one.made.register.held["lb-1"] = Version(1, 1)
    one.made.lead()
    one.leading.begin(40, 200)
    assert one.made.register.held == {}
    assert not one.grants.is_free(VIP, 239)
    assert one.grants.is_free(VIP, 240)
    assert one.leading.next_due_ms() == 200
    one.leading.send_beats(200)
    assert [to for to, message in one.made.sent() if isinstance(message, Beat)] == ["lb-1", "lb-2"]


def test_who_was_removed_is_beaten_to_and_only_what_it_releases_counts() -> None:
    one = Leader()
    one.made.lead()
    (ack,) = one.made.answer("lb-2", now_ms=1)
    one.grants.granted.grant(VIP, ack, 900)
    one.made.register.accept(table_of("lb-0", "lb-1", epoch=2), 5)
    one.leading.members_changed(one.made.roster.go_by_newest(5), 5)
    assert one.leading.parting == ("lb-2",)
    one.leading.send_beats(5)
    assert [to for to, message in one.made.sent() if isinstance(message, Beat)] == ["lb-1", "lb-2"]
    one.leading.hear_parting("lb-2", Ack("lb-2", 1, 2, Version(1, 2), "b", 2, (), 5))
    assert one.made.register.held == {}
    one.leading.hear_parting("lb-2", Release("lb-2", "b", 1, VIP))
    assert one.grants.is_free(VIP, 10)
    one.leading.end()
    assert not one.leading.parting


def test_a_leader_resigns_for_one_that_has_its_table_and_may_hold() -> None:
    one = Leader()
    with pytest.raises(ValueError, match="no other member could lead"):
        one.leading.hand_over(5)
    one.made.lead()
    one.made.roster.others["lb-2"].accepted = Version(0, 9)
    assert one.leading.hand_over(5) == "lb-1"
    assert one.made.election.role is Role.FOLLOWER
    assert [(to, type(message)) for to, message in one.made.sent()] == [("lb-1", Go)]
