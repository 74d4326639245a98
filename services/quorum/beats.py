"""What the leader says to all members with every beat: who leads, what is committed and
proposed. Pure.

A beat goes to every member each `beat_ms`, and at once when there is something to say: a new
proposal, one that is committed now, a new leader. The table goes along for whoever has not
acknowledged it, and again after `RESEND_MS`. A beat also says which view of its receiver is here
(`reports`), and now and then how the leader sees the members (`seen`). What is answered is in
`following`.
"""

from __future__ import annotations

from bus.peer_protocol import NO_VERSION, Beat, Version
from bus.states import NodeTable
from services.quorum.durable import Outbox
from services.quorum.election import Election
from services.quorum.register import Register, version_of
from services.quorum.reports import Reports
from services.quorum.roster import Roster
from services.quorum.seen import Seen

RESEND_MS = 100
"""A table that was not acknowledged for so long is sent again."""


class Beats:
    """Those of this LB as a leader."""

    def __init__(
        self,
        roster: Roster,
        election: Election,
        register: Register,
        reports: Reports,
        seen: Seen,
        outbox: Outbox,
        now_ms: int,
    ) -> None:
        self._roster, self._election, self._register = roster, election, register
        self._reports, self._seen, self._outbox = reports, seen, outbox
        self._table_sent: dict[str, tuple[Version, int]] = {}
        """By entry, which table went there last, and when."""
        self.due_ms = now_ms
        """When the next one goes."""

    def hurry(self, now_ms: int) -> None:
        """There is something to say."""
        self.due_ms = now_ms

    def send(self, now_ms: int) -> int:
        """To all members; the number of these beats."""
        election, name = self._election, self._roster.own.name
        seq = election.next_beat(now_ms)
        self.due_ms = now_ms + election.timing.beat_ms
        proposed = version_of(self._register.accepted)
        committed = self._register.committed_version
        told = self._seen.to_tell(now_ms)
        for entry, other in self._roster.others.items():
            table = self._table_for(entry, proposed, now_ms)
            beat = Beat(
                *(name, election.term, seq, election.timing.promise_ms, committed, proposed),
                *(table, self._reports.newest(other.name), told, self._roster.listing.why),
            )
            self._outbox.post(entry, beat, election.term_mark)
        return seq

    def forget(self, entry: str) -> None:
        """It is no member any more."""
        self._table_sent.pop(entry, None)

    def _table_for(self, entry: str, proposed: Version, now_ms: int) -> NodeTable | None:
        """The proposal, if the LB has not acknowledged it and was not just sent it."""
        held = self._register.accepted
        if held is None or self._register.held.get(entry) == proposed:
            return None
        sent, sent_ms = self._table_sent.get(entry, (NO_VERSION, 0))
        if sent == proposed and now_ms < sent_ms + RESEND_MS:
            return None
        self._table_sent[entry] = proposed, now_ms
        return held.at(now_ms)
