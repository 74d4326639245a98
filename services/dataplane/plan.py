"""The plan: from what the cluster agrees on to the map writes that bring this kernel there. Pure.

In: the agreed table, this LB's own view of the nodes, next hops, what the kernel's maps hold, and
the last census of the flow table. Out: an ordered list of writes, and what the maps hold once they
are done. A second plan with the same input is empty; so is the first one after a restart, because
the maps hold all that is needed to match them to the table.

`seats` says who has a seat and how it stands, `fronts` which services and addresses there are.

**Nothing goes while a flow needs it.** What is removed, renamed or moved takes no new flow at once,
but stays for its flows: seats, services, SNAT addresses. Each time a census has been taken
afterwards that met none of them any more, the next plan takes them away (`Plan.watch` says what the
census must look out for, `Plan.can_free` whether there is something of the kind).

**Rings** are built from all nodes that the table lists, and those that take no new flows are masked
(see `ring`): a node that dies, drains or comes back moves its own slots and no other. Masked are
nodes that are not UP in the table, those that are DOWN or BANNED as seen from here, and those that
could not get a seat. Only entries that change are written, four slots each. The ring of a service
that is retired is emptied.

**Order.** Seats that are added or changed, endpoints, addresses; slots; services, new and changed
ones before those that go; seats that take no new flows any more; what is removed. After every
single write, a slot refers to a seat that is there, and a service to a ring that is complete. So a
process that dies half way leaves maps that work, and its successor plans the rest.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from bus.states import (
    LocalView,
    NodeTable,
    SeatState,
)
from services.dataplane import ring
from services.dataplane.flows.census import Census, Watch
from services.dataplane.fronts import Fronts, has_waned, is_unused, plan_addresses, plan_fronts
from services.dataplane.maps import (
    ENTRIES,
    LANES,
    NO_SEAT,
    AddressRemoval,
    AddressWrite,
    BuiltRing,
    EndpointRemoval,
    EndpointWrite,
    Facts,
    KernelState,
    Seat,
    SeatRemoval,
    SeatRing,
    SeatWrite,
    ServiceRemoval,
    ServiceWrite,
    SlotsWrite,
    Write,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.seats import Place, Seats, endpoints, has_gone, places, plan_seats


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

    @property
    def addresses(self) -> frozenset[str]:
        """Whose next hops are needed: nodes that are seated, or were and still have flows."""
        return frozenset(value.address for value in self.after.seats.values())

    @property
    def reset_seats(self) -> frozenset[int]:
        """Whose TCP flows' clients are to be told that their node is dead."""
        return frozenset(seat for seat, value in self.after.seats.items() if value.reset)

    @property
    def watch(self) -> Watch:
        """What the next census is to look out for."""
        return Watch(frozenset(self.after.waning_ms), frozenset(self.after.unused_ms))

    def can_free(self, census: Census | None) -> bool:
        """Whether something is there for flows that this census has not met: then plan again."""
        after = self.after
        return (
            any(has_gone(census, seat, since) for seat, since in after.retired_ms.items())
            or any(has_waned(census, key, since) for key, since in after.waning_ms.items())
            or any(is_unused(census, each, since) for each, since in after.unused_ms.items())
        )


def make_plan(
    kernel: KernelState,
    table: NodeTable,
    view: LocalView | None,
    next_hops: Mapping[str, NextHop | None],
    facts: Facts,
    census: Census | None,
    now_ms: int,
) -> Plan:
    """What to write so that the kernel does what the table says; see the module's description.

    An address that `next_hops` says nothing about keeps the next hop the kernel holds for it.
    """
    fronts = plan_fronts(kernel, table, facts, census, now_ms)
    placed = places(table, fronts.ids)
    seats = plan_seats(kernel, placed, fronts.ids, table, view, next_hops, facts, census, now_ms)
    addresses = plan_addresses(kernel, fronts.values, facts, census, now_ms)
    rings, built = _plan_rings(kernel, placed, fronts.ids, seats, table.hash_seed)
    rings |= _emptied_rings(fronts)
    slots, moved = _slot_writes(kernel.rings, rings)
    after = KernelState(
        seats=seats.values,
        services=fronts.values,
        rings=rings,
        addresses=addresses.values,
        endpoints=endpoints(kernel, fronts.values, seats.values),
        retired_ms=seats.retired_ms,
        waning_ms=fronts.waning_ms,
        unused_ms=addresses.unused_ms,
        ids=fronts.ids,
        built=built,
    )
    return Plan(
        writes=_ordered_writes(kernel, after, seats.fresh_cursors, slots),
        after=after,
        moved_slots=moved,
        seats=_describe(placed, seats.seat_of, seats.values, rings),
        refused=(*fronts.refused, *seats.refused),
    )


# --------------------------------------------------------------------------- rings


def _plan_rings(
    kernel: KernelState,
    placed: Iterable[Place],
    ids: Mapping[str, int],
    seats: Seats,
    seed: int,
) -> tuple[dict[int, SeatRing], dict[str, BuiltRing]]:
    weighted: dict[str, list[Place]] = {name: [] for name in ids}
    for place in placed:
        if place.node.weight > 0:
            weighted[place.service.name].append(place)
    rings: dict[int, SeatRing] = {}
    built: dict[str, BuiltRing] = {}
    for name, own in weighted.items():
        members = tuple(ring.Member(place.node.id, place.node.weight) for place in own)
        built[name] = _build(kernel.built.get(name), members, seed, name)
        resting = [index for index, place in enumerate(own) if place.identity not in seats.takers]
        masked = ring.masked(built[name].ring, resting)
        # NOBODY is -1, so it finds the last element.
        numbers = [*(seats.seat_of.get(place.identity, NO_SEAT) for place in own), NO_SEAT]
        slots = np.zeros(ENTRIES * LANES, np.uint16)
        slots[: ring.SLOTS] = np.array(numbers, np.uint16)[masked]
        rings[ids[name]] = slots.reshape(ENTRIES, LANES)
    return rings, built


def _build(
    before: BuiltRing | None, members: tuple[ring.Member, ...], seed: int, service: str
) -> BuiltRing:
    if before is not None and (before.members, before.seed) == (members, seed):
        return before
    return BuiltRing(members, seed, ring.build(members, seed, service))


def _emptied_rings(fronts: Fronts) -> dict[int, SeatRing]:
    """Those of services that the table names no more."""
    named = set(fronts.ids.values())
    gone = {value.service_id for value in fronts.values.values() if value.retired} - named
    return {number: np.zeros((ENTRIES, LANES), np.uint16) for number in gone}


# --------------------------------------------------------------------------- differences


def _ordered_writes(
    before: KernelState,
    after: KernelState,
    fresh_cursors: frozenset[int],
    slots: list[SlotsWrite],
) -> tuple[Write, ...]:
    early, late = _seat_writes(before, after.seats, fresh_cursors)
    endpoint_writes = (
        EndpointWrite(key, seat)
        for key, seat in after.endpoints.items()
        if before.endpoints.get(key) != seat
    )
    address_writes = (
        AddressWrite(address, value)
        for address, value in after.addresses.items()
        if before.addresses.get(address) != value
    )
    service_writes = (
        ServiceWrite(key, value)
        for key, value in after.services.items()
        if before.services.get(key) != value
    )
    return (
        *early,
        *endpoint_writes,
        *address_writes,
        *slots,
        *service_writes,
        *(ServiceRemoval(key) for key in before.services if key not in after.services),
        *late,
        *(AddressRemoval(each) for each in before.addresses if each not in after.addresses),
        *(EndpointRemoval(key) for key in before.endpoints if key not in after.endpoints),
        *(SeatRemoval(seat) for seat in before.seats if seat not in after.seats),
    )


def _seat_writes(
    kernel: KernelState, seats: Mapping[int, Seat], fresh_cursors: frozenset[int]
) -> tuple[list[SeatWrite], list[SeatWrite]]:
    """Those to be made before slots are switched, and those that are true only after."""
    early: list[SeatWrite] = []
    late: list[SeatWrite] = []
    forgotten: set[int] = set()
    for seat, value in seats.items():
        old = kernel.seats.get(seat)
        if old == value:
            continue
        forgets = value.cursor in fresh_cursors - forgotten
        if forgets:
            forgotten.add(value.cursor)
        loses = old is not None and old.up and not value.up
        write = SeatWrite(seat, value, fresh=old is None, fresh_cursor=forgets)
        (late if loses else early).append(write)
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
    placed: Iterable[Place],
    seat_of: Mapping[int, int],
    seats: Mapping[int, Seat],
    rings: Mapping[int, SeatRing],
) -> tuple[SeatState, ...]:
    slots: Counter[int] = Counter()
    for held in rings.values():
        counts = np.bincount(held.ravel())
        slots.update({int(seat): int(counts[seat]) for seat in np.flatnonzero(counts)})
    states = []
    for place in placed:
        seat = seat_of.get(place.identity)
        if seat is not None:
            hop = seats[seat].next_hop
            resolved = hop is not None and hop.destination_mac is not None
            share = slots[seat] / ring.SLOTS
            name = place.service.name
            states.append(SeatState(seat, name, place.node.id, slots[seat], share, resolved))
    return tuple(states)
