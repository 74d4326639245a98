"""When a service that begins is given its first nodes: not with the first one alone. Pure.

When LBs and nodes start together, one node has passed its checks before the others. If it were
routed to at once it would have all clients of the service for some moments, more than it is made
for. So the leader puts no node of a service into the table before

* at least half of the nodes that are known for it are UP, or
* a grace is over, counted from when the first of them was UP: `checks_timeout`, but at most
  `LONGEST_GRACE_MS`, since nodes that are sick from the start must not hold the others up for long.

Known is a node that most LBs which have an opinion of it have on probation, UP or SUSPECT: one that
is down or banned is not waited for. A node alone is all of those that are known, and opens its
service at once.

**Open** is a service that any node of the table offers: also of one that is down by now, since only
those stay listed that were routed to before. So what an LB has adopted from its disk is open, and
so is what another leader has opened. A leader remembers besides what it has opened itself, so
nothing is closed again if all nodes of a service are forgotten. A node that offers several services
waits only while all of them do: where it comes in, it opens the others too.

**Another leader** meanwhile begins the grace anew: it has seen no node before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

from bus.states import TableNode, states_apart
from bus.words import NodeState
from services.quorum.table import STANDING, Report

LIVING = STANDING | {NodeState.PROBATION}
"""States of a node that is waited for."""
LONGEST_GRACE_MS = 10_000
"""A service waits no longer for more of its nodes once one is up."""


class Opening:
    """The services that one leader has opened, and those that wait."""

    def __init__(self, grace_ms: int) -> None:
        self.grace_ms = grace_ms
        self._open: set[str] = set()
        self._since_ms: dict[str, int] = {}
        """Of services that wait, when the first of their nodes was UP."""

    def held_back(
        self,
        listed: tuple[TableNode, ...],
        nodes: tuple[TableNode, ...],
        reports: Mapping[str, Report],
        now_ms: int,
    ) -> frozenset[str]:
        """The ids of those of `nodes` that are not to be in the table yet.

        `listed`: the nodes of the table as it stands; `nodes`: those of the next one, as the LBs
        see them by `reports`. Notes which services are open from now on.
        """
        for service in self.over(now_ms):
            self._opens(service)
        there = {node.id for node in listed}
        coming = [node for node in nodes if node.id not in there]
        waiting = self._closed(listed, coming)
        if not waiting:
            return frozenset()
        known = living(reports, waiting)
        for service in sorted(waiting):
            up = {node.id for node in coming if _takes(node, service)}
            if 2 * len(up) >= len(known.get(service, set()) | up) > 0:
                self._opens(service)
            elif up:
                self._since_ms.setdefault(service, now_ms)
        waiting -= self._open
        return frozenset(
            node.id
            for node in coming
            if node.services and all(each.name in waiting for each in node.services)
        )

    def over(self, now_ms: int) -> frozenset[str]:
        """The services whose grace has ended, and that are to be opened."""
        due = self._since_ms.items()
        return frozenset(each for each, since_ms in due if now_ms >= since_ms + self.grace_ms)

    def next_due_ms(self) -> int | None:
        """When the next grace ends."""
        return min((each + self.grace_ms for each in self._since_ms.values()), default=None)

    def _opens(self, service: str) -> None:
        self._open.add(service)
        self._since_ms.pop(service, None)

    def _closed(self, listed: Iterable[TableNode], coming: Iterable[TableNode]) -> set[str]:
        """The services of those that come which no node of the table has."""
        closed = {each.name for node in coming for each in node.services} - self._open
        if closed:
            closed -= {each.name for node in listed for each in node.services}
        return closed


def _takes(node: TableNode, service: str) -> bool:
    offers = any(each.name == service for each in node.services)
    return offers and states_apart(node).get(service, node.state) in STANDING


def living(reports: Mapping[str, Report], services: Iterable[str]) -> dict[str, set[str]]:
    """By service, the ids of the nodes that most LBs which have an opinion of them call alive.

    As in `table`, an LB whose report is settled says of a node that it does not name: it is not
    there.
    """
    settled = sum(report.settled for report in reports.values())
    alive, electors = Counter[str](), Counter[str]()
    offers: dict[str, set[str]] = {service: set() for service in services}
    for report in reports.values():
        for node in report.view.nodes:
            electors[node.id] += 1 - report.settled
            alive[node.id] += node.state in LIVING
            for each in node.services:
                if each.name in offers:
                    offers[each.name].add(node.id)
    return {
        service: {each for each in ids if 2 * alive[each] > electors[each] + settled}
        for service, ids in offers.items()
    }
