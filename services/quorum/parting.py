"""LBs that were removed a moment ago: they are to hear of it. Pure.

By its own list such an LB is a member still, and waits for a leader. So the leader that counts it
no more goes on to send it beats for `PARTING_MS`, with the table that says who the members are,
until it is known to have that and to know that it is committed. What it says meanwhile is looked at
for two things alone: which VIPs it gives up, and which table it has. Whoever stops leading, or does
not hear who leads, stops telling.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bus.peer_protocol import NO_VERSION, Ack, Beat, Version
from services.quorum.durable import Outbox
from services.quorum.election import Election
from services.quorum.register import Register

PARTING_MS = 2_000
"""For so long an LB that was removed is told so."""
RESEND_MS = 100
"""It is sent the table again if it has not acknowledged it for so long."""


@dataclass(slots=True)
class _Told:
    until_ms: int
    accepted: Version = NO_VERSION
    sent_ms: int | None = None


class Parting:
    """By entry, those that are told."""

    def __init__(self, name: str, election: Election, register: Register, outbox: Outbox) -> None:
        """`name`: this LB's."""
        self._name, self._election = name, election
        self._register, self._outbox = register, outbox
        self._told: dict[str, _Told] = {}

    def __contains__(self, entry: str) -> bool:
        return entry in self._told

    @property
    def entries(self) -> tuple[str, ...]:
        return tuple(self._told)

    def begin(self, entries: Iterable[str], now_ms: int) -> None:
        """The leader's newest table has these members no more."""
        for entry in entries:
            self._told[entry] = _Told(now_ms + PARTING_MS)

    def back(self, entries: Iterable[str]) -> None:
        """These are members."""
        for entry in entries:
            self._told.pop(entry, None)

    def end(self) -> None:
        """Another leads, or nobody."""
        self._told.clear()

    def answered(self, entry: str, ack: Ack) -> None:
        self._told[entry].accepted = ack.accepted

    def send_beats(self, seq: int, now_ms: int) -> None:
        """With the beats of that number to the members; the table goes along where it lacks."""
        election, held = self._election, self._register.accepted
        for entry, each in list(self._told.items()):
            if held is None or now_ms >= each.until_ms:
                del self._told[entry]
                continue
            lacks = each.accepted != held.version
            due = each.sent_ms is None or now_ms >= each.sent_ms + RESEND_MS
            table = held.at(now_ms) if lacks and due else None
            if table is not None:
                each.sent_ms = now_ms
            beat = Beat(
                *(self._name, election.term, seq, election.timing.promise_ms),
                *(self._register.committed_version, held.version, table, None),
            )
            self._outbox.post(entry, beat, election.term_mark)
