"""The states: whole, repeated, and right again after any loss. Pure.

Whoever owns a state raises its `version` when the content changes and never otherwise: a reader
that has `(boot, version)` already skips the message undecoded, so what changed without a new
version would never be seen. What passes by itself (the time left of a ban) is no content: it was
right when the message was made, which its head says (`codec.Head.made_ms`).

`state.view.` holds what health has *decided*; what changes with every beat is `state.checks.`,
read by the API alone. Long lists of numbers (checks, counters) travel as columns: ten thousand
objects of six fields cost many times what six lists of ten thousand numbers do.

An object whose parts contradict each other (a node listed twice, ports beyond 65535) cannot be
made: `__post_init__` raises ValueError, which the decoder turns into the sender's fault.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import astuple, dataclass, field, fields

from bus.orders import Order
from bus.words import (
    Affinity,
    Duration,
    Encapsulation,
    Entry,
    IPv4,
    LowPort,
    Mode,
    NodeState,
    NoFlow,
    OnNodeDown,
    Percent,
    Port,
    PortCount,
    Protocol,
    Role,
    Stored,
    Weight,
    Whole,
    Word,
    check_words,
)

# --------------------------------------------------------------------------- health: state.view.


@dataclass(frozen=True, slots=True)
class NodeService:
    """One service a node serves: by the service's name, on the node's own port."""

    name: str
    port: Port
    modes: tuple[Mode, ...] = ()
    """The modes that the node is prepared for; none: its agent does not say, so all of them."""


@dataclass(frozen=True, slots=True)
class ServiceState:
    """One service of a node that stands otherwise than the node as a whole does."""

    service: str
    state: NodeState
    reason: str = ""
    """As for a node; empty in the table, which is about what to do, not why."""
    banned_for_ms: Duration = 0
    """Likewise: what was left of its ban when the message was made; 0 in the table."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """What this LB has decided of one node."""

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
    """What was left of the ban when the message was made; 0 when there is none."""
    silent: bool = False
    """DOWN or BANNED, and nothing is heard of it; False: it says that it does not serve."""
    apart: tuple[ServiceState, ...] = ()
    """Of a node that is routed to: the services that are not in its state."""
    backup: bool = False
    """It is to be given new flows only where too few others serve."""


@dataclass(frozen=True, slots=True)
class LocalView:
    """`state.view.`: what this LB has decided of its nodes. Published by health."""

    version: Whole
    nodes: tuple[NodeView, ...]
    waiting_for: str = ""
    """What of this machine is missing (the private interface, ...); empty when nothing is."""
    late: bool = False
    """Whether the health process was held up a moment ago: it may not have noticed yet what has
    happened meanwhile."""
    deaf: bool = False
    """Whether not one of the nodes that are routed to has been heard for longer than a beat takes:
    what is sent to them from here would probably not arrive either."""


# --------------------------------------------------------------------------- health: state.checks.


@dataclass(frozen=True, slots=True)
class NodeChecks:
    """How the checks of one node stand."""

    id: str
    observed_ms: Whole
    """How old the newest sign of life was when the message was made."""
    passed: Whole
    good_total: Whole
    bad_total: Whole
    load: float


@dataclass(frozen=True, slots=True)
class LocalChecks:
    """`state.checks.`: what changes with every beat; one column for each field of `NodeChecks`."""

    version: Whole
    required: Whole
    """Good checks in a row that make a node UP."""
    rejected: dict[str, Whole]
    """Messages of agents that were refused, by reason."""
    id: tuple[str, ...]
    observed_ms: tuple[Whole, ...]
    passed: tuple[Whole, ...]
    good_total: tuple[Whole, ...]
    bad_total: tuple[Whole, ...]
    load: tuple[float, ...]

    def __post_init__(self) -> None:
        _check_columns(self, NodeChecks)

    def by_node(self) -> dict[str, NodeChecks]:
        """The same by the nodes' ids."""
        return {row.id: row for row in map(NodeChecks, *_columns(self, NodeChecks))}


# --------------------------------------------------------------------------- the API: state.nodes.


@dataclass(frozen=True, slots=True)
class NodeObservation:
    """A node's view and its checks in one, as the public stream shows it."""

    id: str
    name: str
    address: IPv4
    state: NodeState
    reason: str
    weight: Weight
    services: tuple[NodeService, ...]
    fails: Whole
    banned_for_ms: Duration
    observed_ms: Whole
    checks_passed: Whole
    checks_required: Whole
    checks_good_total: Whole
    checks_bad_total: Whole
    load: float
    silent: bool = False
    apart: tuple[ServiceState, ...] = ()
    backup: bool = False


@dataclass(frozen=True, slots=True)
class NodesState:
    """`state.nodes.` of the public stream: all that this LB sees of its nodes."""

    version: Whole
    nodes: tuple[NodeObservation, ...]
    rejected: dict[str, Whole]
    waiting_for: str = ""


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
    slow_start_ms: Duration = 0
    """For so long the weight of a node that has become routable rises; 0: it is whole at once."""
    min_healthy: Percent = 50
    """Of its nodes that are no backups: where fewer serve, the backups do too."""


@dataclass(frozen=True, slots=True)
class TableNode:
    """A node as agreed. Only one that is UP, SUSPECT or DRAINING is routed to."""

    id: str
    name: str
    address: IPv4
    state: NodeState
    weight: Weight
    services: tuple[NodeService, ...]
    silent: bool = False
    """DOWN or BANNED, and most of the LBs that say so hear nothing of it; or the deadline of its
    drain is over: its flows are better ended than kept."""
    apart: tuple[ServiceState, ...] = ()
    """Of a node that is routed to: the services that are not in its state."""
    backup: bool = False
    """It is to be given new flows only where too few others serve."""


@dataclass(frozen=True, slots=True)
class Ban:
    """A node nobody routes to. `remaining_ms` counts from when the message was made."""

    node: str
    remaining_ms: Duration
    fails: Whole


@dataclass(frozen=True, slots=True)
class Part:
    """How much of its weight a node has at one service, where that may be less than all of it.

    `remaining_ms` counts from when the message was made.
    """

    node: str
    service: str
    percent: Percent
    """What the ring gives it."""
    level: Percent
    """How far its slow start has come; `percent` is that beside the service's other nodes, or 0
    for a backup where enough others serve."""
    remaining_ms: Duration
    """Of its slow start."""


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

    def __post_init__(self) -> None:
        if self.first_port + self.ports > 65_536:
            raise ValueError(f"{self.ports} ports from {self.first_port} on")
        if self.low_ports and not 1 <= self.low_first_port <= 1_024 - self.low_ports:
            raise ValueError(f"{self.low_ports} low ports from {self.low_first_port} on")


@dataclass(frozen=True, slots=True)
class Member:
    """One of the LBs that agree with one another."""

    address: Entry
    """Its entry, `host:port`, as it was written when it became a member."""
    name: str = ""
    """Its own name; empty until the leader has heard it."""


@dataclass(frozen=True, slots=True)
class NodeTable:
    """The one replicated register: what all LBs agree on. `(term, epoch)` orders its versions."""

    term: Stored
    epoch: Stored
    hash_seed: Word
    """64 bits that seed every ring: the same on all LBs, unpredictable to clients."""
    services: tuple[TableService, ...]
    nodes: tuple[TableNode, ...]
    bans: tuple[Ban, ...]
    vip_owners: tuple[VipOwner, ...]
    snat_slices: tuple[SnatSlice, ...]
    orders: tuple[Order, ...] = ()
    """What operators want; `nodes` are as these say."""
    beneath: tuple[TableNode, ...] = ()
    """Those nodes that are otherwise than without the orders, as they would be then."""
    members: tuple[Member, ...] = ()
    """The LBs whose votes count. None: an LB that decides alone, or a table of an older Gale."""
    parts: tuple[Part, ...] = ()
    """The nodes in slow start, and the backups that are not needed, service by service; all others
    have their whole weight."""
    listed: str = ""
    """A digest of the list of LBs that all files agreed on last; empty: on none yet."""

    def __post_init__(self) -> None:
        check_words(self.hash_seed)
        if len({node.id for node in self.nodes}) != len(self.nodes):
            raise ValueError("a node is listed twice")
        if len({service.name for service in self.services}) != len(self.services):
            raise ValueError("a service is listed twice")
        if len({member.address for member in self.members}) != len(self.members):
            raise ValueError("a member is listed twice")


@dataclass(frozen=True, slots=True)
class CommittedTable:
    """`state.table.`: the newest table a majority has accepted. Published by quorum."""

    version: Whole
    table: NodeTable


def without_orders(table: NodeTable) -> tuple[TableNode, ...]:
    """The nodes as the LBs see them, whatever operators want."""
    beneath = {node.id: node for node in table.beneath}
    if not beneath:
        return table.nodes
    return tuple(beneath.get(node.id, node) for node in table.nodes)


def states_apart(node: NodeView | NodeObservation | TableNode) -> dict[str, NodeState]:
    """By name, the states of the services that are not in the node's own."""
    return {each.service: each.state for each in node.apart}


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
    why_not: tuple[str, ...] = ()
    """Why it may hold no VIPs, in words; empty: it may, as far as is known here."""
    staged: str = ""
    """A digest of the services and VIPs of its file; empty: it has none, or that is not known."""
    trouble: str = ""
    """Why this LB does not hear what it says, or how its numbers differ from this LB's."""
    late: bool = False
    """Whether its verdicts on nodes do not count: its health process is silent or was held up."""
    listed: str = ""
    """A digest of the list of LBs of its file; empty: it decides alone, or that is not known."""


@dataclass(frozen=True, slots=True)
class VipHolder:
    address: str
    holder: str | None


@dataclass(frozen=True, slots=True)
class Applicant:
    """An LB of this cluster's name that speaks to this one and is no member."""

    name: str
    address: str


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
    rejected: dict[str, Whole] = field(default_factory=dict)
    """What came on the quorum's port and was not heard, by reason."""
    agreed: str = ""
    """The digest of the services and VIPs that all LBs go by; empty: there is no table yet."""
    is_member: bool = True
    """Whether this LB's vote counts, as far as it knows."""
    applicants: tuple[Applicant, ...] = ()
    """Who could be added by its name."""
    listed: str = ""
    """The digest of the list of LBs that all files agreed on last; empty: on none yet."""
    why_not_listed: str = ""
    """Why the members are not those of the list on which all files agree; empty: nothing is against
    it, or they are, or the files differ."""


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
    """0: none is free for it."""
    service: str
    node: str
    slots: Whole
    share: float
    """The part of the service's slots, 0 to 1."""
    resolved: bool
    """Whether the fast path knows the next hop; if not, TC hands over to the kernel's ARP."""
    reason: str = ""
    """Why the node is not routed to although it is up; empty where nothing of that kind is."""


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
class ClaimState:
    """A floating address (a VIP, or an SNAT address that moves with one), as the kernel has it."""

    address: str
    side: str
    """public or private: where it is asked for."""
    held: bool
    """Whether this LB answers for it."""
    trouble: str = ""
    """Another MAC address claims it too, or the script that announces it fails; mostly empty."""


@dataclass(frozen=True, slots=True)
class ReplicaPeer:
    """Another LB, as one that flows are told to and heard from."""

    address: str
    name: str
    """Empty until it has spoken once."""
    standing: str
    """silent, refused, catching up (its flows are on their way here), or level."""
    reason: str
    """Why it has refused; else empty."""
    follows: bool
    """Whether it is being told of the flows here."""


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
    left_out: tuple[str, ...] = ()
    """Nodes, services and ports that are not served, a line each with the reason, while all others
    are."""
    claims: tuple[ClaimState, ...] = ()
    synced: bool = True
    """This LB has the flows that any live peer had, or there is none, or 5 s are over."""
    replicas: tuple[ReplicaPeer, ...] = ()
    """The other LBs, by their entries in `load_balancer_quorum.addresses`."""


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
    flows_now: Whole = 0
    """Flows that the last pass over the flow table has met there (mode L4)."""


@dataclass(frozen=True, slots=True)
class SeatColumns:
    """One column for each field of `SeatCounters`."""

    service: tuple[str, ...]
    node: tuple[str, ...]
    packets_in: tuple[Word, ...]
    bytes_in: tuple[Word, ...]
    packets_out: tuple[Word, ...]
    bytes_out: tuple[Word, ...]
    flows: tuple[Word, ...]
    snat_port_rest_seconds: tuple[float | None, ...]
    flows_now: tuple[Whole, ...]

    def __post_init__(self) -> None:
        _check_columns(self, SeatCounters)
        for column in (
            self.packets_in,
            self.bytes_in,
            self.packets_out,
            self.bytes_out,
            self.flows,
        ):
            check_words(*column)

    @classmethod
    def of(cls, rows: Iterable[SeatCounters]) -> SeatColumns:
        columns = list(zip(*map(astuple, rows), strict=True))
        return cls(*(columns or [() for _ in fields(SeatCounters)]))

    def __iter__(self) -> Iterator[SeatCounters]:
        return map(SeatCounters, *_columns(self, SeatCounters))


@dataclass(frozen=True, slots=True)
class Counters:
    """`state.counters.`: once a second, or as often as is cheap."""

    version: Whole
    seats: SeatColumns
    verdicts: dict[str, Word]
    """`hook.reason` → packets: each packet that a program sees counts one reason (reasons.h)."""
    conntrack_established: Whole
    conntrack_half_open: Whole
    conntrack_capacity: Whole
    snat_ports_used: Whole
    snat_ports_capacity: Whole
    census_ms: float
    """What the last pass over the flow table cost, in CPU time."""
    replication_lag_seconds: float | None = None
    """How long what becomes of flows here took to be known to all other LBs, at most, since the
    counters before; None: there are no others."""
    replication: dict[str, Word] = field(default_factory=dict)
    """What became of records and messages about flows, by name, since the process started."""

    def __post_init__(self) -> None:
        check_words(*self.verdicts.values(), *self.replication.values())


# --------------------------------------------------------------------------- columns


def _columns(holder: object, row: type) -> list[tuple[object, ...]]:
    """The columns of a message, in the order of the fields of its rows."""
    return [getattr(holder, field.name) for field in fields(row)]


def _check_columns(holder: object, row: type) -> None:
    lengths = {len(column) for column in _columns(holder, row)}
    if len(lengths) > 1:
        raise ValueError(f"columns of {sorted(lengths)} rows")
