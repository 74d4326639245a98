"""CURVE between sockets of two machines, each with a directory of keys; ZAP is answered by hand."""

from __future__ import annotations

import os
import socket
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from bus import keys, tcp
from bus.keys import KeyDirectory, Pair

PATIENCE_S = 20.0
Context = zmq.Context[zmq.Socket[bytes]]


def _machine(tmp_path: Path, name: str) -> tuple[Path, Pair]:
    pair = keys.make_own(tmp_path / name)
    assert pair is not None
    return tmp_path / name, pair


class Server:
    """A guarded ROUTER on loopback, with the door of its context."""

    def __init__(self, context: Context, directory: Path) -> None:
        self.rejected: Counter[str] = Counter()
        self.door = tcp.Door(context, KeyDirectory(directory), self.rejected)
        assert self.door.keys.own is not None
        self.socket = tcp.accepting(context, 1_000)
        tcp.guard(self.socket, self.door.keys.own, keys.NODES)
        self.socket.bind("tcp://127.0.0.1:*")
        self.endpoint = str(self.socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self.heard: list[tuple[str | None, bytes]] = []

    def turn(self) -> None:
        self.door.keys.refresh()
        self.door.serve()
        while self.socket.poll(5):
            _, frame = self.socket.recv_multipart(copy=False)
            self.heard.append((self.door.name_of(keys.NODES, frame), frame.bytes))

    def until(self, condition: Callable[[], Any]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, (self.heard, self.rejected)
            self.turn()


@pytest.fixture
def lb(context: Context, tmp_path: Path) -> Server:
    directory, _ = _machine(tmp_path, "lb")
    return Server(context, directory)


def _client(context: Context, server: Server, own: Pair, key: bytes | None = None) -> Any:
    expected = server.door.keys.own.public if server.door.keys.own is not None else b""
    credentials = tcp.Credentials(own, key or expected)
    client = tcp.connecting(context, 1_000, credentials=credentials)
    client.setsockopt(zmq.IMMEDIATE, 0)  # what is sent before the handshake waits for it
    client.connect(server.endpoint)
    client.send(b"hello")
    return client


def _admit(lb: Server, name: str, *public: bytes) -> None:
    keys.write_key(lb.door.keys.path / keys.NODES / f"{name}.public", *public)


def test_the_kernel_asks_after_whoever_is_silent(context: Context) -> None:
    server = tcp.accepting(context, 1_000)
    monitor = server.get_monitor_socket(zmq.EVENT_ACCEPTED)
    server.bind("tcp://127.0.0.1:*")
    client = tcp.connecting(context, 1_000)
    client.connect(server.get_string(zmq.LAST_ENDPOINT))
    assert monitor.poll(int(1_000 * PATIENCE_S))
    accepted = int(recv_monitor_message(monitor)["value"])
    with socket.socket(fileno=os.dup(accepted)) as connection:
        assert connection.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
        idle_s, between_s, times = (
            connection.getsockopt(socket.IPPROTO_TCP, option) for option in options
        )
        assert idle_s + times * between_s == tcp.VANISHED_S
        # The same for whoever vanishes while something is on its way to it.
        patience_ms = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)
        assert patience_ms == 1_000 * tcp.VANISHED_S
    server.disable_monitor()
    monitor.close(linger=0)


def test_a_peer_is_who_its_key_stands_for(context: Context, lb: Server, tmp_path: Path) -> None:
    _, own = _machine(tmp_path, "node")
    _admit(lb, "node-0", own.public)
    client = _client(context, lb, own)
    lb.until(lambda: lb.heard)
    assert lb.heard == [("node-0", b"hello")]
    assert not lb.rejected
    client.close()


def test_a_key_that_is_not_on_the_list_gets_no_word_through(
    context: Context, lb: Server, tmp_path: Path
) -> None:
    _, own = _machine(tmp_path, "stranger")
    client = _client(context, lb, own)
    lb.until(lambda: lb.rejected)
    assert lb.heard == []
    assert set(lb.rejected) == {"key_not_admitted"}
    assert lb.door.refused == f"127.0.0.1: key {own.public.decode()}"
    # Its operator puts it on the list: the next attempt, which comes by itself or not, is admitted.
    _admit(lb, "node-7", own.public)
    client.close()
    client = _client(context, lb, own)
    lb.until(lambda: lb.heard)
    assert lb.heard == [("node-7", b"hello")]
    client.close()


def test_a_key_of_another_group_is_no_nodes(context: Context, lb: Server, tmp_path: Path) -> None:
    _, own = _machine(tmp_path, "peer")
    keys.write_key(lb.door.keys.path / keys.LBS / "lb-1.public", own.public)
    client = _client(context, lb, own)
    lb.until(lambda: lb.rejected)
    assert lb.heard == []
    client.close()


def test_nobody_is_admitted_while_nobody_answers(context: Context, tmp_path: Path) -> None:
    _, own = _machine(tmp_path, "node")
    _, server_own = _machine(tmp_path, "lb")
    server = tcp.accepting(context, 1_000)
    tcp.guard(server, server_own, keys.NODES)
    port = server.bind_to_random_port("tcp://127.0.0.1")
    client = tcp.connecting(context, 1_000, credentials=tcp.Credentials(own, server_own.public))
    client.setsockopt(zmq.IMMEDIATE, 0)
    client.connect(f"tcp://127.0.0.1:{port}")
    client.send(b"hello")
    assert not server.poll(500)
    client.close()
    server.close()


def test_a_peer_without_keys_is_not_heard(context: Context, lb: Server) -> None:
    client = tcp.connecting(context, 1_000)
    client.setsockopt(zmq.IMMEDIATE, 0)
    client.connect(lb.endpoint)
    client.send(b"hello")
    assert not lb.socket.poll(500)
    client.close()


def test_a_server_with_another_key_is_not_spoken_to(
    context: Context, lb: Server, tmp_path: Path
) -> None:
    _, own = _machine(tmp_path, "node")
    _, impostor = _machine(tmp_path, "impostor")
    _admit(lb, "node-0", own.public)
    client = _client(context, lb, own, key=impostor.public)
    for _ in range(40):
        lb.turn()
    assert lb.heard == []
    client.close()


def test_a_key_that_was_taken_off_the_list_is_nobodys(
    context: Context, lb: Server, tmp_path: Path
) -> None:
    _, own = _machine(tmp_path, "node")
    _admit(lb, "node-0", own.public)
    client = _client(context, lb, own)
    lb.until(lambda: lb.heard)
    (lb.door.keys.path / keys.NODES / "node-0.public").unlink()
    client.send(b"again")
    lb.until(lambda: len(lb.heard) == 2)
    assert lb.heard[1] == (None, b"again")
    client.close()


def test_a_key_is_exchanged_by_way_of_both(context: Context, lb: Server, tmp_path: Path) -> None:
    _, old = _machine(tmp_path, "node")
    _, new = _machine(tmp_path, "node-new")
    _admit(lb, "node-0", old.public, new.public)
    clients = [_client(context, lb, own) for own in (old, new)]
    lb.until(lambda: len(lb.heard) == 2)
    assert [name for name, _ in lb.heard] == ["node-0", "node-0"]
    for client in clients:
        client.close()


def test_a_file_is_read_again_when_it_changes_and_not_before(tmp_path: Path) -> None:
    directory, _ = _machine(tmp_path, "lb")
    known = KeyDirectory(directory)
    assert known.own is not None
    first, second = (bytes(zmq.curve_keypair()[0]) for _ in range(2))
    path = directory / keys.NODES / "node-0.public"
    keys.write_key(path, first)
    assert known.refresh()
    assert known.name_of(keys.NODES, first) == "node-0"
    written = path.stat()
    path.write_bytes(second + b"\n")  # in place: the folder does not change, nor need the time
    os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert known.refresh()
    assert known.name_of(keys.NODES, first) is None
    assert known.name_of(keys.NODES, second) == "node-0"
    assert known.keys_of(keys.NODES, "node-0") == (second,)
    assert not known.refresh()
    path.unlink()
    assert known.refresh()
    assert known.name_of(keys.NODES, second) is None


def test_of_many_files_some_are_looked_at_each_time(tmp_path: Path) -> None:
    directory, own = _machine(tmp_path, "lb")
    count = 2 * keys.LOOKED_AT
    for number in range(count):
        path = directory / keys.NODES / f"node-{number}.public"
        path.write_bytes(own.public)
        os.utime(path, (1, 1))
    os.utime(directory / keys.NODES, (1, 1))
    known = KeyDirectory(directory)
    replaced = bytes(zmq.curve_keypair()[0])
    (directory / keys.NODES / f"node-{count - 1}.public").write_bytes(replaced)
    found = [known.refresh() for _ in range(4)]
    assert any(found)
    assert known.name_of(keys.NODES, replaced) == f"node-{count - 1}"


@pytest.mark.parametrize(
    ("content", "complaint"),
    [(b"", "expected one key"), (b"x" * 41, "expected one key"), (b"\xff" * 40, "expected one")],
)
def test_what_is_no_key_is_named_and_admits_nobody(
    tmp_path: Path, content: bytes, complaint: str
) -> None:
    directory, own = _machine(tmp_path, "lb")
    path = directory / keys.NODES / "node-0.public"
    path.write_bytes(own.public + b"\n" + content if content else b"")
    known = KeyDirectory(directory)
    assert len(known.problems) == 1
    assert str(path) in known.problems[0]
    assert complaint in known.problems[0]
    assert known.name_of(keys.NODES, own.public) is None


def test_without_an_own_key_it_says_so(tmp_path: Path) -> None:
    directory, own = _machine(tmp_path, "lb")
    (directory / keys.SECRET).unlink()
    known = KeyDirectory(directory)
    assert known.own is None
    assert known.problems == (f"{directory}/own.secret: no such file or directory",)
    keys.write_key(directory / keys.SECRET, own.secret)
    assert known.refresh()
    assert known.own == own


def test_a_key_of_two_names_is_the_firsts(tmp_path: Path) -> None:
    directory, own = _machine(tmp_path, "lb")
    for name in ("node-b", "node-a"):
        keys.write_key(directory / keys.NODES / f"{name}.public", own.public)
    assert KeyDirectory(directory).name_of(keys.NODES, own.public) == "node-a"


def test_who_else_could_read_it_is_named(tmp_path: Path) -> None:
    directory, own = _machine(tmp_path, "lb")
    keys.write_key(directory / keys.NODES / "node-0.public", own.public)
    us = frozenset({os.geteuid()})
    assert list(keys.permission_problems(directory, us)) == []
    (directory / keys.SECRET).chmod(0o644)
    (directory / keys.NODES).chmod(0o755)
    assert list(keys.permission_problems(directory, us)) == [
        f"{directory}/own.secret has mode 0644, expected 0600",
        f"{directory}/nodes has mode 0755, expected 0700",
    ]
    assert next(keys.permission_problems(directory, frozenset({77, 78}))) == (
        f"{directory} belongs to user {os.geteuid()}, expected 77 or 78"
    )
