"""A service of the configuration as the node table has it. Pure.

The quorum process makes the table of it, and `gale plan` asks what a table made of it would change:
so both read a file alike.
"""

from __future__ import annotations

from bus.states import TableService
from bus.words import Affinity, Encapsulation, Mode, NoFlow, OnNodeDown, Protocol
from conf.lb import Service


def table_service(service: Service) -> TableService:
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
    )
