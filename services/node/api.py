"""The agent's HTTP API: `GET /status`, `GET /metrics`, `POST /start`, `POST /stop[?drain_ms=N]`.

Python's own http.server, in threads: four small answers a minute do not justify a web framework's
50 MB on every node. A thread never touches the agent: it puts an `Ask` into a queue, wakes the
loop, and waits for the answer; if none comes in `PATIENCE_S`, the loop is stuck and 503 says so.

It listens on loopback, and on the address that the LBs know this machine by, where everybody on the
private network may look. What changes something is taken from this machine, and from others with
the token of `security.api_token_file` alone (`Authorization: Bearer TOKEN`). It is never taken from
a browser: a request that carries an Origin is refused, so no web page can stop a node.

The loop is never kept waiting: no name is looked up when a server is made, one that is no longer
wanted ends in a thread of its own, and there is an end to how many connections are served at once.
"""

from __future__ import annotations

import hmac
import json
import queue
import re
import socketserver
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from bus.words import one_line
from conf.security import read_token

PATIENCE_S = 2.0
REQUEST_TIMEOUT_S = 5.0
MOST_CONNECTIONS = 32
"""Served at once, by each server; who comes then is hung up on."""
ENDING_S = 0.1
"""How soon a server notices that it is to end."""


_DURATION = re.compile(r"[0-9]{1,12}", re.ASCII)


@dataclass(slots=True)
class Ask:
    """One request, on its way to the loop: `verb` is status, start or stop."""

    verb: str
    drain_ms: int | None = None
    answer: queue.SimpleQueue[dict[str, Any]] = field(default_factory=queue.SimpleQueue)


class NodeApi:
    """The servers, one for each address; `asks` is what the loop has to answer."""

    def __init__(self, wake: Callable[[], None]) -> None:
        self.asks: queue.SimpleQueue[Ask] = queue.SimpleQueue()
        self.token_file: Path | None = None
        """Read with each request that wants it, so that a new token holds at once."""
        self._wake = wake
        self._servers: dict[tuple[str, int], _Server] = {}

    def listen(self, addresses: set[str], port: int) -> str:
        """Listen on these addresses and no others; returns what went wrong, or nothing."""
        wanted = {(address, port) for address in addresses}
        for gone in set(self._servers) - wanted:
            self._servers.pop(gone).end()
        problem = ""
        for place in sorted(wanted - set(self._servers)):
            try:
                self._servers[place] = _Server(self, place)
            except OSError as error:
                problem = f"HTTP API on {place[0]}:{place[1]}: {error.strerror}"
        return problem

    @property
    def dead(self) -> str:
        """Where a server has ended by a mistake of ours; empty: nowhere."""
        ended = [place for place, server in self._servers.items() if not server.thread.is_alive()]
        return ", ".join(f"{address}:{port}" for address, port in ended)

    def close(self) -> None:
        """End all servers, and wait for that."""
        for ending in [server.end() for server in self._servers.values()]:
            ending.join()
        self._servers.clear()

    def ask(self, verb: str, drain_ms: int | None = None) -> dict[str, Any]:
        """Have the loop answer; raises `queue.Empty` when it does not."""
        asked = Ask(verb, drain_ms)
        self.asks.put(asked)
        self._wake()
        return asked.answer.get(timeout=PATIENCE_S)


class _Server(ThreadingHTTPServer):
    """One address, in a thread of its own."""

    daemon_threads = True
    request_queue_size = 2 * MOST_CONNECTIONS

    def __init__(self, api: NodeApi, place: tuple[str, int]) -> None:
        self.api = api
        self._room = threading.Semaphore(MOST_CONNECTIONS)
        super().__init__(place, _Handler)
        self.thread = threading.Thread(
            target=self.serve_forever, args=(ENDING_S,), name="http", daemon=True
        )
        self.thread.start()

    def server_bind(self) -> None:
        # Not HTTPServer's: it would look up the address's name, for as long as DNS likes.
        socketserver.TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]

    def end(self) -> threading.Thread:
        """Have it end; who likes may wait for the thread that sees to that."""

        def finish() -> None:
            self.shutdown()
            self.server_close()

        ending = threading.Thread(target=finish, name="http-end", daemon=True)
        ending.start()
        return ending

    def process_request(self, request: Any, client_address: Any) -> None:
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread to be had: nobody else will give the place back
            self._room.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._room.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Peers hang up, and a thread that cannot write to one says nothing; the rest is ours."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = REQUEST_TIMEOUT_S
    server_version = "gale-agent"

    def do_GET(self) -> None:
        path = urlsplit(self.path).path
        if path in ("/status", "/metrics"):
            self._answer("status", None, as_metrics=path == "/metrics")
        else:
            self._refuse(404, f"no {path}, expected GET /status or /metrics")

    def do_POST(self) -> None:
        parts = urlsplit(self.path)
        if not self._is_from_here() and (why := self._why_not_let_in()):
            self._refuse(403, why)
        elif self.headers.get("Origin") is not None:
            self._refuse(403, "changes are not taken from web pages")
        elif parts.path == "/start":
            self._answer("start", None)
        elif parts.path == "/stop":
            given = parse_qs(parts.query).get("drain_ms", [None])[-1]
            if given is not None and not _DURATION.fullmatch(given):
                self._refuse(400, f"drain_ms: {one_line(given)}, expected milliseconds")
            else:
                self._answer("stop", int(given) if given is not None else None)
        else:
            self._refuse(404, f"no {parts.path}, expected POST /start or /stop")

    def _is_from_here(self) -> bool:
        """Whether the other end is this machine, by loopback or by an address of its own."""
        peer = self.client_address[0]
        return ip_address(peer).is_loopback or peer == self.connection.getsockname()[0]

    def _why_not_let_in(self) -> str:
        """Why a request from elsewhere may change nothing; empty: it has the token."""
        path = self.server.api.token_file
        if path is None:
            return "changes are taken from this machine alone (no security.api_token_file)"
        try:
            token = read_token(path)
        except OSError as error:
            return f"security.api_token_file: {error.strerror}: changes from this machine alone"
        said = (self.headers.get("Authorization") or "").encode("latin-1", "replace")
        if hmac.compare_digest(said, f"Bearer {token}".encode()):
            return ""
        return "Authorization: expected Bearer and the token of security.api_token_file"

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002
        """The agent's log tells what happened to the node; not who asked."""

    def _answer(self, verb: str, drain_ms: int | None, *, as_metrics: bool = False) -> None:
        try:
            status = self.server.api.ask(verb, drain_ms)
        except queue.Empty:
            self._refuse(503, "the agent's loop does not answer")
            return
        if as_metrics:
            self._write(200, CONTENT_TYPE_LATEST, metrics(status))
        else:
            self._write(200, "application/json", json.dumps(status, indent=2).encode())

    def _refuse(self, code: int, detail: str) -> None:
        problem = {"status": code, "title": self.responses[code][0], "detail": detail}
        self._write(code, "application/problem+json", json.dumps(problem).encode())

    def _write(self, code: int, content_type: str, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Type", content_type)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


# --------------------------------------------------------------------------- metrics


class _Snapshot(Collector):
    """The metrics of one status."""

    def __init__(self, status: dict[str, Any]) -> None:
        self._status = status

    def collect(self) -> list[Metric]:
        serving = GaugeMetricFamily("gale_agent_serving", "1 while beats say SERVING.")
        serving.add_metric([], float(self._status["status"] == "serving"))
        good = GaugeMetricFamily(
            "gale_agent_check_good",
            "1 while the service's last check was good.",
            labels=["service"],
        )
        checks = CounterMetricFamily(
            "gale_agent_checks", "Local checks, by result.", labels=["service", "result"]
        )
        for service in self._status["services"]:
            good.add_metric([service["name"]], float(service["good"] is True))
            for result in ("good", "bad"):
                checks.add_metric([service["name"], result], service[f"{result}_total"])
        admitted = GaugeMetricFamily(
            "gale_agent_admitted", "1 while the load balancer takes beats.", labels=["lb"]
        )
        for session in self._status["load_balancers"]:
            admitted.add_metric([session["address"]], float(session["phase"] == "admitted"))
        rejected = CounterMetricFamily(
            "gale_rejected_messages", "Messages refused, by reason.", labels=["channel", "reason"]
        )
        for reason, count in self._status["rejected"].items():
            rejected.add_metric(["node", reason], count)
        return [serving, good, checks, admitted, rejected]


def metrics(status: dict[str, Any]) -> bytes:
    """The status in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_Snapshot(status))
    return generate_latest(registry)
