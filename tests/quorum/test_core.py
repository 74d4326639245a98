"""The core of a quorum of one: order of persisting and publishing, restarts, what it waits for."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.events import (
    QuorumEvent,
    TableEvent,
)
from bus.states import (
    NodeTable,
    SnatSlice,
)
from bus.topics import Topic
from bus.words import (
    NodeState,
    Role,
)
from services.quorum.core import Quorum
from services.quorum.durable import BLANK, HardState, Persist
from services.quorum.election import Cause, IllegalTransitionError
from services.quorum.grants import ALONE_CLAIM_MS
from services.quorum.seen import WAITING_FOR_VIEW
from services.quorum.table import SLOT_REUSE_MS, FloatingVip, TableConfig, same_content
from tests.quorum.views import ECHO, WEB, quorum_config, seen, table_config, view, work_off

UP, DOWN, BANNED = NodeState.UP, NodeState.DOWN, NodeState.BANNED
SEED = 0xFEED_FACE_CAFE_BEEF
SETTLE_MS = 2_000


def bootstrapped(*nodes: str) -> tuple[Quorum, list[HardState]]:
    """A leader whose table lists `nodes` as UP, and its disk."""
    disk: list[HardState] = []
    core = Quorum(quorum_config(), BLANK, SEED, 0)
    work_off(core, 0, disk)
    core.report("boot-1", view(*(seen(node, UP) for node in nodes)), 1)
    work_off(core, 1, disk)
    return core, disk


def table(core: Quorum, now_ms: int = 10) -> NodeTable:
    committed = core.committed(now_ms)
    assert committed is not None
    return committed.table


def states(core: Quorum) -> dict[str, NodeState]:
    return {node.name: node.state for node in table(core).nodes}


def test_a_quorum_of_one_claims_far_ahead_and_renews_in_time() -> None:
    """So its VIPs outlast a restart of the process."""
    config = quorum_config()
    vips = replace(config, table=replace(config.table, vips=(FloatingVip("10.80.0.100"),)))
    core = Quorum(vips, BLANK, SEED, 0)
    work_off(core, 0)
    core.report("boot-1", view(seen("n", UP)), 5)
    claims = [ready.claims for ready in work_off(core, 5) if ready.claims is not None]
    assert claims == [{"10.80.0.100": 10_005}]
    core.tick(2_005)  # the view has settled
    assert work_off(core, 5_004) == []
    assert core.next_due_ms() == 5_005
    core.tick(5_005)
    renewed = core.take(5_005)
    assert renewed is not None
    assert renewed.claims == {"10.80.0.100": 15_005}


def test_a_blank_lb_votes_leads_waits_for_a_view_and_commits() -> None:
    core = Quorum(quorum_config(), BLANK, SEED, 0)
    assert core.state(0).role is Role.CANDIDATE
    assert not core.state(0).quorum
    first = core.take(0)
    assert first is not None
    assert first.persist is not None
    assert first.persist.state == HardState(1, "lb-0", None)
    core.stored(first.persist.mark, 0)
    state = core.state(0)
    assert (state.role, state.term, state.leader, state.quorum) == (Role.LEADER, 1, "lb-0", True)
    assert state.waiting_for == WAITING_FOR_VIEW
    assert state.lease_remaining_ms == ALONE_CLAIM_MS
    (led,) = work_off(core, 0)
    assert [topic for topic, _ in led.events] == [Topic.QUORUM_LEADER]
    assert core.committed(0) is None
    core.report("boot-1", view(seen("n", UP)), 5)
    persisted, committed = work_off(core, 5)
    assert persisted.persist is not None
    assert committed.committed is not None
    assert committed.committed.table == persisted.persist.state.table
    assert committed.committed.table.hash_seed == SEED
    assert (committed.committed.table.term, committed.committed.table.epoch) == (1, 1)
    ((topic, event),) = committed.events
    assert topic is Topic.TABLE_COMMITTED
    assert isinstance(event, TableEvent)
    assert (event.nodes_up, event.changes[0]) == (1, "n new -> up")
    assert core.state(5).waiting_for == ""


def test_nothing_is_published_before_it_is_durable() -> None:
    core, disk = bootstrapped("n")
    core.report("boot-1", view(seen("n", DOWN), version=2), 5)
    asked = core.take(5)
    assert asked is not None
    assert asked.persist is not None
    assert asked.committed is None
    for again_ms in (6, 700, 1_500):
        core.stall("the disk is full")
        core.report("boot-1", view(seen("n", UP), seen("m", UP), version=again_ms), again_ms)
        core.tick(again_ms)
        assert work_off(core, again_ms) == [], "one write at a time"
        assert table(core, again_ms).epoch == disk[-1].table.epoch  # type: ignore[union-attr]
        assert core.state(again_ms).waiting_for == "the disk is full"
    core.stored(asked.persist.mark, 2_000)
    assert core.state(2_000).waiting_for == ""
    done = work_off(core, 2_000)
    epochs = [ready.committed.table.epoch for ready in done if ready.committed is not None]
    assert epochs == [2, 3], "the proposal under way first, then what was seen meanwhile"
    assert states(core) == {"m": UP, "n": UP}


def test_a_restart_leads_on_in_its_term_and_publishes_its_table_at_once() -> None:
    before, disk = bootstrapped("n")
    core = Quorum(quorum_config(), disk[-1], SEED + 1, 50)
    done = work_off(core, 50)
    first = done[0]
    assert first.persist is None
    assert first.committed is not None
    assert first.committed.table == table(before)
    ((topic, event),) = first.events
    assert topic is Topic.QUORUM_LEADER
    assert isinstance(event, QuorumEvent)
    assert event.term == 1
    assert len(done) == 1, "the same configuration: no new table"


def test_a_restart_under_a_new_name_takes_a_new_term_and_keeps_the_table() -> None:
    before, disk = bootstrapped("n")
    core = Quorum(quorum_config(name="lb-9"), disk[-1], SEED + 1, 50)
    done = work_off(core, 50, disk)
    assert done[0].committed is not None
    assert (disk[-1].term, disk[-1].vote) == (2, "lb-9")
    assert (table(core).term, table(core).epoch) == (2, 2)
    assert table(core).nodes == table(before).nodes
    assert table(core).hash_seed == SEED
    assert {piece.owner for piece in table(core).snat_slices} == {"lb-9"}


def test_a_health_process_that_starts_empty_wipes_no_node() -> None:
    core, _ = bootstrapped("a", "b")
    core.report("boot-2", view(), 100)
    core.tick(100 + SETTLE_MS - 1)
    assert work_off(core, 100 + SETTLE_MS - 1) == []
    assert states(core) == {"a": UP, "b": UP}
    core.report("boot-2", view(seen("a", UP), version=2), 200)
    core.report("boot-2", view(seen("a", DOWN), version=3), 300)
    work_off(core, 300)
    assert states(core) == {"a": DOWN, "b": UP}


def test_what_a_settled_health_process_does_not_know_is_gone() -> None:
    core, _ = bootstrapped("a", "b")
    core.report("boot-2", view(seen("a", UP)), 100)
    assert core.next_due_ms() == 100 + SETTLE_MS
    core.tick(100 + SETTLE_MS)
    work_off(core, 100 + SETTLE_MS)
    assert states(core) == {"a": UP}
    assert core.next_due_ms() is None


def test_each_lb_settles_by_its_own_boot() -> None:
    core, _ = bootstrapped("a", "b")
    core.report("boot-2", view(seen("b", UP)), 100)
    core._take_report("lb-1", "boot-1", view(seen("a", UP)), 900, 900)
    core._take_report("lb-2", "boot-1", view(), 100, 100)
    for now_ms in (100 + SETTLE_MS - 1, 100 + SETTLE_MS):
        assert states(core) == {"a": UP, "b": UP}
        core.tick(now_ms)
        work_off(core, now_ms)
    assert states(core) == {"a": DOWN, "b": UP}, "two know no a; lb-1 may yet learn of b"
    core.tick(900 + SETTLE_MS)
    work_off(core, 900 + SETTLE_MS)
    assert states(core) == {"a": DOWN, "b": DOWN}


def test_a_repeated_or_overtaken_view_changes_nothing() -> None:
    core, _ = bootstrapped("a")
    core.report("boot-1", view(seen("a", UP), version=5), 10)
    core.report("boot-1", view(seen("a", DOWN), version=5), 11)
    core.report("boot-1", view(seen("a", DOWN), version=4), 12)
    assert work_off(core, 12) == []


def test_without_views_the_table_stands() -> None:
    _, disk = bootstrapped("a")
    core = Quorum(quorum_config(), disk[-1], SEED, 0)
    work_off(core, 0)
    for hour in range(24):
        core.tick(hour * 3_600_000)
        assert work_off(core, hour * 3_600_000) == []
    assert states(core) == {"a": UP}


def test_a_ban_runs_down_between_views_and_costs_no_epoch() -> None:
    core, disk = bootstrapped("a")
    core.report("boot-1", view(seen("a", BANNED, ban_ms=60_000, fails=3), version=2), 100)
    work_off(core, 100, disk)
    epoch = table(core, 100).epoch
    assert table(core, 10_100).bans[0].remaining_ms == 50_000
    core.report("boot-1", view(seen("a", BANNED, ban_ms=45_000, fails=3), version=3), 12_000)
    assert work_off(core, 12_000, disk) == []
    assert table(core, 13_000).bans[0].remaining_ms == 44_000
    assert table(core, 13_000).epoch == epoch
    restarted = Quorum(quorum_config(), disk[-1], SEED, 500_000)
    assert table(restarted, 501_000).bans[0].remaining_ms == 59_000


def test_a_new_configuration_is_a_new_epoch_and_an_equal_one_is_not() -> None:
    core, _ = bootstrapped("a")
    core.reconfigure(quorum_config(name="renamed"), 50)
    assert work_off(core, 50) == []
    core.reconfigure(quorum_config(table=TableConfig((WEB, ECHO), ())), 60)
    work_off(core, 60)
    assert table(core).epoch == 2
    assert core.state(60).name == "lb-0"
    assert states(core) == {"a": UP}


def test_a_vip_of_a_quorum_of_one_is_its_own() -> None:
    core, _ = bootstrapped("a")
    vips = (FloatingVip("10.80.0.100", ("10.81.0.100",)),)
    core.reconfigure(quorum_config(table=table_config(vips=vips)), 60)
    work_off(core, 60)
    assert [(vip.address, vip.holder) for vip in core.state(60).vips] == [("10.80.0.100", "lb-0")]


@pytest.mark.parametrize("reuse_ms", [SLOT_REUSE_MS, 7 * 24 * 3_600_000])
def test_a_departed_lbs_slot_rests_for_the_longest_timeout(reuse_ms: int) -> None:
    _, disk = bootstrapped("a")
    shared = TableConfig((replace(WEB, snat_addresses=("10.81.0.100",)),), ())
    assert disk[-1].table is not None
    with_other = replace(
        disk[-1],
        table=replace(
            disk[-1].table, snat_slices=(SnatSlice("lb-7", "10.81.0.100", 1_536, 7_808),)
        ),
    )
    config = replace(quorum_config(table=shared), slot_reuse_ms=reuse_ms)
    core = Quorum(config, with_other, SEED, 0)
    work_off(core, 0)
    assert core.next_due_ms() == reuse_ms

    def owners() -> dict[str, int]:
        return {p.owner: p.first_port for p in table(core).snat_slices if p.address is not None}

    assert owners() == {"lb-7": 1_536, "lb-0": 9_344}
    core.tick(reuse_ms - 1)
    core.reconfigure(config, reuse_ms - 1)
    assert work_off(core, reuse_ms - 1) == []
    core.tick(reuse_ms)
    assert core.next_due_ms() is None, "on its way to the disk: nothing to do but wait for it"
    work_off(core, reuse_ms)
    assert owners() == {"lb-0": 9_344}
    assert core.next_due_ms() is None


def test_an_illegal_change_of_role_raises() -> None:
    core, _ = bootstrapped()
    with pytest.raises(IllegalTransitionError, match="leader: won"):
        core._election._enter(Cause.WON)


steps = st.lists(
    st.one_of(
        st.tuples(
            st.just("view"),
            st.sampled_from(["boot-1", "boot-2", "boot-3"]),
            st.dictionaries(
                st.sampled_from("abc"),
                st.tuples(st.sampled_from(NodeState), st.integers(0, 9_000)),
            ),
        ),
        st.tuples(st.just("config"), st.booleans(), st.booleans()),
        st.tuples(st.just("wait"), st.integers(0, 5_000), st.none()),
        st.tuples(st.just("crash"), st.booleans(), st.none()),
        st.tuples(st.just("disk"), st.booleans(), st.none()),
    ),
    max_size=25,
)


class Machine:
    """A core, its disk, and all that it published; crashes come between any two instructions."""

    def __init__(self) -> None:
        self.disk = BLANK
        self.now_ms = 0
        self.version = 0
        self.disk_works = True
        self.published: list[NodeTable] = []
        self.config = quorum_config()
        self.core = Quorum(self.config, self.disk, SEED, 0)
        self.unwritten: Persist | None = None

    def act(self, step: tuple[str, object, object]) -> None:
        kind, one, other = step
        self.now_ms += 1
        if kind == "view":
            assert isinstance(one, str)
            assert isinstance(other, dict)
            self.version += 1
            nodes = (seen(n, state, ban_ms=ms, fails=1) for n, (state, ms) in other.items())
            self.core.report(one, view(*nodes, version=self.version), self.now_ms)
        elif kind == "config":
            vips = (FloatingVip("10.80.0.100", ("10.81.0.100",)),) if other else ()
            services = (WEB, ECHO) if one else (WEB,)
            self.config = quorum_config(table=TableConfig(services, vips))
            self.core.reconfigure(self.config, self.now_ms)
        elif kind == "wait":
            assert isinstance(one, int)
            self.now_ms += one
            self.core.tick(self.now_ms)
        elif kind == "disk":
            self.disk_works = bool(one)
        elif kind == "crash":
            self.work_off(dies_before_publishing=bool(one))
            self.core = Quorum(self.config, self.disk, SEED + 1, self.now_ms)
            self.unwritten = None
        self.work_off()

    def work_off(self, *, dies_before_publishing: bool = False) -> None:
        if self.unwritten is not None:
            self.write()
        while (ready := self.core.take(self.now_ms)) is not None:
            if ready.committed is not None:
                table = ready.committed.table
                assert self.disk.table is not None
                assert (table.term, table.epoch) <= (self.disk.table.term, self.disk.table.epoch)
                self.published.append(table)
            if ready.persist is not None:
                self.unwritten = ready.persist
                self.write()
                if dies_before_publishing:
                    return

    def write(self) -> None:
        assert self.unwritten is not None
        if not self.disk_works:
            self.core.stall("full")
            return
        self.disk, mark = self.unwritten.state, self.unwritten.mark
        self.unwritten = None
        self.core.stored(mark, self.now_ms)


@given(steps)
def test_every_schedule_publishes_one_history(
    schedule: list[tuple[str, object, object]],
) -> None:
    machine = Machine()
    for step in schedule:
        machine.act(step)
    by_epoch: dict[int, NodeTable] = {}
    newest = (0, 0)
    for each in machine.published:
        assert (each.term, each.epoch) >= newest, "never backwards, crash or not"
        newest = (each.term, each.epoch)
        assert each.hash_seed == machine.published[0].hash_seed
        first = by_epoch.setdefault(each.epoch, each)
        assert same_content(first, each), "one epoch, one content"
    for before, after in pairwise(machine.published):
        assert after.epoch - before.epoch in (0, 1), "none is skipped"
        if before.epoch + 1 == after.epoch:
            assert not same_content(before, after)
    assert machine.disk.table is None or machine.disk.table.epoch >= newest[1]
    assert machine.disk.term <= 1
