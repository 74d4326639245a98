"""The topics: who publishes what, and where: the whole wiring of one LB on one page. Pure.

    health ──view──► quorum ──table──► dataplane
       └──view (local masking)───────────►┘
    all three ──states, events──► api ──► the public stream; `state.checks.` is for the API alone

There is no broker: one would be one more thing whose crash matters. Each service binds one
publisher, `<run>/bus/<service>.ipc`, and one command socket, `<run>/bus/<service>.cmd.ipc`; the
others connect to those they need, in any order of starting.
"""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import Any

from bus.events import (
    ConfigEvent,
    DataplaneEvent,
    FlowsEvent,
    MemberEvent,
    NodeEvent,
    OrderEvent,
    ProcessEvent,
    QuorumEvent,
    TableEvent,
    VipEvent,
)
from bus.states import (
    CommittedTable,
    Counters,
    DataplaneState,
    LocalChecks,
    LocalView,
    NodesState,
    QuorumState,
)


class Topic(StrEnum):
    """Every topic of the bus. Each ends in a dot, so that a prefix matches whole words only."""

    STATE_VIEW = "state.view."
    STATE_CHECKS = "state.checks."
    STATE_TABLE = "state.table."
    STATE_QUORUM = "state.quorum."
    STATE_DATAPLANE = "state.dataplane."
    STATE_COUNTERS = "state.counters."
    STATE_NODES = "state.nodes."

    NODE_JOINED = "node.joined."
    NODE_UP = "node.up."
    NODE_DOWN = "node.down."
    NODE_DRAINING = "node.draining."
    NODE_SUSPECT = "node.suspect."
    NODE_BANNED = "node.banned."
    NODE_PARDONED = "node.pardoned."
    ORDER_GIVEN = "order.given."
    VIP_ACQUIRED = "vip.acquired."
    VIP_LOST = "vip.lost."
    VIP_CONTESTED = "vip.contested."
    QUORUM_LEADER = "quorum.leader."
    QUORUM_LOST = "quorum.lost."
    QUORUM_REGAINED = "quorum.regained."
    QUORUM_PEER_REFUSED = "quorum.peer_refused."
    QUORUM_MEMBER_ADDED = "quorum.member_added."
    QUORUM_MEMBER_REMOVED = "quorum.member_removed."
    CONFIG_STAGED = "config.staged."
    CONFIG_COMMITTED = "config.committed."
    TABLE_COMMITTED = "table.committed."
    DATAPLANE_ATTACHED = "dataplane.attached."
    DATAPLANE_DEGRADED = "dataplane.degraded."
    FLOW_OPENED = "flow.opened."
    FLOW_CLOSED = "flow.closed."
    PROCESS_STARTED = "process.started."

    @property
    def is_state(self) -> bool:
        return self.value.startswith("state.")

    @property
    def is_bulky(self) -> bool:
        """Large, and many: a log keeps their numbers longer than it keeps their data."""
        return self.is_state or self.value.startswith("flow.")


PAYLOADS: dict[Topic, type[Any]] = {
    Topic.STATE_VIEW: LocalView,
    Topic.STATE_CHECKS: LocalChecks,
    Topic.STATE_TABLE: CommittedTable,
    Topic.STATE_QUORUM: QuorumState,
    Topic.STATE_DATAPLANE: DataplaneState,
    Topic.STATE_COUNTERS: Counters,
    Topic.STATE_NODES: NodesState,
    Topic.NODE_JOINED: NodeEvent,
    Topic.NODE_UP: NodeEvent,
    Topic.NODE_DOWN: NodeEvent,
    Topic.NODE_DRAINING: NodeEvent,
    Topic.NODE_SUSPECT: NodeEvent,
    Topic.NODE_BANNED: NodeEvent,
    Topic.NODE_PARDONED: NodeEvent,
    Topic.ORDER_GIVEN: OrderEvent,
    Topic.VIP_ACQUIRED: VipEvent,
    Topic.VIP_LOST: VipEvent,
    Topic.VIP_CONTESTED: VipEvent,
    Topic.QUORUM_LEADER: QuorumEvent,
    Topic.QUORUM_LOST: QuorumEvent,
    Topic.QUORUM_REGAINED: QuorumEvent,
    Topic.QUORUM_PEER_REFUSED: QuorumEvent,
    Topic.QUORUM_MEMBER_ADDED: MemberEvent,
    Topic.QUORUM_MEMBER_REMOVED: MemberEvent,
    Topic.CONFIG_STAGED: ConfigEvent,
    Topic.CONFIG_COMMITTED: ConfigEvent,
    Topic.TABLE_COMMITTED: TableEvent,
    Topic.DATAPLANE_ATTACHED: DataplaneEvent,
    Topic.DATAPLANE_DEGRADED: DataplaneEvent,
    Topic.FLOW_OPENED: FlowsEvent,
    Topic.FLOW_CLOSED: FlowsEvent,
    Topic.PROCESS_STARTED: ProcessEvent,
}
"""What travels under each topic."""

DATAPLANE = "dataplane"
HEALTH = "health"
QUORUM = "quorum"
API = "api"
SERVICES = (DATAPLANE, HEALTH, QUORUM, API)

PUBLISHES: dict[str, tuple[Topic, ...]] = {
    HEALTH: (
        Topic.STATE_VIEW,
        Topic.STATE_CHECKS,
        Topic.NODE_JOINED,
        Topic.NODE_UP,
        Topic.NODE_DOWN,
        Topic.NODE_DRAINING,
        Topic.NODE_SUSPECT,
        Topic.NODE_BANNED,
        Topic.NODE_PARDONED,
        Topic.PROCESS_STARTED,
    ),
    QUORUM: (
        Topic.STATE_TABLE,
        Topic.STATE_QUORUM,
        Topic.ORDER_GIVEN,
        Topic.VIP_ACQUIRED,
        Topic.VIP_LOST,
        Topic.QUORUM_LEADER,
        Topic.QUORUM_LOST,
        Topic.QUORUM_REGAINED,
        Topic.QUORUM_PEER_REFUSED,
        Topic.QUORUM_MEMBER_ADDED,
        Topic.QUORUM_MEMBER_REMOVED,
        Topic.CONFIG_STAGED,
        Topic.CONFIG_COMMITTED,
        Topic.TABLE_COMMITTED,
        Topic.PROCESS_STARTED,
    ),
    DATAPLANE: (
        Topic.STATE_DATAPLANE,
        Topic.STATE_COUNTERS,
        Topic.DATAPLANE_ATTACHED,
        Topic.DATAPLANE_DEGRADED,
        Topic.VIP_CONTESTED,
        Topic.FLOW_OPENED,
        Topic.FLOW_CLOSED,
        Topic.PROCESS_STARTED,
    ),
    API: (Topic.PROCESS_STARTED,),
}

SUBSCRIBES: dict[str, dict[str, tuple[Topic, ...]]] = {
    HEALTH: {QUORUM: (Topic.STATE_TABLE,)},
    QUORUM: {
        HEALTH: (Topic.STATE_VIEW,),
        DATAPLANE: (Topic.STATE_DATAPLANE, Topic.VIP_CONTESTED),
    },
    DATAPLANE: {
        QUORUM: (Topic.STATE_TABLE, Topic.STATE_QUORUM, Topic.VIP_ACQUIRED, Topic.VIP_LOST),
        HEALTH: (Topic.STATE_VIEW,),
    },
    API: {HEALTH: PUBLISHES[HEALTH], QUORUM: PUBLISHES[QUORUM], DATAPLANE: PUBLISHES[DATAPLANE]},
}


def publisher_path(run_dir: Path, service: str) -> Path:
    return run_dir / "bus" / f"{service}.ipc"


def command_path(run_dir: Path, service: str) -> Path:
    return run_dir / "bus" / f"{service}.cmd.ipc"


def events_path(run_dir: Path) -> Path:
    """The public endpoint: what every subscriber outside Gale connects to."""
    return run_dir / "events.ipc"
