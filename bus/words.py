"""The vocabulary: the words and the ranges that all messages, and the files, are made of. Pure.

A range is part of a field's type, and whoever decodes a message checks it (`codec`): what passes
can be written into the kernel's maps, added to, and encoded again. Units stand last in a name.
Every `*_ms` is a duration in milliseconds unless its comment says that it is a point of a clock.
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated

from msgspec import Meta

LONGEST_REASON = 200
"""Characters of a reason that an agent gives."""
MOST_NAMED_SERVICES = 1_000
"""Services that one node may name."""


def is_ipv4(text: str) -> bool:
    return re.fullmatch(IPV4, text) is not None


def one_line(text: str, longest: int = LONGEST_REASON) -> str:
    """The text as one printable line of at most `longest` characters.

    Compilers, the kernel's verifier and foreign servers write reasons as they like, and reasons end
    up in messages, logs and on terminals.
    """
    if len(text) <= longest and text.isprintable():
        return text
    # Beyond a few times the length nothing is looked at: a stranger may send any amount of blanks.
    shown = "".join(c if c.isprintable() else " " for c in text[: 8 * longest])
    return " ".join(shown.split())[:longest]


# --------------------------------------------------------------------------- ranges

LARGEST_WHOLE = 2**62
"""Half of what JSON's writer here takes: what is counted on from it never comes to the end."""
LARGEST_WORD = 2**64 - 1
LARGEST_WEIGHT = 1_000
LONGEST_MS = 10 * 366 * 86_400_000
CLOCK_DRIFT_PERCENT = 2
"""How far the clock of an LB may be off: what a lease must leave of a promise."""
LARGEST_PROMISE_MS = 2_000
"""After a boot no LB votes for so long, since it may have promised that before."""

MOST_MEMBERS = 7
"""Who votes, LBs and witnesses: two may be lost of five, three of seven."""

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"

Whole = Annotated[int, Meta(ge=0, le=LARGEST_WHOLE)]
"""A number of something, a version, or an age."""
Stored = Annotated[int, Meta(ge=0, le=LARGEST_WHOLE // 2)]
"""A `Whole` that its reader goes on counting from."""
Signed = Annotated[int, Meta(ge=-LARGEST_WHOLE, le=LARGEST_WHOLE)]
Word = Annotated[int, Meta(ge=0)]
"""64 bits, as a counter of the kernel's. A bound above 63 bits is beyond the decoder: whoever has
such a field calls `check_words` when it is made."""
Duration = Annotated[int, Meta(ge=0, le=LONGEST_MS)]
"""Milliseconds that somebody will wait for."""
Weight = Annotated[int, Meta(ge=0, le=LARGEST_WEIGHT)]
Percent = Annotated[int, Meta(ge=0, le=100)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
LowPort = Annotated[int, Meta(ge=0, le=1_023)]
"""A port below 1024, or how many of them; 0: none."""
PortCount = Annotated[int, Meta(ge=0, le=65_536)]
_PORT = "(?:6553[0-4]|655[0-2][0-9]|65[0-4][0-9]{2}|6[0-4][0-9]{3}|[1-5][0-9]{4}|[1-9][0-9]{0,3})"
"""The one after it is a port too."""
ENTRY = rf"[^\s:]{{1,253}}:{_PORT}"
Entry = Annotated[str, Meta(pattern=rf"\A{ENTRY}\Z")]
"""A machine of a list, `host:port`."""
IPv4 = Annotated[str, Meta(pattern=rf"\A{IPV4}\Z")]


def check_words(*words: int) -> None:
    """Raises ValueError if one of them has no room in 64 bits."""
    if words and max(words) > LARGEST_WORD:
        raise ValueError(f"{max(words)} is more than 64 bits")


# --------------------------------------------------------------------------- vocabulary


class Mode(StrEnum):
    """How a service's packets reach its nodes."""

    L2 = "l2"
    L3 = "l3"
    L4 = "l4"


class MemberChange(StrEnum):
    """What an operator may want of the list of LBs that agree with one another."""

    ADD = "add"
    REMOVE = "remove"


class Protocol(StrEnum):
    TCP = "tcp"
    UDP = "udp"


class Affinity(StrEnum):
    """What of a packet picks the slot: the whole flow, or the client's address alone."""

    FLOW = "flow"
    CLIENT = "client"


class Encapsulation(StrEnum):
    """The outer headers of an L3 service."""

    IPIP = "ipip"
    GUE = "gue"


class OnNodeDown(StrEnum):
    """What becomes of the TCP flows of a node that is down; UDP flows choose a node anew."""

    RESET = "reset"
    """Their clients are told by a RST, and connect anew."""
    KEEP = "keep"
    """They stay with the node."""


class NoFlow(StrEnum):
    """How a TCP packet is answered that belongs to no flow and begins none."""

    RESET = "reset"
    DROP = "drop"


class NodeState(StrEnum):
    """Where a node stands in the registry (services/health/standing.py has the transitions)."""

    PROBATION = "probation"
    UP = "up"
    SUSPECT = "suspect"
    """Silent, and routed to all the same: too few others are left."""
    DRAINING = "draining"
    DOWN = "down"
    BANNED = "banned"


class ServingStatus(StrEnum):
    """What an agent says of its own server, in the words of gRPC's health protocol."""

    SERVING = "serving"
    NOT_SERVING = "not_serving"
    SHUTTING_DOWN = "shutting_down"


class Role(StrEnum):
    """The quorum agent's part in the election."""

    FOLLOWER = "follower"
    PRE_CANDIDATE = "pre_candidate"
    CANDIDATE = "candidate"
    LEADER = "leader"
