"""The health process turn by turn, on a clock of the test's own; its sockets and files are real."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus.node_protocol import Heartbeat, Hello, encode_node
from bus.socket import monotonic_ms
from bus.states import NodeView
from bus.words import NodeState, ServingStatus
from conf import Paths, load_lb
from services import process
from services.health import main
from tests.health.processes import Site, site

MOST_TURNS = 2_000
TURN_MS = 10
"""What passes between two turns of one that waits for something."""


class Turns:
    """One LB's health process, and one node whose agent says what the test wants."""

    def __init__(self, at: Site, patch: pytest.MonkeyPatch, ahead_ms: int = 0) -> None:
        """`ahead_ms`: of the clock by which others on this machine date what they say."""
        self.at, self.now_ms = at, monotonic_ms() + ahead_ms
        for module in (main, process):
            patch.setattr(module, "monotonic_ms", lambda: self.now_ms)
        directory = at.directory
        self._paths = Paths(
            at.lb_file, at.node_file, at.run_dir, directory / "state", directory / "bpf"
        )
        self._agent = at.context.socket(zmq.DEALER)
        self._agent.setsockopt(zmq.LINGER, 0)
        self._agent.connect(f"tcp://127.0.0.1:{at.node_port}")
        self._beats = 0
        self.start()

    def start(self) -> None:
        self.process = main.HealthProcess(self._paths, load_lb(self.at.lb_file))

    def end(self) -> None:
        """The process ends as it does by SIGTERM."""
        self.process._stop()

    def close(self) -> None:
        self._agent.close()
        self.end()

    # ------------------------------------------------------------------ turns

    def turn(self) -> None:
        self.process._step(self.now_ms)

    def pass_by(self, duration_ms: int) -> None:
        """Wait as the loop does, and come back in time."""
        self.process._loop.wait(0, self.now_ms + duration_ms)
        self.now_ms += duration_ms

    def until(self, condition: Callable[[], Any]) -> None:
        """Turn after turn, as if little had come between them."""
        for _ in range(MOST_TURNS):
            self.turn()
            if condition():
                return
            self.process._loop.poller.poll(TURN_MS)
            self.pass_by(TURN_MS)
        raise AssertionError("it does not come about")

    # ------------------------------------------------------------------ the node

    def say(self, status: ServingStatus) -> None:
        """A beat that is sent now, and read."""
        self._beats += 1
        beat = Heartbeat(self._beats, self.now_ms, status, 0.0, "")
        self._agent.send_multipart(encode_node(beat))
        self.until(lambda: self._heard() == self._beats)

    def _heard(self) -> int:
        checks = self.process._registry.checks(self.now_ms)
        return sum(checks.good_total) + sum(checks.bad_total)

    def bring_up(self) -> None:
        self._agent.send_multipart(encode_node(Hello(1, "node-0", "boot", 1, ())))
        self.until(self.known)
        while self.node().state is not NodeState.UP:
            self.pass_by(100)
            self.say(ServingStatus.SERVING)

    def known(self) -> bool:
        return bool(self.process._registry.view(self.now_ms).nodes)

    def node(self) -> NodeView:
        """The only one, as the process sees it now."""
        (node,) = self.process._registry.view(self.now_ms).nodes
        return node

    # ------------------------------------------------------------------ its file

    @property
    def path(self) -> Path:
        return self._paths.state_dir / "health.json"

    def kept(self) -> dict[str, Any]:
        """What the file says of the node."""
        (node,) = json.loads(self.path.read_text())["nodes"]
        found: dict[str, Any] = node
        return found


@contextlib.contextmanager
def turns(patch: pytest.MonkeyPatch, ahead_ms: int = 0, **options: Any) -> Iterator[Turns]:
    with site(**options) as at:
        made = Turns(at, patch, ahead_ms)
        try:
            yield made
        finally:
            made.close()
