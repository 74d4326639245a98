"""The configuration of a node: `node.toml`.

Only the LBs are required. A node that names no services serves every service of its LBs, each on
the port the LB says, and finds its server well while that port accepts connections.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Annotated

from pydantic import Field, field_validator

from conf.lines import Key
from conf.log import Log
from conf.security import Security
from conf.table import Endpoint, Finding, Table, endpoint_findings
from conf.values import (
    Boolean,
    CheckType,
    HttpPath,
    Name,
    Port,
    UnwrapHook,
    duration,
    is_name,
    refusal,
    shown,
    whole,
)

HOUR_MS = 3_600_000
MOST_SERVICES = 1_000
"""What an LB takes from one node."""


class LoadBalancer(Table):
    """`[load_balancer]`: every LB this node serves, by its `local.node_port`."""

    addresses: tuple[Endpoint, ...] = Field(
        description='the LBs, such as [{ ip = "192.168.1.2", port = 7070 }]'
    )

    @field_validator("addresses")
    @classmethod
    def _at_least_one(cls, addresses: tuple[Endpoint, ...]) -> tuple[Endpoint, ...]:
        if not addresses:
            raise refusal('empty, expected the LBs, such as [{ ip = "192.168.1.2", port = 7070 }]')
        return addresses


class Node(Table):
    """`[node]`: this machine. `manage_network`: the agent may prepare it for direct return.

    `backup`: it is given new flows only where too few of the others serve. `unwrap`: where the
    packets of mode l3 are taken out of their outer header.
    """

    name: Name = Field(default_factory=lambda: socket.gethostname())
    weight: Annotated[int, whole(1, 1000)] = 1
    backup: Boolean = False
    manage_network: Boolean = True
    unwrap: UnwrapHook = "tc"


class Check(Table):
    """How the agent finds out whether the local server is well."""

    type: CheckType = "tcp"
    path: HttpPath = "/"
    interval_ms: Annotated[int, duration(10, HOUR_MS)] = Field(default=500, alias="interval")
    timeout_ms: Annotated[int, duration(10, HOUR_MS)] = Field(default=500, alias="timeout")


class ServedService(Table):
    """`[[services]]`: a service of the LBs, by its name, and the port this node serves it on."""

    name: Name = Field(description="the name the LBs know the service by")
    port: Port = Field(description="the port the server on this node listens on")
    check: Check = Check()


class Agent(Table):
    """`[local]`: the agent itself."""

    api_port: Port = 5556


class NodeConfig(Table):
    """All of `node.toml`, every key with a value."""

    # An absent [load_balancer] is read as an empty one, so that its missing key is reported.
    load_balancer: LoadBalancer = Field(default_factory=dict, validate_default=True)
    node: Node = Field(default_factory=Node)
    services: tuple[ServedService, ...] = ()
    local: Agent = Agent()
    security: Security = Security()
    log: Log = Log()

    def findings(self) -> Iterator[Finding]:
        """What makes no sense though each value is of the right shape."""
        key = ("load_balancer", "addresses")
        yield from endpoint_findings(key, self.load_balancer.addresses)
        yield from _repeated_lbs(key, self.load_balancer.addresses)
        yield from _service_findings(self.services)
        if not is_name(self.node.name):
            wrong = f"the host's name {shown(self.node.name)} is no name for a node"
            expected = 'expected one here, such as name = "node-1"'
            yield Finding(("node", "name"), wrong, expected)
        if len(self.services) > MOST_SERVICES:
            wrong = f"{len(self.services)} services"
            beyond: Key = ("services", MOST_SERVICES, "name")
            yield Finding(beyond, wrong, f"expected at most {MOST_SERVICES}")


def _repeated_lbs(key: Key, addresses: tuple[Endpoint, ...]) -> Iterator[Finding]:
    first: dict[tuple[str, int], Key] = {}
    for index, endpoint in enumerate(addresses):
        place = (endpoint.host.lower(), endpoint.port)
        host_key = (*key, index, endpoint.host_key)
        if endpoint.host and place in first:
            wrong = f"{endpoint} is already in the list"
            yield Finding(host_key, wrong, "expected each LB once", other=first[place])
        first.setdefault(place, host_key)


def _service_findings(services: tuple[ServedService, ...]) -> Iterator[Finding]:
    names: dict[str, Key] = {}
    for index, service in enumerate(services):
        key: Key = ("services", index)
        if service.name in names:
            wrong = f'"{service.name}" is already in the list'
            other = names[service.name]
            yield Finding((*key, "name"), wrong, "expected each service once", other=other)
        names.setdefault(service.name, (*key, "name"))
        if service.check.type != "http" and service.check.says("path"):
            wrong = f'a check of type "{service.check.type}" asks for no path'
            expected = 'expected type = "http", or no path'
            rests_on = ((*key, "check", "type"),)
            yield Finding((*key, "check", "path"), wrong, expected, rests_on=rests_on)
