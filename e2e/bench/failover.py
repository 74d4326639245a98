"""How long nobody answers for a VIP when its holder fails: Gale beside keepalived.

A client probes the VIP every 5 ms (e2e/prober.py). Gale is the lab with three LBs, keepalived two
routers in namespaces of their own (`vrrp`), with an advertisement every 100 ms, as fast as it is
run anywhere, and every second, its default. They take turns, so that what else the machine does
falls on both. Each fault is made to whoever holds the VIP at that moment, lasts for five seconds,
and is healed:

* **links down**: the carrier goes, as when a machine loses its power;
* **silent cut**: the switch carries nothing any more, and the carrier stays; then it is healed,
  when two may claim the same address;
* **public link down**: the one to the clients alone; Gale has another, to its nodes and its peers.
  keepalived has but one here, so this is its "links down";
* **cut from its nodes**: the switch carries nothing between the holder and its nodes any more,
  while peers and clients hear it as before. keepalived has no nodes, and is not asked;
* **processes killed**: all of them at once, by SIGKILL; the kernel lives;
* **planned**: as before maintenance. Gale is asked to hand over, keepalived told to end.

A run whose client was late itself by more than 25 ms has measured the machine, and is made again.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from e2e import failover
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_most, turns
from e2e.bench.vrrp import Routers, routers
from e2e.failover import Outage, watched
from e2e.hosts import LabHosts, lab_hosts
from e2e.lab import Plan

GALE, FAST, SLOW = "Gale", "keepalived, 0.1 s", "keepalived, 1 s"
LINKS, CUT, KILLED, PLANNED = "links down", "silent cut", "processes killed", "planned"
PUBLIC, NODES = "public link down", "cut from its nodes"
LAST_S = 5.0
LATE_MS, TRIES = 25.0, 4

Progress = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Target:
    """What a fault of Gale's may cost: the goals of a median, and of the worst."""

    median: Goal
    longest_ms: float
    healed_ms: float


TARGETS = {
    LINKS: Target(at_most(200, " ms", 0), 400, 50),
    CUT: Target(at_most(200, " ms", 0), 400, 50),
    PUBLIC: Target(at_most(200, " ms", 0), 400, 50),
    NODES: Target(at_most(200, " ms", 0), 400, 50),
    KILLED: Target(at_most(200, " ms", 0), 400, 50),
    PLANNED: Target(at_most(0, " ms", 0), 0, 0),
}
_GALES = {
    LINKS: failover.links_down,
    CUT: failover.silent_cut,
    PUBLIC: failover.public_link_down,
    NODES: failover.cut_from_nodes,
    KILLED: failover.all_killed,
    PLANNED: failover.handed_over,
}


# --------------------------------------------------------------------------- keepalived's faults


@contextmanager
def _links_down(made: Routers, name: str) -> Iterator[None]:
    made.set_link(name, up=False)
    yield
    made.set_link(name, up=True)


@contextmanager
def _silent_cut(made: Routers, name: str) -> Iterator[None]:
    made.set_cut(name, cut=True)
    yield
    made.set_cut(name, cut=False)


@contextmanager
def _killed(made: Routers, name: str) -> Iterator[None]:
    made.end(name, signal.SIGKILL)
    yield
    made.run(name)


@contextmanager
def _stopped(made: Routers, name: str) -> Iterator[None]:
    made.end(name, signal.SIGTERM)
    yield
    made.run(name)


_KEEPALIVEDS: dict[str, Callable[[Routers, str], AbstractContextManager[None]]] = {
    LINKS: _links_down,
    CUT: _silent_cut,
    KILLED: _killed,
    PLANNED: _stopped,
}


def _outage(made: Routers, fault: str) -> Outage:
    name = made.holder()
    return watched(
        made.probing(),
        _KEEPALIVEDS[fault](made, name),
        lasts_s=LAST_S,
        has_moved=lambda: any(each != name for each in made.holders()),
        until_steady=made.holder,
    )


# --------------------------------------------------------------------------- the run


def run(runs: int, progress: Progress) -> Result:
    """Every fault `runs` times to each."""
    seen: dict[tuple[str, str], list[Outage]] = {}
    with (
        TemporaryDirectory(prefix="gale-vrrp-") as directory,
        lab_hosts(Plan(lbs=3), progress) as hosts,
    ):
        for interval_s, peer in ((0.1, FAST), (1.0, SLOW)):
            with routers(Path(directory), interval_s, progress) as made:
                cast = (GALE, peer) if peer == FAST else (peer,)
                for number, who in turns(cast, runs):
                    for fault in TARGETS if who == GALE else _KEEPALIVEDS:
                        progress(f"run {number + 1} of {runs}: {who}, {fault}")
                        seen.setdefault((who, fault), []).append(_steady(hosts, made, who, fault))
    return result({key: tuple(found) for key, found in seen.items()})


def _steady(hosts: LabHosts, made: Routers, who: str, fault: str) -> Outage:
    for left in reversed(range(TRIES)):
        if who == GALE:
            found = failover.outage(hosts, _GALES[fault], lasts_s=LAST_S)
        else:
            found = _outage(made, fault)
        if found.lag_ms <= LATE_MS or not left:
            break
    return found


def result(seen: Mapping[tuple[str, str], tuple[Outage, ...]]) -> Result:
    """What is made of the outages."""
    runs = min(len(found) for found in seen.values())
    return Result(
        key="failover",
        title="How long nobody answers for the VIP",
        columns=("gap, ms", "longest", "after healing", "longest", "client's lag"),
        lines=tuple(_line(who, fault, found) for (who, fault), found in _ordered(seen)),
        bar_label="gap seen by a client, ms",
        remark=(
            f"{runs} runs each, a probe every 5 ms; gaps as median (middle half) and longest. "
            "Goals are Gale's: of the median, of the longest, and of the longest after healing."
        ),
        dots=True,
    )


def _ordered(
    seen: Mapping[tuple[str, str], tuple[Outage, ...]],
) -> list[tuple[tuple[str, str], tuple[Outage, ...]]]:
    faults = list(TARGETS)
    return sorted(seen.items(), key=lambda each: (faults.index(each[0][1]), each[0][0]))


def _line(who: str, fault: str, found: tuple[Outage, ...]) -> Line:
    gaps = Sample(tuple(each.gap_ms for each in found))
    healed = Sample(tuple(each.heal_gap_ms for each in found))
    target = TARGETS[fault]
    cells = [
        gaps.text(0),
        f"{max(gaps.trials):.0f}",
        healed.text(0),
        f"{max(healed.trials):.0f}",
        f"{max(each.lag_ms for each in found):.0f}",
    ]
    if who == GALE:
        cells[1] += f" (≤ {target.longest_ms:.0f})"
        cells[3] += f" (≤ {target.healed_ms:.0f})"
    return Line(
        name=f"{fault}: {who}",
        cells=tuple(cells),
        bar=gaps,
        judged=gaps.median,
        goal=target.median if who == GALE else None,
    )
