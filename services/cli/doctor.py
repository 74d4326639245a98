"""`gale doctor`: what on this machine would stop packets, and what to do about it.

One line for each check: `ok`, `warn` (it works, less well or not for everybody) or `fail` (packets
are lost, or nothing starts); exit code 1 if one fails. It looks and changes nothing, needs no
process of Gale to run, and works the same before the first start and in the middle of trouble.
What the configuration asks of the machine by name (interfaces, addresses, keys) is what `gale
check --host` asks, and each lack is a failure here. Run it as root: without, the kernel does not
tell whose programs are attached.

The checks are functions from what was read (`machine.Machine`) to findings; only the parts that try
something (connecting to an LB, writing to the BPF file system) touch the world.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import resource
import secrets
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import httpx
import typer
from rich.text import Text

from bpf.attach import OUR_PRIORITY, UNWRAPPER
from conf import LbConfig, NodeConfig, Paths, Source, load_either
from services.cli.host import host_problems
from services.cli.invocation import NO, WELL, Invocation, print_json
from services.cli.machine import (
    XDP_BASIC,
    XDP_REDIRECT,
    XDP_TAKES_REDIRECTED,
    Link,
    Machine,
    mount_of,
    read_machine,
)
from services.cli.tables import show

OLDEST_KERNEL = (5, 12)
"""Atomic additions that return (5.12), bpf_redirect_neigh; memory is accounted to the cgroup."""
TESTED_KERNEL = (6, 1)
SNAT_PORTS = range(1_536, 32_768)
"""What an LB takes on an address of its own, as the node table lays it out."""
ENCAPSULATION_BYTES = {"ipip": 20, "gue": 32}
LARGEST_XDP_MTU = 3_498
"""A page, less headroom, Ethernet and the frame's own bookkeeping."""
CONNECT_TIMEOUT_S = 2.0

PORT_RANGE = "net/ipv4/ip_local_port_range"
RESERVED_PORTS = "net/ipv4/ip_local_reserved_ports"
JIT = "net/core/bpf_jit_enable"
RP_FILTER = "net/ipv4/conf/{}/rp_filter"
STRICT = 1
ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
ARP_ANNOUNCE = "net/ipv4/conf/all/arp_announce"
LOOPBACK = "lo"


class Level(StrEnum):
    OK = "ok"
    WARN = "warn"
    FAIL = "fail"


STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.FAIL: "bold red"}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report. `remedy` is empty if there is nothing to do."""

    level: Level
    check: str
    message: str
    remedy: str = ""


Findings = Iterator[Finding]


def doctor(context: typer.Context) -> None:
    """What on this machine would stop packets, and what to do about it."""
    invocation = Invocation.of(context)
    source = Source.read(invocation.config_path())
    config = load_either(source)
    bpf_dir = Paths.from_environment().bpf_dir
    asked = [
        Finding(Level.FAIL, problem.key, problem.message)
        for problem in host_problems(source, config)
    ]
    if isinstance(config, LbConfig):
        findings = [*asked, *_examine_lb(config, bpf_dir)]
    else:
        findings = [*asked, *_examine_node(config, bpf_dir)]
    failed = any(finding.level is Level.FAIL for finding in findings)
    if invocation.json:
        print_json({"ok": not failed, "checks": [asdict(finding) for finding in findings]})
    else:
        show(*(_line(finding) for finding in findings))
    raise typer.Exit(NO if failed else WELL)


def _line(finding: Finding) -> Text:
    line = Text(f"{finding.level.value:<5}", STYLES[finding.level])
    line.append(f" {finding.check}: {finding.message}", "default")
    return line.append(f" -> {finding.remedy}", "bold") if finding.remedy else line


# --------------------------------------------------------------------------- a load balancer


def _examine_lb(config: LbConfig, bpf_dir: Path) -> Findings:
    local = config.local
    names = sorted({local.net_interface_public, local.net_interface_private})
    sysctls = [PORT_RANGE, RESERVED_PORTS, JIT, *(RP_FILTER.format(n) for n in ("all", *names))]
    machine = read_machine(names, sysctls, bpf_dir)
    yield from kernel_findings(machine)
    yield from toolchain_findings()
    yield from bpf_directory_findings(bpf_dir)
    for link in machine.links.values():
        yield from link_findings(link)
        yield from program_findings(link)
    yield from xdp_findings(config, machine)
    yield from mtu_findings(config, machine)
    yield from return_path_findings(config, machine)
    yield from client_address_findings(config, machine)
    yield from port_findings(config, machine)


def kernel_findings(machine: Machine) -> Findings:
    """The kernel's age, its JIT, its memory for BPF, and whether it tells us all."""
    release = ".".join(map(str, machine.kernel))
    if machine.kernel < OLDEST_KERNEL:
        oldest = ".".join(map(str, OLDEST_KERNEL))
        yield Finding(
            Level.FAIL,
            "kernel",
            f"{release} lacks what the programs call",
            f"at least {oldest}; Debian 12 and Ubuntu 24.04 have newer ones",
        )
        limit = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
        if limit != resource.RLIM_INFINITY:
            yield Finding(
                Level.FAIL, "memlock", f"{limit} bytes, too few for BPF maps", "ulimit -l unlimited"
            )
    elif machine.kernel < TESTED_KERNEL:
        yield Finding(Level.WARN, "kernel", f"{release}, older than any Gale was tested on")
    else:
        yield Finding(Level.OK, "kernel", f"{release}; BPF memory is not bound by memlock")
    jit = machine.sysctl(JIT)
    if jit is None:
        yield Finding(Level.OK, "BPF JIT", "is set outside this network namespace")
    elif jit.strip() == "0":
        yield Finding(
            Level.FAIL,
            "BPF JIT",
            "off: every packet costs many times as much",
            "sysctl -w net.core.bpf_jit_enable=1",
        )
    else:
        yield Finding(Level.OK, "BPF JIT", "on")
    if not machine.root:
        yield Finding(
            Level.WARN,
            "privilege",
            "not root: not everything could be looked at",
            "sudo gale doctor",
        )


def toolchain_findings() -> Findings:
    """What compiles the programs at every start."""
    if importlib.util.find_spec("bcc") is None or importlib.util.find_spec("bcc.libbcc") is None:
        yield Finding(
            Level.FAIL,
            "bcc",
            "cannot be imported: the dataplane cannot start",
            "apt install python3-bpfcc (not the bcc of PyPI, which is something else)",
        )
    elif not Path("/usr/include/linux/bpf.h").exists():
        yield Finding(
            Level.FAIL,
            "headers",
            "/usr/include/linux/bpf.h is missing",
            "apt install linux-libc-dev",
        )
    else:
        yield Finding(Level.OK, "bcc", "is there, and the system's headers")


def bpf_directory_findings(bpf_dir: Path) -> Findings:
    """Pins need a BPF file system that this user may write to."""
    mount, kind = mount_of(bpf_dir)
    if kind != "bpf":
        yield Finding(
            Level.FAIL,
            "bpffs",
            f"{bpf_dir} is not in a BPF file system but on {mount} ({kind})",
            "mount -t bpf bpf /sys/fs/bpf",
        )
        return
    there = next(path for path in (bpf_dir, *bpf_dir.parents) if path.exists())
    probe = there / f"gale_doctor_{secrets.token_hex(4)}"
    try:
        probe.mkdir()
        probe.rmdir()
    except OSError as error:
        yield Finding(
            Level.FAIL,
            "bpffs",
            f"{there} cannot be written: {error.strerror}",
            "run as root, or give the directory to the user of the dataplane",
        )
    else:
        yield Finding(Level.OK, "bpffs", f"{bpf_dir} is writable")


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
    """What is received on one side must fit out of the other."""
    public = machine.links.get(config.local.net_interface_public)
    private = machine.links.get(config.local.net_interface_private)
    if public is None or private is None:
        return
    extra = max(
        (ENCAPSULATION_BYTES[each.encap] for each in config.services if each.mode == "l3"),
        default=0,
    )
    if private.mtu < public.mtu + extra:
        for_outer = f" and {extra} more for the outer header" if extra else ""
        yield Finding(
            Level.WARN,
            "MTU",
            f"{private.name} has {private.mtu}, {public.name} has {public.mtu}{for_outer}:"
            " longer packets are answered with fragmentation-needed, or dropped by name",
            f"ip link set {private.name} mtu {public.mtu + extra}",
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
        strict = _strict_rp_filter(machine, name)
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
        yield Finding(
            Level.OK,
            "snat",
            f"nodes see the clients' own addresses, and must reach them through this LB's address"
            f" on {private.name} ({services})",
        )


def port_findings(config: LbConfig, machine: Machine) -> Findings:
    """The SNAT ports must not be the ones the kernel gives to this machine's own connections."""
    low, high = map(int, (machine.sysctl(PORT_RANGE) or "32768 60999").split())
    reserved = parse_ports(machine.sysctl(RESERVED_PORTS) or "")
    first, last = SNAT_PORTS[0], SNAT_PORTS[-1]
    shared = set(SNAT_PORTS) & set(range(low, high + 1)) - reserved
    if shared:
        yield Finding(
            Level.FAIL,
            "SNAT ports",
            f"ip_local_port_range {low}-{high} shares {len(shared)} ports with {first}-{last}",
            f"sysctl -w net.ipv4.ip_local_reserved_ports={first}-{last}",
        )
    else:
        yield Finding(Level.OK, "SNAT ports", f"{first}-{last} are nobody else's")
    known = {config.local.node_port: "node_port", config.local.api_port: "api_port"}
    ports = sorted({each.port for each in machine.listeners if each.port in SNAT_PORTS})
    if ports:
        words = [f"{port} ({known[port]})" if port in known else str(port) for port in ports]
        yield Finding(
            Level.OK,
            "listeners",
            f"{', '.join(words)} lie among the SNAT ports: no harm, a flow has its node's port too",
        )


def parse_ports(text: str) -> set[int]:
    """`8080,9000-9002` as the ports it means."""
    ports: set[int] = set()
    for part in text.strip().split(","):
        if part:
            first, _, last = part.partition("-")
            ports |= set(range(int(first), int(last or first) + 1))
    return ports


def _strict_rp_filter(machine: Machine, name: str) -> bool:
    values = [machine.sysctl(RP_FILTER.format(each)) for each in ("all", name)]
    return max((int(value) for value in values if value), default=0) == STRICT


# --------------------------------------------------------------------------- a node


def _examine_node(config: NodeConfig, bpf_dir: Path) -> Findings:
    names = sorted(name for _, name in socket.if_nameindex() if name != "lo")
    sysctls = [ARP_IGNORE, ARP_ANNOUNCE, *(RP_FILTER.format(name) for name in ("all", *names))]
    machine = read_machine([*names, LOOPBACK], sysctls, bpf_dir)
    network = ask_agent(config.local.api_port)
    if network is None:
        yield Finding(
            Level.WARN,
            "agent",
            f"does not answer on port {config.local.api_port}:"
            " what modes l2 and l3 need here is not known",
            "supervisorctl start gale-node:*",
        )
    else:
        yield from direct_return_findings(network, machine)
    for endpoint in config.load_balancer.addresses:
        yield reach_finding(endpoint.host, endpoint.port)
    listening = {each.port for each in machine.listeners}
    for service in config.services:
        if service.port in listening:
            yield Finding(Level.OK, service.name, f"somebody listens on tcp/{service.port}")
        else:
            yield Finding(
                Level.WARN,
                service.name,
                f"nobody listens on tcp/{service.port}: the node reports NOT_SERVING",
                "start the server",
            )
    for name in names:
        if _strict_rp_filter(machine, name):
            yield Finding(
                Level.WARN,
                "rp_filter",
                f"strict on {name}: in mode l3, what comes out of a tunnel may be dropped",
                f"sysctl -w {RP_FILTER.format(name).replace('/', '.')}=2",
            )


def ask_agent(port: int) -> dict[str, Any] | None:
    """What the agent's status says of the network; None: no agent answers."""
    try:
        # The proxy of the environment is for the world outside, not for this machine.
        with httpx.Client(trust_env=False, timeout=CONNECT_TIMEOUT_S) as client:
            status = client.get(f"http://127.0.0.1:{port}/status").json()
        network = status["network"]
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return network if isinstance(network, dict) else None


def direct_return_findings(network: dict[str, Any], machine: Machine) -> Findings:
    """Modes l2 and l3: what the node needs to answer clients itself, as the machine is now."""
    needed, tunnelled = network["needed"], network["tunnelled"]
    if not needed:
        yield Finding(Level.OK, "direct return", "no service asks for it")
        return
    own = machine.links[LOOPBACK].addresses if LOOPBACK in machine.links else ()
    for address in needed:
        holder = next((n for n, each in machine.links.items() if address in each.addresses), "")
        if address in network["refused"]:
            yield Finding(
                Level.FAIL,
                "direct return",
                f"{address} is the address by which this node reaches its load balancer",
                'give the service a virtual IP of its own, or mode = "l4"',
            )
        elif address in own:
            yield Finding(Level.OK, "direct return", f"{address} is on lo")
        else:
            yield Finding(
                Level.FAIL,
                "direct return",
                f"{address} is not on lo" + (f" but on {holder}" if holder else ""),
                f"ip address add {address}/32 dev lo scope host",
            )
    for name, least in ((ARP_IGNORE, 1), (ARP_ANNOUNCE, 2)):
        value = int(machine.sysctl(name) or 0)
        dotted = name.replace("/", ".")
        if value < least:
            yield Finding(
                Level.FAIL,
                "ARP",
                f"{dotted} is {value}: this node would claim the VIP for itself",
                f"sysctl -w {dotted}={least}",
            )
        else:
            yield Finding(Level.OK, "ARP", f"{dotted} is {value}")
    if tunnelled:
        yield unwrapper_finding(bool(network["managed"]), machine)
    for missing in network["waiting_for"]:
        yield Finding(Level.WARN, "agent", f"waits: {missing}")


def unwrapper_finding(managed: bool, machine: Machine) -> Finding:
    """Mode l3: somebody must take off the outer header."""
    found = [
        f"{attachment} on {attachment.interface}"
        for link in machine.links.values()
        for attachment in link.attached
        if attachment.name == UNWRAPPER
    ]
    if found:
        return Finding(Level.OK, "unwrapper", ", ".join(found))
    if managed:
        return Finding(
            Level.FAIL,
            "unwrapper",
            "attached to no interface: wrapped packets are dropped",
            "see the agent's log",
        )
    return Finding(
        Level.WARN,
        "unwrapper",
        "none of Gale's: only a tunnel device of your own unwraps packets",
        "manage_network = true",
    )


def reach_finding(host: str, port: int) -> Finding:
    """Whether an LB's port for nodes can be connected to."""
    what = f"{host}:{port}"
    try:
        with contextlib.closing(socket.create_connection((host, port), CONNECT_TIMEOUT_S)):
            return Finding(Level.OK, "load balancer", f"{what} answers")
    except ConnectionRefusedError:
        why = "nobody listens there"
        remedy = "the port is local.node_port of the LB, 7070 unless its file says otherwise"
    except TimeoutError:
        why, remedy = "no answer", "look for a firewall, or a wrong address"
    except OSError as error:
        why, remedy = os.strerror(error.errno) if error.errno else str(error), "look at the route"
        if isinstance(error, socket.gaierror):
            why, remedy = "the name has no address", "DNS, mDNS or /etc/hosts"
    return Finding(Level.FAIL, "load balancer", f"{what}: {why}", remedy)
