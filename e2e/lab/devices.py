"""The kinds of device that an LB's interfaces may be: what is between `pub0` and the cable.

    veth      the cable itself: native XDP, and takes frames from XDP while the switch's end has GRO
    bridge    the cable is its port, as `vmbr0` of a hypervisor is built
    macvlan   on the cable
    vlan      on the cable; the switch's port has the tag too
    bond      the cable is its only member
    tap       no cable: a program hands frames to and fro between two taps, as a virtual machine's
    virtio    no cable: two cards of the virtual machine that the lab is in, joined by its host

Not every kernel has all of them: `known` asks. Where XDP takes packets in (veth, tap) the switch's
port finishes checksums, since what XDP redirects is never finished; the others get large segments
with partial sums, as a hypervisor's bridge does.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

from e2e.lab import plan
from e2e.lab.plan import Link

VETH, TAP, VIRTIO = "veth", "tap", "virtio"
VIRTIO_CARDS = ("52:54:00:80:00:01", "52:54:00:80:00:02")
"""The addresses of the two cards: the LB's and the switch's."""
VLAN_ID = 80
_ON_THE_CABLE = {
    "bridge": ("link add {name} type bridge stp_state 0 mcast_snooping 0",),
    "macvlan": ("link add {name} link {cable} type macvlan mode bridge",),
    "vlan": (f"link add {{name}} link {{cable}} type vlan id {VLAN_ID}",),
    "bond": ("link add {name} type bond mode active-backup miimon 100",),
}
_MEMBERS = {
    "bridge": ("link set {cable} master {name}",),
    "bond": ("link set {cable} down", "link set {cable} master {name}", "link set {cable} up"),
}
KINDS = (VETH, *_ON_THE_CABLE, TAP, VIRTIO)
TAP_TIMEOUT_S = 10.0


def known() -> frozenset[str]:
    """The kinds that this kernel has."""
    return frozenset(kind for kind in KINDS if _is_known(kind))


def _is_known(kind: str) -> bool:
    if kind == TAP:
        return Path("/dev/net/tun").exists()
    if kind == VIRTIO:
        return all(_cards())
    steps = ["link add cable0 type veth peer name far0"]
    steps += [each.format(name="pub0", cable="cable0") for each in _ON_THE_CABLE.get(kind, ())]
    words = ["unshare", "--net", "ip", "-batch", "-"]
    done = subprocess.run(
        words, input="\n".join(steps) + "\n", text=True, capture_output=True, check=False
    )
    return done.returncode == 0


def cable_of(link: Link, kind: str) -> str:
    """The name of the LB's end of the cable."""
    return link.network.interface if kind == VETH else f"{link.network.interface}-cable"


def port_steps(link: Link, kind: str) -> tuple[str, Sequence[str]]:
    """The name of the cable's end at the switch, and what makes the port of it, for `ip -batch`."""
    if kind != "vlan":
        return link.port, ()
    end = f"{link.port}-raw"
    return end, (f"link set {end} up", f"link add {link.port} link {end} type vlan id {VLAN_ID}")


def steps(link: Link, kind: str) -> Iterable[str]:
    """What makes an LB's interface on top of its cable, for `ip -batch`."""
    names = {"name": link.network.interface, "cable": cable_of(link, kind)}
    if kind in _ON_THE_CABLE:
        yield f"link set {names['cable']} up"
    for step in (*_ON_THE_CABLE.get(kind, ()), *_MEMBERS.get(kind, ())):
        yield step.format(**names)


def _cards() -> list[str]:
    """The names that the two cards have now, in the order of VIRTIO_CARDS; empty: there is none."""
    shown = subprocess.run(["ip", "-json", "link"], capture_output=True, text=True, check=True)
    names = {each["address"]: each["ifname"] for each in json.loads(shown.stdout)}
    return [names.get(address, "") for address in VIRTIO_CARDS]


def take_cards(link: Link) -> None:
    """Give one card to the LB and one to the switch. With their namespaces they come back.

    Raises LookupError where there are none.
    """
    cards = _cards()
    if not all(cards):
        raise LookupError(f"{link.network.interface}: this machine lacks a card of {VIRTIO_CARDS}")
    ends = ((link.machine, link.network.interface), (plan.SWITCH, link.port))
    for card, (machine, name) in zip(cards, ends, strict=True):
        words = ["ip", "link", "set", card, "netns", plan.namespace(machine), "name", name]
        subprocess.run(words, check=True)


def start_taps(link: Link) -> None:
    """Two taps, one in the LB and one at the switch, joined by a program that lives there.

    Raises TimeoutError if they do not come.
    """
    program = Path(__file__).with_name("taps.py")
    switch = plan.NETNS_DIR / plan.namespace(plan.SWITCH)
    ends = (link.network.interface, str(switch), link.port)
    subprocess.run(
        [*plan.enter(link.machine), "setsid", "--fork", sys.executable, str(program), *ends],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        check=True,
    )
    deadline = time.monotonic() + TAP_TIMEOUT_S
    words = ["ip", "-n", plan.namespace(plan.SWITCH), "link", "show", link.port]
    while subprocess.run(words, capture_output=True, check=False).returncode != 0:
        if time.monotonic() > deadline:
            raise TimeoutError(f"{link.port}: no tap")
        time.sleep(0.02)
