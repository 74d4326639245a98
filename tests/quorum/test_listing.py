"""Members by the lists of the files: the rules, and what LBs together make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.events import MemberEvent
from bus.states import Member, NodeTable
from bus.topics import Topic
from bus.words import MemberChange
from services.quorum.core import Quorum
from services.quorum.durable import BLANK
from services.quorum.listing import UNRESOLVED, Listing, digest, wishes
from services.quorum.membership import Circumstances, Wish
from services.quorum.table import bootstrap
from tests.quorum.cluster import Cluster, led, members_at, newcomer, others_of
from tests.quorum.views import quorum_config

ADD, REMOVE = MemberChange.ADD, MemberChange.REMOVE
ABC, ABD = ("a:1", "b:1", "c:1"), ("a:1", "b:1", "d:1")


def members(*entries: str) -> tuple[Member, ...]:
    return tuple(Member(each) for each in entries)


def listing(*entries: str, target: tuple[str, ...] = (), alone: bool = False) -> Listing:
    return Listing(entries, target or entries, None, alone=alone)


def circumstances(*answering: str, may_change: bool = True) -> Circumstances:
    return Circumstances("a:1", frozenset(answering), may_change)


def test_a_digest_is_of_the_entries_in_any_order() -> None:
    assert digest(ABC) == digest(reversed(ABC)) == digest((*ABC, "a:1"))
    assert digest(ABC) != digest(ABD)


def test_additions_come_first() -> None:
    made = wishes(ABC, ("a:1", "e:1", "d:1"))
    assert made == [Wish(ADD, "d:1"), Wish(ADD, "e:1"), Wish(REMOVE, "b:1"), Wish(REMOVE, "c:1")]


@pytest.mark.parametrize(
    ("agreed", "others", "may_change", "after", "noted"),
    [
        (digest(ABC), [digest(ABD)] * 2, True, ("a:1", "b:1", "c:1", "d:1"), digest(ABC)),
        (digest(ABC), [digest(ABD), digest(ABC)], True, ABC, digest(ABC)),
        (digest(ABC), [digest(ABD), ""], True, ABC, digest(ABC)),
        (digest(ABC), [digest(ABD)] * 2, False, ABC, digest(ABC)),
        (digest(ABD), [digest(ABD)] * 2, True, ABC, digest(ABD)),
        ("", [digest(ABD)] * 2, True, ABC, digest(ABD)),
        ("", [digest(ABD), digest(ABC)], True, ABC, ""),
        ("", [digest(ABD)] * 2, False, ABC, ""),
    ],
)
def test_when_the_files_change_the_members(
    agreed: str, others: list[str], may_change: bool, after: tuple[str, ...], noted: str
) -> None:
    how = circumstances(*ABC, may_change=may_change)
    made = listing(*ABD).next_members(members(*ABC), agreed, others, how)
    assert made == (members(*after), noted)


def test_the_list_is_noted_with_the_last_of_the_changes() -> None:
    made, four = listing(*ABD), members(*ABC, "d:1")
    agreed, others, how = digest(ABC), [digest(ABD)] * 3, circumstances(*ABC, "d:1")
    assert made.next_members(four, agreed, others, how) == (members(*ABD), digest(ABD))
    assert made.next_members(members(*ABD), agreed, others, how) == (members(*ABD), digest(ABD))


@pytest.mark.parametrize("how", ["leads again", "its file lists others"])
def test_what_spoke_against_a_list_is_said_no_more_once_that_was_long_ago(how: str) -> None:
    """An operator who reads it hands over, and so for ever between two LBs."""
    made, agreed = listing("b:1", "c:1"), digest(ABC)
    made.next_members(members(*ABC), agreed, [digest(("b:1", "c:1"))] * 2, circumstances(*ABC))
    assert made.why == "a:1 leads: `gale handover` there first"
    if how == "leads again":
        made.begin_to_lead()
    else:
        made.stage(ABD, ABD)
    assert made.why == ""


def test_what_is_refused_lets_others_go_first_and_says_why_if_none_may() -> None:
    made, agreed, others = listing(*ABD), digest(ABC), [digest(ABD)]
    after, _ = made.next_members(members(*ABC), agreed, others, circumstances("a:1", "b:1"))
    assert after == members("a:1", "b:1"), "the dead one goes, since none may be added beside it"
    gone = listing("b:1", "c:1")
    after, noted = gone.next_members(
        members(*ABC), agreed, [digest(("b:1", "c:1"))] * 2, circumstances(*ABC)
    )
    assert (after, noted) == (members(*ABC), agreed)
    assert gone.why == "a:1 leads: `gale handover` there first"
    gone.next_members(members(*ABC), agreed, [digest(ABC)], circumstances(*ABC))
    assert gone.why == "", "they do not agree any more"


def test_a_name_is_the_machine_that_it_means() -> None:
    names = ("lb-a:1", "lb-b:1", "lb-c:1")
    agreed, others, how = digest(ABC), [digest(names)] * 2, circumstances(*ABC)
    unknown = listing(*names, target=("a:1", "b:1", ""))
    assert unknown.next_members(members(*ABC), agreed, others, how) == (members(*ABC), agreed)
    assert unknown.why == UNRESOLVED
    unknown.stage(names, ABC)
    after, noted = unknown.next_members(members(*ABC), agreed, others, how)
    assert (after, noted, unknown.why) == (members(*ABC), digest(names), "")


def test_one_alone_lists_nobody() -> None:
    made = listing("a:1", alone=True)
    assert (made.own, made.differs(bootstrap(1, 7))) == ("", False)
    assert made.next_members((), "", [], circumstances("a:1")) == ((), "")


# --------------------------------------------------------------------------- together


def table_at(made: Cluster, name: str) -> NodeTable:
    held = made.cores[name].committed(made.now_ms)
    assert held is not None
    return held.table


def alike(*names: str, witness: str = "") -> tuple[Cluster, str]:
    """A cluster whose files are known to list the same; and its leader."""
    made = led(*names, witness=witness)
    made.until(lambda: all(table_at(made, name).listed == digest(names) for name in names))
    leader = made.leader()
    assert leader is not None
    return made, leader


def three(witness: str = "") -> tuple[Cluster, str, str, str]:
    """Likewise of three: the leader and the two others."""
    made, _ = alike("lb-0", "lb-1", "lb-2", witness=witness)
    return made, *others_of(made)


def test_the_first_list_changes_nobody_and_one_more_is_added_when_all_have_it() -> None:
    made, leader, one, other = three()
    newcomer(made, "lb-3")
    four = ("lb-0", "lb-1", "lb-2", "lb-3")
    made.relist(four, "lb-3", leader, one)
    made.run(1_000)
    assert len(members_at(made, leader)) == 3, "not all have it"
    state = made.cores[one].state(made.now_ms)
    assert [
        each.listed == digest(four) for each in sorted(state.members, key=lambda m: m.name)
    ] == [name != other for name in ("lb-0", "lb-1", "lb-2")]
    assert state.listed == digest(("lb-0", "lb-1", "lb-2"))
    made.relist(four, other)
    made.until(lambda: table_at(made, one).listed == digest(four), within_ms=1_000)
    made.until(lambda: members_at(made, "lb-3") == set(four))
    told = [event for name, topic, event in made.events if topic is Topic.QUORUM_MEMBER_ADDED]
    assert told == [MemberEvent("", "lb-3", 4)] * 3
    assert made.cores[one].state(made.now_ms).listed == digest(four)


def test_a_dead_one_is_replaced_one_change_after_the_other() -> None:
    made, leader, one, other = three()
    newcomer(made, "lb-3")
    made.silent = {other}
    listed = tuple(sorted((leader, one, "lb-3")))
    made.relist(listed, leader, one, "lb-3")
    made.until(lambda: members_at(made, one) == {leader, one}, within_ms=1_000)
    began_ms = made.now_ms
    made.until(lambda: {"lb-3"} < members_at(made, one), within_ms=1_000)
    assert made.now_ms - began_ms >= made.configs[leader].timing.promise_ms
    assert table_at(made, one).listed == digest(listed)


def test_whom_no_file_names_stays_until_the_files_change() -> None:
    made, leader, one, _ = three()
    newcomer(made, "lb-3")
    former, four = ("lb-0", "lb-1", "lb-2"), ("lb-0", "lb-1", "lb-2", "lb-3")
    made.relist(former, "lb-3")
    made.cores[leader].change_members("n", ADD, "lb-3", made.now_ms)
    made.until(lambda: "lb-3" in members_at(made, one))
    made.run(1_000)
    made.relist(former, *made.cores)
    made.run(1_000)
    assert members_at(made, one) == set(four)
    made.relist(four, *made.cores)
    made.until(lambda: table_at(made, one).listed == digest(four), within_ms=1_000)
    made.relist(former, *made.cores)
    made.until(lambda: members_at(made, one) == set(former), within_ms=1_000)
    assert not made.cores["lb-3"].state(made.now_ms).is_member


def test_a_leader_that_is_not_in_the_list_says_why_it_waits_until_it_hands_over() -> None:
    made, leader, one, other = three()
    listed = tuple(sorted((one, other)))
    made.relist(listed, leader, one, other)
    made.run(1_000)
    for core in made.cores.values():
        state = core.state(made.now_ms)
        assert state.why_not_listed == f"{leader} leads: `gale handover` there first"
    made.cores[leader].hand_over(made.now_ms)
    made.until(lambda: members_at(made, one) == {one, other}, within_ms=2_000)
    made.run(200)
    assert made.cores[one].state(made.now_ms).why_not_listed == ""
    made.run(3_000)
    assert made.leader() is None, "the one that was removed follows nobody"


def test_a_witness_has_a_say_too() -> None:
    made, leader, one, other = three(witness="lb-2")
    assert leader != "lb-2"
    (kept,) = {one, other} - {"lb-2"}
    newcomer(made, "lb-3")
    four = ("lb-0", "lb-1", "lb-2", "lb-3")
    made.relist(four, leader, kept, "lb-3")
    made.run(1_000)
    assert len(members_at(made, leader)) == 3
    made.relist(four, "lb-2")
    made.until(lambda: len(members_at(made, leader)) == 4, within_ms=1_000)


def test_an_operators_wish_goes_first() -> None:
    made, leader = alike("lb-0", "lb-1", "lb-2", "lb-3", "lb-4")
    gone = sorted(made.cores.keys() - {leader})
    made.cores[leader].change_members("n", REMOVE, gone[0], made.now_ms)
    made.until(lambda: len(members_at(made, leader)) == 4)
    made.cores[leader].change_members("m", REMOVE, gone[3], made.now_ms)
    made.relist(tuple(sorted((leader, gone[2], gone[3]))), *made.cores)
    made.until(lambda: len(members_at(made, leader)) == 3, within_ms=1_000)
    assert members_at(made, leader) == {leader, gone[1], gone[2]}
    made.until(lambda: members_at(made, leader) == {leader, gone[2], gone[3]}, within_ms=2_000)


def test_another_leader_goes_on_with_what_was_begun() -> None:
    names = ("lb-0", "lb-1", "lb-2", "lb-3", "lb-4")
    made, leader = alike(*names)
    left = tuple(sorted({*names} - {leader}))[:3]
    made.relist(left, *names)
    made.until(lambda: len(members_at(made, leader)) == 4)
    made.silent = {leader}
    made.until(lambda: members_at(made, left[0]) == set(left), within_ms=5_000)
    assert table_at(made, left[0]).listed == digest(left)


def test_until_a_table_says_who_they_are_the_list_of_the_start_does() -> None:
    config = replace(quorum_config(name="a"), address="a", others=("b", "c"))
    core = Quorum(config, BLANK, 7, 0, boot="x")
    assert not core.is_founded
    core.reconfigure(replace(config, others=("d",)), 10)
    assert core.entries == ("a", "b", "c")


def test_who_is_no_member_hears_those_of_its_new_list() -> None:
    made, leader, one, other = three()
    made.cores[leader].change_members("n", REMOVE, other, made.now_ms)
    made.until(lambda: not made.cores[other].state(made.now_ms).is_member)
    core = made.cores[other]
    core.reconfigure(replace(made.configs[other], others=("lb-8",), listed=()), made.now_ms)
    assert set(core.entries) == {leader, one, other, "lb-8"}
    assert not core.state(made.now_ms).is_member
