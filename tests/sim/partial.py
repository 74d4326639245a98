"""Partial connections, by name: links are cut so that some LBs hear each other and others do not.

The three that stop other protocols (Ng, Haridi, Carbone: Omni-Paxos, EuroSys 2023), each on LBs
that agree and have a leader:

    quorum loss   everybody hears one LB, the hub, and nobody else: the leader lives, and has lost
                  its majority; only the hub could lead
    constrained   the same, but the leader is cut off altogether, and the hub has missed what was
                  committed last: who alone could be elected is behind
    chained       the LBs stand in a row, the leader at its end, and each hears its neighbours only:
                  some never hear the leader, and hear from others that there is one

Of five LBs in a row the leader at the end has no majority, of three it has.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import pairwise, permutations
from random import Random

from bus.states import LocalView
from bus.words import NodeState
from services.quorum.core import Quorum
from tests.quorum.views import seen, view
from tests.sim.faults import Faults
from tests.sim.world import NODES, VIPS, World, version

SETTLED_MS = 5_000.0
COMMITTED_MS = 500.0
LOOK_MS = 5.0


def agreeing(seed: int, size: int) -> World:
    """LBs that agree, with clocks that drift and a network that does nothing worse than delay."""
    world = World(Random(seed), size, Faults(delay_ms=2.0, drift=0.02))
    world.run(SETTLED_MS)
    assert world.is_well()
    return world


def leader_of(world: World) -> str:
    (leader,) = [name for name, each in world.machines.items() if world.has_lease(each)]
    return leader


def _others(world: World, *but: str) -> list[str]:
    """The other LBs, in an order of the world's own."""
    others = [name for name in world.machines if name not in but]
    world.random.shuffle(others)
    return others


# --------------------------------------------------------------------------- scenarios


def quorum_loss(world: World) -> None:
    hub, *others = _others(world, leader_of(world))
    _leave(world, [(hub, other) for other in (leader_of(world), *others)])


def constrained(world: World) -> None:
    leader = leader_of(world)
    hub, *others = _others(world, leader)
    known = [(one, other) for one in (leader, *others) for other in (leader, *others)]
    _leave(world, known)
    _change_all(world)
    world.run(world.now_ms + COMMITTED_MS)
    behind, ahead = world.machines[hub].disk.table, world.newest()
    assert behind is not None
    assert ahead is not None
    assert version(behind) < version(ahead)
    _leave(world, [(hub, other) for other in others])


def chained(world: World) -> None:
    leader = leader_of(world)
    _leave(world, pairwise([leader, *_others(world, leader)]))


SCENARIOS: dict[str, Callable[[World], None]] = {
    "quorum loss": quorum_loss,
    "constrained": constrained,
    "chained": chained,
}


def _leave(world: World, links: Iterable[tuple[str, str]]) -> None:
    """Nobody hears anybody any more but over these links, which carry both ways."""
    kept = {frozenset(link) for link in links}
    pairs = permutations(world.machines, 2)
    world.blocked = {pair for pair in pairs if frozenset(pair) not in kept}


def _change_all(world: World) -> None:
    """All LBs' health sees the nodes with another weight than they ever had."""
    for machine in world.machines.values():
        machine.version += 1
        nodes = [seen(name, NodeState.UP, weight=7) for name in NODES]
        report = view(*nodes, version=machine.version)
        world.act(machine, partial(_report, report))


def _report(report: LocalView, core: Quorum, now_ms: int) -> None:
    core.report("health", report, now_ms)


# --------------------------------------------------------------------------- what comes of it


@dataclass(slots=True)
class Watched:
    """Who led and who held what, one after the other, and for how long nobody did."""

    leaders: list[str] = field(default_factory=list)
    holders: dict[str, list[str]] = field(default_factory=lambda: {vip: [] for vip in VIPS})
    without_ms: dict[str, float] = field(default_factory=lambda: dict.fromkeys(("lease", *VIPS), 0))
    """By what: in all."""


def watch(world: World, until_ms: float) -> Watched:
    """Let time pass, and look all the time."""
    found = Watched()
    while world.now_ms < until_ms:
        world.run(world.now_ms + LOOK_MS)
        leaders = [name for name, each in world.machines.items() if world.has_lease(each)]
        _note(found, "lease", found.leaders, leaders)
        for vip in VIPS:
            holders = [name for name, each in world.machines.items() if world.claims(each, vip)]
            _note(found, vip, found.holders[vip], holders)
    return found


def _note(found: Watched, what: str, known: list[str], now: list[str]) -> None:
    if not now:
        found.without_ms[what] += LOOK_MS
    elif known[-1:] != now:
        known += now
