"""A service keeps its old mode until its nodes are prepared for the new one, but not for ever."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.states import (
    LocalView,
    NodeService,
    NodeTable,
    TableNode,
    TableService,
)
from bus.words import (
    Mode,
    NodeState,
    Protocol,
)
from services.dataplane.mode_change import (
    GRACE_MS,
    Modes,
    ModesInForce,
    modes_in_force,
    modes_of_nodes,
)
from services.node.direct import LINGER_MS
from tests.quorum.views import seen

L2, L3, L4 = Mode.L2, Mode.L3, Mode.L4
ALL = (L2, L3, L4)
UP, DOWN, DRAINING, BANNED = NodeState.UP, NodeState.DOWN, NodeState.DRAINING, NodeState.BANNED


def ask(
    wanted: Mode,
    in_force: Mode | None,
    prepared: list[Modes],
    since_ms: Mapping[tuple[str, Mode], int] | None = None,
    now_ms: int = 1_000,
) -> ModesInForce:
    held = {} if in_force is None else {"web": in_force}
    return modes_in_force({"web": wanted}, held, {"web": prepared}, since_ms or {}, now_ms)


@pytest.mark.parametrize(
    ("in_force", "wanted", "prepared", "mode"),
    [
        (None, L3, [(L4,)], L3),
        (L4, L4, [(L4,)], L4),
        (L3, L3, [(L4,)], L3),
        (L4, L3, [], L3),
        (L4, L3, [()], L3),
        (L4, L3, [ALL, (), (L3, L4)], L3),
        (L4, L3, [(L4,)], L4),
        (L4, L3, [ALL, ALL, (L2, L4)], L4),
        (L4, L3, [(L4,), ALL], L4),
        (L4, L2, [(L2, L4)], L2),
        (L2, L3, [(L2, L4)], L2),
        (L3, L2, [(L4,)], L3),
        (L3, L4, [(L4,)], L4),
    ],
)
def test_which_mode_is_in_force(
    in_force: Mode | None, wanted: Mode, prepared: list[Modes], mode: Mode
) -> None:
    answer = ask(wanted, in_force, prepared)
    assert answer.modes == {"web": mode}
    waits = mode is not wanted
    assert answer.since_ms == ({("web", wanted): 1_000} if waits else {})
    assert answer.next_ms == (1_000 + GRACE_MS if waits else None)


def test_after_the_grace_it_waits_for_nobody() -> None:
    first = ask(L3, L4, [(L4,)], now_ms=1_000)
    later = ask(L3, L4, [(L4,)], first.since_ms, 1_000 + GRACE_MS - 1)
    assert (later.modes, later.next_ms) == ({"web": L4}, first.next_ms)
    assert first.next_ms is not None
    over = ask(L3, L4, [(L4,)], later.since_ms, first.next_ms)
    assert (over.modes, over.since_ms, over.next_ms) == ({"web": L3}, {}, None)


def test_a_change_that_is_taken_back_or_replaced_waits_from_the_start() -> None:
    first = ask(L3, L4, [(L4,)], now_ms=0)
    back = ask(L4, L4, [(L4,)], first.since_ms, 4_000)
    assert (back.modes, back.since_ms) == ({"web": L4}, {})
    assert ask(L3, L4, [(L4,)], back.since_ms, 5_000).modes == {"web": L4}
    other = ask(L2, L4, [(L4,)], first.since_ms, 4_000)
    assert other.since_ms == {("web", L2): 4_000}
    assert ask(L2, L4, [(L4,)], other.since_ms, 5_000).modes == {"web": L4}


def test_services_wait_each_for_its_own_nodes() -> None:
    answer = modes_in_force(
        {"a": L3, "b": L3, "c": L2, "new": L3},
        {"a": L4, "b": L4, "c": L4, "gone": L4},
        {"a": [ALL], "b": [(L4,)], "c": [(L4,)]},
        {("c", L2): 500},
        1_000,
    )
    assert answer.modes == {"a": L3, "b": L4, "c": L4, "new": L3}
    assert answer.since_ms == {("b", L3): 1_000, ("c", L2): 500}
    assert answer.next_ms == 500 + GRACE_MS


modes = st.sampled_from(Mode)
names = st.sampled_from(["a", "b", "c"])


@given(
    wanted=st.dictionaries(names, modes),
    in_force=st.dictionaries(names, modes),
    prepared=st.dictionaries(names, st.lists(st.lists(modes, unique=True).map(tuple))),
)
def test_it_settles_within_the_grace_and_only_waits_for_a_reason(
    wanted: dict[str, Mode], in_force: dict[str, Mode], prepared: dict[str, list[Modes]]
) -> None:
    first = modes_in_force(wanted, in_force, prepared, {}, 0)
    assert first.modes.keys() == wanted.keys()
    for name, mode in first.modes.items():
        assert mode in (wanted[name], in_force.get(name))
        if mode is not wanted[name]:
            assert any(said and wanted[name] not in said for said in prepared[name])
    again = modes_in_force(wanted, first.modes, prepared, first.since_ms, 1)
    assert (again.modes, again.since_ms) == (first.modes, first.since_ms)
    end = modes_in_force(wanted, again.modes, prepared, again.since_ms, GRACE_MS)
    assert (end.modes, end.next_ms) == (wanted, None)


def test_nodes_keep_their_preparation_for_longer_than_it_is_waited_for() -> None:
    assert LINGER_MS >= 2 * GRACE_MS


# --------------------------------------------------------------------------- what nodes say

WEB = TableService("web", None, 80, Protocol.TCP, L3, 80)


def table(**nodes: tuple[NodeState, tuple[NodeService, ...]]) -> NodeTable:
    listed = tuple(
        TableNode(f"{name}@10.81.0.20", name, "10.81.0.20", state, 1, services)
        for name, (state, services) in nodes.items()
    )
    return NodeTable(1, 1, 7, (WEB, replace(WEB, name="dns", port=53)), listed, (), (), ())


def serves(*prepared: Mode, name: str = "web") -> tuple[NodeService, ...]:
    return (NodeService(name, 80, prepared),)


def test_only_nodes_that_are_up_and_serve_it_are_asked() -> None:
    agreed = table(
        a=(UP, serves(L3, L4)),
        b=(DOWN, serves(L4)),
        c=(DRAINING, serves(L4)),
        d=(UP, serves(L4, name="dns")),
        e=(UP, serves(L4, name="gone")),
    )
    assert modes_of_nodes(agreed, None) == {"web": [(L3, L4)], "dns": [(L4,)]}


@pytest.mark.parametrize(
    ("state", "services", "prepared"),
    [
        (UP, serves(L3, L4), [(L3, L4)]),
        (UP, serves(), [()]),
        (DRAINING, serves(L3, L4), [(L3, L4)]),
        (NodeState.PROBATION, serves(L4), [(L4,)]),
        (DOWN, serves(L3, L4), []),
        (BANNED, serves(L3, L4), []),
    ],
)
def test_what_this_lb_hears_goes_before_what_is_agreed(
    state: NodeState, services: tuple[NodeService, ...], prepared: list[Modes]
) -> None:
    agreed = table(a=(UP, serves(L4)))
    view = LocalView(1, (replace(seen("a", state), services=services), seen("x", UP)))
    assert modes_of_nodes(agreed, view)["web"] == prepared
