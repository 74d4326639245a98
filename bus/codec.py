"""Messages to bytes and back: strictly, with every range checked. Pure.

`from_json` reads straight into a frozen, slotted dataclass and raises `MalformedMessage`, which is
always the *sender's* fault: count it, ignore it, and cut the sender off if it goes on. Unknown
fields are ignored, so a newer peer may add some; an unknown version of the protocol is refused
(`UnknownVersion`), so it may not change what old ones mean.

A message of the bus has three frames: topic, head, body.

* The **head** is small and says who made the message, when, and which one it is. A reader looks at
  it, and decodes the body only of what it does not have yet.
* The **body** is the payload, whose type the topic says (`topics.PAYLOADS`).

A state that is only repeated has no body: its head says which version is the newest, and by coming
at all, that its publisher lives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
import orjson

from bus.topics import PAYLOADS, Topic
from bus.words import Signed, Whole

BUS_VERSION = 2

T = TypeVar("T")


class MalformedMessage(ValueError):  # noqa: N818 - it names what came, not a mistake of ours
    """A message that is not what its type says: the sender's fault, named in one line."""

    reason = "malformed"
    """Under which it is counted."""


class UnknownVersion(MalformedMessage):
    """A message of a version of its protocol that is not spoken here."""

    reason = "version"


@dataclass(frozen=True, slots=True)
class Head:
    """Who made a message, and which one it is."""

    topic: Topic
    source: str
    host: str
    boot: str
    """The publisher's start, as random hex: numbers are comparable only within one boot."""
    seq: int
    """Events: without holes within a boot. States: the publisher's running number of that topic."""
    version: int
    """States: rises when the content changes and never otherwise. Events: 0."""
    time_ms: int
    """Wall clock when the content was made, in milliseconds since 1970; for people, never for
    decisions."""
    made_ms: int
    """The same moment by this machine's monotonic clock, which all its processes share: what passes
    by itself has passed by that much since."""


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of the bus with its sender; what a subscriber is handed."""

    head: Head
    data: Any

    @property
    def topic(self) -> Topic:
        return self.head.topic

    @property
    def source(self) -> str:
        return self.head.source

    @property
    def boot(self) -> str:
        return self.head.boot

    @property
    def seq(self) -> int:
        return self.head.seq


@dataclass(frozen=True, slots=True)
class _HeadFrame:
    v: Whole
    source: str
    host: str
    boot: str
    seq: Whole
    version: Whole
    time_ms: Signed
    made_ms: Signed


def to_json(value: Any) -> bytes:
    """One message dataclass, or a mapping of plain values, as a JSON object."""
    return orjson.dumps(value)


def from_json(kind: type[T], raw: bytes) -> T:
    """Read one `kind`; raises `MalformedMessage` naming the first field that is wrong."""
    try:
        read: T = _decoder(kind).decode(raw)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise MalformedMessage(_problem(kind, error)) from None
    return read


_decoders: dict[Any, msgspec.json.Decoder[Any]] = {}


def _decoder(kind: Any) -> msgspec.json.Decoder[Any]:
    decoder = _decoders.get(kind)
    if decoder is None:
        decoder = _decoders[kind] = msgspec.json.Decoder(kind)
    return decoder


def _problem(kind: type[Any], error: Exception) -> str:
    """`LocalView.nodes[...].address: Expected ...`, of msgspec's `Expected ... - at `$.nodes`."""
    what, _, where = str(error).partition(" - at `$")
    return f"{getattr(kind, '__name__', kind)}{where.rstrip('`')}: {what}"


def encode_head(head: Head) -> list[bytes]:
    """The two frames of a message without its body."""
    frame = {
        "v": BUS_VERSION,
        "source": head.source,
        "host": head.host,
        "boot": head.boot,
        "seq": head.seq,
        "version": head.version,
        "time_ms": head.time_ms,
        "made_ms": head.made_ms,
    }
    return [head.topic.encode(), orjson.dumps(frame)]


def encode(envelope: Envelope) -> list[bytes]:
    """The three frames of a message."""
    return [*encode_head(envelope.head), orjson.dumps(envelope.data)]


def decode_head(frames: list[bytes]) -> Head:
    """Read the first two frames; raises `MalformedMessage`."""
    if not 2 <= len(frames) <= 3:
        raise MalformedMessage(f"{len(frames)} frames, expected topic, head and body")
    topic = _TOPICS.get(frames[0])
    if topic is None:
        raise MalformedMessage("no topic of the bus")
    if len(frames) == 2 and not topic.is_state:
        raise MalformedMessage("an event without a body")
    head = from_json(_HeadFrame, frames[1])
    if head.v != BUS_VERSION:
        raise UnknownVersion(f"version {head.v} of the bus, expected {BUS_VERSION}")
    return Head(
        topic,
        head.source,
        head.host,
        head.boot,
        head.seq,
        head.version,
        head.time_ms,
        head.made_ms,
    )


def decode_body(head: Head, body: bytes) -> Envelope:
    """Read the third frame; raises `MalformedMessage`."""
    return Envelope(head, from_json(PAYLOADS[head.topic], body))


_TOPICS = {topic.encode(): topic for topic in Topic}
