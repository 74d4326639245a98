"""Seats: a node's place at one service, an index of the array `seats`. Pure, part of the plan.

0 means nobody. The ring maps slots to seats, and each flow names the seat it belongs to. So

* a node keeps its seat for as long as the table lists it, in whatever state;
* a seat that nobody has any more is *retired*: it goes on forwarding its flows, and its number is
  given to somebody else only after a census that began later has met no flow that names it;
* the lowest free number is given first, to what is routed to only; and to all the services of
  a node at once, so that their seats lie apart as their ids do (see `rings`), where there is room;
* the value carries a 64-bit hash of service and node, by which a restarted process knows it again.

**Standing.** UP and SUSPECT take new flows. DEAD is the seat of a node that is DOWN or BANNED, as a
whole or at this service, as agreed or as seen from here, or that the table has forgotten: its UDP
flows, and a SYN, choose anew. RESET is a dead one whose TCP flows are told by a RST: if
`on_node_down` says so, or by default if the node is silent; a node that only said that it does not
serve may yet finish what it began. A seat that is draining, or whose node serves this service no
more, is neither up nor dead.

**Port cursors.** Two flows meet at a node if they have its address and port in common, whatever
their services are. So all seats of one address and port take their SNAT ports by one cursor; it is
numbered by the lowest of the seats that shared it first, and stays while any of them is there.

**Endpoints** are the nodes' addresses and ports. What comes from one of them to an SNAT port is
somebody's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from bus.states import LocalView, NodeTable, TableService, states_apart
from bus.words import Mode, NodeState, OnNodeDown, Protocol
from services.dataplane.flows.census import Census
from services.dataplane.fronts import SETTLE_MS, shared_snat
from services.dataplane.maps import (
    NO_SEAT,
    Ailing,
    Death,
    KernelState,
    LocalFacts,
    Place,
    Seat,
    Seated,
    Service,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.words import ServiceKey

SERVING = frozenset({NodeState.UP, NodeState.SUSPECT})
"""New flows go to nodes of these states."""

SEATED = SERVING | {NodeState.DRAINING}
"""Nodes of these states are given a seat."""

DEAD = frozenset({NodeState.DOWN, NodeState.BANNED})

NAMED = 3
"""Services that are named where a node is left out at many, for one reason."""

MANY = 16
"""Services of a node beyond which looking for the lowest free seats takes too long."""

NodePlace = tuple[str, int]
"""A node's address and port."""


@dataclass(frozen=True, slots=True)
class Seats:
    """What is to stand in the map `seats`."""

    seat_of: Mapping[int, int]
    """By the identity of a place that the table names."""
    eligible: frozenset[int]
    """The identities of those that take new flows."""
    values: dict[int, Seat]
    retired_ms: dict[int, int]
    fresh_cursors: frozenset[int]
    refused: list[str]
    reasons: dict[int, str]
    """Why a node that is up or draining is not routed to; by the identity of the place."""
    changed: frozenset[int] | None = None
    """The only seats whose values may be others than before; None: all may."""
    touched: frozenset[str] | None = None
    """The only services whose seats, or what is eligible, may be others than before; None: all."""
    seated: Seated | None = None
    """For the next plan."""


@lru_cache(1 << 17)
def seat_identity(service: str, node_id: str) -> int:
    """By which a restarted process knows a seat again."""
    key = blake2b(service.encode(), digest_size=32).digest()
    return int.from_bytes(blake2b(node_id.encode(), key=key, digest_size=8).digest(), "little")


def places(table: NodeTable, ids: Mapping[str, int]) -> dict[str, list[Place]]:
    """By service, of those that have an id; each in the order of the table's nodes.

    A node that names no services serves all of them.
    """
    services = {each.name: each for each in table.services if each.name in ids}
    found: dict[str, list[Place]] = {name: [] for name in services}
    parts = {(part.node, part.service): part.percent for part in table.parts}
    for node in table.nodes:
        named = {own.name: own.port for own in node.services if own.name in services}
        apart = states_apart(node)
        for name in named if node.services else services:
            service = services[name]
            port = named.get(name, service.node_port)
            place = 0 if service.keeps_port and service.mode is Mode.L4 else port
            state = apart.get(name, node.state)
            identity, percent = seat_identity(name, node.id), parts.get((node.id, name), 100)
            found[name].append(Place(service, node, place, identity, state, percent))
    return found


def plan_seats(
    kernel: KernelState,
    placed_by_service: Mapping[str, list[Place]],
    ids: Mapping[str, int],
    table: NodeTable,
    view: LocalView | None,
    next_hops: Mapping[str, NextHop | None],
    facts: LocalFacts,
    census: Census | None,
    now_ms: int,
) -> Seats:
    ailing = Ailing(_deaths(table, view), _sick(table, view))
    made = _from_the_last(kernel, placed_by_service, ids, table, ailing, next_hops, facts, census)
    if made is not None:
        return made
    placed = [place for own in placed_by_service.values() for place in own]
    seat_of, reasons = _given_seats(kernel, placed, ids, facts)
    retired_ms = _retired(kernel, seat_of, census, now_ms)
    hops = {value.address: value.next_hop for value in kernel.seats.values()} | dict(next_hops)
    reasons |= _out_of_reach(placed, hops) | _cut_off_from_itself(placed, hops, table, facts)
    able = (each for each in placed if each.identity in seat_of and each.identity not in reasons)
    eligible = frozenset(each.identity for each in able if _takes(each, ailing))
    values = _values(kernel.seats, placed, seat_of, eligible, ids, ailing, hops)
    values |= _retired_values(kernel, retired_ms, ids, table, ailing.nodes, next_hops)
    cursors, fresh = _cursors(kernel.seats, values)
    values = {
        seat: value if value.cursor == cursors[seat] else replace(value, cursor=cursors[seat])
        for seat, value in values.items()
    }
    refused = _left_out(placed, reasons)
    made = Seats(seat_of, eligible, values, retired_ms, fresh, refused, reasons)
    if reasons:
        return made
    return replace(made, seated=_seated(made, placed_by_service, ailing, hops, facts))


def _takes(place: Place, ailing: Ailing) -> bool:
    """Whether a place takes new flows, if it has a seat and is within reach."""
    return (
        place.state in SERVING
        and place.node.weight > 0
        and place.percent > 0
        and ailing.death(place) is None
    )


def _seated(
    made: Seats,
    placed: Mapping[str, list[Place]],
    ailing: Ailing,
    hops: Mapping[str, NextHop | None],
    facts: LocalFacts,
) -> Seated:
    of_node: dict[str, list[Place]] = {}
    nodes_at: dict[str, list[str]] = {}
    for own in placed.values():
        for place in own:
            known = of_node.setdefault(place.node.id, [])
            if not known:
                nodes_at.setdefault(place.node.address, []).append(place.node.id)
            known.append(place)
    return Seated(
        places=placed,
        values=made.values,
        seat_of=made.seat_of,
        eligible=made.eligible,
        ailing=ailing,
        hops=hops,
        facts=facts,
        of_node=of_node,
        nodes_at=nodes_at,
    )


def _from_the_last(
    kernel: KernelState,
    placed: Mapping[str, list[Place]],
    ids: Mapping[str, int],
    table: NodeTable,
    ailing: Ailing,
    next_hops: Mapping[str, NextHop | None],
    facts: LocalFacts,
    census: Census | None,
) -> Seats | None:
    """The last plan's seats, with those of the nodes of which something else is known now; None
    where more than that may be different.

    One node of very many dies, and the clients that it had wait: to look at all the others as well
    would take longer than to notice its death.
    """
    before = kernel.seated
    if before is None or before.places is not placed or before.values is not kernel.seats:
        return None
    retired_ms = kernel.retired_ms
    if before.facts != facts or any(has_gone(census, *each) for each in retired_ms.items()):
        return None
    hops, touched = _news(before, ailing, next_hops)
    ways = {place.node.address: hops.get(place.node.address) for place in touched}
    if _out_of_reach(touched, ways) or _cut_off_from_itself(touched, ways, table, facts):
        return None
    # Whoever may take new flows has a seat: nobody was refused one.
    eligible = before.eligible.difference([place.identity for place in touched]).union(
        [place.identity for place in touched if _takes(place, ailing)]
    )
    new = _values(before.values, touched, before.seat_of, eligible, ids, ailing, hops)
    values, changed = {**before.values, **new}, set(new)
    for seat, value in _retired_values(
        kernel, retired_ms, ids, table, ailing.nodes, next_hops
    ).items():
        if value is not values[seat] and value != values[seat]:
            values[seat] = value
            changed.add(seat)
    return Seats(
        seat_of=before.seat_of,
        eligible=eligible,
        values=values,
        retired_ms=dict(retired_ms),
        fresh_cursors=frozenset(),
        refused=[],
        reasons={},
        changed=frozenset(changed),
        touched=frozenset(place.service.name for place in touched),
        seated=replace(before, values=values, eligible=eligible, ailing=ailing, hops=hops),
    )


def _news(
    before: Seated, ailing: Ailing, next_hops: Mapping[str, NextHop | None]
) -> tuple[Mapping[str, NextHop | None], list[Place]]:
    """All next hops as they are now, and the places of nodes of which anything is other by now."""
    moved = {
        address: hop
        for address, hop in next_hops.items()
        if (known := before.hops.get(address)) is not hop and known != hop
    }
    nodes = ailing.differs(before.ailing)
    nodes.update(node for address in moved for node in before.nodes_at.get(address, ()))
    hops = {**before.hops, **moved} if moved else before.hops
    return hops, [place for node in nodes for place in before.of_node.get(node, ())]


def _left_out(placed: Iterable[Place], reasons: Mapping[int, str]) -> list[str]:
    """A line for each node and reason, whatever the number of services."""
    services: dict[tuple[str, str], list[str]] = {}
    for place in placed if reasons else ():
        if place.identity in reasons:
            key = place.node.id, reasons[place.identity]
            services.setdefault(key, []).append(place.service.name)
    return [f"node {node} at {_some(names)}: {why}" for (node, why), names in services.items()]


def _some(names: Sequence[str]) -> str:
    said, more = ", ".join(names[:NAMED]), len(names) - NAMED
    return f"{said} and {more} more services" if more > 0 else said


def _out_of_reach(placed: Iterable[Place], hops: Mapping[str, NextHop | None]) -> dict[int, str]:
    """Why a place cannot be routed to although its node is well; by the place's identity.

    In mode L2 a router on the way would get a packet for the VIP, and send it back to where VIPs
    are: to us, round and round.
    """
    behind = {a: hop.gateway for a, hop in hops.items() if hop is not None and hop.gateway}
    if not behind:
        return {}
    return {
        place.identity: f"it is behind the router {behind[place.node.address]},"
        " and mode l2 reaches only what is on the link"
        for place in placed
        if place.service.mode is Mode.L2
        and place.node.state in SEATED
        and place.node.address in behind
    }


def _cut_off_from_itself(
    placed: Iterable[Place],
    hops: Mapping[str, NextHop | None],
    table: NodeTable,
    facts: LocalFacts,
) -> dict[int, str]:
    """Why this machine takes no flow of its own LB although it is a node that is well; by the
    place's identity. Where it can, see bpf/kernel/own_node.h.
    """
    own = {address for address, hop in hops.items() if hop is not None and hop.own}
    if not own:
        return {}
    return {
        place.identity: why
        for place in placed
        if place.node.address in own
        and place.node.state in SEATED
        and (why := _why_not_itself(place.service, table, facts))
    }


def _why_not_itself(service: TableService, table: NodeTable, facts: LocalFacts) -> str:
    if service.mode is not Mode.L4:
        return ""
    if not service.snat:
        return "this machine is the node, and with snat = false its answers go past this LB"
    if facts.own_addresses.issuperset(shared_snat(service, table)):
        return (
            "this machine is the node, and its answers to an address of its own never come back to"
            " this LB: give the virtual IP a snat_address"
        )
    return facts.no_way_to_itself


def _values(
    held: Mapping[int, Seat],
    places: Iterable[Place],
    seat_of: Mapping[int, int],
    eligible: frozenset[int],
    ids: Mapping[str, int],
    ailing: Ailing,
    hops: Mapping[str, NextHop | None],
) -> dict[int, Seat]:
    """By seat, of the places that have one. `held`: what the kernel has there."""
    values: dict[int, Seat] = {}
    for place in places:
        seat = seat_of.get(place.identity)
        if seat is not None:
            up, death = place.identity in eligible, ailing.death(place)
            number, hop = ids[place.service.name], hops.get(place.node.address)
            values[seat] = _value(held.get(seat), place, number, death, hop, up=up)
    return values


def _value(
    old: Seat | None,
    place: Place,
    service_id: int,
    death: Death | None,
    hop: NextHop | None,
    *,
    up: bool,
) -> Seat:
    """The very same object if nothing of it has changed: most plans are about one node of many."""
    dead = death is not None
    reset = death is not None and _resets(place.service.on_node_down, death)
    address = place.node.address
    if (
        old is not None
        and (old.up, old.dead, old.reset, old.port, old.address)
        == (up, dead, reset, place.port, address)
        and (old.next_hop is hop or old.next_hop == hop)
    ):
        return old
    return Seat(
        identity=place.identity,
        service_id=service_id,
        address=address,
        port=place.port,
        cursor=0 if old is None else old.cursor,
        up=up,
        dead=dead,
        reset=reset,
        next_hop=hop,
    )


def _given_seats(
    kernel: KernelState, placed: Iterable[Place], ids: Mapping[str, int], facts: LocalFacts
) -> tuple[dict[int, int], dict[int, str]]:
    """The seats of these places, by identity, and why others have none."""
    # A service that came back under another id has other seats: they must lie behind its id.
    seat_of = {(each.identity, each.service_id): seat for seat, each in kernel.seats.items()}
    given: dict[int, int] = {}
    waiting: dict[str, list[Place]] = {}
    for place in placed:
        seat = seat_of.get((place.identity, ids[place.service.name]))
        if seat is not None:
            given[place.identity] = seat
        elif place.state in SEATED:
            waiting.setdefault(place.node.id, []).append(place)
    refused: dict[int, str] = {}
    free: NDArray[np.bool_] = np.ones(facts.max_seats, np.bool_)
    free[[NO_SEAT, *kernel.seats]] = False
    for own in waiting.values():
        own.sort(key=lambda place: ids[place.service.name])
        numbers = _free_seats(free, [ids[place.service.name] for place in own])
        for place, number in zip(own, numbers, strict=True):
            if number == NO_SEAT:
                refused[place.identity] = f"all {facts.max_seats - 1:,} seats are taken"
            else:
                given[place.identity] = number
    return given, refused


def _free_seats(free: NDArray[np.bool_], ids: list[int]) -> list[int]:
    """A seat for each of these services, in ascending order of their ids, which are then free no
    more: all as far behind their ids, if there is room for that; NO_SEAT where there is none at
    all.
    """
    taken = np.flatnonzero(~free)[-1]
    behind = max(1, int(taken) + 1 - ids[0])
    if len(ids) <= MANY or behind + ids[-1] >= len(free):
        # From the beginning, where it is worth it, or where there is no room behind all others.
        candidates = np.arange(1, max(1, len(free) - ids[-1]))
        for number in ids:
            candidates = candidates[free[candidates + number]]
        behind = int(candidates[0]) if candidates.size else 0
    if behind:
        numbers = [behind + number for number in ids]
        free[numbers] = False
        return numbers
    return [_free_seat(free, number) for number in ids]


def _free_seat(free: NDArray[np.bool_], service_id: int) -> int:
    after = np.flatnonzero(free[service_id + 1 :])
    if not after.size:
        return NO_SEAT
    seat = service_id + 1 + int(after[0])
    free[seat] = False
    return seat


def _retired(
    kernel: KernelState, seat_of: Mapping[int, int], census: Census | None, now_ms: int
) -> dict[int, int]:
    """The seats that nobody has any more but flows may still name, and since when."""
    kept = set(seat_of.values())
    since_ms = {
        seat: kernel.retired_ms.get(seat, now_ms) for seat in kernel.seats if seat not in kept
    }
    return {seat: since for seat, since in since_ms.items() if not has_gone(census, seat, since)}


def has_gone(census: Census | None, seat: int, since_ms: int) -> bool:
    """Whether no flow names a seat any more that took no new one since then."""
    if census is None or census.began_ms < since_ms + SETTLE_MS:
        return False
    return seat not in census.seats


# --------------------------------------------------------------------------- standing


def _deaths(table: NodeTable, view: LocalView | None) -> dict[str, Death]:
    """The nodes that are down, as agreed or as seen from here, by id."""
    agreed = {node.id: node.silent for node in table.nodes if node.state in DEAD}
    seen = () if view is None else view.nodes
    here = {node.id: node.silent for node in seen if node.state in DEAD}
    return {
        node: Death(agreed.get(node, False) or here.get(node, False))
        for node in agreed.keys() | here.keys()
    }


def _sick(table: NodeTable, view: LocalView | None) -> set[tuple[str, str]]:
    """The services that are down though their node is not, as agreed or as seen from here."""
    agreed = [(node.id, each) for node in table.nodes for each in node.apart]
    seen = () if view is None else view.nodes
    here = [(node.id, each) for node in seen for each in node.apart]
    return {(each.service, node) for node, each in (*agreed, *here) if each.state in DEAD}


def _resets(policy: OnNodeDown | None, death: Death) -> bool:
    return death.silent if policy is None else policy is OnNodeDown.RESET


def _retired_values(
    kernel: KernelState,
    retired: Mapping[int, int],
    ids: Mapping[str, int],
    table: NodeTable,
    deaths: Mapping[str, Death],
    next_hops: Mapping[str, NextHop | None],
) -> dict[int, Seat]:
    """A retired seat's node is known by its address alone."""
    if not retired:
        return {}
    policies = {ids[s.name]: s.on_node_down for s in table.services if s.name in ids}
    nodes_at: dict[str, list[str]] = {}
    for node in table.nodes:
        nodes_at.setdefault(node.address, []).append(node.id)
    values = {}
    for seat in retired:
        old = kernel.seats[seat]
        policy = policies.get(old.service_id)
        death = _death_at(nodes_at.get(old.address, ()), deaths, old)
        dead, reset = death is not None, death is not None and _resets(policy, death)
        hop = next_hops.get(old.address, old.next_hop)
        same = (old.up, old.dead, old.reset) == (False, dead, reset) and old.next_hop == hop
        values[seat] = old if same else replace(old, up=False, dead=dead, reset=reset, next_hop=hop)
    return values


def _death_at(nodes: Iterable[str], deaths: Mapping[str, Death], seat: Seat) -> Death | None:
    """Of the node at a retired seat's address. One that was forgotten had been silent or not, and
    the seat still says so.
    """
    found = [deaths.get(node) for node in nodes]
    if not found:
        return Death(silent=seat.reset)
    dead = [death for death in found if death is not None]
    return Death(any(death.silent for death in dead)) if len(dead) == len(found) else None


# --------------------------------------------------------------------------- cursors


def _cursors(
    held: Mapping[int, Seat], wanted: Mapping[int, Seat]
) -> tuple[dict[int, int], frozenset[int]]:
    """The cursor of each seat, and which cursors have changed hands."""
    groups: dict[NodePlace, list[int]] = {}
    for seat in sorted(wanted):
        value = wanted[seat]
        groups.setdefault((value.address, value.port), []).append(seat)
    cursor_of: dict[NodePlace, int] = {}
    taken: set[int] = set()
    for place, members in groups.items():
        there = [held[seat] for seat in members if seat in held]
        kept = [value.cursor for value in there if (value.address, value.port) == place]
        # Two may say the same if a plan that parted them was made by half.
        if kept and min(kept) not in taken:
            cursor_of[place] = min(kept)
            taken.add(min(kept))
    fresh = []
    for place, members in groups.items():
        if place not in cursor_of:
            cursor = _free_cursor(members, taken)
            cursor_of[place] = cursor
            taken.add(cursor)
            fresh.append(cursor)
    return {s: cursor_of[v.address, v.port] for s, v in wanted.items()}, frozenset(fresh)


def _free_cursor(members: Iterable[int], taken: set[int]) -> int:
    """The lowest of these seats; or, if that is the cursor of others yet, the lowest number that is
    not. There are never more groups than seats.
    """
    free = [seat for seat in members if seat not in taken]
    if free:
        return free[0]
    cursor = 1
    while cursor in taken:
        cursor += 1
    return cursor


# --------------------------------------------------------------------------- endpoints


def endpoints(
    kernel: KernelState,
    services: Mapping[ServiceKey, Service],
    seats: Seats,
    facts: LocalFacts,
) -> Mapping[ServiceKey, int]:
    """Each node's address, port and protocol, with the lowest of its seats; as many as there is
    room for.

    A seat's protocol is its service's, and where it has no port of its own, its ports are. When the
    service has gone, the map still knows.
    """
    if kernel.ids and _have_same_places(kernel, services, seats):
        return kernel.endpoints
    fronts: dict[int, set[tuple[int, Protocol]]] = {}
    for key, service in services.items():
        fronts.setdefault(service.service_id, set()).add((key.port, key.protocol))
    known: dict[NodePlace, set[tuple[int, Protocol]]] = {}
    of_seat: dict[int, set[tuple[int, Protocol]]] = {}
    for key, seat in kernel.endpoints.items():
        known.setdefault((key.address, key.port), set()).add((key.port, key.protocol))
        of_seat.setdefault(seat, set()).add((key.port, key.protocol))
    found: dict[ServiceKey, int] = {}
    for seat in sorted(seats.values):
        value = seats.values[seat]
        own = fronts.get(value.service_id, set())
        if not value.port:
            own = own or of_seat.get(seat, set())
        elif own:
            own = {(value.port, protocol) for _, protocol in own}
        else:
            own = known.get((value.address, value.port), set())
        for port, protocol in own:
            if len(found) < facts.max_endpoints:
                found.setdefault(ServiceKey(value.address, port, protocol), seat)
    return found


def _have_same_places(
    kernel: KernelState, services: Mapping[ServiceKey, Service], seats: Seats
) -> bool:
    """Whether fronts, and where the seats' nodes serve them, are what the last plan left."""
    held = kernel.services
    if services.keys() != held.keys():
        return False
    if any(each.service_id != held[key].service_id for key, each in services.items()):
        return False
    if seats.changed is not None:
        return True
    return seats.values.keys() == kernel.seats.keys() and all(
        value is old
        or (value.address, value.port, value.service_id) == (old.address, old.port, old.service_id)
        for value, old in ((value, kernel.seats[seat]) for seat, value in seats.values.items())
    )
