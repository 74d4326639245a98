"""Names to addresses: by the system's resolver, and by multicast DNS on loopback."""

from __future__ import annotations

import os
import socket
import threading
import uuid
from threading import Event

import pytest
import zeroconf

from services import resolve as resolve_module
from services.resolve import Resolver, is_address, resolve
from tests.health.processes import eventually
from tests.node.host_state import tool
from tests.node.wire import inside


def test_what_is_an_address_needs_no_thread() -> None:
    resolver = Resolver(lambda: None)
    resolver.want(("10.0.0.1", "fe80::1"))
    assert resolver.address("10.0.0.1") == "10.0.0.1"
    assert resolver.address("fe80::1") == "fe80::1"
    assert resolver._thread is None
    assert not is_address("lb-0.local")


def test_a_name_is_resolved_in_the_background_and_wakes_the_loop() -> None:
    woken = Event()
    resolver = Resolver(woken.set)
    assert resolver.failure("localhost") == "localhost: being resolved"
    resolver.want(("localhost",))
    assert woken.wait(30)
    assert resolver.address("localhost") == "127.0.0.1"


def test_a_name_that_is_unknown_says_so_and_is_asked_for_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    answers = [None, None, "10.0.0.7", None]
    asked = []

    def scripted(name: str, _interfaces: list[str] | None) -> list[str]:
        asked.append(name)
        answer = answers.pop(0) if answers else None
        if answer is None:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return [answer]

    monkeypatch.setattr(resolve_module, "resolve", scripted)
    monkeypatch.setattr(resolve_module, "RETRY_S", 0.01)
    monkeypatch.setattr(resolve_module, "REFRESH_S", 0.01)
    woken = Event()
    resolver = Resolver(woken.set)
    resolver.want(("lb.example",))
    assert woken.wait(30)
    eventually(lambda: resolver.address("lb.example") == "10.0.0.7")
    eventually(lambda: len(asked) > 5)
    assert resolver.address("lb.example") == "10.0.0.7", "the last answer stays"
    resolver.want(())


def test_its_own_name_is_the_address_that_it_asks_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve_module, "resolve", lambda *_: ["10.0.0.7"])
    here: list[str | None] = ["10.0.0.9"]
    resolver = Resolver(lambda: None, lambda: here[0], "LB-0.local")
    resolver.want(("lb-0.local", "lb-1.local"))
    assert resolver.address("lb-0.local.") == "10.0.0.9"
    here[0] = "10.0.0.10"
    assert resolver.address("lb-0.local") == "10.0.0.10"
    eventually(lambda: resolver.address("lb-1.local") == "10.0.0.7")
    resolver.want(())


def test_of_several_addresses_the_one_in_use_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [["10.0.0.1", "10.0.0.2"], ["10.0.0.2", "10.0.0.1"], ["10.0.0.2", "10.0.0.3"]]
    seen: list[str | None] = []

    def scripted(name: str, _interfaces: list[str] | None) -> list[str]:
        seen.append(resolver.address(name))
        return answers.pop(0) if len(answers) > 1 else answers[0]

    monkeypatch.setattr(resolve_module, "resolve", scripted)
    monkeypatch.setattr(resolve_module, "REFRESH_S", 0.01)
    resolver = Resolver(lambda: None)
    resolver.want(("lb.example",))
    eventually(lambda: len(seen) > 4)
    assert seen[:4] == [None, "10.0.0.1", "10.0.0.1", "10.0.0.2"]
    resolver.want(())


def test_a_name_whose_address_is_in_doubt_is_asked_for_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = ["10.0.0.1"]
    asked: list[list[str] | None] = []

    def scripted(_name: str, interfaces: list[str] | None) -> list[str]:
        asked.append(interfaces)
        return list(now)

    monkeypatch.setattr(resolve_module, "resolve", scripted)
    resolver = Resolver(lambda: None, lambda: "10.0.0.9")
    resolver.want(("lb.example",))
    eventually(lambda: resolver.address("lb.example") == "10.0.0.1")
    now[:] = ["10.0.0.2"]
    resolver.ask_again("lb.example")
    resolver.ask_again("unknown.example")
    eventually(lambda: resolver.address("lb.example") == "10.0.0.2")
    assert asked == [["10.0.0.9"], ["10.0.0.9"]]
    resolver.want(())


@pytest.mark.parametrize(
    "error", [UnicodeError("label\ntoo long"), RuntimeError("no"), KeyError(), OSError(5, "io")]
)
def test_whatever_a_resolver_raises_is_that_names_failure(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def scripted(name: str, _interfaces: list[str] | None) -> list[str]:
        if name == "bad.example":
            raise error
        return ["10.0.0.7"]

    monkeypatch.setattr(resolve_module, "resolve", scripted)
    woken = Event()
    resolver = Resolver(woken.set)
    resolver.want(("bad.example", "good.example"))
    eventually(lambda: resolver.address("good.example") == "10.0.0.7")
    assert resolver.failure("bad.example").startswith("bad.example cannot be resolved: ")
    assert resolver.failure("bad.example").isprintable()


def test_a_machine_without_any_address_asks_nobody_and_goes_on() -> None:
    name = f"gale-alone-{os.getpid()}"
    tool("ip", "netns", "add", name)
    try:
        with inside(name), pytest.raises(OSError, match=r"."):
            resolve("nobody-here.local")
    finally:
        tool("ip", "netns", "del", name)


def test_a_thread_that_has_died_ends_whoever_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threading, "excepthook", lambda _: None)
    monkeypatch.setattr(resolve_module, "RETRY_S", "no number")
    resolver = Resolver(lambda: None)
    assert resolver.address("lb.example") is None
    monkeypatch.setattr(resolve_module, "resolve", lambda *_: ["10.0.0.7"])
    monkeypatch.setattr(resolve_module, "REFRESH_S", "no number")
    resolver.want(("lb.example",))

    def has_died() -> bool:
        try:
            resolver.address("10.0.0.7")
        except RuntimeError as error:
            return str(error) == "the resolver has died"
        return False

    eventually(has_died)


def test_a_local_name_is_found_by_multicast() -> None:
    host = f"gale-{uuid.uuid4().hex[:8]}.local"
    answerer = zeroconf.Zeroconf(interfaces=["127.0.0.1"])
    try:
        answerer.register_service(
            zeroconf.ServiceInfo(
                "_gale._tcp.local.",
                f"{host.split('.')[0]}._gale._tcp.local.",
                port=7070,
                server=f"{host}.",
                # The first is what a machine's own responder tells on the loopback.
                addresses=[socket.inet_aton(each) for each in ("127.0.0.1", "10.81.0.10")],
            )
        )
        assert resolve(host, ["127.0.0.1"]) == ["10.81.0.10"]
    finally:
        answerer.close()
