"""LBs that know one another by their keys, over loopback: 127.0.0.2 and so on are the machines."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import keys
from bus.keys import KeyDirectory
from bus.peer_protocol import Go
from services.cli.keygen import make_cluster
from services.machine import Address
from services.quorum import peers as peers_module
from services.quorum.peers import RENEW_MS, Peers

TIMEOUT_S = 30.0
_numbers = itertools.count()


def now_ms() -> int:
    return int(time.monotonic() * 1000)


class Cluster:
    """Two LBs, each with a context and keys of its own, and what the first has heard."""

    def __init__(self, directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        worker = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
        port = 17_000 + worker * 100 + next(_numbers)
        self.directory = directory
        make_cluster(directory, ("lb-0", "lb-1"), ())
        self.entries = [f"127.0.0.{number + 2}:{port}" for number in range(2)]
        self.listed = {entry: (entry.partition(":")[0], port) for entry in self.entries}
        self.names = {entry: f"lb-{number}" for number, entry in enumerate(self.entries)}
        self.here = ""
        monkeypatch.setattr(peers_module, "all_addresses", lambda: [Address("lo", self.here, 0)])
        self.contexts: list[zmq.Context[Any]] = []
        self.peers: list[Peers] = []
        self.heard: list[str] = []

    def start(self, *, without_keys: int | None = None) -> None:
        for number in range(2):
            self.contexts.append(zmq.Context())
            known = None
            if number != without_keys:
                known = KeyDirectory(self.directory / f"lb-{number}", (keys.LBS,))
            boot = f"boot-{number}"
            peers = Peers(self.contexts[-1], "gale", f"lb-{number}", boot, lambda: None, known)
            peers.expect(self.listed, self.names)
            self.peers.append(peers)

    def turn(self) -> None:
        """The second speaks to the first all the time."""
        for number, peers in enumerate(self.peers):
            self.here = f"127.0.0.{number + 2}"
            peers.soon()
            peers.settle(now_ms())
        self.peers[1].send(self.entries[0], Go("lb-1", 3))
        self.peers[0].socket.poll(10)
        for number, peers in enumerate(self.peers):
            heard = [entry for entry, _ in peers.receive(now_ms())[0]]
            self.heard += heard if number == 0 else []

    def until(self, condition: Callable[[], object]) -> None:
        end_s = time.monotonic() + TIMEOUT_S
        while not condition():
            assert time.monotonic() < end_s, (self.refused, self.peers[0].waiting_for)
            self.turn()

    @property
    def refused(self) -> dict[str, int]:
        return self.peers[0].admission.refused

    def list_of(self, number: int, other: int) -> Path:
        """Where an LB has the public keys of another."""
        return self.directory / f"lb-{number}" / keys.LBS / f"lb-{other}{keys.SUFFIX}"

    def close(self) -> None:
        for peers in self.peers:
            peers.close()
        for context in self.contexts:
            context.destroy(linger=0)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    made = Cluster(tmp_path, monkeypatch)
    yield made
    made.close()


def test_members_are_heard_by_their_keys(cluster: Cluster) -> None:
    cluster.start()
    cluster.until(lambda: cluster.heard)
    assert set(cluster.heard) == {cluster.entries[1]}
    assert not cluster.refused


def test_a_member_whose_key_is_not_there_is_not_heard_until_it_is(cluster: Cluster) -> None:
    path = cluster.list_of(0, 1)
    public = path.read_bytes().strip()
    path.unlink()
    cluster.start()
    cluster.until(lambda: cluster.refused.get("key_not_admitted"))
    assert cluster.heard == []
    keys.write_key(path, public)
    cluster.until(lambda: cluster.heard)


def test_a_member_whose_key_is_taken_away_is_cut_off(cluster: Cluster) -> None:
    cluster.start()
    cluster.until(lambda: cluster.heard)
    cluster.list_of(0, 1).unlink()
    cluster.until(lambda: cluster.refused.get("not_listed"))
    cluster.heard.clear()
    for _ in range(30):
        cluster.turn()
    assert cluster.heard == []


def test_the_right_one_of_a_members_keys_is_found(cluster: Cluster) -> None:
    path = cluster.list_of(1, 0)
    public = path.read_bytes().strip()
    keys.write_key(path, bytes(zmq.curve_keypair()[0]), public)
    cluster.start()
    begin_ms = now_ms()
    cluster.until(lambda: cluster.heard)
    assert now_ms() - begin_ms >= RENEW_MS / 2, "the first of them was tried"


@pytest.mark.parametrize("without", [0, 1])
def test_with_and_without_keys_they_do_not_hear_each_other(cluster: Cluster, without: int) -> None:
    cluster.start(without_keys=without)
    for _ in range(60):
        cluster.turn()
    assert cluster.heard == []


def test_without_a_key_of_its_own_an_lb_waits_for_it(cluster: Cluster) -> None:
    path = cluster.directory / "lb-0" / keys.SECRET
    secret = path.read_bytes().strip()
    path.unlink()
    cluster.start()
    cluster.until(lambda: "this load balancer's key" in cluster.peers[0].waiting_for)
    assert cluster.peers[0].own == ""
    keys.write_key(path, secret)
    cluster.until(lambda: cluster.heard)
