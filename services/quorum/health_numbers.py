"""The numbers by which nodes are judged, as other LBs are told them."""

from __future__ import annotations

from conf.lb import LbConfig
from conf.values import duration_text


def node_health(config: LbConfig) -> dict[str, str]:
    """`[node_health]` by key, as an operator would write it."""
    fields = type(config.node_health).model_fields
    return {
        field.alias or name: _written(name, getattr(config.node_health, name))
        for name, field in fields.items()
    }


def _written(name: str, value: object) -> str:
    return duration_text(value) if name.endswith("_ms") and isinstance(value, int) else str(value)
