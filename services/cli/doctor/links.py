"""Checks of an LB's interfaces: what they are, who else is on them, how one fits the other."""

from __future__ import annotations

from ipaddress import ip_network

from bpf.attach import OUR_PRIORITY
from conf import LbConfig
from services.cli.doctor.finding import Finding, Findings, Level
from services.cli.machine import (
    XDP_BASIC,
    XDP_REDIRECT,
    XDP_TAKES_REDIRECTED,
    Link,
    Machine,
)

ENCAPSULATION_BYTES = {"ipip": 20, "gue": 32}
ETHERNET_MTU = 1_500
LARGEST_XDP_MTU = 3_498
"""A page, less headroom, Ethernet and the frame's own bookkeeping."""
RP_FILTER = "net/ipv4/conf/{}/rp_filter"
STRICT = 1


def link_findings(link: Link) -> Findings:
    """Up, with a carrier; not merging what it receives."""
    if not link.up:
        yield Finding(Level.FAIL, link.name, "is down", f"ip link set {link.name} up")
    elif not link.carrier:
        yield Finding(Level.FAIL, link.name, "has no carrier", "look at the cable, or its peer")
    else:
        addresses = ", ".join(link.addresses) or "no address"
        yield Finding(Level.OK, link.name, f"up, {addresses}, MTU {link.mtu}")
    if link.lro:
        yield Finding(
            Level.WARN,
            link.name,
            "LRO is on: drivers refuse XDP then, and what it has merged TC cannot send on",
            f"ethtool -K {link.name} lro off",
        )


def program_findings(link: Link) -> Findings:
    """Who else is in the place of Gale's programs, or before them."""
    if link.old_ingress:
        yield Finding(
            Level.FAIL,
            link.name,
            "has an ingress qdisc where clsact must be",
            f"tc qdisc del dev {link.name} ingress",
        )
    for attachment in link.attached:
        if attachment.ours:
            yield Finding(Level.OK, link.name, f"{attachment} is Gale's")
        elif attachment.hook == "xdp":
            yield Finding(
                Level.FAIL,
                link.name,
                f"{attachment} is not Gale's, and Gale does not replace it",
                f"ip link set dev {link.name} xdp off",
            )
        elif attachment.priority == OUR_PRIORITY:
            yield Finding(
                Level.FAIL,
                link.name,
                f"{attachment} has the place of Gale's filter",
                f"give it another priority: tc filter … dev {link.name} ingress prio 2",
            )
        else:
            yield Finding(
                Level.WARN,
                link.name,
                f"{attachment} sees only what Gale's filter leaves",
            )


def master_findings(link: Link) -> Findings:
    """A port of a bridge or a bond: its packets belong to the device above it."""
    if link.master:
        yield Finding(
            Level.FAIL,
            link.name,
            f"is a port of {link.master}: what comes in belongs to {link.master}",
            f"name {link.master} in the file, or: ip link set {link.name} nomaster",
        )
    else:
        yield Finding(Level.OK, link.name, "stands for itself")


def tag_findings(link: Link) -> Findings:
    """A driver that takes tags off before XDP sees the frame makes all VLANs look alike."""
    if link.vlans and link.strips_tags and link.attached:
        yield Finding(
            Level.WARN,
            link.name,
            f"takes tags off before XDP sees them, and {', '.join(link.vlans)} stand on it:"
            " a frame of theirs may be taken for an untagged one",
            f"ethtool -K {link.name} rxvlan off",
        )


def flux_findings(public: Link, private: Link) -> Findings:
    """Two interfaces in one network: each answers ARP for the other's address."""
    shared = sorted(set(public.networks) & set(private.networks))
    if shared:
        yield Finding(
            Level.WARN,
            "ARP",
            f"{public.name} and {private.name} are both in {', '.join(shared)}: each answers for"
            " the other's address, and packets come in by either",
            "one interface for both in the file, or: sysctl -w net.ipv4.conf.all.arp_ignore=1",
        )
    else:
        yield Finding(Level.OK, "ARP", f"{public.name} and {private.name} share no network")


def jumbo_findings(public: Link, private: Link) -> Findings:
    """Frames longer than a page come in pieces, and the other side must take them too."""
    if private.mtu > public.mtu and private.mtu > LARGEST_XDP_MTU:
        yield Finding(
            Level.WARN,
            "jumbo frames",
            f"{private.name} has MTU {private.mtu}, {public.name} {public.mtu}: nodes' replies"
            " are cut to size by path MTU discovery, connection by connection",
            f"an advmss for clients' routes on the nodes, or ip link set {public.name} mtu"
            f" {private.mtu}",
        )
    else:
        yield Finding(Level.OK, "jumbo frames", "replies fit out of the public side")


def xdp_findings(config: LbConfig, machine: Machine) -> Findings:
    """Whether requests can go the fast way: in at the public interface, out at the private one."""
    public = machine.links.get(config.local.net_interface_public)
    private = machine.links.get(config.local.net_interface_private)
    if public is None or private is None:
        return
    needed = XDP_BASIC | XDP_REDIRECT
    if public.xdp_features is None or private.xdp_features is None:
        yield Finding(
            Level.WARN,
            "XDP",
            "this kernel does not say which devices take frames from XDP: TC sends, at a higher"
            " cost",
            "Linux 6.3 or newer",
        )
    elif public.xdp_features & needed != needed:
        yield Finding(
            Level.WARN,
            "XDP",
            f"the driver of {public.name} has no XDP: TC takes the requests, at a higher cost",
            "a NIC whose driver has native XDP",
        )
    elif private.xdp_features & XDP_TAKES_REDIRECTED:
        yield Finding(Level.OK, "XDP", f"native on {public.name}, redirects to {private.name}")
    elif private.kind == "veth":
        yield Finding(
            Level.WARN,
            "XDP",
            f"{private.name} is a veth whose other end has GRO off, or got it before it was up:"
            " it takes no frames from XDP, so TC sends to it, at a higher cost",
            "on the other end: ethtool -K IT gro off; ethtool -K IT gro on",
        )
    else:
        yield Finding(
            Level.WARN,
            "XDP",
            f"{private.name} ({private.kind or 'its driver'}) takes no frames from XDP"
            " (some drivers do only while they have an XDP program of their own): TC sends to it,"
            " at a higher cost",
        )


def mtu_findings(config: LbConfig, machine: Machine) -> Findings:
    """What is received on one side must fit out of the other. On one interface that is what others
    on its network send, by themselves no more than Ethernet's 1,500 bytes.
    """
    public = machine.links.get(config.local.net_interface_public)
    private = machine.links.get(config.local.net_interface_private)
    if public is None or private is None:
        return
    extra = max(
        (ENCAPSULATION_BYTES[each.encap] for each in config.services if each.mode == "l3"),
        default=0,
    )
    if public is private:
        comes_in = min(public.mtu, ETHERNET_MTU)
        there = f"{public.name} has {public.mtu}, others on its network send {comes_in}"
    else:
        comes_in = public.mtu
        there = f"{private.name} has {private.mtu}, {public.name} has {public.mtu}"
    if private.mtu < comes_in + extra:
        for_outer = f" and {extra} more for the outer header" if extra else ""
        yield Finding(
            Level.WARN,
            "MTU",
            f"{there}{for_outer}: longer packets are not carried, and their senders are told"
            " (fragmentation needed)",
            f"ip link set {private.name} mtu {comes_in + extra}",
        )
    else:
        yield Finding(Level.OK, "MTU", f"what {public.name} takes fits through {private.name}")
    if public.mtu > LARGEST_XDP_MTU:
        yield Finding(
            Level.WARN,
            "MTU",
            f"{public.name} has {public.mtu}: few drivers take XDP above {LARGEST_XDP_MTU}",
        )


def return_path_findings(config: LbConfig, machine: Machine) -> Findings:
    """rp_filter: the programs run before it; only what the kernel itself routes can meet it."""
    through_kernel = [service.name for service in config.services if not service.snat]
    for name in machine.links:
        strict = is_strict(machine, name)
        if strict and through_kernel:
            yield Finding(
                Level.WARN,
                "rp_filter",
                f"strict on {name}: packets that the programs leave to the kernel"
                f" (service {', '.join(through_kernel)}, snat = false) may be dropped",
                f"sysctl -w {RP_FILTER.format(name).replace('/', '.')}=2",
            )
        else:
            how = "strict" if strict else "not strict"
            yield Finding(Level.OK, "rp_filter", f"{how} on {name}, and the programs run before it")


def client_address_findings(config: LbConfig, machine: Machine) -> Findings:
    """snat = false: the reply must come back through this LB, or nobody knows its sender."""
    names = [each.name for each in config.services if each.mode == "l4" and not each.snat]
    public = machine.links.get(config.local.net_interface_public)
    private = machine.links.get(config.local.net_interface_private)
    if not names or public is None or private is None:
        return
    services = f"service {', '.join(names)}, snat = false"
    shared = sorted(
        ours
        for ours in public.networks
        if any(ip_network(ours).overlaps(ip_network(theirs)) for theirs in private.networks)
    )
    if shared:
        yield Finding(
            Level.FAIL,
            "snat",
            f"clients and nodes share {', '.join(shared)}: a node answers its neighbours directly,"
            f" and they expect the VIP ({services})",
            "snat = true, or mode l2, or another network for the nodes",
        )
    else:
        floats = config.virtual_ips and len(config.quorum.addresses) > 1
        gateway = "one of the VIP's SNAT addresses" if floats else "this LB's address"
        yield Finding(
            Level.OK,
            "snat",
            f"nodes see the clients' own addresses, and must reach them through {gateway}"
            f" on {private.name} ({services})",
        )


def is_strict(machine: Machine, name: str) -> bool:
    values = [machine.sysctl(RP_FILTER.format(each)) for each in ("all", name)]
    return max((int(value) for value in values if value), default=0) == STRICT
