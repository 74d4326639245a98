"""Who the members are, what is known of each, and when they may change."""

from __future__ import annotations

from dataclasses import replace

from bus.peer_protocol import Version
from bus.states import Member, SnatSlice
from bus.words import MemberChange
from services.quorum.membership import Changes, Wish
from services.quorum.ownership import Standing
from services.quorum.roster import SILENT_REPORT_MS, in_force
from tests.quorum.rig import rig, table_of


def test_the_list_holds_until_a_table_says_who_they_are() -> None:
    assert in_force("a", ("b", "c"), None) == ("a", "b", "c")
    assert in_force("a", ("b", "c"), table_of("b", "d")) == ("b", "d")
    assert in_force("a", (), table_of("b", "d")) == ("a",), "a list with nobody in it"
    unsaid = replace(table_of("b"), members=())
    assert in_force("a", ("b",), unsaid) == ("a", "b")


def test_who_left_is_heard_no_more_and_comes_back_a_stranger() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    for name in ("lb-1", "lb-2"):
        assert made.roster.hear(name, name, 5)
        assert not made.roster.hear(name, name, 6)
    made.register.held.update(dict.fromkeys(("lb-1", "lb-2"), Version(1, 1)))
    made.register.accept(table_of("lb-0", "lb-1", epoch=2), 10)
    assert made.roster.go_by_newest(10) == {"lb-2": "lb-2"}
    assert made.roster.entries == ("lb-0", "lb-1")
    assert set(made.register.held) == {"lb-1"}, "nor does its copy count"
    made.register.accept(table_of("lb-0", "lb-1", "lb-2", epoch=3), 20)
    assert made.roster.go_by_newest(20) == {}
    assert made.roster.others["lb-2"].name == ""
    assert made.roster.others["lb-1"].name == "lb-1"


def test_who_is_no_member_hears_them_and_those_of_its_file() -> None:
    made = rig("lb-1", "lb-9", table=table_of("lb-1", "lb-2"))
    assert not made.roster.is_member
    assert made.election.only_votes
    assert sorted(made.roster.others) == ["lb-1", "lb-2", "lb-9"]
    assert [entry for entry, _ in made.roster.voters()] == ["lb-1", "lb-2"]


def test_who_may_hold_vips_and_who_is_silent() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    made.lead()
    assert made.roster.standings(124) == {
        "lb-0": Standing(eligible=True, fitness=9),
        "lb-1": Standing(eligible=True, fitness=5),
        "lb-2": Standing(eligible=True, fitness=5),
    }
    (ack,) = made.answer("lb-1", now_ms=100)
    assert set(made.roster.standings(125)) == {"lb-0", "lb-1"}, "lb-2 not within a promise"
    made.roster.answered("lb-1", replace(ack, witness=True))
    assert set(made.roster.standings(125)) == {"lb-0"}, "a witness holds none"
    assert made.roster.silent(SILENT_REPORT_MS - 1) == frozenset()
    assert made.roster.silent(SILENT_REPORT_MS) == {"lb-2"}


def test_only_what_changes_a_table_is_news() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    made.lead()
    (ack,) = made.answer("lb-1", now_ms=1)
    assert not made.roster.answered("lb-1", replace(ack, seq=9, asked=9))
    for change in ({"why": ("it is so",)}, {"late": True}, {"staged": "x"}, {"witness": True}):
        assert made.roster.answered("lb-1", replace(ack, **change)), change
        assert made.roster.answered("lb-1", ack), "and back"


def test_slots_are_for_those_that_answered_and_those_that_had_one() -> None:
    table = table_of("lb-0", "lb-1", "lb-2")
    had = (SnatSlice("lb-2", None, 1, 1), SnatSlice("gone", None, 1, 1))
    made = rig("lb-1", "lb-2", table=replace(table, snat_slices=had))
    made.lead()
    made.roster.others["lb-2"].witness = None
    assert made.roster.with_slots(replace(table, snat_slices=had)) == ["lb-0", "lb-1", "lb-2"]
    made.roster.others["lb-2"].witness = True
    assert made.roster.with_slots(replace(table, snat_slices=())) == ["lb-0", "lb-1"]


def test_members_change_once_all_promises_of_before_are_over() -> None:
    made = rig("lb-1", "lb-2", table=table_of("lb-0", "lb-1", "lb-2"))
    made.lead()
    made.roster.restart_the_wait(0)
    changes = Changes()
    changes.waiting.ask("1", Wish(MemberChange.REMOVE, "lb-2"), None, 0)
    table = table_of("lb-0", "lb-1", "lb-2")
    made.answer("lb-1", "lb-2", now_ms=100)
    for now_ms, left in ((124, 3), (125, 2)):
        members, _ = made.roster.next_members(table, changes, now_ms)
        assert len(members) == left
    assert members == (Member("lb-0", "lb-0"), Member("lb-1", "lb-1"))
    made.roster.committed(table, table_of("lb-0", "lb-1", epoch=2), 200)
    made.answer("lb-1", now_ms=200)
    assert not made.roster.may_change(324)
    made.answer("lb-1", now_ms=300)
    assert made.roster.may_change(325)


def test_another_list_in_an_answer_is_news() -> None:
    made = rig("lb-1")
    made.lead()
    (ack,) = made.answer("lb-1", now_ms=10)
    assert not made.roster.answered("lb-1", ack)
    assert made.roster.answered("lb-1", replace(ack, listed="x"))
    assert not made.roster.answered("lb-1", replace(ack, listed="x"))
