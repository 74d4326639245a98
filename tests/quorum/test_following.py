"""What a follower answers."""

from __future__ import annotations

from bus.peer_protocol import Ack, Beat, MemberSeen, Release, Version, ViewReport
from bus.states import NodeTable
from bus.words import Role
from services.quorum.following import Following
from services.quorum.grants import Grants
from services.quorum.reports import OwnView, Reports
from services.quorum.seen import Seen
from services.quorum.staged import Staging
from tests.quorum.cluster import OLD, VIP
from tests.quorum.rig import Rig, rig, table_of
from tests.quorum.views import view


class Follower:
    """A rig, and what follows in it."""

    def __init__(self) -> None:
        self.made: Rig = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
        made = self.made
        made.roster.hear("lb-1", "lb-1", 0)
        self.accepted: list[NodeTable] = []
        self.reports = Reports(OwnView("lb-0", alone=False), 2_000)
        self.grants = Grants("b", made.roster, made.election, made.register, made.outbox)
        staging = Staging(OLD, None, alone=False, witness=False)
        self.seen = Seen(made.roster, made.election, made.register, staging, self.reports, 0)
        self.following = Following(
            "b",
            self.accept,
            made.roster,
            made.election,
            made.register,
            self.reports,
            self.grants,
            staging,
            self.seen,
            made.outbox,
        )

    def accept(self, table: NodeTable, now_ms: int) -> None:
        self.accepted.append(table)
        self.made.register.accept(table, now_ms)

    def beat(self, term: int = 1, seq: int = 4, table: NodeTable | None = None) -> Beat:
        told = (MemberSeen("two", "lb-2", True, term, 1, ()),)
        return Beat("lb-1", term, seq, 125, Version(1, 2), Version(1, 2), table, None, told)

    def answers(self) -> list[Ack]:
        return [message for _, message in self.made.sent() if isinstance(message, Ack)]


def test_a_leaders_beat_is_taken_and_answered_with_what_is_stored() -> None:
    one = Follower()
    table = table_of("lb-0", "lb-1", "lb-2", epoch=2)
    assert one.following.beat("lb-1", one.beat(table=table), 10)
    assert one.accepted == [table]
    assert one.made.register.committed_version == Version(1, 2)
    (ack,) = one.answers()
    assert (ack.term, ack.seq, ack.accepted, ack.fitness) == (1, 4, Version(1, 1), 9)
    assert {each.name for each in one.seen.members(10)} == {"lb-0", "lb-1", "two"}


def test_a_beat_of_an_earlier_term_is_answered_and_counts_for_nothing() -> None:
    one = Follower()
    one.made.election.saw_term(2, 5)
    table = table_of("lb-0", "lb-1", "lb-2", epoch=2)
    assert not one.following.beat("lb-1", one.beat(table=table), 10)
    assert one.accepted == []
    (ack,) = one.answers()
    assert (ack.term, ack.seq) == (2, 4), "its sender hears of the larger term"
    one.following.answer_again(11)
    assert one.answers() == [], "there is no leader to tell"


def test_what_is_new_is_told_without_another_beat() -> None:
    one = Follower()
    one.following.answer_again(1)
    assert one.answers() == []
    one.following.beat("lb-1", one.beat(), 10)
    one.made.roster.own.why_not = ("it is so",)
    one.following.answer_again(12)
    before, after = one.answers()
    assert (before.seq, before.why) == (4, ())
    assert (after.seq, after.why) == (4, ("it is so",))
    assert after.asked > before.asked
    one.made.election.role = Role.LEADER
    one.following.answer_again(13)
    assert one.answers() == []


def test_an_answer_waits_for_its_term_to_be_stored() -> None:
    one = Follower()
    one.following.beat("lb-1", one.beat(term=2), 10)
    assert one.made.outbox.take(0) == ()
    assert [each.to for each in one.made.outbox.take(one.made.election.term_mark)] == ["lb-1"]


def test_with_it_goes_the_view_that_the_leader_lacks_and_what_was_given_up() -> None:
    one = Follower()
    one.reports.own.report("h", view(version=3), 0, 0)
    one.grants.held.ask(0)
    one.grants.held.until_ms[VIP] = 1_000
    one.grants.held.give_up(1)
    one.following.beat("lb-1", one.beat(), 10)
    sent = one.made.sent()
    assert {to for to, _ in sent} == {"lb-1"}
    assert [type(message) for _, message in sent] == [ViewReport, Ack, Release]
