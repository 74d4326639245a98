"""What of the disk counts at a start."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.quorum.composition import Parts, compose
from services.quorum.durable import HardState
from tests.quorum.rig import table_of
from tests.quorum.views import quorum_config

STORED = HardState(4, "lb-0", table_of("lb-0", "lb-2"), 125, joined=True)


def parts(stored: HardState, *others: str) -> Parts:
    config = replace(quorum_config(), address="lb-0", others=others)
    return compose(config, stored, 9, 0, "boot", lambda: 0.5, lambda _table, _now: None)


def test_one_alone_goes_by_its_table_at_once() -> None:
    made = parts(replace(STORED, joined=False))
    assert made.register.committed is not None
    assert made.register.committed.table == STORED.table
    assert (made.election.term, made.election.vote, made.election.is_blank) == (4, "lb-0", False)


def test_in_a_cluster_the_table_may_have_been_overtaken() -> None:
    made = parts(STORED, "lb-1")
    assert made.register.committed is None
    assert made.register.stored is not None
    assert made.roster.in_force == ("lb-0", "lb-2"), "but it says who agrees"
    assert made.staging.agreed != ""
    assert not made.election.is_blank


def test_what_it_did_alone_is_no_memory_of_the_cluster() -> None:
    made = parts(replace(STORED, joined=False), "lb-1")
    assert made.register.stored is None
    assert made.register.first is not None
    assert made.register.first.table == STORED.table, "but the first table is made of it"
    assert made.roster.in_force == ("lb-0", "lb-1")
    assert (made.election.vote, made.election.is_blank) == (None, True)
    assert made.staging.agreed == ""


def test_what_was_kept_for_the_first_table_is_kept_over_a_restart() -> None:
    kept = HardState(9, "lb-1", None, 125, joined=True, first=STORED.table)
    among_others = parts(kept, "lb-1").register
    assert (among_others.accepted, among_others.stored) == (None, None)
    assert among_others.first is not None
    assert among_others.first.table == STORED.table
    alone_again = parts(kept).register
    assert alone_again.committed is not None
    assert alone_again.committed.table == STORED.table


@pytest.mark.parametrize("witness", [False, True])
def test_a_witness_stages_nothing_and_holds_nothing(witness: bool) -> None:
    config = replace(quorum_config(), address="lb-0", others=("lb-1",), witness=witness)
    made = compose(config, STORED, 9, 0, "boot", lambda: 0.5, lambda _table, _now: None)
    assert made.own.standing.eligible is not witness
    assert bool(made.staging.own) is not witness
