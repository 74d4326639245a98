"""What a configuration asks of this machine, for `gale check --host`.

None of it is an error of the file: the processes wait for an interface, for an address, for a name
to resolve. Here it is looked for once, before they are started, and named with the line that asks.
"""

from __future__ import annotations

import os
import pwd
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

from bus import keys
from conf import Endpoint, LbConfig, NodeConfig, Paths, Problem, Source
from conf.lb import Service, overlap
from conf.lines import Key
from conf.security import Security
from services.cli import shared
from services.cli.machine import Listener, listeners
from services.machine import all_addresses, own_address


def host_problems(source: Source, config: LbConfig | NodeConfig) -> tuple[Problem, ...]:
    """Everything this machine lacks of what the file names, in the order of its lines."""
    paths = Paths.from_environment()
    if isinstance(config, LbConfig):
        node = shared.node_here(source, paths)
        found = [*_lb_problems(source, config, node)]
        if node is not None:
            found += shared.lb_problems(source, config, node, all_addresses())
    else:
        key, lbs = ("load_balancer", "addresses"), config.load_balancer.addresses
        resolved = [_resolved(lb) for lb in lbs]
        found = [*_unresolved(source, key, lbs, resolved)]
        places = list(enumerate(lbs))
        found += _security_problems(source, config.security, key, places, AGENT_USER)
        lb_config = shared.lb_here(source, paths)
        if lb_config is not None:
            found += shared.node_problems(source, config, lb_config, all_addresses(), resolved)
    return tuple(sorted(found))


def own_addresses() -> dict[str, set[str]]:
    """The IPv4 addresses of each interface of this network namespace."""
    found: dict[str, set[str]] = {name: set() for _, name in socket.if_nameindex()}
    for each in all_addresses():
        found.setdefault(each.interface, set()).add(each.address)
    return found


def _lb_problems(source: Source, config: LbConfig, node: NodeConfig | None) -> Iterator[Problem]:
    interfaces = own_addresses()
    yield from _interface_problems(source, config, interfaces)
    yield from _membership_problems(source, config, set().union(*interfaces.values()))
    # A node has VIPs on its loopback, in modes l2 and l3, and its servers listen on them.
    theirs = [each for each in interfaces if node is None or each != LOOPBACK]
    for index, virtual_ip in enumerate(config.virtual_ips):
        for name in theirs:
            if virtual_ip.address in interfaces[name]:
                wrong = f"{virtual_ip.address} is an address of {name}"
                expected = "expected none: a floating address is never an address of the machine"
                yield source.problem(("virtual_ips", index, "address"), f"{wrong}, {expected}")
    reached = set().union(*(interfaces[name] for name in theirs))
    yield from _front_problems(source, config, reached)
    own = set().union(*interfaces.values())
    peers = [
        (index, peer)
        for index, peer in enumerate(config.quorum.addresses)
        if own.isdisjoint(_resolved(peer))
    ]
    yield from _security_problems(source, config.security, QUORUM_ADDRESSES, peers, API_USER)


QUORUM_ADDRESSES = ("load_balancer_quorum", "addresses")
API_USER, AGENT_USER = "gale-api", "gale-agent"
"""Who reads a token, where the packages have made the users."""
ANYWHERE = ("0.0.0.0", "::")
LOOPBACK = "lo"


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
    for index, service in enumerate(config.services):
        if config.local.one_interface and service.mode != "l4" and service.address in own:
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
    key = QUORUM_ADDRESSES
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


def _security_problems(
    source: Source, security: Security, list_key: Key, lbs: list[tuple[int, Endpoint]], reader: str
) -> Iterator[Problem]:
    """`lbs`: those that this machine connects to, and where they stand in the file's list.
    `reader`: the user who reads the token.
    """
    if security.keys is not None:
        yield from _key_problems(source, security.keys, list_key, lbs)
    if security.api_token_file is not None:
        yield from _token_problems(source, security.api_token_file, reader)


def _key_problems(
    source: Source, directory: Path, list_key: Key, lbs: list[tuple[int, Endpoint]]
) -> Iterator[Problem]:
    key = ("security", "keys")
    if not directory.is_dir():
        wrong = f"{directory} is no directory"
        yield source.problem(key, f"{wrong}, expected one made by gale keygen {directory}")
        return
    for problem in keys.permission_problems(directory, frozenset({0, os.geteuid()})):
        yield source.problem(key, problem)
    known = keys.KeyDirectory(directory)
    for problem in known.problems:
        yield source.problem(key, problem)
    for index, lb in lbs:
        if not known.keys_of(keys.LBS, lb.key_name):
            path = directory / keys.LBS / f"{lb.key_name}{keys.SUFFIX}"
            wrong = f"no key of {lb.host}"
            expected = f"expected {path}" + ("" if lb.name else ', or name = "..." here')
            yield source.problem((*list_key, index), f"{wrong}, {expected}")


def _may_own(reader: str) -> dict[int, str]:
    """Whose a file may be that nobody else can read: the user's who reads it, where he is; else,
    where no package has made him, whoever's the process may be: root's, or whoever asks.
    """
    try:
        return {pwd.getpwnam(reader).pw_uid: reader}
    except KeyError:
        return {each: str(each) for each in sorted({0, os.geteuid()})}


def _token_problems(source: Source, path: Path, reader: str) -> Iterator[Problem]:
    key = ("security", "api_token_file")
    try:
        found = path.stat()
    except OSError as error:
        yield source.problem(key, f"{path}: {error.strerror}, expected a file")
        return
    mode = stat.S_IMODE(found.st_mode)
    if mode != keys.FILE_MODE:
        yield source.problem(key, f"{path} has mode {mode:04o}, expected 0600")
    if found.st_uid not in _may_own(reader):
        expected = " or ".join(_may_own(reader).values())
        wrong = f"{path} belongs to user {found.st_uid}"
        yield source.problem(key, f"{wrong}, expected {expected}")
    if not stat.S_ISREG(found.st_mode) or not found.st_size:
        yield source.problem(key, f"{path} is no file with a token, expected one line of text")
