"""What a node's agent and an LB say to each other. Pure.

    agent ── Hello ──────────────────────► LB
          ◄── Welcome (or Refused) ──────
          ── Heartbeat, every interval ──►

Two frames: the kind (`hello`), and the message as a JSON object. The version of this protocol
stands in the Hello, and whoever cannot speak it is refused then; so no other message carries it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from bus.codec import MalformedMessage, from_json, to_json
from bus.states import NodeService
from bus.words import (
    Duration,
    Encapsulation,
    IPv4,
    Mode,
    NodeState,
    Port,
    Protocol,
    ServingStatus,
    Signed,
    Whole,
)

NODE_VERSION = 1


@dataclass(frozen=True, slots=True)
class Hello:
    """Agent → LB, first on every connection. `boot` is new at each start of the agent."""

    v: Signed
    name: str
    boot: str
    weight: Signed
    services: tuple[NodeService, ...]
    """What the agent's file names; empty: every service of the LB, on the port the LB says."""
    backup: bool = False
    """It is to serve only where too few others do."""


@dataclass(frozen=True, slots=True)
class OfferedService:
    """A service as the LB describes it to an agent, with what the node must do to serve it."""

    name: str
    vip: IPv4 | None
    port: Port
    protocol: Protocol
    mode: Mode
    node_port: Port
    encap: Encapsulation


@dataclass(frozen=True, slots=True)
class Welcome:
    """LB → agent: admitted. Beat every `interval_ms`; silence of `checks_timeout_ms` is a failure.

    Sent again whenever what it says changes: probation beats are ten times as frequent.
    """

    lb: str
    node_id: str
    checks_timeout_ms: Whole
    interval_ms: Whole
    state: NodeState
    services: tuple[OfferedService, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """In which modes beside L4, which asks nothing of it, a node could take these services now."""

    modes: tuple[Mode, ...]
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Sick:
    """Services that the node does not serve now, and why: one printable line."""

    reason: str
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Agent → LB. `sent_ms` is a point of the agent's own monotonic clock.

    `status` is the worst of the node's services; which ones are not served, `sick` says. If it
    names none, NOT_SERVING is the word for all of them. SHUTTING_DOWN is always said of the node.
    """

    seq: Whole
    sent_ms: Signed
    status: ServingStatus
    load: float
    reason: str
    """One printable line; `one_line` makes one of anything."""
    prepared: tuple[Prepared, ...] | None = None
    """Services that are not named here the node could take in mode L4 alone. None: all is as it was
    said on this connection before; from an agent that never says it, prepared for everything."""
    sick: tuple[Sick, ...] | None = None
    """None: as was said on this connection before; from an agent that never says it, none."""


@dataclass(frozen=True, slots=True)
class Refused:
    """LB → agent: not admitted, or banned; try again no sooner than `retry_ms`."""

    reason: str
    retry_ms: Duration


NODE_PROTOCOL: dict[str, type[Any]] = {
    "hello": Hello,
    "welcome": Welcome,
    "heartbeat": Heartbeat,
    "refused": Refused,
}
NodeMessage = Hello | Welcome | Heartbeat | Refused


def encode_node(message: NodeMessage) -> list[bytes]:
    """The two frames of the node protocol: kind, body."""
    return [type(message).__name__.lower().encode(), to_json(message)]


def decode_node(frames: list[bytes]) -> NodeMessage:
    """Read a message of the node protocol; raises `MalformedMessage`."""
    if len(frames) != 2:
        raise MalformedMessage(f"{len(frames)} frames, expected kind and body")
    kind = NODE_PROTOCOL.get(frames[0].decode(errors="replace"))
    if kind is None:
        raise MalformedMessage("unknown kind of node message")
    message: NodeMessage = from_json(kind, frames[1])
    return message
