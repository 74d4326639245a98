"""Where the port for nodes is bound: at the interface's present address, and nowhere else."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest
import zmq

from services.health import listener as module
from services.health.listener import Listener
from tests.health.processes import eventually, free_port


@pytest.fixture
def listener() -> Iterator[Listener]:
    with zmq.Context() as context:
        made = Listener(context)
        yield made
        made.close()


def listens(port: int, address: str = "127.0.0.1") -> bool:
    with socket.socket() as asking:
        return asking.connect_ex((address, port)) == 0


def test_at_another_port_the_one_of_before_is_let_go(listener: Listener) -> None:
    first, second = free_port(), free_port()
    listener.settle("lo", first)
    assert listens(first)
    listener.settle("lo", second)
    assert listens(second)
    eventually(lambda: not listens(first), "the end of the first")
    listener.settle("lo", second)
    assert listens(second)


def test_at_another_address_the_one_of_before_is_let_go(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    listener.settle("lo", port)
    monkeypatch.setattr(module, "own_address", lambda _: "127.0.0.7")
    listener.settle("lo", port)
    assert listens(port, "127.0.0.7")
    eventually(lambda: not listens(port), "the end of the first")


def test_while_the_next_port_is_taken_the_one_of_before_stays(listener: Listener) -> None:
    port, taken = free_port(), free_port()
    listener.settle("lo", port)
    with socket.create_server(("127.0.0.1", taken)):
        listener.settle("lo", taken)
        assert "in use" in listener.waiting_for
        assert listener.endpoint == f"tcp://127.0.0.1:{port}"
        assert listens(port)
    listener.settle("lo", taken)
    assert (listener.waiting_for, listens(taken)) == ("", True)
    eventually(lambda: not listens(port), "the end of the first")


def test_an_address_that_is_gone_for_a_while_is_waited_for(
    listener: Listener, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = free_port()
    listener.settle("lo", port)
    with monkeypatch.context() as patched:
        patched.setattr(module, "own_address", lambda _: None)
        listener.settle("lo", port)
        assert listener.waiting_for == "an IPv4 address on lo (local.net_interface_private)"
    listener.settle("lo", port)
    assert (listener.waiting_for, listens(port)) == ("", True)
