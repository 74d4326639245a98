"""An election, a register and a roster, as the parts of the core are given them, for tests."""

from __future__ import annotations

from dataclasses import dataclass, replace

from bus.peer_protocol import Ack, PeerMessage, Version
from bus.states import Member, NodeTable
from bus.words import Role
from services.quorum.durable import Outbox
from services.quorum.election import Election
from services.quorum.listing import Listing
from services.quorum.ownership import Standing
from services.quorum.register import Dated, Register
from services.quorum.roster import Own, Roster
from services.quorum.table import bootstrap, merge
from services.quorum.timing import Timing
from tests.quorum.cluster import OLD, VIP


def table_of(*members: str, epoch: int = 1, owner: str | None = "lb-0") -> NodeTable:
    """Of term 1; each LB's name is also its entry."""
    voters = tuple(Member(each, each) for each in sorted(members))
    base = bootstrap(1, 7)
    table = merge(base, {}, OLD, members, term=1, owners={VIP: owner}, voters=voters)
    return replace(table, epoch=epoch)


@dataclass
class Rig:
    """Of lb-0, at first a follower of nobody in term 1."""

    register: Register
    election: Election
    roster: Roster
    outbox: Outbox

    def lead(self, now_ms: int = 0) -> None:
        self.election.role, self.election.leader = Role.LEADER, "lb-0"
        self.answer(*self.roster.others, now_ms=now_ms)

    def answer(self, *entries: str, now_ms: int, boot: str = "b", asked: int = 1) -> list[Ack]:
        """These acknowledge a beat that goes now."""
        seq = self.election.next_beat(now_ms)
        return [self.answer_beat(seq, each, now_ms, boot, asked) for each in entries]

    def answer_beat(
        self, seq: int, entry: str, now_ms: int, boot: str = "b", asked: int = 1
    ) -> Ack:
        """That one acknowledges the beat of this number."""
        ack = Ack(entry, 1, seq, Version(1, 1), boot, asked, (), 5)
        self.roster.hear(entry, entry, now_ms)
        assert self.election.ack(entry, ack, now_ms)
        self.roster.answered(entry, ack)
        return ack

    def sent(self) -> list[tuple[str, PeerMessage]]:
        """What is in the outbox, whatever it waits for."""
        return [(each.to, each.message) for each in self.outbox.take(1_000_000)]


def rig(*others: str, table: NodeTable | None = None) -> Rig:
    """`table`: committed, and so accepted and stored."""
    held = Dated(table, 0) if table is not None else None
    register = Register(held, held, held)
    if held is not None:
        register.committed_version = held.version
    election = Election("lb-0", others, Timing(), register, "b", lambda: 0.5, 0)
    election.restore(1, "lb-0", 125, 0, blank=False)
    own = Own("lb-0", "lb-0", False, (), Standing(eligible=True, fitness=9))
    entries = ("lb-0", *others)
    listing = Listing(entries, entries, table, alone=not others)
    roster = Roster(own, others, election, register, listing, 0)
    roster.go_by_newest(0)
    return Rig(register, election, roster, Outbox())
