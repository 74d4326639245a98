"""Every type that crosses a process boundary, and how it becomes JSON and back.

Three families travel (design: one word for one thing, one file for what is shared):

* **State** (`Topic.STATE_*`): whole and repeated. A receiver that missed ten of them is right after
  the eleventh; `(boot, version)` makes a repetition harmless.
* **Events** (`Topic.NODE_*`, ...): a log, numbered per publisher boot.
* **Node protocol** (`Hello`, `Welcome`, ...): between a node's agent and each LB.

All are frozen, slotted dataclasses. `encode` writes one orjson object; `decode` checks every field
against its annotation and raises `MalformedMessage`, which is always the *sender's* fault: count
it, ignore it, and cut the sender off if it goes on. Unknown fields are ignored, so a newer peer may
add some; an unknown format version is refused, so it may not change the meaning of old ones.

Units stand last in a name. Every `*_ms` is a duration in milliseconds unless its comment says that
it is a point of the sender's monotonic clock, which nobody but the sender may compare with his own.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any, TypeVar

import orjson
from pydantic import TypeAdapter, ValidationError

FORMAT_VERSION = 1


class MalformedMessage(ValueError):  # noqa: N818 - it names what came, not a mistake of ours
    """A message that is not what its type says: the sender's fault, named in one line."""


# --------------------------------------------------------------------------- vocabulary


class Mode(StrEnum):
    """How a service's packets reach its nodes."""

    L2 = "l2"
    L3 = "l3"
    L4 = "l4"


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
    """Where a node stands in the registry; design, section 4, has the transitions."""

    PROBATION = "probation"
    UP = "up"
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


class Topic(StrEnum):
    """Every topic of the bus. Each ends in a dot, so that a prefix matches whole words only."""

    STATE_VIEW = "state.view."
    STATE_TABLE = "state.table."
    STATE_QUORUM = "state.quorum."
    STATE_DATAPLANE = "state.dataplane."
    STATE_COUNTERS = "state.counters."
    STATE_NODES = "state.nodes."

    NODE_JOINED = "node.joined."
    NODE_UP = "node.up."
    NODE_DOWN = "node.down."
    NODE_DRAINING = "node.draining."
    NODE_BANNED = "node.banned."
    NODE_PARDONED = "node.pardoned."
    VIP_ACQUIRED = "vip.acquired."
    VIP_LOST = "vip.lost."
    QUORUM_LEADER = "quorum.leader."
    QUORUM_LOST = "quorum.lost."
    QUORUM_REGAINED = "quorum.regained."
    QUORUM_PEER_REFUSED = "quorum.peer_refused."
    TABLE_COMMITTED = "table.committed."
    DATAPLANE_ATTACHED = "dataplane.attached."
    DATAPLANE_DEGRADED = "dataplane.degraded."
    PROCESS_STARTED = "process.started."

    @property
    def is_state(self) -> bool:
        return self.value.startswith("state.")


# --------------------------------------------------------------------------- health: state.view.


@dataclass(frozen=True, slots=True)
class NodeService:
    """One service a node serves: by the service's name, on the node's own port."""

    name: str
    port: int
    modes: tuple[Mode, ...] = ()
    """The modes that the node is prepared for; none: its agent does not say, so all of them."""


@dataclass(frozen=True, slots=True)
class NodeObservation:
    """What this LB sees of one node."""

    id: str
    name: str
    address: str
    state: NodeState
    reason: str
    """Why it is in that state, in words an operator can act on."""
    weight: int
    services: tuple[NodeService, ...]
    fails: int
    banned_for_ms: int
    """What is left of the ban; 0 when there is none."""
    observed_ms: int
    """How old the newest sign of life is."""
    checks_passed: int
    checks_required: int
    checks_good_total: int
    checks_bad_total: int
    load: float
    silent: bool = False
    """DOWN or BANNED, and nothing is heard of it; False: it says that it does not serve."""


@dataclass(frozen=True, slots=True)
class LocalView:
    """`state.view.`: all that this LB sees of its nodes. Published by health."""

    version: int
    nodes: tuple[NodeObservation, ...]
    rejected: dict[str, int]
    """Messages of agents that were refused, by reason."""
    waiting_for: str = ""
    """What of this machine is missing (the private interface, ...); empty when nothing is."""


# --------------------------------------------------------------------------- quorum: state.table.


@dataclass(frozen=True, slots=True)
class TableService:
    """A service as agreed. `address` None: each LB's own public address (no floating VIPs)."""

    name: str
    address: str | None
    port: int
    protocol: Protocol
    mode: Mode
    node_port: int
    affinity: Affinity = Affinity.FLOW
    encap: Encapsulation = Encapsulation.IPIP
    snat: bool = True
    snat_addresses: tuple[str, ...] = ()
    """Whose ports its flows take; none: its VIP's `VipOwner.snat_addresses`, or if that has none,
    the LB's own private address."""
    on_node_down: OnNodeDown | None = None
    """None: RESET for a node that is silent, KEEP for one that is not."""
    no_flow: NoFlow = NoFlow.RESET


@dataclass(frozen=True, slots=True)
class TableNode:
    """A node as agreed. Only UP and DRAINING nodes keep their place in the rings' tables."""

    id: str
    name: str
    address: str
    state: NodeState
    weight: int
    services: tuple[NodeService, ...]
    silent: bool = False
    """DOWN or BANNED, and most of the LBs that say so hear nothing of it."""


@dataclass(frozen=True, slots=True)
class Ban:
    """A node nobody routes to. `remaining_ms` counts from when the message was made."""

    node: str
    remaining_ms: int
    fails: int


@dataclass(frozen=True, slots=True)
class VipOwner:
    """A floating VIP and its SNAT addresses are one unit: they move together."""

    address: str
    snat_address: str | None
    """The first of `snat_addresses`, for readers that know of one only; None: there is none."""
    owner: str | None
    snat_addresses: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Either field makes up for the other: a file or a peer from before knows only one."""
        if self.snat_addresses:
            object.__setattr__(self, "snat_address", self.snat_addresses[0])
        elif self.snat_address is not None:
            object.__setattr__(self, "snat_addresses", (self.snat_address,))


@dataclass(frozen=True, slots=True)
class SnatSlice:
    """The source ports that one LB, and no other, takes on an SNAT address.

    `address` None: the LB's own private address, which it shares with nobody. The low ports are for
    flows from a client's port below 1024, which keep to such a port (RFC 4787, REQ-3a); 0: none.
    """

    owner: str
    address: str | None
    first_port: int
    ports: int
    low_first_port: int = 0
    low_ports: int = 0


@dataclass(frozen=True, slots=True)
class NodeTable:
    """The one replicated register: what all LBs agree on. `(term, epoch)` orders its versions."""

    term: int
    epoch: int
    hash_seed: int
    """64 bits that seed every ring: the same on all LBs, unpredictable to clients."""
    services: tuple[TableService, ...]
    nodes: tuple[TableNode, ...]
    bans: tuple[Ban, ...]
    vip_owners: tuple[VipOwner, ...]
    snat_slices: tuple[SnatSlice, ...]


@dataclass(frozen=True, slots=True)
class CommittedTable:
    """`state.table.`: the newest table a majority has accepted. Published by quorum."""

    version: int
    table: NodeTable


# --------------------------------------------------------------------------- quorum: state.quorum.


@dataclass(frozen=True, slots=True)
class QuorumMember:
    """One LB as this one sees it; `name` is empty until it has spoken once."""

    name: str
    address: str
    alive: bool
    term: int
    epoch: int
    heard_ms: int
    """How long ago it was last heard; 0 for this LB itself."""


@dataclass(frozen=True, slots=True)
class VipHolder:
    address: str
    holder: str | None


@dataclass(frozen=True, slots=True)
class QuorumState:
    """`state.quorum.`: this LB's part in the agreement."""

    version: int
    name: str
    role: Role
    term: int
    leader: str | None
    epoch: int
    quorum: bool
    """Whether a majority is heard."""
    lease_remaining_ms: int
    lease_changes: int
    vips: tuple[VipHolder, ...]
    members: tuple[QuorumMember, ...]
    waiting_for: str
    """What of this machine is missing (own address in the list, ...); empty when nothing is."""


# --------------------------------------------------------------------------- dataplane


@dataclass(frozen=True, slots=True)
class HookState:
    """One program on one interface."""

    program: str
    """The pin's name: xdp_public, tc_public, tc_private."""
    interface: str
    attached: bool
    flavour: str
    """native, generic, tc; or empty while not attached."""
    detail: str


@dataclass(frozen=True, slots=True)
class SeatState:
    """A node's seat at a service: one entry of the ring's table."""

    seat: int
    service: str
    node: str
    slots: int
    share: float
    """The part of the service's slots, 0 to 1."""
    resolved: bool
    """Whether the fast path knows the next hop; if not, TC hands over to the kernel's ARP."""


@dataclass(frozen=True, slots=True)
class DataplaneState:
    """`state.dataplane.`: what the kernel has been told."""

    version: int
    ready: bool
    epoch: int
    mode: Mode
    hooks: tuple[HookState, ...]
    seats: tuple[SeatState, ...]
    services: tuple[str, ...]
    moved_slots_total: int
    waiting_for: str


@dataclass(frozen=True, slots=True)
class SeatCounters:
    """Totals since the pins were made, per service and node, both directions."""

    service: str
    node: str
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    flows: int
    snat_port_rest_seconds: float | None = None
    """How long the SNAT port that was taken last towards this node had rested; None: none has been
    taken again yet."""


@dataclass(frozen=True, slots=True)
class Counters:
    """`state.counters.`: once a second."""

    version: int
    seats: tuple[SeatCounters, ...]
    verdicts: dict[str, int]
    """`hook.reason` → packets: each packet that a program sees counts one reason (reasons.h)."""
    conntrack_established: int
    conntrack_half_open: int
    conntrack_capacity: int
    snat_ports_used: int
    snat_ports_capacity: int
    census_ms: float
    """What the last pass over the flow table cost, in CPU time."""


# --------------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class NodeEvent:
    """`node.*`: what happened to one node, as this LB sees it."""

    id: str
    name: str
    address: str
    state: NodeState
    previous: NodeState | None
    reason: str
    fails: int
    banned_for_ms: int


@dataclass(frozen=True, slots=True)
class VipEvent:
    """`vip.acquired.` and `vip.lost.`"""

    address: str
    holder: str | None
    term: int
    reason: str


@dataclass(frozen=True, slots=True)
class QuorumEvent:
    """`quorum.leader.`, `quorum.lost.`, `quorum.regained.`, `quorum.peer_refused.`"""

    term: int
    leader: str | None
    peer: str | None
    reason: str


@dataclass(frozen=True, slots=True)
class TableEvent:
    """`table.committed.`"""

    term: int
    epoch: int
    nodes_up: int
    changes: tuple[str, ...]
    """One line per change: `node-1 up -> down`."""


@dataclass(frozen=True, slots=True)
class DataplaneEvent:
    """`dataplane.attached.` and `dataplane.degraded.`"""

    program: str
    interface: str
    flavour: str
    reason: str


@dataclass(frozen=True, slots=True)
class ProcessEvent:
    """`process.started.`"""

    process: str
    pid: int
    version: str
    adopted: str
    """What it found and took over, in words; empty when it started from nothing."""


PAYLOADS: dict[Topic, type[Any]] = {
    Topic.STATE_VIEW: LocalView,
    Topic.STATE_TABLE: CommittedTable,
    Topic.STATE_QUORUM: QuorumState,
    Topic.STATE_DATAPLANE: DataplaneState,
    Topic.STATE_COUNTERS: Counters,
    Topic.STATE_NODES: LocalView,
    Topic.NODE_JOINED: NodeEvent,
    Topic.NODE_UP: NodeEvent,
    Topic.NODE_DOWN: NodeEvent,
    Topic.NODE_DRAINING: NodeEvent,
    Topic.NODE_BANNED: NodeEvent,
    Topic.NODE_PARDONED: NodeEvent,
    Topic.VIP_ACQUIRED: VipEvent,
    Topic.VIP_LOST: VipEvent,
    Topic.QUORUM_LEADER: QuorumEvent,
    Topic.QUORUM_LOST: QuorumEvent,
    Topic.QUORUM_REGAINED: QuorumEvent,
    Topic.QUORUM_PEER_REFUSED: QuorumEvent,
    Topic.TABLE_COMMITTED: TableEvent,
    Topic.DATAPLANE_ATTACHED: DataplaneEvent,
    Topic.DATAPLANE_DEGRADED: DataplaneEvent,
    Topic.PROCESS_STARTED: ProcessEvent,
}


# --------------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Command:
    """A request to the ROUTER of the process that owns the thing. Idempotent, two seconds."""

    id: str
    verb: str
    arguments: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Reply:
    """Exactly one of `result` and `error` is not None."""

    id: str
    result: dict[str, Any] | None
    error: str | None


# --------------------------------------------------------------------------- node protocol


@dataclass(frozen=True, slots=True)
class Hello:
    """Agent → LB, first on every connection. `boot` is new at each start of the agent."""

    v: int
    name: str
    boot: str
    weight: int
    services: tuple[NodeService, ...]
    """What the agent's file names; empty: every service of the LB, on the port the LB says."""


@dataclass(frozen=True, slots=True)
class OfferedService:
    """A service as the LB describes it to an agent, with what the node must do to serve it."""

    name: str
    vip: str | None
    port: int
    protocol: Protocol
    mode: Mode
    node_port: int
    encap: Encapsulation


@dataclass(frozen=True, slots=True)
class Welcome:
    """LB → agent: admitted. Beat every `interval_ms`; silence of `checks_timeout_ms` is a failure.

    Sent again whenever what it says changes: probation beats are ten times as frequent.
    """

    lb: str
    node_id: str
    checks_timeout_ms: int
    interval_ms: int
    state: NodeState
    services: tuple[OfferedService, ...]


@dataclass(frozen=True, slots=True)
class Prepared:
    """In which modes beside L4, which asks nothing of it, a node could take these services now."""

    modes: tuple[Mode, ...]
    services: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Heartbeat:
    """Agent → LB. `sent_ms` is a point of the agent's own monotonic clock."""

    seq: int
    sent_ms: int
    status: ServingStatus
    load: float
    reason: str
    prepared: tuple[Prepared, ...] | None = None
    """Services that are not named here the node could take in mode L4 alone. None: all is as it was
    said on this connection before; from an agent that never says it, prepared for everything."""


@dataclass(frozen=True, slots=True)
class Refused:
    """LB → agent: not admitted, or banned; try again no sooner than `retry_ms`."""

    reason: str
    retry_ms: int


NODE_PROTOCOL: dict[str, type[Any]] = {
    "hello": Hello,
    "welcome": Welcome,
    "heartbeat": Heartbeat,
    "refused": Refused,
}
NodeMessage = Hello | Welcome | Heartbeat | Refused


# --------------------------------------------------------------------------- envelope and codec


@dataclass(frozen=True, slots=True)
class Envelope:
    """A message of the bus with its sender; what a subscriber is handed."""

    topic: Topic
    source: str
    host: str
    boot: str
    """The publisher's start, as random hex: numbers are comparable only within one boot."""
    seq: int
    """Events: without holes within a boot. States: the publisher's running number."""
    time_ms: int
    """Wall clock in milliseconds since 1970; for people, never for decisions."""
    data: Any


T = TypeVar("T")
_adapters: dict[type[Any], TypeAdapter[Any]] = {}


def _adapter(kind: type[T]) -> TypeAdapter[T]:
    adapter = _adapters.get(kind)
    if adapter is None:
        adapter = _adapters[kind] = TypeAdapter(kind)
    return adapter


def to_json(value: Any) -> bytes:
    """One message dataclass, or a mapping of plain values, as a JSON object."""
    return orjson.dumps(value)


def from_json(kind: type[T], raw: bytes) -> T:
    """Read one `kind`; raises `MalformedMessage` naming the first field that is wrong."""
    try:
        return _adapter(kind).validate_json(raw)
    except ValidationError as error:
        raise MalformedMessage(_first_problem(kind, error)) from None


def from_plain(kind: type[T], value: Any) -> T:
    """Check an already parsed value against `kind`; raises as `from_json` does."""
    try:
        return _adapter(kind).validate_python(value)
    except ValidationError as error:
        raise MalformedMessage(_first_problem(kind, error)) from None


def _first_problem(kind: type[Any], error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return f"{kind.__name__}.{where}: {first['msg']}"


def encode(envelope: Envelope) -> list[bytes]:
    """The two frames of a bus message: topic, body."""
    body = {
        "v": FORMAT_VERSION,
        "source": envelope.source,
        "host": envelope.host,
        "boot": envelope.boot,
        "seq": envelope.seq,
        "time_ms": envelope.time_ms,
        "data": envelope.data,
    }
    return [envelope.topic.encode(), orjson.dumps(body)]


def decode(frames: list[bytes]) -> Envelope:
    """Read a bus message; raises `MalformedMessage`."""
    if len(frames) != 2:
        raise MalformedMessage(f"{len(frames)} frames, expected topic and body")
    try:
        topic = Topic(frames[0].decode())
        body = orjson.loads(frames[1])
    except (ValueError, UnicodeDecodeError) as error:
        raise MalformedMessage(str(error)) from None
    if not isinstance(body, dict) or body.get("v") != FORMAT_VERSION:
        raise MalformedMessage("not a message of format version 1")
    data = from_plain(PAYLOADS[topic], body.get("data"))
    try:
        return Envelope(
            topic=topic,
            source=str(body["source"]),
            host=str(body["host"]),
            boot=str(body["boot"]),
            seq=int(body["seq"]),
            time_ms=int(body["time_ms"]),
            data=data,
        )
    except (KeyError, TypeError, ValueError) as error:
        raise MalformedMessage(f"envelope: {error}") from None


def encode_node(message: NodeMessage) -> list[bytes]:
    """The two frames of the node protocol: kind, body."""
    return [type(message).__name__.lower().encode(), orjson.dumps(message)]


def decode_node(frames: list[bytes]) -> NodeMessage:
    """Read a message of the node protocol; raises `MalformedMessage`."""
    if len(frames) != 2:
        raise MalformedMessage(f"{len(frames)} frames, expected kind and body")
    kind = NODE_PROTOCOL.get(frames[0].decode(errors="replace"))
    if kind is None:
        raise MalformedMessage("unknown kind of node message")
    message: NodeMessage = from_json(kind, frames[1])
    return message
