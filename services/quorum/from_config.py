"""What the quorum makes of the configuration: a service as the node table has it, the numbers by
which nodes are judged as other LBs are told them. Pure.

The quorum process makes the table of it, and `gale plan` asks what a table made of it would change:
so both read a file alike.
"""

from __future__ import annotations

from bus.states import TableService
from bus.words import Affinity, Encapsulation, Mode, NoFlow, OnNodeDown, Protocol
from conf.lb import LbConfig, Service
from conf.values import duration_text


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


def node_health(config: LbConfig) -> dict[str, str]:
    """`[node_health]` by key, as an operator would write it."""
    fields = type(config.node_health).model_fields
    return {
        field.alias or name: _written(name, getattr(config.node_health, name))
        for name, field in fields.items()
    }


def _written(name: str, value: object) -> str:
    return duration_text(value) if name.endswith("_ms") and isinstance(value, int) else str(value)
