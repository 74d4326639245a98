"""Seats: a node's place at one service, an index of the array `seats`. Pure, part of the plan.

0 means nobody. The ring maps slots to seats, and each flow names the seat it belongs to. So

* a node keeps its seat for as long as the table lists it, in whatever state;
* a seat that nobody has any more is *retired*: it goes on forwarding its flows, and its number is
  given to somebody else only after a census that began later has met no flow that names it;
* the lowest free number is given first, to UP and DRAINING nodes only;
* the value carries a 64-bit hash of service and node, by which a restarted process knows it again.

**Standing.** UP takes new flows. DEAD is the seat of a node that is DOWN or BANNED, as agreed or as
seen from here, or that the table has forgotten: its UDP flows, and a SYN, choose anew. RESET is a
dead one whose TCP flows are told by a RST: if `on_node_down` says so, or by default if the node is
silent; a node that only said that it does not serve may yet finish what it began. A seat that is
draining, or whose node serves this service no more, is neither up nor dead.

**Port cursors.** Two flows meet at a node if they have its address and port in common, whatever
their services are. So all seats of one address and port take their SNAT ports by one cursor; it is
numbered by the lowest of the seats that shared it first, and stays while any of them is there.

**Endpoints** are the nodes' addresses and ports. What comes from one of them to an SNAT port is
somebody's answer.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from bus.states import (
    LocalView,
    NodeTable,
    TableNode,
    TableService,
)
from bus.words import (
    NodeState,
    OnNodeDown,
    Protocol,
)
from services.dataplane.flows.census import Census
from services.dataplane.fronts import SETTLE_MS
from services.dataplane.maps import Facts, KernelState, Seat, Service
from services.dataplane.nexthop import NextHop
from services.dataplane.words import ServiceKey

SEATED = frozenset({NodeState.UP, NodeState.DRAINING})
"""Nodes of these states are given a seat."""

DEAD = frozenset({NodeState.DOWN, NodeState.BANNED})

NodePlace = tuple[str, int]
"""A node's address and port."""


@dataclass(frozen=True, slots=True)
class Place:
    """A node that serves a service."""

    service: TableService
    node: TableNode
    port: int
    identity: int


@dataclass(frozen=True, slots=True)
class Death:
    """A node that is down."""

    silent: bool
    """Nothing is heard of it, where it is said to be down."""


@dataclass(frozen=True, slots=True)
class Seats:
    """What is to stand in the map `seats`."""

    seat_of: dict[int, int]
    """By the identity of a place that the table names."""
    takers: frozenset[int]
    """The identities of those that take new flows."""
    values: dict[int, Seat]
    retired_ms: dict[int, int]
    fresh_cursors: frozenset[int]
    refused: list[str]


def seat_identity(service: str, node_id: str) -> int:
    """By which a restarted process knows a seat again."""
    key = blake2b(service.encode(), digest_size=32).digest()
    return int.from_bytes(blake2b(node_id.encode(), key=key, digest_size=8).digest(), "little")


def places(table: NodeTable, ids: Mapping[str, int]) -> list[Place]:
    """All of them, of the services that have an id."""
    found = []
    for service in table.services:
        if service.name not in ids:
            continue
        for node in table.nodes:
            port = _port(service, node)
            if port is not None:
                identity = seat_identity(service.name, node.id)
                found.append(Place(service, node, port, identity))
    return found


def _port(service: TableService, node: TableNode) -> int | None:
    """Where a node serves a service. One that names no services serves all of them."""
    if not node.services:
        return service.node_port
    return next((own.port for own in node.services if own.name == service.name), None)


def plan_seats(
    kernel: KernelState,
    placed: list[Place],
    ids: Mapping[str, int],
    table: NodeTable,
    view: LocalView | None,
    next_hops: Mapping[str, NextHop | None],
    facts: Facts,
    census: Census | None,
    now_ms: int,
) -> Seats:
    seat_of, refused = _given_seats(kernel, placed, facts)
    retired_ms = _retired(kernel, seat_of, census, now_ms)
    deaths = _deaths(table, view)
    takers = frozenset(
        place.identity
        for place in placed
        if place.node.state is NodeState.UP
        and place.node.weight > 0
        and place.node.id not in deaths
        and place.identity in seat_of
    )
    held_hops = {value.address: value.next_hop for value in kernel.seats.values()}
    values: dict[int, Seat] = {}
    for place in placed:
        seat = seat_of.get(place.identity)
        if seat is None:
            continue
        death = deaths.get(place.node.id)
        values[seat] = Seat(
            identity=place.identity,
            service_id=ids[place.service.name],
            address=place.node.address,
            port=place.port,
            cursor=0,
            up=place.identity in takers,
            dead=death is not None,
            reset=death is not None and _resets(place.service.on_node_down, death),
            next_hop=next_hops.get(place.node.address, held_hops.get(place.node.address)),
        )
    values |= _retired_values(kernel, retired_ms, ids, table, deaths, next_hops)
    cursors, fresh = _cursors(kernel.seats, values)
    values = {seat: replace(value, cursor=cursors[seat]) for seat, value in values.items()}
    return Seats(seat_of, takers, values, retired_ms, fresh, refused)


def _given_seats(
    kernel: KernelState, placed: Iterable[Place], facts: Facts
) -> tuple[dict[int, int], list[str]]:
    """The seats of these places, by identity, and who was refused."""
    seat_of = {value.identity: seat for seat, value in kernel.seats.items()}
    free = iter([seat for seat in range(1, facts.max_seats) if seat not in kernel.seats])
    given: dict[int, int] = {}
    refused = []
    for place in placed:
        seat = seat_of.get(place.identity)
        if seat is None and place.node.state in SEATED:
            seat = next(free, None)
            if seat is None:
                refused.append(f"node {place.node.id} at {place.service.name}: no free seat")
        if seat is not None:
            given[place.identity] = seat
    return given, refused


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


def _resets(policy: OnNodeDown | None, death: Death) -> bool:
    return death.silent if policy is None else policy is OnNodeDown.RESET


def _retired_values(
    kernel: KernelState,
    retired: Iterable[int],
    ids: Mapping[str, int],
    table: NodeTable,
    deaths: Mapping[str, Death],
    next_hops: Mapping[str, NextHop | None],
) -> dict[int, Seat]:
    """A retired seat's node is known by its address alone."""
    policies = {ids[s.name]: s.on_node_down for s in table.services if s.name in ids}
    nodes_at: dict[str, list[str]] = {}
    for node in table.nodes:
        nodes_at.setdefault(node.address, []).append(node.id)
    values = {}
    for seat in retired:
        old = kernel.seats[seat]
        policy = policies.get(old.service_id)
        death = _death_at(nodes_at.get(old.address, ()), deaths, old)
        values[seat] = replace(
            old,
            up=False,
            dead=death is not None,
            reset=death is not None and _resets(policy, death),
            next_hop=next_hops.get(old.address, old.next_hop),
        )
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
    kernel: KernelState, services: Mapping[ServiceKey, Service], seats: Mapping[int, Seat]
) -> dict[ServiceKey, int]:
    """Each node's address, port and protocol, with the lowest of its seats.

    A seat's protocol is its service's. When that has gone, the map still knows.
    """
    protocols: dict[int, set[Protocol]] = {}
    for key, service in services.items():
        protocols.setdefault(service.service_id, set()).add(key.protocol)
    known: dict[NodePlace, set[Protocol]] = {}
    for key in kernel.endpoints:
        known.setdefault((key.address, key.port), set()).add(key.protocol)
    found: dict[ServiceKey, int] = {}
    for seat in sorted(seats):
        value = seats[seat]
        own = protocols.get(value.service_id) or known.get((value.address, value.port), set())
        for protocol in own:
            found.setdefault(ServiceKey(value.address, value.port, protocol), seat)
    return found
