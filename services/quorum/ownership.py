"""Who is to hold each VIP. Pure: a function of who is there, and of who held it before.

An owner keeps its VIP while it is alive and eligible: nothing moves for the sake of balance, since
every move costs somebody a gap. A VIP whose owner is neither goes to the eligible LB that owns
the fewest, but only once nobody can hold it any more (`leases.Granted`). If nobody is eligible it
goes to the fittest that is alive: a doubtful holder is better than none.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Standing:
    """An LB that is alive, as a holder of VIPs."""

    eligible: bool
    fitness: int


def assign(
    owners: Mapping[str, str | None],
    vips: Iterable[str],
    alive: Mapping[str, Standing],
    is_free: Callable[[str], bool],
) -> dict[str, str | None]:
    """The owner of each VIP: the same as in `owners`, or another where it is free to go."""
    able = fit(alive)
    assigned = {vip: owners.get(vip) for vip in sorted(vips)}
    load = Counter(owner for owner in assigned.values() if owner is not None)
    for vip, owner in assigned.items():
        if owner in able or not able or (owner is not None and not is_free(vip)):
            continue
        load[owner or ""] -= 1
        chosen = min(able, key=lambda lb: (load[lb], lb))
        load[chosen] += 1
        assigned[vip] = chosen
    return assigned


def fit(alive: Mapping[str, Standing]) -> set[str]:
    """Who may hold VIPs: the eligible; if nobody is, the fittest."""
    eligible = {lb for lb, standing in alive.items() if standing.eligible}
    if eligible or not alive:
        return eligible
    most = max(standing.fitness for standing in alive.values())
    return {lb for lb, standing in alive.items() if standing.fitness == most}
