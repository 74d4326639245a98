"""Addresses, ports and MACs: text for people, words in network order for the maps. Pure.

The maps hold what packets hold, so that the programs compare without turning bytes round. An
address read as a number of this host's byte order is therefore no number to calculate with.
"""

from __future__ import annotations

import ipaddress
import sys
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from bus.words import Protocol

MAC_BYTES = 6


@lru_cache(1 << 16)
def address_word(address: str | None) -> int:
    """An IPv4 address as the maps hold it; 0 for none."""
    packed = ipaddress.IPv4Address(address).packed if address else bytes(4)
    return int.from_bytes(packed, sys.byteorder)


def is_ipv6(address: str | None) -> bool:
    """Whether it is one of the other family, which a route's gateway may be (RFC 5549)."""
    return address is not None and ":" in address


def address_text(word: Any) -> str:
    """The address that a word of a map stands for."""
    return ".".join(map(str, int(word).to_bytes(4, sys.byteorder)))


def floating_text(octets: bytes) -> str:
    """The address that a `struct floating_key` stands for, of either family."""
    wide = ipaddress.IPv6Address(octets)
    return str(wide.ipv4_mapped or wide)


def port_word(port: int) -> int:
    """A port as the maps hold it."""
    return int.from_bytes(port.to_bytes(2, "big"), sys.byteorder)


def port_number(word: Any) -> int:
    """The port that a word of a map stands for."""
    return int.from_bytes(int(word).to_bytes(2, sys.byteorder), "big")


def endpoint_text(address: Any, port: Any) -> str:
    """`10.0.0.1:80` of an address and a port as they stand in the maps."""
    return f"{address_text(address)}:{port_number(port)}"


@lru_cache(1 << 12)
def mac_bytes(mac: str | None) -> bytes:
    """`02:00:...` as six bytes; zeros for none."""
    return bytes.fromhex(mac.replace(":", "")) if mac else bytes(MAC_BYTES)


def mac_text(octets: Any) -> str:
    """Six bytes as `02:00:...`."""
    return bytes(octets).hex(":")


@dataclass(frozen=True, slots=True, order=True)
class ServiceKey:
    """What packets are sent to: `struct service_key`, the key of a service and of an endpoint."""

    address: str
    port: int
    protocol: Protocol
