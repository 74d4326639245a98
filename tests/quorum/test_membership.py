"""Who agrees with whom, and how that changes: the rules, and what LBs together make of them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.events import MemberEvent
from bus.peer_protocol import NO_VERSION, Ack
from bus.states import Member
from bus.topics import Topic
from bus.words import MemberChange, NodeState
from services.quorum.core import Quorum
from services.quorum.durable import BLANK
from services.quorum.membership import Circumstances, find, gone_and_come, named, why_not
from services.quorum.parting import PARTING_MS
from tests.quorum.cluster import holder, led, members_at, newcomer, others_of
from tests.quorum.views import seen, view

ADD, REMOVE = MemberChange.ADD, MemberChange.REMOVE
THREE = frozenset({"a:1", "b:1", "c:1"})


def circumstances(*answering: str) -> Circumstances:
    return Circumstances("a:1", frozenset(answering), may_change=True)


@pytest.mark.parametrize(
    ("change", "whom", "members", "answering", "refusal"),
    [
        (ADD, "d:1", THREE, "abc", ""),
        (ADD, "d:1", THREE, "ab", "of the 4 there would be 3 must agree"),
        (ADD, "c:1", THREE - {"c:1"}, "ab", ""),
        (REMOVE, "c:1", THREE, "ab", ""),
        (REMOVE, "b:1", THREE, "ab", "already 1 answer now"),
        (REMOVE, "a:1", THREE, "abc", "a:1 leads"),
        (REMOVE, "b:1", THREE - {"c:1"}, "ab", "the last two need each other"),
        (ADD, "h:1", frozenset(f"{n}:1" for n in "abcdefg"), "abcdefg", "7 members are the most"),
    ],
)
def test_what_would_not_be_safe_is_refused(
    change: MemberChange, whom: str, members: frozenset[str], answering: str, refusal: str
) -> None:
    said = why_not(change, whom, members, circumstances(*(f"{each}:1" for each in answering)))
    assert refusal in said
    assert bool(said) == bool(refusal)


def test_an_operator_calls_an_lb_by_its_name_its_host_or_its_entry() -> None:
    members, others = {"10.0.0.1:8": "lb-0", "10.0.0.2:8": "lb-1"}, {"10.0.0.3:8": "lb-2"}
    for who in ("lb-2", "10.0.0.3", "10.0.0.3:8"):
        assert find(who, members, others) == "10.0.0.3:8"
    assert find("lb-0", members, {"10.0.0.9:8": "lb-0"}) == "10.0.0.1:8", "members come first"
    with pytest.raises(
        ValueError, match=r"no load balancer called lb-7 .*; there are lb-0, lb-1, lb-2;"
    ):
        find("lb-7", members, others)
    with pytest.raises(ValueError, match=r"there are 10\.0\.0\.1:8;"):
        find("lb-7", {"10.0.0.1:8": ""}, {})
    with pytest.raises(ValueError, match=r"may be 10\.0\.0\.3:8 or 10\.0\.0\.4:8"):
        find("x", members, {"10.0.0.3:8": "x", "10.0.0.4:8": "x"})


def test_names_are_kept_once_they_are_known() -> None:
    before = (Member("a:1", "lb-0"), Member("b:1"))
    after = named(before, {"a:1": "", "b:1": "lb-1"})
    assert after == (Member("a:1", "lb-0"), Member("b:1", "lb-1"))
    assert gone_and_come(before, after[:1]) == ([Member("b:1")], [])
    assert gone_and_come((), after) == ([], []), "nothing was agreed before"


# --------------------------------------------------------------------------- together


def test_one_is_added_and_its_vote_counts_then() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    newcomer(made, "lb-3")
    made.run(1_000)
    assert made.cores["lb-3"].committed(made.now_ms) is None
    made.cores[one].change_members("n", ADD, "lb-3", made.now_ms)  # passed on to the leader
    made.until(lambda: "lb-3" in members_at(made, leader))
    made.until(lambda: made.cores["lb-3"].committed(made.now_ms) is not None)
    made.run(500)
    assert members_at(made, "lb-3") == {"lb-0", "lb-1", "lb-2", "lb-3"}, "its name is known"
    told = [e for n, t, e in made.events if n == one and t is Topic.QUORUM_MEMBER_ADDED]
    assert told == [MemberEvent("", "lb-3", 4)]
    made.silent = {other}
    made.run(1_000)
    assert made.leader() == leader, "three of four agree"
    made.silent = {other, one}
    made.run(1_000)
    assert not made.cores[leader].lease_ms(made.now_ms), "two of four do not"


def test_one_is_removed_knows_it_and_lets_go_of_its_vip() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    made.cores[leader].stand(("it is so",), 0, made.now_ms)
    made.until(lambda: holder(made) not in ([], [leader]))
    (gone,) = holder(made)
    made.cores[leader].change_members("n", REMOVE, gone, made.now_ms)
    made.until(lambda: not made.cores[gone].state(made.now_ms).is_member)
    made.until(lambda: gone not in members_at(made, gone))
    assert holder(made) not in ([gone],)
    (left,) = {one, other} - {gone}
    assert members_at(made, leader) == {leader, left}
    made.run(3_000)
    assert gone not in made.cores[leader].entries, "it was told, and is spoken to no more"
    assert made.cores[gone].state(made.now_ms).waiting_for.startswith("being a member")
    made.silent = {leader}
    made.run(5_000)
    assert made.cores[left].state(made.now_ms).leader is None, "one of two is no majority"
    assert made.cores[gone].state(made.now_ms).leader is None, "it elects nobody"


def test_who_was_removed_knocks_though_it_has_lost_its_disk_and_hears_the_leader() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, gone = others_of(made)
    made.cores[leader].change_members("n", REMOVE, gone, made.now_ms)
    made.until(lambda: members_at(made, one) == {leader, one})
    made.cores[gone] = Quorum(made.configs[gone], BLANK, 9, made.now_ms, boot="again")
    made.until(lambda: not made.cores[gone].state(made.now_ms).is_member)
    made.run(PARTING_MS)
    assert gone not in made.cores[leader].entries
    assert set(made.cores[gone].entries) == {leader, one, gone}, "it says where it listens"
    for name in (leader, one):
        before = made.cores[name].faults["stranger"]
        made.run(2_000)
        assert made.cores[name].faults["stranger"] > before, "it knocks"


def test_what_is_so_already_is_agreed_at_once_and_what_is_unsafe_is_refused() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    made.silent = {other}
    made.run(1_000)
    answers: dict[str, str] = {}
    asked = (("so", ADD, one), ("unsafe", REMOVE, one), ("dead", ADD, "lb-9"))
    for number, change, whom in asked:
        made.cores[leader].change_members(number, change, whom, made.now_ms)
        while (ready := made.cores[leader].take(made.now_ms)) is not None:
            answers |= {answer.id: answer.refusal for answer in ready.answers}
    assert answers["so"] == ""
    assert "2 must agree" in answers["unsafe"]
    assert "of the 4 there would be 3 must agree" in answers["dead"]
    with pytest.raises(ValueError, match="no leader is heard"):
        made.cores[other].change_members("n", ADD, "lb-9", made.now_ms)


def test_a_restart_goes_by_the_table_and_not_by_the_file() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    made.cores[leader].change_members("n", REMOVE, other, made.now_ms)
    made.until(lambda: members_at(made, one) == {leader, one})
    table = made.cores[one].committed(made.now_ms)
    assert table is not None
    stored = replace(BLANK, term=table.table.term, table=table.table, joined=True)
    again = Quorum(made.configs[one], stored, 8, made.now_ms, boot="again")
    assert set(again.entries) == {leader, one}, "the removed one is spoken to no more"
    made.configs[other] = replace(made.configs[other], others=())
    alone = Quorum(made.configs[other], stored, 8, made.now_ms, boot="alone")
    assert alone.entries == (other,), "a list with nobody in it: it decides alone"


def test_what_a_removed_lb_saw_counts_no_more() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    made.see((other, view(seen("a", NodeState.DOWN), version=2)))
    made.cores[leader].change_members("n", REMOVE, other, made.now_ms)
    made.until(lambda: members_at(made, one) == {leader, one})
    made.see((one, view(seen("a", NodeState.DOWN), version=2)))
    made.run(500)
    held = made.cores[one].committed(made.now_ms)
    assert held is not None
    assert held.table.nodes[0].state is NodeState.UP, "one of two does not speak for both"


def test_the_next_change_waits_until_all_promises_of_before_are_over() -> None:
    made = led("lb-0", "lb-1", "lb-2", "lb-3", "lb-4")
    leader = made.leader()
    assert leader is not None
    gone = [name for name in made.cores if name != leader][:2]
    for name in gone:
        made.cores[leader].change_members(name, REMOVE, name, made.now_ms)
    made.until(lambda: len(members_at(made, leader)) == 4)
    first_ms = made.now_ms
    made.until(lambda: len(members_at(made, leader)) == 3)
    assert made.now_ms - first_ms >= made.configs[leader].timing.promise_ms


def test_a_leader_votes_for_nobody_while_a_lease_by_the_former_list_lasts() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    election = made.cores[leader]._election
    until_ms = election.lease_until_ms(made.now_ms)
    assert until_ms > made.now_ms
    election.change_members((one, other, "lb-3", "lb-4"), made.now_ms)
    election.change_members(("lb-3", "lb-4"), made.now_ms)
    assert not election.has_lease(made.now_ms), "neither of those has promised anything"
    assert not election._may_vote(election.term + 1, until_ms - 1)
    assert election._may_vote(election.term + 1, until_ms)


def test_what_a_removed_lb_promises_counts_for_nothing() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader, one, other = others_of(made)
    election = made.cores[leader]._election
    election.change_members((one,), made.now_ms)
    seq = election.next_beat(made.now_ms)
    ack = Ack(other, election.term, seq, NO_VERSION, other, 1, (), 0)
    assert not election.ack(other, ack, made.now_ms)
    assert election.heard_ms(other) is None
    assert election.ack(one, replace(ack, sender=one), made.now_ms)
