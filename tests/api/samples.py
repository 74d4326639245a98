"""Messages as the three processes would send them, short to write."""

from __future__ import annotations

from typing import Any

from bus import topology
from bus.messages import (
    Ban,
    CommittedTable,
    Counters,
    DataplaneState,
    Envelope,
    HookState,
    LocalView,
    Mode,
    NodeEvent,
    NodeObservation,
    NodeService,
    NodeState,
    NodeTable,
    ProcessEvent,
    Protocol,
    QuorumMember,
    QuorumState,
    Role,
    SeatCounters,
    SeatState,
    TableNode,
    TableService,
    Topic,
    VipHolder,
)

SERVICES = (NodeService("default", 8080),)


def envelope(source: str, topic: Topic, data: Any, *, boot: str = "b1", seq: int = 1) -> Envelope:
    return Envelope(topic, source, "lb-0", boot, seq, time_ms=1000 + seq, data=data)


def node_id(name: str) -> str:
    return f"{name}@10.81.0.20"


def node(name: str = "node-0", state: NodeState = NodeState.UP, **changed: Any) -> NodeObservation:
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
        "observed_ms": 100,
        "checks_passed": 3,
        "checks_required": 3,
        "checks_good_total": 10,
        "checks_bad_total": 1,
        "load": 0.5,
    }
    return NodeObservation(**(values | changed))


def view(*nodes: NodeObservation, version: int = 1, **rejected: int) -> LocalView:
    return LocalView(version=version, nodes=nodes, rejected=rejected)


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


def dataplane(*seats: SeatState, ready: bool = True, waiting_for: str = "") -> DataplaneState:
    return DataplaneState(
        version=1,
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
    return Counters(1, seats, verdicts, 5, 2, 262_144, 4, 1000, 0.5)


def down(name: str = "node-0", reason: str = "connection refused") -> NodeEvent:
    return NodeEvent(node_id(name), name, "10.81.0.20", NodeState.DOWN, NodeState.UP, reason, 1, 0)


def started(process: str, pid: int = 4242) -> ProcessEvent:
    return ProcessEvent(process, pid, "0.1.0", "")


def everything() -> list[Envelope]:
    """One message of each kind of state, and each process's start."""
    health, agreed, forwards = topology.HEALTH, topology.QUORUM, topology.DATAPLANE
    return [
        *(
            envelope(source, Topic.PROCESS_STARTED, started(source))
            for source in (health, agreed, forwards)
        ),
        envelope(health, Topic.STATE_VIEW, view(node())),
        envelope(agreed, Topic.STATE_TABLE, table("node-0")),
        envelope(agreed, Topic.STATE_QUORUM, quorum()),
        envelope(forwards, Topic.STATE_DATAPLANE, dataplane(seat("node-0", 65537, 65537))),
        envelope(forwards, Topic.STATE_COUNTERS, counters()),
    ]
