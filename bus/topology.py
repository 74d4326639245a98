"""Who publishes what, and where: the whole wiring of one LB on one page.

    health ──view──► quorum ──table──► dataplane
       └──view (local masking)───────────►┘
    all three ──states, events──► api ──► the public stream

There is no broker: one would be one more thing whose crash matters. Each service binds one
publisher, `<run>/bus/<service>.ipc`, and one command socket, `<run>/bus/<service>.cmd.ipc`; the
others connect to those they need, in any order of starting.
"""

from __future__ import annotations

from pathlib import Path

from bus.messages import Topic

DATAPLANE = "dataplane"
HEALTH = "health"
QUORUM = "quorum"
API = "api"
SERVICES = (DATAPLANE, HEALTH, QUORUM, API)

PUBLISHES: dict[str, tuple[Topic, ...]] = {
    HEALTH: (
        Topic.STATE_VIEW,
        Topic.NODE_JOINED,
        Topic.NODE_UP,
        Topic.NODE_DOWN,
        Topic.NODE_DRAINING,
        Topic.NODE_BANNED,
        Topic.NODE_PARDONED,
        Topic.PROCESS_STARTED,
    ),
    QUORUM: (
        Topic.STATE_TABLE,
        Topic.STATE_QUORUM,
        Topic.VIP_ACQUIRED,
        Topic.VIP_LOST,
        Topic.QUORUM_LEADER,
        Topic.QUORUM_LOST,
        Topic.QUORUM_REGAINED,
        Topic.QUORUM_PEER_REFUSED,
        Topic.TABLE_COMMITTED,
        Topic.PROCESS_STARTED,
    ),
    DATAPLANE: (
        Topic.STATE_DATAPLANE,
        Topic.STATE_COUNTERS,
        Topic.DATAPLANE_ATTACHED,
        Topic.DATAPLANE_DEGRADED,
        Topic.PROCESS_STARTED,
    ),
    API: (Topic.PROCESS_STARTED,),
}

SUBSCRIBES: dict[str, dict[str, tuple[Topic, ...]]] = {
    HEALTH: {QUORUM: (Topic.STATE_TABLE,)},
    QUORUM: {HEALTH: (Topic.STATE_VIEW,)},
    DATAPLANE: {QUORUM: (Topic.STATE_TABLE,), HEALTH: (Topic.STATE_VIEW,)},
    API: {HEALTH: PUBLISHES[HEALTH], QUORUM: PUBLISHES[QUORUM], DATAPLANE: PUBLISHES[DATAPLANE]},
}


def publisher_path(run_dir: Path, service: str) -> Path:
    return run_dir / "bus" / f"{service}.ipc"


def command_path(run_dir: Path, service: str) -> Path:
    return run_dir / "bus" / f"{service}.cmd.ipc"


def events_path(run_dir: Path) -> Path:
    """The public endpoint: what every subscriber outside Gale connects to."""
    return run_dir / "events.ipc"
