"""Whether this LB may hold VIPs, and why not, in words. Pure.

    it may not as long as                                       because
    ──────────────────────────────────────────────────────────────────────────────────────────────
    an interface of it has no carrier, or only for a moment     nothing would arrive, or go on
    the programs are not attached, or nobody has said so yet    nothing would be forwarded
    it sees fewer than half of the nodes the table calls UP,    what arrived would go nowhere
    or has just stopped hearing any of them
    its flow table is not yet what the others' are, and it      living connections would be reset
    holds no VIP
    an operator has handed over from here                       it is about to be stopped
    it only votes                                               it forwards nothing

What once was attached stays so when the dataplane process dies: the kernel goes on. So a process
that falls silent takes no eligibility away; one that has not been heard at all gives none. And the
flows of a VIP go through its holder: no other LB knows more of them, so that a dataplane process
which has only just started again is no reason to move the VIP.

`fitness` is for the case that no LB is eligible: the leader then grants to the fittest, since
somebody doubtful answers more than nobody.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bus.states import DataplaneState, LocalView, NodeTable
from bus.words import NodeState

STEADY_MS = 1_000
"""A carrier that came back is trusted after so long: a loose cable must move no VIP to and fro."""
UP = frozenset({NodeState.UP, NodeState.SUSPECT})


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the leader is told."""

    why: tuple[str, ...]
    """Why it may hold nothing; empty: it may."""
    fitness: int

    @property
    def eligible(self) -> bool:
        return not self.why


@dataclass(slots=True)
class _Link:
    up: bool | None = None
    """None: nobody has looked yet."""
    since_ms: int | None = None
    """Since when there is a carrier again; None: since before anybody looked, or long enough."""


class Eligibility:
    """Collects what is known of this LB."""

    def __init__(self, interfaces: Iterable[str], *, witness: bool) -> None:
        """`interfaces`: the one towards clients first, then the one towards nodes."""
        self._witness = witness
        self._links = {interface: _Link() for interface in interfaces}
        self._dataplane: DataplaneState | None = None
        self._seen, self._agreed, self._deaf = 0, 0, False
        self._asked: tuple[object, object] = (None, None)
        self.leaving = False
        """Whether an operator has handed over from here."""

    def carrier(self, interface: str, *, up: bool, now_ms: int) -> None:
        """Whether one of the interfaces has a carrier now."""
        link = self._links[interface]
        if up and link.up is False:
            link.since_ms = now_ms
        link.up = up

    def dataplane(self, state: DataplaneState) -> None:
        self._dataplane = state

    def nodes(self, view: LocalView | None, table: NodeTable | None) -> None:
        """What this LB sees, and what is agreed on. Counted again only when one of them is new."""
        if self._asked == (id(view), id(table)):
            return
        self._asked = (id(view), id(table))
        agreed = {node.id for node in table.nodes if node.state in UP} if table else set()
        self._deaf = view is not None and view.deaf
        seen = {n.id for n in view.nodes if n.state in UP} if view and not view.deaf else set()
        self._agreed, self._seen = len(agreed), len(agreed & seen)

    def verdict(self, now_ms: int, *, holds: bool = False) -> Verdict:
        """As things stand. `holds`: this LB holds a VIP now."""
        if self._witness:
            return Verdict(("it only votes",), 0)
        link, programs, nodes = self._carriers(now_ms), self._programs(), self._nodes()
        leaving = "an operator has handed over from it" if self.leaving else ""
        flows = self._flows() if not holds else ""
        why = tuple(each for each in (link, programs, nodes, flows, leaving) if each)
        reached = 40 * self._seen // self._agreed if self._agreed else 40
        fitness = 200 * (not leaving) + 100 * (not link) + 50 * (not programs) + reached
        return Verdict(why, fitness)

    def next_due_ms(self) -> int | None:
        """When a carrier will have been steady."""
        links = self._links.values()
        back = [link.since_ms for link in links if link.up and link.since_ms is not None]
        return min(back) + STEADY_MS if back else None

    def _carriers(self, now_ms: int) -> str:
        """What speaks against one of the interfaces, the public one first."""
        for link in self._links.values():
            if link.since_ms is not None and now_ms >= link.since_ms + STEADY_MS:
                link.since_ms = None
        for interface, link in self._links.items():
            if not link.up:
                return f"{interface} has no carrier"
            if link.since_ms is not None:
                return f"the carrier of {interface} has only just come back"
        return ""

    def _programs(self) -> str:
        if self._dataplane is None:
            return "the dataplane process has not been heard yet"
        missing = [hook.interface for hook in self._dataplane.hooks if not hook.attached]
        if missing or not self._dataplane.hooks:
            where = ", ".join(sorted(set(missing))) or next(iter(self._links))
            return f"its programs are not attached to {where}"
        return ""

    def _flows(self) -> str:
        if self._dataplane is None or self._dataplane.synced:
            return ""
        return "it does not have the other LBs' flows yet"

    def _nodes(self) -> str:
        if 2 * self._seen >= self._agreed:
            return ""
        if self._deaf:
            return f"it does not hear any of the {self._agreed} nodes that are up"
        return f"it sees {self._seen} of the {self._agreed} nodes that are up"
