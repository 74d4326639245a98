"""The agent's HTTP API, with a loop that does what it is told."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import queue
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from services.node import api as api_module
from services.node.api import MOST_CONNECTIONS, Ask, NodeApi, _Handler, metrics
from tests.health.processes import eventually, free_port

STATUS: dict[str, Any] = {
    "status": "serving",
    "services": [{"name": 'a"b', "good": True, "good_total": 7, "bad_total": 2}],
    "load_balancers": [{"address": "10.81.0.10:7070", "phase": "admitted"}],
    "rejected": {"malformed": 3},
}


class Loop:
    """Answers each question with the status and its verb."""

    def __init__(self) -> None:
        self.port = free_port()
        self.asked: list[tuple[str, int | None]] = []
        self.woken = threading.Semaphore(0)
        self.api = NodeApi(self.woken.release)
        self.stuck = False
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        while True:
            self.woken.acquire()
            ask: Ask = self.api.asks.get()
            if ask.verb == "end":
                return
            self.asked.append((ask.verb, ask.drain_ms))
            if not self.stuck:
                ask.answer.put({**STATUS, "verb": ask.verb})

    def request(
        self, method: str, path: str, headers: dict[str, str] | None = None
    ) -> tuple[int, str, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        with contextlib.closing(connection):
            connection.request(method, path, headers=headers or {})
            answer = connection.getresponse()
            return answer.status, answer.headers["Content-Type"], answer.read()

    def close(self) -> None:
        self.api.close()
        self.api.asks.put(Ask("end"))
        self.woken.release()
        self._thread.join(10)


@pytest.fixture
def loop() -> Iterator[Loop]:
    made = Loop()
    assert made.api.listen({"127.0.0.1"}, made.port) == ""
    yield made
    made.close()


def test_status_start_and_stop_reach_the_loop(loop: Loop) -> None:
    for method, path, asked in (
        ("GET", "/status", ("status", None)),
        ("POST", "/start", ("start", None)),
        ("POST", "/stop", ("stop", None)),
        ("POST", "/stop?drain_ms=250", ("stop", 250)),
    ):
        code, kind, body = loop.request(method, path)
        assert (code, kind) == (200, "application/json")
        assert json.loads(body)["verb"] == asked[0]
        assert loop.asked[-1] == asked


@pytest.mark.parametrize(
    ("method", "path", "headers", "code"),
    [
        ("GET", "/", {}, 404),
        ("GET", "/stop", {}, 404),
        ("POST", "/status", {}, 404),
        ("POST", "/stop?drain_ms=-1", {}, 400),
        ("POST", "/stop?drain_ms=1e3", {}, 400),
        ("POST", f"/stop?drain_ms={'9' * 5_000}", {}, 400),
        ("POST", "/stop?drain_ms=1%0A", {}, 400),
        ("POST", "/stop?drain_ms=²", {}, 400),
        ("POST", "/stop", {"Origin": "http://evil.example"}, 403),
        ("DELETE", "/status", {}, 501),
    ],
)
def test_what_is_wrong_is_refused_and_does_nothing(
    loop: Loop, method: str, path: str, headers: dict[str, str], code: int
) -> None:
    assert loop.request(method, path.replace("²", "%C2%B2"), headers)[0] == code
    assert loop.asked == []


def test_a_loop_that_does_not_answer_is_said(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api_module, "PATIENCE_S", 0.05)
    loop.stuck = True
    code, kind, body = loop.request("GET", "/status")
    assert (code, kind) == (503, "application/problem+json")
    assert json.loads(body)["detail"] == "the agent's loop does not answer"


def test_metrics_are_those_of_the_status(loop: Loop) -> None:
    code, kind, body = loop.request("GET", "/metrics")
    assert code == 200
    assert kind.startswith("text/plain")
    assert body == metrics(STATUS)
    lines = body.decode().splitlines()
    assert "gale_agent_serving 1.0" in lines
    assert 'gale_agent_checks_total{result="bad",service="a\\"b"} 2.0' in lines
    assert 'gale_agent_admitted{lb="10.81.0.10:7070"} 1.0' in lines
    assert 'gale_rejected_messages_total{channel="node",reason="malformed"} 3.0' in lines


def test_changes_are_taken_from_this_machine_alone(loop: Loop) -> None:
    other = "127.9.9.9"
    assert loop.api.listen({"127.0.0.1", other}, loop.port) == ""
    for peer, own, code in (
        ("127.0.0.1", "127.0.0.1", 200),
        ("10.81.0.20", "10.81.0.20", 200),
        ("10.81.0.10", "10.81.0.20", 403),
        ("::1", "::1", 200),
    ):
        assert _answer_to(loop, peer, own, "POST") == code
    assert _answer_to(loop, "10.81.0.10", "10.81.0.20", "GET") == 200
    assert [verb for verb, _ in loop.asked] == ["stop", "stop", "stop", "status"]


@pytest.mark.parametrize(
    ("content", "said", "code"),
    [
        (b"s3cret\n", "Bearer s3cret", 200),
        (b"s3cret\n", "Bearer S3cret", 403),
        (b"s3cret\n", "s3cret", 403),
        (b"s3cret\n", "", 403),
        (b"\n", "Bearer ", 403),
        (None, "Bearer s3cret", 403),
    ],
)
def test_with_the_token_changes_are_taken_from_elsewhere(
    loop: Loop, tmp_path: Path, content: bytes | None, said: str, code: int
) -> None:
    assert loop.api.listen({"127.0.0.1"}, loop.port) == ""
    loop.api.token_file = tmp_path / "token"
    if content is not None:
        loop.api.token_file.write_bytes(content)
    headers = f"Authorization: {said}\r\n" if said else ""
    assert _answer_to(loop, "10.81.0.10", "10.81.0.20", "POST", headers) == code
    foreign = f"{headers}Origin: http://elsewhere\r\n"
    assert _answer_to(loop, "10.81.0.10", "10.81.0.20", "POST", foreign) == 403
    assert _answer_to(loop, "127.0.0.1", "127.0.0.1", "POST") == 200


def test_a_token_that_could_be_waited_for_lets_nobody_in(loop: Loop, tmp_path: Path) -> None:
    assert loop.api.listen({"127.0.0.1"}, loop.port) == ""
    loop.api.token_file = tmp_path / "token"
    os.mkfifo(loop.api.token_file)
    bearer = "Authorization: Bearer x\r\n"
    assert _answer_to(loop, "10.81.0.10", "10.81.0.20", "POST", bearer) == 403


def _answer_to(loop: Loop, peer: str, own: str, method: str, headers: str = "") -> int:
    """The code that a peer at that address would get."""
    ours, theirs = socket.socketpair()

    class Connection(socket.socket):
        def getsockname(self) -> tuple[str, int]:
            return own, loop.port

    path = "/stop" if method == "POST" else "/status"
    with theirs, Connection(fileno=ours.detach()) as connection:
        theirs.sendall(f"{method} {path} HTTP/1.0\r\n{headers}\r\n".encode())
        server = next(iter(loop.api._servers.values()))
        _Handler(connection, (peer, 1), server)
        return int(theirs.recv(4096).split()[1])


def test_making_and_ending_a_server_keeps_nobody_waiting(
    loop: Loop, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask_dns(name: str = "") -> str:
        raise AssertionError(f"{name} is looked up")

    monkeypatch.setattr(socket, "getfqdn", ask_dns)
    monkeypatch.setattr(api_module, "ENDING_S", 2.0)
    begun_s = time.monotonic()
    for number in range(2, 8):
        loop.api.listen({f"127.0.0.{number}"}, loop.port)
    assert time.monotonic() - begun_s < 6.0, "servers that end in 2 s each were waited for"
    monkeypatch.undo()


def test_there_is_an_end_to_how_many_are_served_at_once(loop: Loop) -> None:
    idle = [socket.create_connection(("127.0.0.1", loop.port)) for _ in range(MOST_CONNECTIONS)]
    server = next(iter(loop.api._servers.values()))
    try:
        eventually(lambda: server._room._value == 0, "all are served")
        with pytest.raises(OSError, match=r"reset|without response|aborted"):
            loop.request("GET", "/status")
    finally:
        for connection in idle:
            connection.close()
    eventually(lambda: _is_answered(loop), "there is room again")


def _is_answered(loop: Loop) -> bool:
    try:
        return loop.request("GET", "/status")[0] == 200
    except OSError:
        return False


def test_a_server_that_has_died_is_told(loop: Loop) -> None:
    assert loop.api.dead == ""
    server = next(iter(loop.api._servers.values()))
    server.shutdown()
    server.thread.join(30)
    assert loop.api.dead == f"127.0.0.1:{loop.port}"


def test_addresses_come_and_go(loop: Loop) -> None:
    assert loop.api.listen({"127.0.0.1", "127.0.0.2"}, loop.port) == ""
    assert loop.request("GET", "/status")[0] == 200
    loop.api.listen({"127.0.0.2"}, loop.port)
    eventually(lambda: _is_refused(loop))


def _is_refused(loop: Loop) -> bool:
    try:
        loop.request("GET", "/status")
    except ConnectionRefusedError:
        return True
    except OSError:  # hung up on in the midst of it
        return False
    return False


def test_a_port_that_is_taken_is_named_and_tried_again(loop: Loop) -> None:
    second = NodeApi(lambda: None)
    problem = second.listen({"127.0.0.1"}, loop.port)
    assert problem.startswith(f"HTTP API on 127.0.0.1:{loop.port}: ")
    loop.api.close()
    assert second.listen({"127.0.0.1"}, loop.port) == ""
    second.close()


def test_an_answer_that_comes_too_late_harms_nobody() -> None:
    ask = Ask("status")
    with pytest.raises(queue.Empty):
        ask.answer.get(timeout=0.01)
    ask.answer.put({})
