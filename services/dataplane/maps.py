"""What the maps hold, in the plan's words, and the writes that change it. Pure.

`kernel` turns each of these into a C struct and back. Units and orders are people's here: text for
addresses, numbers of this host for ports.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bus.states import NodeTable, TableNode, TableService
from bus.words import Affinity, Encapsulation, Mode, NodeState
from services.dataplane import ring
from services.dataplane.nexthop import NextHop
from services.dataplane.words import ServiceKey

LANES = 4
ENTRIES = -(-ring.SLOTS // LANES)
"""Entries of the map that one ring takes; the last one's spare lanes stay 0."""

NO_SEAT = 0

SeatRing = NDArray[np.uint16]
"""A ring as the map holds it: shape (ENTRIES, LANES), seats less the service's id; 0: nobody."""


@dataclass(frozen=True, slots=True)
class Seat:
    """The value of one entry of the map `seats`."""

    identity: int
    """`seat_identity` of its service and node."""
    service_id: int
    address: str
    port: int
    """0: the one that the client uses."""
    cursor: int
    """Index of the map `port_cursors`: the same for all seats of this address and port."""
    up: bool
    """Takes new flows."""
    dead: bool
    """Its node is down: UDP and a SYN choose anew."""
    reset: bool
    """... and its other TCP flows are reset."""
    next_hop: NextHop | None
    """None: there is no route to it."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The source ports that this LB takes on an SNAT address."""

    first_port: int
    ports: int
    low_first_port: int
    low_ports: int
    """For clients whose own port is below 1024."""

    @property
    def ranges(self) -> tuple[range, range]:
        """All of them."""
        first, low = self.first_port, self.low_first_port
        return range(first, first + self.ports), range(low, low + self.low_ports)


NO_PORTS = Slice(0, 0, 0, 0)


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
    no_reset: bool
    """TCP of no flow is dropped instead of answered."""
    has_flows: bool
    """Its mode is L4, or was, and there are flows yet: they are looked for first."""
    retired: bool
    """Takes no new flow: it is here for those it has."""
    keeps_port: bool
    """A range of ports that nodes serve on the same ports."""
    ring: int
    """Number of its ring in the map `ring`."""
    snat_addresses: tuple[str, ...]
    """Empty unless the mode is L4 and `snat` is set."""
    snat_slice: Slice
    """On each of these addresses. Without ports it takes no new flow."""
    of_this_node: bool = False
    """Its mode is L2, and this machine is a node of it: what other LBs send is for the host."""


@dataclass(frozen=True, slots=True)
class AddressInfo:
    """The value of the map `addresses`: an address that no client has.

    One that packets come to, or none of that, and then a network's broadcast address."""

    of_service: bool
    floating: bool
    """No address of this host."""
    snat_slice: Slice | None
    """None: it is no SNAT address of this LB's."""


class RingName(NamedTuple):
    """What a ring is made of, within one table."""

    group: str
    """The services' `affinity_group`; mostly empty."""
    nodes: tuple[str, ...]
    """Ids, in the table's order."""


@dataclass(frozen=True, slots=True)
class BuiltRing:
    """A ring before masking, kept because only a change of its members costs time."""

    members: tuple[ring.Member, ...]
    seed: int
    ring: ring.Ring


@dataclass(frozen=True, slots=True)
class Place:
    """A node that serves a service."""

    service: TableService
    node: TableNode
    port: int
    """0: the one that the client uses."""
    identity: int
    state: NodeState
    """The agreed one, of this service of the node."""
    percent: int = 100
    """Of its weight, what it takes here now."""


@dataclass(frozen=True, slots=True)
class Placed:
    """All places of a table, kept because only another table has others."""

    table: NodeTable
    ids: Mapping[str, int]
    places: dict[str, list[Place]]


@dataclass(frozen=True, slots=True)
class Death:
    """A node that is down, or one of its services."""

    silent: bool
    """Nothing is heard of it, where it is said to be down."""


@dataclass(frozen=True, slots=True)
class Ailing:
    """Who is down, as agreed or as seen from here."""

    nodes: Mapping[str, Death]
    """By the node's id."""
    services: Set[tuple[str, str]]
    """Service and node, where the node as a whole is not down."""

    def death(self, place: Place) -> Death | None:
        """None: nothing is known against the place."""
        node = place.node.id
        death = self.nodes.get(node)
        if death is None and self.services and (place.service.name, node) in self.services:
            return SICK
        return death

    def differs(self, other: Ailing) -> set[str]:
        """The nodes of which the two do not say the same."""
        ours, theirs = self.nodes, other.nodes
        ids = ours.keys() | theirs.keys()
        nodes = {node for node in ids if ours.get(node) != theirs.get(node)}
        return nodes | {node for _, node in self.services ^ other.services}


SICK = Death(silent=False)


@dataclass(frozen=True, slots=True)
class Seated:
    """What the last plan's seats were made of, where nothing stood in anybody's way: so the next
    plan looks only at the nodes of which something else is known by then.
    """

    places: Mapping[str, list[Place]]
    values: Mapping[int, Seat]
    seat_of: Mapping[int, int]
    eligible: frozenset[int]
    ailing: Ailing
    hops: Mapping[str, NextHop | None]
    facts: LocalFacts
    of_node: Mapping[str, list[Place]]
    nodes_at: Mapping[str, list[str]]
    """By address, the ids of the nodes there."""


class RingKey(NamedTuple):
    """What a service's part of the map `ring` follows from. Services of one key share it."""

    members: RingName
    percents: tuple[int, ...]
    """Of each member's slots, what it takes here; 0: it is masked."""
    offsets: tuple[int, ...]
    """Each member's seat less the service's id; 0: it has none."""


@dataclass(frozen=True, slots=True)
class KernelState:
    """What the maps hold, read from them at the start and from then on what plans left there."""

    seats: Mapping[int, Seat]
    services: Mapping[ServiceKey, Service]
    rings: Mapping[int, SeatRing]
    """By number. A ring that is not here is written whole, so those that no service goes by need
    not be read."""
    addresses: Mapping[str, AddressInfo] = field(default_factory=dict)
    endpoints: Mapping[ServiceKey, int] = field(default_factory=dict)
    """A node's address and port: the seat."""
    retired_ms: Mapping[int, int] = field(default_factory=dict)
    """Since when a seat has been nobody's."""
    waning_ms: Mapping[ServiceKey, int] = field(default_factory=dict)
    """Since when what stands at a front takes no new L4 flow, though it did."""
    unused_ms: Mapping[str, int] = field(default_factory=dict)
    """Since when no service takes ports of an SNAT address."""
    ids: Mapping[str, int] = field(default_factory=dict)
    """By the name of the service: one that found no place in its table has one as well."""
    built: Mapping[RingName, BuiltRing] = field(default_factory=dict)

    placed: Placed | None = None
    seated: Seated | None = None
    ring_keys: Mapping[str, RingKey] = field(default_factory=dict)
    """By service, as the last plan left them."""
    ring_contents: Mapping[RingKey, SeatRing] = field(default_factory=dict)


EMPTY = KernelState({}, {}, {})


def snat_ports(kernel: KernelState) -> int:
    """How many flows could hold a port: each port of each SNAT address, towards each node's address
    and port that is served from there.
    """
    services: dict[int, list[Service]] = {}
    for service in kernel.services.values():
        services.setdefault(service.service_id, []).append(service)
    pairs = {
        (address, seat.address, seat.port, service.snat_slice)
        for seat in kernel.seats.values()
        for service in services.get(seat.service_id, ())
        for address in service.snat_addresses
    }
    return sum(own.ports + own.low_ports for _, _, _, own in pairs)


# --------------------------------------------------------------------------- writes


@dataclass(frozen=True, slots=True)
class SeatWrite:
    seat: int
    value: Seat
    fresh: bool
    """The number changes hands: whatever was counted for it belongs to somebody else."""
    fresh_cursor: bool = False
    """So does its cursor: what that says of ports is about other ones."""


@dataclass(frozen=True, slots=True)
class SeatRemoval:
    seat: int


@dataclass(frozen=True, slots=True, eq=False)
class SlotsWrite:
    """One batch: `values[i]` is the entry of the map `ring` at `indices[i]`."""

    ring: int
    indices: NDArray[np.uint32]
    values: NDArray[np.uint16]


@dataclass(frozen=True, slots=True)
class ServiceWrite:
    key: ServiceKey
    value: Service


@dataclass(frozen=True, slots=True)
class ServiceRemoval:
    key: ServiceKey


@dataclass(frozen=True, slots=True)
class AddressWrite:
    address: str
    value: AddressInfo


@dataclass(frozen=True, slots=True)
class AddressRemoval:
    address: str


@dataclass(frozen=True, slots=True)
class EndpointWrite:
    key: ServiceKey
    seat: int


@dataclass(frozen=True, slots=True)
class EndpointRemoval:
    key: ServiceKey


Write = (
    SeatWrite
    | SeatRemoval
    | SlotsWrite
    | ServiceWrite
    | ServiceRemoval
    | AddressWrite
    | AddressRemoval
    | EndpointWrite
    | EndpointRemoval
)


@dataclass(frozen=True, slots=True)
class LocalFacts:
    """What holds for this LB alone."""

    lb: str
    """Its name, as the table's slices have it."""
    public_address: str
    private_address: str
    own_addresses: frozenset[str]
    """All of this host."""
    max_seats: int
    """Entries of the map `seats`; entry 0 is nobody's."""
    max_services: int
    max_rings: int
    max_fronts: int
    """Entries of the map `services` that may be taken."""
    max_endpoints: int
    broadcasts: frozenset[str] = frozenset()
    """Addresses of whole networks that this host is in."""
    no_way_to_itself: str = ""
    """Why this machine, if it is a node too, cannot answer flows of this LB; empty: it can."""
