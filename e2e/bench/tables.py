"""Filling the programs' maps directly, as a benchmark's stand-in for the control plane.

The layouts are bcc's (`Key`, `Leaf`), seen as numpy types: a million conntrack entries are made by
arithmetic on columns and written by batches. Values in network order are numbers here as the
machine reads those bytes (`address`, `port`), which is how the C source's __be32 and __be16 look to
Python.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.loader import LoadedObject
from bpf.syscall import possible_cpus, write_entries
from services.dataplane import ring

TCP = 6
RING_LANES = 4
RING_ENTRIES = (ring.SLOTS + RING_LANES - 1) // RING_LANES
SEAT_RESOLVED, SEAT_UP = 1, 2
FLOW_ESTABLISHED = 2
MODES = {"l2": 2, "l3": 3, "l4": 4}
SERVICE_GUE = 4
REQUEST, REPLY = 0, 1
_BATCH = 1 << 17
_HASH_SEED = 0x9E3779B97F4A7C15


def address(dotted: str) -> int:
    """An IPv4 address as a __be32 in this machine's eyes."""
    return int.from_bytes(socket.inet_aton(dotted), sys.byteorder)


def port(number: int) -> int:
    """A port as a __be16 in this machine's eyes."""
    return socket.htons(number)


def mac(text: str) -> tuple[int, ...]:
    return tuple(bytes.fromhex(text.replace(":", "")))


@dataclass(frozen=True, slots=True)
class Seat:
    """A node as the fast path sees it."""

    address: str
    port: int
    ifindex: int
    destination_mac: str
    source_mac: str
    mtu: int = 1500


@dataclass(frozen=True, slots=True)
class Service:
    """The one service of a benchmark; its SNAT ports are those of this LB's slice."""

    vip: str
    port: int
    mode: str
    gue: bool = False
    snat_address: str = "0.0.0.0"
    snat_first_port: int = 1024
    snat_ports: int = 8192
    outer_source: str = "10.81.0.10"


class Tables:
    """Writes the maps of a loaded object."""

    def __init__(self, loaded: LoadedObject) -> None:
        self._bpf = loaded.bpf

    def fill(self, service: Service, seats: Sequence[Seat], public: int, private: int) -> None:
        """Settings, one service, its nodes and its ring."""
        self._write_settings(service, public, private)
        self._write_service(service)
        self._write_seats(service, seats)
        self._write_ring(len(seats))

    def _write_settings(self, service: Service, public: int, private: int) -> None:
        settings = self.values("settings", 1)
        settings["hash_seed"] = _HASH_SEED
        settings["public_ifindex"], settings["private_ifindex"] = public, private
        settings["l4_services"] = service.mode == "l4"
        settings["cpus"] = possible_cpus()
        settings["public_mtu"] = 65535
        settings["outer_prefix"] = address("10.200.0.0")
        self.write("settings", np.zeros(1, np.int32), settings)

    def _write_service(self, service: Service) -> None:
        key = self.keys("services", 1)
        key["address"], key["port"], key["protocol"] = (
            address(service.vip),
            port(service.port),
            TCP,
        )
        value = self.values("services", 1)
        value["mode"] = MODES[service.mode]
        value["flags"] = SERVICE_GUE if service.gue else 0
        value["snat_address"] = address(service.snat_address)
        value["snat_first_port"] = service.snat_first_port
        value["snat_ports"] = service.snat_ports
        self.write("services", key, value)

    def _write_seats(self, service: Service, seats: Sequence[Seat]) -> None:
        values = self.values("seats", len(seats))
        for value, seat in zip(values, seats, strict=True):
            value["address"] = value["next_hop"] = address(seat.address)
            value["port"] = port(seat.port)
            value["ifindex"] = seat.ifindex
            value["destination_mac"] = mac(seat.destination_mac)
            value["source_mac"] = mac(seat.source_mac)
            value["mtu"] = seat.mtu
            value["flags"] = SEAT_RESOLVED | SEAT_UP
            value["outer_source"] = address(service.outer_source)
        # Seat 0 means none.
        self.write("seats", np.arange(1, len(seats) + 1, dtype=np.int32), values)

    def _write_ring(self, nodes: int) -> None:
        members = [ring.Member(f"node-{number}", 1) for number in range(nodes)]
        slots = ring.build(members, _HASH_SEED, "benchmark") + 1
        padded = np.zeros(RING_ENTRIES * RING_LANES, np.uint16)
        padded[: slots.size] = slots
        self.write("ring", np.arange(RING_ENTRIES, dtype=np.int32), padded)

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


@dataclass(frozen=True, slots=True)
class Clients:
    """Client i of N: its address and port, as the wrapper program counts them."""

    first_client: str
    first_port: int

    def columns(self, count: int) -> tuple[NDArray[np.uint32], NDArray[np.uint16]]:
        """Addresses and ports of the first `count`, in network order."""
        number = np.arange(count, dtype=np.uint32)
        first = int.from_bytes(socket.inet_aton(self.first_client))
        addresses = (np.uint32(first) + (number >> np.uint32(14))).astype(np.uint32)
        ports = np.uint32(self.first_port) + (number & np.uint32(0x3FFF))
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
    node_address = np.array([address(s.address) for s in seats], np.uint32)[seat]
    node_port = np.array([port(s.port) for s in seats], np.uint16)[seat]
    snat_port = (service.snat_first_port + number // len(seats)).astype(">u2").view(np.uint16)
    client_address, client_port = clients.columns(count)
    vip, vip_port = np.uint32(address(service.vip)), np.uint16(port(service.port))
    snat = np.uint32(address(service.snat_address))

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
