"""What this machine is: its interfaces, its kernel's settings, who listens. Reading only.

Everything comes from netlink and /proc, of the network namespace this process is in; /sys would
show that of whoever mounted it. What cannot be told (an older kernel, a missing privilege) is None:
`doctor` says so and does not guess.
"""

from __future__ import annotations

import ipaddress
import os
import re
import socket
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pyroute2 import Ethtool, IPRoute
from pyroute2.netlink import NLM_F_ACK, NLM_F_REQUEST, genlmsg
from pyroute2.netlink.exceptions import NetlinkError
from pyroute2.netlink.generic import GenericNetlinkSocket

from bpf.attach import InterfaceMissing
from bpf.attachments import Attachment, attachments

XDP_BASIC, XDP_REDIRECT, XDP_TAKES_REDIRECTED = 1, 2, 4
"""Of what a driver says it can do with XDP (NETDEV_XDP_ACT_*)."""

_IFF_UP, _IFF_LOWER_UP = 1 << 0, 1 << 16
_NETDEV_CMD_DEV_GET = 1
_TCP_LISTEN, _UDP_UNCONNECTED = "0A", "07"


@dataclass(frozen=True, slots=True)
class Link:
    """One interface."""

    name: str
    kind: str
    """veth, vlan, bond, ...; empty for a plain NIC."""
    mtu: int
    up: bool
    carrier: bool
    addresses: tuple[str, ...]
    lro: bool | None
    xdp_features: int | None
    old_ingress: bool
    """An `ingress` qdisc, in whose place clsact cannot be put."""
    attached: tuple[Attachment, ...]
    networks: tuple[str, ...] = ()
    """Of its addresses: 10.0.0.0/24."""
    master: str = ""
    """The bridge or bond whose port it is; empty: none."""
    vlans: tuple[str, ...] = ()
    """VLAN devices that stand on it."""
    strips_tags: bool | None = None
    """Whether tags are taken off before XDP sees the frame."""


@dataclass(frozen=True, slots=True)
class Listener:
    """A socket that waits for connections or datagrams; `address` may be 0.0.0.0 or ::."""

    address: str
    port: int
    protocol: str = "tcp"


@dataclass(frozen=True, slots=True)
class Machine:
    """All that the checks look at."""

    links: dict[str, Link]
    listeners: tuple[Listener, ...]
    """TCP's."""
    kernel: tuple[int, int]
    root: bool
    sysctls: dict[str, str] = field(default_factory=dict)
    """Slash names below /proc/sys, of those there are."""

    def sysctl(self, name: str) -> str | None:
        return self.sysctls.get(name)


def read_machine(interfaces: list[str], sysctls: list[str], bpf_dir: Path) -> Machine:
    """This machine, as far as these interfaces and settings are concerned."""
    release = re.match(r"(\d+)\.(\d+)", os.uname().release)
    with IPRoute() as netlink:
        links = {name: link for name in interfaces if (link := _link(netlink, name, bpf_dir))}
    found = {name: text for name in sysctls if (text := _read(Path("/proc/sys") / name))}
    return Machine(
        links=links,
        listeners=(*_listeners("tcp"), *_listeners("tcp6")),
        kernel=(int(release[1]), int(release[2])) if release else (0, 0),
        root=os.geteuid() == 0,
        sysctls=found,
    )


def listeners() -> tuple[Listener, ...]:
    """Whoever listens on this machine, TCP and UDP."""
    return tuple(found for kind in ("tcp", "tcp6", "udp", "udp6") for found in _listeners(kind))


def mount_of(path: Path) -> tuple[Path, str]:
    """Where the file system that holds `path` is mounted, and its type; `path` may not exist."""
    best, kind = Path("/"), ""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, rest = line.partition(" - ")
        place = Path(re.sub(r"\\(\d{3})", lambda m: chr(int(m[1], 8)), fields.split()[4]))
        # Of two mounts at one place the later one is seen.
        if path.resolve().is_relative_to(place) and len(place.parts) >= len(best.parts):
            best, kind = place, rest.split()[0]
    return best, kind


def _link(netlink: IPRoute, name: str, bpf_dir: Path) -> Link | None:
    try:
        index = socket.if_nametoindex(name)
        message = netlink.get_links(index)[0]
        info = message.get_attr("IFLA_LINKINFO")
        addresses = netlink.get_addr(family=socket.AF_INET, index=index)
        kinds = [qdisc.get_attr("TCA_KIND") for qdisc in netlink.get_qdiscs(index)]
        return Link(
            name=name,
            kind=(info.get_attr("IFLA_INFO_KIND") or "") if info is not None else "",
            mtu=message.get_attr("IFLA_MTU"),
            up=bool(message["flags"] & _IFF_UP),
            carrier=bool(message["flags"] & _IFF_LOWER_UP),
            addresses=tuple(
                address.get_attr("IFA_LOCAL") or address.get_attr("IFA_ADDRESS")
                for address in addresses
            ),
            lro=_feature(name, "rx-lro"),
            xdp_features=_xdp_features(index),
            old_ingress="ingress" in kinds,
            attached=tuple(attachments(netlink, name, bpf_dir)),
            networks=tuple(_network(address) for address in addresses),
            master=_name(message.get_attr("IFLA_MASTER")),
            vlans=tuple(_vlans_on(netlink, index)),
            strips_tags=_feature(name, "rx-vlan-hw-parse"),
        )
    except (OSError, NetlinkError, InterfaceMissing):
        return None


def _network(address: Any) -> str:
    place = f"{address.get_attr('IFA_ADDRESS')}/{address['prefixlen']}"
    return str(ipaddress.ip_network(place, strict=False))


def _name(index: int | None) -> str:
    return socket.if_indextoname(index) if index else ""


def _vlans_on(netlink: IPRoute, index: int) -> Iterator[str]:
    for message in netlink.get_links():
        info = message.get_attr("IFLA_LINKINFO")
        kind = info.get_attr("IFLA_INFO_KIND") if info is not None else None
        if kind == "vlan" and message.get_attr("IFLA_LINK") == index:
            yield message.get_attr("IFLA_IFNAME")


def _feature(name: str, feature: str) -> bool | None:
    try:
        with Ethtool() as ethtool:
            found = ethtool.get_features(name).features.get(feature)
    except (OSError, NetlinkError):
        return None
    return None if found is None else bool(found.enable)


class _DeviceMessage(genlmsg):  # type: ignore[misc]
    """`netdev` family, NETDEV_CMD_DEV_GET."""

    nla_map = (
        ("NETDEV_A_DEV_UNSPEC", "none"),
        ("NETDEV_A_DEV_IFINDEX", "uint32"),
        ("NETDEV_A_DEV_PAD", "none"),
        ("NETDEV_A_DEV_XDP_FEATURES", "uint64"),
    )


def _xdp_features(index: int) -> int | None:
    """What the driver says of its XDP; None: this kernel (before 6.3) cannot be asked."""
    request = _DeviceMessage()
    request["cmd"], request["version"] = _NETDEV_CMD_DEV_GET, 1
    request["attrs"] = [("NETDEV_A_DEV_IFINDEX", index)]
    with GenericNetlinkSocket() as family:
        try:
            family.bind("netdev", _DeviceMessage)
            flags = NLM_F_REQUEST | NLM_F_ACK
            answers: Any = family.nlm_request(request, msg_type=family.prid, msg_flags=flags)
            for answer in answers:
                features = answer.get_attr("NETDEV_A_DEV_XDP_FEATURES")
                return None if features is None else int(features)
        except NetlinkError:
            return None
    return None


def _listeners(kind: str) -> list[Listener]:
    found = []
    for line in (_read(Path("/proc/net") / kind) or "").splitlines()[1:]:
        columns = line.split()
        protocol = kind.removesuffix("6")
        if columns[3] == (_TCP_LISTEN if protocol == "tcp" else _UDP_UNCONNECTED):
            address, port = columns[1].split(":")
            found.append(Listener(_address(address), int(port, 16), protocol))
    return found


def _address(text: str) -> str:
    """/proc/net prints words of 32 bits as this machine's integers."""
    words = [int(text[at : at + 8], 16) for at in range(0, len(text), 8)]
    raw = b"".join(socket.htonl(word).to_bytes(4, "big") for word in words)
    return str(ipaddress.ip_address(raw))


def _read(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
