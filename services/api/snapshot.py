"""The picture as HTTP shows it: the shapes of `/v1/...`, drawn from the fold at one moment.

Every shape is a frozen dataclass, so that `/openapi.json` describes what is really sent. What was
a remainder or an age when its process said it has moved on by the time that has passed since, and
`observed_ms` says how old the statement is: a dead process is seen by its growing ages, and its
last words stay readable.

A node appears if this LB sees it (`state.view.`) or the quorum has agreed on it (`state.table.`).
Its `state` is what this LB sees, which is what its own flows follow (a node agreed up and down from
here is masked here); `agreed_state` is the quorum's.

Pure: `now_ms` comes in. A shape that nothing is known of yet is None.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from bus import topics
from bus.orders import Order, OrderKind
from bus.states import (
    NodeObservation,
    NodeTable,
    QuorumMember,
    QuorumState,
    SeatCounters,
    SeatState,
    TableNode,
    TableService,
    VipHolder,
)
from bus.topics import Topic
from bus.words import NodeState
from services.api.fold import Fold

IDLE_BACKUP = "it is a backup, and enough of the others serve"
ONLY_AGREED = "as agreed by the quorum: this LB has not heard of it"

NOT_OPEN = (
    "up, and none of its services is open yet: a service begins when half of its nodes are up, or"
    " checks_timeout (10 s at most) after the first of them was"
)

SERVING = frozenset({NodeState.UP, NodeState.SUSPECT})
"""Of a node that takes new flows."""

AT_DEADLINE = (
    "TCP flows are reset, unless the service has on_node_down = keep; UDP flows choose another node"
)

STALE_MS = 5000
"""Ten periods of a state without a word: its process is gone, not slow."""


@dataclass(frozen=True, slots=True)
class Local:
    """What the API knows of this LB by itself, from its configuration and its machine."""

    name: str
    mode: str
    version: str
    pid: int
    public_address: str | None
    """Of the public interface: the VIP of a service that has no floating one."""
    waiting_for: str
    keys: bool = False


@dataclass(frozen=True, slots=True)
class ProcessShape:
    age_ms: int | None
    """Since it was last heard; null: never yet."""
    alive: bool
    boot: str | None
    pid: int | None
    version: str | None
    waiting_for: str


@dataclass(frozen=True, slots=True)
class SeatShape:
    """A node at a service: its part of the ring, and what it carried since the maps were made."""

    service: str
    node: str
    state: str
    """The node's."""
    reason: str
    """Why the node takes no new flows of this service; empty: it takes some."""
    port: int | None
    slots: int
    share: float
    resolved: bool
    packets_in: int
    bytes_in: int
    packets_out: int
    bytes_out: int
    flows: int
    """Begun so far."""
    flows_now: int
    percent: int = 100
    """Of the node's weight, what it has here: less than all of it in slow start, 0 for a backup
    that is not needed."""
    slow_start_ms: int = 0
    """What is left of its slow start; 0: it is in none."""
    banned_for_ms: int = 0
    """What is left of the ban of this service of the node alone; 0: there is none."""


@dataclass(frozen=True, slots=True)
class OrderShape:
    """What an operator wants of a node, for as long as it stands."""

    what: str
    by: str
    why: str
    given_ms: int
    """By the wall clock of the LB that was asked: milliseconds since 1970."""
    until_ms: int | None
    """Likewise, the deadline of a drain; null: until it is enabled."""
    remaining_ms: int | None
    """Of a drain with a deadline; 0: the deadline is over."""
    weight: int | None
    at_deadline: str
    """What happens to the flows that are left then, in words; empty where there is none."""


@dataclass(frozen=True, slots=True)
class NodeShape:
    id: str
    name: str
    address: str
    state: str
    agreed_state: str | None
    reason: str
    weight: int
    share: float
    """Of all slots of all services, 0 to 1; 0: nothing new is sent to it."""
    fails: int
    banned_for_ms: int
    observed_ms: int
    checks_passed: int
    checks_required: int
    load: float
    flows: int
    """That it has now, in mode L4."""
    order: OrderShape | None
    """A drain or a ban, or else a weight; null: what the node's agent and health say decides."""
    orders: list[OrderShape]
    """All that stand."""
    backup: bool
    """It is given new flows only where too few of the others serve."""
    services: list[SeatShape]


@dataclass(frozen=True, slots=True)
class NodesShape:
    nodes: list[NodeShape]
    observed_ms: int


@dataclass(frozen=True, slots=True)
class ServiceShape:
    name: str
    address: str | None
    port: int
    ports: int
    """How many, one after the other from `port` on."""
    protocol: str
    mode: str
    node_port: int
    node_ports: int
    """Likewise; 1: nodes serve all of its ports on one."""
    affinity: str
    affinity_group: str
    nodes_up: int
    """How many nodes have slots of its ring."""
    nodes: list[SeatShape]
    observed_ms: int


@dataclass(frozen=True, slots=True)
class ServicesShape:
    services: list[ServiceShape]
    observed_ms: int


@dataclass(frozen=True, slots=True)
class MemberShape:
    name: str
    address: str
    alive: bool
    term: int
    epoch: int
    heard_ms: int
    why_not: list[str] = field(default_factory=list)
    """Why it may hold no VIP; empty: it may."""
    staged: bool = False
    """Whether its file says other services or VIPs than are agreed on."""
    trouble: str = ""
    """Why this LB does not hear what it says, or how its numbers differ from this LB's."""
    late: bool = False
    """Whether its verdicts on nodes do not count: its health process is silent or was held up."""
    listed: bool = False
    """Whether its file lists other LBs than all files agreed on last."""


@dataclass(frozen=True, slots=True)
class ApplicantShape:
    """An LB that is heard, has this one in its file, and is no member: it may be added."""

    name: str
    address: str


@dataclass(frozen=True, slots=True)
class QuorumShape:
    name: str
    role: str
    term: int
    leader: str | None
    epoch: int
    quorum: bool
    lease_remaining_ms: int
    lease_changes: int
    vips: list[VipHolder]
    members: list[MemberShape]
    waiting_for: str
    observed_ms: int
    staged: str = ""
    """Where services and VIPs are staged that are not agreed on yet; empty: nowhere."""
    rejected: dict[str, int] = field(default_factory=dict)
    """What other machines said on the quorum's port and was not heard, by reason."""
    is_member: bool = True
    """Whether this LB's vote counts, as far as it knows."""
    applicants: list[ApplicantShape] = field(default_factory=list)
    listed: str = ""
    """Where another list of LBs is staged than all files agreed on last, and why the members are
    not those of it where all have it; empty: nowhere."""
    advice: str = ""
    """What should be otherwise although all is well, in words; mostly empty."""


@dataclass(frozen=True, slots=True)
class HookShape:
    program: str
    interface: str
    attached: bool
    flavour: str
    detail: str


@dataclass(frozen=True, slots=True)
class OutputShape:
    """By which device packets leave, and who sends them: xdp or tc, with the reason."""

    interface: str
    carries: str
    hook: str
    reason: str


@dataclass(frozen=True, slots=True)
class ClaimShape:
    """A floating address, as the kernel has it."""

    address: str
    side: str
    """public: clients ask for it; private: nodes do."""
    held: bool
    """Whether this LB answers for it."""
    trouble: str
    """Another MAC address claims it too, or the script that announces it fails; mostly empty."""


@dataclass(frozen=True, slots=True)
class ReplicaShape:
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
class DataplaneShape:
    ready: bool
    epoch: int
    """The node table's version the kernel has been told."""
    hooks: list[HookShape]
    outputs: list[OutputShape]
    conntrack_established: int | None
    conntrack_half_open: int | None
    conntrack_capacity: int | None
    claims: list[ClaimShape]
    synced: bool
    """This LB has the flows that any live peer had."""
    replicas: list[ReplicaShape]
    replication_lag_ms: int | None
    """How long what became of flows here took to be known to all other LBs, lately at most."""
    observed_ms: int


@dataclass(frozen=True, slots=True)
class StatusShape:
    name: str
    mode: str
    version: str
    ready: bool
    not_ready: list[str]
    """Why it is not ready, one line each."""
    warnings: list[str]
    """What is not served while all else is, a line each with the reason."""
    keys: bool
    """Whether machines are known by keys; false: whoever reaches the private network is trusted."""
    processes: dict[str, ProcessShape]
    nodes: dict[str, int]
    """How many nodes are in each state."""
    services: list[ServiceShape]
    quorum: QuorumShape | None
    dataplane: DataplaneShape | None
    observed_ms: int | None
    """The age of the oldest state that this is made of; null: of one nothing is known."""


def data_of(fold: Fold, topic: Topic) -> Any:
    """The newest state of a bus topic, or None."""
    received = fold.latest.get(topic)
    return received.envelope.data if received is not None else None


def age_ms(fold: Fold, topic: Topic, now_ms: int) -> int | None:
    received = fold.latest.get(topic)
    return received.age_ms(now_ms) if received is not None else None


def readiness(fold: Fold, now_ms: int) -> list[str]:
    """Why this LB should not be relied on; empty: it is ready."""
    reasons = []
    dataplane = data_of(fold, Topic.STATE_DATAPLANE)
    if dataplane is not None and not dataplane.ready:
        reasons.append(f"dataplane: {dataplane.waiting_for or 'not ready'}")
    elif dataplane is not None and not any(seat.slots for seat in dataplane.seats):
        what = "routed to yet, though some are up" if _begins(fold) else "up for any service"
        reasons.append(f"nodes: none is {what}, so every client is turned away")
    quorum = data_of(fold, Topic.STATE_QUORUM)
    if quorum is not None and not quorum.quorum:
        reasons.append("quorum: no majority is heard")
    for topic, what in (
        (Topic.STATE_DATAPLANE, "dataplane"),
        (Topic.STATE_TABLE, "node table"),
        (Topic.STATE_QUORUM, "quorum"),
    ):
        age = age_ms(fold, topic, now_ms)
        if age is None:
            reasons.append(f"{what}: nothing known yet")
        elif age > STALE_MS:
            reasons.append(f"{what}: nothing heard for {age // 1000} s")
    return reasons


def _begins(fold: Fold) -> bool:
    """Whether nodes are up and no service is open yet."""
    view, committed = data_of(fold, Topic.STATE_VIEW), data_of(fold, Topic.STATE_TABLE)
    if view is None or committed is None or committed.table.nodes:
        return False
    return any(node.state in SERVING for node in view.nodes)


def status(fold: Fold, local: Local, now_ms: int) -> StatusShape:
    """`/v1/status`"""
    not_ready = readiness(fold, now_ms)
    known = nodes(fold, now_ms)
    offered = services(fold, local, now_ms)
    counts = Counter(node.state for node in known.nodes) if known is not None else Counter()
    dataplane = data_of(fold, Topic.STATE_DATAPLANE)
    return StatusShape(
        name=local.name,
        mode=local.mode,
        version=local.version,
        ready=not not_ready,
        not_ready=not_ready,
        warnings=list(dataplane.left_out) if dataplane is not None else [],
        keys=local.keys,
        processes={name: _process(fold, local, name, now_ms) for name in topics.SERVICES},
        nodes={state.value: counts[state] for state in NodeState},
        services=offered.services if offered is not None else [],
        quorum=quorum(fold, now_ms),
        dataplane=_dataplane(fold, now_ms),
        observed_ms=_oldest(
            age_ms(fold, topic, now_ms)
            for topic in (
                Topic.STATE_VIEW,
                Topic.STATE_TABLE,
                Topic.STATE_QUORUM,
                Topic.STATE_DATAPLANE,
            )
        ),
    )


def nodes(fold: Fold, now_ms: int) -> NodesShape | None:
    """`/v1/nodes`; None until either this LB's view or the table is known."""
    ages = [age_ms(fold, topic, now_ms) for topic in (Topic.STATE_VIEW, Topic.STATE_TABLE)]
    if ages == [None, None]:
        return None
    observed, committed = fold.nodes_state(now_ms), data_of(fold, Topic.STATE_TABLE)
    agreed = {node.id: node for node in committed.table.nodes} if committed is not None else {}
    seats, orders = _Seats(fold, now_ms), _orders(fold, now_ms)
    seen = observed.nodes if observed is not None else ()
    opened = {each.name for node in agreed.values() for each in node.services}
    if committed is not None:
        seen = tuple(_waiting(node, opened) for node in seen)
    shapes = [_seen(node, agreed.pop(node.id, None), seats) for node in seen]
    shapes += [_only_agreed(node, seats, ages[1] or 0) for node in agreed.values()]
    shapes = [_ordered(node, orders[node.id]) if node.id in orders else node for node in shapes]
    shapes.sort(key=lambda node: (node.name, node.id))
    return NodesShape(shapes, max(age for age in ages if age is not None))


def _waiting(node: NodeObservation, opened: set[str]) -> NodeObservation:
    """With the reason, if it waits for its services to begin (`services.quorum.opening`)."""
    offers = {each.name for each in node.services}
    waits = node.state in SERVING and offers and opened.isdisjoint(offers)
    return replace(node, reason=NOT_OPEN) if waits else node


def _orders(fold: Fold, now_ms: int) -> dict[str, list[OrderShape]]:
    """By node, the orders that stand; a drain or a ban first."""
    received = fold.latest.get(Topic.STATE_TABLE)
    if received is None:
        return {}
    passed_ms = received.content_age_ms(now_ms)
    found: dict[str, list[OrderShape]] = {}
    for order in received.envelope.data.table.orders:
        if not order.asked.is_record:
            found.setdefault(order.asked.node, []).append(_order(order, passed_ms))
    for own in found.values():
        own.sort(key=lambda order: order.what == OrderKind.WEIGHT)
    return found


def _order(order: Order, passed_ms: int) -> OrderShape:
    asked, left = order.asked, order.remaining_ms
    ends = asked.within_ms is not None
    return OrderShape(
        what=asked.kind,
        by=asked.by,
        why=asked.why,
        given_ms=asked.time_ms,
        until_ms=asked.time_ms + (asked.within_ms or 0) if ends else None,
        remaining_ms=None if left is None else max(0, left - passed_ms),
        weight=asked.weight,
        at_deadline=AT_DEADLINE if ends else "",
    )


def _ordered(node: NodeShape, orders: list[OrderShape]) -> NodeShape:
    """The node with its orders: what they make of it goes before what is seen of it."""
    first = orders[0]
    if first.what == OrderKind.WEIGHT or node.agreed_state is None:
        return replace(node, order=first, orders=orders)
    reason = f"{first.what} by {first.by}" + (f": {first.why}" if first.why else "")
    state = node.state
    if first.what == OrderKind.BAN or state in (*SERVING, NodeState.DRAINING):
        state = node.agreed_state
    else:
        reason = f"{node.reason}; {reason}"
    agreed = _agreed_on(node.agreed_state)
    services = [replace(s, reason=reason) if s.reason == agreed else s for s in node.services]
    shown = replace(node, state=state, reason=reason, services=services)
    return replace(shown, order=first, orders=orders)


def services(fold: Fold, local: Local, now_ms: int) -> ServicesShape | None:
    """`/v1/services`; None until the table is known."""
    age, committed = age_ms(fold, Topic.STATE_TABLE, now_ms), data_of(fold, Topic.STATE_TABLE)
    if age is None:
        return None
    table = committed.table
    ports = {(node.id, offer.name): offer.port for node in table.nodes for offer in node.services}
    seats, standings = _Seats(fold, now_ms), _standings(fold, table, now_ms)
    return ServicesShape(
        [_service(each, local, seats, ports, standings, age) for each in table.services], age
    )


def _standings(fold: Fold, table: NodeTable, now_ms: int) -> dict[str, _Standing]:
    """Of each node, as seen from here or else as agreed, by its id."""
    observed = fold.nodes_state(now_ms)
    agreed = {node.id: node for node in table.nodes}
    seen = {node.id: node for node in observed.nodes} if observed is not None else {}
    known: dict[str, NodeObservation | TableNode] = {**agreed, **seen}
    return {number: _standing(node, agreed.get(number)) for number, node in known.items()}


def id_of(node: str, nodes: Iterable[NodeShape]) -> str:
    """The id of the node that is meant: by its id, or by its name where only one node has it."""
    named = [each.id for each in nodes if each.name == node]
    is_id = any(each.id == node for each in nodes)
    return named[0] if len(named) == 1 and not is_id else node


def quorum(fold: Fold, now_ms: int) -> QuorumShape | None:
    """`/v1/quorum`"""
    age, state = age_ms(fold, Topic.STATE_QUORUM, now_ms), data_of(fold, Topic.STATE_QUORUM)
    if age is None:
        return None
    return QuorumShape(
        name=state.name,
        role=state.role,
        term=state.term,
        leader=state.leader,
        epoch=state.epoch,
        quorum=state.quorum,
        lease_remaining_ms=max(0, state.lease_remaining_ms - age),
        lease_changes=state.lease_changes,
        vips=list(state.vips),
        members=[_member(member, state, age) for member in state.members],
        waiting_for=state.waiting_for,
        observed_ms=age,
        staged=_staged(state),
        rejected=state.rejected,
        is_member=state.is_member,
        applicants=[ApplicantShape(each.name, each.address) for each in state.applicants],
        listed=_listed(state),
        advice=_advice(len(state.members)),
    )


def _advice(voters: int) -> str:
    if voters % 2 or not voters:
        return ""
    return (
        f"{voters} vote, an even number: a majority is {voters // 2 + 1}, so no more may be lost"
        f" than of {voters - 1}; add one, or a witness"
    )


def _listed(state: QuorumState) -> str:
    """`staged on 3 of 3: lb-0, lb-1, lb-2; waits: lb-0:8081 leads`, or nothing."""
    known = {each.name or each.address: each.listed for each in state.members if each.listed}
    said = _staged_on(known, state.listed)
    return f"{said}; waits: {state.why_not_listed}" if said and state.why_not_listed else said


def _staged(state: QuorumState) -> str:
    """`staged on 1 of 3: lb-0`, or nothing."""
    known = {member.name: member.staged for member in state.members if member.staged}
    return _staged_on(known, state.agreed)


def _staged_on(known: dict[str, str], agreed: str) -> str:
    """`known`: by LB, the digest of what its file says; `agreed`: of what holds."""
    waiting = [name for name, digest in known.items() if digest != agreed]
    if not waiting or not agreed:
        return ""
    return f"staged on {len(waiting)} of {len(known)}: {', '.join(waiting)}"


@dataclass(frozen=True, slots=True)
class _Standing:
    """How a node stands at its services."""

    state: str
    reason: str
    """Why it takes no new flows; empty: it may."""
    apart: dict[str, tuple[str, str]] = field(default_factory=dict)
    """The same of those services that are not as the node is."""
    bans: dict[str, int] = field(default_factory=dict)
    """What is left of those services' own bans."""

    def at(self, service: str) -> tuple[str, str]:
        return self.apart.get(service, (self.state, self.reason))


class _Seats:
    """The dataplane's seats with their counters, by node and by service."""

    def __init__(self, fold: Fold, now_ms: int) -> None:
        dataplane = data_of(fold, Topic.STATE_DATAPLANE)
        counters = data_of(fold, Topic.STATE_COUNTERS)
        self._counted: dict[tuple[str, str], SeatCounters] = (
            {(seat.service, seat.node): seat for seat in counters.seats} if counters else {}
        )
        seats: tuple[SeatState, ...] = dataplane.seats if dataplane is not None else ()
        self._parts = _parts(fold, now_ms)
        self.slots = sum(seat.slots for seat in seats)
        self.by_node: dict[str, list[SeatState]] = {}
        self.by_service: dict[str, list[SeatState]] = {}
        for seat in seats:
            self.by_node.setdefault(seat.node, []).append(seat)
            self.by_service.setdefault(seat.service, []).append(seat)

    def share(self, node: str) -> float:
        slots = sum(seat.slots for seat in self.by_node.get(node, ()))
        return slots / self.slots if self.slots else 0.0

    def flows(self, node: str) -> int:
        held = self.by_node.get(node, ())
        counted = [self._counted.get((seat.service, node)) for seat in held]
        return sum(each.flows_now for each in counted if each is not None)

    def shape(self, seat: SeatState, port: int | None, standing: _Standing) -> SeatShape:
        counted = self._counted.get((seat.service, seat.node))
        state, reason = standing.at(seat.service)
        percent, slow_start_ms = self._parts.get((seat.node, seat.service), (100, 0))
        return SeatShape(
            service=seat.service,
            node=seat.node,
            state=state,
            reason=seat.reason or reason or ("" if percent else IDLE_BACKUP),
            port=port,
            slots=seat.slots,
            share=seat.share,
            resolved=seat.resolved,
            packets_in=counted.packets_in if counted else 0,
            bytes_in=counted.bytes_in if counted else 0,
            packets_out=counted.packets_out if counted else 0,
            bytes_out=counted.bytes_out if counted else 0,
            flows=counted.flows if counted else 0,
            flows_now=counted.flows_now if counted else 0,
            percent=percent,
            slow_start_ms=slow_start_ms,
            banned_for_ms=standing.bans.get(seat.service, 0),
        )

    def of_node(
        self, node: NodeObservation | TableNode, agreed: TableNode | None
    ) -> list[SeatShape]:
        ports = {service.name: service.port for service in node.services}
        standing = _standing(node, agreed)
        seats = list(self.by_node.get(node.id, ()))
        seated = {seat.service for seat in seats}
        # What never was well there has no seat.
        seats += [
            SeatState(0, name, node.id, 0, 0.0, False)
            for name in standing.apart
            if name not in seated
        ]
        return [self.shape(seat, ports.get(seat.service), standing) for seat in seats]


def _parts(fold: Fold, now_ms: int) -> dict[tuple[str, str], tuple[int, int]]:
    """By node and service, the part that it has of its weight, and what is left of its start."""
    received = fold.latest.get(Topic.STATE_TABLE)
    if received is None:
        return {}
    passed_ms = received.content_age_ms(now_ms)
    return {
        (part.node, part.service): (part.percent, max(0, part.remaining_ms - passed_ms))
        for part in received.envelope.data.table.parts
    }


def _standing(node: NodeObservation | TableNode, agreed: TableNode | None) -> _Standing:
    there = agreed.apart if agreed is not None else ()
    apart = {each.service: (str(node.state), _agreed_on(each.state)) for each in there}
    apart |= {each.service: (each.state, each.reason or ONLY_AGREED) for each in node.apart}
    bans = {each.service: each.banned_for_ms for each in node.apart}
    if node.state not in SERVING:
        return _Standing(node.state, getattr(node, "reason", ONLY_AGREED), apart, bans)
    if agreed is not None and agreed.state not in SERVING:
        return _Standing(node.state, _agreed_on(agreed.state), apart, bans)
    weight = agreed.weight if agreed is not None else node.weight
    return _Standing(node.state, "" if weight else "its weight is 0", apart, bans)


def _agreed_on(state: str) -> str:
    return f"the load balancers have agreed that it is {state}"


def _seen(node: NodeObservation, agreed: TableNode | None, seats: _Seats) -> NodeShape:
    return NodeShape(
        id=node.id,
        name=node.name,
        address=node.address,
        state=node.state,
        agreed_state=agreed.state if agreed is not None else None,
        reason=node.reason,
        weight=agreed.weight if agreed is not None else node.weight,
        share=seats.share(node.id),
        fails=node.fails,
        banned_for_ms=node.banned_for_ms,
        observed_ms=node.observed_ms,
        checks_passed=node.checks_passed,
        checks_required=node.checks_required,
        load=node.load,
        flows=seats.flows(node.id),
        order=None,
        orders=[],
        backup=node.backup,
        services=seats.of_node(node, agreed),
    )


def _only_agreed(node: TableNode, seats: _Seats, age: int) -> NodeShape:
    return NodeShape(
        id=node.id,
        name=node.name,
        address=node.address,
        state=node.state,
        agreed_state=node.state,
        reason=ONLY_AGREED,
        weight=node.weight,
        share=seats.share(node.id),
        fails=0,
        banned_for_ms=0,
        observed_ms=age,
        checks_passed=0,
        checks_required=0,
        load=0.0,
        flows=seats.flows(node.id),
        order=None,
        orders=[],
        backup=node.backup,
        services=seats.of_node(node, node),
    )


def _service(
    service: TableService,
    local: Local,
    seats: _Seats,
    ports: dict[tuple[str, str], int],
    standings: dict[str, _Standing],
    age: int,
) -> ServiceShape:
    of_service = seats.by_service.get(service.name, [])
    return ServiceShape(
        name=service.name,
        address=service.address or local.public_address,
        port=service.port,
        ports=service.ports,
        protocol=service.protocol,
        mode=service.mode,
        node_port=service.node_port,
        node_ports=service.ports if service.keeps_port else 1,
        affinity=service.affinity,
        affinity_group=service.affinity_group,
        nodes_up=sum(1 for seat in of_service if seat.slots),
        nodes=[
            seats.shape(
                seat,
                ports.get((seat.node, service.name)),
                standings.get(seat.node, _Standing("", "forgotten by now")),
            )
            for seat in of_service
        ],
        observed_ms=age,
    )


def _member(member: QuorumMember, state: QuorumState, age: int) -> MemberShape:
    return MemberShape(
        name=member.name,
        address=member.address,
        alive=member.alive,
        term=member.term,
        epoch=member.epoch,
        heard_ms=member.heard_ms + age,
        why_not=list(member.why_not),
        staged=member.staged not in ("", state.agreed) and bool(state.agreed),
        trouble=member.trouble,
        late=member.late,
        listed=member.listed not in ("", state.listed) and bool(state.listed),
    )


def _dataplane(fold: Fold, now_ms: int) -> DataplaneShape | None:
    age, state = age_ms(fold, Topic.STATE_DATAPLANE, now_ms), data_of(fold, Topic.STATE_DATAPLANE)
    if age is None:
        return None
    counters = data_of(fold, Topic.STATE_COUNTERS)
    return DataplaneShape(
        ready=state.ready,
        epoch=state.epoch,
        hooks=[
            HookShape(hook.program, hook.interface, hook.attached, hook.flavour, hook.detail)
            for hook in state.hooks
        ],
        outputs=[
            OutputShape(output.interface, output.carries, output.hook, output.reason)
            for output in state.outputs
        ],
        conntrack_established=counters.conntrack_established if counters else None,
        conntrack_half_open=counters.conntrack_half_open if counters else None,
        conntrack_capacity=counters.conntrack_capacity if counters else None,
        claims=[
            ClaimShape(claim.address, claim.side, claim.held, claim.trouble)
            for claim in state.claims
        ],
        synced=state.synced,
        replicas=[
            ReplicaShape(peer.address, peer.name, peer.standing, peer.reason, peer.follows)
            for peer in state.replicas
        ],
        replication_lag_ms=(
            None
            if counters is None or counters.replication_lag_seconds is None
            else round(1_000 * counters.replication_lag_seconds)
        ),
        observed_ms=age,
    )


def _process(fold: Fold, local: Local, name: str, now_ms: int) -> ProcessShape:
    if name == topics.API:
        boot = fold.log.boot
        return ProcessShape(0, True, boot, local.pid, local.version, local.waiting_for)
    known = fold.processes.get(name)
    if known is None:
        return ProcessShape(None, False, None, None, None, "")
    age = max(0, now_ms - known.heard_ms)
    return ProcessShape(
        age_ms=age,
        alive=age <= STALE_MS,
        boot=known.boot,
        pid=known.pid or None,
        version=known.version or None,
        waiting_for=_waiting_for(fold, name),
    )


def _waiting_for(fold: Fold, process: str) -> str:
    speaks_by = {
        topics.DATAPLANE: Topic.STATE_DATAPLANE,
        topics.HEALTH: Topic.STATE_VIEW,
        topics.QUORUM: Topic.STATE_QUORUM,
    }
    state = data_of(fold, speaks_by[process])
    return state.waiting_for if state is not None else ""


def _oldest(ages: Iterable[int | None]) -> int | None:
    known = list(ages)
    return None if None in known else max(age for age in known if age is not None)
