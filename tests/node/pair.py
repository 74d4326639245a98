"""An agent's core and an LB's registry on one virtual clock, with nothing but a wire between."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace

from bus.events import NodeEvent
from bus.node_protocol import (
    Refused,
    encode_node,
)
from bus.states import NodeView
from bus.topics import Topic
from bus.words import NodeState
from services.health.policy import Policy
from services.health.registry import Registry
from services.node.core import Agent, AgentConfig, CheckPlan
from tests.health.rig import POLICY

STEP_MS = 10
LB = "10.0.0.1:7070"
ADDRESS = "10.0.0.9"
PLAN = CheckPlan("default", 8080)
_connections = itertools.count(1)


@dataclass
class Pair:
    """`lbs` are the entries of the agent's file; all of them lead to the one registry."""

    lbs: tuple[str, ...] = (LB,)
    policy: Policy = POLICY
    now_ms: int = 1_000
    boot: int = 0
    names: dict[str, bytes] = field(default_factory=dict)
    events: list[tuple[int, Topic, NodeEvent]] = field(default_factory=list)
    refusals: list[Refused] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.registry = Registry(self.policy, self.now_ms)
        self.start_agent()

    @property
    def config(self) -> AgentConfig:
        return AgentConfig("n1", 1, self.lbs, (PLAN,))

    def start_agent(self) -> None:
        """The agent's process starts (anew), and its server is found well."""
        self.boot += 1
        self.agent = Agent(self.config, f"boot-{self.boot}", self.now_ms)
        for lb in self.lbs:
            self.connect(lb)
        self.agent.checked(PLAN, True, "accepts", self.now_ms)

    def connect(self, lb: str) -> None:
        """A new connection, as after every loss of the one before."""
        self.names[lb] = b"\0%d" % next(_connections)
        self.agent.connected(lb, self.now_ms)

    def configure(self, *lbs: str) -> None:
        """The agent reads a file with these LBs; connections follow."""
        gone, new = set(self.lbs) - set(lbs), set(lbs) - set(self.lbs)
        self.lbs = lbs
        self.agent.configure(self.config, self.now_ms)
        for lb in gone:
            del self.names[lb]
        for lb in new:
            self.connect(lb)

    def deliver(self) -> None:
        for send in self.agent.take_output().messages:
            if send.lb in self.names:
                frames = encode_node(send.message)
                self.registry.receive(self.names[send.lb], ADDRESS, frames, self.now_ms)
        output = self.registry.take_output()
        self.events += [(self.now_ms, topic, event) for topic, event in output.events]
        ends = {connection: lb for lb, connection in self.names.items()}
        for connection, message in output.messages:
            if isinstance(message, Refused):
                self.refusals.append(message)
            if connection in ends:
                self.agent.receive(ends[connection], encode_node(message), self.now_ms)

    def run(self, duration_ms: int, *, agent_lives: bool = True) -> None:
        end_ms = self.now_ms + duration_ms
        while self.now_ms < end_ms:
            self.now_ms += STEP_MS
            if agent_lives:
                self.agent.tick(self.now_ms)
                self.deliver()
            self.registry.tick(self.now_ms)
            self.deliver()

    def bring_up(self) -> Pair:
        self.run(1_000)
        assert self.node.state is NodeState.UP
        return self

    @property
    def node(self) -> NodeView:
        return self.registry.view(self.now_ms).nodes[0]

    @property
    def rejected(self) -> dict[str, int]:
        return self.registry.checks(self.now_ms).rejected

    def topics(self) -> list[Topic]:
        return [topic for _, topic, _ in self.events]


def with_policy(**changes: object) -> Pair:
    return Pair(policy=replace(POLICY, **changes))  # type: ignore[arg-type]
