"""What several LBs agree on: witnesses, what members are told of each other, files, releases."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.topics import Topic
from bus.words import NodeState, Role
from services.quorum.core import Quorum
from services.quorum.durable import HardState
from services.quorum.staged import digest
from services.quorum.table import TableConfig
from tests.quorum.cluster import OLD, VIP, Cluster, holder, led
from tests.quorum.rig import table_of
from tests.quorum.views import ECHO, WEB, seen, view

UP = NodeState.UP
NEW = TableConfig((WEB, ECHO), OLD.vips)


def services(made: Cluster, name: str) -> list[str]:
    held = made.cores[name].committed(made.now_ms)
    assert held is not None
    return [service.name for service in held.table.services]


def test_a_witness_makes_a_majority_and_never_leads_nor_holds_nor_has_a_slot() -> None:
    made = led("lb-0", "lb-1", "w", witness="w")
    for _ in range(3):
        leader = made.leader()
        assert leader in ("lb-0", "lb-1")
        held = made.cores[leader].committed(made.now_ms)
        assert held is not None
        assert {each.owner for each in held.table.snat_slices} == {"lb-0", "lb-1"}
        assert holder(made) == [held.table.vip_owners[0].owner]
        made.silent = {leader}
        made.until(lambda: made.leader() not in (None, leader))  # noqa: B023 - awaited here
        made.silent = set()
        made.run(2_000)


def test_two_without_a_witness_need_each_other() -> None:
    made = led("lb-0", "lb-1")
    made.silent = {"lb-1"}
    made.run(5_000)
    assert [core.state(made.now_ms).quorum for core in made.cores.values()] == [False, False]
    assert holder(made) == []


def test_followers_know_of_each_other_by_the_leader() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader = made.leader()
    assert leader is not None
    one, other = (name for name in made.cores if name != leader)
    made.cores[other].stand(("it is so",), 5, made.now_ms)
    made.run(500)
    for name in (leader, one, other):
        members = {each.name: each for each in made.cores[name].state(made.now_ms).members}
        assert members[other].why_not == ("it is so",)
        assert members[one].why_not == ()
        assert len({(each.term, each.epoch) for each in members.values()}) == 1
    made.silent = {other}
    made.run(2_000)
    members = {each.name: each for each in made.cores[one].state(made.now_ms).members}
    assert [members[name].alive for name in (leader, one, other)] == [True, True, False]


def test_a_change_of_files_holds_once_all_that_live_have_it() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    for number, name in enumerate(made.cores):
        assert services(made, name) == ["default"], f"staged on {number} of 3"
        config = replace(made.configs[name], table=NEW)
        made.cores[name].reconfigure(config, made.now_ms)
        made.run(500)
    assert all(services(made, name) == ["default", "echo"] for name in made.cores)
    told = [(name, topic) for name, topic, _ in made.events if topic is Topic.CONFIG_COMMITTED]
    assert sorted(name for name, _ in told) == ["lb-0", "lb-1", "lb-2"]
    assert {core.state(made.now_ms).agreed for core in made.cores.values()} == {digest(NEW)}


def test_the_dead_are_not_waited_for_and_no_leader_brings_an_old_file_back() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader = made.leader()
    for name in made.cores:
        if name != leader:
            made.cores[name].reconfigure(replace(made.configs[name], table=NEW), made.now_ms)
    made.run(500)
    assert leader is not None
    assert services(made, leader) == ["default"]
    made.silent = {leader}
    made.until(lambda: made.leader() not in (None, leader))
    made.run(1_000)
    others = [name for name in made.cores if name != leader]
    assert [services(made, name) for name in others] == [["default", "echo"]] * 2
    made.silent = set()
    made.run(3_000)
    assert all(services(made, name) == ["default", "echo"] for name in made.cores)


def test_an_operator_need_not_wait_for_every_file() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    leader = made.leader()
    assert leader is not None
    follower = next(name for name in made.cores if name != leader)
    core = made.cores[leader]
    for name, refusal in ((leader, "staged on 1 of 3"), (follower, f"{leader} leads")):
        made.cores[name].reconfigure(replace(made.configs[name], table=NEW), made.now_ms)
        with pytest.raises(ValueError, match=refusal):
            made.cores[name].commit_staged(made.now_ms)
        made.run(100)
    assert services(made, leader) == ["default"]
    core.commit_staged(made.now_ms)
    made.run(500)
    assert all(services(made, name) == ["default", "echo"] for name in made.cores)


def test_a_holder_that_may_not_any_more_lets_go_at_once() -> None:
    made = led("lb-0", "lb-1", "lb-2")
    (before,) = holder(made)
    made.cores[before].stand(("it is so",), 5, made.now_ms)
    began_ms = made.now_ms
    made.until(lambda: holder(made) not in ([], [before]))
    assert made.now_ms - began_ms < 30, "a beat, and no lease that had to end"
    made.cores[before].stand((), 5, made.now_ms)
    made.run(2_000)
    assert before not in holder(made), "nothing moves back by itself"


@pytest.mark.parametrize("names", [("lb-0", "lb-1"), ("lb-0", "lb-1", "lb-2")], ids=len)
@pytest.mark.parametrize("seed", range(10))
def test_what_one_had_agreed_on_alone_is_where_several_begin_whoever_leads(
    seed: int, names: tuple[str, ...]
) -> None:
    """Those that come to it are new, or have lost their disks, as one of two may have."""
    made = Cluster(*names, table=OLD)
    made.random.seed(seed)
    of_one = replace(table_of("lb-0", epoch=40), term=9, hash_seed=4_711, members=())
    stored = HardState(9, "lb-0", of_one)
    made.cores["lb-0"] = Quorum(
        made.configs["lb-0"], stored, 8, 0, boot="grown", draw=made.random.random
    )
    made.until(made.leader)
    made.see(*((name, view(seen("a", UP))) for name in made.cores))
    made.until(lambda: all(core.committed(made.now_ms) for core in made.cores.values()))
    for core in made.cores.values():
        held = core.committed(made.now_ms)
        assert held is not None
        assert held.table.hash_seed == 4_711
        assert held.table.term > of_one.term


def test_one_that_is_left_of_three_goes_on_alone_by_the_table_it_has() -> None:
    """The others have been taken out of its list."""
    made = led("lb-0", "lb-1", "lb-2")
    held = made.cores["lb-0"].committed(made.now_ms)
    assert held is not None
    stored = HardState(held.table.term, "lb-1", held.table, 125, True)
    alone = replace(made.configs["lb-0"], others=())
    core = Quorum(alone, stored, 8, 0, boot="again")
    ready = core.take(0)
    assert ready is not None
    assert ready.committed is not None
    assert ready.committed.table == held.table
    assert ready.persist is not None
    core.stored(ready.persist.mark, 1)
    assert core.role is Role.LEADER
    assert core.term == stored.term + 1
    claims = core.take(1)
    assert claims is not None
    core.report("h", view(seen("a", UP)), 1)
    while (ready := core.take(1)) is not None:
        if ready.persist is not None:
            core.stored(ready.persist.mark, 1)
    assert list(core._grants.claims) == [VIP]
