"""Every type that crosses a process boundary, and how it becomes JSON and back.

Three families travel (design: one word for one thing, one file for what is shared):

* **State** (`Topic.STATE_*`): whole and repeated. A receiver that missed ten of them is right after
  the eleventh; `(boot, version)` makes a repetition harmless.
* **Events** (`Topic.NODE_*`, ...): a log, numbered per publisher boot.
* **Node protocol** (`Hello`, `Welcome`, ...): between a node's agent and each LB.

All are frozen, slotted dataclasses. `encode` writes one orjson object; `decode` checks every field
against its annotation, ranges included, and raises `MalformedMessage`, which is always the
*sender's* fault: count it, ignore it, and cut the sender off if it goes on. What passes can be
written into the kernel's maps, added to, and encoded again. Unknown fields are ignored, so a newer
peer may add some; an unknown format version is refused, so it may not change what old ones mean.

Units stand last in a name. Every `*_ms` is a duration in milliseconds unless its comment says that
it is a point of the sender's monotonic clock, which nobody but the sender may compare with his own.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated, Any, TypeVar

import orjson
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError

FORMAT_VERSION = 1
LONGEST_REASON = 200
"""Characters of a reason that an agent gives."""
MOST_NAMED_SERVICES = 1_000
"""Services that one node may name."""


def is_ipv4(text: str) -> bool:
    return re.fullmatch(_IPV4, text) is not None


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


class MalformedMessage(ValueError):  # noqa: N818 - it names what came, not a mistake of ours
    """A message that is not what its type says: the sender's fault, named in one line."""


# --------------------------------------------------------------------------- ranges

LARGEST_WHOLE = 2**62
"""Half of what JSON's writer here takes: what is counted on from it never comes to the end."""
LARGEST_WEIGHT = 1_000
LONGEST_MS = 10 * 366 * 86_400_000

_OCTET = "(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
_IPV4 = rf"(?:{_OCTET}\.){{3}}{_OCTET}"

Whole = Annotated[int, Field(strict=True, ge=0, le=LARGEST_WHOLE)]
"""A number of something, a version, or an age."""
Stored = Annotated[int, Field(strict=True, ge=0, le=LARGEST_WHOLE // 2)]
"""A `Whole` that its reader goes on counting from."""
Signed = Annotated[int, Field(strict=True, ge=-LARGEST_WHOLE, le=LARGEST_WHOLE)]
Word = Annotated[int, Field(strict=True, ge=0, lt=2**64)]
"""64 bits, as a counter of the kernel's."""
Duration = Annotated[int, Field(strict=True, ge=0, le=LONGEST_MS)]
"""Milliseconds that somebody will wait for."""
Weight = Annotated[int, Field(strict=True, ge=0, le=LARGEST_WEIGHT)]
Port = Annotated[int, Field(strict=True, ge=1, le=65_535)]
LowPort = Annotated[int, Field(strict=True, ge=0, le=1_023)]
"""A port below 1024, or how many of them; 0: none."""
PortCount = Annotated[int, Field(strict=True, ge=0, le=65_536)]
IPv4 = Annotated[str, Field(pattern=rf"^{_IPV4}$")]


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
    port: Port
    modes: tuple[Mode, ...] = ()
    """The modes that the node is prepared for; none: its agent does not say, so all of them."""


@dataclass(frozen=True, slots=True)
class NodeObservation:
    """What this LB sees of one node."""

    id: str
    name: str
    address: IPv4
    state: NodeState
    reason: str
    """Why it is in that state, in words an operator can act on."""
    weight: Weight
    services: tuple[NodeService, ...]
    fails: Whole
    banned_for_ms: Duration
    """What is left of the ban; 0 when there is none."""
    observed_ms: Whole
    """How old the newest sign of life is."""
    checks_passed: Whole
    checks_required: Whole
    checks_good_total: Whole
    checks_bad_total: Whole
    load: float
    silent: bool = False
    """DOWN or BANNED, and nothing is heard of it; False: it says that it does not serve."""


@dataclass(frozen=True, slots=True)
class LocalView:
    """`state.view.`: all that this LB sees of its nodes. Published by health."""

    version: Whole
    nodes: tuple[NodeObservation, ...]
    rejected: dict[str, Whole]
    """Messages of agents that were refused, by reason."""
    waiting_for: str = ""
    """What of this machine is missing (the private interface, ...); empty when nothing is."""


# --------------------------------------------------------------------------- quorum: state.table.


@dataclass(frozen=True, slots=True)
class TableService:
    """A service as agreed. `address` None: each LB's own public address (no floating VIPs)."""

    name: str
    address: IPv4 | None
    port: Port
    protocol: Protocol
    mode: Mode
    node_port: Port
    affinity: Affinity = Affinity.FLOW
    encap: Encapsulation = Encapsulation.IPIP
    snat: bool = True
    snat_addresses: tuple[IPv4, ...] = ()
    """Whose ports its flows take; none: its VIP's `VipOwner.snat_addresses`, or if that has none,
    the LB's own private address."""
    on_node_down: OnNodeDown | None = None
    """None: RESET for a node that is silent, KEEP for one that is not."""
    no_flow: NoFlow = NoFlow.RESET
    ports: Port = 1
    """How many ports it has, one after the other from `port` on, as far as there are ports."""
    keeps_port: bool = False
    """Nodes serve each of its ports on the same port; then `node_port` is the first."""
    affinity_group: str = ""
    """Services of one group send a client to the same node; empty: it belongs to none."""


@dataclass(frozen=True, slots=True)
class TableNode:
    """A node as agreed. Only UP and DRAINING nodes keep their place in the rings' tables."""

    id: str
    name: str
    address: IPv4
    state: NodeState
    weight: Weight
    services: tuple[NodeService, ...]
    silent: bool = False
    """DOWN or BANNED, and most of the LBs that say so hear nothing of it."""


@dataclass(frozen=True, slots=True)
class Ban:
    """A node nobody routes to. `remaining_ms` counts from when the message was made."""

    node: str
    remaining_ms: Duration
    fails: Whole


@dataclass(frozen=True, slots=True)
class VipOwner:
    """A floating VIP and its SNAT addresses are one unit: they move together."""

    address: IPv4
    snat_address: IPv4 | None
    """The first of `snat_addresses`, for readers that know of one only; None: there is none."""
    owner: str | None
    snat_addresses: tuple[IPv4, ...] = ()

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
    address: IPv4 | None
    first_port: Port
    ports: PortCount
    low_first_port: LowPort = 0
    low_ports: LowPort = 0


def _each_node_once(found: tuple[TableNode, ...]) -> tuple[TableNode, ...]:
    if len({node.id for node in found}) != len(found):
        raise ValueError("a node is listed twice")
    return found


def _each_service_once(found: tuple[TableService, ...]) -> tuple[TableService, ...]:
    if len({service.name for service in found}) != len(found):
        raise ValueError("a service is listed twice")
    return found


def _within_ports(found: SnatSlice) -> SnatSlice:
    if found.first_port + found.ports > 65_536:
        raise ValueError(f"{found.ports} ports from {found.first_port} on")
    if found.low_ports and not 1 <= found.low_first_port <= 1_024 - found.low_ports:
        raise ValueError(f"{found.low_ports} low ports from {found.low_first_port} on")
    return found


@dataclass(frozen=True, slots=True)
class NodeTable:
    """The one replicated register: what all LBs agree on. `(term, epoch)` orders its versions."""

    term: Whole
    epoch: Whole
    hash_seed: Word
    """64 bits that seed every ring: the same on all LBs, unpredictable to clients."""
    services: Annotated[tuple[TableService, ...], AfterValidator(_each_service_once)]
    nodes: Annotated[tuple[TableNode, ...], AfterValidator(_each_node_once)]
    bans: tuple[Ban, ...]
    vip_owners: tuple[VipOwner, ...]
    snat_slices: tuple[Annotated[SnatSlice, AfterValidator(_within_ports)], ...]


@dataclass(frozen=True, slots=True)
class CommittedTable:
    """`state.table.`: the newest table a majority has accepted. Published by quorum."""

    version: Whole
    table: NodeTable


# --------------------------------------------------------------------------- quorum: state.quorum.


@dataclass(frozen=True, slots=True)
class QuorumMember:
    """One LB as this one sees it; `name` is empty until it has spoken once."""

    name: str
    address: str
    alive: bool
    term: Whole
    epoch: Whole
    heard_ms: Whole
    """How long ago it was last heard; 0 for this LB itself."""


@dataclass(frozen=True, slots=True)
class VipHolder:
    address: str
    holder: str | None


@dataclass(frozen=True, slots=True)
class QuorumState:
    """`state.quorum.`: this LB's part in the agreement."""

    version: Whole
    name: str
    role: Role
    term: Whole
    leader: str | None
    epoch: Whole
    quorum: bool
    """Whether a majority is heard."""
    lease_remaining_ms: Whole
    lease_changes: Whole
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

    seat: Whole
    service: str
    node: str
    slots: Whole
    share: float
    """The part of the service's slots, 0 to 1."""
    resolved: bool
    """Whether the fast path knows the next hop; if not, TC hands over to the kernel's ARP."""
    reason: str = ""
    """Why it takes no new flows although its node is well; empty where nothing of that kind is."""


@dataclass(frozen=True, slots=True)
class OutputState:
    """A device that packets leave by, and who sends them there."""

    interface: str
    carries: str
    """requests, or replies (of mode L4)."""
    hook: str
    """xdp or tc."""
    reason: str


@dataclass(frozen=True, slots=True)
class DataplaneState:
    """`state.dataplane.`: what the kernel has been told."""

    version: Whole
    ready: bool
    epoch: Whole
    mode: Mode
    hooks: tuple[HookState, ...]
    seats: tuple[SeatState, ...]
    services: tuple[str, ...]
    moved_slots_total: Whole
    waiting_for: str
    outputs: tuple[OutputState, ...] = ()


@dataclass(frozen=True, slots=True)
class SeatCounters:
    """Totals since the pins were made, per service and node, both directions."""

    service: str
    node: str
    packets_in: Word
    bytes_in: Word
    packets_out: Word
    bytes_out: Word
    flows: Word
    snat_port_rest_seconds: float | None = None
    """How long the SNAT port that was taken last towards this node had rested; None: none has been
    taken again yet."""


@dataclass(frozen=True, slots=True)
class Counters:
    """`state.counters.`: once a second."""

    version: Whole
    seats: tuple[SeatCounters, ...]
    verdicts: dict[str, Word]
    """`hook.reason` → packets: each packet that a program sees counts one reason (reasons.h)."""
    conntrack_established: Whole
    conntrack_half_open: Whole
    conntrack_capacity: Whole
    snat_ports_used: Whole
    snat_ports_capacity: Whole
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
    fails: Whole
    banned_for_ms: Duration


@dataclass(frozen=True, slots=True)
class VipEvent:
    """`vip.acquired.` and `vip.lost.`"""

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
class TableEvent:
    """`table.committed.`"""

    term: Whole
    epoch: Whole
    nodes_up: Whole
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
    pid: Whole
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

    v: Signed
    name: str
    boot: str
    weight: Signed
    services: tuple[NodeService, ...]
    """What the agent's file names; empty: every service of the LB, on the port the LB says."""


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
class Heartbeat:
    """Agent → LB. `sent_ms` is a point of the agent's own monotonic clock."""

    seq: Whole
    sent_ms: Signed
    status: ServingStatus
    load: float
    reason: str
    """One printable line; `one_line` makes one of anything."""
    prepared: tuple[Prepared, ...] | None = None
    """Services that are not named here the node could take in mode L4 alone. None: all is as it was
    said on this connection before; from an agent that never says it, prepared for everything."""


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


@dataclass(frozen=True, slots=True)
class _Head:
    """Of an envelope, what is neither its topic nor its data."""

    source: str
    host: str
    boot: str
    seq: Whole
    time_ms: Signed


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
    data = from_plain(PAYLOADS[topic], body.pop("data", None))
    head = from_plain(_Head, body)
    return Envelope(topic, head.source, head.host, head.boot, head.seq, head.time_ms, data)


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
