"""The plan: from what the cluster agrees on to the map writes that bring this kernel there. Pure.

In: the agreed table, this LB's own view of the nodes, next hops, what the kernel's maps hold, and
the last census of the flow table. Out: an ordered list of writes, and what the maps hold once they
are done. A second plan with the same input is empty. The first plan after a restart is empty too:
the maps hold everything needed to match them to the table.

`seats` says who has a seat and how it stands, `fronts` which services and addresses there are,
`rings` which node takes a new flow. Only entries that change are written.

**Nothing goes while a flow needs it.** What is removed, renamed or moved takes no new flow at once,
but stays for its flows: seats, services, SNAT addresses. Each time a census has been taken
afterwards that met none of them any more, the next plan takes them away (`Plan.watch` says what the
census must look out for, `Plan.can_free` whether there is something of the kind).

**Order.** Seats that are added or changed, endpoints, addresses; slots; services, new and changed
ones before those that go; seats that take no new flows any more; what is removed. After every
single write, a slot refers to a seat that is there, and a service to a ring that is complete. So a
process that dies half way leaves maps that work, and its successor plans the rest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from bus.states import (
    LocalView,
    NodeTable,
    SeatState,
)
from bus.words import Mode
from services.dataplane import ring
from services.dataplane.flows.census import Census, Watch
from services.dataplane.fronts import has_waned, is_unused, plan_addresses, plan_fronts
from services.dataplane.maps import (
    NO_SEAT,
    AddressRemoval,
    AddressWrite,
    EndpointRemoval,
    EndpointWrite,
    KernelState,
    LocalFacts,
    Place,
    Placed,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceRemoval,
    ServiceWrite,
    SlotsWrite,
    Write,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.rings import Rings, plan_rings, slot_writes
from services.dataplane.seats import Seats, endpoints, has_gone, places, plan_seats
from services.dataplane.words import ServiceKey


@dataclass(frozen=True, slots=True)
class Plan:
    writes: tuple[Write, ...]
    after: KernelState
    moved_slots: int
    """Slots that had a node and now have another, or none."""
    described: tuple[Mapping[str, list[Place]], Mapping[str, int], Seats, Rings]
    refused: tuple[str, ...]
    """Who was left out, and why; empty when all is well."""

    def states(self) -> tuple[SeatState, ...]:
        """Of all nodes that the table lists and that have a seat, or a reason to have none, for
        `state.dataplane.`; worked out anew each time, and no packet waits for it.
        """
        return _describe(*self.described)

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
        after = self.after
        own_ports = {
            address: info.snat_slice.ranges
            for address, info in after.addresses.items()
            if info.snat_slice is not None
        }
        return Watch(frozenset(after.waning_ms), frozenset(after.unused_ms), own_ports)

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
    facts: LocalFacts,
    census: Census | None,
    now_ms: int,
) -> Plan:
    """What to write so that the kernel does what the table says; see the module's description.

    An address that `next_hops` says nothing about keeps the next hop the kernel holds for it.
    """
    fronts = plan_fronts(kernel, table, facts, census, now_ms)
    placed = _placed(kernel, table, fronts.ids)
    seats = plan_seats(kernel, placed, fronts.ids, table, view, next_hops, facts, census, now_ms)
    rings = plan_rings(kernel, placed, fronts.ids, seats, table.hash_seed, facts)
    services = _with_rings(fronts.values, rings.of_service, _own_services(seats))
    addresses = plan_addresses(kernel, table, services, facts, census, now_ms)
    slots, moved = slot_writes(kernel, rings)
    after = KernelState(
        seats=seats.values,
        services=services,
        rings=rings.contents,
        addresses=addresses.values,
        endpoints=endpoints(kernel, services, seats, facts),
        retired_ms=seats.retired_ms,
        waning_ms=fronts.waning_ms,
        unused_ms=addresses.unused_ms,
        ids=fronts.ids,
        built=rings.built,
        placed=Placed(table, fronts.ids, placed),
        seated=seats.seated,
        ring_keys=rings.keys,
        ring_contents=rings.by_key,
    )
    return Plan(
        writes=_ordered_writes(kernel, after, seats, slots),
        after=after,
        moved_slots=moved,
        described=(placed, fronts.ids, seats, rings),
        refused=(*fronts.refused, *seats.refused, *rings.refused),
    )


def _placed(
    kernel: KernelState, table: NodeTable, ids: Mapping[str, int]
) -> dict[str, list[Place]]:
    before = kernel.placed
    if before is not None and before.table is table and before.ids == ids:
        return before.places
    return places(table, ids)


def _own_services(seats: Seats) -> frozenset[int]:
    """The ids of the services that this machine is a node of."""
    if seats.seated is not None:
        ways = seats.seated.hops.values()
        if not any(way is not None and way.own for way in ways):
            return frozenset()
    hops = ((seat.service_id, seat.next_hop) for seat in seats.values.values())
    return frozenset(number for number, hop in hops if hop is not None and hop.own)


def _with_rings(
    fronts: Mapping[ServiceKey, Service], rings: Mapping[int, int], own: frozenset[int]
) -> dict[ServiceKey, Service]:
    """Each service with the number of its ring, and whether this machine is a node of it; without
    those for which there is no ring.
    """
    known: dict[int, Service | None] = {}
    values: dict[ServiceKey, Service] = {}
    for key, service in fronts.items():
        if id(service) not in known:
            place = service.ring if service.retired else rings.get(service.service_id)
            of_this_node = service.mode is Mode.L2 and service.service_id in own
            known[id(service)] = (
                None if place is None else replace(service, ring=place, of_this_node=of_this_node)
            )
        value = known[id(service)]
        if value is not None:
            values[key] = value
    return values


# --------------------------------------------------------------------------- differences


def _ordered_writes(
    before: KernelState,
    after: KernelState,
    seats: Seats,
    slots: list[SlotsWrite],
) -> tuple[Write, ...]:
    early, late = _seat_writes(before, seats)
    had, has = before.endpoints, after.endpoints
    endpoint_writes = (
        EndpointWrite(key, seat)
        for key, seat in (has.items() if has is not had else ())
        if had.get(key) != seat
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
        *(EndpointRemoval(key) for key in (had if has is not had else ()) if key not in has),
        *(SeatRemoval(seat) for seat in before.seats if seat not in after.seats),
    )


def _seat_writes(kernel: KernelState, seats: Seats) -> tuple[list[SeatWrite], list[SeatWrite]]:
    """Those to be made before slots are switched, and those that are true only after."""
    early: list[SeatWrite] = []
    late: list[SeatWrite] = []
    forgotten: set[int] = set()
    for seat in seats.values if seats.changed is None else sorted(seats.changed):
        old, value = kernel.seats.get(seat), seats.values[seat]
        if old is value or old == value:
            continue
        forgets = value.cursor in seats.fresh_cursors and value.cursor not in forgotten
        if forgets:
            forgotten.add(value.cursor)
        loses = old is not None and old.up and not value.up
        write = SeatWrite(seat, value, fresh=old is None, fresh_cursor=forgets)
        (late if loses else early).append(write)
    return early, late


def _describe(
    placed: Mapping[str, list[Place]], ids: Mapping[str, int], seats: Seats, rings: Rings
) -> tuple[SeatState, ...]:
    slots = {place: np.bincount(held.ravel()) for place, held in rings.contents.items()}
    states = []
    for name, own in placed.items():
        number = ids[name]
        counts = slots[rings.of_service[number]] if number in rings.of_service else ()
        for place in own:
            seat = seats.seat_of.get(place.identity)
            reason = seats.reasons.get(place.identity, "")
            if seat is not None:
                hop = seats.values[seat].next_hop
                resolved = hop is not None and hop.destination_mac is not None
                count = int(counts[seat - number]) if seat - number < len(counts) else 0
                share = count / ring.SLOTS
                states.append(SeatState(seat, name, place.node.id, count, share, resolved, reason))
            elif reason:
                states.append(SeatState(NO_SEAT, name, place.node.id, 0, 0.0, False, reason))
    return tuple(states)
