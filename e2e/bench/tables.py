"""Filling the programs' maps directly, as a benchmark's stand-in for the control plane.

Services, nodes and rings are written by the dataplane's own hand (kernel.py). Tables of the
benchmarks' own are written in columns: layouts are bcc's (`Key`, `Leaf`), seen as numpy types.
Established flows are another matter (flows.py).
"""

from __future__ import annotations

import socket
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.loader import LoadedObject
from bpf.syscall import write_entries
from bus.words import (
    Affinity,
    Encapsulation,
    Mode,
    Protocol,
)
from conf import LbConfig
from services.dataplane import maps, ring
from services.dataplane.kernel import Kernel, Settings
from services.dataplane.maps import (
    ENTRIES,
    LANES,
    NO_PORTS,
    NO_SEAT,
    AddressInfo,
    AddressWrite,
    EndpointWrite,
    SeatWrite,
    ServiceWrite,
    Slice,
    SlotsWrite,
    Write,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.settings import ANSWERS_PER_SECOND, timeouts
from services.dataplane.words import ServiceKey, address_word, mac_bytes

TCP = 6
FIRST_SEAT = NO_SEAT + 1
"""Where the first service's nodes begin."""
PORT_BITS = 15
"""As generator.h has it."""
_BATCH = 1 << 17
_HASH_SEED = 0x9E3779B97F4A7C15
_FLOW_SEED = 0xD1B54A32D192ED03
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
    no_reset: bool = False
    """TCP of no flow is dropped instead of answered."""


class Tables:
    """Writes the maps of a loaded object."""

    def __init__(self, loaded: LoadedObject) -> None:
        self._bpf = loaded.bpf

    def fill(
        self,
        services: Sequence[tuple[Service, Sequence[Seat]]],
        public: int,
        private: int,
        public_mac: str,
        private_mac: str,
        others: int = 0,
    ) -> None:
        """Settings, and each service with its nodes and its ring, as the dataplane writes them.

        What is sent to another MAC address than the interface's is for nobody here. `others`: so
        many more, which nobody asks for, on 256 addresses.
        """
        kernel = Kernel(self._bpf)
        states = len(kernel.read_settings().timeout)
        kernel.write_settings(_settings(states, public, private, public_mac, private_mac))
        first = FIRST_SEAT
        for number in range(others):
            key = ServiceKey(f"10.90.0.{number % 256}", 8000 + number // 256, Protocol.TCP)
            value = _service_value(0, services[0][0])
            kernel.apply(ServiceWrite(key, value))
        for number, (service, seats) in enumerate(services):
            for write in _writes(first, number, service, seats):
                kernel.apply(write)
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


def bench_settings(states: int) -> Settings:
    """For maps that no packet meets."""
    return _settings(states, 1, 1, "02:00:00:00:00:01", "02:00:00:00:00:01")


def _settings(
    states: int, public: int, private: int, public_mac: str, private_mac: str
) -> Settings:
    return Settings(
        hash_seed=_HASH_SEED,
        flow_seed=_FLOW_SEED,
        public_ifindex=public,
        private_ifindex=private,
        public_mac=mac_bytes(public_mac),
        public_mtu=_MTU,
        private_mac=mac_bytes(private_mac),
        public_address=0,
        private_address=0,
        outer_prefix=address_word("10.200.0.0"),
        chained=0,
        new_flows_per_second=0,
        new_flows_per_second_per_source=0,
        answers_per_second=ANSWERS_PER_SECOND,
        public_by_tc=0,
        private_by_tc=0,
        notes=0,
        # A file that says nothing.
        timeout=timeouts(LbConfig.model_construct(), states),
    )


def _writes(first: int, number: int, service: Service, seats: Sequence[Seat]) -> Iterator[Write]:
    for place, seat in enumerate(seats, start=first):
        value = _seat_value(place, number, service, seat)
        yield SeatWrite(place, value, fresh=True, fresh_cursor=True)
        yield EndpointWrite(ServiceKey(seat.address, seat.port, Protocol.TCP), place)
    yield AddressWrite(service.vip, AddressInfo(True, floating=False, snat_slice=None))
    if service.mode is Mode.L4:
        yield AddressWrite(service.snat_address, AddressInfo(False, False, _slice(service)))
    yield _slots(first, number, len(seats))
    key = ServiceKey(service.vip, service.port, Protocol.TCP)
    yield ServiceWrite(key, _service_value(number, service))


def _seat_value(place: int, number: int, service: Service, seat: Seat) -> maps.Seat:
    hop = NextHop(
        ifindex=seat.ifindex,
        source_mac=seat.source_mac,
        destination_mac=seat.destination_mac,
        mtu=_MTU,
        gateway=None,
        source=service.outer_source,
    )
    return maps.Seat(
        identity=number + 1,
        service_id=number,
        address=seat.address,
        port=seat.port,
        cursor=place,
        up=True,
        dead=False,
        reset=False,
        next_hop=hop,
    )


def _slice(service: Service) -> Slice:
    return Slice(service.snat_first_port, service.snat_ports, 0, 0)


def _service_value(number: int, service: Service) -> maps.Service:
    is_l4 = service.mode is Mode.L4
    return maps.Service(
        service_id=number,
        identity=number + 1,
        mode=service.mode,
        affinity=Affinity.FLOW,
        encap=service.encap,
        snat=True,
        no_reset=service.no_reset,
        has_flows=is_l4,
        retired=False,
        keeps_port=False,
        ring=number,
        snat_addresses=(service.snat_address,) if is_l4 else (),
        snat_slice=_slice(service) if is_l4 else NO_PORTS,
    )


def _slots(first: int, number: int, nodes: int) -> SlotsWrite:
    members = [ring.Member(f"node-{node}", 1) for node in range(nodes)]
    slots = ring.build(members, _HASH_SEED, "benchmark") + first - number
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
