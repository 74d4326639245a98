"""Messages as the three processes would send them, short to write."""

from __future__ import annotations

from dataclasses import astuple
from typing import Any

from bus import topics
from bus.codec import Envelope, Head
from bus.events import (
    NodeEvent,
    ProcessEvent,
)
from bus.states import (
    Ban,
    CommittedTable,
    Counters,
    DataplaneState,
    HookState,
    LocalChecks,
    LocalView,
    NodeChecks,
    NodeService,
    NodeTable,
    NodeView,
    QuorumMember,
    QuorumState,
    SeatColumns,
    SeatCounters,
    SeatState,
    TableNode,
    TableService,
    VipHolder,
)
from bus.topics import Topic
from bus.words import (
    Mode,
    NodeState,
    Protocol,
    Role,
)

SERVICES = (NodeService("default", 8080),)


def envelope(
    source: str, topic: Topic, data: Any, *, boot: str = "b1", seq: int = 1, made_ms: int = 0
) -> Envelope:
    version = data.version if topic.is_state else 0
    return Envelope(Head(topic, source, "lb-0", boot, seq, version, 1000 + seq, made_ms), data)


def node_id(name: str) -> str:
    return f"{name}@10.81.0.20"


def node(name: str = "node-0", state: NodeState = NodeState.UP, **changed: Any) -> NodeView:
    values: dict[str, Any] = {
        "id": node_id(name),
        "name": name,
        "address": "10.81.0.20",
        "state": state,
        "reason": "passed its checks",
        "weight": 1,
        "services": SERVICES,
        "fails": 0,
        "banned_for_ms": 0,
    }
    return NodeView(**(values | changed))


def view(*nodes: NodeView, version: int = 1) -> LocalView:
    return LocalView(version=version, nodes=nodes)


def checks(*nodes: NodeView, version: int = 1, **rejected: int) -> LocalChecks:
    """Each node has passed 3 of 3 checks and was seen 100 ms ago."""
    rows = [NodeChecks(node.id, 100, 3, 10, 1, 0.5) for node in nodes]
    columns = zip(*(astuple(row) for row in rows), strict=True) if rows else [()] * 6
    return LocalChecks(version, 3, rejected, *columns)


def table(*names: str, epoch: int = 1, bans: tuple[Ban, ...] = ()) -> CommittedTable:
    service = TableService("default", None, 8080, Protocol.TCP, Mode.L4, 8080)
    nodes = tuple(
        TableNode(node_id(name), name, "10.81.0.20", NodeState.UP, 1, SERVICES) for name in names
    )
    return CommittedTable(epoch, NodeTable(1, epoch, 2**63, (service,), nodes, bans, (), ()))


def quorum(**changed: Any) -> QuorumState:
    values: dict[str, Any] = {
        "version": 1,
        "name": "lb-0",
        "role": Role.LEADER,
        "term": 3,
        "leader": "lb-0",
        "epoch": 1,
        "quorum": True,
        "lease_remaining_ms": 200,
        "lease_changes": 1,
        "vips": (VipHolder("10.80.0.10", "lb-0"),),
        "members": (QuorumMember("lb-0", "10.81.0.10:8081", True, 3, 1, 0),),
        "waiting_for": "",
    }
    return QuorumState(**(values | changed))


def seat(name: str, slots: int, of: int, service: str = "default") -> SeatState:
    return SeatState(0, service, node_id(name), slots, slots / of, True)


def dataplane(
    *seats: SeatState, ready: bool = True, waiting_for: str = "", version: int = 1
) -> DataplaneState:
    return DataplaneState(
        version=version,
        ready=ready,
        epoch=1,
        mode=Mode.L4,
        hooks=(HookState("xdp_public", "pub0", True, "native", ""),),
        seats=seats,
        services=("default",),
        moved_slots_total=7,
        waiting_for=waiting_for,
    )


def counters(*seats: SeatCounters, **verdicts: int) -> Counters:
    return Counters(1, SeatColumns.of(seats), verdicts, 5, 2, 262_144, 4, 1000, 0.5)


def down(name: str = "node-0", reason: str = "connection refused") -> NodeEvent:
    return NodeEvent(node_id(name), name, "10.81.0.20", NodeState.DOWN, NodeState.UP, reason, 1, 0)


def started(process: str, pid: int = 4242) -> ProcessEvent:
    return ProcessEvent(process, pid, "0.1.0", "")


def everything() -> list[Envelope]:
    """One message of each kind of state, and each process's start."""
    health, agreed, forwards = topics.HEALTH, topics.QUORUM, topics.DATAPLANE
    return [
        *(
            envelope(source, Topic.PROCESS_STARTED, started(source))
            for source in (health, agreed, forwards)
        ),
        envelope(health, Topic.STATE_VIEW, view(node())),
        envelope(health, Topic.STATE_CHECKS, checks(node())),
        envelope(agreed, Topic.STATE_TABLE, table("node-0")),
        envelope(agreed, Topic.STATE_QUORUM, quorum()),
        envelope(forwards, Topic.STATE_DATAPLANE, dataplane(seat("node-0", 65537, 65537))),
        envelope(forwards, Topic.STATE_COUNTERS, counters()),
    ]
