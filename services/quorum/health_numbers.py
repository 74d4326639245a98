"""The numbers by which nodes are judged, as other LBs are told them."""

from __future__ import annotations

from conf.lb import LbConfig
from conf.table import COMPARED
from conf.values import duration_text


def node_health(config: LbConfig) -> dict[str, str]:
    """The keys of `[node_health]` that are compared, as an operator would write them."""
    fields = type(config.node_health).model_fields
    return {
        field.alias or name: _written(name, getattr(config.node_health, name))
        for name, field in fields.items()
        if COMPARED in field.metadata
    }


def _written(name: str, value: object) -> str:
    return duration_text(value) if name.endswith("_ms") and isinstance(value, int) else str(value)
