"""What a configuration asks of this machine, for `gale check --host`.

None of it is an error of the file: the processes wait for an interface, for an address, for a name
to resolve. Here it is looked for once, before they are started, and named with the line that asks.
"""

from __future__ import annotations

import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from conf import Endpoint, LbConfig, NodeConfig, Problem, Source
from conf.lb import Service, overlap
from conf.lines import Key
from services.cli.machine import Listener, listeners
from services.machine import all_addresses, own_address


def host_problems(source: Source, config: LbConfig | NodeConfig) -> tuple[Problem, ...]:
    """Everything this machine lacks of what the file names, in the order of its lines."""
    if isinstance(config, LbConfig):
        found = [*_lb_problems(source, config)]
    else:
        key, lbs = ("load_balancer", "addresses"), config.load_balancer.addresses
        found = [*_unresolved(source, key, lbs, [_resolved(lb) for lb in lbs])]
    return tuple(sorted(found))


def own_addresses() -> dict[str, set[str]]:
    """The IPv4 addresses of each interface of this network namespace."""
    found: dict[str, set[str]] = {name: set() for _, name in socket.if_nameindex()}
    for each in all_addresses():
        found.setdefault(each.interface, set()).add(each.address)
    return found


def _lb_problems(source: Source, config: LbConfig) -> Iterator[Problem]:
    interfaces = own_addresses()
    yield from _interface_problems(source, config, interfaces)
    yield from _membership_problems(source, config, set().union(*interfaces.values()))
    for index, virtual_ip in enumerate(config.virtual_ips):
        for name, addresses in interfaces.items():
            if virtual_ip.address in addresses:
                wrong = f"{virtual_ip.address} is an address of {name}"
                expected = "expected none: a floating address is never an address of the machine"
                yield source.problem(("virtual_ips", index, "address"), f"{wrong}, {expected}")
    yield from _front_problems(source, config, set().union(*interfaces.values()))
    if config.security.keys is not None:
        yield from _key_problems(source, config.security.keys)
    if config.security.api_token_file is not None:
        yield from _secret_file(
            source, ("security", "api_token_file"), config.security.api_token_file
        )


ANYWHERE = ("0.0.0.0", "::")


def occupied(
    services: tuple[Service, ...], public: str | None, own: set[str], there: tuple[Listener, ...]
) -> Iterator[tuple[int, Listener]]:
    """Services, by their place in the list, on a port of an address of this machine where somebody
    listens already: those clients would never reach again. `public`: where a service is that says
    no address.
    """
    for index, service in enumerate(services):
        address = service.address or public
        if address not in own:
            continue
        for each in there:
            if (
                each.protocol == service.protocol
                and each.address in (address, *ANYWHERE)
                and service.ports.first <= each.port <= service.ports.last
            ):
                yield index, each
                break


def _front_problems(source: Source, config: LbConfig, own: set[str]) -> Iterator[Problem]:
    public = own_address(config.local.net_interface_public)
    for index, each in occupied(config.services, public, own, listeners()):
        service = config.services[index]
        where = f"{each.protocol} {service.address or public}:{each.port}"
        wrong = f"{where}: this machine listens there itself"
        yield source.problem(_port_key(config, index), f"{wrong}, expected a port that is free")
    one = config.local.net_interface_private == config.local.net_interface_public
    for index, service in enumerate(config.services):
        if one and service.mode != "l4" and service.address in own:
            wrong = f'mode "{service.mode}" on one interface, and {service.address} is its own'
            expected = 'expected mode "l4", a virtual IP, or an interface for each side'
            yield source.problem(("services", index, "address"), f"{wrong}, {expected}")
    # Only this machine knows that an address and none may be the same.
    unsaid = [each for each in config.services if not each.address]
    for index, service in enumerate(config.services):
        if service.address and service.address == public:
            clash = [
                each.name
                for each in unsaid
                if each.protocol == service.protocol and overlap(each.ports, service.ports)
            ]
            if clash:
                wrong = f"{service.protocol} {public}:{service.ports} is also {clash[0]}'s"
                yield source.problem(_port_key(config, index), f"{wrong}, expected other ports")


def _port_key(config: LbConfig, index: int) -> Key:
    """The default service stands in no file: its port is clients_port."""
    return ("services", index, "port") if config.says("services") else ("local", "clients_port")


def _interface_problems(
    source: Source, config: LbConfig, interfaces: dict[str, set[str]]
) -> Iterator[Problem]:
    for key, name in (
        ("net_interface_private", config.local.net_interface_private),
        ("net_interface_public", config.local.net_interface_public),
    ):
        if name not in interfaces:
            there = ", ".join(sorted(interfaces))
            wrong = f'"{name}" is no interface of this machine'
            yield source.problem(("local", key), f"{wrong}, expected one of {there}")
        elif not interfaces[name]:
            wrong = f'"{name}" has no IPv4 address'
            yield source.problem(("local", key), f"{wrong}, expected one")


def _membership_problems(source: Source, config: LbConfig, own: set[str]) -> Iterator[Problem]:
    key = ("load_balancer_quorum", "addresses")
    peers = [_resolved(peer) for peer in config.quorum.addresses]
    yield from _unresolved(source, key, config.quorum.addresses, peers)
    if peers and own.isdisjoint(set().union(*peers)):
        there = ", ".join(sorted(own - {"127.0.0.1"})) or "none but loopback"
        wrong = "no address of this machine is in the list"
        yield source.problem(key, f"{wrong}, expected one of its own: {there}")


def _unresolved(
    source: Source, key: Key, endpoints: tuple[Endpoint, ...], resolved: list[set[str]]
) -> Iterator[Problem]:
    for index, (endpoint, addresses) in enumerate(zip(endpoints, resolved, strict=True)):
        if not addresses:
            wrong = f'"{endpoint.host}" has no address that this machine can find'
            expected = "expected a name in DNS, mDNS or /etc/hosts"
            yield source.problem((*key, index, "hostname"), f"{wrong}, {expected}")


def _resolved(endpoint: Endpoint) -> set[str]:
    try:
        found = socket.getaddrinfo(endpoint.host, endpoint.port, family=socket.AF_INET)
    except OSError:
        return set()
    return {str(address[0]) for *_, address in found}


def _key_problems(source: Source, directory: Path) -> Iterator[Problem]:
    key = ("security", "keys")
    if not directory.is_dir():
        wrong = f"{directory} is no directory"
        yield source.problem(key, f"{wrong}, expected one made by gale keygen {directory}")
        return
    mode = stat.S_IMODE(directory.stat().st_mode)
    if mode != 0o700:
        yield source.problem(key, f"{directory} has mode {mode:04o}, expected 0700")
    files = sorted(path for path in directory.iterdir() if path.is_file())
    if not files:
        yield source.problem(key, f"{directory} is empty, expected key files (gale keygen)")
    for path in files:
        yield from _secret_file(source, key, path)


def _secret_file(source: Source, key: Key, path: Path) -> Iterator[Problem]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        yield source.problem(key, f"{path}: {error.strerror}, expected a file")
        return
    if mode != 0o600:
        yield source.problem(key, f"{path} has mode {mode:04o}, expected 0600")
