"""The leader's next table: when one is made, and of what. Pure.

A leader makes one table at a time (`register`): reports, orders and changes that come meanwhile are
merged into the next. One is made when

* something has come that the newest table does not know of (`stale`);
* something has changed without a message (`_circumstances`): an LB fell silent, a lease ended, the
  time of an order is over, a service is to be opened (`opening`). To merge ten thousand nodes is
  dear, so nothing else is looked at;
* it is time to give more to nodes in slow start (`_steps`);
* the newest table is of an earlier term: then it is proposed again in this one.

It is made of the newest table, the reports that count, the services and VIPs that are agreed or may
be by now, the owners of the VIPs, the orders and the members: `table.merge` has the rules for nodes
and slots, the other parts have each their own. Two things are kept here:

* since when LBs are gone that had SNAT slots: `slot_reuse_ms` later others may have those, when no
  flow can hold a port of them any more;
* when nodes in slow start were given more last, so that a large pool makes no table each moment.

**The first table** of a cluster is made of what a member had when it was alone (`register`), or of
nothing. It is not made before the first report: if all have lost their files, the rings in the
kernel are better than an empty table.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from bus.states import NodeTable
from services.quorum.desks import Desks
from services.quorum.election import Election
from services.quorum.grants import Grants
from services.quorum.opening import Opening
from services.quorum.orders import is_over
from services.quorum.ownership import assign
from services.quorum.parts import next_step_ms, step_gap_ms
from services.quorum.register import Register
from services.quorum.reports import Reports
from services.quorum.roster import Roster
from services.quorum.staged import Staging
from services.quorum.table import TableConfig, bootstrap, merge


class Proposer:
    """What one LB makes tables of while it leads."""

    def __init__(
        self,
        hash_seed: int,
        slot_reuse_ms: int,
        opening: Opening,
        roster: Roster,
        election: Election,
        register: Register,
        reports: Reports,
        grants: Grants,
        staging: Staging,
        desks: Desks,
        now_ms: int,
    ) -> None:
        """`hash_seed`: of a first table that is made of nothing."""
        self._hash_seed, self._roster = hash_seed, roster
        self._election, self._register = election, register
        self._reports, self._grants = reports, grants
        self._staging, self._desks = staging, desks
        self._opening = opening
        self.slot_reuse_ms = slot_reuse_ms
        """How long the SNAT slot of an LB that left is given to nobody."""
        self.stale = True
        """Whether something has come that the newest table does not know of."""
        self._circumstances: tuple[object, ...] = ()
        self._over: frozenset[str] = frozenset()
        """The orders of the agreed table whose time is over, as the last table was made."""
        self._stepped_ms = now_ms
        """When this LB, as the leader, has last given more to the nodes in slow start."""
        self._departed: dict[str, int] = {}
        """Since when LBs are gone that had slots, by name."""

    def next_table(self, now_ms: int) -> NodeTable | None:
        """For the leader: what is to be agreed on next, or the newest table with the time left of
        its bans as it is known by now. None: nothing, or what was proposed is still on its way.
        """
        accepted, term = self._register.accepted, self._election.term
        inherited = (
            accepted is not None and accepted.version.term != term and not self._roster.alone
        )
        if not (inherited or self._register.is_settled()):
            return None
        if accepted is None and not self._reports.any_heard():
            return None
        base = accepted.at(now_ms) if accepted is not None else self._begin(term, now_ms)
        circumstances = self._circumstances_of(base, now_ms)
        step = any(now_ms >= at_ms for at_ms in self._steps())
        if not (self.stale or inherited or step) and circumstances == self._circumstances:
            return None
        if step:
            self._stepped_ms = now_ms
        self.stale, self._circumstances = False, circumstances
        merged = self._merged(base, now_ms, step=step)
        is_new = (merged.term, merged.epoch) != (base.term, base.epoch)
        return merged if is_new or merged != base else None

    def next_due_ms(self) -> int | None:
        """For the leader: when `next_table` may have something to do though nothing has come."""
        if not self._register.is_settled():
            return None
        due = [since_ms + self.slot_reuse_ms for since_ms in self._departed.values()]
        if (opens_ms := self._opening.next_due_ms()) is not None:
            due.append(opens_ms)
        return min([*due, *self._deadlines(), *self._steps()], default=None)

    def _merged(self, base: NodeTable, now_ms: int, *, step: bool) -> NodeTable:
        config = self._next_config(base, now_ms)
        silent, late = self._roster.silent(now_ms), self._late(now_ms)
        reports = self._reports.counting(silent, late, now_ms)
        voters, listed = self._roster.next_members(base, self._desks.changes, now_ms)
        return merge(
            base,
            reports,
            config,
            self._roster.with_slots(base),
            term=self._election.term,
            owners=self._owners(base, config, now_ms),
            released=self._released(base, now_ms),
            renew=not self._roster.alone,
            orders=self._desks.orders.next_orders(base, self._known_nodes(base)),
            voters=voters,
            listed=listed,
            step=step,
            held_back=lambda nodes: self._opening.held_back(base.nodes, nodes, reports, now_ms),
        )

    def _begin(self, term: int, now_ms: int) -> NodeTable:
        """What the first table of a cluster is made of."""
        known = self._register.first
        first = known.at(now_ms) if known is not None else bootstrap(term, self._hash_seed)
        return replace(first, term=term, epoch=0, members=(), listed="")

    # ------------------------------------------------------------------ what it is made of

    def _circumstances_of(self, base: NodeTable, now_ms: int) -> tuple[object, ...]:
        """What may change the next table without a message."""
        roster, changes = self._roster, self._desks.changes
        alive = tuple(roster.is_alive(entry, now_ms) for entry in roster.others)
        free = tuple(self._grants.is_free(vip.address, now_ms) for vip in base.vip_owners)
        self._over = frozenset(order.id for order in base.orders if is_over(order))
        wanted = bool(changes.waiting.unwritten) or roster.listing.differs(base)
        changing = wanted and roster.may_change(now_ms)
        silent, late = roster.silent(now_ms), self._late(now_ms)
        released, opens = self._released(base, now_ms), self._opening.over(now_ms)
        return (alive, silent, late, free, released, opens, self._over, changing)

    def _late(self, now_ms: int) -> frozenset[str]:
        """Whose verdicts do not count."""
        late = {other.name for other in self._roster.others.values() if other.late}
        own = {self._roster.own.name} if self._reports.own.is_late(now_ms) else set()
        return frozenset(late | own)

    def _next_config(self, base: NodeTable, now_ms: int) -> TableConfig:
        """The services and VIPs of the next table."""
        forwarding = self._roster.forwarding()
        alive = [each for each in forwarding if self._roster.is_alive(each, now_ms)]
        staged = [other.staged for other in forwarding.values()]
        return self._staging.next_config(base, [forwarding[each].staged for each in alive], staged)

    def _owners(self, base: NodeTable, config: TableConfig, now_ms: int) -> dict[str, str | None]:
        alive = self._roster.standings(now_ms)
        held = {vip.address: vip.owner for vip in base.vip_owners}
        vips = [vip.address for vip in config.vips]
        return assign(held, vips, alive, lambda vip: self._grants.is_free(vip, now_ms))

    def _known_nodes(self, base: NodeTable) -> Iterator[str]:
        yield from (node.id for node in base.nodes)
        yield from self._reports.known_nodes()

    # ------------------------------------------------------------------ what passes by itself

    def _released(self, table: NodeTable, now_ms: int) -> frozenset[str]:
        """LBs that left so long ago that others may have their slots; notes who left just now."""
        holders = {held.owner for held in table.snat_slices if held.address is not None}
        gone = holders - set(self._roster.with_slots(table))
        self._departed = {lb: self._departed.get(lb, now_ms) for lb in gone}
        return frozenset(
            lb for lb, since_ms in self._departed.items() if now_ms >= since_ms + self.slot_reuse_ms
        )

    def _deadlines(self) -> list[int]:
        """When orders of the agreed table are over."""
        held = self._register.accepted
        if held is None:
            return []
        return [
            held.as_of_ms + order.remaining_ms
            for order in held.table.orders
            if order.remaining_ms is not None and order.id not in self._over
        ]

    def _steps(self) -> list[int]:
        """When nodes in slow start are to be given more; nothing if there are none."""
        held = self._register.accepted
        wait_ms = next_step_ms(held.table) if held is not None else None
        if held is None or wait_ms is None:
            return []
        return [max(held.as_of_ms + wait_ms, self._stepped_ms + step_gap_ms(held.table))]
