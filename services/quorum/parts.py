"""What part of its weight a node has at a service: slow start, and backups. Pure.

A node that has become routable for a service (UP or SUSPECT, and it was not before) has `FIRST` per
cent of its weight there, and after the service's `slow_start` all of it: its caches are cold, its
connections to others not yet made. How far it has come is its **level**, and rises in `STEPS` equal
steps. What the ring gives it is its level beside the *highest* level of the service's nodes:

    its level   the others' highest   per cent of its weight
    ─────────   ───────────────────   ──────────────────────
    30          100 (not in a start)  30
    30          60                    50
    30          30, or no others      100

So the first nodes of an empty service are never held back, nor do those that come soon after them
leave all the work to the first; and when all that were warm die, those that are not have it all.

**Backups.** A node that calls itself a backup has nothing of its weight at a service while at least
`min_healthy` of the service's other nodes are UP, of those that the table lists; or, if that is 0
per cent, one of them. One that is drained or in doubt does not serve in this sense. A backup that
is called in begins with what its own slow start has come to by then.

**Who decides.** The leader, as it merges the next table: all LBs go by the `Part`s of the agreed
one. A part says how much time is left, as a ban does, and each copy of the table counts on by its
own clock; so a new leader, or a restarted one, goes on where the old one stopped.

**Epochs.** The levels of all nodes are brought up to date together, by the leader's timer, and not
more often than once in a step of the shortest slow start that is under way (`next_step_ms`): a
hundred nodes that came back at a hundred moments cost as many tables as one does. A step that
changes no percentage is no new table. A table that is made for another reason steps nobody.

**Slots.** `ring.masked` gives a node in slow start the first of its own slots, so a step moves as
many as it says, to that node and no other. Flows that mode L4 knows stay where they are.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from bus.states import NodeTable, Part, TableNode, TableService, states_apart
from bus.words import NodeState

STEPS = 9
FIRST = 10
"""Per cent of its weight that a node begins with."""

TAKING = frozenset({NodeState.UP, NodeState.SUSPECT})
"""States of a node that is given new flows."""


def level(remaining_ms: int, slow_start_ms: int) -> int:
    """How far a slow start has come of which so much is left, in per cent."""
    taken = (slow_start_ms - remaining_ms) * STEPS // slow_start_ms
    return FIRST + (100 - FIRST) * taken // STEPS


def next_parts(
    previous: NodeTable,
    nodes: tuple[TableNode, ...],
    services: Iterable[TableService],
    *,
    step: bool,
) -> tuple[Part, ...]:
    """The parts beside these nodes, in the table after `previous`; `step`: levels rise with it."""
    offered = tuple(services)
    idle = _idle_backups(nodes, offered)
    slow_ms = {each.name: each.slow_start_ms for each in offered if each.slow_start_ms}
    levels: _Levels = dict.fromkeys(idle, (100, 0))
    if slow_ms:
        levels |= _begun(previous, nodes, slow_ms)
        levels |= _going_on(previous, nodes, slow_ms, step=step)
    highest = _highest(nodes, levels, idle)
    return tuple(
        Part(*key, 0 if key in idle else max(1, own * 100 // highest[key[1]]), own, left_ms)
        for key, (own, left_ms) in sorted(levels.items())
    )


def _idle_backups(
    nodes: tuple[TableNode, ...], services: tuple[TableService, ...]
) -> frozenset[tuple[str, str]]:
    """The backups that are not needed, by node and service."""
    backups = [node for node in nodes if node.backup]
    if not backups:
        return frozenset()
    names = {each.name: 0 for each in services}
    known: Counter[str] = Counter()
    serving: Counter[str] = Counter()
    for node in nodes:
        if not node.backup and node.weight > 0:
            known.update(_in_states(node, names, frozenset(NodeState)))
            serving.update(_in_states(node, names, frozenset({NodeState.UP})))
    enough = {
        each.name: 0
        for each in services
        if serving[each.name] >= max(1, -(-known[each.name] * each.min_healthy // 100))
    }
    return frozenset((node.id, name) for node in backups for name in _taken(node, enough))


_Levels = dict[tuple[str, str], tuple[int, int]]
"""By node and service: its level, and what is left of its slow start."""


def _begun(previous: NodeTable, nodes: Iterable[TableNode], slow_ms: Mapping[str, int]) -> _Levels:
    """Those that are given new flows by these nodes and were not by `previous`."""
    before = {node.id: node for node in previous.nodes}
    found: _Levels = {}
    for node in nodes:
        was = before.get(node.id)
        if was is node:
            continue
        taken = _taken(was, slow_ms) if was is not None else frozenset[str]()
        for service in _taken(node, slow_ms) - taken:
            found[node.id, service] = (FIRST, slow_ms[service])
    return found


def _going_on(
    previous: NodeTable,
    nodes: Iterable[TableNode],
    slow_ms: Mapping[str, int],
    *,
    step: bool,
) -> _Levels:
    """Those that had begun by `previous`, and neither are over nor have gone."""
    if not previous.parts:
        return {}
    starting = {part.node for part in previous.parts}
    taken = {node.id: _taken(node, slow_ms) for node in nodes if node.id in starting}
    found: _Levels = {}
    for part in previous.parts:
        if part.service in taken.get(part.node, ()):
            whole_ms = slow_ms[part.service]
            left_ms = min(part.remaining_ms, whole_ms)
            own = level(left_ms, whole_ms) if step else max(FIRST, part.level)
            if own < 100:
                found[part.node, part.service] = (own, left_ms)
    return found


def _highest(
    nodes: Iterable[TableNode], levels: _Levels, idle: frozenset[tuple[str, str]]
) -> dict[str, int]:
    """By service of which a node is in slow start, the highest level of any that is to serve it."""
    highest: dict[str, int] = {}
    for key, (own, _) in levels.items():
        if key not in idle:
            highest[key[1]] = max(highest.get(key[1], 0), own)
    for node in nodes if highest else ():
        if node.weight > 0 and node.state in TAKING:
            for service in _taken(node, highest):
                if (node.id, service) not in levels:
                    highest[service] = 100
    return highest


def _taken(node: TableNode, services: Mapping[str, int]) -> frozenset[str]:
    """Those of the services whose new flows the node may be given."""
    return _in_states(node, services, TAKING)


def _in_states(
    node: TableNode, services: Mapping[str, int], states: frozenset[NodeState]
) -> frozenset[str]:
    """At which of the services the node is in one of the states; one that names none has all."""
    own = [each.name for each in node.services if each.name in services]
    apart = states_apart(node)
    return frozenset(
        name
        for name in (own if node.services else services)
        if apart.get(name, node.state) in states
    )


def next_step_ms(table: NodeTable) -> int | None:
    """In how long the first level of the table has to rise; None: no node is in slow start."""
    slow_ms = _slow_ms(table)
    waits = []
    for part in table.parts:
        if part.level == 100:
            continue  # a backup
        whole_ms = slow_ms.get(part.service, 0)
        steps = (part.level - FIRST) * STEPS // (100 - FIRST) + 1
        waits.append(part.remaining_ms - whole_ms + -(-steps * whole_ms // STEPS))
    return max(0, min(waits)) if waits else None


def step_gap_ms(table: NodeTable) -> int:
    """How long two steps are apart at least."""
    slow_ms = _slow_ms(table)
    starting = [part.service for part in table.parts if part.level < 100]
    return min((slow_ms.get(service, 0) for service in starting), default=0) // STEPS


def _slow_ms(table: NodeTable) -> dict[str, int]:
    return {each.name: each.slow_start_ms for each in table.services}
