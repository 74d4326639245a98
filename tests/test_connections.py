"""What an address may cost at a port of libzmq's, and who is spared that: on real sockets."""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import zmq

from bus import tcp
from bus.socket import monotonic_ms
from services.connections import Connections, Limits
from tests.health.stranger import Stranger, part

STRANGER, MEMBER, KNOWN, ALSO_KNOWN = (f"127.0.0.{host}" for host in range(2, 6))
LIMITS = Limits(of_address=3, burst_bytes=200_000, bytes_per_s=1_000)
PATIENCE_S = 20.0
PART = part(bytes(60_000), more=True)
"""Of a message that goes on: libzmq keeps it until the end is there."""


class Port:
    """A ROUTER that others connect to, and its book."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.rejected: Counter[str] = Counter()
        self.members = {MEMBER}
        self.socket = tcp.accepting(context, 1 << 20)
        self.book = Connections(
            context,
            self.socket,
            self.rejected,
            self.limits_of,
            monotonic_ms(),
            is_known=lambda address: address in (KNOWN, ALSO_KNOWN),
        )
        self.socket.bind("tcp://127.0.0.1:*")
        endpoint = str(self.socket.get_string(zmq.LAST_ENDPOINT)).rstrip("\0")
        self.number = int(endpoint.rpartition(":")[2])
        self.opened: list[socket.socket] = []

    def limits_of(self, address: str) -> Limits | None:
        return None if address in self.members else LIMITS

    def connect(self, source: str) -> socket.socket:
        opened = socket.create_connection(("127.0.0.1", self.number), source_address=(source, 0))
        opened.settimeout(PATIENCE_S)
        self.opened.append(opened)
        return opened

    def until(self, condition: Callable[[], Any]) -> None:
        end_s = time.monotonic() + PATIENCE_S
        while not condition():
            assert time.monotonic() < end_s, self.rejected
            self.book.turn(monotonic_ms(), hasty=True)
            time.sleep(0.01)


@pytest.fixture
def port() -> Iterator[Port]:
    context: zmq.Context[Any] = zmq.Context()
    made = Port(context)
    yield made
    for opened in made.opened:
        opened.close()
    made.book.close()
    made.socket.close(linger=0)
    context.term()


def is_open(connection: socket.socket) -> bool:
    connection.settimeout(0.01)
    try:
        while connection.recv(4096):
            pass
    except (TimeoutError, BlockingIOError):
        return True
    except OSError:
        return False
    return False


def send_parts(port: Port, sender: Stranger) -> None:
    for _ in range(20):
        if not sender.send(PART):
            return
        port.book.turn(monotonic_ms(), hasty=True)


def test_a_stranger_has_so_many_connections_and_a_member_as_many_as_it_likes(port: Port) -> None:
    strangers = [port.connect(STRANGER) for _ in range(8)]
    members = [port.connect(MEMBER) for _ in range(8)]
    port.until(lambda: port.rejected["too_many_connections"] == 5)
    port.until(lambda: sum(map(is_open, strangers)) == 3)
    assert all(map(is_open, members))
    assert "127.0.0.2: too many connections" in port.book.offender


def test_when_no_descriptor_is_left_strangers_make_room_for_whom_is_known(port: Port) -> None:
    port.book._most = 4
    known = [port.connect(KNOWN) for _ in range(2)]
    strangers = [port.connect(STRANGER) for _ in range(2)]
    port.until(lambda: len(port.book) == 4)
    known.append(port.connect(KNOWN))
    port.until(lambda: port.rejected["too_many_connections_in_all"] == 1)
    port.until(lambda: len(port.book) == 4)
    assert all(map(is_open, known))
    assert sum(map(is_open, strangers)) == 1
    known.append(port.connect(ALSO_KNOWN))
    port.until(lambda: port.rejected["too_many_connections_in_all"] == 2)
    port.until(lambda: len(port.book) == 4)
    assert all(map(is_open, known))
    assert not any(map(is_open, strangers))


def test_when_no_descriptor_is_left_a_stranger_takes_nobodys_place(port: Port) -> None:
    port.book._most = 2
    opened = [port.connect(KNOWN), port.connect(STRANGER)]
    port.until(lambda: len(port.book) == 2)
    late = port.connect("127.0.0.9")
    port.until(lambda: port.rejected["too_many_connections_in_all"] == 1)
    port.until(lambda: not is_open(late))
    assert all(map(is_open, opened))


def test_a_stranger_brings_so_many_bytes_and_a_member_as_many_as_it_likes(port: Port) -> None:
    stranger, member = Stranger(port.number, STRANGER), Stranger(port.number, MEMBER)
    send_parts(port, member)
    send_parts(port, stranger)
    port.until(lambda: port.rejected["too_many_bytes"] == 1)
    assert stranger.hung_up()
    assert is_open(member.socket)
    assert port.rejected == {"too_many_bytes": 1}


def test_who_is_a_member_no_more_is_a_stranger_from_then_on(port: Port) -> None:
    member = Stranger(port.number, MEMBER)
    send_parts(port, member)
    port.members.clear()
    time.sleep(0.1)
    port.book.turn(monotonic_ms(), hasty=True)
    assert is_open(member.socket)  # what it brought as a member is not held against it
    member.socket.settimeout(PATIENCE_S)
    send_parts(port, member)
    port.until(lambda: port.rejected["too_many_bytes"] == 1)
