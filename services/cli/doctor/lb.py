"""Checks of a load balancer: its programs and processes, the ports it takes, its peers."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from itertools import chain
from pathlib import Path

from bus import topics
from conf import LbConfig, Paths, Source
from services.cli.doctor import links, system
from services.cli.doctor.finding import Check, Finding, Findings, Level
from services.cli.doctor.firewall import firewall_findings
from services.cli.doctor.links import RP_FILTER
from services.cli.doctor.reach import reach_finding
from services.cli.host import host_problems
from services.cli.machine import Link, Machine, read_machine

SNAT_PORTS = range(1_536, 32_768)
"""What an LB takes on an address of its own, as the node table lays it out."""
PORT_RANGE = "net/ipv4/ip_local_port_range"
RESERVED_PORTS = "net/ipv4/ip_local_reserved_ports"
FORWARD = "net/ipv4/conf/{}/forwarding"
PROGRAMS = ("gale-dataplane", "gale-health", "gale-quorum", "gale-api")
PROCESSES = (topics.DATAPLANE, topics.HEALTH, topics.QUORUM, topics.API)
BUCKET_BYTES, FLOW_WAYS = 1_024, 16
MEMORY = Path("/proc/meminfo")


@dataclass(frozen=True, slots=True)
class Ground:
    """What the checks of an LB look at."""

    source: Source
    config: LbConfig
    paths: Paths
    machine: Machine
    running: frozenset[str]
    """The processes of Gale that answer commands here."""

    @property
    def sides(self) -> tuple[Link | None, Link | None]:
        """The public and the private interface; None: there is none of that name."""
        local, there = self.config.local, self.machine.links
        return there.get(local.net_interface_public), there.get(local.net_interface_private)


def look(source: Source, config: LbConfig, paths: Paths) -> Ground:
    """This machine, as far as an LB is concerned."""
    local = config.local
    names = sorted({local.net_interface_public, local.net_interface_private})
    sysctls = [
        *(PORT_RANGE, RESERVED_PORTS, *system.SYSCTLS),
        *(RP_FILTER.format(name) for name in ("all", *names)),
        *(FORWARD.format(name) for name in names),
    ]
    listening = system.listening_sockets()
    running = frozenset(
        name for name in PROCESSES if str(topics.command_path(paths.run_dir, name)) in listening
    )
    machine = read_machine(names, sysctls, paths.bpf_dir)
    return Ground(source, config, paths, machine, running)


def host_findings(ground: Ground) -> Findings:
    """What the file asks of the machine by name, as `gale check --host` asks."""
    for problem in host_problems(ground.source, ground.config):
        yield Finding(Level.FAIL, problem.key, problem.message)


def process_findings(ground: Ground) -> Findings:
    """Who runs, and whether it has anything to forward with."""
    programs = [each for link in ground.machine.links.values() for each in link.attached]
    ours = [each for each in programs if each.ours]
    missing = [name for name in PROCESSES if name not in ground.running]
    if topics.DATAPLANE in ground.running and not ours and ground.machine.root:
        yield Finding(
            Level.FAIL,
            "processes",
            "the dataplane runs, and no program of Gale's is attached: nothing is forwarded",
            "gale status says what it waits for; log/dataplane.log",
        )
    elif missing:
        forwards = "the kernel goes on by what it was told last" if ours else "nothing is forwarded"
        yield Finding(
            Level.WARN,
            "processes",
            f"{', '.join(missing)} not running: {forwards}",
            "supervisorctl start 'gale:*'",
        )
    else:
        yield Finding(Level.OK, "processes", "all four run")


def taken_port_findings(ground: Ground) -> Findings:
    """Ports that Gale's processes need, taken by somebody else while they do not run."""
    local = ground.config.local
    for port, process, key in (
        (local.node_port, topics.HEALTH, "local.node_port"),
        (local.api_port, topics.API, "local.api_port"),
    ):
        held = [each for each in ground.machine.listeners if each.port == port]
        if held and process not in ground.running:
            yield Finding(
                Level.FAIL,
                "ports",
                f"{port} ({key}) is taken by somebody else: gale:{process} cannot listen there",
                f"ss -ltnp sport = :{port} names who it is; or another {key}",
            )
        else:
            yield Finding(Level.OK, "ports", f"{port} ({key}) is for gale:{process}")


def forwarding_findings(ground: Ground) -> Findings:
    """What is passed for a floating VIP must not be routed on: two LBs would play ball with it."""
    names = [
        name
        for name in ground.machine.links
        if (ground.machine.sysctl(FORWARD.format(name)) or "0").strip() == "1"
    ]
    if names and ground.config.virtual_ips:
        yield Finding(
            Level.WARN,
            "forwarding",
            f"the kernel routes between interfaces ({', '.join(names)}): packets that it gets for"
            " a VIP of another LB it sends on, to and fro",
            "sysctl -w net.ipv4.ip_forward=0, unless this machine is a router too",
        )
    else:
        yield Finding(Level.OK, "forwarding", "the kernel sends no VIP's packets on")


def memory_findings(ground: Ground, available: int | None = None) -> Findings:
    """The flow table is made whole at the start."""
    if available is None:
        found = re.search(r"MemAvailable:\s+(\d+) kB", MEMORY.read_text())
        available = int(found[1]) << 10 if found else 1 << 62
    needed = 2 * ground.config.dataplane.conntrack_entries // FLOW_WAYS * BUCKET_BYTES
    if needed > available and topics.DATAPLANE not in ground.running:
        yield Finding(
            Level.FAIL,
            "memory",
            f"the flow table takes {needed >> 20} MB, and {available >> 20} MB are free",
            "a smaller dataplane.conntrack_entries",
        )
    else:
        yield Finding(Level.OK, "memory", f"{needed >> 20} MB for the flow table are there")


def vip_findings(ground: Ground) -> Findings:
    """A VIP that no network of the public side has is reached by nobody who asks by ARP."""
    public, _ = ground.sides
    if public is None:
        return
    for vip in ground.config.virtual_ips:
        yield _asked_for("VIP", vip.address, public, "nobody there", "the router")


def snat_address_findings(ground: Ground) -> Findings:
    """Replies to an SNAT address that no network of the private side has come by a router only."""
    _, private = ground.sides
    if private is None:
        return
    vips, services = ground.config.virtual_ips, ground.config.services
    told = [*(each.snat_addresses for each in vips), *(each.snat_addresses for each in services)]
    for address in dict.fromkeys(chain.from_iterable(told)):
        yield _asked_for("SNAT", address, private, "no node there", "the nodes")


def _asked_for(check: str, address: str, link: Link, whoever: str, there: str) -> Finding:
    """Whether machines behind the link ask for the address by ARP, or need a route to it there."""
    if any(ip_address(address) in ip_network(text) for text in link.networks):
        return Finding(Level.OK, check, f"{address} is in a network of {link.name}")
    return Finding(
        Level.WARN,
        check,
        f"{address} is in no network of {link.name}: {whoever} asks for it",
        f"a route to it on {there}, via {', '.join(link.addresses) or link.name}",
    )


def peer_findings(ground: Ground) -> Findings:
    """The other LBs' ports: an election needs a majority that hears each other."""
    own = {address for link in ground.machine.links.values() for address in link.addresses}
    for peer in ground.config.quorum.addresses:
        if peer.host in own:
            continue
        found = reach_finding(
            peer.host, peer.port, "peer", "supervisorctl status gale:quorum over there"
        )
        level = Level.WARN if found.level is Level.FAIL else found.level
        yield Finding(level, found.check, found.message, found.remedy)


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


def firewall(ground: Ground) -> Findings:
    local, quorum = ground.config.local, ground.config.quorum
    ports = {local.node_port: "nodes", local.api_port: "the API"}
    ports |= {peer.port: "the other LBs" for peer in quorum.addresses}
    yield from firewall_findings(ports)


# --------------------------------------------------------------------------- the table


def _each_link(examine: Callable[[Link], Findings]) -> Callable[[Ground], Findings]:
    def examine_all(ground: Ground) -> Findings:
        for link in ground.machine.links.values():
            yield from examine(link)

    return examine_all


def _both(examine: Callable[[Link, Link], Findings]) -> Callable[[Ground], Findings]:
    """Of a pair of interfaces, where they are two."""

    def examine_pair(ground: Ground) -> Findings:
        public, private = ground.sides
        if public is not None and private is not None and public.name != private.name:
            yield from examine(public, private)

    return examine_pair


def _config(examine: Callable[[LbConfig, Machine], Findings]) -> Callable[[Ground], Findings]:
    return lambda ground: examine(ground.config, ground.machine)


def _real_time(_ground: Ground) -> Findings:
    limit = resource.getrlimit(resource.RLIMIT_RTPRIO)[1]
    yield from system.sched_findings(os.geteuid(), limit)


CHECKS: tuple[Check[Ground], ...] = (
    Check("file", "the interfaces, addresses, names and keys that the file names", host_findings),
    *system.checks_of(lambda ground: ground.machine, lambda ground: ground.paths, PROGRAMS),
    Check("toolchain", "bcc and the system's headers", lambda _: system.toolchain_findings()),
    Check(
        "BPF file system",
        "pins outlive the processes",
        lambda ground: system.bpf_directory_findings(ground.paths.bpf_dir),
    ),
    Check("memory", "room for the flow table", memory_findings),
    Check("real time", "a busy machine costs no lease", _real_time),
    Check("links", "interfaces up, with a carrier, without LRO", _each_link(links.link_findings)),
    Check("programs", "nobody else in the programs' place", _each_link(links.program_findings)),
    Check("masters", "no port of a bridge or bond", _each_link(links.master_findings)),
    Check("tags", "VLANs stay apart", _each_link(links.tag_findings)),
    Check("processes", "all four run, and have attached their programs", process_findings),
    Check("taken ports", "nobody else listens where Gale's processes will", taken_port_findings),
    Check("XDP", "requests go the fast way", _config(links.xdp_findings)),
    Check("MTU", "what comes in on one side fits out of the other", _config(links.mtu_findings)),
    Check("jumbo frames", "replies fit out of the public side", _both(links.jumbo_findings)),
    Check("ARP", "each interface answers for itself", _both(links.flux_findings)),
    Check("rp_filter", "what the kernel routes comes through", _config(links.return_path_findings)),
    Check("snat", "replies come back through this LB", _config(links.client_address_findings)),
    Check("forwarding", "no VIP's packet is routed on", forwarding_findings),
    Check("VIPs", "clients can ask for them", vip_findings),
    Check("SNAT", "nodes can ask for the addresses of replies", snat_address_findings),
    Check("SNAT ports", "they are nobody else's", _config(port_findings)),
    Check("firewall", "nodes, LBs and you get in", firewall),
    Check("peers", "the other LBs answer", peer_findings),
)
