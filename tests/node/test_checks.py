"""The local checks against real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress

import pytest
import zmq

from services.node.checks import Prober, Result
from services.node.core import CheckKind, CheckPlan


def now_ms() -> int:
    return time.monotonic_ns() // 1_000_000


@contextmanager
def listening(kind: int = socket.SOCK_STREAM) -> Iterator[socket.socket]:
    with closing(socket.socket(socket.AF_INET, kind)) as server:
        server.bind(("127.0.0.1", 0))
        if kind == socket.SOCK_STREAM:
            server.listen()
        yield server


@contextmanager
def answering(*answers: bytes) -> Iterator[tuple[int, list[bytes]]]:
    """A server that answers one request with these parts, and keeps the connection open."""
    requests: list[bytes] = []
    done = threading.Event()
    with listening() as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                requests.append(connection.recv(4096))
                with suppress(ConnectionError):  # who asked may have heard enough
                    for answer in answers:
                        connection.sendall(answer)
                        time.sleep(0.01)
                done.wait(10)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1], requests
        done.set()
        thread.join(10)


def closed_port() -> int:
    with listening() as server:
        return int(server.getsockname()[1])


def probe(plan: CheckPlan) -> Result:
    """Run one check to its end."""
    poller = zmq.Poller()
    prober = Prober(poller)
    prober.probe(plan, "127.0.0.1", now_ms())
    while True:
        prober.tick(now_ms())
        if results := prober.take_results():
            assert list(poller.sockets) == [], "a check that has ended leaves nothing to poll"
            return results[0]
        prober.serve(dict(poller.poll(20)))


def http(port: int, timeout_ms: int = 5_000) -> CheckPlan:
    return CheckPlan("web", port, CheckKind.HTTP, "/healthz", 500, timeout_ms)


def test_a_port_that_accepts_is_good_and_a_closed_one_is_not() -> None:
    with listening() as server:
        port = server.getsockname()[1]
        assert probe(CheckPlan("web", port)).good
    result = probe(CheckPlan("web", closed_port()))
    assert not result.good
    assert "connection refused" in result.reason


def test_a_connection_to_itself_is_no_server(monkeypatch: pytest.MonkeyPatch) -> None:
    port = closed_port()
    real_connect = socket.socket.connect_ex

    def from_the_same_port(opened: socket.socket, address: tuple[str, int]) -> int:
        opened.bind(("127.0.0.1", port))
        return real_connect(opened, address)

    monkeypatch.setattr(socket.socket, "connect_ex", from_the_same_port)
    assert not probe(CheckPlan("web", port)).good


def test_udp_is_good_unless_the_port_is_closed() -> None:
    with listening(socket.SOCK_DGRAM) as server:
        port = server.getsockname()[1]
        assert probe(CheckPlan("dns", port, CheckKind.UDP)).good
    assert not probe(CheckPlan("dns", port, CheckKind.UDP)).good


@pytest.mark.parametrize("status", [b"200 OK", b"204 No Content", b"301 Moved", b"399 ?"])
def test_http_is_good_from_200_to_399(status: bytes) -> None:
    with answering(b"HTTP/1.1 " + status + b"\r\n\r\n") as (port, requests):
        assert probe(http(port)).good
        assert requests[0].startswith(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1:")


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
        b"HTTP/1.1 503 Service Unavailable\r\n\r\n",
        b"HTTP/1.1 199 ?\r\n",
        b"SSH-2.0-OpenSSH\r\n",
        b"HTTP/1.1 ok\r\n",
        b"HTTP/1.1\r\n",
        b"x" * 5_000,
    ],
)
def test_http_is_bad_for_everything_else(answer: bytes) -> None:
    with answering(answer) as (port, _):
        result = probe(http(port))
        assert not result.good
        assert "within" not in result.reason, "it was known before the timeout"


def test_an_answer_in_pieces_is_an_answer() -> None:
    with answering(b"HT", b"TP/1.1 2", b"00 OK", b"\r\n") as (port, _):
        assert probe(http(port)).good


def test_a_server_that_hangs_shows_to_http_and_not_to_tcp() -> None:
    with listening() as server:
        port = server.getsockname()[1]
        assert probe(CheckPlan("web", port)).good
        result = probe(http(port, timeout_ms=50))
        assert result == Result(
            http(port, 50), False, f"port {port}: no answer to GET /healthz within 50 ms"
        )


def test_a_server_that_answers_a_byte_at_a_time_is_bad_at_the_timeout() -> None:
    """What comes does not begin the time anew."""
    with answering(*[b"H"] * 1_000) as (port, _):
        result = probe(http(port, timeout_ms=200))
    assert not result.good
    assert result.reason == f"port {port}: no answer to GET /healthz within 200 ms"


def test_a_server_that_closes_without_an_answer_is_bad() -> None:
    with listening() as server:
        port = server.getsockname()[1]

        def hear_and_close() -> None:
            connection, _ = server.accept()
            connection.recv(4096)
            connection.close()

        thread = threading.Thread(target=hear_and_close, daemon=True)
        thread.start()
        result = probe(http(port))
        assert not result.good
        assert "is not HTTP" in result.reason
        thread.join(10)


def test_checks_keep_their_cadence_and_those_not_wanted_end() -> None:
    prober = Prober(zmq.Poller())
    plan = CheckPlan("dns", closed_port(), CheckKind.UDP, interval_ms=100)
    prober.plan([plan], "127.0.0.1", 1_000)
    starts = []
    for now in range(1_000, 1_500, 10):
        prober.tick(now + 3 if now == 1_200 else now)
        if prober.take_results():
            starts.append(now)
    assert starts == [1_000, 1_100, 1_200, 1_300, 1_400]
    assert prober.next_due_ms() == 1_500
    prober.plan([], "127.0.0.1", 1_500)
    assert prober.next_due_ms() is None


# --------------------------------------------------------------------------- at the VIP


def checked_at(plan: CheckPlan, address: str, *own: str) -> Result:
    """Run a plan's check to its end on a machine with these addresses."""
    poller = zmq.Poller()
    prober = Prober(poller)
    prober.plan([plan], address, now_ms(), frozenset(own))
    prober.tick(now_ms())
    prober.plan([], address, now_ms())
    while not (results := prober.take_results()):
        prober.serve([fd for fd, _ in poller.poll(20) if isinstance(fd, int)])
        prober.tick(now_ms())
    prober.close()
    return results[0]


def test_the_vip_is_asked_where_it_is_this_machines_own() -> None:
    with listening() as server:
        port = server.getsockname()[1]  # at 127.0.0.1 alone
        front = (("127.0.0.2", port),)
        plan = CheckPlan("web", port, fronts=front)
        assert checked_at(plan, "127.0.0.1").good
        refused = checked_at(plan, "127.0.0.1", "127.0.0.2")
        assert not refused.good
        assert refused.reason == f"127.0.0.2 port {port}: connection refused"
        on_the_vip_alone = CheckPlan("web", closed_port(), fronts=(("127.0.0.1", port),))
        assert checked_at(on_the_vip_alone, "127.0.0.3", "127.0.0.1").good


def test_each_of_several_vips_is_asked() -> None:
    with listening() as server:
        port = server.getsockname()[1]
        fronts = (("127.0.0.1", port), ("127.0.0.2", port))
        plan = CheckPlan("web", port, fronts=fronts)
        own = ("127.0.0.1", "127.0.0.2")
        assert not checked_at(plan, "127.0.0.1", *own).good
        assert checked_at(plan, "127.0.0.1", "127.0.0.1").good
