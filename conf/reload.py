"""What a running process takes of a new file, and what waits for a restart.

A reload is one answer of all processes: a key that one of them cannot change while it runs is
changed by none, or half of an LB would go by the old file and half by the new one: nodes that take
up a VIP which the dataplane does not serve, or that know an LB by a name which its peers do not. So
each process takes of a new file what `taken` leaves of it, and says which keys wait; after a
restart of all processes they hold.
"""

from __future__ import annotations

from typing import Any

from conf.lb import LbConfig

NEEDING_RESTART = (
    "local.name",
    "local.net_interface_public",
    "local.net_interface_private",
    "dataplane.reply_hook",
    "dataplane.xdp",
    "dataplane.conntrack_entries",
    "dataplane.half_open_entries",
    "bus.events",
)
"""Who one is, which interfaces one stands between, and what is built or bound at the start."""


def taken(started: LbConfig, found: LbConfig) -> tuple[LbConfig, list[str]]:
    """What a process that started with `started` goes by, now that the file says `found`.

    Returns `found` with the keys that need a restart as they were, and those of them that differ.
    """
    waiting: list[str] = []
    tables: dict[str, dict[str, Any]] = {}
    for key in NEEDING_RESTART:
        table, name = key.split(".")
        before = getattr(getattr(started, table), name)
        if before != getattr(getattr(found, table), name):
            waiting.append(key)
            tables.setdefault(table, {})[name] = before
    kept = {
        table: getattr(found, table).model_copy(update=values) for table, values in tables.items()
    }
    return found.model_copy(update=kept), waiting
