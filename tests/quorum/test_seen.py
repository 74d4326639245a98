"""How the members are seen, by this LB and by its leader."""

from __future__ import annotations

from dataclasses import replace

from bus.peer_protocol import MemberSeen
from bus.words import Role
from services.quorum.reports import OwnView, Reports
from services.quorum.roster import SILENT_REPORT_MS
from services.quorum.seen import (
    MEMBERS_MS,
    WAITING_FOR_LEADER,
    WAITING_FOR_THE_OTHERS,
    WAITING_FOR_VIEW,
    WAITING_TO_BE_MEMBER,
    Seen,
)
from services.quorum.staged import Staging
from tests.quorum.cluster import OLD
from tests.quorum.rig import Rig, rig, table_of


def seen_of(made: Rig) -> Seen:
    reports = Reports(OwnView("lb-0", alone=False), 2_000)
    staging = Staging(OLD, None, alone=False, witness=False)
    return Seen(made.roster, made.election, made.register, staging, reports, 0)


def test_a_leader_tells_what_has_changed_and_all_of_it_now_and_then() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    made.lead()
    made.roster.others["lb-2"].name = ""
    seen = seen_of(made)
    told = seen.to_tell(0)
    assert told is not None
    assert [each.name for each in told] == ["lb-0", "lb-1"], "of one that was never heard: nothing"
    assert seen.to_tell(MEMBERS_MS - 1) is None
    assert seen.to_tell(MEMBERS_MS) == told
    made.roster.others["lb-1"].why_not = ("it is so",)
    assert seen.to_tell(MEMBERS_MS + 1) is not None


def test_a_follower_shows_the_leaders_word_while_it_knows_one() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    made.election.leader = "lb-1"
    made.roster.hear("lb-1", "lb-1", 0)
    seen = seen_of(made)
    seen.learn((MemberSeen("two", "lb-2", True, 7, 8, ("it is so",), "x", True),), 100)
    _, one, two = seen.members(150)
    assert (one.name, one.alive) == ("lb-1", True)
    assert (two.name, two.alive, two.term, two.epoch) == ("two", True, 7, 8)
    assert (two.why_not, two.staged, two.late) == (("it is so",), "x", True)
    assert seen.names() == {"lb-0": "lb-0", "lb-1": "lb-1", "lb-2": "two"}
    assert seen.staged()[1:] == ["", "x"]
    made.election.leader = None
    assert not seen.members(150)[2].alive, "it has heard nothing of it itself"
    made.election.role, made.election.leader = Role.LEADER, "lb-0"
    assert not seen.members(150)[2].alive, "a leader's own word counts"


def test_who_was_not_heard_for_long_is_not_alive() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    seen = seen_of(made)
    made.roster.hear("lb-1", "lb-1", 10)
    for now_ms, alive in ((9 + SILENT_REPORT_MS, True), (10 + SILENT_REPORT_MS, False)):
        assert seen.members(now_ms)[1].alive is alive


def test_one_that_has_forgotten_its_promises_says_so_where_the_others_are_heard() -> None:
    made = rig("lb-1")
    seen = seen_of(made)
    made.election.is_blank = True
    assert seen.state(1, 0, "", 0).waiting_for == WAITING_FOR_LEADER
    made.roster.hear("lb-1", "lb-1", 0)
    assert seen.state(1, 0, "", 0).waiting_for == WAITING_FOR_THE_OTHERS
    assert seen.state(1, 0, "", SILENT_REPORT_MS + 1).waiting_for == WAITING_FOR_LEADER
    made.election.is_blank = False
    assert seen.state(1, 0, "", 0).waiting_for == WAITING_FOR_LEADER


def test_what_it_waits_for() -> None:
    made = rig("lb-1")
    seen = seen_of(made)
    assert seen.state(1, 0, "the disk is full", 0).waiting_for == "the disk is full"
    state = seen.state(1, 0, "", 0)
    assert (state.waiting_for, state.leader, state.quorum) == (WAITING_FOR_LEADER, None, False)
    made.election.leader = "lb-1"
    assert seen.state(1, 0, "", 0).waiting_for == WAITING_FOR_VIEW
    made.election.role = Role.CANDIDATE
    assert seen.state(1, 0, "", 0).waiting_for == WAITING_FOR_LEADER
    made = rig("lb-1", table=table_of("lb-1", "lb-2"))
    state = seen_of(made).state(1, 0, "", 0)
    assert (state.waiting_for, state.is_member) == (WAITING_TO_BE_MEMBER, False)
    made = rig("lb-1", table=replace(table_of("lb-0", "lb-1"), epoch=5))
    made.election.leader = "lb-1"
    state = seen_of(made).state(3, 2, "", 0)
    assert (state.version, state.lease_changes, state.epoch, state.waiting_for) == (3, 2, 5, "")
