"""Short ways of saying what an LB sees, for the tests of this package."""

from __future__ import annotations

from bus.states import (
    LocalView,
    NodeService,
    NodeView,
    TableService,
)
from bus.words import (
    Mode,
    NodeState,
    Protocol,
)
from services.quorum.composition import QuorumConfig
from services.quorum.core import Quorum, Ready
from services.quorum.durable import HardState
from services.quorum.table import FloatingVip, TableConfig
from services.quorum.timing import Timing

WEB = TableService("default", None, 8080, Protocol.TCP, Mode.L4, 8080)
ECHO = TableService("echo", None, 9000, Protocol.TCP, Mode.L4, 9000)


def seen(
    node: str, state: NodeState, *, weight: int = 1, ban_ms: int = 0, fails: int = 0
) -> NodeView:
    """One node as one LB sees it; its id is its name at an address made of it."""
    return NodeView(
        id=f"{node}@10.81.0.20",
        name=node,
        address="10.81.0.20",
        state=state,
        reason="",
        weight=weight,
        services=(NodeService("default", 8080),),
        fails=fails,
        banned_for_ms=ban_ms,
    )


def view(*nodes: NodeView, version: int = 1) -> LocalView:
    return LocalView(version, nodes)


def table_config(*, vips: tuple[FloatingVip, ...] = ()) -> TableConfig:
    return TableConfig((WEB,), vips)


def quorum_config(
    *, name: str = "lb-0", table: TableConfig | None = None, checks_timeout_ms: int = 1000
) -> QuorumConfig:
    timing = Timing()
    return QuorumConfig(name, "", table or table_config(), timing, checks_timeout_ms)


def work_off(core: Quorum, now_ms: int, disk: list[HardState] | None = None) -> list[Ready]:
    """Do all that `take` says, in its order; what is persisted goes to the end of `disk`.

    Only what is more than a claim that is renewed is returned.
    """
    done: list[Ready] = []
    while (ready := core.take(now_ms)) is not None:
        if ready.persist is not None:
            if disk is not None:
                disk.append(ready.persist.state)
            core.stored(ready.persist.mark, now_ms)
        if ready.persist or ready.committed or ready.events or ready.answers:
            done.append(ready)
    return done
