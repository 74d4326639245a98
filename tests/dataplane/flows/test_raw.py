"""Real segments out of a real interface, at their pace."""

from __future__ import annotations

import socket
import subprocess
from collections.abc import Iterator

import numpy as np
import pytest

from services.dataplane.flows.raw import AT_ONCE, PER_SECOND, RawSender
from services.dataplane.flows.resets import Segments, segments
from tests.bpf.harness import private_network
from tests.dataplane.flows.made import address, flow_type, requests
from tests.dataplane.maps import maps

ETH_P_IP = 0x0800


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


PEER_MAC = bytes.fromhex("02000000000a")


@pytest.fixture
def wire() -> Iterator[socket.socket]:
    """The other end of pub0, where what is sent arrives. The host's routes lead elsewhere."""
    with private_network():
        for name, there in (("pub0", "peer"), ("other", "wrong")):
            run("ip", "link", "add", name, "type", "veth", "peer", "name", there)
            run("ip", "link", "set", name, "up")
            run("ip", "link", "set", there, "up")
        run("ip", "address", "add", "198.51.100.1/24", "dev", "other")
        run("ip", "route", "add", "default", "via", "198.51.100.254", "dev", "other")
        kind = socket.htons(ETH_P_IP)
        with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, kind) as peer:
            peer.bind(("peer", ETH_P_IP))
            peer.settimeout(10)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
            yield peer


def made(count: int, client: str = "192.0.2.7") -> Segments:
    with maps() as loaded:
        kind = flow_type(loaded.bpf[b"flows"])
        number = np.arange(count) + 1
        return segments(
            requests(kind, count, 1000, key_saddr=address(client), key_sport=number, acked=number)
        )


def to(mac: bytes, count: int) -> np.ndarray:
    return np.frombuffer(mac * count, np.uint8).reshape(count, 6)


def test_what_was_made_goes_to_the_last_hop_whatever_routes_say(wire: socket.socket) -> None:
    sender = RawSender("pub0")
    packets = made(5)
    sender.add(packets, to(PEER_MAC, 5))
    assert len(sender) == 5
    sender.turn(0)
    frames = [wire.recv(100) for _ in packets]
    assert [frame[14:] for frame in frames] == [bytes(packet) for packet in packets]
    assert {frame[:6] for frame in frames} == {PEER_MAC}
    assert {frame[12:14] for frame in frames} == {b"\x08\x00"}
    assert (len(sender), sender.sent, sender.refused) == (0, 5, 0)
    sender.close()


def test_where_nobody_knows_the_last_hop_routes_decide(wire: socket.socket) -> None:
    run("ip", "address", "add", "203.0.113.1/24", "dev", "pub0")
    lladdr = "02:00:00:00:00:0c"
    run("ip", "neighbour", "add", "203.0.113.7", "lladdr", lladdr, "dev", "pub0")
    sender = RawSender("pub0")
    (packet,) = made(1, "203.0.113.7")
    sender.add(packet.reshape(1, 40), to(bytes(6), 1))
    sender.turn(0)
    frame = wire.recv(100)
    assert frame[:6] == bytes.fromhex("02000000000c")
    # The kernel fills in the header's identification, and with it the checksum.
    assert frame[14 + 12 :] == bytes(packet)[12:]
    assert (sender.sent, sender.refused) == (1, 0)
    sender.close()


def test_so_many_a_second_and_no_more(wire: socket.socket) -> None:
    sender = RawSender("pub0")
    assert sender.next_ms() is None
    sender.add(made(1000), to(PEER_MAC, 1000))
    now_ms = 0
    while len(sender):
        due_ms = sender.next_ms()
        assert due_ms is not None
        now_ms = max(now_ms, due_ms)
        before = sender.sent
        sender.turn(now_ms)
        assert sender.sent - before <= AT_ONCE
        # Nothing more goes before it is due.
        after = sender.sent
        sender.turn(now_ms)
        assert sender.sent == after
    assert now_ms >= (1000 - AT_ONCE) * 1000 / PER_SECOND
    assert now_ms < 1000 * 1000 / PER_SECOND + 10
    sender.close()


def test_what_is_refused_is_given_up_and_the_others_are_told(wire: socket.socket) -> None:
    run("ip", "route", "del", "default")
    sender = RawSender("pub0")
    sender.add(made(2, "203.0.113.5"), to(bytes(6), 2))
    sender.add(made(1), to(PEER_MAC, 1))
    sender.turn(0)
    assert (sender.sent, sender.refused) == (1, 2)
    assert wire.recv(100)[14 + 16 : 14 + 20] == bytes([192, 0, 2, 7])
    sender.close()


def test_an_interface_that_is_not_there_is_said_at_once() -> None:
    with private_network(), pytest.raises(OSError, match="no interface with this name"):
        RawSender("pub0")
