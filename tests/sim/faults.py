"""What may go wrong in one schedule. Each seed draws a subset of it, and how bad it is (swarm).

A schedule in which everything fails at once finds less than many in which something does: with all
links cut nobody ever gets far enough to do wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from random import Random


@dataclass(frozen=True, slots=True)
class Faults:
    """Chances are for one event of its kind; times in ms of true time."""

    delay_ms: float
    loss: float = 0.0
    repetition: float = 0.0
    late: float = 0.0
    """The chance that a message takes `late_ms`."""
    late_ms: float = 0.0
    drift: float = 0.0
    """Each clock runs faster or slower by up to this part."""
    cuts: bool = False
    one_way: bool = False
    partial: bool = False
    """Single links are cut instead of whole LBs."""
    crashes: bool = False
    amnesia: bool = False
    """A crashed LB may come back without its disk."""
    pauses: bool = False
    slow_disk_ms: float = 0.0
    hung_disk: bool = False
    handovers: bool = False
    ineligible: bool = False
    reloads: bool = False
    membership: bool = False
    """LBs are added to the cluster and removed from it."""
    relist: bool = False
    """Another list of LBs is written into all files, one after the other."""
    alone: bool = False
    """One of them was alone before, and has a table of that time."""
    stills: bool = False
    """Machines stand still, and their clocks with them, as a virtual machine that is suspended."""
    timings: bool = False
    """The files of the LBs have different numbers for beats, promises and leases."""

    def words(self) -> str:
        drawn = [name for name in self.__slots__ if getattr(self, name) not in (False, 0.0)]
        return ", ".join(drawn)


def draw(random: Random, apart: Random) -> Faults:
    """`apart`: what came later is drawn from this, so that each seed draws what it always drew of
    the rest.
    """

    def maybe(value: float) -> float:
        return value * random.random() if random.random() < 0.4 else 0.0

    def some(chance: float = 0.35) -> bool:
        return random.random() < chance

    return Faults(
        delay_ms=random.choice((0.5, 2.0, 8.0)),
        loss=maybe(0.3),
        repetition=maybe(0.2),
        late=maybe(0.1),
        late_ms=random.choice((100.0, 400.0, 3_000.0)),
        drift=0.02 if some(0.7) else 0.0,
        cuts=some(0.5),
        one_way=some(),
        partial=some(),
        crashes=some(),
        amnesia=some(0.15),
        pauses=some(),
        slow_disk_ms=random.choice((0.0, 0.0, 5.0, 60.0, 300.0)),
        hung_disk=some(0.2),
        handovers=some(),
        ineligible=some(),
        reloads=some(),
        membership=some(),
        relist=some(),
        alone=apart.random() < 0.2,
        stills=apart.random() < 0.2,
        timings=apart.random() < 0.2,
    )
