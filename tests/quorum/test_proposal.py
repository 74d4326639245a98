"""When a leader makes a table, and what it makes of the one before."""

from __future__ import annotations

from dataclasses import replace

from bus.orders import Asked, OrderKind
from bus.states import NodeTable, SnatSlice
from bus.words import NodeState
from services.quorum.desks import Desks
from services.quorum.grants import Grants
from services.quorum.opening import Opening
from services.quorum.proposal import Proposer
from services.quorum.register import Dated, Register
from services.quorum.reports import OwnView, Reports
from services.quorum.roster import SILENT_REPORT_MS
from services.quorum.staged import Staging
from services.quorum.table import TableConfig
from tests.quorum.cluster import OLD
from tests.quorum.rig import Rig, rig, table_of
from tests.quorum.views import seen, view

UP, DOWN = NodeState.UP, NodeState.DOWN
REUSE_MS = 50_000


class Leader:
    """A rig that leads, and what it makes tables of."""

    def __init__(self, made: Rig, config: TableConfig = OLD) -> None:
        self.made = made
        made.lead()
        self.reports = Reports(OwnView("lb-0", alone=made.roster.alone), 2_000)
        self.desks = Desks("lb-0", made.outbox)
        grants = Grants("b", made.roster, made.election, made.register, made.outbox)
        staging = Staging(config, None, alone=made.roster.alone, witness=False)
        self.proposer = Proposer(
            7,
            REUSE_MS,
            Opening(1_000),
            made.roster,
            made.election,
            made.register,
            self.reports,
            grants,
            staging,
            self.desks,
            0,
        )

    def see(self, lb: str, state: NodeState, version: int, now_ms: int) -> None:
        self.proposer.stale |= self.reports.take(
            lb, "b", view(seen("a", state), version=version), now_ms, now_ms
        )

    def commit(self, now_ms: int) -> NodeTable | None:
        """What it makes now, as if all had stored it at once."""
        table = self.proposer.next_table(now_ms)
        if table is not None:
            register: Register = self.made.register
            register.accepted = register.stored = register.committed = Dated(table, now_ms)
        return table


def test_nothing_is_made_before_a_view_and_one_table_at_a_time() -> None:
    one = Leader(rig("lb-1"))
    assert one.proposer.next_table(0) is None
    one.see("lb-0", UP, 1, 1)
    first = one.proposer.next_table(1)
    assert first is not None
    assert (first.term, first.epoch, first.hash_seed) == (1, 1, 7)
    assert one.made.register.accept(first, 1)
    one.see("lb-0", DOWN, 2, 2)
    assert one.proposer.next_table(2) is None, "the first is on its way"
    one.made.register.committed = one.made.register.accepted
    second = one.proposer.next_table(3)
    assert second is not None
    assert second.nodes[0].state is DOWN
    assert second.epoch == 2


def test_the_first_table_is_made_of_that_of_when_it_was_alone() -> None:
    one = Leader(rig("lb-1"))
    one.made.register.begin_with(replace(table_of("lb-5", epoch=40), hash_seed=99), 0)
    one.see("lb-0", UP, 1, 1)
    first = one.proposer.next_table(1)
    assert first is not None
    assert (first.epoch, [each.address for each in first.members]) == (1, ["lb-0", "lb-1"])
    assert first.hash_seed == 99


def test_without_news_nothing_is_made_until_an_lb_falls_silent() -> None:
    one = Leader(rig("lb-1"))
    one.see("lb-0", DOWN, 1, 0)
    one.see("lb-1", UP, 1, 0)
    table = one.commit(0)
    assert table is not None
    assert table.nodes == (), "one of two is no majority"
    assert one.commit(1) is None
    one.see("lb-0", UP, 2, 2)
    table = one.commit(2)
    assert table is not None
    assert table.nodes[0].state is UP
    one.see("lb-0", DOWN, 3, 3)
    assert one.commit(3) is None, "a draw changes nothing"
    one.commit(SILENT_REPORT_MS - 1)
    table = one.commit(SILENT_REPORT_MS)
    assert table is not None
    assert table.nodes[0].state is DOWN, "lb-1 has no say any more"


def test_a_table_of_an_earlier_term_is_proposed_again_though_it_is_not_committed() -> None:
    made = rig("lb-1", table=table_of("lb-0", "lb-1"))
    made.register.committed = None
    one = Leader(made)
    made.election.term = 3
    table = one.proposer.next_table(0)
    assert table is not None
    assert (table.term, table.epoch) == (3, 2)


def test_a_slot_rests_before_others_may_have_it() -> None:
    service = replace(OLD.services[0], snat_addresses=("10.81.0.100",))
    gone = SnatSlice("gone", "10.81.0.100", 1_536, 7_808)
    base = replace(table_of("lb-0"), services=(service,), snat_slices=(gone,), members=())
    one = Leader(rig(table=base), config=replace(OLD, services=(service,)))
    one.see("lb-0", UP, 1, 1)
    one.commit(10)
    assert one.proposer.next_due_ms() == 10 + REUSE_MS
    one.proposer.slot_reuse_ms = 10
    assert one.proposer.next_due_ms() == 20
    assert one.commit(19) is None
    table = one.commit(20)
    assert table is not None
    assert "gone" not in {each.owner for each in table.snat_slices}


def test_an_orders_deadline_is_due_once() -> None:
    one = Leader(rig())
    one.see("lb-0", UP, 1, 0)
    one.commit(0)
    node = "a@10.81.0.20"
    one.desks.order("1", Asked(node, OrderKind.DRAIN, "me", "", within_ms=500), None, 10)
    one.proposer.stale = True
    table = one.commit(10)
    assert table is not None
    assert table.nodes[0].state is NodeState.DRAINING
    assert one.proposer.next_due_ms() == 510
    assert one.commit(509) is None
    table = one.commit(510)
    assert table is not None
    assert table.nodes[0].state is DOWN
    assert one.proposer.next_due_ms() is None
