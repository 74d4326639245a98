"""An LB that says what the test wants, to the agent's real loop in this process."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import zmq

from bus.node_protocol import (
    Heartbeat,
    Hello,
    NodeMessage,
    OfferedService,
    Welcome,
    decode_node,
    encode_node,
)
from bus.words import (
    Encapsulation,
    Mode,
    NodeState,
    Protocol,
)
from conf import Paths, load_node
from services.node.main import AgentProcess
from tests.health.processes import PATIENCE_S, Site, site


def offers(count: int, name: str = "default") -> tuple[OfferedService, ...]:
    ports = range(1, count + 1)
    return tuple(
        OfferedService(f"{name}-{p}", None, p, Protocol.TCP, Mode.L4, p, Encapsulation.IPIP)
        for p in ports
    )


def welcome(services: tuple[OfferedService, ...] = (), interval_ms: int = 50) -> Welcome:
    return Welcome("lb-0", "node-0@127.0.0.1", 1_000, interval_ms, NodeState.UP, services)


class FakeLb:
    """The node port, and the loop of the agent that connects to it."""

    def __init__(self, at: Site) -> None:
        self.at = at
        at.serve()
        at.write_node_file(
            services=f"[[services]]\nname = 'default-1'\nport = {at.server_port}\n"
            "check = { interval = '50ms' }"
        )
        self.router = at.context.socket(zmq.ROUTER)
        self.router.setsockopt(zmq.LINGER, 0)
        self.endpoint = f"tcp://127.0.0.1:{at.node_port}"
        self.router.bind(self.endpoint)
        self.heard: list[tuple[bytes, NodeMessage]] = []
        directory = at.directory
        paths = Paths(at.lb_file, at.node_file, at.run_dir, directory, directory / "bpf")
        self.agent = AgentProcess(paths, load_node(at.node_file))

    @property
    def session(self) -> dict[str, object]:
        found: dict[str, object] = self.agent._core.status(0)["load_balancers"][0]
        return found

    def turn(self) -> None:
        """One turn of the agent's loop, and what it has said is read."""
        self.agent._step(dict(self.agent._poller.poll(5)))
        while self.router.poll(0):
            connection, *frames = self.router.recv_multipart()
            self.heard.append((connection, decode_node(frames)))

    def until(self, condition: Callable[[], object], what: str = "") -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, f"still not: {what}; {self.session}"
            self.turn()

    def answer(self, message: NodeMessage) -> None:
        """To whoever spoke last."""
        self.router.send_multipart([self.heard[-1][0], *encode_node(message)])

    def hear(self, kind: type[NodeMessage]) -> NodeMessage:
        """The next message of that kind, from now on."""
        self.heard.clear()
        self.until(lambda: self.heard and isinstance(self.heard[-1][1], kind), kind.__name__)
        return self.heard[-1][1]

    def admit(self) -> Heartbeat:
        """Welcome the agent; returns its first beat."""
        self.hear(Hello)
        self.answer(welcome(offers(1)))
        beat = self.hear(Heartbeat)
        assert isinstance(beat, Heartbeat)
        return beat

    def close(self) -> None:
        self.agent.close()
        self.router.close()


@contextlib.contextmanager
def fake_lb() -> Iterator[FakeLb]:
    with site() as at:
        lb = FakeLb(at)
        try:
            yield lb
        finally:
            lb.close()
