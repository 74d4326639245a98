"""How many nodes each service has: known, banned, UP, or taking its new flows. Pure.

No failure is judged without asking how many others there are, so asking must be cheap at ten
thousand nodes with sixty services: `tally` counts equal lists of services once, and what failures
ask for (`known` and `banned`) is counted when it is first needed and kept until `changed`. A ban is
added to what is counted, since very many may follow each other.

A node that is drained or banned by an operator's order (`leave_out`) is none that takes new flows,
whatever its state is here.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from services.health.node import Node
from services.health.roster import Roster
from services.health.standing import BANNED, SUSPECT, UP
from services.health.tally import Tally


class Headcount:
    def __init__(self, roster: Roster) -> None:
        self._roster = roster
        self._counted: tuple[Counter[str], Counter[str]] | None = None
        """By service: how many nodes are known, and how many are banned. None: to be counted."""
        self._left_out: frozenset[str] = frozenset()

    def changed(self) -> None:
        """A node has come, gone, is not banned any more, or serves something else."""
        self._counted = None

    def banned(self, node: Node) -> None:
        """The node is banned now, as a whole."""
        if self._counted is not None:
            names = {service.name for service in node.services}
            self._counted[1].update(names - node.banned_alone())

    def leave_out(self, node_ids: Iterable[str]) -> None:
        """These take no new flows, by an order that the quorum carries out."""
        self._left_out = frozenset(node_ids)

    def why_spared(self, node: Node, names: Iterable[str], fails: int) -> str:
        """Why a node, or one service of it, is not banned after so many failures; empty: it is.

        Of one service no more than half of the nodes are banned at a time, but a lone one may be.
        Where a service is banned at this very node already, nothing comes on top of that.
        """
        known, banned = self._count()
        banned_here = node.banned_alone()
        for name in names:
            if name in banned_here:
                continue
            if banned[name] >= max(1, known[name] // 2):
                count = f"{banned[name]} of {known[name]}"
                return f"not banned after {fails} failures: {count} nodes of {name} are"
        return ""

    def up(self) -> Counter[str]:
        """By service, the nodes that are UP, as those are that are not: mostly they are few."""
        others = Tally()
        for node in self._roster:
            if node.state is not UP:
                others.add(node.services)
        up = Counter(self._count()[0])
        up.subtract(others.by_service())
        return up

    def taking(self) -> tuple[Counter[str], Counter[str]]:
        """By service, how many nodes have ever been UP, and how many take its new flows."""
        known, taking = Tally(), Tally()
        apart: Counter[str] = Counter()
        for node in self._roster:
            if node.id in self._left_out:
                continue
            if node.was_up:
                known.add(node.services)
            if node.state is UP or node.state is SUSPECT:
                if node.apart:
                    apart.update(node.taken())
                else:
                    taking.add(node.services)
        return known.by_service(), taking.by_service() + apart

    def _count(self) -> tuple[Counter[str], Counter[str]]:
        if self._counted is None:
            known, banned = Tally(), Tally()
            alone: Counter[str] = Counter()
            for node in self._roster:
                known.add(node.services)
                if node.state is BANNED:
                    banned.add(node.services)
                elif node.apart:
                    alone.update(node.banned_alone())
            self._counted = known.by_service(), banned.by_service() + alone
        return self._counted
