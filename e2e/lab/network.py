"""The lab's network: namespaces, two bridges in a namespace of their own, cables, addresses.

What the settings are for (each was found out by losing packets without it):

* GRO on, at both ends of an LB's cables. What XDP redirects to a veth is delivered only if the
  other end polls, and it polls if it has an XDP program or GRO. XDP itself there would cost TSO.
* TX checksums off at the switch's port that feeds an XDP hook, an LB's public one. A local sender
  leaves its sums to the hardware, and what XDP redirects is never finished. Clients and nodes keep
  their offloads: so the replies reach TC as few large segments. Where the LBs' replies go through
  XDP (`reply_hook = "xdp"`), that holds for the private port too.
* The router's `rp_filter` is 2: a node's direct reply comes with the VIP for a source, from the
  private side. An LB has `ip_forward = 0` and `rp_filter = 1`, the strictest that must do.
* Nodes have their default route through the router; LBs they reach on their own network. Where the
  private network has room for outer headers, that is for what nodes receive: what they send goes on
  to the client's network, so their routes say its MTU. On a machine that is an LB too, which wraps
  packets for others, only the routes to the addresses that answers go to say so.

A failure of a command here is an error of the lab, raised with what the command said.
"""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterable, Sequence
from pathlib import Path

from bpf.loader import compile_program
from bpf.syscall import pin_object
from e2e.lab import devices, plan
from e2e.lab.plan import Link, Plan

FORWARDING_STATE = 3
DISABLED_STATE = 0


class LabError(Exception):
    """The lab cannot go on; the message says what to do."""


class ExtraFileError(LabError):
    """The file that is to be laid over the LBs' is not to be used; nothing has been done yet."""


def command(words: Sequence[str], stdin: str | None = None) -> str:
    """Run a tool of the host; its output, or LabError with what it complained of."""
    done = subprocess.run(words, input=stdin, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise LabError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _ip(machine: str, lines: Iterable[str]) -> None:
    command(["ip", "-n", plan.namespace(machine), "-batch", "-"], "\n".join(lines) + "\n")


def _sysctl(machine: str, setting: str, value: int) -> None:
    command([*plan.enter(machine), "sysctl", "-qw", f"net.{setting}={value}"])


def build(lab: Plan, outer_room: int, *, replies_by_xdp: bool = False) -> None:
    """Everything up to the point where each machine reaches each other on its networks.

    `outer_room`: by how many bytes packets between LBs and nodes may be longer.
    """
    for machine in (plan.SWITCH, *lab.machines):
        command(["ip", "netns", "add", plan.namespace(machine)])
        _ip(machine, ["link set lo up"])
    _build_switch()
    for machine in lab.machines:
        _set_forwarding(machine)
        for link in lab.links(machine):
            is_private = link.network is plan.PRIVATE
            has_room = is_private or (lab.one_interface and plan.supervised(machine))
            kind = lab.device(link)
            _plug_in(link, lab.mtu + (outer_room if has_room else 0), kind)
            if plan.is_lb(machine) and kind == devices.VETH:
                _set_offloads(link, feeds_xdp=replies_by_xdp or not is_private)
            if plan.is_lb(machine) and lab.vlan and not is_private:
                _tag(link)
        _route(lab, machine)


def _build_switch() -> None:
    for which in ("all", "default"):
        _sysctl(plan.SWITCH, f"ipv6.conf.{which}.disable_ipv6", 1)
    for network in (plan.PUBLIC, plan.PRIVATE):
        _ip(
            plan.SWITCH,
            [
                f"link add {network.bridge} type bridge stp_state 0 mcast_snooping 0",
                f"link set {network.bridge} up",
            ],
        )


def _plug_in(link: Link, mtu: int, kind: str) -> None:
    interface, inside = link.network.interface, plan.namespace(link.machine)
    if kind in (devices.TAP, devices.VIRTIO):
        (devices.start_taps if kind == devices.TAP else devices.take_cards)(link)
        _ip(plan.SWITCH, [f"link set {link.port} mtu {mtu}"])
        _ip(link.machine, [f"link set {interface} mtu {mtu}"])
    else:
        cable, (end, port_steps) = devices.cable_of(link, kind), devices.port_steps(link, kind)
        _ip(
            plan.SWITCH,
            [
                f"link add {end} mtu {mtu} type veth peer name {cable} mtu {mtu} netns {inside}",
                *port_steps,
            ],
        )
        _ip(link.machine, devices.steps(link, kind))
    _ip(plan.SWITCH, [f"link set {link.port} master {link.network.bridge} up"])
    _ip(
        link.machine,
        [f"link set {interface} up", f"address add {link.address}/24 dev {interface}"],
    )


def _set_offloads(link: Link, *, feeds_xdp: bool) -> None:
    command([*plan.enter(link.machine), "ethtool", "-K", link.network.interface, "gro", "on"])
    command([*plan.enter(plan.SWITCH), "ethtool", "-K", link.port, "gro", "on"])
    if feeds_xdp:
        command([*plan.enter(plan.SWITCH), "ethtool", "-K", link.port, "tx", "off"])


def _tag(link: Link) -> None:
    """Have the switch's port carry a VLAN, by two programs (tags.c): the kernel of a lab may have
    neither VLAN devices nor bridges that know of VLANs.
    """
    source = Path(__file__).with_name("tags.c")
    loaded = compile_program(str(source), defines={"LAB_VLAN": plan.VLAN_ID})
    command([*plan.enter(plan.SWITCH), "tc", "qdisc", "add", "dev", link.port, "clsact"])
    for way, name in (("egress", "lab_tag"), ("ingress", "lab_untag")):
        pin = plan.home(link.machine) / "bpf" / name
        pin_object(loaded.function(name, "tc"), pin)
        words = ["filter", "add", "dev", link.port, way, "bpf", "da", "object-pinned", str(pin)]
        command([*plan.enter(plan.SWITCH), "tc", *words])
        pin.unlink()
    loaded.close()


def _set_forwarding(machine: str) -> None:
    """Before the interfaces come, which take over what `default` says.

    A new namespace takes these from the host, whatever that has set: so all are said here. For
    rp_filter and send_redirects the larger of `all` and the interface's own counts.
    """
    settings = {"forwarding": 0, "rp_filter": 0, "send_redirects": 0}
    if machine == plan.ROUTER:
        settings |= {"forwarding": 1, "rp_filter": 2}
    elif plan.is_lb(machine):
        settings |= {"rp_filter": 1}
    for name, value in settings.items():
        _sysctl(machine, f"ipv4.conf.all.{name}", value)
        _sysctl(machine, f"ipv4.conf.default.{name}", value)


def _route(lab: Plan, machine: str) -> None:
    if machine == plan.ROUTER:
        return
    network = lab.links(machine)[0].network
    lines = [f"route add default via {network.address(plan.ROUTER_HOST)} mtu {lab.mtu}"]
    if plan.is_node_alone(machine):
        (link,) = lab.links(machine)
        on_link = f"{network.prefix}.0/24 dev {network.interface} proto kernel scope link"
        lines.append(f"route replace {on_link} src {link.address} mtu {lab.mtu}")
    elif machine in lab.node_names:
        private = lab.links(machine)[-1]
        to_lbs = f"{plan.SNAT_NETWORK} dev {private.network.interface} src {private.address}"
        lines.append(f"route add {to_lbs} mtu {lab.mtu}")
    _ip(machine, lines)


def set_links(lab: Plan, machine: str, *, up: bool) -> None:
    """Every cable of a machine at the switch; when they are down, its carrier has gone as well.

    The public one last: who still has the other could hand over by it, in a millisecond.
    """
    for link in sorted(lab.links(machine), key=lambda each: each.network is plan.PUBLIC):
        set_link(link, up=up)


def set_link(link: Link, *, up: bool) -> None:
    """One cable alone."""
    command([*plan.enter(plan.SWITCH), "ip", "link", "set", link.port, "up" if up else "down"])


def set_cut(lab: Plan, machine: str, *, cut: bool) -> None:
    """Cut every cable of a machine at the switch, or heal it; the carrier stays up."""
    state = DISABLED_STATE if cut else FORWARDING_STATE
    for link in lab.links(machine):
        words = ["bridge", "link", "set", "dev", link.port, "state", str(state)]
        command([*plan.enter(plan.SWITCH), *words])


def cut_way(lab: Plan, sender: str, receiver: str) -> None:
    """Have the switch carry nothing from one machine to another; the other way stays as it is."""
    ways = [
        f'"{ours.port}" . "{theirs.port}"'
        for ours in lab.links(sender)
        for theirs in lab.links(receiver)
        if ours.network is theirs.network
    ]
    if not ways:
        raise LabError(f"{sender} and {receiver} are on no network together")
    _nft(f"{CUT_WAYS}add element bridge gale cut {{ {', '.join(ways)} }}")


def heal_ways(lab: Plan, machine: str) -> None:
    """Take back every `cut_way` from or to a machine."""
    ports = {link.port for link in lab.links(machine)}
    _nft(CUT_WAYS)
    words = ["nft", "-j", "list", "set", "bridge", "gale", "cut"]
    listed = json.loads(command([*plan.enter(plan.SWITCH), *words]))["nftables"]
    found = [each["set"].get("elem", []) for each in listed if "set" in each]
    for way in (element["concat"] for elements in found for element in elements):
        if ports & set(way):
            _nft(f'delete element bridge gale cut {{ "{way[0]}" . "{way[1]}" }}')


CUT_WAYS = """\
table bridge gale {
  set cut { type ifname . ifname; }
  chain ways { type filter hook forward priority 0; }
}
flush chain bridge gale ways
add rule bridge gale ways iifname . oifname @cut drop
"""
"""The switch's rule, which may be there already, for what `cut_way` names."""


def _nft(text: str) -> None:
    command([*plan.enter(plan.SWITCH), "nft", "-f", "-"], text)


def existing() -> list[str]:
    """The machines of any lab, whole or left over, that are namespaces now."""
    if not plan.NETNS_DIR.is_dir():
        return []
    found = (path.name for path in plan.NETNS_DIR.iterdir())
    return sorted(
        name.removeprefix("gale-") for name in found if plan.OUR_NAMESPACE.fullmatch(name)
    )


def inhabitants(machine: str) -> list[int]:
    """The processes in a machine's namespace."""
    return [int(pid) for pid in command(["ip", "netns", "pids", plan.namespace(machine)]).split()]


def remove(machine: str) -> None:
    command(["ip", "netns", "delete", plan.namespace(machine)])
