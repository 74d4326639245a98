"""Writing pcapng, the file format of Wireshark, as far as a capture needs it. Pure.

A file is one section: its header, an interface for each place where packets were seen, and the
packets, each with when, where, how long it was, which of its bytes are there, and options: a
comment, its direction, and the verdict of the program that saw it. The format is that of
draft-ietf-opsawg-pcapng; blocks are in the byte order of the machine that writes, which the section
header tells.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

_SECTION, _INTERFACE, _PACKET = 0x0A0D_0D0A, 1, 6
_ORDER_MAGIC = 0x1A2B_3C4D
_ETHERNET = 1
_COMMENT, _APPLICATION, _NAME, _RESOLUTION = 1, 4, 2, 9
_FLAGS, _PACKET_ID, _VERDICT = 2, 5, 7
_NANOSECONDS = bytes([9])
_LONGEST_OPTION = 0xFFFF


class Direction(IntEnum):
    INBOUND = 1
    OUTBOUND = 2


class VerdictBy(IntEnum):
    """Whose verdict: the first byte of the option `epb_verdict`."""

    TC = 1
    XDP = 2


@dataclass(frozen=True, slots=True)
class Frame:
    """One packet of the file."""

    interface: int
    """Its place among those of the header."""
    time_ns: int
    """Since 1970."""
    data: bytes
    length: int
    """How long the whole packet was."""
    comment: str
    direction: Direction
    number: int
    """Packets of one number are one packet, seen more than once."""
    verdict: tuple[VerdictBy, int]


def header(application: str, comment: str, interfaces: Sequence[str], kept: int) -> bytes:
    """What a file begins with: section, and an Ethernet for each of these names.

    `kept`: the most bytes that will be there of a packet; a tag may add four.
    """
    section = struct.pack("=IHHq", _ORDER_MAGIC, 1, 0, -1)
    section += _options((_COMMENT, comment.encode()), (_APPLICATION, application.encode()))
    blocks = [_block(_SECTION, section)]
    for name in interfaces:
        body = struct.pack("=HHI", _ETHERNET, 0, kept + 4)
        body += _options((_NAME, name.encode()), (_RESOLUTION, _NANOSECONDS))
        blocks.append(_block(_INTERFACE, body))
    return b"".join(blocks)


def packet(frame: Frame) -> bytes:
    """The block of one packet."""
    high, low = frame.time_ns >> 32, frame.time_ns & 0xFFFF_FFFF
    body = struct.pack("=5I", frame.interface, high, low, len(frame.data), frame.length)
    by, verdict = frame.verdict
    body += _padded(frame.data) + _options(
        (_COMMENT, frame.comment.encode()),
        (_FLAGS, struct.pack("=I", frame.direction)),
        (_PACKET_ID, struct.pack("=Q", frame.number)),
        (_VERDICT, bytes([by]) + struct.pack("=q", verdict)),
    )
    return _block(_PACKET, body)


def _block(kind: int, body: bytes) -> bytes:
    size = 12 + len(body)
    return struct.pack("=II", kind, size) + body + struct.pack("=I", size)


def _options(*options: tuple[int, bytes]) -> bytes:
    """Each behind its number and length, and the end of them."""
    parts = []
    for number, value in options:
        kept = value[:_LONGEST_OPTION]
        parts.append(struct.pack("=HH", number, len(kept)) + _padded(kept))
    return b"".join(parts) + bytes(4)


def _padded(value: bytes) -> bytes:
    return value + bytes(-len(value) % 4)
