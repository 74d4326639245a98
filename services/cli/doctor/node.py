"""Checks of a node: its agent, its servers, its load balancers, and direct return."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import Any

import httpx

from bpf.attach import UNWRAPPER
from conf import NodeConfig, Paths, Source
from services.cli.doctor import system
from services.cli.doctor.finding import Check, Finding, Findings, Level
from services.cli.doctor.firewall import firewall_findings
from services.cli.doctor.links import RP_FILTER, is_strict
from services.cli.doctor.reach import CONNECT_TIMEOUT_S, reach_finding
from services.cli.host import host_problems
from services.cli.machine import Listener, Machine, listeners, read_machine

ARP_IGNORE = "net/ipv4/conf/all/arp_ignore"
ARP_ANNOUNCE = "net/ipv4/conf/all/arp_announce"
LOOPBACK = "lo"
RFC1337 = "net/ipv4/tcp_rfc1337"
TIMESTAMPS = "net/ipv4/tcp_timestamps"
BACKLOG = "net/core/somaxconn"
LEAST_BACKLOG = 1_024
NAMED = ("127.0.0.1", "::1")


@dataclass(frozen=True, slots=True)
class Ground:
    """What the checks of a node look at."""

    source: Source
    config: NodeConfig
    paths: Paths
    machine: Machine
    listening: tuple[Listener, ...]
    """TCP's and UDP's."""
    status: dict[str, Any] | None
    """The agent's; None: it does not answer."""


def look(source: Source, config: NodeConfig, paths: Paths) -> Ground:
    """This machine, as far as a node is concerned."""
    names = sorted(name for _, name in socket.if_nameindex() if name != LOOPBACK)
    sysctls = [
        *(ARP_IGNORE, ARP_ANNOUNCE, RFC1337, TIMESTAMPS, BACKLOG, *system.SYSCTLS),
        *(RP_FILTER.format(name) for name in ("all", *names)),
    ]
    machine = read_machine([*names, LOOPBACK], sysctls, paths.bpf_dir)
    status = ask_agent(config.local.api_port)
    return Ground(source, config, paths, machine, listeners(), status)


def ask_agent(port: int) -> dict[str, Any] | None:
    """The agent's status; None: no agent answers."""
    try:
        # The proxy of the environment is for the world outside, not for this machine.
        with httpx.Client(trust_env=False, timeout=CONNECT_TIMEOUT_S) as client:
            status = client.get(f"http://127.0.0.1:{port}/status").json()
        is_status = isinstance(status["network"], dict)
    except (httpx.HTTPError, ValueError, KeyError, TypeError):
        return None
    return status if is_status else None


def agent_findings(ground: Ground) -> Findings:
    """Whether the agent runs, and what it waits for."""
    if ground.status is None:
        yield Finding(
            Level.WARN,
            "agent",
            f"does not answer on port {ground.config.local.api_port}:"
            " what modes l2 and l3 need here is not known",
            "supervisorctl start gale-node:*",
        )
        return
    yield Finding(Level.OK, "agent", "answers")


def host_findings(ground: Ground) -> Findings:
    """What the file asks of the machine by name."""
    for problem in host_problems(ground.source, ground.config):
        yield Finding(Level.FAIL, problem.key, problem.message)


def network_findings(ground: Ground) -> Findings:
    """Modes l2 and l3, as far as the agent says that they are needed."""
    if ground.status is not None:
        yield from direct_return_findings(ground.status["network"], ground.machine)


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


def reach_findings(ground: Ground) -> Findings:
    """Each LB's port for nodes."""
    for endpoint in ground.config.load_balancer.addresses:
        yield reach_finding(endpoint.host, endpoint.port)


def server_findings(ground: Ground) -> Findings:
    """Each service's own server: somebody listens, and not on loopback alone."""
    udp = _udp_services(ground.status)
    for service in ground.config.services:
        protocol = "udp" if service.name in udp else "tcp"
        held = [
            each
            for each in ground.listening
            if each.port == service.port and each.protocol in (protocol, "tcp" if udp else "udp")
        ]
        yield _server_finding(service.name, f"{protocol}/{service.port}", held)


def _server_finding(name: str, what: str, held: list[Listener]) -> Finding:
    if not held:
        return Finding(
            Level.WARN,
            name,
            f"nobody listens on {what}: the node reports NOT_SERVING",
            "start the server",
        )
    if all(each.address in NAMED for each in held):
        return Finding(
            Level.FAIL,
            name,
            f"its server listens on {held[0].address} alone ({what}): no client gets there",
            "have it listen on 0.0.0.0, in l2 and l3 on the VIP as well",
        )
    return Finding(Level.OK, name, f"somebody listens on {held[0].protocol}/{held[0].port}")


def _udp_services(status: dict[str, Any] | None) -> frozenset[str]:
    told = status.get("services", ()) if status is not None else ()
    return frozenset(
        str(each.get("service") or each.get("name"))
        for each in told
        if isinstance(each, dict) and each.get("protocol") == "udp"
    )


def loopback_findings(ground: Ground) -> Findings:
    """A VIP stands on lo, and a device that is down has no addresses that count."""
    link = ground.machine.links.get(LOOPBACK)
    if link is not None and not link.up:
        yield Finding(
            Level.FAIL, LOOPBACK, "is down: neither a VIP nor a check works", "ip link set lo up"
        )
    else:
        yield Finding(Level.OK, LOOPBACK, "is up")


def carrier_findings(ground: Ground) -> Findings:
    """Some interface must have a carrier."""
    links = [each for name, each in ground.machine.links.items() if name != LOOPBACK]
    if any(each.up and each.carrier for each in links):
        yield Finding(Level.OK, "links", "one at least is up, with a carrier")
    else:
        names = ", ".join(each.name for each in links) or "none but lo"
        yield Finding(
            Level.FAIL, "links", f"no interface is up with a carrier ({names})", "ip link set IF up"
        )


def time_wait_findings(ground: Ground) -> Findings:
    """A client that comes back to a port in TIME_WAIT is let in by its numbers, or by its RST."""
    if (ground.machine.sysctl(RFC1337) or "0").strip() == "1":
        yield Finding(
            Level.WARN,
            "TIME_WAIT",
            "net.ipv4.tcp_rfc1337 is 1: a port that comes round again waits for a minute",
            "sysctl -w net.ipv4.tcp_rfc1337=0",
        )
    else:
        yield Finding(Level.OK, "TIME_WAIT", "ends by a RST")
    if (ground.machine.sysctl(TIMESTAMPS) or "1").strip() == "0":
        yield Finding(
            Level.WARN,
            "timestamps",
            "net.ipv4.tcp_timestamps is 0: a port that comes round again is taken for an old one",
            "sysctl -w net.ipv4.tcp_timestamps=1",
        )
    else:
        yield Finding(Level.OK, "timestamps", "on")


def backlog_findings(ground: Ground) -> Findings:
    """Connections that come faster than the server accepts them wait in its backlog."""
    backlog = int((ground.machine.sysctl(BACKLOG) or str(LEAST_BACKLOG)).strip())
    if backlog < LEAST_BACKLOG:
        yield Finding(
            Level.WARN,
            "backlog",
            f"net.core.somaxconn is {backlog}: of a burst the rest waits a second and more",
            "sysctl -w net.core.somaxconn=4096",
        )
    else:
        yield Finding(Level.OK, "backlog", str(backlog))


def rp_filter_findings(ground: Ground) -> Findings:
    """What comes out of a tunnel comes from clients whose way back is another one."""
    for name in ground.machine.links:
        if name != LOOPBACK and is_strict(ground.machine, name):
            yield Finding(
                Level.WARN,
                "rp_filter",
                f"strict on {name}: in mode l3, what comes out of a tunnel may be dropped",
                f"sysctl -w {RP_FILTER.format(name).replace('/', '.')}=2",
            )


def firewall(ground: Ground) -> Findings:
    yield from firewall_findings({each.port: f"{each.name}" for each in ground.config.services})


CHECKS: tuple[Check[Ground], ...] = (
    Check("file", "the names that the file names", host_findings),
    *system.checks_of(lambda ground: ground.machine, lambda ground: ground.paths, ("gale-agent",)),
    Check("agent", "it runs", agent_findings),
    Check("direct return", "VIPs on lo, silent ARP, an unwrapper", network_findings),
    Check("load balancers", "each one's port for nodes answers", reach_findings),
    Check("servers", "somebody listens, not on loopback alone", server_findings),
    Check("loopback", "lo is up", loopback_findings),
    Check("links", "an interface with a carrier", carrier_findings),
    Check("TIME_WAIT", "ports that come round again are let in", time_wait_findings),
    Check("backlog", "bursts are waited for", backlog_findings),
    Check("rp_filter", "what comes out of a tunnel comes through", rp_filter_findings),
    Check("firewall", "clients get in", firewall),
)
