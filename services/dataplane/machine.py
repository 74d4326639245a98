"""What of this machine the dataplane needs: its two interfaces, and what they are.

None of it is a matter of the configuration file: an interface may come up later than this process.
So `look` either finds all that is needed, or says in words what it waits for.
"""

from __future__ import annotations

from dataclasses import dataclass

from pyroute2 import IPRoute


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


class NotReadyError(Exception):
    """Something of the machine is missing; the message says what, for `waiting_for`."""


def look(netlink: IPRoute, public: str, private: str) -> Machine:
    """Both interfaces as they are now; raises `NotReadyError`."""
    return Machine(_interface(netlink, public), _interface(netlink, private))


def _interface(netlink: IPRoute, name: str) -> Interface:
    found = netlink.link_lookup(ifname=name)
    if not found:
        raise NotReadyError(f"interface {name}: there is none of that name yet")
    link = netlink.get_links(found[0])[0]
    if link["state"] != "up":
        raise NotReadyError(f"interface {name}: it is down")
    addresses = netlink.get_addr(index=found[0], family=2, scope=0)
    if not addresses:
        raise NotReadyError(f"interface {name}: it has no IPv4 address yet")
    return Interface(
        name=name,
        ifindex=found[0],
        mac=bytes.fromhex(link.get_attr("IFLA_ADDRESS").replace(":", "")),
        mtu=link.get_attr("IFLA_MTU"),
        address=addresses[0].get_attr("IFA_LOCAL") or addresses[0].get_attr("IFA_ADDRESS"),
    )
