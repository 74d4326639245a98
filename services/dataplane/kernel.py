"""The maps as the dataplane reads and writes them: a plan's values here, C structs there.

Layouts come from bcc's description of the compiled source, never from a second definition here.
Addresses and ports stand in network order, as packets have them.

`adopt` reads what a process before this one left, so that the first plan changes only what is
really different. `carry_out` makes a plan's writes one by one; each is a single system call, so
whoever dies between two leaves maps that work. A service that finds no place in its table is left
out by name, and is not taken for written: the next plan tries again.
"""

from __future__ import annotations

import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import read_entries, write_entries
from bus.words import (
    Affinity,
    Encapsulation,
    Mode,
    Protocol,
)
from services.dataplane.maps import (
    ENTRIES,
    LANES,
    AddressInfo,
    AddressRemoval,
    AddressWrite,
    EndpointRemoval,
    EndpointWrite,
    KernelState,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceRemoval,
    ServiceWrite,
    Slice,
    SlotsWrite,
    Write,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import Plan
from services.dataplane.words import (
    ServiceKey,
    address_text,
    address_word,
    mac_bytes,
    mac_text,
    port_number,
    port_word,
)

SERVICE_PLACES, SERVICE_PROBES = 1024, 4
SERVICE_HASH_FACTOR, SERVICE_PLACE_SHIFT = 0x9E3779B97F4A7C15, 54
SEAT_RESOLVED, SEAT_UP, SEAT_DEAD, SEAT_RESET = 1, 2, 4, 8
SERVICE_AFFINITY_CLIENT, SERVICE_NO_SNAT, SERVICE_GUE = 1, 2, 4
SERVICE_NO_RESET, SERVICE_HAS_FLOWS, SERVICE_RETIRED = 8, 16, 32
ADDRESS_OF_SERVICE, ADDRESS_FLOATING, ADDRESS_SNAT = 1, 2, 4
PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17}
MODES = {Mode.L2: 2, Mode.L3: 3, Mode.L4: 4}
_PROTOCOL_OF = {number: protocol for protocol, number in PROTOCOLS.items()}
_MODE_OF = {number: mode for mode, number in MODES.items()}


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for this LB as a whole: `struct settings`, field by field."""

    hash_seed: int
    flow_seed: int
    """Of the flow table's hash; 0: nobody has drawn it yet."""
    public_ifindex: int
    """0: nobody has set the programs up yet."""
    private_ifindex: int
    public_mac: bytes
    public_mtu: int
    outer_prefix: int
    """As `address_word` has it; 0: none."""
    chained: int
    """1: flows may still stand in the table before this one."""
    new_flows_per_second: int
    new_flows_per_second_per_source: int
    answers_per_second: int
    timeout: tuple[int, ...]
    """Ticks, by state; as many as the array has."""


class NoPlaceError(Exception):
    """All places that a service may take are taken: one in some ten thousand, with 64 services."""


def service_places(address: int, port: int, protocol: int) -> tuple[int, ...]:
    """Where a service may stand in the table: `find_service` of service.h looks there.

    Address and port as the maps hold them, in network order.
    """
    key = struct.pack("=IHBx", address, port, protocol)
    word = int.from_bytes(key, sys.byteorder)
    first = (word * SERVICE_HASH_FACTOR % 2**64) >> SERVICE_PLACE_SHIFT
    return tuple((first + probe) % SERVICE_PLACES for probe in range(SERVICE_PROBES))


class Kernel:
    """The maps of one loaded object."""

    def __init__(self, bpf: Any) -> None:
        self._settings = bpf[b"settings"]
        self._services = bpf[b"services"]
        self._seats = bpf[b"seats"]
        self._counters = bpf[b"seat_counters"]
        self._cursors = bpf[b"port_cursors"]
        self._addresses = bpf[b"addresses"]
        self._endpoints = bpf[b"endpoints"]
        self._ring_fd = bpf[b"ring"].map_fd
        self.max_seats: int = self._seats.info.max_entries
        self.max_services: int = bpf[b"ring"].info.max_entries // ENTRIES
        self._places: dict[ServiceKey, int] = {}

    # ------------------------------------------------------------------ settings

    def read_settings(self) -> Settings:
        leaf = self._settings[self._settings.Key(0)]
        values = {field.name: getattr(leaf, field.name) for field in fields(Settings)}
        arrays = {"public_mac": bytes(leaf.public_mac), "timeout": tuple(leaf.timeout)}
        return Settings(**values | arrays)

    def write_settings(self, settings: Settings) -> None:
        _write(self._settings, self._settings.Key(0), asdict(settings))

    # ------------------------------------------------------------------ adopting

    def adopt(self) -> KernelState:
        """What the maps hold, in the plan's words."""
        services = dict(self._read_services())
        return KernelState(
            seats=dict(self._read_seats()),
            services=services,
            rings=self._read_rings({value.service_id for value in services.values()}),
            addresses={address_text(key): _info(leaf) for key, leaf in _pairs(self._addresses)},
            endpoints={_key(key): int(leaf) for key, leaf in _pairs(self._endpoints)},
        )

    def _read_services(self) -> Iterator[tuple[ServiceKey, Service]]:
        self._places.clear()
        for places, values in _records(self._services):
            for taken in np.flatnonzero(values["port"]):
                key = _key(values[taken])
                self._places[key] = int(places[taken])
                yield key, _service(values[taken])

    def _read_seats(self) -> Iterator[tuple[int, Seat]]:
        for keys, values in _records(self._seats):
            for place in np.flatnonzero(values["identity"]):
                yield int(keys[place]), _seat(values[place])

    def _read_rings(self, service_ids: set[int]) -> dict[int, NDArray[np.uint16]]:
        if not service_ids:
            return {}
        # The lowest ids are given first, so this is the beginning of a map of a million entries.
        count = (max(service_ids) + 1) * ENTRIES
        raw = b"".join(values for _, values in read_entries(self._ring_fd, count))
        rings = np.frombuffer(raw, np.uint16).reshape(-1, ENTRIES, LANES)
        return {number: rings[number].copy() for number in service_ids}

    # ------------------------------------------------------------------ applying

    def carry_out(self, plan: Plan) -> tuple[KernelState, tuple[str, ...]]:
        """Make a plan's writes. What the maps hold then, and who was left out, for which reason."""
        left_out: dict[ServiceKey, str] = {}
        for write in plan.writes:
            try:
                self.apply(write)
            except NoPlaceError as reason:
                assert isinstance(write, ServiceWrite)
                left_out[write.key] = str(reason)
        if not left_out:
            return plan.after, ()
        there = {key: value for key, value in plan.after.services.items() if key not in left_out}
        return replace(plan.after, services=there), tuple(left_out.values())

    def apply(self, write: Write) -> None:
        """Make one write of a plan; raises `NoPlaceError`."""
        match write:
            case SeatWrite():
                self._write_seat(write)
            case SeatRemoval(seat):
                self._seats[self._seats.Key(seat)] = self._seats.Leaf()
            case SlotsWrite(_, indices, values):
                write_entries(self._ring_fd, indices.tobytes(), values.tobytes())
            case ServiceWrite(key, service):
                self._write_service(key, service)
            case ServiceRemoval(key):
                place = self._places.pop(key, None)
                if place is not None:
                    self._services[self._services.Key(place)] = self._services.Leaf()
            case AddressWrite(address, info):
                key_word = self._addresses.Key(address_word(address))
                _write(self._addresses, key_word, _info_fields(info))
            case AddressRemoval(address):
                self._addresses.pop(self._addresses.Key(address_word(address)), None)
            case EndpointWrite(key, seat):
                self._endpoints[self._endpoints.Key(**_key_fields(key))] = seat
            case EndpointRemoval(key):
                self._endpoints.pop(self._endpoints.Key(**_key_fields(key)), None)

    def _write_seat(self, write: SeatWrite) -> None:
        """Of a number that changes hands, what was counted belongs to somebody else."""
        if write.fresh:
            self._counters[self._counters.Key(write.seat)] = self._counters.Leaf()
        if write.fresh_cursor:
            self._cursors[self._cursors.Key(write.value.cursor)] = self._cursors.Leaf()
        _write(self._seats, self._seats.Key(write.seat), _seat_fields(write.value))

    def _write_service(self, key: ServiceKey, service: Service) -> None:
        place = self._places.get(key)
        values = _service_fields(service)
        if place is None:
            place = self._free_place(key)
            # The key comes last: whoever finds it finds all that belongs to it.
            _write(self._services, self._services.Key(place), values)
            self._places[key] = place
        _write(self._services, self._services.Key(place), _key_fields(key) | values)

    def _free_place(self, key: ServiceKey) -> int:
        taken = set(self._places.values())
        free = (place for place in service_places(**_key_fields(key)) if place not in taken)
        place = next(free, None)
        if place is None:
            raise NoPlaceError(f"service at {key.address}:{key.port}: no free place in the table")
        return place


def _write(table: Any, key: Any, values: dict[str, Any]) -> None:
    """Write a struct by field names; what is not named, padding included, is zero."""
    leaf = table.Leaf()
    for name, value in values.items():
        if isinstance(value, bytes | tuple):
            getattr(leaf, name)[: len(value)] = value
        else:
            setattr(leaf, name, value)
    table[key] = leaf


def _records(table: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Keys and values by batches, as numpy records with the C fields."""
    key_type, leaf_type = np.dtype(table.Key), np.dtype(table.Leaf)
    for keys, values in read_entries(table.map_fd):
        yield np.frombuffer(keys, key_type), np.frombuffer(values, leaf_type)


def _pairs(table: Any) -> Iterator[tuple[Any, Any]]:
    for keys, values in _records(table):
        yield from zip(keys, values, strict=True)


# --------------------------------------------------------------------------- from the maps


def _key(value: Any) -> ServiceKey:
    """What a `struct service_key` says, or a value that begins with one."""
    protocol = _PROTOCOL_OF[int(value["protocol"])]
    return ServiceKey(address_text(value["address"]), port_number(value["port"]), protocol)


def _slice(value: Any) -> Slice:
    names = ("snat_first_port", "snat_ports", "low_first_port", "low_ports")
    return Slice(*(int(value[name]) for name in names))


def _info(value: Any) -> AddressInfo:
    flags = int(value["flags"])
    return AddressInfo(
        of_service=bool(flags & ADDRESS_OF_SERVICE),
        floating=bool(flags & ADDRESS_FLOATING),
        snat_slice=_slice(value) if flags & ADDRESS_SNAT else None,
    )


def _service(value: Any) -> Service:
    flags = int(value["flags"])
    addresses = value["snat_address"][: int(value["snat_count"])]
    return Service(
        service_id=int(value["id"]),
        identity=int(value["identity"]),
        mode=_MODE_OF[int(value["mode"])],
        affinity=Affinity.CLIENT if flags & SERVICE_AFFINITY_CLIENT else Affinity.FLOW,
        encap=Encapsulation.GUE if flags & SERVICE_GUE else Encapsulation.IPIP,
        snat=not flags & SERVICE_NO_SNAT,
        no_reset=bool(flags & SERVICE_NO_RESET),
        has_flows=bool(flags & SERVICE_HAS_FLOWS),
        retired=bool(flags & SERVICE_RETIRED),
        snat_addresses=tuple(address_text(word) for word in addresses),
        snat_slice=_slice(value),
    )


def _seat(value: Any) -> Seat:
    flags = int(value["flags"])
    ifindex = int(value["ifindex"])
    address, gateway = address_text(value["address"]), address_text(value["next_hop"])
    hop = None
    if ifindex:
        hop = NextHop(
            ifindex=ifindex,
            source_mac=mac_text(value["source_mac"]),
            destination_mac=mac_text(value["destination_mac"]) if flags & SEAT_RESOLVED else None,
            mtu=int(value["mtu"]),
            gateway=None if gateway == address else gateway,
            source=address_text(value["outer_source"]),
        )
    return Seat(
        identity=int(value["identity"]),
        service_id=int(value["service"]),
        address=address,
        port=port_number(value["port"]),
        cursor=int(value["cursor"]),
        up=bool(flags & SEAT_UP),
        dead=bool(flags & SEAT_DEAD),
        reset=bool(flags & SEAT_RESET),
        next_hop=hop,
    )


# --------------------------------------------------------------------------- to the maps


def _seat_fields(seat: Seat) -> dict[str, Any]:
    hop = seat.next_hop
    is_resolved = hop is not None and hop.destination_mac is not None
    values: dict[str, Any] = {
        "address": address_word(seat.address),
        "port": port_word(seat.port),
        "service": seat.service_id,
        "identity": seat.identity,
        "cursor": seat.cursor,
        "flags": SEAT_RESOLVED * is_resolved
        | SEAT_UP * seat.up
        | SEAT_DEAD * seat.dead
        | SEAT_RESET * seat.reset,
    }
    if hop is None:
        return values
    return values | {
        "ifindex": hop.ifindex,
        "next_hop": address_word(hop.gateway or seat.address),
        "destination_mac": mac_bytes(hop.destination_mac),
        "source_mac": mac_bytes(hop.source_mac),
        "mtu": hop.mtu,
        "outer_source": address_word(hop.source),
    }


def _key_fields(key: ServiceKey) -> dict[str, int]:
    return {
        "address": address_word(key.address),
        "port": port_word(key.port),
        "protocol": PROTOCOLS[key.protocol],
    }


def _slice_fields(own: Slice) -> dict[str, int]:
    return {
        "snat_first_port": own.first_port,
        "snat_ports": own.ports,
        "low_first_port": own.low_first_port,
        "low_ports": own.low_ports,
    }


def _info_fields(info: AddressInfo) -> dict[str, int]:
    flags = ADDRESS_OF_SERVICE * info.of_service | ADDRESS_FLOATING * info.floating
    if info.snat_slice is None:
        return {"flags": flags}
    return {"flags": flags | ADDRESS_SNAT} | _slice_fields(info.snat_slice)


def _service_fields(service: Service) -> dict[str, Any]:
    flags = SERVICE_NO_RESET * service.no_reset | SERVICE_HAS_FLOWS * service.has_flows
    flags |= SERVICE_RETIRED * service.retired
    if service.affinity is Affinity.CLIENT:
        flags |= SERVICE_AFFINITY_CLIENT
    if not service.snat:
        flags |= SERVICE_NO_SNAT
    if service.encap is Encapsulation.GUE:
        flags |= SERVICE_GUE
    return {
        "id": service.service_id,
        "mode": MODES[service.mode],
        "flags": flags,
        "identity": service.identity,
        "snat_count": len(service.snat_addresses),
        "snat_address": tuple(map(address_word, service.snat_addresses)),
    } | _slice_fields(service.snat_slice)
