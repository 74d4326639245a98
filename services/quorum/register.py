"""The register that all members agree on: one table, accepted, stored, then committed. Pure.

    accepted     the newest table that this member has taken from a leader, or proposed itself
    stored       the newest accepted one that is on its disk
    committed    the newest one that a majority has stored; what is routed by

A leader proposes one table at a time, in its own term; a member accepts what is newer than what it
has. When a majority has stored a proposal it is committed, for ever: whoever is elected later has
votes from a majority, one of whom has stored it, and nobody votes for a candidate with an older
table (`election`). So a new leader holds every committed table, or a newer one; it proposes what it
holds in its own term first, since only tables of its own term are counted (Raft, §5.4.2).

A member that comes to know that its stored table is the committed one publishes it. One that was
overtaken (the leader has committed a table that it does not have) waits for the next beat.

**The first table** of a cluster is made of `first`: the newest table of any member's time alone. No
member has agreed to that, so it counts for nothing in votes and acknowledgements; whoever is told
of it keeps it as its own, since each may be the one that leads first.

A table says how much time is left of a ban, so each copy here knows as of when that is.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.peer_protocol import NO_VERSION, Version
from bus.states import NodeTable
from services.quorum.table import aged


@dataclass(frozen=True, slots=True)
class Dated:
    """A table as it was at a moment."""

    table: NodeTable
    as_of_ms: int

    @property
    def version(self) -> Version:
        return Version(self.table.term, self.table.epoch)

    def at(self, now_ms: int) -> NodeTable:
        return aged(self.table, now_ms - self.as_of_ms)


def version_of(dated: Dated | None) -> Version:
    return NO_VERSION if dated is None else dated.version


@dataclass(slots=True)
class Register:
    """One member's copy, and what a leader knows of the others'."""

    accepted: Dated | None = None
    stored: Dated | None = None
    committed: Dated | None = None
    committed_version: Version = NO_VERSION
    """The newest that is known to be committed; `committed` may be older yet."""
    first: Dated | None = None
    """See above; None: no member is known to have been alone before, or a table is accepted."""
    held: dict[str, Version] = field(default_factory=dict)
    """For a leader: what each other member has stored, as it said last."""

    def accept(self, table: NodeTable, now_ms: int) -> bool:
        """Take a table that is newer than the one accepted; whether it was."""
        if Version(table.term, table.epoch) <= version_of(self.accepted):
            return False
        self.accepted, self.first = Dated(table, now_ms), None
        return True

    def begin_with(self, table: NodeTable, now_ms: int) -> None:
        """A member that has no table of the cluster says this one is of its time alone."""
        told = Dated(table, now_ms)
        if self.accepted is None and told.version > version_of(self.first):
            self.first = told

    def refresh(self, table: NodeTable, now_ms: int) -> None:
        """The same version, with the time left of its bans as it is known by now."""
        self.accepted = self.stored = self.committed = Dated(table, now_ms)

    def is_settled(self) -> bool:
        """Whether nothing that was accepted waits to be committed."""
        return version_of(self.accepted) == version_of(self.committed)

    def count(self, term: int, majority: int) -> bool:
        """For the leader of `term`: whether its proposal is committed by now, and was not before.

        Its own copy counts once it is stored.
        """
        version = version_of(self.stored)
        if version.term != term or version <= self.committed_version:
            return False
        if 1 + sum(held == version for held in self.held.values()) < majority:
            return False
        self.committed_version = version
        return True

    def learn_committed(self, version: Version) -> None:
        self.committed_version = max(self.committed_version, version)

    def take_committed(self) -> Dated | None:
        """The committed table, when it is stored here and was not taken before."""
        version = version_of(self.stored)
        if version != self.committed_version or version <= version_of(self.committed):
            return None
        self.committed = self.stored
        return self.committed
