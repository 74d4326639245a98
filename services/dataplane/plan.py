"""The plan: from what the cluster agrees on to the map writes that bring this kernel there. Pure.

In: the agreed table, this LB's own view of the nodes, next hops, and what the kernel's maps hold.
Out: an ordered list of writes, and what the maps hold once they are done. A second plan with the
same input is empty; so is the first one after a restart, because all that is needed to recognise
what is there stands in the maps themselves.

**Seats.** A node's place at one service: an index of the BPF array `seats`, 0 meaning nobody. The
ring maps slots to seats, conntrack entries name the seat their flow belongs to. So

* a node keeps its seat for as long as the table lists it, in whatever state;
* a seat that nobody has any more is in *quarantine*, the longest a flow may be idle, before its
  number is given to somebody else. It goes on forwarding old flows meanwhile;
* the lowest free number is given first, to UP and DRAINING nodes only;
* the value carries a 64-bit hash of service and node, by which a restarted process knows it again.

Service ids are given likewise. An id is free when no service and no seat, quarantined ones
included, refers to it. If numbers run out, who came last is left out, by name (`Plan.refused`).

**Rings** are built from all nodes that the table lists, and those that take no new flows are masked
(see `ring`): a node that dies, drains or comes back moves its own slots and no other. Masked are
nodes that are not UP in the table, those that are DOWN or BANNED as seen from here, and those that
could not get a seat. Only entries that change are written, four slots each.

**Order.** Seats that are added or changed; slots; services, new and changed ones before those that
go; seats that take no new flows any more; seats that are removed. After every single write, a slot
refers to a seat that is there, and a service to a ring that is complete. So a process that
dies half way leaves maps that work, and its successor plans the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from bus.messages import (
    Affinity,
    Encapsulation,
    LocalView,
    Mode,
    NodeState,
    NodeTable,
    Protocol,
    SeatState,
    TableNode,
    TableService,
)
from services.dataplane import ring
from services.dataplane.nexthop import NextHop

LANES = 4
ENTRIES = -(-ring.SLOTS // LANES)
"""Entries of the map that one service's ring takes; the last one's spare lanes stay 0."""

NO_SEAT = 0

SEATED = frozenset({NodeState.UP, NodeState.DRAINING})
"""Nodes of these states are given a seat."""

DEAD_FROM_HERE = frozenset({NodeState.DOWN, NodeState.BANNED})

SeatRing = NDArray[np.uint16]
"""A service's ring as the map holds it: shape (ENTRIES, LANES), seats."""

# --------------------------------------------------------------------------- what the maps hold


@dataclass(frozen=True, slots=True)
class Seat:
    """The value of one entry of the map `seats`."""

    identity: int
    """`seat_identity` of its service and node."""
    service_id: int
    address: str
    port: int
    up: bool
    """Takes new flows."""
    next_hop: NextHop | None
    """None: there is no route to it."""


@dataclass(frozen=True, slots=True)
class ServiceKey:
    """The key of the map `services`."""

    address: str
    port: int
    protocol: Protocol


@dataclass(frozen=True, slots=True)
class Service:
    """The value of the map `services`."""

    service_id: int
    identity: int
    """`service_identity` of its name."""
    mode: Mode
    affinity: Affinity
    encap: Encapsulation
    snat: bool
    snat_address: str
    """Of no meaning unless the mode is L4 and `snat` is set."""
    snat_first_port: int
    snat_ports: int
    """0: this LB has no slice, so it takes no new flow for the service."""


@dataclass(frozen=True, slots=True)
class BuiltRing:
    """A ring before masking, kept because only a change of its members costs time."""

    members: tuple[ring.Member, ...]
    seed: int
    ring: ring.Ring


@dataclass(frozen=True, slots=True)
class KernelState:
    """What the maps hold, read from them at the start and from then on what plans left there."""

    seats: Mapping[int, Seat]
    services: Mapping[ServiceKey, Service]
    rings: Mapping[int, SeatRing]
    """By service id. A ring that is not here is written whole, so those of ids that no service has
    need not be read."""
    retired_ms: Mapping[int, int] = field(default_factory=dict)
    """Since when a seat is in quarantine."""
    built: Mapping[str, BuiltRing] = field(default_factory=dict)
    """By the name of the service."""


EMPTY = KernelState({}, {}, {})


# --------------------------------------------------------------------------- writes


@dataclass(frozen=True, slots=True)
class SeatWrite:
    seat: int
    value: Seat
    fresh: bool
    """The number changes hands: whatever was counted for it belongs to somebody else."""


@dataclass(frozen=True, slots=True)
class SeatRemoval:
    seat: int


@dataclass(frozen=True, slots=True, eq=False)
class SlotsWrite:
    """One batch: `values[i]` is the entry of the map `ring` at `indices[i]`."""

    service_id: int
    indices: NDArray[np.uint32]
    values: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class ServiceWrite:
    key: ServiceKey
    value: Service


@dataclass(frozen=True, slots=True)
class ServiceRemoval:
    key: ServiceKey


Write = SeatWrite | SeatRemoval | SlotsWrite | ServiceWrite | ServiceRemoval


@dataclass(frozen=True, slots=True)
class Facts:
    """What holds for this LB alone."""

    lb: str
    """Its name, as the table's slices have it."""
    public_address: str
    private_address: str
    quarantine_ms: int
    max_seats: int
    """Entries of the map `seats`; entry 0 is nobody's."""
    max_services: int


@dataclass(frozen=True, slots=True)
class Plan:
    writes: tuple[Write, ...]
    after: KernelState
    moved_slots: int
    """Slots that had a node and now have another, or none."""
    seats: tuple[SeatState, ...]
    """Of all seated nodes that the table lists, for `state.dataplane.`."""
    refused: tuple[str, ...]
    """Who was left out, and why; empty when all is well."""
    addresses: frozenset[str]
    """Whose next hops are needed: nodes that are seated, or were and still have flows."""
    next_ms: int | None
    """When the next quarantine ends, if there is one: plan again then."""


# --------------------------------------------------------------------------- identities


def service_identity(service: str) -> int:
    return int.from_bytes(blake2b(service.encode(), digest_size=8).digest(), "little")


def seat_identity(service: str, node_id: str) -> int:
    key = blake2b(service.encode(), digest_size=32).digest()
    return int.from_bytes(blake2b(node_id.encode(), key=key, digest_size=8).digest(), "little")


# --------------------------------------------------------------------------- the plan


def make_plan(
    kernel: KernelState,
    table: NodeTable,
    view: LocalView | None,
    next_hops: Mapping[str, NextHop | None],
    facts: Facts,
    now_ms: int,
) -> Plan:
    """What to write so that the kernel does what the table says; see the module's description.

    An address that `next_hops` says nothing about keeps the next hop the kernel holds for it.
    """
    services, ids, no_id = _plan_services(kernel, table, facts)
    places = _places(table, ids)
    seat_of, no_seat = _plan_seats(kernel, places, facts)
    retired_ms = _plan_quarantine(kernel, seat_of, facts, now_ms)
    takers = _takers(places, view, seat_of)
    seats = _seat_values(kernel, places, ids, seat_of, takers, next_hops)
    seats |= _quarantined_values(kernel, retired_ms, next_hops)
    rings, built = _plan_rings(kernel, places, ids, seat_of, takers, table.hash_seed)

    slots, moved = _slot_writes(kernel.rings, rings)
    early, late = _seat_writes(kernel, seats)
    ends_ms = (since + facts.quarantine_ms for since in retired_ms.values())
    return Plan(
        writes=(
            *early,
            *slots,
            *(ServiceWrite(k, v) for k, v in services.items() if kernel.services.get(k) != v),
            *(ServiceRemoval(key) for key in kernel.services if key not in services),
            *late,
            *(SeatRemoval(seat) for seat in kernel.seats if seat not in seats),
        ),
        after=KernelState(seats, services, rings, retired_ms, built),
        moved_slots=moved,
        seats=_describe(places, seat_of, seats, rings),
        refused=(*no_id, *no_seat),
        addresses=frozenset(value.address for value in seats.values()),
        next_ms=min(ends_ms, default=None),
    )


def _plan_services(
    kernel: KernelState, table: NodeTable, facts: Facts
) -> tuple[dict[ServiceKey, Service], dict[str, int], list[str]]:
    """The map `services`, the ids by name, and who was refused."""
    known = {value.identity: value.service_id for value in kernel.services.values()}
    held = {*known.values(), *(seat.service_id for seat in kernel.seats.values())}
    free = iter([number for number in range(facts.max_services) if number not in held])
    services: dict[ServiceKey, Service] = {}
    ids: dict[str, int] = {}
    refused: list[str] = []
    for service in table.services:
        identity = service_identity(service.name)
        number = known[identity] if identity in known else next(free, None)
        if number is None:
            refused.append(f"service {service.name}: all {facts.max_services} ids are in use")
            continue
        ids[service.name] = number
        address = service.address or facts.public_address
        key = ServiceKey(address, service.port, service.protocol)
        services[key] = _service_value(service, table, facts, number, identity)
    return services, ids, refused


def _service_value(
    service: TableService, table: NodeTable, facts: Facts, number: int, identity: int
) -> Service:
    shared = next(
        (vip.snat_address for vip in table.vip_owners if vip.address == service.address), None
    )
    own = next((s for s in table.snat_slices if (s.owner, s.address) == (facts.lb, shared)), None)
    return Service(
        service_id=number,
        identity=identity,
        mode=service.mode,
        affinity=service.affinity,
        encap=service.encap,
        snat=service.snat,
        snat_address=shared or facts.private_address,
        snat_first_port=own.first_port if own else 0,
        snat_ports=own.ports if own else 0,
    )


@dataclass(frozen=True, slots=True)
class _Place:
    """A node that serves a service."""

    service: TableService
    node: TableNode
    port: int
    identity: int


def _places(table: NodeTable, ids: Mapping[str, int]) -> list[_Place]:
    """All of them, of the services that have an id."""
    places = []
    for service in table.services:
        if service.name not in ids:
            continue
        for node in table.nodes:
            port = _port(service, node)
            if port is not None:
                identity = seat_identity(service.name, node.id)
                places.append(_Place(service, node, port, identity))
    return places


def _port(service: TableService, node: TableNode) -> int | None:
    """Where a node serves a service. One that names no services serves all of them."""
    if not node.services:
        return service.node_port
    return next((own.port for own in node.services if own.name == service.name), None)


def _plan_seats(
    kernel: KernelState, places: Iterable[_Place], facts: Facts
) -> tuple[dict[int, int], list[str]]:
    """The seats of these places, by identity, and who was refused."""
    seat_of = {value.identity: seat for seat, value in kernel.seats.items()}
    free = iter([seat for seat in range(1, facts.max_seats) if seat not in kernel.seats])
    given: dict[int, int] = {}
    refused = []
    for place in places:
        seat = seat_of.get(place.identity)
        if seat is None and place.node.state in SEATED:
            seat = next(free, None)
            if seat is None:
                refused.append(f"node {place.node.id} at {place.service.name}: no free seat")
        if seat is not None:
            given[place.identity] = seat
    return given, refused


def _plan_quarantine(
    kernel: KernelState, seat_of: Mapping[int, int], facts: Facts, now_ms: int
) -> dict[int, int]:
    """Which seats nobody has any more but flows may still refer to, and since when."""
    kept = set(seat_of.values())
    since_ms = {
        seat: kernel.retired_ms.get(seat, now_ms) for seat in kernel.seats if seat not in kept
    }
    return {s: since for s, since in since_ms.items() if now_ms - since < facts.quarantine_ms}


def _takers(
    places: Iterable[_Place], view: LocalView | None, seat_of: Mapping[int, int]
) -> frozenset[int]:
    """The identities of those that take new flows."""
    seen = () if view is None else view.nodes
    dead_here = {node.id for node in seen if node.state in DEAD_FROM_HERE}
    return frozenset(
        place.identity
        for place in places
        if place.node.state is NodeState.UP
        and place.node.weight > 0
        and place.node.id not in dead_here
        and place.identity in seat_of
    )


def _seat_values(
    kernel: KernelState,
    places: Iterable[_Place],
    ids: Mapping[str, int],
    seat_of: Mapping[int, int],
    takers: frozenset[int],
    next_hops: Mapping[str, NextHop | None],
) -> dict[int, Seat]:
    held = {value.address: value.next_hop for value in kernel.seats.values()}
    return {
        seat_of[place.identity]: Seat(
            identity=place.identity,
            service_id=ids[place.service.name],
            address=place.node.address,
            port=place.port,
            up=place.identity in takers,
            next_hop=next_hops.get(place.node.address, held.get(place.node.address)),
        )
        for place in places
        if place.identity in seat_of
    }


def _quarantined_values(
    kernel: KernelState, retired_ms: Iterable[int], next_hops: Mapping[str, NextHop | None]
) -> dict[int, Seat]:
    old = {seat: kernel.seats[seat] for seat in retired_ms}
    return {
        seat: replace(value, up=False, next_hop=next_hops.get(value.address, value.next_hop))
        for seat, value in old.items()
    }


# --------------------------------------------------------------------------- rings


def _plan_rings(
    kernel: KernelState,
    places: Iterable[_Place],
    ids: Mapping[str, int],
    seat_of: Mapping[int, int],
    takers: frozenset[int],
    seed: int,
) -> tuple[dict[int, SeatRing], dict[str, BuiltRing]]:
    weighted: dict[str, list[_Place]] = {name: [] for name in ids}
    for place in places:
        if place.node.weight > 0:
            weighted[place.service.name].append(place)
    rings: dict[int, SeatRing] = {}
    built: dict[str, BuiltRing] = {}
    for name, own in weighted.items():
        members = tuple(ring.Member(place.node.id, place.node.weight) for place in own)
        built[name] = _build(kernel.built.get(name), members, seed, name)
        resting = [index for index, place in enumerate(own) if place.identity not in takers]
        masked = ring.masked(built[name].ring, resting)
        # NOBODY is -1, so it finds the last element.
        seats = [*(seat_of.get(place.identity, NO_SEAT) for place in own), NO_SEAT]
        slots = np.zeros(ENTRIES * LANES, np.uint16)
        slots[: ring.SLOTS] = np.array(seats, np.uint16)[masked]
        rings[ids[name]] = slots.reshape(ENTRIES, LANES)
    return rings, built


def _build(
    before: BuiltRing | None, members: tuple[ring.Member, ...], seed: int, service: str
) -> BuiltRing:
    if before is not None and (before.members, before.seed) == (members, seed):
        return before
    return BuiltRing(members, seed, ring.build(members, seed, service))


# --------------------------------------------------------------------------- differences


def _seat_writes(
    kernel: KernelState, seats: Mapping[int, Seat]
) -> tuple[list[SeatWrite], list[SeatWrite]]:
    """Those to be made before slots are switched, and those that are true only after."""
    early: list[SeatWrite] = []
    late: list[SeatWrite] = []
    for seat, value in seats.items():
        old = kernel.seats.get(seat)
        if old == value:
            continue
        loses = old is not None and old.up and not value.up
        (late if loses else early).append(SeatWrite(seat, value, fresh=old is None))
    return early, late


def _slot_writes(
    held: Mapping[int, SeatRing], wanted: Mapping[int, SeatRing]
) -> tuple[list[SlotsWrite], int]:
    """One batch per service with the entries that change, and how many slots move."""
    writes: list[SlotsWrite] = []
    moved = 0
    for number, after in wanted.items():
        before = held.get(number)
        if before is None:
            changed = np.arange(ENTRIES)
        else:
            differs = before != after
            changed = np.flatnonzero(differs.any(axis=1))
            moved += int((differs & (before != NO_SEAT)).sum())
        if changed.size:
            indices = (number * ENTRIES + changed).astype(np.uint32)
            writes.append(SlotsWrite(number, indices, after[changed]))
    return writes, moved


def _describe(
    places: Iterable[_Place],
    seat_of: Mapping[int, int],
    seats: Mapping[int, Seat],
    rings: Mapping[int, SeatRing],
) -> tuple[SeatState, ...]:
    slots: Counter[int] = Counter()
    for held in rings.values():
        counts = np.bincount(held.ravel())
        slots.update({int(seat): int(counts[seat]) for seat in np.flatnonzero(counts)})
    states = []
    for place in places:
        seat = seat_of.get(place.identity)
        if seat is not None:
            hop = seats[seat].next_hop
            resolved = hop is not None and hop.destination_mac is not None
            share = slots[seat] / ring.SLOTS
            name = place.service.name
            states.append(SeatState(seat, name, place.node.id, slots[seat], share, resolved))
    return tuple(states)
