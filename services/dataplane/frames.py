"""The frames that announce a floating address: "it is at this MAC address". Pure.

IPv4: a gratuitous ARP request (RFC 5227, 3: sender and target are the address itself), to all.
IPv6: an unsolicited neighbour advertisement (RFC 4861, 7.2.6) to all nodes, which overrides what
they know.
"""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address
from struct import pack

_BROADCAST = b"\xff" * 6
_ALL_NODES_MAC = b"\x33\x33\x00\x00\x00\x01"
_ALL_NODES = IPv6Address("ff02::1").packed
_ETHERNET_BYTES = 60
"""The shortest frame without its checksum."""
_ICMPV6, _ADVERTISEMENT, _OVERRIDE, _TARGET_MAC = 58, 136, 0x2000_0000, 2


def announcement(address: str, mac: bytes) -> bytes:
    """The whole frame, for an interface of that MAC address."""
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address):
        return _advertisement(parsed.packed, mac)
    return _gratuitous_arp(parsed.packed, mac)


def _gratuitous_arp(address: bytes, mac: bytes) -> bytes:
    head = _BROADCAST + mac + b"\x08\x06"
    body = pack("!HHBBH", 1, 0x0800, 6, 4, 1) + mac + address + bytes(6) + address
    return (head + body).ljust(_ETHERNET_BYTES, b"\0")


def _advertisement(address: bytes, mac: bytes) -> bytes:
    option = pack("!BB", _TARGET_MAC, 1) + mac
    message = pack("!BBHI", _ADVERTISEMENT, 0, 0, _OVERRIDE) + address + option
    pseudo = address + _ALL_NODES + pack("!II", len(message), _ICMPV6)
    message = message[:2] + pack("!H", _checksum(pseudo + message)) + message[4:]
    ip = pack("!IHBB", 6 << 28, len(message), _ICMPV6, 255) + address + _ALL_NODES
    return _ALL_NODES_MAC + mac + b"\x86\xdd" + ip + message


def _checksum(data: bytes) -> int:
    """RFC 1071, of an even number of bytes."""
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return ~total & 0xFFFF
