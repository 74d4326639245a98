"""The sockets between LBs, over loopback: 127.0.0.2 and so on stand for the machines."""

from __future__ import annotations

import itertools
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import zmq

from bus.peer_protocol import Go, PeerMessage, ViewReport, encode_peer
from bus.words import NodeState
from services import resolve as resolve_module
from services.machine import Address
from services.quorum import peers as peers_module
from services.quorum.peers import MOST_AT_ONCE, STRANGER_LIMITS, Peers
from tests.quorum.views import seen, view

TIMEOUT_S = 30.0
_numbers = itertools.count()
Listed = dict[str, tuple[str, int]]


class Machines:
    """Several LBs in one process; `here` is the machine whose addresses are asked for."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        self.port = 18_000 + worker * 100 + next(_numbers)
        self.context: zmq.Context[Any] = zmq.Context()
        self.peers: dict[int, Peers] = {}
        self.here: list[str] = []
        monkeypatch.setattr(
            peers_module,
            "all_addresses",
            lambda: [Address("lo", address, 0) for address in self.here],
        )

    def place(self, number: int) -> str:
        return f"127.0.0.{number + 2}"

    def entry(self, number: int) -> str:
        return f"{self.place(number)}:{self.port}"

    def listed(self, *numbers: int) -> Listed:
        return {self.entry(number): (self.place(number), self.port) for number in numbers}

    def start(
        self, number: int, listed: Listed, *, cluster: str = "gale", boot: str = "b"
    ) -> Peers:
        made = Peers(self.context, cluster, f"lb-{number}", boot, lambda: None)
        made.expect(listed)
        self.peers[number] = made
        self.settle(number)
        return made

    def settle(self, number: int) -> None:
        """Until it is bound: a socket that was closed a moment ago may still have the port."""
        self.here = [self.place(number)]
        end_s = time.monotonic() + TIMEOUT_S
        while not self.peers[number].own:
            assert time.monotonic() < end_s, self.peers[number].waiting_for
            self.peers[number].soon()
            self.peers[number].settle(now_ms())
            time.sleep(0.01)

    def stop(self, number: int) -> None:
        self.peers.pop(number).close()

    def close(self) -> None:
        for number in list(self.peers):
            self.stop(number)
        self.context.destroy(linger=0)


def now_ms() -> int:
    return int(time.monotonic() * 1000)


@pytest.fixture
def machines(monkeypatch: pytest.MonkeyPatch) -> Iterator[Machines]:
    made = Machines(monkeypatch)
    yield made
    made.close()


def hears(
    peers: Peers, say: Callable[[], None], wanted: Callable[[list[tuple[str, PeerMessage]]], bool]
) -> list[tuple[str, PeerMessage]]:
    """All that is heard until it is what is wanted; meanwhile it is said again and again."""
    heard: list[tuple[str, PeerMessage]] = []
    end_s = time.monotonic() + TIMEOUT_S
    while time.monotonic() < end_s:
        say()
        peers.socket.poll(20)
        heard += peers.receive(now_ms())[0]
        if wanted(heard):
            return heard
    raise AssertionError(f"heard {heard[-3:]}, refused {peers.admission.refused}")


def test_members_hear_one_another_by_their_entries(machines: Machines) -> None:
    listed = machines.listed(0, 1, 2)
    first, second, third = (machines.start(number, listed) for number in range(3))
    assert first.own == machines.entry(0)
    assert first.waiting_for == ""

    def say() -> None:
        for peers, name in ((second, "lb-1"), (third, "lb-2")):
            peers.send(machines.entry(0), Go(name, 3))

    heard = hears(first, say, lambda all_: len({entry for entry, _ in all_}) == 2)
    assert {(entry, message.sender) for entry, message in heard} == {
        (machines.entry(1), "lb-1"),
        (machines.entry(2), "lb-2"),
    }
    assert not first.admission.refused


def test_a_large_message_arrives_whole(machines: Machines) -> None:
    listed = machines.listed(0, 1)
    first, second = (machines.start(number, listed) for number in range(2))
    report = ViewReport(
        "lb-1", "h", view(*(seen(f"node-{n}", NodeState.UP) for n in range(10_000))), 5
    )
    heard = hears(first, lambda: second.send(machines.entry(0), report), bool)
    assert heard[0] == (machines.entry(1), report)


def test_who_is_not_in_the_list_is_not_heard(machines: Machines) -> None:
    first = machines.start(0, machines.listed(0, 1))
    stranger = machines.start(2, machines.listed(0, 2))
    hears(
        first,
        lambda: stranger.send(machines.entry(0), Go("lb-2", 3)),
        lambda _: first.admission.refused["not_listed"] > 0,
    )
    (told,) = first.admission.take_untold()
    assert told.peer == machines.place(2)


def test_another_cluster_is_not_heard(machines: Machines) -> None:
    listed = machines.listed(0, 1)
    first = machines.start(0, listed)
    foreign = machines.start(1, listed, cluster="breeze")
    hears(
        first,
        lambda: foreign.send(machines.entry(0), Go("lb-1", 3)),
        lambda _: first.admission.refused["cluster"] > 0,
    )
    (told,) = first.admission.take_untold()
    assert told.told == "cluster: it is of the cluster breeze"


def test_a_member_that_comes_back_is_heard_again(machines: Machines) -> None:
    listed = machines.listed(0, 1)
    first, second = (machines.start(number, listed) for number in range(2))
    hears(first, lambda: second.send(machines.entry(0), Go("lb-1", 3)), bool)
    machines.stop(1)
    again = machines.start(1, listed, boot="c")
    hears(first, lambda: again.send(machines.entry(0), Go("lb-1", 3)), bool)
    hears(again, lambda: first.send(machines.entry(1), Go("lb-0", 3)), bool)


def test_it_waits_for_an_address_of_its_own_and_for_one_alone(machines: Machines) -> None:
    peers = Peers(machines.context, "gale", "lb-0", "b", lambda: None)
    machines.peers[0] = peers
    peers.expect(machines.listed(0, 1))
    machines.here = ["192.0.2.7"]
    peers.settle(0)
    assert peers.waiting_for.startswith("an address of this machine that load_balancer_quorum")
    machines.here = [machines.place(0), machines.place(1)]
    peers.settle(1_000)
    assert peers.waiting_for.startswith("one entry of its own: ")
    assert peers.own == ""
    machines.here = [machines.place(1)]
    peers.settle(1_500)
    assert peers.own == "", "it looks once a second"
    peers.settle(2_000)
    assert (peers.own, peers.waiting_for) == (machines.entry(1), "")


def test_names_are_resolved_and_followed(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = {"a.example": machines.place(0), "b.example": machines.place(1)}
    monkeypatch.setattr("services.resolve.resolve", lambda name, _: [names[name]])
    listed = {f"{name}:{machines.port}": (name, machines.port) for name in names}
    first, second = (machines.start(number, listed) for number in range(2))
    entry = f"b.example:{machines.port}"
    assert second.own == entry

    def say() -> None:
        for number, peers in machines.peers.items():
            machines.here = [machines.place(number)]
            peers.soon()
            peers.settle(now_ms())
        second.send(f"a.example:{machines.port}", Go("lb-1", 3))

    assert hears(first, say, bool)[0] == (entry, Go("lb-1", 3))


def test_who_breaks_the_protocol_is_tried_again(machines: Machines) -> None:
    """A port that something else than Gale has, for a while."""
    listed = machines.listed(0, 1)
    junk: zmq.Socket[bytes] = machines.context.socket(zmq.STREAM)
    junk.bind(f"tcp://{machines.entry(1)}")
    first = machines.start(0, listed)
    assert junk.poll(int(TIMEOUT_S * 1000))
    identity = junk.recv()
    junk.send_multipart([identity, b"SSH-2.0-OpenSSH_9.2\r\n" * 4])
    junk.close(linger=0)
    second = machines.start(1, listed)
    later_ms = now_ms()

    def say() -> None:
        nonlocal later_ms
        later_ms += peers_module.RENEW_MS // 10
        for number, peers in machines.peers.items():
            machines.here = [machines.place(number)]
            peers.settle(later_ms)
        first.send(machines.entry(1), Go("lb-0", 3))
        time.sleep(0.05)

    hears(second, say, bool)


def test_a_flood_does_not_keep_the_loop(machines: Machines) -> None:
    first = machines.start(0, machines.listed(0, 1))
    flood: zmq.Socket[bytes] = machines.context.socket(zmq.DEALER)
    flood.setsockopt(zmq.SNDHWM, 0)
    flood.connect(f"tcp://127.0.0.9:0;{machines.entry(0)}")
    many_parts = [b"x"] * 5_000
    flood.send_multipart(many_parts)
    for number in range(3 * MOST_AT_ONCE):
        flood.send_multipart(encode_peer(Go("lb-1", 1), "gale", "b", number))
    end_s = time.monotonic() + TIMEOUT_S
    while first.admission.refused["not_listed"] < 3 * MOST_AT_ONCE + 1:
        assert time.monotonic() < end_s
        first.socket.poll(20)
        heard, _ = first.receive(now_ms())
        assert heard == []
    flood.close(linger=0)


def test_two_ways_to_write_a_machine_are_one_by_the_first(machines: Machines) -> None:
    listed = machines.listed(0, 1)
    other = {f"again-{entry}": place for entry, place in listed.items()}
    first = machines.start(0, listed | other)
    assert first.own == machines.entry(0)
    assert first.aliases == {machines.entry(0), f"again-{machines.entry(0)}"}
    assert set(first._links) == {machines.entry(1)}


def test_who_knocks_is_told_by_its_name_and_where_it_listens(machines: Machines) -> None:
    member = machines.start(0, machines.listed(0, 1))
    newcomer = machines.start(2, machines.listed(0, 2))
    end_s = time.monotonic() + TIMEOUT_S
    while not member.admission.applicants(now_ms()):
        assert time.monotonic() < end_s
        newcomer.send(machines.entry(0), Go("lb-2", 1))
        assert member.receive(now_ms())[0] == [], "it is not heard"
        time.sleep(0.01)
    assert member.admission.applicants(now_ms()) == {machines.entry(2): "lb-2"}


def test_an_entry_of_the_file_means_the_member_at_the_same_place(
    machines: Machines, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(resolve_module, "resolve", lambda *_: [machines.place(1)])
    made = machines.start(0, machines.listed(0, 1))
    port = machines.port
    named: Listed = {f"lb-1.test:{port}": ("lb-1.test", port)}
    elsewhere: Listed = {f"lb-1.test:{port + 1}": ("lb-1.test", port + 1)}
    made.expect(machines.listed(0, 1), None, machines.listed(0, 3) | named | elsewhere)
    made.settle(now_ms())
    end_s = time.monotonic() + TIMEOUT_S
    while "" in made.meant.values() or len(made.meant) < 4:
        assert time.monotonic() < end_s, made.meant
        made.soon()
        made.settle(now_ms())
        time.sleep(0.01)
    same = (machines.entry(0), machines.entry(3), f"lb-1.test:{port + 1}")
    assert made.meant == {**{each: each for each in same}, f"lb-1.test:{port}": machines.entry(1)}
    assert set(made._links) == {machines.entry(1)}, "the others are not spoken to"
    made.expect(machines.listed(0, 1), None, {"lb-9.test:1": ("lb-9.test", 1)})
    monkeypatch.setattr(made._resolver, "address", lambda host: None)
    made.settle(now_ms())
    assert made.meant == {"lb-9.test:1": ""}


def test_a_stranger_keeps_nobody_from_being_heard(machines: Machines) -> None:
    listed = machines.listed(0, 1)
    first, second = (machines.start(number, listed) for number in range(2))
    hears(first, lambda: second.send(machines.entry(0), Go("lb-1", 3)), bool)
    wanted = STRANGER_LIMITS.of_address + 20
    place = machines.place(0), machines.port
    with ExitStack() as opened:
        for _ in range(wanted):
            connection = socket.create_connection(place, source_address=("127.0.0.99", 0))
            opened.enter_context(connection)
        end_s = time.monotonic() + TIMEOUT_S
        while first.admission.refused["too_many_connections"] < 20:
            assert time.monotonic() < end_s, first.admission.refused
            first.settle(now_ms())
            time.sleep(0.01)
        heard = hears(first, lambda: second.send(machines.entry(0), Go("lb-1", 4)), bool)
    assert heard[-1] == (machines.entry(1), Go("lb-1", 4))
    assert first.admission.refused["too_many_connections"] == 20
