"""Filling the programs' maps directly, as a benchmark's stand-in for the control plane.

Services, nodes and rings are written by the dataplane's own hand (kernel.py). Established flows, of
which there are to be a million, are made here, by arithmetic on columns: layouts are bcc's (`Key`,
`Leaf`), seen as numpy types.
"""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.loader import LoadedObject
from bpf.syscall import possible_cpus, write_entries
from bus.messages import Affinity, Encapsulation, Mode, Protocol
from services.dataplane import plan, ring
from services.dataplane.kernel import Kernel, Settings, address_word, mac_bytes, port_word
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import ENTRIES, LANES, NO_SEAT, SeatWrite, ServiceWrite, SlotsWrite

TCP = 6
FLOW_ESTABLISHED = 2
REPLY = 1
PORT_BITS = 15
"""As generator.h has it."""
_BATCH = 1 << 17
_HASH_SEED = 0x9E3779B97F4A7C15
_MTU = 1500


@dataclass(frozen=True, slots=True)
class Seat:
    """A node as the fast path sees it."""

    address: str
    port: int
    ifindex: int
    destination_mac: str
    source_mac: str


@dataclass(frozen=True, slots=True)
class Service:
    """A service of a benchmark; its SNAT ports are those of this LB's slice."""

    vip: str
    port: int
    mode: Mode
    encap: Encapsulation = Encapsulation.IPIP
    snat_address: str = "0.0.0.0"
    snat_first_port: int = 1024
    snat_ports: int = 8192
    outer_source: str = "10.81.0.10"


class Tables:
    """Writes the maps of a loaded object."""

    def __init__(self, loaded: LoadedObject) -> None:
        self._bpf = loaded.bpf

    def fill(
        self,
        services: Sequence[tuple[Service, Sequence[Seat]]],
        public: int,
        private: int,
        public_mac: str | None = None,
    ) -> None:
        """Settings, and each service with its nodes and its ring, as the dataplane writes them."""
        kernel = Kernel(self._bpf)
        l4_services = sum(service.mode is Mode.L4 for service, _ in services)
        kernel.write_settings(_settings(l4_services, public, private, public_mac))
        first = NO_SEAT + 1
        for number, (service, seats) in enumerate(services):
            for place, seat in enumerate(seats, start=first):
                kernel.apply(SeatWrite(place, _seat_value(number, service, seat), True))
            kernel.apply(_slots(first, number, len(seats)))
            kernel.apply(ServiceWrite(*_service_value(number, service)))
            first += len(seats)

    def keys(self, name: str, count: int) -> NDArray[Any]:
        return np.zeros(count, np.dtype(self._bpf[name.encode()].Key))

    def values(self, name: str, count: int) -> NDArray[Any]:
        return np.zeros(count, np.dtype(self._bpf[name.encode()].Leaf))

    def write(self, name: str, keys: NDArray[Any], values: NDArray[Any]) -> None:
        fd = self._bpf[name.encode()].map_fd
        each = values.nbytes // len(keys)
        raw = values.tobytes()
        for start in range(0, len(keys), _BATCH):
            part = keys[start : start + _BATCH]
            write_entries(fd, part.tobytes(), raw[start * each : (start + len(part)) * each])


def _settings(l4_services: int, public: int, private: int, public_mac: str | None) -> Settings:
    return Settings(
        hash_seed=_HASH_SEED,
        public_ifindex=public,
        private_ifindex=private,
        public_mac=mac_bytes(public_mac),
        public_mtu=_MTU,
        l4_services=l4_services,
        cpus=possible_cpus(),
        outer_prefix=address_word("10.200.0.0"),
        new_flows_per_second=0,
        new_flows_per_second_per_source=0,
    )


def _seat_value(number: int, service: Service, seat: Seat) -> plan.Seat:
    hop = NextHop(
        ifindex=seat.ifindex,
        source_mac=seat.source_mac,
        destination_mac=seat.destination_mac,
        mtu=_MTU,
        gateway=None,
        source=service.outer_source,
    )
    return plan.Seat(number + 1, number, seat.address, seat.port, True, hop)


def _service_value(number: int, service: Service) -> tuple[plan.ServiceKey, plan.Service]:
    value = plan.Service(
        service_id=number,
        identity=number + 1,
        mode=service.mode,
        affinity=Affinity.FLOW,
        encap=service.encap,
        snat=True,
        snat_address=service.snat_address,
        snat_first_port=service.snat_first_port,
        snat_ports=service.snat_ports,
    )
    return plan.ServiceKey(service.vip, service.port, Protocol.TCP), value


def _slots(first: int, number: int, nodes: int) -> SlotsWrite:
    members = [ring.Member(f"node-{node}", 1) for node in range(nodes)]
    slots = ring.build(members, _HASH_SEED, "benchmark") + first
    padded = np.zeros(ENTRIES * LANES, np.uint16)
    padded[: slots.size] = slots
    indices = number * ENTRIES + np.arange(ENTRIES, dtype=np.uint32)
    return SlotsWrite(number, indices, padded)


@dataclass(frozen=True, slots=True)
class Clients:
    """Client i of N: its address and port, as the wrapper program counts them."""

    first_client: str
    first_port: int

    def columns(self, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
        """Addresses and ports of the first `count`, in network order."""
        number = np.arange(count, dtype=np.uint32)
        first = int.from_bytes(socket.inet_aton(self.first_client))
        addresses = (np.uint32(first) + (number >> np.uint32(PORT_BITS))).astype(np.uint32)
        ports = np.uint32(self.first_port) + (number & np.uint32((1 << PORT_BITS) - 1))
        return addresses.astype(">u4").view(np.uint32), ports.astype(">u2").view(np.uint16)


@dataclass(frozen=True, slots=True)
class Flows:
    """Both directions of many established flows: rows of the table `est`."""

    keys: NDArray[Any]
    values: NDArray[Any]


def established(
    tables: Tables, service: Service, seats: Sequence[Seat], clients: Clients, count: int
) -> Flows:
    """The entries of `count` flows, spread over the nodes, with every rewrite and its deltas."""
    number = np.arange(count)
    seat = number % len(seats)
    node_address = np.array([address_word(s.address) for s in seats], np.uint32)[seat]
    node_port = np.array([port_word(s.port) for s in seats], np.uint16)[seat]
    snat_port = (service.snat_first_port + number // len(seats)).astype(">u2").view(np.uint16)
    client_address, client_port = clients.columns(count)
    vip, vip_port = np.uint32(address_word(service.vip)), np.uint16(port_word(service.port))
    snat = np.uint32(address_word(service.snat_address))

    keys, values = tables.keys("est", 2 * count), tables.values("est", 2 * count)
    keys["protocol"] = TCP
    request, reply = slice(0, count), slice(count, None)
    keys["direction"][reply] = REPLY
    _tuple(keys[request], client_address, vip, client_port, vip_port)
    _tuple(values[request], snat, node_address, snat_port, node_port)
    _tuple(keys[reply], node_address, snat, node_port, snat_port)
    _tuple(values[reply], vip, client_address, vip_port, client_port)
    values["address_delta"] = _fold(
        _delta32(keys["saddr"], values["saddr"]) + _delta32(keys["daddr"], values["daddr"])
    )
    values["port_delta"] = _fold(
        _delta16(keys["sport"], values["sport"]) + _delta16(keys["dport"], values["dport"])
    )
    values["seat"] = np.tile(seat + 1, 2)
    values["state"] = FLOW_ESTABLISHED
    return Flows(keys, values)


def _tuple(records: NDArray[Any], saddr: Any, daddr: Any, sport: Any, dport: Any) -> None:
    records["saddr"], records["daddr"] = saddr, daddr
    records["sport"], records["dport"] = sport, dport


def _delta32(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.uint32]:
    """RFC 1624, equation 3: what the change adds to the one's complement sum."""
    gone, come = ~old.astype(np.uint32), new.astype(np.uint32)
    low, half = np.uint32(0xFFFF), np.uint32(16)
    added: NDArray[np.uint32] = (gone & low) + (gone >> half) + (come & low) + (come >> half)
    return added


def _delta16(old: NDArray[Any], new: NDArray[Any]) -> NDArray[np.uint32]:
    return (~old.astype(np.uint16)).astype(np.uint32) + new.astype(np.uint32)


def _fold(total: NDArray[np.uint32]) -> NDArray[np.uint16]:
    once = (total & np.uint32(0xFFFF)) + (total >> np.uint32(16))
    twice = (once & np.uint32(0xFFFF)) + (once >> np.uint32(16))
    folded: NDArray[np.uint16] = twice.astype(np.uint16)
    return folded
