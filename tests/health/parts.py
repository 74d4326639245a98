"""The registry's parts by themselves, and nodes that nobody has said hello for."""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.states import NodeService
from bus.words import NodeState
from services.health.deadlines import Deadlines
from services.health.headcount import Headcount
from services.health.judge import Judge
from services.health.node import Node
from services.health.outbox import Outbox
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import Standing
from tests.health.rig import POLICY, START_MS

WEB, DNS = NodeService("web", 80), NodeService("dns", 53)


def make_node(
    name: str = "n0",
    state: NodeState = NodeState.UP,
    *services: NodeService,
    address: str = "10.81.0.20",
    apart: dict[str, NodeState] | None = None,
) -> Node:
    """A node that was heard at `START_MS`, and has always been in that state."""
    return Node(
        id=f"{name}@{address}",
        name=name,
        address=address,
        weight=1,
        named=services,
        services=services or (WEB,),
        state=state,
        reason="",
        was_up=True,
        last_seen_ms=START_MS,
        fading_from_ms=START_MS,
        apart={name: Standing(each, "", START_MS) for name, each in (apart or {}).items()},
    )


@dataclass
class Parts:
    """Those that judge, without door, probe and silence."""

    policy: Policy = POLICY
    answered: list[str] = field(default_factory=list)
    """Whose agents were told where their nodes stand."""

    def __post_init__(self) -> None:
        self.outbox = Outbox()
        self.roster = Roster()
        self.headcount = Headcount(self.roster)
        self.deadlines = Deadlines(self.policy, self.roster, START_MS)
        self.judge = Judge(
            self.policy,
            self.roster,
            self.headcount,
            self.deadlines,
            self.outbox,
            lambda node, now_ms: self.answered.append(node.id),
        )

    def add(self, *nodes: Node) -> None:
        for node in nodes:
            self.roster.add(node)
            self.deadlines.watch(node)
        self.headcount.changed()
