"""What happens, told once each: the event topics' messages. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from bus.orders import OrderKind
from bus.words import Duration, Entry, NodeState, Protocol, Weight, Whole


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """`node.*`: what happened to one node, as this LB sees it."""

    id: str
    name: str
    address: str
    state: NodeState
    previous: NodeState | None
    reason: str
    fails: Whole
    banned_for_ms: Duration
    service: str = ""
    """The one service of the node that this is about; empty: the node as a whole."""


@dataclass(frozen=True, slots=True)
class OrderEvent:
    """`order.given.`: all LBs have agreed on what an operator wants of a node."""

    id: str
    """The node's."""
    name: str
    """The node's; empty if none of that id is known at the moment."""
    order: OrderKind
    by: str
    why: str
    weight: Weight | None
    within_ms: Duration | None


@dataclass(frozen=True, slots=True)
class VipEvent:
    """`vip.acquired.`, `vip.lost.`, `vip.contested.`"""

    address: str
    holder: str | None
    term: Whole
    reason: str


@dataclass(frozen=True, slots=True)
class QuorumEvent:
    """`quorum.leader.`, `quorum.lost.`, `quorum.regained.`, `quorum.peer_refused.`"""

    term: Whole
    leader: str | None
    peer: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class MemberEvent:
    """`quorum.member_added.` and `quorum.member_removed.`: who agrees with whom has changed."""

    name: str
    """The LB's; empty if it has not been heard yet."""
    address: str
    """Its entry, `host:port`."""
    members: Whole
    """How many there are now."""


@dataclass(frozen=True, slots=True)
class TableEvent:
    """`table.committed.`"""

    term: Whole
    epoch: Whole
    nodes_up: Whole
    changes: tuple[str, ...]
    """One line per change: `node-1 up -> down`."""


@dataclass(frozen=True, slots=True)
class ConfigEvent:
    """`config.staged.` and `config.committed.`: services and VIPs of the files."""

    digest: str
    """Names what is staged, or agreed on."""
    staged: Whole
    """How many members have staged it, this LB included."""
    members: Whole
    """How many there are, without those that only vote."""


@dataclass(frozen=True, slots=True)
class DataplaneEvent:
    """`dataplane.attached.` and `dataplane.degraded.`"""

    program: str
    interface: str
    flavour: str
    reason: str


@dataclass(frozen=True, slots=True)
class NatFlow:
    """One flow, as both sides see it. Each end is `address:port`."""

    protocol: Protocol
    client: Entry
    vip: Entry
    """What the client asked for."""
    snat: Entry
    """As whom the node sees the client; the client itself where its address is kept."""
    node: Entry
    """Who was asked, behind the VIP."""
    service: str
    """Empty, like the next: it is not known any more."""
    node_id: str
    began_ms: Whole
    """Unix time of the flow's first packet, to within 0.1 s."""


@dataclass(frozen=True, slots=True)
class FlowsEvent:
    """`flow.opened.` and `flow.closed.`, where `[log] nat` is on: what became of flows of late."""

    flows: tuple[NatFlow, ...]
    left_out: Whole
    """How many more there were since the event before, which nobody had room for."""


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """`process.started.`"""

    process: str
    pid: Whole
    version: str
    adopted: str
    """What it found and took over, in words; empty when it started from nothing."""
