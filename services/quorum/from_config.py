"""A service of the configuration as the node table has it. Pure.

The quorum process makes the table of it, and `gale plan` asks what a table made of it would change:
so both read a file alike.
"""

from __future__ import annotations

from typing import Protocol as Shape

from bus.states import TableService
from bus.words import Affinity, Encapsulation, Mode, NoFlow, OnNodeDown, Protocol


class Ports(Shape):
    """How many there are, one after the other."""

    @property
    def size(self) -> int: ...


class Service(Shape):
    """`conf.lb.Service`, as far as the table is concerned: that module asks the machine's name."""

    @property
    def name(self) -> str: ...
    @property
    def address(self) -> str | None: ...
    @property
    def port(self) -> int: ...
    @property
    def protocol(self) -> str: ...
    @property
    def mode(self) -> str: ...
    @property
    def node_port(self) -> int: ...
    @property
    def affinity(self) -> str: ...
    @property
    def encap(self) -> str: ...
    @property
    def snat(self) -> bool: ...
    @property
    def snat_addresses(self) -> tuple[str, ...]: ...
    @property
    def on_node_down(self) -> str | None: ...
    @property
    def no_flow(self) -> str: ...
    @property
    def ports(self) -> Ports: ...
    @property
    def keeps_port(self) -> bool: ...
    @property
    def affinity_group(self) -> str | None: ...
    @property
    def slow_start_ms(self) -> int: ...
    @property
    def min_healthy(self) -> int | None: ...


def table_service(service: Service, min_healthy: int) -> TableService:
    """`min_healthy`: per cent, of a service that does not say it."""
    own = service.min_healthy
    down = service.on_node_down
    return TableService(
        name=service.name,
        address=service.address,
        port=service.port,
        protocol=Protocol(service.protocol),
        mode=Mode(service.mode),
        node_port=service.node_port,
        affinity=Affinity(service.affinity),
        encap=Encapsulation(service.encap),
        snat=service.snat,
        snat_addresses=service.snat_addresses,
        on_node_down=OnNodeDown(down) if down is not None else None,
        no_flow=NoFlow(service.no_flow),
        ports=service.ports.size,
        keeps_port=service.keeps_port,
        affinity_group=service.affinity_group or "",
        slow_start_ms=service.slow_start_ms,
        min_healthy=min_healthy if own is None else own,
    )
