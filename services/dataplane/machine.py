"""What of this machine the dataplane needs: its two interfaces, and what they are.

None of it is a matter of the configuration file: an interface may come up later than this process.
So `look` either finds all that is needed, or says in words what it waits for.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import NamedTuple

from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from services.dataplane.outputs import Device
from services.machine import all_addresses, own_address


@dataclass(frozen=True, slots=True)
class Interface:
    name: str
    ifindex: int
    mac: bytes
    mtu: int
    address: str
    """Its first global IPv4 address."""


@dataclass(frozen=True, slots=True)
class Machine:
    public: Interface
    private: Interface

    @property
    def ifindexes(self) -> tuple[int, int]:
        return self.public.ifindex, self.private.ifindex


class NotReadyError(Exception):
    """Something of the machine is missing; the message says what, for `waiting_for`."""


def look(netlink: IPRoute, public: str, private: str) -> Machine:
    """Both interfaces as they are now; raises `NotReadyError`."""
    return Machine(_interface(netlink, public), _interface(netlink, private))


class Addresses(NamedTuple):
    """IPv4 addresses, whatever interface they are on."""

    own: frozenset[str]
    """All by which others reach this host: not those of its loopback, where a node has a VIP."""
    broadcasts: frozenset[str]
    """Of the networks that it is in."""


def addresses() -> Addresses:
    present = all_addresses()
    broadcasts = frozenset(each.broadcast for each in present if each.broadcast is not None)
    own = frozenset(each.address for each in present if not each.is_of_host)
    return Addresses(own, broadcasts)


def device(netlink: IPRoute, ifindex: int) -> Device | None:
    """Its name and kind; None when it has gone."""
    try:
        link = netlink.get_links(ifindex)[0]
    except NetlinkError:
        return None
    info = link.get_attr("IFLA_LINKINFO")
    kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
    return Device(link.get_attr("IFLA_IFNAME"), kind or "")


def _interface(netlink: IPRoute, name: str) -> Interface:
    try:
        index = socket.if_nametoindex(name)
        link = netlink.get_links(index)[0]
    except (OSError, NetlinkError):
        raise NotReadyError(f"interface {name}: there is none of that name yet") from None
    if link["state"] != "up":
        raise NotReadyError(f"interface {name}: it is down")
    address = own_address(name)
    if address is None:
        raise NotReadyError(f"interface {name}: it has no IPv4 address yet")
    mac = link.get_attr("IFLA_ADDRESS") or ""
    if len(mac) != len("00:00:00:00:00:00"):
        raise NotReadyError(f"interface {name}: it has no Ethernet address")
    return Interface(
        name=name,
        ifindex=index,
        mac=bytes.fromhex(mac.replace(":", "")),
        mtu=link.get_attr("IFLA_MTU"),
        address=address,
    )
