"""A registry on a clock of its own, and agents that speak to it over nothing."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from bus.events import NodeEvent
from bus.node_protocol import (
    NODE_VERSION,
    Heartbeat,
    Hello,
    NodeMessage,
    OfferedService,
    Sick,
    encode_node,
)
from bus.states import (
    Ban,
    NodeObservation,
    NodeService,
    NodeTable,
    NodeView,
    TableNode,
    TableService,
    states_apart,
)
from bus.topics import Topic
from bus.words import (
    Affinity,
    Mode,
    NodeState,
    Protocol,
    ServingStatus,
)
from bus.words import Encapsulation as Encap
from services.api.observed import nodes_state
from services.health.policy import Policy
from services.health.registry import Registry

TIMEOUT_MS = 1000
INTERVAL_MS = 500
PROBATION_MS = 50
START_MS = 10_000_000
SERVING = ServingStatus.SERVING
NOT_SERVING = ServingStatus.NOT_SERVING
SHUTTING_DOWN = ServingStatus.SHUTTING_DOWN


def offered(name: str = "default", port: int = 8080) -> OfferedService:
    return OfferedService(name, "10.80.0.10", port, Protocol.TCP, Mode.L4, port, Encap.IPIP)


POLICY = Policy(
    lb="lb-0",
    checks_before_routing=3,
    checks_timeout_ms=TIMEOUT_MS,
    black_list_after_fails=3,
    black_list_expiry_ms=60_000,
    services=(offered(),),
)
_connections = itertools.count(1)


@dataclass
class Rig:
    """The registry, its clock, and everything that ever came out of it."""

    policy: Policy = POLICY
    now_ms: int = START_MS
    events: list[tuple[Topic, NodeEvent]] = field(default_factory=list)
    sent: list[tuple[bytes, NodeMessage]] = field(default_factory=list)
    decided: tuple[NodeView, ...] = ()
    view_changes: int = 0
    keeps: int = 0

    def __post_init__(self) -> None:
        self.registry = Registry(self.policy, self.now_ms)

    def collect(self) -> None:
        output = self.registry.take_output()
        decided = tuple(
            replace(
                node,
                banned_for_ms=0,
                apart=tuple(replace(each, banned_for_ms=0) for each in node.apart),
            )
            for node in self.registry.view(self.now_ms).nodes
        )
        # A reader is told of nothing else: what changes without that word is never seen.
        assert output.view_changed or decided == self.decided
        self.decided = decided
        self.events += output.events
        self.sent += output.messages
        self.view_changes += output.view_changed
        self.keeps += output.keep

    def restart(self) -> None:
        """The process dies; the next one finds the state file."""
        kept = self.registry.kept(self.now_ms)
        self.registry = Registry(self.policy, self.now_ms)
        self.registry.adopt(kept, 0, self.now_ms)
        self.collect()

    def raw(self, connection: bytes, frames: list[bytes], address: str = "10.81.0.99") -> None:
        self.registry.receive(connection, address, frames, self.now_ms)
        self.collect()

    def configure(self, **changes: object) -> None:
        self.policy = replace(self.policy, **changes)  # type: ignore[arg-type]
        self.registry.configure(self.policy, self.now_ms)
        self.collect()

    def tick(self) -> None:
        self.registry.tick(self.now_ms)
        self.collect()

    def wait(self, duration_ms: int, beating: Iterable[Agent] = ()) -> None:
        """Let time pass, with the agents beating each interval and every deadline looked at."""
        end_ms = self.now_ms + duration_ms
        agents = list(beating)
        next_beat_ms = self.now_ms + INTERVAL_MS
        while self.now_ms < end_ms:
            due_ms = self.registry.next_due_ms()
            moments = [end_ms, next_beat_ms if agents else end_ms, due_ms or end_ms]
            self.now_ms = max(self.now_ms + 1, min(moments))
            if agents and self.now_ms >= next_beat_ms:
                next_beat_ms += INTERVAL_MS
                for agent in agents:
                    agent.beat()
            self.tick()

    def observe(self, node_id: str) -> NodeObservation:
        checks = self.registry.checks(self.now_ms)
        view = self.registry.view(self.now_ms)
        self.collect()
        nodes = nodes_state(view, checks, 0, 0).nodes
        return next(node for node in nodes if node.id == node_id)

    def knows(self, node_id: str) -> bool:
        return any(node.id == node_id for node in self.registry.view(self.now_ms).nodes)

    def topics(self, node_id: str) -> list[Topic]:
        return [topic for topic, event in self.events if event.id == node_id]


@dataclass
class Agent:
    """One agent; its clock runs at another offset than the registry's."""

    rig: Rig
    name: str = "node-0"
    address: str = "10.81.0.20"
    services: tuple[NodeService, ...] = ()
    boot: str = "boot-1"
    clock_offset_ms: int = 77_777
    seq: int = 0
    connection: bytes = b""

    @property
    def id(self) -> str:
        return f"{self.name}@{self.address}"

    @property
    def state(self) -> NodeState:
        return self.rig.observe(self.id).state

    def connect(self) -> None:
        self.connection = b"\0%d" % next(_connections)

    def hello(self, version: int = NODE_VERSION, weight: int = 1, *, backup: bool = False) -> None:
        if not self.connection:
            self.connect()
        message = Hello(version, self.name, self.boot, weight, self.services, backup)
        self.rig.raw(self.connection, encode_node(message), self.address)

    def make_beat(
        self,
        status: ServingStatus = SERVING,
        reason: str = "",
        load: float = 0.5,
        sick: tuple[Sick, ...] | None = None,
    ) -> list[bytes]:
        """A beat stamped now, to be delivered now or later."""
        self.seq += 1
        sent_ms = self.rig.now_ms + self.clock_offset_ms
        return encode_node(Heartbeat(self.seq, sent_ms, status, load, reason, None, sick))

    def deliver(self, frames: list[bytes]) -> None:
        self.rig.raw(self.connection, frames, self.address)

    def beat(self, status: ServingStatus = SERVING, reason: str = "") -> None:
        self.deliver(self.make_beat(status, reason))

    def say_sick(self, *services: str, reason: str = "port 2: connection refused") -> None:
        """A beat that says of these services, and no others, that they are not served."""
        sick = (Sick(reason, services),) if services else ()
        self.deliver(self.make_beat(NOT_SERVING if services else SERVING, sick=sick))

    def state_at(self, service: str) -> NodeState:
        node = self.rig.observe(self.id)
        return states_apart(node).get(service, node.state)

    def restart(self) -> None:
        """The agent's process starts anew: a new boot, clock and connection."""
        self.boot += "'"
        self.clock_offset_ms += 1_000_000
        self.seq = 0
        self.connect()
        self.hello()

    def bring_up(self) -> Agent:
        self.hello()
        while self.state is not NodeState.UP:
            self.rig.now_ms += PROBATION_MS
            self.beat()
        return self

    def fail_and_return(self) -> None:
        """One failure of its own, at another time than others', and back up if not banned."""
        self.rig.now_ms += TIMEOUT_MS
        self.beat(NOT_SERVING)
        self.rig.now_ms += PROBATION_MS
        if self.state is NodeState.DOWN:
            for _ in range(self.rig.policy.checks_before_routing):
                self.rig.now_ms += PROBATION_MS
                self.beat()

    def messages(self) -> list[NodeMessage]:
        return [message for connection, message in self.rig.sent if connection == self.connection]


def brought_up(rig: Rig, count: int) -> list[Agent]:
    return [Agent(rig, f"node-{i}", f"10.81.0.{20 + i}").bring_up() for i in range(count)]


def table(*nodes: TableNode, bans: tuple[Ban, ...] = ()) -> NodeTable:
    """What the LBs have agreed on."""
    service = TableService("default", None, 8080, Protocol.TCP, Mode.L4, 8080, Affinity.FLOW)
    return NodeTable(1, 7, 42, (service,), nodes, bans, (), ())


def table_node(name: str, state: NodeState = NodeState.UP) -> TableNode:
    services = (NodeService("default", 8080),)
    return TableNode(f"{name}@10.81.0.20", name, "10.81.0.20", state, 1, services)
