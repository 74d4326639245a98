"""Which services stand at which fronts, and which addresses are ours: a part of the plan. Pure.

A *front* is an address, a port and a protocol: what clients speak to. Each has one entry in the map
`services`, and a service of a range of ports has many. Of two services at one front the second is
left out there, by name.

**Flows outlive their service.** While there are L4 flows of a front, its packets must be looked for
in the flow table, whatever the configuration says by now. So an entry that takes no new L4 flow any
more *wanes*:

* the service was removed, or moved to another front: the entry stays, RETIRED;
* another service, or another mode, took the front over: its entry says HAS_FLOWS as well;

until a census that began afterwards has met no flow of that front. A service of a stateless mode
that goes is removed at once.

**Addresses.** The map `addresses` tells the programs which packets may be theirs at all: those to a
service's address or a VIP, and those to an SNAT address within this LB's slice. If such an address
is no address of this host (it floats), what matches nothing there is dropped, for the host would
answer it with a RST. An SNAT address that no service takes ports of any more stays until a census
has met no flow with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from hashlib import blake2b

from bus.states import NodeTable, SnatSlice, TableService
from bus.words import Mode, NoFlow
from services.dataplane.flows.census import Census
from services.dataplane.maps import (
    NO_PORTS,
    AddressInfo,
    KernelState,
    LocalFacts,
    Service,
    Slice,
)
from services.dataplane.words import ServiceKey

LAST_PORT = 65_535
SETTLE_MS = 1_000
"""A census counts if it began so long after the last new flow could: packets are under way."""


@dataclass(frozen=True, slots=True)
class Fronts:
    """What is to stand in the map `services`."""

    values: dict[ServiceKey, Service]
    """Those that the table names come first."""
    ids: dict[str, int]
    """By name, of the services that are there."""
    waning_ms: dict[ServiceKey, int]
    refused: list[str]


@dataclass(frozen=True, slots=True)
class Addresses:
    """What is to stand in the map `addresses`."""

    values: dict[str, AddressInfo]
    unused_ms: dict[str, int]


def service_identity(service: str) -> int:
    """By which a restarted process knows a service again."""
    return int.from_bytes(blake2b(service.encode(), digest_size=8).digest(), "little")


def has_waned(census: Census | None, key: ServiceKey, since_ms: int) -> bool:
    """Whether no L4 flow of a front is left that took no new one since then."""
    if census is None or census.began_ms < since_ms + SETTLE_MS:
        return False
    return census.fronts.get(key) == 0


def is_unused(census: Census | None, address: str, since_ms: int) -> bool:
    """Whether no flow is left with an SNAT address that no new one took since then."""
    if census is None or census.began_ms < since_ms + SETTLE_MS:
        return False
    return census.snat_addresses.get(address) == 0


# --------------------------------------------------------------------------- services


def plan_fronts(
    kernel: KernelState, table: NodeTable, facts: LocalFacts, census: Census | None, now_ms: int
) -> Fronts:
    fronts, refused = _given_fronts(table, facts)
    standing = list(dict.fromkeys(service.name for service in fronts.values()))
    ids, without_id = _given_ids(kernel, standing, facts)
    own_slices = {s.address: _of(s) for s in table.snat_slices if s.owner == facts.lb}
    served = {
        service.name: _service_value(service, table, facts, ids[service.name], own_slices)
        for service in table.services
        if service.name in ids
    }
    values = {key: served[each.name] for key, each in fronts.items() if each.name in served}
    waning_ms: dict[ServiceKey, int] = {}
    for key, held in kernel.services.items():
        wanted = values.get(key)
        if not held.has_flows or (wanted is not None and wanted.mode is Mode.L4):
            continue
        since_ms = kernel.waning_ms.get(key, now_ms)
        if has_waned(census, key, since_ms):
            continue
        waning_ms[key] = since_ms
        if wanted is not None:
            values[key] = replace(wanted, has_flows=True)
        else:
            # Whatever its mode was: what is of no flow is refused.
            values[key] = replace(held, mode=Mode.L4, retired=True)
    return Fronts(values, ids, waning_ms, refused + without_id)


def _given_fronts(
    table: NodeTable, facts: LocalFacts
) -> tuple[dict[ServiceKey, TableService], list[str]]:
    """Whoever comes first has a front; whoever comes last finds no room, if anybody."""
    fronts: dict[ServiceKey, TableService] = {}
    refused = []
    for service in table.services:
        address = service.address or facts.public_address
        taken = ""
        for port in range(service.port, min(service.port + service.ports, LAST_PORT + 1)):
            key = ServiceKey(address, port, service.protocol)
            if key in fronts:
                taken = taken or f"{key.protocol} {address}:{port} is {fronts[key].name}'s already"
            elif len(fronts) < facts.max_fronts:
                fronts[key] = service
            else:
                taken = taken or f"all {facts.max_fronts} places for ports are in use"
        if taken:
            refused.append(f"service {service.name}: {taken}")
    return fronts, refused


def _given_ids(
    kernel: KernelState, services: Iterable[str], facts: LocalFacts
) -> tuple[dict[str, int], list[str]]:
    """An id is free when no service and no seat, retired ones included, refers to it."""
    known = {value.identity: value.service_id for value in kernel.services.values()}
    known |= {service_identity(name): number for name, number in kernel.ids.items()}
    held = {*known.values(), *(seat.service_id for seat in kernel.seats.values())}
    free = iter([number for number in range(facts.max_services) if number not in held])
    ids: dict[str, int] = {}
    refused = []
    for name in services:
        identity = service_identity(name)
        number = known[identity] if identity in known else next(free, None)
        if number is None:
            refused.append(f"service {name}: all {facts.max_services} ids are in use")
        else:
            ids[name] = number
    return ids, refused


def _service_value(
    service: TableService,
    table: NodeTable,
    facts: LocalFacts,
    number: int,
    own_slices: Mapping[str | None, Slice],
) -> Service:
    is_l4 = service.mode is Mode.L4
    addresses: tuple[str, ...] = ()
    own_slice = NO_PORTS
    if is_l4 and service.snat:
        addresses, own_slice = _snat(service, table, facts, own_slices)
    return Service(
        service_id=number,
        identity=service_identity(service.name),
        mode=service.mode,
        affinity=service.affinity,
        encap=service.encap,
        snat=service.snat,
        no_reset=service.no_flow is NoFlow.DROP,
        has_flows=is_l4,
        retired=False,
        keeps_port=is_l4 and service.keeps_port,
        ring=0,
        snat_addresses=addresses,
        snat_slice=own_slice,
    )


def shared_snat(service: TableService, table: NodeTable) -> tuple[str, ...]:
    """The SNAT addresses that all LBs have in common; empty: each takes its own address."""
    return service.snat_addresses or next(
        (vip.snat_addresses for vip in table.vip_owners if vip.address == service.address), ()
    )


def _snat(
    service: TableService,
    table: NodeTable,
    facts: LocalFacts,
    own_slices: Mapping[str | None, Slice],
) -> tuple[tuple[str, ...], Slice]:
    """The addresses whose ports it takes, and which ports: the same on each of them."""
    shared = shared_snat(service, table)
    if not shared:
        return (facts.private_address,), own_slices.get(None, NO_PORTS)
    slices = {address: own_slices.get(address, NO_PORTS) for address in shared}
    # All LBs give their slot on all addresses alike; whatever does not fit is left alone.
    chosen = next((held for held in slices.values() if held != NO_PORTS), NO_PORTS)
    return tuple(address for address in shared if slices[address] == chosen), chosen


def _of(held: SnatSlice) -> Slice:
    return Slice(held.first_port, held.ports, held.low_first_port, held.low_ports)


# --------------------------------------------------------------------------- addresses


def plan_addresses(
    kernel: KernelState,
    table: NodeTable,
    services: Mapping[ServiceKey, Service],
    facts: LocalFacts,
    census: Census | None,
    now_ms: int,
) -> Addresses:
    slices: dict[str, Slice] = {}
    for service in services.values():
        if not service.retired and service.snat_slice != NO_PORTS:
            slices |= dict.fromkeys(service.snat_addresses, service.snat_slice)
    unused_ms: dict[str, int] = {}
    for address, held in kernel.addresses.items():
        if held.snat_slice is None or address in slices:
            continue
        since_ms = kernel.unused_ms.get(address, now_ms)
        if not is_unused(census, address, since_ms):
            unused_ms[address] = since_ms
            slices[address] = held.snat_slice
    fronts = {key.address for key in services} | {vip.address for vip in table.vip_owners}
    values = {
        address: AddressInfo(
            of_service=address in fronts,
            floating=address not in facts.own_addresses,
            snat_slice=slices.get(address),
        )
        for address in sorted(fronts | slices.keys())
    }
    for address in sorted(facts.broadcasts - values.keys()):
        values[address] = AddressInfo(of_service=False, floating=False, snat_slice=None)
    return Addresses(values, unused_ms)
