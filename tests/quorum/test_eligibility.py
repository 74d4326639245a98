"""Whether an LB may hold VIPs: each reason why not, and that it goes away."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.states import DataplaneState, HookState, LocalView, NodeTable
from bus.words import Mode, NodeState
from services.quorum.eligibility import STEADY_MS, Eligibility
from services.quorum.table import Report as TableReport
from services.quorum.table import bootstrap, merge
from tests.quorum.views import seen, table_config, view

UP, DOWN, SUSPECT = NodeState.UP, NodeState.DOWN, NodeState.SUSPECT


def dataplane(*attached: bool) -> DataplaneState:
    hooks = tuple(
        HookState("xdp", f"pub{number}", is_attached, "native", "")
        for number, is_attached in enumerate(attached)
    )
    return DataplaneState(1, True, 1, Mode.L4, hooks, (), (), 0, "")


def table_of(names: str) -> NodeTable:
    reports = {"lb-0": TableReport(view(*(seen(name, UP) for name in names)), True, 0)}
    return merge(bootstrap(1, 7), reports, table_config(), ["lb-0"], term=1)


def sees(**states: NodeState) -> LocalView:
    return view(*(seen(name, state) for name, state in states.items()))


def well() -> Eligibility:
    """Of an LB that may hold VIPs."""
    made = Eligibility(("pub0", "priv0"), witness=False)
    for interface in ("pub0", "priv0"):
        made.carrier(interface, up=True, now_ms=0)
    made.dataplane(dataplane(True, True))
    return made


def test_an_lb_that_is_well_is_eligible() -> None:
    assert well().verdict(0).eligible
    assert well().next_due_ms() is None


def test_one_that_nothing_is_known_of_is_not() -> None:
    why = Eligibility(("pub0", "priv0"), witness=False).verdict(0).why
    assert why == ("pub0 has no carrier", "the dataplane process has not been heard yet")


@pytest.mark.parametrize("interface", ["pub0", "priv0"])
def test_a_carrier_that_comes_back_has_to_be_steady(interface: str) -> None:
    made = well()
    made.carrier(interface, up=False, now_ms=10)
    assert made.verdict(10).why == (f"{interface} has no carrier",)
    made.carrier(interface, up=True, now_ms=20)
    assert made.verdict(20).why == (f"the carrier of {interface} has only just come back",)
    assert made.next_due_ms() == 20 + STEADY_MS
    made.carrier(interface, up=False, now_ms=500)
    made.carrier(interface, up=True, now_ms=600)
    assert not made.verdict(20 + STEADY_MS).eligible, "it flaps"
    assert made.verdict(600 + STEADY_MS).eligible
    assert made.next_due_ms() is None


def test_a_carrier_that_was_steady_in_time_is_not_waited_for_again() -> None:
    made = well()
    made.carrier("priv0", up=False, now_ms=10)
    made.carrier("priv0", up=True, now_ms=20)
    made.carrier("pub0", up=False, now_ms=30)
    assert made.verdict(20 + STEADY_MS).why == ("pub0 has no carrier",)
    assert made.next_due_ms() is None


@pytest.mark.parametrize(
    ("attached", "why"),
    [
        ((), "its programs are not attached to pub0"),
        ((True, False), "its programs are not attached to pub1"),
        ((False, False), "its programs are not attached to pub0, pub1"),
    ],
)
def test_programs_that_are_not_attached(attached: tuple[bool, ...], why: str) -> None:
    made = well()
    made.dataplane(dataplane(*attached))
    assert made.verdict(0).why == (why,)


@pytest.mark.parametrize(
    ("seen_here", "why"),
    [
        (sees(a=UP, b=UP, c=UP), ()),
        (sees(a=UP, b=SUSPECT, c=DOWN), ()),
        (sees(a=UP, b=DOWN, c=DOWN), ("it sees 1 of the 3 nodes that are up",)),
        (sees(), ("it sees 0 of the 3 nodes that are up",)),
        (None, ("it sees 0 of the 3 nodes that are up",)),
    ],
)
def test_it_must_see_half_of_the_nodes(seen_here: LocalView | None, why: tuple[str, ...]) -> None:
    made = well()
    made.nodes(seen_here, table_of("abc"))
    assert made.verdict(0).why == why


def test_who_hears_no_node_sees_none_whatever_it_still_believes() -> None:
    made = well()
    made.nodes(replace(sees(a=UP, b=UP, c=SUSPECT), deaf=True), table_of("abc"))
    assert made.verdict(0).why == ("it does not hear any of the 3 nodes that are up",)
    assert made.verdict(0).fitness < well().verdict(0).fitness
    made.nodes(sees(a=UP, b=UP, c=UP), table_of("abc"))
    assert made.verdict(0).eligible


def test_half_is_enough_and_no_node_asks_for_none() -> None:
    made = well()
    made.nodes(sees(a=UP), table_of("ab"))
    assert made.verdict(0).eligible
    made.nodes(None, None)
    assert made.verdict(0).eligible


def test_who_leaves_and_who_lacks_flows_and_who_only_votes() -> None:
    made = well()
    made.leaving = True
    made.dataplane(replace(dataplane(True), synced=False))
    assert made.verdict(0).why == (
        "it does not have the other LBs' flows yet",
        "an operator has handed over from it",
    )
    assert Eligibility(("pub0", "priv0"), witness=True).verdict(0).why == ("it only votes",)


def test_the_holders_own_flows_are_those_that_count() -> None:
    """Its dataplane process has started again, and has not yet heard the others."""
    made = well()
    made.dataplane(replace(dataplane(True), synced=False))
    assert made.verdict(0, holds=True).eligible
    assert made.verdict(0, holds=False).why == ("it does not have the other LBs' flows yet",)


def test_of_those_that_are_not_eligible_the_better_is_fitter() -> None:
    blind, cut, leaving = well(), well(), well()
    blind.nodes(sees(a=UP), table_of("abc"))
    cut.carrier("pub0", up=False, now_ms=1)
    leaving.leaving = True
    fitness = [each.verdict(2).fitness for each in (well(), blind, cut, leaving)]
    assert fitness == sorted(fitness, reverse=True)
    assert len(set(fitness)) == 4
