"""What a running process takes of a new file, and what waits for a restart.

A reload is one answer of all processes: a key that one of them cannot change while it runs is
changed by none, or half of an LB would go by the old file and half by the new one: nodes that take
up a VIP which the dataplane does not serve, or that know an LB by a name which its peers do not. So
each process takes of a new file what `taken` leaves of it, and says which keys wait; after a
restart of all processes they hold. A key may need one for some of its changes alone
(`NeedsRestart.between`).
"""

from __future__ import annotations

from typing import Any

from conf.lb import LbConfig
from conf.table import NeedsRestart, Table


def _needing_restart() -> tuple[tuple[str, str, NeedsRestart], ...]:
    """Table and key of each that is marked so, in the order of the file, with its mark."""
    return tuple(
        (table, key, mark)
        for table, held in LbConfig.model_fields.items()
        if isinstance(held.annotation, type) and issubclass(held.annotation, Table)
        for key, field in held.annotation.model_fields.items()
        for mark in field.metadata
        if isinstance(mark, NeedsRestart)
    )


NEEDING_RESTART = _needing_restart()


def taken(goes_by: LbConfig, found: LbConfig) -> tuple[LbConfig, list[str]]:
    """What a process that goes by `goes_by` is to go by, now that the file says `found`.

    Returns `found` with the keys that need a restart as they were, and those of them that differ.
    """
    waiting: list[str] = []
    tables: dict[str, dict[str, Any]] = {}
    for table, name, mark in NEEDING_RESTART:
        before = getattr(getattr(goes_by, table), name)
        if mark.between(before, getattr(getattr(found, table), name)):
            waiting.append(f"{table}.{name}")
            tables.setdefault(table, {})[name] = before
    kept = {
        table: getattr(found, table).model_copy(update=values) for table, values in tables.items()
    }
    return found.model_copy(update=kept), waiting
