"""What this LB tells its own machine of the agreement, as events. Pure.

    quorum.leader.     another leads than before, by this LB's word or another's
    quorum.lost.       no leader is heard; quorum.regained. once one is again
    table.committed.   with one line for each difference
    order.given.       for each order that is new; an LB that has just started does not know which
    config.staged.     this LB's file says something new; config.committed. once all go by one
    quorum.member.     who left and who came

Each LB tells what it learns itself, so a cluster tells the same once per LB. The shell publishes
them after the table that they speak of.
"""

from __future__ import annotations

from bus.events import ConfigEvent, MemberEvent, OrderEvent, QuorumEvent, TableEvent
from bus.states import NodeTable
from bus.topics import Topic
from bus.words import NodeState
from services.quorum.election import Election
from services.quorum.membership import gone_and_come
from services.quorum.orders import new_orders
from services.quorum.roster import Roster
from services.quorum.seen import Seen
from services.quorum.staged import Staging
from services.quorum.table import changes

Event = TableEvent | QuorumEvent | ConfigEvent | OrderEvent | MemberEvent


class News:
    """Events that were not given to the shell yet, and which leader they have named."""

    def __init__(self, roster: Roster, election: Election, staging: Staging, seen: Seen) -> None:
        self._roster, self._election = roster, election
        self._staging, self._seen = staging, seen
        self._events: list[tuple[Topic, Event]] = []
        self._leader: str | None = None
        self._lost = False
        self.elections_won = 0

    def take(self) -> tuple[tuple[Topic, Event], ...]:
        events, self._events = tuple(self._events), []
        return events

    # ------------------------------------------------------------------ who leads

    def leads(self, reason: str) -> None:
        """This LB does, from now on."""
        self._tell_regained()
        self._leader = self._roster.own.name
        self._tell_leader(Topic.QUORUM_LEADER, reason)
        self.elections_won += 1

    def look_who_leads(self) -> bool:
        """Whether another leads than was told last."""
        leader = self._election.leader
        if leader == self._leader:
            return False
        self._tell_regained()
        self._leader = leader
        if leader is None:
            self._tell_leader(Topic.QUORUM_LOST, "no leader is heard")
        else:
            self._tell_leader(Topic.QUORUM_LEADER, f"{leader} leads")
        return True

    def _tell_regained(self) -> None:
        """There is a leader again, after it was told that there was none."""
        if self._lost:
            event = QuorumEvent(
                self._election.term, self._election.leader, None, "a leader is heard"
            )
            self._events.append((Topic.QUORUM_REGAINED, event))
        self._lost = self._election.leader is None

    def _tell_leader(self, topic: Topic, reason: str) -> None:
        event = QuorumEvent(self._election.term, self._leader, None, reason)
        self._events.append((topic, event))

    # ------------------------------------------------------------------ what is agreed

    def staged(self) -> None:
        """This LB's file says what neither it said before, nor is agreed."""
        self._tell_config(Topic.CONFIG_STAGED, self._staging.own)

    def committed(self, before: NodeTable | None, table: NodeTable, *, config: bool) -> None:
        """All go by `table`; `before` is None: nothing was known here of the one before.
        `config`: with other services or VIPs.
        """
        up = sum(node.state is NodeState.UP for node in table.nodes)
        event = TableEvent(table.term, table.epoch, up, changes(before, table))
        self._events.append((Topic.TABLE_COMMITTED, event))
        if config:
            self._tell_config(Topic.CONFIG_COMMITTED, self._staging.agreed)
        if before is not None:
            self._tell_orders(before, table)
            self._tell_members(before, table)

    def _tell_config(self, topic: Topic, digest: str) -> None:
        staged = self._seen.staged().count(digest)
        event = ConfigEvent(digest, staged, len(self._roster.forwarding()) + 1)
        self._events.append((topic, event))

    def _tell_orders(self, before: NodeTable, table: NodeTable) -> None:
        names = {node.id: node.name for node in table.nodes}
        for order in new_orders(before, table):
            asked = order.asked
            name = names.get(asked.node, "")
            event = OrderEvent(
                *(asked.node, name, asked.kind, asked.by, asked.why, asked.weight, asked.within_ms)
            )
            self._events.append((Topic.ORDER_GIVEN, event))

    def _tell_members(self, before: NodeTable, table: NodeTable) -> None:
        gone, come = gone_and_come(before.members, table.members)
        for topic, whom in ((Topic.QUORUM_MEMBER_REMOVED, gone), (Topic.QUORUM_MEMBER_ADDED, come)):
            for each in whom:
                event = MemberEvent(each.name, each.address, len(table.members))
                self._events.append((topic, event))
