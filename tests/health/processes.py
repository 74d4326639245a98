"""Real health and agent processes over loopback; each test has directories and ports of its own."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zmq

from bus import topics
from bus.commands import request
from bus.events import NodeEvent
from bus.socket import Subscriber
from bus.states import (
    LocalChecks,
    LocalView,
    NodeView,
)
from bus.topics import Topic
from bus.words import NodeState

PATIENCE_S = 30.0
TIMEOUT_MS = 2_000
"""Twice what the lab uses: on a busy machine an agent may get no time for a second."""
_ports = itertools.count(0)


def free_port() -> int:
    """A port below those the kernel hands out, and of this worker alone."""
    worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    while True:
        port = 20_000 + worker * 500 + next(_ports) % 500
        with contextlib.closing(socket.socket()) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def eventually(condition: Callable[[], Any], what: str = "") -> Any:
    """The condition's first true value; fails when it takes longer than anything should."""
    end_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < end_s:
        if value := condition():
            return value
        time.sleep(0.005)
    raise AssertionError(f"still not: {what or condition}")


@dataclass
class Site:
    """One LB's health process, agents, and a server for them to check."""

    directory: Path
    checks_timeout: str = f"{TIMEOUT_MS}ms"
    probe: str = "none"
    min_healthy: str = "0%"
    """Most agents of these tests are about no server, and alone."""
    health_options: str = ""
    interface: str = "lo"
    node_port: int = field(default_factory=free_port)
    server_port: int = field(default_factory=free_port)
    api_port: int = field(default_factory=free_port)
    events: list[tuple[Topic, NodeEvent]] = field(default_factory=list)
    view: LocalView | None = None
    checks: LocalChecks | None = None
    processes: list[subprocess.Popen[bytes]] = field(default_factory=list)
    server: socket.socket | None = None

    def __post_init__(self) -> None:
        self.context: zmq.Context[Any] = zmq.Context()
        self.lb_file = self.directory / "lb.toml"
        self.node_file = self.directory / "node.toml"
        self.run_dir = self.directory / "run"
        self.write_lb_file()
        self.write_node_file()
        wanted = {topics.HEALTH: topics.PUBLISHES[topics.HEALTH]}
        self.subscriber = Subscriber(self.context, self.run_dir, wanted)

    def write_lb_file(self, extra: str = "") -> None:
        self.lb_file.write_text(
            f"""
[local]
node_port = {self.node_port}
net_interface_private = "{self.interface}"
net_interface_public = "lo"
name = "lb-0"

[node_health]
checks_timeout = "{self.checks_timeout}"
probe = "{self.probe}"
min_healthy = "{self.min_healthy}"
{self.health_options}

[[services]]
name = "default"
port = {self.server_port}
{extra}
"""
        )

    def write_node_file(
        self, lb_port: int | None = None, host: str = 'ip = "127.0.0.1"', services: str = ""
    ) -> None:
        self.node_file.write_text(
            f"""
[load_balancer]
addresses = [{{ {host}, port = {lb_port or self.node_port} }}]

[node]
name = "node-0"
{services}

[local]
api_port = {self.api_port}
"""
        )

    # ------------------------------------------------------------- processes

    def start(self, module: str, config: Path) -> subprocess.Popen[bytes]:
        environment = {
            **os.environ,
            "GALE_CONFIG": str(config),
            "GALE_RUN_DIR": str(self.run_dir),
            "GALE_STATE_DIR": str(self.directory / "state"),
        }
        with (self.directory / "log").open("ab") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", module], env=environment, stdout=log, stderr=log
            )
        self.processes.append(process)
        return process

    def start_health(self) -> subprocess.Popen[bytes]:
        return self.start("services.health.main", self.lb_file)

    def start_agent(self) -> subprocess.Popen[bytes]:
        return self.start("services.node.main", self.node_file)

    def serve(self) -> None:
        """Open the server's port. Nobody needs to accept: the kernel does."""
        self.server = socket.socket()
        self.server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.server.bind(("127.0.0.1", self.server_port))
        self.server.listen(1024)

    def stop_serving(self) -> None:
        if self.server is not None:
            self.server.close()
            self.server = None

    def log(self) -> str:
        return (self.directory / "log").read_text()

    # ------------------------------------------------------------- what they say

    def read(self) -> None:
        for envelope in self.subscriber.receive():
            if isinstance(envelope.data, LocalView):
                self.view = envelope.data
            elif isinstance(envelope.data, LocalChecks):
                self.checks = envelope.data
            elif isinstance(envelope.data, NodeEvent):
                self.events.append((envelope.topic, envelope.data))

    def look(self) -> LocalView | None:
        self.read()
        return self.view

    def node(self) -> NodeView | None:
        view = self.look()
        return next(iter(view.nodes), None) if view is not None else None

    def good_checks(self) -> int:
        """Of the only node, as far as they have been told."""
        self.read()
        return sum(self.checks.good_total) if self.checks is not None else 0

    def rejected(self) -> dict[str, int]:
        self.read()
        return self.checks.rejected if self.checks is not None else {}

    def state(self) -> NodeState | None:
        node = self.node()
        return node.state if node is not None else None

    def topics(self) -> list[Topic]:
        self.read()
        return [topic for topic, _ in self.events]

    def wait_for(self, state: NodeState) -> NodeView:
        eventually(lambda: self.state() is state, f"{state}: {self.node()}\n{self.log()}")
        node = self.node()
        assert node is not None
        return node

    def bring_up(self) -> tuple[subprocess.Popen[bytes], subprocess.Popen[bytes]]:
        self.serve()
        health, agent = self.start_health(), self.start_agent()
        self.wait_for(NodeState.UP)
        return health, agent

    def command(self, verb: str) -> dict[str, Any]:
        path = topics.command_path(self.run_dir, topics.HEALTH)
        return request(self.context, path, verb, {}, 10_000)

    def agent_status(self, method: str = "GET", path: str = "/status") -> dict[str, Any] | None:
        url = f"http://127.0.0.1:{self.api_port}{path}"
        try:
            with urllib.request.urlopen(urllib.request.Request(url, method=method)) as answer:
                status: dict[str, Any] = json.load(answer)
                return status
        except (urllib.error.URLError, ConnectionError):
            return None

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)
                process.kill()
            process.wait()
        self.stop_serving()
        self.subscriber.close()
        self.context.term()


@contextlib.contextmanager
def site(**options: Any) -> Iterator[Site]:
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    made = Site(directory, **options)
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(directory)
