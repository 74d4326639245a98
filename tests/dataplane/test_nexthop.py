"""The fold of netlink's messages into next hops, without a kernel."""

from __future__ import annotations

from dataclasses import replace
from itertools import permutations

import pytest

from services.dataplane.nexthop import (
    NARROW_MS,
    NUD_NOARP,
    NUD_PERMANENT,
    NUD_REACHABLE,
    NUD_STALE,
    REFRESH_MS,
    RESOLVE_MS,
    EverythingChanged,
    Link,
    LinkGone,
    Neighbour,
    NextHop,
    NextHopTable,
    PathNarrowed,
    Route,
    RoutesChanged,
)

INCOMPLETE, DELAY, PROBE, FAILED = 0x01, 0x08, 0x10, 0x20
NODE, OTHER, GATEWAY = "10.81.0.20", "10.99.0.5", "10.81.0.254"
OWN_MAC, NODE_MAC = "02:00:00:00:00:01", "02:00:00:00:00:20"
LINK = Link(3, OWN_MAC, 1500, True)
ON_LINK = Route(3, None, "10.81.0.10", None)
PRESENT = Neighbour(3, NODE, NODE_MAC, NUD_REACHABLE)
RESOLVED = NextHop(3, OWN_MAC, NODE_MAC, 1500, None, "10.81.0.10")


def resolved() -> NextHopTable:
    table = NextHopTable()
    table.watch([NODE])
    table.fold(LINK)
    table.fold(PRESENT)
    table.answer(NODE, ON_LINK)
    return table


def test_link_neighbour_and_route_make_a_next_hop() -> None:
    table = resolved()
    assert table.next_hops() == {NODE: RESOLVED}
    assert table.routes_to_ask() == []


def test_a_narrow_path_is_asked_for_at_once_and_again_as_long_as_it_is() -> None:
    table = resolved()
    table.due(0)
    table.fold(PathNarrowed("10.81.0.99"))
    assert table.routes_to_ask() == []
    table.fold(PathNarrowed(NODE))
    assert table.routes_to_ask() == [NODE]
    table.answer(NODE, replace(ON_LINK, mtu=1400))
    assert table.next_hops()[NODE] == replace(RESOLVED, mtu=1400)
    table.due(1000)
    table.due(1000 + NARROW_MS - 1)
    assert table.routes_to_ask() == []
    table.due(1000 + NARROW_MS)
    assert table.routes_to_ask() == [NODE]
    table.answer(NODE, ON_LINK)
    table.due(1000 + 2 * NARROW_MS)
    table.due(1000 + 4 * NARROW_MS)
    assert table.routes_to_ask() == []


def test_an_address_of_this_machine_leads_nowhere_and_asks_for_no_neighbour() -> None:
    table = NextHopTable()
    table.watch([NODE])
    table.fold(Link(1, "00:00:00:00:00:00", 65_536, True))
    table.answer(NODE, Route(1, None, NODE, None, own=True))
    assert table.next_hops() == {
        NODE: NextHop(1, "00:00:00:00:00:00", None, 65_535, None, NODE, own=True)
    }
    assert table.due(0) == []
    table.answer(NODE, ON_LINK)
    table.fold(LINK)
    assert table.due(0) == [(3, NODE)]


def test_in_every_order() -> None:
    for order in permutations(range(4)):
        table = NextHopTable()
        for step in order:
            match step:
                case 0:
                    table.watch([NODE])
                case 1:
                    table.fold(LINK)
                case 2:
                    table.fold(PRESENT)
                case 3:
                    table.fold(EverythingChanged())
        for address in table.routes_to_ask():
            table.answer(address, ON_LINK)
        assert table.next_hops() == {NODE: RESOLVED}


def test_says_nothing_of_an_address_it_has_not_asked_for() -> None:
    table = NextHopTable()
    table.watch([NODE])
    assert table.next_hops() == {}
    assert table.routes_to_ask() == [NODE]


@pytest.mark.parametrize(
    ("state", "usable"),
    [
        (0, False),
        (INCOMPLETE, False),
        (NUD_REACHABLE, True),
        (NUD_STALE, True),
        (DELAY, True),
        (PROBE, True),
        (FAILED, False),
        (NUD_NOARP, True),
        (NUD_PERMANENT, True),
    ],
)
def test_which_states_of_a_neighbour_count(state: int, usable: bool) -> None:
    table = resolved()
    table.fold(Neighbour(3, NODE, NODE_MAC, state))
    hop = table.next_hops()[NODE]
    assert hop is not None
    assert hop.destination_mac == (NODE_MAC if usable else None)


def test_a_gateway_s_neighbour_counts_not_the_node_s() -> None:
    table = resolved()
    table.answer(NODE, Route(3, GATEWAY, None, None))
    hop = table.next_hops()[NODE]
    assert hop == NextHop(3, OWN_MAC, None, 1500, GATEWAY, None)
    table.fold(Neighbour(3, GATEWAY, "02:00:00:00:00:fe", NUD_STALE))
    hop = table.next_hops()[NODE]
    assert hop is not None
    assert hop.destination_mac == "02:00:00:00:00:fe"


def test_a_neighbour_of_the_same_address_on_another_link_is_another() -> None:
    table = resolved()
    table.fold(Neighbour(4, NODE, "02:00:00:00:00:44", NUD_REACHABLE))
    assert table.next_hops() == {NODE: RESOLVED}


@pytest.mark.parametrize(
    ("route_mtu", "link_mtu", "mtu"),
    [(None, 1500, 1500), (1400, 1500, 1400), (9000, 1500, 1500), (None, 65536, 65535)],
)
def test_mtu_is_the_smallest(route_mtu: int | None, link_mtu: int, mtu: int) -> None:
    table = resolved()
    table.fold(Link(3, OWN_MAC, link_mtu, True))
    table.answer(NODE, Route(3, None, None, route_mtu))
    hop = table.next_hops()[NODE]
    assert hop is not None
    assert hop.mtu == mtu


def test_no_route_no_next_hop() -> None:
    table = resolved()
    table.answer(NODE, None)
    assert table.next_hops() == {NODE: None}
    assert table.due(0) == []


@pytest.mark.parametrize("news", [LinkGone(3), Link(3, OWN_MAC, 1500, False)])
def test_a_link_that_goes_takes_next_hops_and_routes_with_it(news: Link | LinkGone) -> None:
    table = resolved()
    table.fold(news)
    assert table.next_hops() == {NODE: None}
    assert table.routes_to_ask() == [NODE]
    assert table.due(0) == []


def test_a_link_that_is_as_it_was_asks_for_nothing() -> None:
    table = resolved()
    table.fold(LINK)
    assert table.routes_to_ask() == []


def test_only_routes_that_a_change_covers_are_asked_for_again() -> None:
    table = NextHopTable()
    table.watch([NODE, OTHER, "fd00::1"])
    for address in table.routes_to_ask():
        table.answer(address, None)
    table.fold(RoutesChanged("10.81.0.0/24"))
    assert table.routes_to_ask() == [NODE]
    table.fold(RoutesChanged("0.0.0.0/0"))
    assert table.routes_to_ask() == sorted([NODE, OTHER])
    table.fold(EverythingChanged())
    assert table.routes_to_ask() == sorted([NODE, OTHER, "fd00::1"])


def test_watching_less_forgets_and_watching_more_asks_for_that_alone() -> None:
    table = resolved()
    table.watch([NODE, OTHER])
    assert table.routes_to_ask() == [OTHER]
    table.watch([OTHER])
    assert table.next_hops() == {}
    table.answer(NODE, ON_LINK)
    assert table.next_hops() == {}


def test_what_is_no_longer_watched_is_not_asked_for() -> None:
    table = NextHopTable()
    table.watch([NODE])
    table.watch([OTHER])
    assert table.routes_to_ask() == [OTHER]


def test_after_a_loss_everything_is_asked_for_and_nothing_believed() -> None:
    table = resolved()
    table.forget()
    assert table.routes_to_ask() == [NODE]
    assert table.next_hops() == {NODE: None}
    table.fold(LINK)
    assert table.next_hops()[NODE] == NextHop(3, OWN_MAC, None, 1500, None, "10.81.0.10")


# --------------------------------------------------------------------------- whom to use, when


def test_a_resolved_neighbour_is_used_every_refresh() -> None:
    table = resolved()
    assert table.due(100) == [(3, NODE)]
    assert table.next_ms(100) == 100 + REFRESH_MS
    assert table.due(99 + REFRESH_MS) == []
    assert table.due(100 + REFRESH_MS) == [(3, NODE)]


def test_an_unresolved_one_more_often() -> None:
    table = resolved()
    table.fold(Neighbour(3, NODE, None, 0))
    assert table.due(100) == [(3, NODE)]
    assert table.next_ms(100) == 100 + RESOLVE_MS
    table.fold(Neighbour(3, NODE, None, FAILED))
    assert table.due(99 + RESOLVE_MS) == []
    assert table.due(100 + RESOLVE_MS) == [(3, NODE)]


@pytest.mark.parametrize("state", [0, FAILED])
def test_one_that_is_lost_is_used_at_once(state: int) -> None:
    table = resolved()
    table.due(100)
    table.fold(Neighbour(3, NODE, None, state))
    assert table.next_ms(101) == 101
    assert table.due(101) == [(3, NODE)]


@pytest.mark.parametrize("state", [NUD_PERMANENT, NUD_NOARP])
def test_what_the_operator_wrote_is_never_touched(state: int) -> None:
    table = resolved()
    table.fold(Neighbour(3, NODE, NODE_MAC, state))
    assert table.due(100) == []
    assert table.next_ms(100) is None


def test_a_gateway_shared_by_many_is_used_once() -> None:
    table = resolved()
    table.watch([NODE, OTHER])
    for address in (NODE, OTHER):
        table.answer(address, Route(3, GATEWAY, None, None))
    assert table.due(0) == [(3, GATEWAY)]


def test_nobody_to_use_no_time() -> None:
    assert NextHopTable().next_ms(0) is None
