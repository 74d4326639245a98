"""What strangers on the private network may cost the health process, and what of it stays."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from bus.node_protocol import (
    Hello,
    encode_node,
)
from bus.states import NodeView
from bus.topics import Topic
from bus.words import NodeState
from services.health.listener import LARGEST_FRAME, Listener
from services.health.main import LIMITS
from tests.health.processes import Site, eventually, site
from tests.health.stranger import Stranger, message, part

UP = NodeState.UP
HELLO = message(encode_node(Hello(1, "x", "b", 1, ())))
ROOM_BYTES = 160 << 20
"""What the process may grow by while a stranger does his worst."""


@contextlib.contextmanager
def busy_site() -> Iterator[tuple[Site, int]]:
    """A health process with a node that is UP and stays so; and the process's number."""
    with site() as at:
        health, _ = at.bring_up()
        yield at, health.pid
        assert health.poll() is None, at.log()
        node = next(n for n in nodes(at) if n.name == "node-0")
        assert node.state is UP
        downs = [event for topic, event in at.events if topic is Topic.NODE_DOWN]
        assert [event for event in downs if event.name == "node-0"] == []


def nodes(at: Site) -> list[NodeView]:
    view = at.look()
    return list(view.nodes) if view is not None else []


def rejected(at: Site, reason: str) -> int:
    return at.rejected().get(reason, 0)


def resident_bytes(pid: int) -> int:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def test_connections_of_one_address_have_an_end() -> None:
    with busy_site() as (at, pid):
        before = descriptors(pid)
        extra = 100
        strangers = []
        for _ in range(LIMITS.of_address + extra):
            with contextlib.suppress(OSError):  # the last ones may be shut down in the handshake
                strangers.append(Stranger(at.node_port))
        eventually(lambda: rejected(at, "too_many_connections") >= extra)
        eventually(lambda: descriptors(pid) <= before + LIMITS.of_address + 10)
        other = Stranger(at.node_port, "127.0.0.3")
        other.send(HELLO)
        eventually(lambda: any(n.id == "x@127.0.0.3" for n in nodes(at)), "others are heard")
        for stranger in (*strangers, other):
            stranger.close()
        eventually(lambda: descriptors(pid) <= before + 10, "nothing of it stays")
        again = Stranger(at.node_port)
        again.send(HELLO)
        eventually(lambda: any(n.id == "x@127.0.0.2" for n in nodes(at)))
        again.close()


@pytest.mark.parametrize("size", [0, 60_000])
def test_a_message_without_an_end_is_cut_off(size: int) -> None:
    with busy_site() as (at, pid):
        before = resident_bytes(pid)
        stranger = Stranger(at.node_port)
        some = part(bytes(size), more=True) * (20_000 if size == 0 else 1)
        sent = 0
        while stranger.send(some):
            sent += len(some)
            assert sent < 300 << 20, "nobody has stopped it"
        stranger.close()
        eventually(lambda: rejected(at, "too_many_bytes") == 1)
        assert resident_bytes(pid) < before + ROOM_BYTES
        eventually(lambda: "a connection was shut down" in at.log())


def test_a_message_of_very_many_parts_is_read_in_pieces_and_is_one_fault() -> None:
    with busy_site() as (at, _):
        stranger = Stranger(at.node_port)
        parts = LIMITS.burst_bytes // 4
        stranger.send(part(b"x", more=True) * parts + part(b"", more=False))
        eventually(lambda: rejected(at, "malformed") == 1)
        stranger.send(HELLO)
        eventually(lambda: any(n.name == "x" for n in nodes(at)), "the next message is read right")
        assert at.rejected() == {"malformed": 1}
        stranger.close()


def test_of_a_message_of_many_parts_no_more_is_kept_than_shows_it() -> None:
    with zmq.Context() as context:
        listener = Listener(context)
        port = listener.socket.bind_to_random_port("tcp://127.0.0.1")
        try:
            stranger = Stranger(port)
            stranger.send(message([b"x"] * 10_000) + HELLO)
            assert eventually(listener.receive).frames == [b"x"] * 3
            empty = 0
            while (received := eventually(listener.receive)).frames == []:
                empty += 1
            assert empty == 10, "the rest takes some turns"
            assert received.frames[0] == b"hello"
            assert received.address == "127.0.0.2"
            stranger.close()
        finally:
            listener.close()


def test_one_part_that_is_too_long_ends_the_connection() -> None:
    with busy_site() as (at, _):
        stranger = Stranger(at.node_port)
        stranger.send(part(bytes(LARGEST_FRAME + 1), more=False))
        assert stranger.hung_up()
        stranger.close()


def test_a_flood_of_messages_is_cut_off() -> None:
    with busy_site() as (at, pid):
        before = resident_bytes(pid)
        stranger = Stranger(at.node_port)
        while stranger.send(HELLO * 1_000):
            continue
        stranger.close()
        eventually(lambda: rejected(at, "too_many_bytes") == 1)
        assert resident_bytes(pid) < before + ROOM_BYTES


def test_an_agent_that_says_much_now_and_then_is_borne() -> None:
    """Its longest hello, again and again, as after each change of a file."""
    with busy_site() as (at, _):
        stranger = Stranger(at.node_port)
        for _ in range(4):
            assert stranger.send(message([b"hello", bytes(LARGEST_FRAME - 10_000)]))
        stranger.send(HELLO)
        eventually(lambda: any(n.name == "x" for n in nodes(at)))
        stranger.close()


def test_connections_that_are_reset_while_they_are_full_do_no_harm() -> None:
    """libzmq does not survive it where it has stopped reading: so it must never stop."""
    with zmq.Context() as context:
        listener = Listener(context)
        port = listener.socket.bind_to_random_port("tcp://127.0.0.1")
        try:
            stranger = Stranger(port)
            much = message([b"noise", bytes(1_000)]) * 20_000  # more than the kernel's buffers hold
            assert stranger.send(much), "it has stopped reading"
            stranger.reset()
            assert listener.receive() is not None
        finally:
            listener.close()
