"""The configuration of a load balancer: `lb.toml`.

The original description's tables come first, with its names; what Gale adds has a default for every
key, so the original file loads as it stands. Attributes are named as the keys are, but durations
end in `_ms`, and `[load_balancer_quorum]` is `quorum`. Who one is, which interfaces one stands
between, and what is built or bound at the start is marked `NEEDS_RESTART`; all else is taken up by
a running process.

Shape is checked by the types of the fields. Sense (a lease the promise does not cover, two services
on one port) is checked by `findings`, one function for each table, over values that are of the
right shape; `conf.loading` sees to it that both kinds are reported together.
"""

from __future__ import annotations

import socket
from bisect import bisect_right
from collections.abc import Iterator
from typing import Annotated, Any

from pydantic import Field, ValidationInfo, field_validator

from bus.words import CLOCK_DRIFT_PERCENT, LARGEST_PROMISE_MS, MOST_MEMBERS
from conf.lines import Key
from conf.log import LbLog
from conf.security import Security
from conf.table import (
    ALIKE,
    COMPARED,
    NEEDS_RESTART,
    STAGED,
    ClusterWide,
    Endpoint,
    Finding,
    NeedsRestart,
    Table,
    endpoint_findings,
)
from conf.values import (
    AbsolutePath,
    Affinity,
    Announce,
    Boolean,
    Encapsulation,
    EventsEndpoint,
    FailsBeforeBan,
    Interface,
    Mode,
    Name,
    NodeDown,
    NoFlow,
    OnQuorumLoss,
    OuterPrefix,
    Percentage,
    Port,
    PortOrRange,
    Ports,
    Probe,
    Protocol,
    ReplyHook,
    SnatAddresses,
    VirtualAddress,
    XdpFlavour,
    duration,
    duration_text,
    whole,
)

DAY_MS = 86_400_000

IDLE_MS = (1_000, 7 * DAY_MS)
"""Least and most of what a flow may be told to live without a packet."""

MOST_SERVICES = 1_000
MOST_PORTS = 16_384
"""Of all services together: each port of a range has an entry of its own in the kernel."""
MOST_VIRTUAL_IPS = 256

QUORUM = "load_balancer_quorum"


class Local(Table):
    """`[local]`: this machine."""

    node_port: Port = 7070
    clients_port: Port = 8080
    net_interface_private: Annotated[Interface, NEEDS_RESTART] = Field(
        description='the interface towards the nodes, such as "eth1"'
    )
    net_interface_public: Annotated[Interface, NEEDS_RESTART] = Field(
        description='the interface towards the clients, such as "eth0"'
    )
    name: Annotated[Name, NEEDS_RESTART] = Field(default_factory=socket.gethostname)
    api_port: Port = 5555
    mode: Mode = "l4"

    @property
    def one_interface(self) -> bool:
        """Clients and nodes are on the same one."""
        return self.net_interface_private == self.net_interface_public


class NodeHealth(Table):
    """`[node_health]`: when a node is routed to, and when no longer."""

    checks_before_routing: Annotated[int, whole(1, 1000), COMPARED] = 3
    checks_timeout_ms: Annotated[int, duration(50, DAY_MS), COMPARED] = Field(
        default=5_000, alias="checks_timeout"
    )
    black_list_after_fails: Annotated[FailsBeforeBan, COMPARED] = -1
    black_list_expiry_ms: Annotated[int, duration(1, 365 * DAY_MS), COMPARED] = Field(
        default=60_000, alias="black_list_expiry"
    )
    min_healthy: Annotated[Percentage, COMPARED] = 50
    probe: Annotated[Probe, COMPARED] = "tcp"


def _decides_otherwise(before: tuple[Endpoint, ...], after: tuple[Endpoint, ...]) -> bool:
    """Whether one list has an LB decide alone and the other does not."""
    return (len(before) < 2) != (len(after) < 2)


class Quorum(Table):
    """`[load_balancer_quorum]`: the LBs that decide together. No addresses: a quorum of one."""

    name: Annotated[Name, NEEDS_RESTART, ClusterWide("or refused")] = "gale"
    enforce_single_configuration: Annotated[Boolean, ALIKE] = False
    addresses: Annotated[
        tuple[Endpoint, ...],
        NeedsRestart(_decides_otherwise, "between one LB and several"),
        STAGED,
    ] = ()
    heartbeat_ms: Annotated[int, duration(5, LARGEST_PROMISE_MS), ALIKE] = Field(
        default=25, alias="heartbeat"
    )
    lease_ms: Annotated[int, duration(10, LARGEST_PROMISE_MS), ALIKE] = Field(
        default=112, alias="lease"
    )
    promise_ms: Annotated[int, duration(10, LARGEST_PROMISE_MS), ALIKE] = Field(
        default=125, alias="promise"
    )
    election_jitter_ms: Annotated[int, duration(10, 10_000), ALIKE] = Field(
        default=60, alias="election_jitter"
    )
    witness: Annotated[Boolean, NEEDS_RESTART] = False
    on_quorum_loss: Annotated[OnQuorumLoss, ALIKE] = "lapse"
    announce: Announce = "arp"
    announce_command: AbsolutePath | None = None
    replication_port: Annotated[Port | None, ALIKE] = None

    def replication_port_of(self, peer: Endpoint) -> int:
        """Where a peer takes conntrack entries: by default the port after its quorum's."""
        return self.replication_port or peer.port + 1


class VirtualIp(Table):
    """`[[virtual_ips]]`: an address that whoever holds the lease answers for."""

    address: VirtualAddress = Field(description='the address clients use, such as "192.168.1.100"')
    snat_address: VirtualAddress | None = None
    snat_list: SnatAddresses = Field(default=(), alias="snat_addresses")

    @property
    def snat_addresses(self) -> tuple[str, ...]:
        """What nodes see in mode l4, by whichever key the file gives it; none: each LB's own."""
        return self.snat_list or ((self.snat_address,) if self.snat_address else ())


class Service(Table):
    """`[[services]]`: a VIP, a port and a protocol. `address` None: each LB's own public address.

    What the file leaves out is filled in when it is read: `mode` is local.mode, `node_port` is
    `port`, `address` the first of the virtual IPs, `affinity` "client" where there is an
    `affinity_group`. No `snat_addresses`: those of the virtual IP, or
    the LB's own. `on_node_down` None: "reset" if the node fell silent, "keep" if it said that it
    does not serve. `min_healthy` None: that of `[node_health]`.
    """

    name: Name = Field(description='the name of the service, such as "web"')
    address: VirtualAddress | None = None
    ports: PortOrRange = Field(
        alias="port", description='the port clients use, or a range such as "9000-9099"'
    )
    protocol: Protocol = "tcp"
    mode: Mode = "l4"
    node_ports: PortOrRange = Field(default=Ports(1, 1), alias="node_port")
    affinity: Affinity = "flow"
    affinity_group: Name | None = None
    encap: Encapsulation = "ipip"
    snat: Boolean = True
    snat_addresses: SnatAddresses = ()
    on_node_down: NodeDown | None = None
    no_flow: NoFlow = "reset"
    min_healthy: Percentage | None = None
    slow_start_ms: Annotated[int, duration(0, DAY_MS)] = Field(default=0, alias="slow_start")

    @property
    def port(self) -> int:
        """The first of its ports."""
        return self.ports.first

    @property
    def node_port(self) -> int:
        """The first of those that nodes serve it on."""
        return self.node_ports.first

    @property
    def keeps_port(self) -> bool:
        """A range of ports that nodes serve on the same ports."""
        return self.ports.size > 1 and self.node_ports == self.ports


class Bus(Table):
    """`[bus]`: a second endpoint for the public events, beside the ipc one."""

    events: Annotated[EventsEndpoint | None, NEEDS_RESTART] = None


class Dataplane(Table):
    """`[dataplane]`: what the kernel is asked for. A cap of 0 new flows means no cap.

    Each flow has two conntrack entries, one per direction. The five durations are how long a flow
    lives without a packet: established and closing as RFC 5382 (REQ-5) has them, UDP as RFC 4787
    (REQ-5), TIME_WAIT as Linux does.
    """

    reply_hook: Annotated[ReplyHook, NEEDS_RESTART] = "tc"
    xdp: Annotated[XdpFlavour, NEEDS_RESTART] = "native"
    conntrack_entries: Annotated[int, whole(64, 2**25), NEEDS_RESTART] = 524_288
    half_open_entries: Annotated[int, whole(64, 2**25), NEEDS_RESTART] = 131_072
    outer_source_prefix: OuterPrefix | None = None
    new_flows_per_second: Annotated[int, whole(0, 10**8)] = 0
    new_flows_per_second_per_source: Annotated[int, whole(0, 10**7)] = 0
    tcp_established_ms: Annotated[int, duration(*IDLE_MS)] = Field(
        default=124 * 60_000, alias="tcp_established"
    )
    tcp_closing_ms: Annotated[int, duration(*IDLE_MS)] = Field(
        default=4 * 60_000, alias="tcp_closing"
    )
    tcp_time_wait_ms: Annotated[int, duration(*IDLE_MS)] = Field(
        default=60_000, alias="tcp_time_wait"
    )
    udp_ms: Annotated[int, duration(*IDLE_MS)] = Field(default=2 * 60_000, alias="udp")
    udp_one_sided_ms: Annotated[int, duration(*IDLE_MS)] = Field(
        default=30_000, alias="udp_one_sided"
    )


class LbConfig(Table):
    """All of `lb.toml`, every key with a value."""

    # An absent [local] is read as an empty one, so that each key it must have is reported.
    local: Local = Field(default_factory=dict, validate_default=True)
    node_health: NodeHealth = NodeHealth()
    quorum: Quorum = Field(default=Quorum(), alias="load_balancer_quorum")
    virtual_ips: Annotated[tuple[VirtualIp, ...], STAGED] = ()
    services: Annotated[tuple[Service, ...], STAGED] = Field(default=(), validate_default=True)
    security: Security = Security()
    log: LbLog = LbLog()
    bus: Bus = Bus()
    dataplane: Dataplane = Dataplane()

    @field_validator("services")
    @classmethod
    def _filled_in(cls, services: tuple[Service, ...], info: ValidationInfo) -> Any:
        local: Local | None = info.data.get("local")
        virtual_ips: tuple[VirtualIp, ...] = info.data.get("virtual_ips", ())
        if local is None:
            return services  # the file is refused for its [local] anyway
        if not services:
            services = (
                Service(name="default", port=Ports(local.clients_port, local.clients_port)),
            )
        address = virtual_ips[0].address if virtual_ips else None
        return tuple(
            service.model_copy(
                update={
                    "mode": service.mode if service.says("mode") else local.mode,
                    "node_ports": (
                        service.node_ports if service.says("node_ports") else service.ports
                    ),
                    "affinity": (
                        "client"
                        if service.affinity_group and not service.says("affinity")
                        else service.affinity
                    ),
                    "address": service.address or address,
                }
            )
            for service in services
        )

    def findings(self) -> Iterator[Finding]:
        """What makes no sense though each value is of the right shape."""
        yield from _local_findings(self.local)
        yield from _quorum_findings(self)
        yield from _virtual_ip_findings(self)
        yield from _events_findings(self)
        yield from _service_findings(self)
        yield from _snat_findings(self)
        if self.dataplane.reply_hook == "xdp" and self.local.one_interface:
            wrong = '"xdp" takes what comes by the interface of the nodes alone'
            expected = 'expected "tc", or an interface for each side'
            key = ("dataplane", "reply_hook")
            yield Finding(key, wrong, expected, rests_on=(("local",),))


def _local_findings(local: Local) -> Iterator[Finding]:
    if local.node_port == local.api_port:
        key, other = ("api_port", "node_port")
        if not local.says(key):
            key, other = other, key
        yield Finding(
            ("local", key),
            f"{local.api_port} is also local.{other}",
            "expected a port of its own",
            other=("local", other),
        )


def _quorum_findings(config: LbConfig) -> Iterator[Finding]:
    quorum = config.quorum
    yield from endpoint_findings((QUORUM, "addresses"), quorum.addresses)
    yield from _peer_findings(quorum)
    yield from _quorum_port_findings(config)
    yield from _timing_findings(quorum)
    yield from _announce_findings(quorum)
    if quorum.witness and len(quorum.addresses) < 2:
        yield Finding(
            (QUORUM, "witness"),
            "a witness only votes, and here is nobody to vote for",
            "expected this machine and the LBs in addresses",
            rests_on=((QUORUM, "addresses"),),
        )


def _announce_findings(quorum: Quorum) -> Iterator[Finding]:
    if quorum.announce == "exec" and quorum.announce_command is None:
        yield Finding(
            (QUORUM, "announce"),
            '"exec" without announce_command',
            "expected announce_command beside it: the script to run",
            rests_on=((QUORUM, "announce_command"),),
        )
    if quorum.announce != "exec" and quorum.announce_command is not None:
        yield Finding(
            (QUORUM, "announce_command"),
            f'of no use with announce "{quorum.announce}"',
            'expected announce = "exec", or no announce_command',
            rests_on=((QUORUM, "announce"),),
        )


def _timing_findings(quorum: Quorum) -> Iterator[Finding]:
    lease, promise = duration_text(quorum.lease_ms), duration_text(quorum.promise_ms)
    lease_key, promise_key = (QUORUM, "lease"), (QUORUM, "promise")
    slow, fast = 100 - CLOCK_DRIFT_PERCENT, 100 + CLOCK_DRIFT_PERCENT
    why = f"(clocks may drift {CLOCK_DRIFT_PERCENT} %)"
    if quorum.lease_ms * fast > quorum.promise_ms * slow:
        if quorum.says("lease_ms"):
            wrong = f"{lease} is not covered by the promise of {promise}"
            expected = f"expected at most {quorum.promise_ms * slow // fast}ms {why}"
            yield Finding(lease_key, wrong, expected, other=promise_key)
        else:
            wrong = f"{promise} does not cover the lease of {lease}"
            expected = f"expected at least {-(-quorum.lease_ms * fast // slow)}ms {why}"
            yield Finding(promise_key, wrong, expected, other=lease_key)
    if quorum.heartbeat_ms >= quorum.lease_ms:
        beat_key, beat = (QUORUM, "heartbeat"), duration_text(quorum.heartbeat_ms)
        if quorum.says("heartbeat_ms"):
            wrong = f"{beat} is no less than the lease of {lease}"
            yield Finding(beat_key, wrong, f"expected less than {lease}", other=lease_key)
        else:
            wrong = f"{lease} is no more than the heartbeat of {beat}"
            yield Finding(lease_key, wrong, f"expected more than {beat}", other=beat_key)


def _peer_findings(quorum: Quorum) -> Iterator[Finding]:
    first: dict[str, Key] = {}
    for index, peer in enumerate(quorum.addresses):
        key = (QUORUM, "addresses", index)
        if index == MOST_MEMBERS:
            wrong = f"{len(quorum.addresses)} load balancers"
            yield Finding(key, wrong, f"expected at most {MOST_MEMBERS}")
        host_key, host = (*key, peer.host_key), peer.host.lower()
        if host and host in first:
            wrong = f"{host} is already in the list"
            yield Finding(host_key, wrong, "expected each LB once", other=first[host])
        first.setdefault(host, host_key)
        if peer.port == 65535 and quorum.replication_port is None:
            wrong = "65535 leaves no port for replication, the one after it"
            rests_on = ((QUORUM, "replication_port"),)
            yield Finding((*key, "port"), wrong, "expected at most 65534", rests_on=rests_on)
        if peer.port == quorum.replication_port:
            wrong = f"{peer.port} is also replication_port"
            other = (QUORUM, "replication_port")
            yield Finding((*key, "port"), wrong, "expected a port of its own", other=other)


def _quorum_port_findings(config: LbConfig) -> Iterator[Finding]:
    """Only one entry is this LB, and the file does not say which: equal ports are a sure clash."""
    quorum, local = config.quorum, config.local
    ports = {peer.port for peer in quorum.addresses}
    for name, port in (("node_port", local.node_port), ("api_port", local.api_port)):
        clashes: list[Key] = []
        if ports == {port}:
            clashes.append((QUORUM, "addresses", 0, "port"))
        if quorum.replication_port == port:
            clashes.append((QUORUM, "replication_port"))
        for key in clashes:
            yield Finding(
                key,
                f"{port} is also local.{name}",
                "expected a port of its own",
                other=("local", name),
                rests_on=((QUORUM, "addresses"),),
            )


def _virtual_ip_findings(config: LbConfig) -> Iterator[Finding]:
    taken = _own_addresses(config)
    for index, virtual_ip in enumerate(config.virtual_ips):
        if index == MOST_VIRTUAL_IPS:
            wrong = f"{len(config.virtual_ips)} virtual IPs"
            yield Finding(("virtual_ips", index), wrong, f"expected at most {MOST_VIRTUAL_IPS}")
        if virtual_ip.says("snat_address") and virtual_ip.says("snat_list"):
            expected = "expected either snat_address or snat_addresses"
            yield Finding(
                ("virtual_ips", index, "snat_addresses"),
                "given beside snat_address",
                expected,
                other=("virtual_ips", index, "snat_address"),
            )
        for key, address in _addresses_of(virtual_ip, index):
            if address in taken:
                other = taken[address]
                wrong = f"{address} is also {_use_of(other)}"
                yield Finding(key, wrong, "expected an address of its own", other=other)
            taken.setdefault(address, key)


def _own_addresses(config: LbConfig) -> dict[str, Key]:
    return {
        peer.ip: (QUORUM, "addresses", index, "ip")
        for index, peer in enumerate(config.quorum.addresses)
        if peer.ip
    }


def _addresses_of(virtual_ip: VirtualIp, index: int) -> Iterator[tuple[Key, str]]:
    key: Key = ("virtual_ips", index)
    yield (*key, "address"), virtual_ip.address
    if virtual_ip.snat_address:
        yield (*key, "snat_address"), virtual_ip.snat_address
    for place, address in enumerate(virtual_ip.snat_list):
        yield (*key, "snat_addresses", place), address


def _use_of(key: Key) -> str:
    if key[0] == QUORUM:
        return "an LB's own address"
    return "another address" if key[-1] == "address" else "another snat_address"


def _snat_findings(config: LbConfig) -> Iterator[Finding]:
    """The lists of single services: addresses for that alone, each with one VIP."""
    taken = _own_addresses(config)
    home: dict[str, tuple[str | None, Key]] = {}
    for index, virtual_ip in enumerate(config.virtual_ips):
        for given, address in _addresses_of(virtual_ip, index):
            if given[-1] == "address":
                taken.setdefault(address, given)
            else:
                home.setdefault(address, (virtual_ip.address, given))
    for index, service in enumerate(config.services):
        listed: dict[str, Key] = {}
        for place, address in enumerate(service.snat_addresses):
            key: Key = ("services", index, "snat_addresses", place)
            vip, other = home.setdefault(address, (service.address, key))
            if address in taken:
                wrong = f"{address} is also {_use_of(taken[address])}"
                expected = "expected an address of its own"
                yield Finding(key, wrong, expected, other=taken[address])
            elif address in listed:
                wrong = f"{address} is already in the list"
                yield Finding(key, wrong, "expected each address once", other=listed[address])
            elif vip != service.address:
                wrong = f"{address} moves with the virtual IP {vip}"
                expected = f"expected an address that moves with {service.address} alone"
                rests_on = (("virtual_ips",), ("services", index, "address"))
                yield Finding(key, wrong, expected, other=other, rests_on=rests_on)
            listed.setdefault(address, key)


def _service_findings(config: LbConfig) -> Iterator[Finding]:
    names: dict[str, int] = {}
    yield from _room_findings(config)
    yield from _overlaps(config)
    for index, service in enumerate(config.services):
        yield from _mode_findings(service, index)
        yield from _front_findings(config, service, index)
        key = ("services", index)
        if service.name in names:
            wrong = f'"{service.name}" is also the name of another service'
            other = ("services", names[service.name], "name")
            yield Finding((*key, "name"), wrong, "expected a name of its own", other=other)
        names.setdefault(service.name, index)


def _room_findings(config: LbConfig) -> Iterator[Finding]:
    """The first service that there is no room for."""
    ports = 0
    for index, service in enumerate(config.services):
        if index == MOST_SERVICES:
            wrong = f"{len(config.services)} services"
            yield Finding(("services", index), wrong, f"expected at most {MOST_SERVICES}")
            return
        ports += service.ports.size
        if ports > MOST_PORTS:
            yield Finding(
                ("services", index, "port"),
                f"{ports} ports in the services down to this one",
                f"expected at most {MOST_PORTS} in all",
                rests_on=(("services", index),),
            )
            return


def _overlaps(config: LbConfig) -> Iterator[Finding]:
    """Of two services that share a port, the later one."""
    held: dict[tuple[str | None, str], list[tuple[Ports, int]]] = {}
    for index, service in enumerate(config.services):
        there = held.setdefault((service.address, service.protocol), [])
        at = bisect_right(there, (service.ports, index))
        near = [*there[max(0, at - 1) : at], *there[at : at + 1]]
        clash = next((each for each in near if overlap(each[0], service.ports)), None)
        if clash is None:
            there.insert(at, (service.ports, index))
            continue
        where = f"{service.protocol} {service.address or 'own address'}:{service.ports}"
        yield Finding(
            ("services", index, "port"),
            f"{where} is also another service's",
            "expected a port of its own" if service.ports.size == 1 else "expected other ports",
            other=("services", clash[1], "port"),
            rests_on=(("services", index), ("virtual_ips",)),
        )


def overlap(one: Ports, other: Ports) -> bool:
    """Whether they have a port in common."""
    return one.first <= other.last and other.first <= one.last


def _mode_findings(service: Service, index: int) -> Iterator[Finding]:
    key = ("services", index)
    rests_on = ((*key, "mode"), (*key, "port"), ("local", "mode"))
    wrong = f'not for a service of mode "{service.mode}"'
    if service.mode != "l3" and service.says("encap"):
        yield Finding((*key, "encap"), wrong, 'expected mode "l3", or no encap', rests_on=rests_on)
    if service.mode != "l4" and service.says("snat"):
        yield Finding((*key, "snat"), wrong, 'expected mode "l4", or no snat', rests_on=rests_on)
    if service.affinity_group and service.affinity != "client":
        yield Finding(
            (*key, "affinity_group"),
            f'of no use with affinity "{service.affinity}"',
            'expected affinity "client", or no affinity_group',
            other=(*key, "affinity"),
        )
    if service.says("snat_addresses"):
        addresses = (*key, "snat_addresses")
        if service.mode != "l4":
            expected = 'expected mode "l4", or no snat_addresses'
            yield Finding(addresses, wrong, expected, rests_on=rests_on)
        elif not service.snat:
            expected = "expected snat = true, or no snat_addresses"
            yield Finding(addresses, "of no use without snat", expected, other=(*key, "snat"))
    if service.mode != "l4" and service.node_ports != service.ports:
        yield Finding(
            (*key, "node_port"),
            f'mode "{service.mode}" cannot translate port {service.ports} to {service.node_ports}',
            'expected the same port, or mode "l4"',
            rests_on=rests_on,
        )
    elif service.node_ports.size > 1 and service.node_ports != service.ports:
        yield Finding(
            (*key, "node_port"),
            f"{service.node_ports} is another range than {service.ports}",
            "expected one port, or the same range",
            other=(*key, "port"),
            rests_on=rests_on,
        )


def _front_findings(config: LbConfig, service: Service, index: int) -> Iterator[Finding]:
    vips = [virtual_ip.address for virtual_ip in config.virtual_ips]
    if service.address and vips and service.address not in vips:
        yield Finding(
            ("services", index, "address"),
            f"{service.address} is no virtual IP",
            f"expected one of {', '.join(vips)}",
            rests_on=(("virtual_ips",),),
        )

    local = config.local
    if local.one_interface and not service.address and service.mode != "l4":
        yield Finding(
            ("services", index, "mode") if config.says("services") else ("local", "mode"),
            f'mode "{service.mode}" on one interface: nodes would take this machine\'s own address,'
            " by which they reach it, for theirs",
            'expected mode "l4", a virtual IP, or an interface for each side',
            rests_on=(("local",), ("services", index), ("virtual_ips",)),
        )
    if service.address or service.protocol != "tcp" or not local.one_interface:
        return
    # The default service stands in no file: its port is clients_port.
    key: Key = ("services", index, "port") if config.says("services") else ("local", "clients_port")
    for own, port, name in _listened(config):
        if overlap(service.ports, Ports(port, port)):
            yield Finding(
                key,
                f"{port} is also {name} on the same interface",
                "expected a port of its own",
                other=own,
                rests_on=(("local",), ("services", index), ("virtual_ips",)),
            )


def _events_findings(config: LbConfig) -> Iterator[Finding]:
    """Of every address, it cannot be where this LB listens already on some."""
    if not (config.bus.events or "").startswith("tcp://*:"):
        return
    *others, (key, port, _) = _listened(config)
    for own, taken, name in others:
        if taken == port:
            wrong = f"{port} is also {name}"
            rests_on = (("local",), (QUORUM, "addresses"))
            yield Finding(key, wrong, "expected a port of its own", other=own, rests_on=rests_on)


def _listened(config: LbConfig) -> Iterator[tuple[Key, int, str]]:
    """The TCP ports that this LB listens on beyond doubt, where the file says so, and in words."""
    local, quorum = config.local, config.quorum
    yield ("local", "node_port"), local.node_port, "local.node_port"
    yield ("local", "api_port"), local.api_port, "local.api_port"
    if len({peer.port for peer in quorum.addresses}) == 1:
        own, peer = (QUORUM, "addresses", 0, "port"), quorum.addresses[0]
        yield own, peer.port, "the LBs' own (load_balancer_quorum.addresses)"
        yield own, quorum.replication_port_of(peer), "replication_port"
    elif quorum.replication_port is not None:
        yield (QUORUM, "replication_port"), quorum.replication_port, "replication_port"
    events = config.bus.events
    if events is not None and not events.startswith("tcp://127."):
        yield ("bus", "events"), int(events.rpartition(":")[2]), "bus.events"
