"""A real HTTP server in the place of the API, with answers made of the API's own shapes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import asdict
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import orjson

from bus.states import VipHolder
from services.api.snapshot import (
    ClaimShape,
    DataplaneShape,
    HookShape,
    MemberShape,
    NodeShape,
    NodesShape,
    OutputShape,
    ProcessShape,
    QuorumShape,
    ReplicaShape,
    SeatShape,
    ServiceShape,
    ServicesShape,
    StatusShape,
)

SEAT = SeatShape(
    service="default",
    node="node-1@10.81.0.21",
    state="banned",
    reason="5 failures",
    port=8080,
    slots=32_768,
    share=0.5,
    resolved=True,
    packets_in=12_345,
    bytes_in=987,
    packets_out=7,
    bytes_out=4_200,
    flows=3,
    flows_now=2,
)
NODE = NodeShape(
    id="node-1@10.81.0.21",
    name="node-1",
    address="10.81.0.21",
    state="banned",
    agreed_state="down",
    reason="5 failures",
    weight=2,
    share=0.25,
    fails=5,
    banned_for_ms=250_000,
    observed_ms=1_234,
    checks_passed=3,
    checks_required=3,
    load=0.5,
    flows=2,
    order=None,
    orders=[],
    backup=False,
    services=[SEAT],
)
SERVICE = ServiceShape(
    name="default",
    address=None,
    port=8080,
    ports=1,
    protocol="tcp",
    mode="l4",
    node_port=80,
    node_ports=1,
    affinity="flow",
    affinity_group="",
    nodes_up=2,
    nodes=[SEAT],
    observed_ms=10,
)
QUORUM = QuorumShape(
    name="lb-0",
    role="leader",
    term=7,
    leader="lb-0",
    epoch=42,
    quorum=True,
    lease_remaining_ms=225,
    lease_changes=0,
    vips=[VipHolder("10.80.0.100", "lb-0")],
    members=[MemberShape("lb-0", "10.81.0.10:8081", True, 7, 42, 0)],
    waiting_for="",
    observed_ms=10,
    advice="2 vote, an even number",
)
DATAPLANE = DataplaneShape(
    ready=True,
    epoch=42,
    hooks=[HookShape("xdp_public", "pub0", True, "native", "gale_xdp_public")],
    outputs=[OutputShape("priv0", "requests", "tc", "a bridge: it takes no frames from XDP")],
    conntrack_established=1_234_567,
    conntrack_half_open=8,
    conntrack_capacity=2_000_000,
    claims=[
        ClaimShape("10.80.0.100", "public", True, "02:00:00:00:66:66 claims it too"),
        ClaimShape("10.81.0.100", "private", True, ""),
    ],
    synced=True,
    replicas=[
        ReplicaShape("10.81.0.11", "lb-1", "level", "", True),
        ReplicaShape("10.81.0.12", "", "refused", "this is the cluster 'other'", False),
    ],
    replication_lag_ms=17,
    observed_ms=10,
)
STATUS = StatusShape(
    name="lb-0",
    mode="l4",
    version="0.1.0",
    ready=False,
    not_ready=["health: nothing heard for 7 s"],
    keys=True,
    warnings=["node n-9@10.81.0.29 at web: all 65,535 seats are taken"],
    processes={
        "quorum": ProcessShape(120, True, "b1", 4711, "0.1.0", ""),
        "health": ProcessShape(None, False, None, None, None, "priv0 to appear"),
    },
    nodes={"up": 2, "down": 1, "banned": 0},
    services=[SERVICE],
    quorum=QUORUM,
    dataplane=DATAPLANE,
    observed_ms=120,
)
FLOW = {
    "protocol": "tcp",
    "client": "10.80.0.2:40000",
    "vip": "10.80.0.10:8080",
    "snat": "10.81.0.10:1536",
    "node": "10.81.0.21:80",
    "service": "default",
    "state": "established",
    "idle_ms": 1_500,
    "age_ms": 7_444_000,
}
PLAN: dict[str, Any] = {
    "services": [
        {
            "service": "web",
            "mode": "l4",
            "change": "",
            "slots_moved": 16_384,
            "share_moved": 0.25,
            "flows": 1_200,
            "flows_reset": 300,
            "flows_moved": 4,
            "flows_left": 0,
        }
    ],
    "nodes": [{"node": "node-1@10.81.0.21", "slots": 16_384, "slots_after": 0}],
    "refused": [],
    "slots_moved": 16_384,
    "flows_hit": 304,
    "changes_nothing": False,
}
ANSWERS: dict[str, Any] = {
    "/v1/status": asdict(STATUS),
    "/v1/nodes": asdict(NodesShape([NODE], 1_234)),
    "/v1/services": asdict(ServicesShape([SERVICE], 10)),
    "/v1/quorum": asdict(QUORUM),
    "/v1/flows": {"flows": [FLOW], "total": 2_000},
}

Answer = Callable[["Handler", dict[str, str]], None]


class Handler(BaseHTTPRequestHandler):
    """One request: what `LocalApi.paths` says for its path."""

    server: LocalApi

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        parameters = dict(parse_qsl(url.query))
        self.server.asked.append((url.path, parameters, self.headers.get("Last-Event-ID")))
        answer = self.server.paths.get(url.path)
        if answer is None:
            self.send_json({"title": "Not Found", "detail": "no such path"}, 404)
        elif callable(answer):
            answer(self, parameters)
        else:
            self.send_json(answer)

    def do_POST(self) -> None:
        url = urlsplit(self.path)
        size = int(self.headers.get("Content-Length", "0"))
        body = orjson.loads(self.rfile.read(size) or b"null")
        self.server.sent.append((url.path, body))
        self.server.posted.append((url.path, body, dict(self.headers)))
        self.do_GET()

    def send_json(self, value: Any, status: int = 200) -> None:
        self.send_raw(orjson.dumps(value), status, "application/json")

    def send_raw(self, body: bytes, status: int = 200, kind: str = "text/plain") -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def begin_stream(self) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()

    def send_event(self, identity: str, message: dict[str, Any]) -> None:
        body = f"id: {identity}\nevent: {message['topic']}\ndata: ".encode()
        self.wfile.write(b": still here\n\n" + body + orjson.dumps(message) + b"\n\n")
        self.wfile.flush()

    def log_message(self, format: str, *arguments: Any) -> None:  # noqa: A002 - its name there
        """Quiet."""


class LocalApi(ThreadingHTTPServer):
    """Listens on a free port of loopback until `stop`."""

    daemon_threads = True
    allow_reuse_address = True

    def __init__(self, port: int = 0) -> None:
        super().__init__(("127.0.0.1", port), Handler)
        self.port: int = self.server_address[1]
        self.paths: dict[str, Any] = dict(ANSWERS)
        self.asked: list[tuple[str, dict[str, str], str | None]] = []
        self.posted: list[tuple[str, Any, dict[str, str]]] = []
        self.sent: list[tuple[str, Any]] = []
        """What was posted, and where."""
        self._thread = threading.Thread(target=self.serve_forever, args=(0.01,), daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self.shutdown()
        self.server_close()
        self._thread.join()
