"""The API process as it is run, over a bus whose other three processes are played by the test."""

from __future__ import annotations

import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import zmq

from bus import topics
from bus.commands import (
    CommandError,
    CommandServer,
)
from bus.socket import Publisher, monotonic_ms
from bus.topics import Topic
from tests.api.samples import dataplane, node, quorum, seat, started, table, view

TIMEOUT_S = 40
REPEAT_MS = 500
FLOW = {
    "protocol": "tcp",
    "client": "10.80.0.2:40000",
    "vip": "10.80.0.10:8080",
    "snat": "10.81.0.10:20000",
    "node": "10.81.0.20:8080",
    "state": "established",
    "idle_ms": 10,
    "age_ms": 1000,
    "service": "default",
}
TRACED = {
    "lb": "lb-0",
    "packet": "tcp 10.80.0.2:40000 > 10.80.0.10:8080 syn",
    "verdict": "forward",
    "reason": "l4_new_flow",
    "why": "a new flow: node chosen, port taken",
    "hook": "xdp_public",
    "service": "default",
    "mode": "l4",
    "node": "node-0@10.81.0.20",
    "state": None,
    "state_after": "opening",
    "steps": ["it is for the service default", "slot 17 names node-0"],
    "packet_out": None,
}
PLANNED = {
    "services": [
        {
            "service": "default",
            "mode": "l4",
            "change": "a node goes",
            "slots_moved": 21845,
            "share_moved": 0.3333,
            "flows": 12,
            "flows_reset": 4,
            "flows_moved": 0,
            "flows_left": 8,
        }
    ],
    "nodes": [{"node": "node-0@10.81.0.20", "slots": 21845, "slots_after": 0}],
    "refused": [],
    "slots_moved": 21845,
    "flows_hit": 4,
    "changes_nothing": False,
}

STATES: dict[str, Callable[[], tuple[Topic, Any]]] = {
    topics.HEALTH: lambda: (Topic.STATE_VIEW, view(node())),
    topics.QUORUM: lambda: (Topic.STATE_TABLE, table("node-0")),
    topics.DATAPLANE: lambda: (
        Topic.STATE_DATAPLANE,
        dataplane(seat("node-0", 65537, 65537)),
    ),
}


def wait_for(condition: Callable[[], Any], what: str) -> Any:
    """The first true value of a condition; a refused connection counts as false."""
    deadline = time.monotonic() + TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if value := condition():
                return value
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"timed out waiting for {what}")


class FakeProcess:
    """A publisher and a command socket, served by a thread that alone touches them."""

    def __init__(self, run_dir: Path, source: str) -> None:
        self._run_dir = run_dir
        self._source = source
        self._orders: queue.Queue[tuple[Topic, Any] | None] = queue.Queue()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def publish(self, topic: Topic, data: Any) -> None:
        self._orders.put((topic, data))

    def stop(self) -> None:
        self._orders.put(None)
        self._thread.join()

    def _run(self) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        path = topics.publisher_path(self._run_dir, self._source)
        publisher = Publisher(context, path, self._source, "lb-0")
        commands = CommandServer(context, topics.command_path(self._run_dir, self._source))
        publisher.publish(Topic.PROCESS_STARTED, started(self._source))
        publisher.publish(*STATES[self._source]())
        if self._source == topics.QUORUM:
            publisher.publish(Topic.STATE_QUORUM, quorum())
        repeat_ms = 0
        while True:
            publisher.serve()
            commands.serve(_answer)
            if monotonic_ms() >= repeat_ms:
                repeat_ms = monotonic_ms() + REPEAT_MS
                for topic in topics.PUBLISHES[self._source]:
                    if topic.is_state:
                        publisher.repeat(topic)
            try:
                order = self._orders.get(timeout=0.01)
            except queue.Empty:
                continue
            if order is None:
                break
            publisher.publish(*order)
        publisher.close()
        commands.close()
        context.term()


def _answer(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """What the process that is asked would say."""
    match verb:
        case "flows":
            if arguments["limit"] == 13:
                raise CommandError("limit: 13 brings bad luck")
            flows = [FLOW | {"node_id": arguments["node"]}][: arguments["limit"]]
            return {"flows": flows, "total": 1}
        case "trace":
            return TRACED
        case "plan":
            return PLANNED
        case "order":
            return {"agreed": True}
        case "handover":
            return {"leader": "lb-1"}
        case "recover":
            return {"members": 1}
        case "member":
            return {"agreed": True}
        case "commit":
            return {"agreed": "5a17"}
    raise CommandError(f"unknown command: {verb}")


class Gale:
    """One LB's bus with its API process."""

    def __init__(self, directory: Path) -> None:
        self.run_dir = directory / "run"
        self.config = directory / "lb.toml"
        self.port = free_port()
        self.process: subprocess.Popen[str] | None = None
        self.fakes: dict[str, FakeProcess] = {}
        self.write_config(self.port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def write_config(self, port: int, more: str = "") -> None:
        self.config.write_text(
            "[local]\n"
            'name = "lb-0"\n'
            'net_interface_private = "lo"\n'
            'net_interface_public = "lo"\n'
            f"api_port = {port}\n{more}"
        )

    def environment(self) -> dict[str, str]:
        return os.environ | {
            "GALE_CONFIG": str(self.config),
            "GALE_RUN_DIR": str(self.run_dir),
            "GALE_STATE_DIR": str(self.run_dir.parent / "state"),
        }

    def start_fakes(self, *sources: str) -> None:
        for source in sources or tuple(STATES):
            self.fakes[source] = FakeProcess(self.run_dir, source)

    def start_api(self) -> subprocess.Popen[str]:
        """Start it and wait until it answers."""
        self.process = self.spawn("from services.api.main import main; main()")
        wait_for(lambda: self.get("/healthz").status_code == 200, "the API to answer")
        return self.process

    def spawn(self, program: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-c", program],
            env=self.environment(),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def kill_api(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def get(self, path: str) -> httpx.Response:
        return httpx.get(self.url + path, timeout=TIMEOUT_S, trust_env=False)

    def stop(self) -> None:
        if self.process is not None:
            self.process.send_signal(signal.SIGCONT)
            self.process.kill()
            self.process.wait()
        for fake in self.fakes.values():
            fake.stop()


class Listener:
    """A subscriber to the public stream, always receiving: that is when libzmq resubscribes."""

    def __init__(self, endpoint: str, *prefixes: str) -> None:
        self._messages: queue.Queue[dict[str, Any]] = queue.Queue()
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, args=(endpoint, prefixes), daemon=True)
        self._thread.start()

    def _run(self, endpoint: str, prefixes: tuple[str, ...]) -> None:
        context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        subscriber = context.socket(zmq.SUB)
        for prefix in prefixes:
            subscriber.subscribe(prefix)
        subscriber.connect(endpoint)
        while not self._closing.is_set():
            if subscriber.poll(50):
                topic, body = subscriber.recv_multipart()
                message = orjson.loads(body)
                assert message["topic"] == topic.decode()
                self._messages.put(message)
        context.destroy(linger=0)

    def until(self, wanted: Callable[[dict[str, Any]], bool]) -> list[dict[str, Any]]:
        """All messages up to the first that is wanted, that one last."""
        messages: list[dict[str, Any]] = []
        while not messages or not wanted(messages[-1]):
            try:
                messages.append(self._messages.get(timeout=TIMEOUT_S))
            except queue.Empty:
                raise AssertionError([seen["topic"] for seen in messages]) from None
        return messages

    def close(self) -> None:
        self._closing.set()
        self._thread.join()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def gale() -> Iterator[Gale]:
    directory = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    made = Gale(directory)
    yield made
    made.stop()
    shutil.rmtree(directory)


@pytest.fixture
def listen(gale: Gale) -> Iterator[Callable[..., Listener]]:
    made: list[Listener] = []

    def listen_to(*prefixes: str, endpoint: str | None = None) -> Listener:
        public = f"ipc://{topics.events_path(gale.run_dir)}"
        made.append(Listener(endpoint or public, *prefixes))
        return made[-1]

    yield listen_to
    for listener in made:
        listener.close()
