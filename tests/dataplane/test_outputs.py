"""Who sends to which device, and what an operator is told of it."""

from __future__ import annotations

import pytest

from bus.states import HookState, OutputState
from services.dataplane import outputs
from services.dataplane.nexthop import NextHop
from services.dataplane.outputs import (
    Device,
    Home,
    Senders,
    by_tc,
    devices_of,
    marked,
    states,
    why,
)

NATIVE = Senders(generic=False, in_pieces=False)
IN_PIECES = Senders(generic=False, in_pieces=True)
GENERIC = Senders(generic=True, in_pieces=False)
CARD, NARROW, BRIDGE, VETH, GONE = 1, 2, 3, 4, 5
FEATURES = {CARD: 0x67, NARROW: 0x7, BRIDGE: 0, VETH: 0x23}
DEVICES = {
    CARD: Device("eth0", ""),
    NARROW: Device("tap0", "tun"),
    BRIDGE: Device("br0", "bridge"),
    VETH: Device("veth0", "veth"),
}
HOP = NextHop(BRIDGE, "02:00:00:00:00:01", None, 1500, None, None)


@pytest.mark.parametrize(
    ("senders", "by_xdp"),
    [(NATIVE, {CARD, NARROW}), (IN_PIECES, {CARD}), (GENERIC, {CARD, NARROW, BRIDGE, VETH, GONE})],
)
def test_xdp_sends_where_the_kernel_says_that_it_can(senders: Senders, by_xdp: set[int]) -> None:
    devices = (*FEATURES, GONE)
    assert {each for each in devices if not by_tc(each, FEATURES, senders)} == by_xdp


@pytest.mark.parametrize(("senders", "expected"), [(NATIVE, True), (GENERIC, False)])
def test_a_kernel_that_cannot_say_leaves_it_to_tc(senders: Senders, expected: bool) -> None:
    assert by_tc(CARD, None, senders) is expected


def test_next_hops_are_marked() -> None:
    seen = marked({"a": HOP, "b": None}, FEATURES, NATIVE)
    assert seen["a"] is not None
    assert seen["a"].by_tc
    assert seen["b"] is None
    again = marked(seen, {**FEATURES, BRIDGE: 0x67}, NATIVE)
    assert again == {"a": HOP, "b": None}


OWN = NextHop(9, "00:00:00:00:00:00", None, 65_535, None, "10.81.0.10", own=True)
"""Of this machine: as the kernel has it, by the loopback."""


def test_the_way_to_this_machine_is_by_the_nodes_side_and_tc_s() -> None:
    mac = "02:00:00:00:00:09"
    seen = marked({"a": OWN, "b": HOP}, {**FEATURES, BRIDGE: 0x67}, NATIVE, Home(CARD, mac))
    assert seen["a"] == NextHop(CARD, mac, mac, 65_535, None, "10.81.0.10", by_tc=True, own=True)
    assert seen["b"] == HOP
    assert devices_of(seen) == {BRIDGE}


def test_without_a_nodes_side_there_is_no_way_to_this_machine() -> None:
    assert marked({"a": OWN}, FEATURES, NATIVE) == {"a": None}


@pytest.mark.parametrize(
    ("ifindex", "senders", "words"),
    [
        (CARD, NATIVE, "its driver takes frames from XDP"),
        (BRIDGE, NATIVE, "a bridge: it takes no frames from XDP"),
        (VETH, NATIVE, "its other end has neither GRO nor an XDP program"),
        (NARROW, IN_PIECES, "no frames in pieces"),
        (BRIDGE, GENERIC, "generic XDP sends by any device"),
    ],
)
def test_the_reason_is_told(ifindex: int, senders: Senders, words: str) -> None:
    assert words in why(DEVICES[ifindex], ifindex, FEATURES, senders)


def test_of_an_old_kernel_too() -> None:
    assert "before 6.3" in why(DEVICES[CARD], CARD, None, NATIVE)


def hook(program: str, interface: str, detail: str = "", *, attached: bool = True) -> HookState:
    return HookState(program, interface, attached, "native" if attached else "", detail)


def test_what_is_published() -> None:
    hooks = (hook("xdp_public", "eth0"), hook("tc_public", "eth0"))
    told = states(hooks, CARD, [BRIDGE, GONE, BRIDGE], DEVICES.get, FEATURES, NATIVE)
    assert told == (
        OutputState("br0", "requests", "tc", "a bridge: it takes no frames from XDP"),
        OutputState("eth0", "replies", "tc", "replies are TC's by the configuration (reply_hook)"),
    )


def test_replies_by_xdp() -> None:
    hooks = (hook("xdp_public", "br0", "no XDP", attached=False), hook("xdp_private", "eth0"))
    told = states(hooks, BRIDGE, [CARD], DEVICES.get, FEATURES, NATIVE)
    assert told == (
        OutputState("eth0", "requests", "tc", "no XDP program on br0 that could: no XDP"),
        OutputState("br0", "replies", "tc", "a bridge: it takes no frames from XDP"),
    )
    there = states(hooks, CARD, [CARD], DEVICES.get, FEATURES, NATIVE)
    assert there[-1] == OutputState(
        "eth0", "replies", outputs.XDP, "its driver takes frames from XDP"
    )
