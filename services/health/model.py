"""The values of the registry: what it is told, what it keeps of each node, what it gives out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from bus.events import NodeEvent
from bus.node_protocol import (
    NodeMessage,
    OfferedService,
)
from bus.states import NodeService
from bus.topics import Topic
from bus.words import (
    Duration,
    IPv4,
    Mode,
    NodeState,
    Stored,
    Weight,
)
from services.health.clock_offset import ClockOffset
from services.health.standing import ROUTED, Standing

PROBATION_HASTE = 10
"""How many times as often a node on probation beats."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the LB's configuration asks of nodes, and offers them."""

    lb: str
    checks_before_routing: int
    checks_timeout_ms: int
    black_list_after_fails: int
    black_list_expiry_ms: int
    services: tuple[OfferedService, ...]
    min_healthy_percent: int = 0
    """Of a service's known nodes: silence alone leaves as many routed to; 0: it may take all."""
    min_healthy: tuple[tuple[str, int], ...] = ()
    """The same, of services that have a percentage of their own."""

    def needed(self, service: str, known: int) -> int:
        """How many of so many nodes of a service silence does not take."""
        percent = dict(self.min_healthy).get(service, self.min_healthy_percent)
        return -(-known * percent // 100)

    def interval_ms(self, state: NodeState) -> int:
        """How often a node in `state` is to beat."""
        beats = 2 * PROBATION_HASTE if state is NodeState.PROBATION else 2
        return max(1, self.checks_timeout_ms // beats)

    @property
    def late_ms(self) -> int:
        """The silence of a node that has missed a beat: an interval and a tenth."""
        return self.interval_ms(NodeState.UP) * 11 // 10


@dataclass(frozen=True, slots=True)
class KeptService:
    """What survives of a service of a node that stands apart."""

    service: str
    state: NodeState
    reason: str
    fails: Stored
    ban_remaining_ms: Duration


@dataclass(frozen=True, slots=True)
class KeptNode:
    """What survives a restart of this process, by way of the state file."""

    id: str
    name: str
    address: IPv4
    state: NodeState
    weight: Weight
    services: tuple[NodeService, ...]
    fails: Stored
    ban_remaining_ms: Duration
    silent: bool = False
    was_up: bool = True
    apart: tuple[KeptService, ...] = ()
    pardoned_epoch: Stored = 0
    backup: bool = False


class Send(NamedTuple):
    connection: bytes
    message: NodeMessage


class Happened(NamedTuple):
    topic: Topic
    event: NodeEvent


@dataclass(slots=True)
class Output:
    """What the shell has to do; in this order: keep, publish, send."""

    keep: bool = False
    view_changed: bool = False
    events: list[Happened] = field(default_factory=list)
    messages: list[Send] = field(default_factory=list)


@dataclass(slots=True, eq=False)
class Node:
    id: str
    name: str
    address: str
    weight: int
    named: tuple[NodeService, ...]
    """The services that the agent's file names; empty: all of this LB's."""
    services: tuple[NodeService, ...]
    """Those, with the modes that the node is prepared for."""
    state: NodeState
    reason: str
    last_seen_ms: int
    lag_mark_ms: int
    """The registry's total lag then; what has come since extends the node's deadline."""
    backup: bool = False
    """It is to serve only where too few others do, which the quorum sees to."""
    fails: int = 0
    fading_from_ms: int = 0
    """UP: since when it has served towards the next failure's being forgotten."""
    passed: int = 0
    good_total: int = 0
    bad_total: int = 0
    load: float = 0.0
    was_up: bool = False
    """Whether it has ever been UP, here or before a restart."""
    heard: bool = True
    """False from adoption until its own agent has spoken."""
    held: bool = False
    suspect_until_ms: int = 0
    """SUSPECT: when it is looked at again."""
    silent: bool = False
    """DOWN or BANNED, and not heard."""
    ban_until_ms: int = 0
    pardoned_epoch: int = 0
    """Pardons of this epoch of the node table, and of any before, have been carried out."""
    counted_ms: int | None = None
    """When the last check that counted was sent."""
    sessions: dict[bytes, int] = field(default_factory=dict)
    """By connection, the number of the last beat that came by it; the newest connection last."""
    keys: dict[bytes, str] = field(default_factory=dict)
    """By connection, the key that its other end has proved; empty where no keys are used."""
    clock: ClockOffset | None = None
    former_boot: str | None = None
    has_beaten: bool = False
    """Whether a beat has come since its agent started."""
    prepared: dict[str, tuple[Mode, ...]] | None = None
    """By service, where that is more than L4; None: its agent does not say."""
    sick: dict[str, str] | None = None
    """By service that it does not serve, why; None: its agent does not say."""
    apart: dict[str, Standing] = field(default_factory=dict)
    """By service that does not stand as the node does, or that has failures of its own."""
    scheduled_ms: int | None = None
    """The time of this node's live entry in the heap."""

    @property
    def is_watched(self) -> bool:
        """Whether one of its services is on probation while the node is routed to."""
        return self.state in ROUTED and any(
            standing.state is NodeState.PROBATION for standing in self.apart.values()
        )
