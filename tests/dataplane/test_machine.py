"""The interfaces as they are, or in words what is missing."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from pyroute2 import IPRoute

from services.dataplane.machine import Interface, Machine, NotReadyError, addresses, look
from tests.bpf.harness import private_network

MAC = "02:00:00:00:aa:01"


@pytest.fixture
def netlink() -> Iterator[IPRoute]:
    with private_network(), IPRoute() as opened:
        opened.link("add", ifname="pub0", kind="veth", peer="far0")
        opened.link("add", ifname="priv0", kind="bridge")
        opened.link("set", index=index("pub0"), address=MAC, mtu=9000, state="up")
        opened.link("set", index=index("priv0"), state="up")
        opened.addr("add", index=index("pub0"), address="10.80.0.10", prefixlen=24)
        opened.addr("add", index=index("priv0"), address="10.81.0.10", prefixlen=24)
        yield opened


def index(name: str) -> int:
    return socket.if_nametoindex(name)


def forget_address(netlink: IPRoute) -> None:
    netlink.addr("del", index=index("pub0"), address="10.80.0.10", prefixlen=24)


def test_both_interfaces_as_they_are(netlink: IPRoute) -> None:
    found = look(netlink, "pub0", "priv0")
    wanted = Interface(
        "pub0", index("pub0"), bytes.fromhex(MAC.replace(":", "")), 9000, "10.80.0.10"
    )
    assert found.public == wanted
    assert (found.private.name, found.private.address) == ("priv0", "10.81.0.10")
    assert look(netlink, "pub0", "priv0") == found


def test_addresses_that_no_client_has(netlink: IPRoute) -> None:
    netlink.addr("add", index=index("priv0"), address="10.82.0.1", prefixlen=32)
    found = addresses()
    assert found.own >= {"10.80.0.10", "10.81.0.10", "10.82.0.1"}
    assert found.broadcasts == {"10.80.0.255", "10.81.0.255"}


def test_they_may_be_one(netlink: IPRoute) -> None:
    found = look(netlink, "pub0", "pub0")
    assert found == Machine(found.public, found.public)


def test_the_first_global_address_counts(netlink: IPRoute) -> None:
    forget_address(netlink)
    netlink.addr("add", index=index("pub0"), address="169.254.1.1", prefixlen=16, scope=253)
    with pytest.raises(NotReadyError, match="interface pub0: it has no IPv4 address yet"):
        look(netlink, "pub0", "priv0")
    netlink.addr("add", index=index("pub0"), address="10.80.0.11", prefixlen=24)
    netlink.addr("add", index=index("pub0"), address="10.80.0.12", prefixlen=24)
    assert look(netlink, "pub0", "priv0").public.address == "10.80.0.11"


def test_of_a_tunnel_ends_own_address(netlink: IPRoute) -> None:
    forget_address(netlink)
    netlink.addr("add", index=index("pub0"), local="10.9.0.1", address="10.9.0.2", prefixlen=32)
    assert look(netlink, "pub0", "priv0").public.address == "10.9.0.1"


@pytest.mark.parametrize("name", ["pub0", "priv0"])
def test_what_is_missing_is_named(netlink: IPRoute, name: str) -> None:
    netlink.link("set", index=index(name), state="down")
    with pytest.raises(NotReadyError, match=f"interface {name}: it is down"):
        look(netlink, "pub0", "priv0")
    netlink.link("del", index=index(name))
    with pytest.raises(NotReadyError, match=f"interface {name}: there is none of that name yet"):
        look(netlink, "pub0", "priv0")


def test_an_interface_without_ethernet_is_refused(netlink: IPRoute) -> None:
    netlink.link("add", ifname="tun0", kind="tuntap", mode="tun")
    netlink.link("set", index=index("tun0"), state="up")
    netlink.addr("add", index=index("tun0"), address="10.9.0.1", prefixlen=24)
    with pytest.raises(NotReadyError, match="interface tun0: it has no Ethernet address"):
        look(netlink, "tun0", "priv0")


class Vanishing:
    """A netlink before whose answer the interface that is asked for goes away."""

    def __init__(self, netlink: IPRoute) -> None:
        self._netlink = netlink

    def get_links(self, number: int) -> Any:
        self._netlink.link("del", index=number)
        return self._netlink.get_links(number)


def test_an_interface_that_goes_between_two_questions_is_missing(netlink: IPRoute) -> None:
    with pytest.raises(NotReadyError, match="interface pub0: "):
        look(Vanishing(netlink), "pub0", "priv0")
