"""Announcements as they leave an interface, and the operator's script as it is run."""

from __future__ import annotations

import json
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bus.events import DataplaneEvent, VipEvent
from bus.states import ClaimState, QuorumMember, QuorumState
from bus.topics import Topic
from bus.words import Role
from conf.lb import Quorum
from services.dataplane import scripts
from services.dataplane.announcing import LOOK_MS, Announcing
from services.dataplane.frames import announcement
from services.dataplane.kernel import Floating, RivalClaim
from services.dataplane.machine import Interface, Machine
from tests.bpf.harness import private_network

VIP, SNAT = "10.80.0.100", "10.81.0.100"
PUBLIC_MAC, PRIVATE_MAC = bytes.fromhex("02000000000b"), bytes.fromhex("02000000001b")
RIVAL = "02:00:00:00:66:66"
FOR_EVER = 2**62
ARP = Quorum()
NOW_MS = 50_000
COMMANDS = """
link add pub0 address 02:00:00:00:00:0b type veth peer name pub1
link add priv0 address 02:00:00:00:00:1b type veth peer name priv1
link set pub0 up
link set pub1 up
link set priv0 up
link set priv1 up
"""


class Wire:
    """What arrives at the other ends of an LB's two cables."""

    def __init__(self) -> None:
        subprocess.run(["sysctl", "-qw", "net.ipv6.conf.default.disable_ipv6=1"], check=True)
        subprocess.run(["ip", "-batch", "-"], input=COMMANDS, text=True, check=True)
        self._sockets = {}
        for name in ("pub1", "priv1"):
            there = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))
            there.bind((name, 3))
            there.settimeout(0.2)
            self._sockets[name] = there
        self.machine = Machine(
            Interface("pub0", socket.if_nametoindex("pub0"), PUBLIC_MAC, 1500, "10.80.0.10"),
            Interface("priv0", socket.if_nametoindex("priv0"), PRIVATE_MAC, 1500, "10.81.0.10"),
        )

    def read(self, name: str) -> list[bytes]:
        frames = []
        while True:
            try:
                frames.append(self._sockets[name].recv(2000))
            except TimeoutError:
                return frames

    def close(self) -> None:
        for each in self._sockets.values():
            each.close()


@pytest.fixture
def wire() -> Iterator[Wire]:
    with private_network():
        made = Wire()
        yield made
        made.close()


@pytest.fixture
def announcing() -> Iterator[Announcing]:
    made = Announcing("lb-0", NOW_MS)
    yield made
    made.close()


def floating(until_ns: int = FOR_EVER, rival: RivalClaim | None = None) -> dict[str, Floating]:
    return {VIP: Floating(until_ns, "public", rival), SNAT: Floating(until_ns, "private")}


def test_each_address_is_announced_on_its_side(wire: Wire, announcing: Announcing) -> None:
    announcing.serve(floating(), wire.machine, ARP, NOW_MS)
    assert wire.read("pub1") == [announcement(VIP, PUBLIC_MAC)]
    assert wire.read("priv1") == [announcement(SNAT, PRIVATE_MAC)]
    assert announcing.states == (
        ClaimState(VIP, "public", True),
        ClaimState(SNAT, "private", True),
    )


def test_on_another_card_an_address_is_announced_anew(wire: Wire, announcing: Announcing) -> None:
    """On its side alone, and once it has been said there as often as after any change."""
    for ms in (0, 3_000, 4_000):
        announcing.serve(floating(), wire.machine, ARP, NOW_MS + ms)
    wire.read("pub1"), wire.read("priv1")
    changed = replace(wire.machine.public, mac=bytes.fromhex("02000000002b"))
    for ms in (5_000, 5_010):
        announcing.serve(floating(), replace(wire.machine, public=changed), ARP, NOW_MS + ms)
    assert wire.read("pub1") == [announcement(VIP, changed.mac)]
    assert wire.read("priv1") == []


def test_what_is_not_claimed_is_not_announced(wire: Wire, announcing: Announcing) -> None:
    announcing.serve(floating(NOW_MS * 1_000_000), wire.machine, ARP, NOW_MS)
    assert wire.read("pub1") == []
    assert announcing.states[0] == ClaimState(VIP, "public", False)


def test_an_interface_that_is_down_costs_an_announcement(
    wire: Wire, announcing: Announcing
) -> None:
    subprocess.run(["ip", "link", "set", "pub0", "down"], check=True)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS)
    assert wire.read("priv1") == [announcement(SNAT, PRIVATE_MAC)]
    subprocess.run(["ip", "link", "set", "pub0", "up"], check=True)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS + 50)
    assert announcement(VIP, PUBLIC_MAC) in wire.read("pub1")


def test_the_maps_are_read_four_times_a_second_and_at_the_quorums_word(
    wire: Wire, announcing: Announcing
) -> None:
    assert announcing.is_due(NOW_MS)
    announcing.serve(floating(0), wire.machine, ARP, NOW_MS)
    assert announcing.next_ms() == NOW_MS + LOOK_MS == NOW_MS + 250
    announcing.heard(VipEvent(VIP, "lb-0", 3, ""), NOW_MS + 10)
    assert announcing.is_due(NOW_MS + 10)


def members(*alive: str) -> QuorumState:
    return QuorumState(
        1, "lb-0", Role.LEADER, 7, "lb-0", 1, True, 100, 0, (),
        tuple(QuorumMember("", each, each in alive, 7, 1, 0) for each in ("a", "b")), "",
    )  # fmt: skip


def test_a_peer_that_comes_back_is_told(wire: Wire, announcing: Announcing) -> None:
    announcing.heard(members("a"), NOW_MS)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS + 5_000)
    wire.read("pub1")
    announcing.heard(members("a", "b"), NOW_MS + 6_000)
    assert announcing.is_due(NOW_MS + 6_000)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS + 6_000)
    assert wire.read("pub1") == [announcement(VIP, PUBLIC_MAC)]


def test_a_rival_is_told_shown_and_answered(wire: Wire, announcing: Announcing) -> None:
    announcing.heard(members("a"), NOW_MS)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS)
    announcing.serve(floating(), wire.machine, ARP, NOW_MS + 5_000)
    wire.read("pub1")
    last_ns = (NOW_MS + 6_000) * 1_000_000
    contested = floating(rival=RivalClaim(RIVAL, 2, last_ns))
    events = announcing.serve(contested, wire.machine, ARP, NOW_MS + 6_000)
    reason = f"{RIVAL} claims it too; heard 2 times"
    assert events == [(Topic.VIP_CONTESTED, VipEvent(VIP, "lb-0", 7, reason))]
    assert wire.read("pub1") == [announcement(VIP, PUBLIC_MAC)]
    assert announcing.states[0].trouble == f"{RIVAL} claims it too"
    announcing.serve(contested, wire.machine, ARP, NOW_MS + 67_000)
    assert announcing.states[0].trouble == ""


# --------------------------------------------------------------------------- a script

SCRIPT = """#!/bin/sh
echo "$@" >> {log}
{then}
"""


class Script:
    """A script that writes down how it was called."""

    def __init__(self, directory: Path, wire: Wire, announcing: Announcing) -> None:
        self._log, self._path = directory / "log", directory / "move"
        self._wire, self.announcing = wire, announcing
        self.does("")
        self.keys = Quorum.model_validate({"announce": "exec", "announce_command": str(self._path)})
        self.events: list[tuple[Topic, VipEvent | DataplaneEvent]] = []

    def does(self, then: str) -> None:
        beside = self._path.with_suffix(".new")
        beside.write_text(SCRIPT.format(log=self._log, then=then))
        beside.chmod(0o755)
        beside.rename(self._path)

    def serve(self, maps: dict[str, Floating], now_ms: int) -> None:
        self.events += self.announcing.serve(maps, self._wire.machine, self.keys, now_ms)

    def calls(self) -> list[str]:
        return sorted(self._log.read_text().splitlines()) if self._log.exists() else []

    def until(
        self,
        maps: dict[str, Floating],
        now_ms: int,
        condition: Callable[[], bool],
        step_ms: int = 0,
    ) -> int:
        """Turns of the loop until it is so; the time of the last one."""
        deadline = time.monotonic() + 20
        while not condition():
            assert time.monotonic() < deadline, self.calls()
            time.sleep(0.01)
            now_ms += step_ms
            self.serve(maps, now_ms)
        return now_ms


@pytest.fixture
def script(tmp_path: Path, wire: Wire, announcing: Announcing) -> Script:
    return Script(tmp_path, wire, announcing)


def test_the_script_is_told_instead_of_the_neighbours(script: Script, wire: Wire) -> None:
    script.serve(floating(), NOW_MS)
    script.until(floating(), NOW_MS, lambda: len(script.calls()) == 2)
    assert script.calls() == [f"acquire {VIP} pub0", f"acquire {SNAT} priv0"]
    assert wire.read("pub1") == []
    script.serve(floating(0), NOW_MS + 5_000)
    script.until(floating(0), NOW_MS + 5_000, lambda: len(script.calls()) == 4)
    assert script.calls()[2:] == [f"lose {VIP} pub0", f"lose {SNAT} priv0"]


def test_at_the_start_it_is_told_what_is_not_held_as_well(script: Script) -> None:
    script.serve(floating(0), NOW_MS)
    script.until(floating(0), NOW_MS, lambda: len(script.calls()) == 2)
    assert script.calls() == [f"lose {VIP} pub0", f"lose {SNAT} priv0"]


def test_a_script_that_fails_is_told_and_run_again(script: Script) -> None:
    script.does("exit 3")
    only = {VIP: Floating(FOR_EVER, "public")}
    script.serve(only, NOW_MS)
    script.until(only, NOW_MS, lambda: bool(script.events))
    reason = f"announce_command acquire {VIP}: exit 3; it will be run again"
    assert script.events == [(Topic.DATAPLANE_DEGRADED, DataplaneEvent("", "", "", reason))]
    script.serve(only, NOW_MS + 500)
    assert script.announcing.states[0].trouble == reason
    script.does("exit 0")
    script.serve(only, NOW_MS + 1_100)
    script.until(only, NOW_MS + 1_100, lambda: script.announcing.states[0].trouble == "")
    assert len(script.calls()) == 2


def test_one_that_hangs_holds_nobody_up_and_is_killed_with_its_children(script: Script) -> None:
    script.does("sleep 1000 & echo $! >> {}; wait".format(script._log.with_name("child")))
    only = {VIP: Floating(FOR_EVER, "public")}
    begun = time.monotonic()
    script.serve(only, NOW_MS)
    assert time.monotonic() - begun < 1
    child = script._log.with_name("child")
    script.until(only, NOW_MS, lambda: child.exists() and child.read_text().strip() != "")
    number = int(child.read_text())
    assert Path(f"/proc/{number}").exists()
    later_ms = NOW_MS + scripts.DEADLINE_MS
    script.until(only, later_ms, lambda: bool(script.events))
    assert "ended by signal 9" in json.dumps([str(event) for event in script.events])
    script.until(only, later_ms, lambda: _is_gone(number))


def _is_gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_no_such_script_is_its_owners_fault(script: Script, tmp_path: Path) -> None:
    (tmp_path / "move").unlink()
    script.serve({VIP: Floating(FOR_EVER, "public")}, NOW_MS)
    ((topic, event),) = script.events
    assert topic is Topic.DATAPLANE_DEGRADED
    assert isinstance(event, DataplaneEvent)
    assert "No such file" in event.reason
