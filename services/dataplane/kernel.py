"""The maps as the dataplane reads and writes them: a plan's values here, C structs there.

Layouts come from bcc's description of the compiled source, never from a second definition here.
Addresses and ports stand in network order, as packets have them.

`adopt` reads what a process before this one left, so that the first plan changes only what is
really different. `apply` makes one write of a plan; each is a single system call, so whoever dies
between two leaves maps that work.
"""

from __future__ import annotations

import ipaddress
import socket
import struct
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import read_entries, write_entries
from bus.messages import Affinity, Encapsulation, Mode, Protocol
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import (
    ENTRIES,
    LANES,
    KernelState,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceKey,
    ServiceRemoval,
    ServiceWrite,
    SlotsWrite,
    Write,
)

MAC_BYTES = 6
SERVICE_PLACES, SERVICE_PROBES = 1024, 4
SERVICE_HASH_FACTOR = 0x9E3779B97F4A7C15
SEAT_RESOLVED, SEAT_UP = 1, 2
SERVICE_AFFINITY_CLIENT, SERVICE_NO_SNAT, SERVICE_GUE = 1, 2, 4
PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17}
MODES = {Mode.L2: 2, Mode.L3: 3, Mode.L4: 4}


@dataclass(frozen=True, slots=True)
class Settings:
    """What holds for this LB as a whole: `struct settings`, field by field."""

    hash_seed: int
    public_ifindex: int
    """0: nobody has set the programs up yet."""
    private_ifindex: int
    public_mac: bytes
    public_mtu: int
    l4_services: int
    cpus: int
    outer_prefix: int
    """As `address_word` has it; 0: none."""
    new_flows_per_second: int
    new_flows_per_second_per_source: int


def address_word(address: str | None) -> int:
    """An IPv4 address as the maps hold it; 0 for none."""
    packed = ipaddress.IPv4Address(address).packed if address else bytes(4)
    return int.from_bytes(packed, sys.byteorder)


def port_word(port: int) -> int:
    """A port as the maps hold it."""
    return socket.htons(port)


def address_text(word: Any) -> str:
    return str(ipaddress.IPv4Address(int(word).to_bytes(4, sys.byteorder)))


def mac_bytes(mac: str | None) -> bytes:
    """`02:00:...` as six bytes; zeros for none."""
    return bytes.fromhex(mac.replace(":", "")) if mac else bytes(MAC_BYTES)


def mac_text(octets: Any) -> str:
    return bytes(octets).hex(":")


class NoPlaceError(Exception):
    """All places that a service may take are taken: one in some ten thousand, with 64 services."""


def service_places(address: int, port: int, protocol: int) -> tuple[int, ...]:
    """Where a service may stand in the table: `find_service` of bpf/service.h looks there.

    Address and port as the maps hold them, in network order.
    """
    key = struct.pack("=IHBx", address, port, protocol)
    word = int.from_bytes(key, sys.byteorder)
    first = (word * SERVICE_HASH_FACTOR % 2**64) >> 32
    return tuple((first + probe) % SERVICE_PLACES for probe in range(SERVICE_PROBES))


class Kernel:
    """The maps of one loaded object."""

    def __init__(self, bpf: Any) -> None:
        self._settings = bpf[b"settings"]
        self._services = bpf[b"services"]
        self._seats = bpf[b"seats"]
        self._counters = bpf[b"seat_counters"]
        self._ring_fd = bpf[b"ring"].map_fd
        self.max_seats: int = self._seats.info.max_entries
        self.max_services: int = bpf[b"ring"].info.max_entries // ENTRIES
        self._places: dict[ServiceKey, int] = {}

    # ------------------------------------------------------------------ settings

    def read_settings(self) -> Settings:
        leaf = self._settings[self._settings.Key(0)]
        values = {field.name: getattr(leaf, field.name) for field in fields(Settings)}
        return Settings(**values | {"public_mac": bytes(leaf.public_mac)})

    def write_settings(self, settings: Settings) -> None:
        _write(self._settings, self._settings.Key(0), asdict(settings))

    # ------------------------------------------------------------------ adopting

    def adopt(self) -> KernelState:
        """What the maps hold, in the plan's words."""
        services = dict(self._read_services())
        rings = self._read_rings({value.service_id for value in services.values()})
        return KernelState(dict(self._read_seats()), services, rings)

    def _read_services(self) -> Iterator[tuple[ServiceKey, Service]]:
        protocols = {number: protocol for protocol, number in PROTOCOLS.items()}
        modes = {number: mode for mode, number in MODES.items()}
        self._places.clear()
        for places, values in _records(self._services):
            for taken in np.flatnonzero(values["port"]):
                value = values[taken]
                flags = int(value["flags"])
                key = ServiceKey(
                    address_text(value["address"]),
                    socket.ntohs(int(value["port"])),
                    protocols[int(value["protocol"])],
                )
                self._places[key] = int(places[taken])
                yield (
                    key,
                    Service(
                        service_id=int(value["id"]),
                        identity=int(value["identity"]),
                        mode=modes[int(value["mode"])],
                        affinity=Affinity.CLIENT
                        if flags & SERVICE_AFFINITY_CLIENT
                        else Affinity.FLOW,
                        encap=Encapsulation.GUE if flags & SERVICE_GUE else Encapsulation.IPIP,
                        snat=not flags & SERVICE_NO_SNAT,
                        snat_address=address_text(value["snat_address"]),
                        snat_first_port=int(value["snat_first_port"]),
                        snat_ports=int(value["snat_ports"]),
                    ),
                )

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

    def apply(self, write: Write) -> None:
        """Make one write of a plan."""
        match write:
            case SeatWrite(seat, value, fresh):
                if fresh:
                    self._forget_counters(seat)
                _write(self._seats, self._seats.Key(seat), _seat_fields(value))
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

    def _forget_counters(self, seat: int) -> None:
        """The number changes hands: what was counted belongs to somebody else."""
        self._counters[self._counters.Key(seat)] = self._counters.Leaf()

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
        if isinstance(value, bytes):
            getattr(leaf, name)[:] = value
        else:
            setattr(leaf, name, value)
    table[key] = leaf


def _records(table: Any) -> Iterator[tuple[NDArray[Any], NDArray[Any]]]:
    """Keys and values by batches, as numpy records with the C fields."""
    key_type, leaf_type = np.dtype(table.Key), np.dtype(table.Leaf)
    for keys, values in read_entries(table.map_fd):
        yield np.frombuffer(keys, key_type), np.frombuffer(values, leaf_type)


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
        port=socket.ntohs(int(value["port"])),
        up=bool(flags & SEAT_UP),
        next_hop=hop,
    )


def _seat_fields(seat: Seat) -> dict[str, Any]:
    hop = seat.next_hop
    values: dict[str, Any] = {
        "address": address_word(seat.address),
        "port": port_word(seat.port),
        "service": seat.service_id,
        "identity": seat.identity,
        "flags": SEAT_UP if seat.up else 0,
    }
    if hop is None:
        return values
    if hop.destination_mac is not None:
        values["flags"] |= SEAT_RESOLVED
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


def _service_fields(service: Service) -> dict[str, Any]:
    flags = 0
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
        "snat_address": address_word(service.snat_address),
        "snat_first_port": service.snat_first_port,
        "snat_ports": service.snat_ports,
        "identity": service.identity,
    }
