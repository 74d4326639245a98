"""What this LB does for a leader that it follows: it answers, and sends what its health sees. Pure.

**Each beat is answered**, with what this LB has stored and promised, what its file says, and
whether it may hold VIPs. An answer that would be another one since the last beat (the disk has
stored the table, this LB may hold VIPs no more) is given again at once, and need not wait for the
next. It rests on the hard state of its term, and what it says of the table is what is *stored*. A
beat of an earlier term is answered too, so that its sender hears of a larger one.

With the answer goes what was given up of the VIPs (`grants`); and this LB's newest view, where the
beat says that the leader does not have it (`reports`).
"""

from __future__ import annotations

from collections.abc import Callable

from bus.peer_protocol import Ack, Beat
from bus.states import NodeTable
from bus.words import Role
from services.quorum.durable import Outbox
from services.quorum.election import Election
from services.quorum.grants import Grants
from services.quorum.register import Register, version_of
from services.quorum.reports import Reports
from services.quorum.roster import Roster
from services.quorum.seen import Seen
from services.quorum.staged import Staging


class Following:
    """This LB as a follower."""

    def __init__(
        self,
        boot: str,
        accept: Callable[[NodeTable, int], None],
        roster: Roster,
        election: Election,
        register: Register,
        reports: Reports,
        grants: Grants,
        staging: Staging,
        seen: Seen,
        outbox: Outbox,
    ) -> None:
        """`boot`: names this start of the process. `accept`: takes a leader's table, if it is newer
        than this LB's.
        """
        self._boot, self._accept, self._roster = boot, accept, roster
        self._election, self._register = election, register
        self._reports, self._grants, self._staging = reports, grants, staging
        self._seen, self._outbox = seen, outbox
        self._answered = ("", -1, 0)
        """The last beat of a leader that was followed: whose, of which term, and its number."""

    def beat(self, entry: str, beat: Beat, now_ms: int) -> bool:
        """The LB of that entry says that it leads; whether that is so."""
        leads = self._election.beat(beat, now_ms)
        if leads:
            if beat.table is not None:
                self._accept(beat.table, now_ms)
            self._register.learn_committed(beat.committed)
            if beat.members is not None:
                self._seen.learn(beat.members, now_ms)
            self._seen.learn_why(beat.why_not_listed)
            self.send_view(beat.view_seen, now_ms)
            self._answered = entry, beat.term, beat.seq
        self._answer(entry, beat.seq, now_ms)
        if beat.term == self._election.term:
            self._grants.send_releases(entry, now_ms)
        return leads

    def answer_again(self, now_ms: int) -> None:
        """There is something new to tell the leader, who need not send a beat to hear of it."""
        leader, term, seq = self._answered
        if term == self._election.term and self._election.role is Role.FOLLOWER:
            self._answer(leader, seq, now_ms)

    def send_view(self, seen: tuple[str, int] | None, now_ms: int) -> None:
        """To the leader, which has the view `seen` of this LB, unless that is the newest one."""
        leader = self._roster.entry_called(self._election.leader)
        if leader is not None and (report := self._reports.own.to_send(seen, now_ms)) is not None:
            self._outbox.post(leader, report)

    def _answer(self, leader: str, seq: int, now_ms: int) -> None:
        own = self._roster.own
        ack = Ack(
            own.name,
            self._election.term,
            seq,
            version_of(self._register.stored),
            self._boot,
            self._grants.held.ask(now_ms),
            own.why_not,
            own.standing.fitness,
            own.witness,
            self._staging.own,
            self._reports.own.is_late(now_ms),
            self._roster.listing.own,
        )
        self._outbox.post(leader, ack, self._election.term_mark)
