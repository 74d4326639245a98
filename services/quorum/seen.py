"""How this LB sees the agreement and the members, for people. Pure.

Every LB hears the others when they speak to it: a leader hears all of them, a follower hears little
but the leader. So the leader tells how it sees them, with a beat, when that has changed and at
least every `MEMBERS_MS`; a follower shows that, while it knows a leader, and what it has heard
itself where that is newer. Nothing here decides anything.

`state` is what the shell publishes. It says what this LB waits for, if anything: its disk, being a
member, a leader, the first view of its health process.
"""

from __future__ import annotations

from collections.abc import Iterator

from bus.peer_protocol import MemberSeen
from bus.states import QuorumMember, QuorumState, VipHolder
from bus.words import Role
from services.quorum.election import Election
from services.quorum.grants import ALONE_CLAIM_MS
from services.quorum.register import Register
from services.quorum.reports import Reports
from services.quorum.roster import SILENT_REPORT_MS, Other, Roster
from services.quorum.staged import Staging

WAITING_FOR_VIEW = "the first view of the health process"
WAITING_FOR_LEADER = "a leader: no majority of the LBs is heard"
WAITING_FOR_THE_OTHERS = (
    "a leader that the others elect: this LB has no memory of what it promised, so it may not vote"
)
WAITING_TO_BE_MEMBER = "being a member: `gale quorum add` on one that is"
MEMBERS_MS = 250
"""So often at least the leader tells how it sees the members."""


class Seen:
    """What this LB sees, and of the members what its leader does."""

    def __init__(
        self,
        roster: Roster,
        election: Election,
        register: Register,
        staging: Staging,
        reports: Reports,
        now_ms: int,
    ) -> None:
        self._roster, self._election, self._register = roster, election, register
        self._staging, self._reports = staging, reports
        self._by_leader: dict[str, MemberSeen] = {}
        """By entry, how the leader has said that it sees the members, and when it said so."""
        self._by_leader_ms = now_ms
        self._why_by_leader = ""
        """Why the members are not those that all files list."""
        self._told: tuple[MemberSeen, ...] = ()
        self._told_ms = now_ms

    # ------------------------------------------------------------------ what the leader says

    def learn(self, members: tuple[MemberSeen, ...], now_ms: int) -> None:
        """The leader sees them like this."""
        self._by_leader = {each.address: each for each in members}
        self._by_leader_ms = now_ms

    def learn_why(self, why_not_listed: str) -> None:
        """The leader says why the members are not those that all files list."""
        self._why_by_leader = why_not_listed

    def to_tell(self, now_ms: int) -> tuple[MemberSeen, ...] | None:
        """For a leader: how it sees all of them, if that has changed, or was told long ago."""
        seen = tuple(
            MemberSeen(
                *(each.name, each.address, each.alive, each.term, each.epoch, each.why_not),
                *(each.staged, each.late, each.listed),
            )
            for each in self.members(now_ms)
            if each.name
        )
        if seen == self._told and now_ms < self._told_ms + MEMBERS_MS:
            return None
        self._told, self._told_ms = seen, now_ms
        return seen

    # ------------------------------------------------------------------ what people see

    def state(self, version: int, elections_won: int, stalled: str, now_ms: int) -> QuorumState:
        """This LB's part in the agreement. `stalled`: why its disk does not answer, or empty."""
        election, held = self._election, self._register.committed
        epoch, owners = (held.version.epoch, held.table.vip_owners) if held else (0, ())
        leader = election.leader if election.role in (Role.LEADER, Role.FOLLOWER) else None
        members = self.members(now_ms)
        return QuorumState(
            version=version,
            name=self._roster.own.name,
            role=election.role,
            term=election.term,
            leader=leader,
            epoch=epoch,
            quorum=leader is not None,
            lease_remaining_ms=self._lease_remaining_ms(now_ms),
            lease_changes=elections_won,
            vips=tuple(VipHolder(vip.address, vip.owner) for vip in owners),
            members=members,
            waiting_for=stalled or self._waiting_for(leader, members),
            agreed=self._staging.agreed,
            is_member=self._roster.is_member,
            listed=self._roster.listing.agreed,
            why_not_listed=self._why_not_listed(),
        )

    def _lease_remaining_ms(self, now_ms: int) -> int:
        """A quorum of one has its lease from nobody, and tells of it what it claims ahead: so it
        need not say so again every few hundredths of a second.
        """
        if self._roster.alone and self._election.role is Role.LEADER:
            return ALONE_CLAIM_MS
        return max(0, self._election.lease_until_ms(now_ms) - now_ms)

    def _why_not_listed(self) -> str:
        if self._election.role is Role.LEADER:
            return self._roster.listing.why
        return self._why_by_leader if self._election.leader is not None else ""

    def _waiting_for(self, leader: str | None, members: tuple[QuorumMember, ...]) -> str:
        if not self._roster.is_member:
            return WAITING_TO_BE_MEMBER
        if leader is None:
            are_heard = 2 * sum(each.alive for each in members) > len(members)
            is_why = are_heard and self._election.is_blank
            return WAITING_FOR_THE_OTHERS if is_why else WAITING_FOR_LEADER
        return WAITING_FOR_VIEW if self._register.committed is None else ""

    def members(self, now_ms: int) -> tuple[QuorumMember, ...]:
        """This LB first."""
        own, held = self._roster.own, self._register.committed
        epoch = held.version.epoch if held else 0
        term, staged = self._election.term, self._staging.own
        seen = (own.name, own.address, True, term, epoch, 0, own.why_not, staged)
        others = (self._other(*each, now_ms) for each in sorted(self._roster.others.items()))
        late, listed = self._reports.own.is_late(now_ms), self._roster.listing.own
        return (QuorumMember(*seen, late=late, listed=listed), *others)

    def names(self) -> dict[str, str]:
        """Of the members, by entry; empty where nobody has said it."""
        named = {
            entry: other.name or (told.name if (told := self._by_leader.get(entry)) else "")
            for entry, other in self._roster.voters()
        }
        return {**named, self._roster.own.address: self._roster.own.name}

    def staged(self) -> list[str]:
        """What each of those that are heard has staged."""
        return [self._staging.own, *self._staged_by_others()]

    def _staged_by_others(self) -> Iterator[str]:
        for entry, other in self._roster.others.items():
            told = self._leaders_word(entry)
            yield told.staged if told is not None else other.staged

    def _leaders_word(self, entry: str) -> MemberSeen | None:
        """How the leader, which is another LB, has said that it sees it."""
        if self._election.role is Role.LEADER or self._election.leader is None:
            return None
        return self._by_leader.get(entry)

    def _other(self, entry: str, other: Other, now_ms: int) -> QuorumMember:
        """As this LB hears it or, of one that it never hears, as the leader says."""
        heard_ms = now_ms - other.heard_ms if other.heard_ms is not None else 0
        alive = other.heard_ms is not None and heard_ms < SILENT_REPORT_MS
        name, term, epoch, why_not = other.name, other.term, other.accepted.epoch, other.why_not
        staged, late, listed = other.staged, other.late, other.listed
        if (told := self._leaders_word(entry)) is not None:
            term, epoch, why_not, staged = told.term, told.epoch, told.why, told.staged
            name, alive, late, listed = told.name, told.alive, told.late, told.listed
            heard_ms = min(heard_ms, now_ms - self._by_leader_ms)
        silent_ms = heard_ms if alive else 0
        return QuorumMember(
            *(name, entry, alive, term, epoch, silent_ms, why_not, staged),
            late=late,
            listed=listed,
        )
