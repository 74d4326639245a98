"""What this LB does while it leads, and only then. Pure.

    beat      to all members (`beats`); those that were members until now hear why (`parting`)
    hear      answers, releases, and what operators asked elsewhere
    grant     VIPs, to whoever has answered (`grants`)
    propose   the next table (`proposal`), once the last one is committed
    resign    for the sake of the most current member

It begins by forgetting what it knew the others to have stored, and with no VIP free that the leader
before may have granted. What it proposes it accepts as any member does: the table, the members that
it names, and the disk's part are the caller's (`accept`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bus.peer_protocol import Ack, Go, MemberAsked, OrderAsked, PeerMessage, Release
from bus.states import NodeTable
from bus.words import Role
from services.quorum.beats import Beats
from services.quorum.desks import Desks
from services.quorum.durable import Outbox
from services.quorum.election import Election
from services.quorum.grants import Grants
from services.quorum.membership import Wish
from services.quorum.parting import Parting
from services.quorum.proposal import Proposer
from services.quorum.register import Register, version_of
from services.quorum.reports import Reports
from services.quorum.roster import Roster
from services.quorum.seen import Seen


class Leading:
    """This LB as the leader. Where it does not lead, nothing comes of what is called here."""

    def __init__(
        self,
        accept: Callable[[NodeTable, int], None],
        roster: Roster,
        election: Election,
        register: Register,
        reports: Reports,
        grants: Grants,
        desks: Desks,
        proposer: Proposer,
        seen: Seen,
        outbox: Outbox,
        now_ms: int,
    ) -> None:
        """`accept`: takes a table of this LB's own."""
        self._accept, self._roster = accept, roster
        self._election, self._register = election, register
        self._grants, self._desks = grants, desks
        self._proposer, self._outbox = proposer, outbox
        self._beats = Beats(roster, election, register, reports, seen, outbox, now_ms)
        self._parting = Parting(roster.own.name, election, register, outbox)

    @property
    def is_so(self) -> bool:
        """Whether this LB leads."""
        return self._election.role is Role.LEADER

    def begin(self, unknown_ms: int, now_ms: int) -> None:
        """For `unknown_ms` there may be leases of the leader before."""
        self._register.held.clear()
        self._grants.begin_to_lead(now_ms, unknown_ms)
        self._roster.restart_the_wait(now_ms)
        self._beats.hurry(now_ms)
        self._proposer.stale = True

    def end(self) -> None:
        """Another leads, or nobody."""
        self._parting.end()

    def next_due_ms(self) -> int | None:
        """When it has something to do though nothing has come."""
        if not self.is_so:
            return None
        due = [self._proposer.next_due_ms(), None if self._roster.alone else self._beats.due_ms]
        return min((each for each in due if each is not None), default=None)

    # ------------------------------------------------------------------ what it hears

    def acknowledged(self, entry: str, ack: Ack, now_ms: int) -> None:
        """A member has answered a beat."""
        if self._election.ack(entry, ack, now_ms):
            self._proposer.stale |= self._roster.answered(entry, ack)
            self._register.held[entry] = ack.accepted
            self._grants.answer(entry, ack, now_ms)

    def released(self, message: Release) -> None:
        if self.is_so:
            self._grants.released(message)

    def asked_for_order(self, entry: str, message: OrderAsked, now_ms: int) -> None:
        """An operator has, at the LB of that entry. Where this LB does not lead, that one will hear
        of who does, and ask there.
        """
        if self.is_so:
            self._desks.order(message.id, message.asked, entry, now_ms)
            self.take_orders(now_ms)

    def asked_for_member(self, entry: str, message: MemberAsked, now_ms: int) -> None:
        """Likewise, for a change of the members."""
        if self.is_so:
            wish = Wish(message.change, message.address)
            self._desks.change(message.id, wish, entry, now_ms)
            self._proposer.stale = True

    # ------------------------------------------------------------------ who is no member any more

    @property
    def parting(self) -> tuple[str, ...]:
        """The entries of those that were removed a moment ago: they are beaten to still."""
        return self._parting.entries

    def hear_parting(self, entry: str, message: PeerMessage) -> None:
        """Of `parting`: it says this, and counts for nothing any more."""
        if isinstance(message, Release):
            self._grants.released(message)
        elif isinstance(message, Ack):
            self._parting.answered(entry, message)

    def members_changed(self, gone: Mapping[str, str], now_ms: int) -> None:
        """By the newest table the LBs of these entries are heard no more."""
        if self.is_so:
            self._parting.begin(gone, now_ms)
        self._parting.back(self._roster.others)
        for entry in gone:
            self._beats.forget(entry)

    # ------------------------------------------------------------------ what it does

    def look_at_copies(self, now_ms: int) -> None:
        """What a majority has stored by now is committed, and they are to hear of it."""
        if self.is_so and self._register.count(self._election.term, self._election.majority):
            self._beats.hurry(now_ms)

    def take_orders(self, now_ms: int) -> None:
        """One that stands in the agreed table already is answered; others are for the next."""
        self._proposer.stale = True
        if self._register.committed is not None:
            self._desks.orders.committed(self._register.committed.table)
        self.propose(now_ms)

    def propose(self, now_ms: int) -> None:
        """Merge what is known by now into the next table, unless one is still on its way."""
        table = self._proposer.next_table(now_ms) if self.is_so else None
        if table is None:
            return
        accepted = version_of(self._register.accepted)
        if (table.term, table.epoch) == (accepted.term, accepted.epoch):
            self._register.refresh(table, now_ms)
        else:
            self._accept(table, now_ms)
            self._beats.hurry(now_ms)

    def send_beats(self, now_ms: int) -> None:
        """If they are due."""
        if self.is_so and not self._roster.alone and now_ms >= self._beats.due_ms:
            self._parting.send_beats(self._beats.send(now_ms), now_ms)

    def hand_over(self, now_ms: int) -> str:
        """Lead no more, for the sake of the most current member; its entry.

        Raises ValueError, in words, if nobody could lead instead.
        """
        election, roster = self._election, self._roster
        current = version_of(self._register.stored)
        able = [
            entry
            for entry, other in roster.others.items()
            if roster.is_alive(entry, now_ms) and other.standing.eligible
            if other.accepted == current
        ]
        if not election.has_lease(now_ms) or not able or not self._register.is_settled():
            raise ValueError("no other member could lead at this moment")
        entry = max(able)
        election.hand_over(now_ms)
        go = Go(roster.own.name, election.term, self._grants.granted.left_ms(now_ms))
        self._outbox.post(entry, go)
        return entry
