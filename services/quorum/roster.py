"""Who the members are, and what this LB knows of each. Pure.

    in force    the entries of the members, by the newest table this LB has; until a table says
                who they are, and in a quorum of one, by the list of its file
    others      the LBs that it hears: by entry, what each said last of itself
    own         this LB itself, as it tells the others

**Who is no member** (not yet, or not any more, by the newest table it has) hears the members, and
those of its file: so it takes the tables that they send it, forwards by them, asks nobody to elect
it and holds nothing.

**Alive** is, for a leader, whoever has acknowledged one of its beats within a promise; the others
hold no VIP, and their files are not waited for. **Silent** is, for anybody, whoever was not heard
for `SILENT_REPORT_MS`: what it reported of the nodes counts no more. **Forwarding** is whoever is
not known to be a witness: a witness only votes, and has neither slots nor files that matter.

How the members change is in `membership`, and by the lists of the files in `listing`; here is when
that may happen: once all is over that was promised before this LB led by the members as they are.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from bus.peer_protocol import NO_VERSION, Ack, Version
from bus.states import Member, NodeTable
from services.quorum.election import Election
from services.quorum.listing import Listing
from services.quorum.membership import Changes, Circumstances, named
from services.quorum.ownership import Standing
from services.quorum.register import Register

SILENT_REPORT_MS = 1_000
"""For so long the report of an LB that is not heard counts."""
UNKNOWN = Standing(eligible=False, fitness=0)


@dataclass(slots=True)
class Own:
    """This LB, as it tells the others; the name and the entry stay as they are."""

    name: str
    address: str
    """Its entry in the list of the LBs, or empty."""
    witness: bool
    """It leads nobody, holds nothing and has no slots."""
    why_not: tuple[str, ...]
    """Why it may hold no VIPs; nothing: it may."""
    standing: Standing


@dataclass(slots=True)
class Other:
    """What is known of another LB."""

    name: str = ""
    heard_ms: int | None = None
    term: int = 0
    accepted: Version = NO_VERSION
    standing: Standing = UNKNOWN
    why_not: tuple[str, ...] = ()
    staged: str = ""
    listed: str = ""
    late: bool = False
    witness: bool | None = None
    """Whether it only votes; None: it has not answered this LB yet."""


def in_force(address: str, listed: tuple[str, ...], accepted: NodeTable | None) -> tuple[str, ...]:
    """The entries of the members, for the LB at `address` whose file lists those others."""
    if not listed or accepted is None or not accepted.members:
        return (address, *listed)
    return tuple(member.address for member in accepted.members)


class Roster:
    """The members, by the register's accepted table. Only this class writes what is in `others`."""

    def __init__(
        self,
        own: Own,
        listed: tuple[str, ...],
        election: Election,
        register: Register,
        listing: Listing,
        now_ms: int,
    ) -> None:
        """`listed`: the other entries of the file; none: a quorum of one."""
        self.own, self.listing = own, listing
        self._founders = self._listed = listed
        self._election, self._register = election, register
        self.others: dict[str, Other] = {}
        """By entry; for an LB that is no member also those that it might join."""
        self._since_ms = now_ms
        """When this LB began to lead, or the members changed last under it."""

    # ------------------------------------------------------------------ who they are

    @property
    def alone(self) -> bool:
        """Whether this is a quorum of one: its file lists no others."""
        return not self._founders

    @property
    def is_founded(self) -> bool:
        """Whether a table says who the members are, and not the file that this LB started with."""
        accepted = self._register.accepted
        return self.alone or (accepted is not None and bool(accepted.table.members))

    @property
    def in_force(self) -> tuple[str, ...]:
        accepted = self._register.accepted
        table = accepted.table if accepted is not None else None
        return in_force(self.own.address, self._founders, table)

    @property
    def is_member(self) -> bool:
        return self.own.address in self.in_force

    @property
    def entries(self) -> tuple[str, ...]:
        """The members, and after them this LB and whoever else is heard.

        Who is no member knocks at them with its questions, and says where it listens itself.
        """
        return tuple(dict.fromkeys((*self.in_force, self.own.address, *self.others)))

    def voters(self) -> Iterator[tuple[str, Other]]:
        """The other members."""
        members = frozenset(self.in_force)
        return ((entry, other) for entry, other in self.others.items() if entry in members)

    def entry_called(self, name: str | None) -> str | None:
        """The entry of another LB that says it is called so."""
        if name is None:
            return None
        return next((entry for entry, other in self.others.items() if other.name == name), None)

    def relist(self, listed: tuple[str, ...]) -> None:
        """The file lists these others now: whom this LB hears while it is no member.

        Who the members are until a table says so stays as it was at the start: nobody may change
        that under promises which are counted by it.
        """
        self._listed = listed

    def go_by_newest(self, now_ms: int) -> dict[str, str]:
        """The accepted table may say that others agree than before; who is heard no more: entry to
        name.
        """
        members, own = self.in_force, self.own.address
        voters = tuple(each for each in members if each != own)
        is_member = own in members
        heard = set(voters) if is_member else {*voters, *self._listed}
        gone = {entry: self.others[entry].name for entry in self.others.keys() - heard}
        if heard != self.others.keys():
            self.others = {each: self.others.get(each) or Other() for each in sorted(heard)}
        for entry in self._register.held.keys() - set(voters):
            del self._register.held[entry]
        self._election.change_members(voters, now_ms)
        self._election.only_votes = self.own.witness or not is_member
        return gone

    # ------------------------------------------------------------------ what they say

    def hear(self, entry: str, name: str, now_ms: int) -> bool:
        """Of `others`: it says something, under that name; whether the name is new."""
        other = self.others[entry]
        is_new = other.name != name
        other.name, other.heard_ms = name, now_ms
        return is_new

    def answered(self, entry: str, ack: Ack) -> bool:
        """To a beat of this LB; whether that may change the next table."""
        other = self.others[entry]
        was = other.witness, other.staged, other.listed, other.late, other.standing
        other.term, other.accepted, other.why_not = ack.term, ack.accepted, ack.why
        other.witness, other.late = ack.witness, ack.late
        other.staged, other.listed = ack.staged, ack.listed
        other.standing = Standing(not ack.why, ack.fitness)
        return was != (other.witness, other.staged, other.listed, other.late, other.standing)

    def is_alive(self, entry: str, now_ms: int) -> bool:
        """Whether the leader has heard the member answer within a promise."""
        heard_ms = self._election.heard_ms(entry)
        return heard_ms is not None and now_ms < heard_ms + self._election.timing.promise_ms

    def silent(self, now_ms: int) -> frozenset[str]:
        """The names of those that are not heard."""
        return frozenset(
            other.name
            for other in self.others.values()
            if other.heard_ms is None or now_ms >= other.heard_ms + SILENT_REPORT_MS
        )

    def forwarding(self) -> dict[str, Other]:
        return {entry: each for entry, each in self.others.items() if each.witness is not True}

    def standings(self, now_ms: int) -> dict[str, Standing]:
        """For a leader: who may hold VIPs, by name."""
        alive = {self.own.name: self.own.standing}
        for entry, other in self.others.items():
            if self.is_alive(entry, now_ms) and not other.witness:
                alive[other.name] = other.standing
        return alive

    def with_slots(self, table: NodeTable) -> list[str]:
        """The LBs that have slots: those that have answered, and before them those that had one."""
        forwarding = self.forwarding().values()
        known = {other.name for other in forwarding if other.witness is not None}
        spoken = {self.own.name, *known}
        size = len(forwarding) + 1
        had = sorted({held.owner for held in table.snat_slices} - spoken)
        names = {member.name for member in table.members}
        if names and "" not in names:
            had = [lb for lb in had if lb in names]
        return sorted(spoken | set(had[: max(0, size - len(spoken))]))

    # ------------------------------------------------------------------ how they change

    def restart_the_wait(self, now_ms: int) -> None:
        """This LB begins to lead."""
        self._since_ms = now_ms
        self.listing.begin_to_lead()

    def committed(self, before: NodeTable | None, table: NodeTable, now_ms: int) -> None:
        """All go by `table`, and went by `before`."""
        members = before.members if before is not None else ()
        if {each.address for each in members} != {each.address for each in table.members}:
            self._since_ms = now_ms

    def may_change(self, now_ms: int) -> bool:
        """Whether all is over that was promised before this LB led by the members as they are."""
        election = self._election
        longest_ms = max(election.promise_ms, election.timing.promise_ms)
        return election.has_lease(now_ms) and now_ms >= self._since_ms + longest_ms

    def next_members(
        self, base: NodeTable, changes: Changes, now_ms: int
    ) -> tuple[tuple[Member, ...], str]:
        """For the leader: those of the table after `base`, and the digest of the list on which all
        files agree.
        """
        if self.alone:
            return (), ""
        members = base.members or tuple(Member(each) for each in sorted(self.in_force))
        names = {entry: other.name for entry, other in self.others.items()}
        members = named(members, {**names, self.own.address: self.own.name})
        if not base.epoch or base.term != self._election.term or not self._register.is_settled():
            return members, base.listed
        own = self.own.address
        answering = {each for each in self.others if self.is_alive(each, now_ms)} | {own}
        how = Circumstances(own, frozenset(answering), self.may_change(now_ms))
        after = changes.next_members(members, base.epoch, how)
        if after != members or changes.waiting.unwritten:
            return after, base.listed
        lists = [other.listed for each, other in self.voters() if each in answering]
        return self.listing.next_members(members, base.listed, lists, how)
