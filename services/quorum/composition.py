"""What one LB's core is made of: its configuration, what its disk has, and its parts. Pure.

Each part has the state that no other writes, and is given those that it asks; none knows `core`,
but for the one thing that a leader's table changes everywhere (`accept`). Read from the top, each
of them rests on those above it only:

    register, election         what is agreed, and who leads
    listing, roster            who agrees
    reports, staging, desks    what is to be agreed on: views, files, orders and changes
    disk, outbox               what is stored, what waits for that
    grants                     who claims what
    seen, news                 what people are told
    opening                    which services have begun
    proposer                   the next table
    leading, following         what this LB does in either role
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from bus.states import NodeTable
from services.quorum.desks import Desks
from services.quorum.durable import Disk, HardState, Outbox
from services.quorum.election import Election
from services.quorum.following import Following
from services.quorum.grants import Grants
from services.quorum.leading import Leading
from services.quorum.listing import Listing
from services.quorum.news import News
from services.quorum.opening import LONGEST_GRACE_MS, Opening
from services.quorum.ownership import Standing
from services.quorum.proposal import Proposer
from services.quorum.register import Dated, Register, version_of
from services.quorum.reports import OwnView, Reports
from services.quorum.roster import Own, Roster, in_force
from services.quorum.seen import Seen
from services.quorum.staged import Staging
from services.quorum.table import SLOT_REUSE_MS, TableConfig
from services.quorum.timing import Timing


@dataclass(frozen=True, slots=True)
class QuorumConfig:
    """What the configuration says, as the core needs it."""

    name: str
    address: str
    """This LB's own entry in the list of addresses, or empty."""
    table: TableConfig
    timing: Timing
    checks_timeout_ms: int
    others: tuple[str, ...] = ()
    """The other entries of the list: the other members, until a table says who they are."""
    listed: tuple[str, ...] = ()
    """All entries of the list, as the file writes them; none: `address` and `others`."""
    target: tuple[str, ...] = ()
    """The same LBs by the entries that the table has for them; empty ones have no address yet. None
    of them: as listed."""
    slot_reuse_ms: int = SLOT_REUSE_MS
    """How long the SNAT slot of an LB that left is given to nobody."""
    witness: bool = False
    """This machine only votes: it leads nobody, holds nothing and has no slots."""

    @property
    def entries(self) -> tuple[str, ...]:
        """All that the file lists."""
        return self.listed or (self.address, *self.others)

    @property
    def settle_ms(self) -> int:
        """For so long a health process that has just started is not believed where it is silent."""
        return 2 * self.checks_timeout_ms

    @property
    def grace_ms(self) -> int:
        """For so long at most a service that begins waits for more nodes than the first."""
        return min(self.checks_timeout_ms, LONGEST_GRACE_MS)


@dataclass(frozen=True, slots=True)
class Parts:
    """See above."""

    register: Register
    election: Election
    own: Own
    roster: Roster
    reports: Reports
    staging: Staging
    outbox: Outbox
    desks: Desks
    disk: Disk
    grants: Grants
    seen: Seen
    news: News
    opening: Opening
    proposer: Proposer
    leading: Leading
    following: Following


def compose(
    config: QuorumConfig,
    stored: HardState,
    hash_seed: int,
    now_ms: int,
    boot: str,
    draw: Callable[[], float],
    accept: Callable[[NodeTable, int], None],
) -> Parts:
    """The parts at the start of a process; nothing has happened yet.

    `stored`: what the disk has. `hash_seed`: 64 random bits, used only if no table was ever stored.
    `boot`: names this start. `draw`: random numbers from 0 to 1. `accept`: takes a leader's table.
    """
    alone, witness = not config.others, config.witness
    register = _remembered(stored, now_ms, alone=alone)
    election = _restored(config, stored, register, boot, draw, now_ms)
    known = register.stored.table if register.stored is not None else None
    standing, why_not = Standing(not witness, 0), ("it only votes",) if witness else ()
    own = Own(config.name, config.address, witness, why_not, standing)
    entries = config.entries
    listing = Listing(entries, config.target or entries, known, alone=alone)
    roster = Roster(own, config.others, election, register, listing, now_ms)
    reports = Reports(OwnView(config.name, alone=alone), config.settle_ms)
    staging = Staging(config.table, known, alone=alone, witness=witness)
    outbox = Outbox()
    desks = Desks(config.name, outbox)
    disk = Disk(election, register, alone=alone)
    grants = Grants(boot, roster, election, register, outbox)
    seen = Seen(roster, election, register, staging, reports, now_ms)
    news = News(roster, election, staging, seen)
    opening = Opening(config.grace_ms)
    proposer = Proposer(
        hash_seed,
        config.slot_reuse_ms,
        opening,
        roster,
        election,
        register,
        reports,
        grants,
        staging,
        desks,
        now_ms,
    )
    leading = Leading(
        *(accept, roster, election, register, reports, grants),
        *(desks, proposer, seen, outbox, now_ms),
    )
    following = Following(
        boot, accept, roster, election, register, reports, grants, staging, seen, outbox
    )
    return Parts(
        *(register, election, own, roster, reports, staging, outbox, desks, disk, grants),
        *(seen, news, opening, proposer, leading, following),
    )


def _remembered(stored: HardState, now_ms: int, *, alone: bool) -> Register:
    """What the disk has of the agreement counts for a quorum of one, and in the cluster it is of.

    One LB alone goes by its table at once. In a cluster it may have been overtaken; and what it has
    from when it was alone, nobody else has agreed to.
    """
    table = stored.table or stored.first
    if table is None:
        return Register()
    kept = Dated(table, now_ms)
    if alone:
        return Register(kept, kept, kept, version_of(kept))
    if stored.table is None or not stored.joined:
        return Register(first=kept)
    return Register(kept, kept)


def _restored(
    config: QuorumConfig,
    stored: HardState,
    register: Register,
    boot: str,
    draw: Callable[[], float],
    now_ms: int,
) -> Election:
    known = register.accepted.table if register.accepted is not None else None
    members = in_force(config.address, config.others, known)
    others = tuple(each for each in members if each != config.address)
    election = Election(config.name, others, config.timing, register, boot, draw, now_ms)
    blank = bool(config.others) and not stored.joined
    vote = None if blank else stored.vote
    election.restore(stored.term, vote, stored.promise_ms, now_ms, blank=blank)
    return election
