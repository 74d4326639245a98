"""What this machine is: its own addresses, and which start of it this is: one answer for all.

A service without a floating VIP is known by the LB's own address: health tells it to the nodes, the
API to the operators, the dataplane to the kernel, and it must be one. An interface may have many.
Its own is the first in the kernel's order whose scope is global, so neither one that holds on the
link alone (169.254.0.0/16, which comes by itself where DHCP is late) nor a secondary one; on the
loopback, whose addresses have no wider scope, its first.

The kernel is asked each time by a dump of RTM_GETADDR (rtnetlink(7)), since addresses come and go.
That is written out here, because the one library for it wants an event loop of its own, and one of
those who ask has one already.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Iterator
from ipaddress import IPv4Network
from pathlib import Path
from typing import NamedTuple

_RTM_NEWADDR, _RTM_GETADDR = 20, 22
_NLM_F_REQUEST, _NLM_F_DUMP = 0x001, 0x300
_NLMSG_ERROR, _NLMSG_DONE = 2, 3
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_HEADER = struct.Struct("=IHHII")
_IFADDRMSG = struct.Struct("=BBBBI")
_ATTRIBUTE = struct.Struct("=HH")
_SCOPE_GLOBAL, _SCOPE_HOST = 0, 254
_DUMP_BYTES = 1 << 16
LOOPBACK = "127.0.0.1"
LONGEST_WITH_BROADCAST = 30


class Address(NamedTuple):
    """One IPv4 address of this network namespace."""

    interface: str
    address: str
    scope: int
    prefix_bits: int = 32
    """How long its network's prefix is."""

    @property
    def is_of_host(self) -> bool:
        """Whether nobody else reaches this machine by it: one of its loopback."""
        return self.scope == _SCOPE_HOST

    @property
    def broadcast(self) -> str | None:
        """All hosts of its network; None where nobody has such an address (RFC 3021)."""
        if self.is_of_host or self.prefix_bits > LONGEST_WITH_BROADCAST:
            return None
        network = IPv4Network(f"{self.address}/{self.prefix_bits}", strict=False)
        return str(network.broadcast_address)


def all_addresses() -> list[Address]:
    """Every IPv4 address, each interface's in the kernel's order; raises OSError."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, 0) as kernel:
        names = dict(socket.if_nameindex())
        body = _IFADDRMSG.pack(socket.AF_INET, 0, 0, 0, 0)
        head = _HEADER.pack(
            _HEADER.size + len(body), _RTM_GETADDR, _NLM_F_REQUEST | _NLM_F_DUMP, 1, 0
        )
        kernel.sendto(head + body, (0, 0))
        found: list[Address] = []
        while True:
            for kind, message in _messages(kernel.recv(_DUMP_BYTES)):
                if kind == _NLMSG_DONE:
                    return found
                if kind == _NLMSG_ERROR:
                    raise OSError(-struct.unpack_from("=i", message)[0], "RTM_GETADDR")
                if kind == _RTM_NEWADDR:
                    found += _read(message, names)


def network_addresses() -> list[str]:
    """Those that others may reach this machine by: none of its loopback, where a node has the VIP.
    Raises OSError."""
    return [each.address for each in all_addresses() if not each.is_of_host]


def boot_id() -> str:
    """Of this start of the kernel: whose monotonic clock, and whose network, a file speaks of."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def own_address(interface: str) -> str | None:
    """The interface's own IPv4 address; None while there is no such interface or address."""
    try:
        there = [each for each in all_addresses() if each.interface == interface]
    except OSError:  # no descriptor left, say: asked again before long
        return None
    for scope in (_SCOPE_GLOBAL, _SCOPE_HOST):
        for each in there:
            if each.scope == scope:
                return each.address
    return None


def _messages(received: bytes) -> Iterator[tuple[int, bytes]]:
    at = 0
    while at + _HEADER.size <= len(received):
        length, kind, *_ = _HEADER.unpack_from(received, at)
        yield kind, received[at + _HEADER.size : at + length]
        at += (length + 3) & ~3


def _read(message: bytes, names: dict[int, str]) -> Iterator[Address]:
    """The address of one RTM_NEWADDR; none of an interface that has gone meanwhile."""
    _, prefix_bits, _, scope, index = _IFADDRMSG.unpack_from(message)
    values: dict[int, bytes] = {}
    at = _IFADDRMSG.size
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        values[kind] = message[at + _ATTRIBUTE.size : at + length]
        at += max(_ATTRIBUTE.size, (length + 3) & ~3)
    # On a point-to-point link IFA_ADDRESS is the other end's.
    raw = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if raw is not None and index in names:
        yield Address(names[index], socket.inet_ntoa(raw), scope, prefix_bits)
