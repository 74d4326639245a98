"""What a machine that is a load balancer and a node at once cannot do, for `gale check --host`.

Such a machine has both files, and neither says so of the other: so when one is checked that is this
machine's own (by the environment, or /etc/gale), the other one is looked for where it must be then.
A file that is not well is its own check's to tell.

Why a mode works, or does not, stands in bpf/kernel/own_node.h. In short: an answer of mode l4 must
leave this machine, so it goes to an address that is none of its own; and in mode l2 a packet that
another LB has sent here must not be taken for a client's, so it comes in by an interface where no
client is.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from ipaddress import ip_address, ip_network

from conf import ConfigError, LbConfig, NodeConfig, Paths, Problem, Source, load_lb, load_node
from conf.lb import Service
from conf.lines import Key
from services.machine import Address

BOTH = "this machine is a node, too"


def node_here(source: Source, paths: Paths) -> NodeConfig | None:
    """The node's file of the machine whose LB's file this is; None: it is no node."""
    other = paths.node_beside if source.path == paths.lb_config else None
    try:
        return load_node(other) if other is not None else None
    except ConfigError:
        return None


def lb_here(source: Source, paths: Paths) -> LbConfig | None:
    """The LB's file of the machine whose node's file this is; None: it is no LB."""
    other = paths.lb_beside if source.path == paths.node_config else None
    if source.path == paths.node_beside:
        other = paths.lb_config
    try:
        return load_lb(other) if other is not None else None
    except ConfigError:
        return None


# --------------------------------------------------------------------------- the LB's file


def lb_problems(
    source: Source, config: LbConfig, node: NodeConfig, addresses: list[Address]
) -> Iterator[Problem]:
    """Services that this machine cannot be LB and node of."""
    names = {each.name for each in node.services}
    shared = {each.address: each.snat_addresses for each in config.virtual_ips}
    own = {each.address for each in addresses if not each.is_of_host}
    private = [
        ip_network(f"{each.address}/{each.prefix_bits}", strict=False)
        for each in addresses
        if each.interface == config.local.net_interface_private
    ]
    for index, service in enumerate(config.services):
        if names and service.name not in names:
            continue
        if service.mode == "l4":
            given = service.snat_addresses or shared.get(service.address or "", ())
            wrong, expected = _of_l4(service, given, own)
            outside = [
                each for each in given if not any(ip_address(each) in net for net in private)
            ]
            if not wrong and private and outside:
                wrong = f"{outside[0]}, which nodes see, is in no network of"
                wrong += f" {config.local.net_interface_private}"
                expected = "expected one of its network"
        else:
            wrong, expected = _of_direct_return(service, shared, one=config.local.one_interface)
        if wrong:
            key = _key(config, index)
            yield source.problem(key, f"{BOTH}: {wrong}, {expected}")


def _of_l4(service: Service, given: tuple[str, ...], own: set[str]) -> tuple[str, str]:
    """What is wrong, and what is expected; empty: nothing."""
    if not service.snat:
        return f"{service.name} has snat = false, and its answers go past the LB", (
            "expected snat = true, or mode l2 with an interface for each side"
        )
    if own.issuperset(given):
        return f"{service.name} has no SNAT address but this machine's own", (
            "expected snat_address (or snat_addresses) of its virtual IP, which no machine has"
        )
    return "", ""


def _of_direct_return(
    service: Service, virtual_ips: Mapping[str, object], *, one: bool
) -> tuple[str, str]:
    """Likewise, of modes l2 and l3."""
    if service.address not in virtual_ips:
        return f"{service.name} of mode {service.mode} is at an address of the LB's own", (
            "expected a virtual IP, or mode l4"
        )
    if service.mode == "l2" and one:
        return f"{service.name} of mode l2 on one interface, where what another LB has sent", (
            "looks like a client's: expected mode l3 or l4, or an interface for each side"
        )
    return "", ""


def _key(config: LbConfig, index: int) -> Key:
    if not config.says("services"):
        return ("local", "mode")
    service = config.services[index]
    return ("services", index, "snat" if service.mode == "l4" and not service.snat else "mode")


# --------------------------------------------------------------------------- the node's file


def node_problems(
    source: Source,
    config: NodeConfig,
    lb: LbConfig,
    addresses: list[Address],
    resolved: list[set[str]],
) -> Iterator[Problem]:
    """Ports that both need, and an LB of this very machine by an address that others do not know.

    `resolved`: the addresses of each LB of the list.
    """
    taken = {lb.local.node_port: "local.node_port", lb.local.api_port: "local.api_port"}
    for peer in lb.quorum.addresses:
        taken[peer.port] = "load_balancer_quorum.addresses"
        taken[lb.quorum.replication_port_of(peer)] = "load_balancer_quorum.replication_port"
    if config.node.unwrap == "xdp" and any(each.mode == "l3" for each in lb.services):
        wrong = "this machine is an LB, too, whose programs have the place"
        yield source.problem(("node", "unwrap"), f'{wrong}, expected unwrap = "tc"')
    ports: list[tuple[Key, int]] = [(("local", "api_port"), config.local.api_port)]
    ports += [(("services", i, "port"), each.port) for i, each in enumerate(config.services)]
    for key, port in ports:
        if port in taken:
            wrong = f"this machine is an LB, too, and {port} is its {taken[port]}"
            yield source.problem(key, f"{wrong}, expected another port")
    private = lb.local.net_interface_private
    theirs = {each.address for each in addresses if each.interface == private}
    own = {each.address for each in addresses} | {"127.0.0.1"}
    for index, found in enumerate(resolved):
        known = found & own
        if theirs and known and not known & theirs:
            wrong = f"{min(known)} is this machine, which the other LBs do not know by it"
            expected = f"expected the address of {private}: {', '.join(sorted(theirs))}"
            key = ("load_balancer", "addresses", index)
            yield source.problem(key, f"{wrong}, {expected}")
