"""What capture asks of the programs, and the records that they give. Pure.

The layouts are those of bpf/kernel/capture.h.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum, IntFlag

MOST_KEPT = 8192
"""Bytes of a packet that can be shown."""
MOST_TERMS = 8
_HEAD = struct.Struct("=Q6Ii4s4sBB10x")


class Part(IntEnum):
    """What of a packet a term looks at: `enum capture_part`."""

    ETHERTYPE = 1
    PROTOCOL = 2
    ADDRESS = 3
    PORT = 4


class Side(IntFlag):
    """`enum capture_side`."""

    SOURCE = 1
    DESTINATION = 2


@dataclass(frozen=True, slots=True)
class Term:
    """One thing that a packet must have, as it came or as it leaves."""

    part: Part
    number: int = 0
    """The Ethernet type, the protocol or the port."""
    address: bytes = bytes(4)
    mask: bytes = bytes(4)
    sides: Side = Side.SOURCE | Side.DESTINATION


@dataclass(frozen=True, slots=True)
class Setup:
    """What is shown, and until when."""

    until_ns: int
    """Of the monotonic clock."""
    reasons: int
    """A bit for each number of `enum reason`."""
    hooks: int
    """A bit for each number of `enum hook`."""
    kept: int
    """Bytes of each packet, from its first on."""
    terms: tuple[Term, ...] = ()
    """All of them must fit."""


@dataclass(frozen=True, slots=True)
class Passage:
    """A packet on its way through one program."""

    time_ns: int
    """When it came, by the monotonic clock."""
    hook: int
    reason: int
    verdict: int
    """What the kernel was told: an XDP_* or a TC_ACT_*."""
    ifindex: int
    entry: bytes
    """Its first bytes as it came, its VLAN tag in its place."""
    entry_bytes: int
    """How long it was."""
    exit: bytes
    """Likewise as it left; empty: it was dropped."""
    exit_bytes: int


def read_passage(record: bytes) -> Passage:
    """A `struct passage`; of its bytes as many as are filled."""
    fields = _HEAD.unpack_from(record)
    time_ns, entry_bytes, exit_bytes, entry_kept, exit_kept, ifindex, _ = fields[:7]
    verdict, entry_tag, exit_tag, hook, reason = fields[7:]
    middle = _HEAD.size + entry_kept
    entry, entry_bytes = _tagged(record[_HEAD.size : middle], entry_bytes, entry_tag)
    leaving, exit_bytes = _tagged(record[middle : middle + exit_kept], exit_bytes, exit_tag)
    exit_bytes = exit_bytes if leaving else 0
    return Passage(time_ns, hook, reason, verdict, ifindex, entry, entry_bytes, leaving, exit_bytes)


def _tagged(frame: bytes, length: int, tag: bytes) -> tuple[bytes, int]:
    """The frame as it is on the wire: the kernel keeps a tag beside the bytes."""
    if not frame or tag[:2] == b"\0\0":
        return frame, length
    return frame[:12] + tag + frame[12:], length + 4
