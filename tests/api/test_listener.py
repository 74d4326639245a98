"""Who is answered: the private network and this machine, whatever routes lead here."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import threading
from collections.abc import Iterator

import pytest

from services.api.listener import OwnSideSocket
from tests.node.host_state import tool
from tests.node.wire import inside

PORT = 5555
PRIVATE, PUBLIC = "10.81.0.10", "10.80.0.10"
NODE, CLIENT, ADMIN, STRANGER = "10.81.0.20", "10.80.0.2", "10.90.0.5", "203.0.113.7"
_numbers = itertools.count()


@pytest.fixture(scope="module")
def machines() -> Iterator[tuple[str, str]]:
    """An LB with two cables to one machine that is everybody else, and that knows all the ways."""
    number = f"{os.getpid()}-{next(_numbers)}"
    lb, others = f"gale-lb-{number}", f"gale-others-{number}"
    with contextlib.ExitStack() as stack:
        for name in (lb, others):
            tool("ip", "netns", "add", name)
            stack.callback(tool, "ip", "netns", "del", name)
            tool("ip", "-n", name, "link", "set", "lo", "up")
        for cable, network in (("pub0", "10.80.0"), ("priv0", "10.81.0")):
            end = ("type", "veth", "peer", "name", cable, "netns", others)
            tool("ip", "-n", lb, "link", "add", cable, *end)
            for name, host in ((lb, "10"), (others, "254")):
                tool("ip", "-n", name, "link", "set", cable, "up")
                tool("ip", "-n", name, "address", "add", f"{network}.{host}/24", "dev", cable)
        for address in (NODE, CLIENT, ADMIN, STRANGER):
            tool("ip", "-n", others, "address", "add", f"{address}/32", "dev", "lo")
        for where, way in (("default", "10.80.0.254"), (f"{ADMIN}/24", "10.81.0.254")):
            network = where.replace(".5/24", ".0/24")
            tool("ip", "-n", lb, "route", "add", network, "via", way)
        for name in (lb, others):
            for interface in ("all", "pub0", "priv0", "lo"):
                setting = f"net.ipv4.conf.{interface}.rp_filter=0"
                tool("nsenter", f"--net=/run/netns/{name}", "sysctl", "-qw", setting)
        yield lb, others


@contextlib.contextmanager
def serving(lb: str, address: str) -> Iterator[None]:
    with inside(lb):
        made = OwnSideSocket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        made.bind((address, PORT))
        made.listen(8)

    def serve() -> None:
        with inside(lb), contextlib.suppress(OSError):
            while True:
                connection, _ = made.accept()
                with connection:
                    connection.sendall(b"hello")

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    try:
        yield
    finally:
        made.shutdown(socket.SHUT_RDWR)
        made.close()
        thread.join(30)


def said(where: str, source: str, to: str, cable: str | None) -> str:
    """What somebody hears who calls from that address, by that cable; empty: he is hung up on."""
    with inside(where), socket.socket() as caller:
        caller.settimeout(30)
        if cable is not None:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, cable.encode())
        caller.bind((source, 0))
        caller.connect((to, PORT))
        with contextlib.suppress(ConnectionResetError):
            return caller.recv(100).decode()
        return ""


@pytest.mark.parametrize(
    ("source", "is_answered"),
    [(NODE, True), (ADMIN, True), (CLIENT, False), (STRANGER, False)],
)
def test_the_private_address_answers_whom_it_would_speak_to(
    machines: tuple[str, str], source: str, is_answered: bool
) -> None:
    lb, others = machines
    way = ("via", PUBLIC, "dev", "pub0")
    with serving(lb, PRIVATE):
        # By the private cable, as a router that stands on both networks would lead there.
        assert bool(said(others, source, PRIVATE, None)) is is_answered
        # By the public one: this machine takes packets for any of its addresses on each.
        tool("ip", "-n", others, "route", "add", f"{PRIVATE}/32", *way)
        try:
            assert bool(said(others, source, PRIVATE, None)) is is_answered
        finally:
            tool("ip", "-n", others, "route", "del", f"{PRIVATE}/32", *way)


def test_this_machine_is_answered_at_both_addresses(machines: tuple[str, str]) -> None:
    lb, _ = machines
    for address in (PRIVATE, "127.0.0.1"):
        with serving(lb, address):
            assert said(lb, address, address, None) == "hello"
