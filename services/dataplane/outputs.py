"""Who sends to a device, XDP or TC, and why. Pure.

XDP sends by handing a frame to another driver's `ndo_xdp_xmit`. Bridges, VLAN, macvlan and many
other devices have none, some cards lend theirs only while they have an XDP program of their own,
and a veth hands the frame over only if its other end polls: a frame for any of these is gone
without a word. So the kernel is asked of each device (`netdev`), and where it takes no frames, the
seats behind it and the settings say so (`by_tc`): XDP passes their packets on unmodified, and TC
sends them, which it can by any device.

A frame that came in pieces (an MTU of some thousand bytes) needs a device that takes it in pieces.
Generic XDP works on the kernel's own packets and sends by any device as well; only it is not told
which checksums are yet to be finished, so it is for packets that come off a wire. A kernel before
6.3 cannot be asked: TC sends.

A node that is this machine itself gets its packets from TC, too, by the nodes' side as other nodes
do (bpf/kernel/own_node.h): its next hop is that interface's own MAC address.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from bus.states import HookState, OutputState
from services.dataplane.nexthop import NextHop

NDO_XMIT, NDO_XMIT_SG = 4, 64
"""NETDEV_XDP_ACT_*: takes redirected frames, and takes those in pieces."""

REQUESTS, REPLIES = "requests", "replies"
XDP, TC = "xdp", "tc"
REASONS = {
    "veth": "its other end has neither GRO nor an XDP program, so it takes no frames from XDP",
    "tun": "nobody has it open, or it is no tap: it takes no frames from XDP",
}
"""By the kind of the device, where more can be said."""


@dataclass(frozen=True, slots=True)
class Senders:
    """The XDP programs of this LB, all built and attached in the same way."""

    generic: bool
    in_pieces: bool
    """Whether a frame may come in pieces."""


@dataclass(frozen=True, slots=True)
class Home:
    """The interface of the nodes' side."""

    ifindex: int
    mac: str


@dataclass(frozen=True, slots=True)
class Device:
    """What an operator knows it by."""

    name: str
    kind: str
    """bridge, veth, ...; empty for a plain card."""


def by_tc(ifindex: int, features: Mapping[int, int] | None, senders: Senders) -> bool:
    """Whether TC must send to this device. `features`: of all devices; None: nobody can say."""
    if senders.generic:
        return False
    needed = NDO_XMIT | (NDO_XMIT_SG if senders.in_pieces else 0)
    return features is None or features.get(ifindex, 0) & needed != needed


def marked(
    next_hops: Mapping[str, NextHop | None],
    features: Mapping[int, int] | None,
    senders: Senders,
    home: Home | None = None,
) -> dict[str, NextHop | None]:
    """The same next hops, each saying whether TC must send to it; the way to this machine itself.

    `home`: None while nobody knows.
    """
    devices = devices_of(next_hops)
    left_to_tc = {ifindex for ifindex in devices if by_tc(ifindex, features, senders)}
    return {
        address: _marked(hop, hop.ifindex in left_to_tc, home) if hop is not None else None
        for address, hop in next_hops.items()
    }


def devices_of(next_hops: Mapping[str, NextHop | None]) -> set[int]:
    """By which packets leave."""
    return {hop.ifindex for hop in next_hops.values() if hop is not None and not hop.own}


def _marked(hop: NextHop, by_tc: bool, home: Home | None) -> NextHop | None:
    if hop.own and home is None:
        return None
    if hop.own and home is not None:
        mac = home.mac
        return replace(hop, ifindex=home.ifindex, source_mac=mac, destination_mac=mac, by_tc=True)
    return hop if hop.by_tc == by_tc else replace(hop, by_tc=by_tc)


def why(device: Device, ifindex: int, features: Mapping[int, int] | None, senders: Senders) -> str:
    """What decides who sends to it, in words."""
    if senders.generic:
        return "generic XDP sends by any device"
    if not by_tc(ifindex, features, senders):
        return "its driver takes frames from XDP"
    if features is None:
        return "this kernel, before 6.3, does not say whether it takes frames from XDP"
    if features.get(ifindex, 0) & NDO_XMIT:
        return "it takes no frames in pieces from XDP, as long packets come in"
    kind = f"a {device.kind}: it" if device.kind else "its driver"
    return REASONS.get(device.kind, f"{kind} takes no frames from XDP")


def states(
    hooks: Iterable[HookState],
    public: int,
    towards_nodes: Iterable[int],
    device_of: Callable[[int], Device | None],
    features: Mapping[int, int] | None,
    senders: Senders,
) -> tuple[OutputState, ...]:
    """For `state.dataplane.`: by which devices packets leave, who sends them, and why.

    `public`, `towards_nodes`: ifindexes. `device_of`: None when it has gone.
    """
    attached = {hook.program: hook for hook in hooks}
    found = []
    ways = [(number, REQUESTS, "xdp_public") for number in sorted(set(towards_nodes))]
    for ifindex, carries, program in (*ways, (public, REPLIES, "xdp_private")):
        device = device_of(ifindex)
        if device is None:
            continue
        hook = attached.get(program)
        if hook is None:
            sends, reason = TC, "replies are TC's by the configuration (reply_hook)"
        elif not hook.attached:
            sends, reason = TC, f"no XDP program on {hook.interface} that could: {hook.detail}"
        else:
            sends = TC if by_tc(ifindex, features, senders) else XDP
            reason = why(device, ifindex, features, senders)
        found.append(OutputState(device.name, carries, sends, reason))
    return tuple(found)
