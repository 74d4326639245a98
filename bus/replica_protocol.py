"""What the dataplane processes of the LBs say to one another about flows: its own version.

Each LB binds a ROUTER and connects a DEALER to every other one. Who connects is the *follower*: it
asks for the flows of the one it connects to, the *teller*. So between two LBs there are two
conversations, one each way, and each LB is in both parts.

    who        message    what for
    ─────────────────────────────────────────────────────────────────────────────────────────────
    follower   Hello      who I am, and how far I have come with the teller of that boot
    teller     Welcome    who I am; from here on you get what happens (`next_seq`), and the rest of
                          the table from `position` on
    teller     Live       what has happened, in order, from number `first` on
    teller     Part       a part of the table; the next one begins at `following`
    teller     Mended     flows of ranges that differ
    teller     Refused    you are not of this cluster, or speak another version; then nothing more
    follower   Credit     you may send so many messages with records in all, since Hello; I have
                          entered everything up to `next_seq`
    follower   Resume     what you sent has a hole: again from `next_seq` on
    follower   Digests    numbers of my ranges: send what differs

Nothing here is answered twice, nothing waits: a follower that hears nothing for a while says Hello
again, and a Hello begins the conversation anew, from where the follower says it has come.

Frames: kind, body (JSON), and for messages with records the records themselves, as bytes
(services/dataplane/flows/records.py). A Digests has its numbers there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from msgspec import Meta

from bus.codec import MalformedMessage, UnknownVersion, from_json, to_json
from bus.words import Stored, Whole

REPLICA_VERSION = 1

NO_POSITION = -1
"""There is no more of the table to come."""
Position = Annotated[int, Meta(ge=NO_POSITION, lt=1 << 31)]
Tick = Annotated[int, Meta(ge=0, lt=1 << 32)]
Boot = Annotated[str, Meta(pattern="^[0-9a-f]{0,16}$")]
"""64 bits: a follower keeps it in a map of the kernel's."""


@dataclass(frozen=True, slots=True)
class Hello:
    v: Whole
    cluster: str
    lb: str
    known_boot: Boot
    """The teller's start that the rest is about; empty: none."""
    next_seq: Stored
    position: Position
    record_bytes: Whole


@dataclass(frozen=True, slots=True)
class Welcome:
    v: Whole
    cluster: str
    lb: str
    boot: Boot
    """Names this start of the teller's process: numbers are comparable only within one."""
    next_seq: Stored
    position: Position
    synced: bool
    """Whether the teller itself has the flows that there are."""


@dataclass(frozen=True, slots=True)
class Live:
    first: Stored
    tick: Tick
    """The teller's clock when the records were made: what passes in them passes from then on."""
    synced: bool


@dataclass(frozen=True, slots=True)
class Part:
    position: Position
    following: Position
    tick: Tick


@dataclass(frozen=True, slots=True)
class Mended:
    tick: Tick


@dataclass(frozen=True, slots=True)
class Refused:
    reason: str


@dataclass(frozen=True, slots=True)
class Credit:
    allowed: Whole
    next_seq: Whole
    synced: bool


@dataclass(frozen=True, slots=True)
class Resume:
    next_seq: Whole


@dataclass(frozen=True, slots=True)
class Digests:
    before_tick: Tick
    """By the teller's clock: flows that began later are not in the numbers."""


REPLICA_PROTOCOL: dict[str, type[Any]] = {
    kind.__name__.lower(): kind
    for kind in (Hello, Welcome, Live, Part, Mended, Refused, Credit, Resume, Digests)
}
ReplicaMessage = Hello | Welcome | Live | Part | Mended | Refused | Credit | Resume | Digests
WITH_BYTES = (Live, Part, Mended, Digests)


def encode_replica(message: ReplicaMessage, payload: bytes = b"") -> list[bytes]:
    """The frames of a message."""
    frames = [type(message).__name__.lower().encode(), to_json(message)]
    return [*frames, payload] if isinstance(message, WITH_BYTES) else frames


def decode_replica(frames: list[bytes]) -> tuple[ReplicaMessage, bytes]:
    """A message and its bytes; raises `MalformedMessage`."""
    kind = REPLICA_PROTOCOL.get(frames[0].decode(errors="replace")) if frames else None
    if kind is None:
        raise MalformedMessage("unknown kind of message about flows")
    if len(frames) != (3 if kind in WITH_BYTES else 2):
        raise MalformedMessage(f"{len(frames)} frames of a {kind.__name__}")
    message: ReplicaMessage = from_json(kind, frames[1])
    if isinstance(message, Hello | Welcome) and message.v != REPLICA_VERSION:
        raise UnknownVersion(f"version {message.v} of replication, expected {REPLICA_VERSION}")
    return message, frames[2] if len(frames) == 3 else b""
