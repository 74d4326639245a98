"""A change of a service's mode, without a lost connect: nodes are prepared first. Pure.

A node takes packets of mode L2 or L3 only once its agent has put the VIP on `lo`, silenced ARP and
attached the unwrapper, which may take a second. So when the agreed table gives a service another
mode, the maps keep the old one until every node that is UP says that it is prepared for the new
one, or `GRACE_MS` is over: one node that cannot be prepared must not hold the others for ever.

    in force    wanted    nodes that are UP                   in force next
    ---------   -------   ---------------------------------   -----------------------
    (none)      any       any                                 the wanted mode, at once
    M           M         any                                 M
    M           N         all prepared for N, or say nothing  N
    M           N         one is not, for less than GRACE_MS  M, and look again later
    M           N         one is not, since GRACE_MS          N

In: what the table wants, what the maps hold (after a restart of this process read from them), what
nodes say (`modes_of_nodes`), since when each change is waited for. Out: the modes to write, the
waits to hand in next time, and when to look again if nothing comes in before. A change that is
taken back, or replaced by another, is forgotten: each (service, mode) waits for itself.

**Who says it?** The agent tells each LB in its beats, for that LB's own VIPs; so the view of this
LB's health process goes before the agreed table, which speaks for nodes that the view lacks. An
agent that says nothing is taken for prepared. Nodes keep an old preparation for
`services.node.direct.LINGER_MS`, which is longer than any wait here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from bus.states import (
    LocalView,
    NodeTable,
    states_apart,
)
from bus.words import (
    Mode,
    NodeState,
)

GRACE_MS = 5_000

SERVING = frozenset({NodeState.UP, NodeState.SUSPECT})
DEAD = frozenset({NodeState.DOWN, NodeState.BANNED})

Modes = tuple[Mode, ...]
"""What one node is prepared for; empty: it does not say."""

Waits = Mapping[tuple[str, Mode], int]
"""Since when a service waits for a mode, in ms of the caller's monotonic clock."""


@dataclass(frozen=True, slots=True)
class ModesInForce:
    """The answer of `modes_in_force`."""

    modes: dict[str, Mode]
    """By service, of every service that is wanted."""
    since_ms: dict[tuple[str, Mode], int]
    """To be handed in the next time."""
    next_ms: int | None
    """When the next grace is over; None: nothing is waited for."""


def modes_in_force(
    wanted: Mapping[str, Mode],
    in_force: Mapping[str, Mode],
    prepared: Mapping[str, Sequence[Modes]],
    since_ms: Waits,
    now_ms: int,
) -> ModesInForce:
    """Which mode each service is to have now.

    `prepared` has, by service, the modes of each of its nodes that are UP; a service without such
    nodes has nothing to wait for.
    """
    modes: dict[str, Mode] = {}
    waits: dict[tuple[str, Mode], int] = {}
    for service, mode in wanted.items():
        former = in_force.get(service, mode)
        begun_ms = since_ms.get((service, mode), now_ms)
        ready = all(mode in said or not said for said in prepared.get(service, ()))
        if former is mode or ready or now_ms - begun_ms >= GRACE_MS:
            modes[service] = mode
        else:
            modes[service] = former
            waits[service, mode] = begun_ms
    return ModesInForce(modes, waits, min(waits.values()) + GRACE_MS if waits else None)


def modes_of_nodes(table: NodeTable, view: LocalView | None) -> dict[str, list[Modes]]:
    """By service, what each node is prepared for that is UP as agreed and not dead from here."""
    seen = {} if view is None else {node.id: node for node in view.nodes}
    prepared: dict[str, list[Modes]] = {service.name: [] for service in table.services}
    for node in table.nodes:
        own = seen.get(node.id)
        if node.state not in SERVING or (own is not None and own.state in DEAD):
            continue
        said = {service.name: service.modes for service in node.services}
        said |= {service.name: service.modes for service in own.services} if own else {}
        out = set(states_apart(node))
        if own is not None:
            out |= {name for name, state in states_apart(own).items() if state in DEAD}
        for name, modes in said.items():
            if name in prepared and name not in out:
                prepared[name].append(modes)
    return prepared
