"""A machine's own address: whoever asks is told the same one."""

from __future__ import annotations

import itertools
import os
import subprocess
from collections.abc import Iterator

import pytest
from pyroute2 import IPRoute

from services.cli import host
from services.dataplane import machine as dataplane_machine
from services.machine import Address, all_addresses, own_address
from tests.node.host_state import tool
from tests.node.wire import inside

_numbers = itertools.count()


@pytest.fixture
def namespace() -> Iterator[str]:
    """A namespace with the interface `d0`, up, and the other end of its cable."""
    name = f"gale-own-{os.getpid()}-{next(_numbers)}"
    tool("ip", "netns", "add", name)
    try:
        with inside(name):
            for line in (
                "link set lo up",
                "link add d0 type veth peer name d1",
                "link set d0 up",
                "link set d1 up",
            ):
                tool("ip", *line.split())
            yield name
    finally:
        tool("ip", "netns", "del", name)


def add(*lines: str) -> None:
    for line in lines:
        tool("ip", "address", "add", *line.split())


def asked_by_the_dataplane() -> str:
    with IPRoute() as netlink:
        return dataplane_machine.look(netlink, "d0", "d0").public.address


@pytest.mark.parametrize(
    ("lines", "expected"),
    [
        (["10.0.0.1/24"], "10.0.0.1"),
        (["169.254.7.7/16 scope link", "203.0.113.5/24"], "203.0.113.5"),
        (["203.0.113.5/24", "203.0.113.4/24", "10.0.0.1/8"], "203.0.113.5"),
        (["10.0.0.1 peer 10.0.0.2"], "10.0.0.1"),
        (["192.0.2.1/32", "169.254.7.7/16"], "192.0.2.1"),
    ],
)
def test_an_interface_of_many_addresses_has_one_own(
    namespace: str, lines: list[str], expected: str
) -> None:
    add(*(f"{line} dev d0" for line in lines))
    assert own_address("d0") == expected
    assert asked_by_the_dataplane() == expected


def test_what_holds_on_the_link_alone_is_no_address_yet(namespace: str) -> None:
    add("169.254.7.7/16 scope link dev d0")
    assert own_address("d0") is None
    with pytest.raises(dataplane_machine.NotReadyError, match="no IPv4 address"):
        asked_by_the_dataplane()


def test_no_interface_no_address_and_the_loopback_has_its_own(namespace: str) -> None:
    assert own_address("d0") is None
    assert own_address("nowhere0") is None
    assert own_address("lo") == "127.0.0.1"


def test_more_addresses_than_one_answer_holds(namespace: str) -> None:
    for third in range(4):
        lines = (f"address add 10.1.{third}.{n}/32 dev d0\n" for n in range(1, 251))
        subprocess.run(["ip", "-batch", "-"], input="".join(lines), text=True, check=True)
    found = [each.address for each in all_addresses() if each.interface == "d0"]
    assert len(found) == len(set(found)) == 1_000


def test_all_addresses_by_interface(namespace: str) -> None:
    add("10.0.0.1/24 dev d0", "10.0.0.2/24 dev d1")
    assert set(all_addresses()) == {
        Address("lo", "127.0.0.1", 254, 8),
        Address("d0", "10.0.0.1", 0, 24),
        Address("d1", "10.0.0.2", 0, 24),
    }
    assert host.own_addresses() == {"lo": {"127.0.0.1"}, "d0": {"10.0.0.1"}, "d1": {"10.0.0.2"}}


@pytest.mark.parametrize(
    ("prefix_bits", "scope", "broadcast"),
    [
        (24, 0, "10.1.2.255"),
        (16, 0, "10.1.255.255"),
        (30, 253, "10.1.2.3"),
        (31, 0, None),
        (32, 0, None),
        (8, 254, None),
    ],
)
def test_whom_a_network_s_hosts_all_are(
    prefix_bits: int, scope: int, broadcast: str | None
) -> None:
    assert Address("d0", "10.1.2.1", scope, prefix_bits).broadcast == broadcast
