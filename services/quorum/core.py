"""The agreement of the LBs on one register, the node table. Pure: no clock, no socket, no disk.

    election     who leads (Raft: pre-vote, check-quorum, a leader's lease)
    register     what is agreed: one table, accepted, stored, committed
    ownership    which LB is to hold which VIP
    leases       who may claim a VIP at this moment
    orders       what operators want of nodes
    membership   who the LBs are that agree
    table        how what the LBs see becomes the next table

This module puts them together. The shell hands in what happened (`report`, `receive`, `stand`,
`reconfigure`, `order`, `change_members`, `stored`, `tick`) with the monotonic time, and takes what
to do about it (`take`). Each `Ready` is worked off in the order of its fields: **persist, publish,
claim, send, answer**.

    `persist`     write this hard state and fsync it, then call `stored` with its number. It may
                  take as long as it likes: beats, and answers that promise nothing new, go on
                  meanwhile. What depends on it is not in `send` before `stored` was called.
    `committed`,
    `events`      publish them
    `claims`      until when this LB may claim which VIPs; None: as before. A claim that ends is in
                  the kernel before the message that lets another LB have it.
    `sends`       to whom, what
    `answers`     to orders, and changes of the members, that were asked for here

So a table is proposed, stored by a majority, and only then committed: what was published was on
this disk before, and a process killed between any two instructions starts again with what it
published, or newer. At most one proposal is under way; reports that come meanwhile are merged into
the next.

**One LB, or no list.** A quorum of one: it stands for itself in a new term, its own stored vote is
the majority, it leads. After a restart it leads on in the stored term: nobody else can have led in
it. For the same reason its stored table is a committed one, published before any report comes in:
the dataplane is right from the first message on. In a cluster a stored table may have been
overtaken, so a restarted LB publishes nothing before it has heard a leader, and the dataplane goes
on by its maps.

**Who is no member** (not yet, or not any more, by the newest table it has) hears the members and
takes the tables that they send it, forwards by them, asks nobody to elect it and holds nothing. One
that was removed is sent the table that says so for `PARTING_MS`, by a leader that counts it for
nothing; what it says meanwhile is looked at for what it gives up, and for whether it knows.

**Quorum lost.** Who hears no leader keeps the table as it is: the dataplane forwards by it and
masks what dies meanwhile. Leases lapse by themselves. `state` says so, and `quorum.lost.` is
published.

**Failure.** Without reports (the health process is down) the nodes stay as they are. A health
process that has just started is believed where it names a node and not where it is silent, until it
has `settled`: `2 * checks_timeout` after its boot was first heard, when its own grace is over.
**A late LB**, whose health process has been silent for `OLD_VIEW_MS`, or says that it was held up
(`LocalView.late`), says so with every answer, and its verdicts do not count, unless all are late. A
blank LB commits nothing before the first report: if it lost its file, the rings in the kernel are
better than an empty table. When the disk does not answer the table stands still and `waiting_for`
says so; a leader whose disk has not answered for as long as a promise lasts gives up its lead.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

from bus.events import ConfigEvent, MemberEvent, OrderEvent, QuorumEvent, TableEvent
from bus.orders import Asked
from bus.peer_protocol import (
    NO_VERSION,
    Ack,
    Beat,
    Go,
    Grant,
    MemberAsked,
    MemberSeen,
    OrderAnswered,
    OrderAsked,
    PeerMessage,
    PreVote,
    Release,
    Version,
    ViewReport,
    Vote,
    VoteReply,
)
from bus.states import (
    CommittedTable,
    LocalView,
    Member,
    NodeTable,
    QuorumMember,
    QuorumState,
    VipHolder,
)
from bus.topics import Topic
from bus.words import MemberChange, NodeState, Role
from services.quorum.election import Election, Outgoing
from services.quorum.leases import Granted, Held
from services.quorum.membership import Changes, Circumstances, Wish, find, gone_and_come, named
from services.quorum.orders import Desk, is_over, new_orders
from services.quorum.ownership import Standing, assign, fit
from services.quorum.parts import next_step_ms, step_gap_ms
from services.quorum.register import Dated, Register, version_of
from services.quorum.staged import agreed, digest, next_config, same_config
from services.quorum.table import (
    SLOT_REUSE_MS,
    Report,
    TableConfig,
    bootstrap,
    changes,
    merge,
)
from services.quorum.timing import Timing
from services.quorum.waiting import Answer

WAITING_FOR_VIEW = "the first view of the health process"
WAITING_FOR_LEADER = "a leader: no majority of the LBs is heard"
WAITING_TO_BE_MEMBER = "being a member: `gale quorum add` on one that is"
RESEND_MS = 100
"""A table or a view that was not acknowledged for so long is sent again."""
MEMBERS_MS = 250
"""So often at least the leader tells how it sees the members."""
OLD_VIEW_MS = 2_000
"""A health process that has said nothing for so long, though it repeats itself twice a second,
speaks for nobody."""
SILENT_REPORT_MS = 1_000
"""For so long the report of an LB that is not heard counts."""
ALONE_CLAIM_MS = 10_000
"""A quorum of one claims its VIPs for so long ahead: nobody waits for the end of its lease, and so
they outlast a restart of its process."""
PARTING_MS = 2_000
"""For so long an LB that was removed is told so."""
UNKNOWN = Standing(eligible=False, fitness=0)


@dataclass(frozen=True, slots=True)
class HardState:
    """What must survive a crash, and be on the disk before anybody hears of it."""

    term: int
    vote: str | None
    table: NodeTable | None
    """The newest table this LB has accepted."""
    promise_ms: int = 0
    """The longest time for which this LB has ever promised a leader to elect nobody else."""
    joined: bool = False
    """Whether it remembers what this LB did in a cluster; else it is of a quorum of one."""


BLANK = HardState(0, None, None)


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
    slot_reuse_ms: int = SLOT_REUSE_MS
    """How long the SNAT slot of an LB that left is given to nobody."""
    witness: bool = False
    """This machine only votes: it leads nobody, holds nothing and has no slots."""


Event = TableEvent | QuorumEvent | ConfigEvent | OrderEvent | MemberEvent


@dataclass(frozen=True, slots=True)
class Persist:
    """A hard state, and its number."""

    mark: int
    state: HardState


@dataclass(frozen=True, slots=True)
class Ready:
    """What the shell has to do now, in the order of the fields."""

    persist: Persist | None
    committed: CommittedTable | None
    events: tuple[tuple[Topic, Event], ...]
    claims: dict[str, int] | None
    """By VIP, until when (ms of this machine's monotonic clock) this LB may claim it."""
    sends: tuple[Outgoing, ...]
    answers: tuple[Answer, ...] = ()


NOTHING = Ready(None, None, (), None, ())


@dataclass(slots=True)
class _Heard:
    """The newest view of one LB, and since when its publisher has been talking."""

    boot: str
    first_ms: int
    newest_ms: int
    view: LocalView
    settled: bool


@dataclass(slots=True)
class _Peer:
    """What is known of another member, by its address."""

    name: str = ""
    heard_ms: int | None = None
    term: int = 0
    accepted: Version = NO_VERSION
    standing: Standing = UNKNOWN
    why_not: tuple[str, ...] = ()
    staged: str = ""
    late: bool = False
    witness: bool | None = None
    """Whether it only votes; None: it has not answered this LB yet."""
    table_sent: Version = NO_VERSION
    table_sent_ms: int = 0


@dataclass(slots=True)
class _Parting:
    """An LB that was removed: it is to hear of it."""

    name: str
    until_ms: int
    accepted: Version = NO_VERSION
    sent_ms: int | None = None


@dataclass(slots=True)
class _View:
    """This LB's own view, and what the leader has of it."""

    boot: str
    view: LocalView
    made_ms: int
    heard_ms: int
    """When the health process was heard last."""
    sent_ms: int | None = None


class Quorum:
    """One LB's part in the agreement."""

    def __init__(
        self,
        config: QuorumConfig,
        stored: HardState,
        hash_seed: int,
        now_ms: int,
        *,
        boot: str = "",
        draw: Callable[[], float] = lambda: 0.5,
    ) -> None:
        """`hash_seed`: 64 random bits, used only if no table was ever stored. `boot`: names this
        start of the process. `draw`: random numbers from 0 to 1.
        """
        self._config = config
        self._hash_seed = hash_seed
        self._alone = not config.others
        self._inherited = stored.table
        kept = None
        if stored.table is not None and (self._alone or stored.joined):
            kept = Dated(stored.table, now_ms)
        self._register = Register(kept, kept)
        if self._alone:
            self._register.committed = kept
            self._register.committed_version = version_of(kept)
        others = tuple(each for each in self._members_in_force() if each != config.address)
        self._election = Election(
            config.name, others, config.timing, self._register, boot, draw, now_ms
        )
        blank = not (self._alone or stored.joined)
        vote = None if blank else stored.vote
        self._election.restore(stored.term, vote, stored.promise_ms, now_ms, blank=blank)
        self._boot = boot
        self._granted, self._held = Granted(), Held(boot)
        self._heard: dict[str, _Heard] = {}
        self._peers: dict[str, _Peer] = {}
        self._parting: dict[str, _Parting] = {}
        """By entry, the LBs that were removed a moment ago."""
        self._go_by_members(now_ms)
        self._standing = Standing(eligible=not config.witness, fitness=0)
        self._why_not: tuple[str, ...] = ("it only votes",) if config.witness else ()
        self._staged = "" if config.witness else digest(config.table)
        self._agreed = digest(agreed(kept.table)) if kept is not None else ""
        """Of the services and VIPs of the committed table."""
        self._begin(kept, now_ms)
        self.tick(now_ms)

    def _begin(self, kept: Dated | None, now_ms: int) -> None:
        """Nothing has happened yet; `kept` is what the disk remembers of the agreement."""
        self.faults: Counter[str] = Counter()
        """What peers did that this LB ignores, by reason."""
        self._writing: int | None = None
        """The number of the hard state that is being written."""
        self._writing_since_ms = now_ms
        self._durable_mark = 0
        self._being_stored = kept
        self._table_version = 1 if self._register.committed is not None else 0
        self._state_version = 0
        self._unpublished = self._register.committed is not None
        self._events: list[tuple[Topic, Event]] = []
        self._outbox: list[Outgoing] = []
        self._claims: dict[str, int] = {}
        self._own_view: _View | None = None
        self._by_majority = False
        """Whether the next table need not wait for every LB's file."""
        self._departed: dict[str, int] = {}
        self._desk, self._changes = Desk(), Changes()
        self._queues = self._desk.waiting, self._changes.waiting
        self._members_since_ms = now_ms
        """When this LB began to lead, or the members changed last under it."""
        self._stepped_ms = now_ms
        """When this LB, as the leader, has last given more to the nodes in slow start."""
        self._stale = True
        """Whether something has come that the newest table does not know of."""
        self._circumstances: tuple[object, ...] = ()
        self._stalled = ""
        self._beat_due_ms = now_ms
        self._leader: str | None = None
        self._answered = ("", -1, 0)
        """The last beat that was answered: whose, of which term, and its number."""
        self._lost = False
        self._told_members: tuple[MemberSeen, ...] = ()
        self._told_members_ms = now_ms
        self._leaders_members: dict[str, MemberSeen] = {}
        """By entry, how the leader has said that it sees the members, and when it said so."""
        self._leaders_members_ms = now_ms
        self._lease_changes = 0

    # ------------------------------------------------------------------ what happened

    def report(self, boot: str, view: LocalView, now_ms: int, age_ms: int = 0) -> None:
        """This LB's health process saw its nodes like this `age_ms` ago."""
        own, made_ms = self._own_view, now_ms - age_ms
        if own is None or own.boot != boot or view.version > own.view.version:
            self._own_view = _View(boot, view, made_ms, now_ms)
            self._take_report(self._config.name, boot, view, now_ms, made_ms)
            self._send_view(None, now_ms)
            self._propose(now_ms)

    def hear_health(self, now_ms: int) -> None:
        """This LB's health process has said that its last view holds."""
        if self._own_view is not None:
            self._own_view.heard_ms = now_ms

    def stand(self, why_not: tuple[str, ...], fitness: int, now_ms: int) -> None:
        """Why this LB may hold no VIPs (nothing: it may), and how well it would if nobody may."""
        if (self._why_not, self._standing.fitness) != (why_not, fitness):
            self._why_not = why_not
            self._stale = True
            was, self._standing = self._standing, Standing(not why_not, fitness)
            if was.eligible and why_not:
                self._give_up(now_ms)
            self._answer_again(now_ms)
            self._propose(now_ms)

    def reconfigure(self, config: QuorumConfig, now_ms: int) -> None:
        """The file was read again. The name and the members stay."""
        old = self._config
        self._config = replace(config, name=old.name, address=old.address, others=old.others)
        self._election.configure(config.timing)
        self._state_version += 1
        was, self._staged = self._staged, "" if config.witness else digest(config.table)
        if self._staged not in (was, self._agreed) and not self._alone:
            self._tell_config(Topic.CONFIG_STAGED, self._staged)
        self._stale = True
        self._propose(now_ms)

    def commit_staged(self, now_ms: int) -> None:
        """An operator wants this LB's file to hold though not every LB has staged the same.

        Raises ValueError, in words, if that is not for this LB to decide.
        """
        if not self._leads:
            raise ValueError(f"{self._election.leader or 'nobody'} leads: ask there")
        staged = [peer.staged for peer in self._peers.values()]
        has = 1 + staged.count(self._staged)
        if 2 * has <= len(staged) + 1:
            raise ValueError(f"staged on {has} of {len(staged) + 1}: that is no majority")
        self._by_majority = self._stale = True
        self._propose(now_ms)

    def order(self, number: str, asked: Asked, now_ms: int) -> None:
        """An operator wants this; `number` names the command. It is answered in `Ready.answers`."""
        self._desk.waiting.ask(number, asked, None, now_ms)
        self._take_orders(now_ms)
        self._after(now_ms)

    def change_members(self, number: str, change: MemberChange, address: str, now_ms: int) -> None:
        """An operator wants this LB to be a member, or to be none; answered as an order is.

        Raises ValueError, in words, if nothing can come of it.
        """
        if self._alone:
            raise ValueError("this LB decides alone: its file lists no others")
        if self._election.leader is None:
            raise ValueError("no leader is heard: nothing can be agreed on")
        self._changes.waiting.ask(number, Wish(change, address), None, now_ms)
        self._stale = True
        self._after(now_ms)

    def entry_of(self, who: str, others: Mapping[str, str]) -> str:
        """The entry of whoever an operator calls so, among the members and then `others`.

        Raises ValueError, in words.
        """
        told = {address: each.name for address, each in self._leaders_members.items()}
        known = {address: peer.name or told.get(address, "") for address, peer in self._voters()}
        known[self._config.address] = self._config.name
        return find(who, known, others)

    def receive(self, peer: str, message: PeerMessage, now_ms: int) -> None:
        """A member, known by its address, says this."""
        if peer in self._parting:
            self._hear_parting(peer, message)
            return
        known = self._peers.get(peer)
        if known is None or message.sender == self._config.name:
            self.faults["stranger" if known is None else "our name"] += 1
            return
        self._stale |= known.name != message.sender
        known.name, known.heard_ms = message.sender, now_ms
        handle: dict[type[PeerMessage], Callable[..., None]] = {
            PreVote: self._election.pre_vote,
            Vote: self._election.asked_for_vote,
            VoteReply: self._on_vote_reply,
            Beat: self._on_beat,
            Ack: self._on_ack,
            Grant: self._on_grant,
            Release: self._on_release,
            Go: self._on_go,
            ViewReport: self._on_view,
            OrderAsked: self._on_order_asked,
            OrderAnswered: self._on_order_answered,
            MemberAsked: self._on_member_asked,
        }
        handle[type(message)](peer, message, now_ms)
        self._after(now_ms)

    def stored(self, mark: int, now_ms: int) -> None:
        """The hard state of that number is on the disk."""
        self._writing = None
        self._durable_mark = max(self._durable_mark, mark)
        self.stall("")
        is_news = version_of(self._being_stored) != version_of(self._register.stored)
        self._register.stored = self._being_stored
        self._election.durable(mark, now_ms)
        if is_news:
            self._answer_again(now_ms)
        self._after(now_ms)

    def tick(self, now_ms: int) -> None:
        """It is `now_ms`; call this at `next_due_ms` at the latest."""
        for heard in self._heard.values():
            if not heard.settled and now_ms >= heard.first_ms + self._settle_ms:
                heard.settled = self._stale = True
        for queue in self._queues:
            queue.tick(now_ms)
        self._election.tick(now_ms)
        if self._writing is not None:
            since_ms = now_ms - self._writing_since_ms
            if since_ms >= self._election.timing.promise_ms:
                self._election.stall(now_ms)
        self._after(now_ms)

    def lagged(self, lag_ms: int) -> None:
        """This loop was late by so much: beats may be waiting for it."""
        self._election.lagged(lag_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never, as things stand."""
        due = [h.first_ms + self._settle_ms for h in self._heard.values() if not h.settled]
        election_ms = self._election.next_due_ms()
        if election_ms is not None:
            due.append(election_ms)
        if self._leads and not self._alone:
            due.append(self._beat_due_ms)
        if self._leads and self._alone and self._claims:
            due.append(self._renew_ms())
        if self._leads and self._register.is_settled():
            reuse_ms = self._config.slot_reuse_ms
            due += [since_ms + reuse_ms for since_ms in self._departed.values()]
            due += self._deadlines()
            due += self._steps()
        on = not self._leads and self._leaders_entry() is not None
        for queue in self._queues:
            if (waiting_ms := queue.next_due_ms(passes_on=on)) is not None:
                due.append(waiting_ms)
        return min(due, default=None)

    def stall(self, reason: str) -> None:
        """What was to be persisted did not get there: nothing moves until it does."""
        if reason != self._stalled:
            self._stalled = reason
            self._state_version += 1

    def hand_over(self, now_ms: int) -> str:
        """Lead no more, for the sake of the most current member; its name, or why not: raises."""
        election = self._election
        able = [
            (each.accepted, address)
            for address, each in self._peers.items()
            if self._is_alive(address, now_ms) and each.standing.eligible
        ]
        current = version_of(self._register.stored)
        able = [(accepted, address) for accepted, address in able if accepted == current]
        if not election.has_lease(now_ms) or not able or not self._register.is_settled():
            raise ValueError("no other member could lead at this moment")
        _, address = max(able)
        election.hand_over(now_ms)
        go = Go(self._config.name, election.term, self._granted.left_ms(now_ms))
        self._outbox.append(Outgoing(address, go, 0))
        self._after(now_ms)
        return self._peers[address].name

    # ------------------------------------------------------------------ what to do about it

    def take(self, now_ms: int) -> Ready | None:
        """What is to be done now; each thing is given out once. None: nothing."""
        persist = self._next_persist(now_ms)
        committed = self.committed(now_ms) if self._unpublished else None
        self._unpublished = False
        events, self._events = tuple(self._events), []
        claims = self._new_claims(now_ms)
        self._outbox += self._election.outbox
        self._election.outbox.clear()
        sends = tuple(each for each in self._outbox if each.mark <= self._durable_mark)
        self._outbox = [each for each in self._outbox if each.mark > self._durable_mark]
        answers, self._desk.answers = tuple(self._desk.answers), []
        ready = Ready(persist, committed, events, claims, sends, answers)
        return None if ready == NOTHING else ready

    def committed(self, now_ms: int) -> CommittedTable | None:
        """What all LBs route by, or None before the first table."""
        held = self._register.committed
        return CommittedTable(self._table_version, held.at(now_ms)) if held is not None else None

    @property
    def role(self) -> Role:
        return self._election.role

    @property
    def has_leader(self) -> bool:
        """Whether this LB leads, or hears who does."""
        return self._leads or self._election.leader is not None

    @property
    def state_version(self) -> int:
        """Rises with most of what changes in `state`."""
        return self._state_version

    @property
    def term(self) -> int:
        return self._election.term

    @property
    def staged(self) -> str:
        """The digest of the services and VIPs of this LB's file."""
        return self._staged

    def lease_ms(self, now_ms: int) -> int:
        """What is left of this LB's lease as the leader."""
        return max(0, self._election.lease_until_ms(now_ms) - now_ms)

    def state(self, now_ms: int) -> QuorumState:
        """This LB's part in the agreement, for people."""
        config, election = self._config, self._election
        held = self._register.committed
        epoch, owners = (held.version.epoch, held.table.vip_owners) if held else (0, ())
        leader = election.leader if election.role in (Role.LEADER, Role.FOLLOWER) else None
        return QuorumState(
            version=self._state_version,
            name=config.name,
            role=election.role,
            term=election.term,
            leader=leader,
            epoch=epoch,
            quorum=leader is not None,
            lease_remaining_ms=self.lease_ms(now_ms),
            lease_changes=self._lease_changes,
            vips=tuple(VipHolder(vip.address, vip.owner) for vip in owners),
            members=self._members_seen(now_ms),
            waiting_for=self._waiting_for(leader),
            agreed=self._agreed,
            is_member=self._is_member,
        )

    # ------------------------------------------------------------------ messages

    def _on_vote_reply(self, peer: str, message: VoteReply, now_ms: int) -> None:
        self._election.saw_term(message.term, now_ms)
        if message.table is not None and not self._leads:
            self._accept(message.table, now_ms)
        self._election.vote_reply(peer, message, now_ms)

    def _on_beat(self, peer: str, message: Beat, now_ms: int) -> None:
        if not self._election.beat(message, now_ms):
            self.faults["old term"] += 1
        else:
            if message.table is not None:
                self._accept(message.table, now_ms)
            self._register.learn_committed(message.committed)
            if message.members is not None:
                self._leaders_members = {each.address: each for each in message.members}
                self._leaders_members_ms = now_ms
            self._send_view(message.view_seen, now_ms)
            self._answered = peer, message.term, message.seq
        self._answer(peer, message.seq, now_ms)
        if message.term == self._election.term:
            self._send_releases(peer, now_ms)

    def _answer_again(self, now_ms: int) -> None:
        """There is something new to tell the leader, who need not send a beat to hear of it."""
        leader, term, seq = self._answered
        if term == self._election.term and self._election.role is Role.FOLLOWER:
            self._answer(leader, seq, now_ms)

    def _answer(self, leader: str, seq: int, now_ms: int) -> None:
        ack = Ack(
            self._config.name,
            self._election.term,
            seq,
            version_of(self._register.stored),
            self._boot,
            self._held.ask(now_ms),
            self._why_not,
            self._standing.fitness,
            self._config.witness,
            self._staged,
            self._is_late(now_ms),
        )
        self._outbox.append(Outgoing(leader, ack, self._election.term_mark))

    def _on_ack(self, peer: str, message: Ack, now_ms: int) -> None:
        if not self._election.ack(peer, message, now_ms):
            return
        known = self._peers[peer]
        known.term, known.accepted = message.term, message.accepted
        self._stale |= known.witness != message.witness
        known.witness = message.witness
        self._stale |= known.staged != message.staged
        known.staged = message.staged
        self._stale |= known.late != message.late
        known.late = message.late
        known.why_not = message.why
        standing = Standing(not message.why, message.fitness)
        self._stale |= known.standing != standing
        known.standing = standing
        self._register.held[peer] = message.accepted
        self._grant(peer, message, now_ms)

    def _on_grant(self, _peer: str, message: Grant, _now_ms: int) -> None:
        if message.term == self._election.term:
            self._held.take(message)

    def _on_release(self, _peer: str, message: Release, _now_ms: int) -> None:
        if self._leads:
            self._granted.release(message)

    def _on_go(self, _peer: str, message: Go, now_ms: int) -> None:
        self._election.chosen(message, now_ms)

    def _on_view(self, _peer: str, message: ViewReport, now_ms: int) -> None:
        made_ms = now_ms - message.age_ms
        self._take_report(message.sender, message.boot, message.view, now_ms, made_ms)

    def _on_order_asked(self, peer: str, message: OrderAsked, now_ms: int) -> None:
        if self._leads:  # else its sender will hear of who does, and asks there
            self._desk.waiting.ask(message.id, message.asked, peer, now_ms)
            self._take_orders(now_ms)

    def _on_order_answered(self, _peer: str, message: OrderAnswered, _now_ms: int) -> None:
        for queue in self._queues:
            queue.answer(message.id, message.refusal)

    def _on_member_asked(self, peer: str, message: MemberAsked, now_ms: int) -> None:
        if self._leads:
            wish = Wish(message.change, message.address)
            self._changes.waiting.ask(message.id, wish, peer, now_ms)
            self._stale = True

    # ------------------------------------------------------------------ who the members are

    def _members_in_force(self) -> tuple[str, ...]:
        """Their entries, by the newest table that this LB has; by the list until one says it."""
        accepted = self._register.accepted
        if self._alone or accepted is None or not accepted.table.members:
            return (self._config.address, *self._config.others)
        return tuple(member.address for member in accepted.table.members)

    @property
    def _is_member(self) -> bool:
        return self._config.address in self._members_in_force()

    @property
    def entries(self) -> tuple[str, ...]:
        """Whom this LB is to hear and speak to, itself among them; the agreed ones come first."""
        members = self._members_in_force()
        return tuple(dict.fromkeys((*members, *self._peers, *self._parting)))

    def _voters(self) -> list[tuple[str, _Peer]]:
        """The other members; `_peers` of one that is none are also those that it might join."""
        members = frozenset(self._members_in_force())
        return [(address, peer) for address, peer in self._peers.items() if address in members]

    def _go_by_members(self, now_ms: int) -> None:
        """The newest table may say that others agree than before."""
        members, own = self._members_in_force(), self._config.address
        others = tuple(each for each in members if each != own)
        is_member = own in members
        heard = set(others) if is_member else {*others, *self._config.others}
        for address in self._peers.keys() - heard if self._leads else ():
            name = self._peers[address].name
            self._parting[address] = _Parting(name, now_ms + PARTING_MS)
        for address in heard & self._parting.keys():
            del self._parting[address]
        if heard != self._peers.keys():
            for address in self._peers.keys() - heard:
                self._heard.pop(self._peers[address].name, None)
            self._peers = {each: self._peers.get(each) or _Peer() for each in sorted(heard)}
        for address in self._register.held.keys() - set(others):
            del self._register.held[address]
        self._election.change_members(others, now_ms)
        self._election.only_votes = self._config.witness or not is_member
        if not is_member and self._held.until_ms:
            self._give_up(now_ms)

    def _may_change_members(self, now_ms: int) -> bool:
        """Whether all is over that was promised before this LB led by the members as they are."""
        election = self._election
        longest_ms = max(election.promise_ms, election.timing.promise_ms)
        return election.has_lease(now_ms) and now_ms >= self._members_since_ms + longest_ms

    def _next_members(self, base: NodeTable, now_ms: int) -> tuple[Member, ...]:
        """Those of the table after `base`."""
        if self._alone:
            return ()
        members = base.members or tuple(Member(each) for each in sorted(self._members_in_force()))
        names = {address: peer.name for address, peer in self._peers.items()}
        members = named(members, {**names, self._config.address: self._config.name})
        if not base.epoch or base.term != self._election.term or not self._register.is_settled():
            return members
        own = self._config.address
        answering = {each for each in self._peers if self._is_alive(each, now_ms)} | {own}
        how = Circumstances(own, frozenset(answering), self._may_change_members(now_ms))
        return self._changes.next_members(members, base.epoch, how)

    def _hear_parting(self, address: str, message: PeerMessage) -> None:
        """It counts for nothing any more."""
        if isinstance(message, Release):
            self._granted.release(message)
        elif isinstance(message, Ack):
            self._parting[address].accepted = message.accepted

    def _tell_members(self, before: tuple[Member, ...], after: tuple[Member, ...]) -> None:
        gone, come = gone_and_come(before, after)
        for topic, whom in ((Topic.QUORUM_MEMBER_REMOVED, gone), (Topic.QUORUM_MEMBER_ADDED, come)):
            for each in whom:
                self._events.append((topic, MemberEvent(each.name, each.address, len(after))))

    # ------------------------------------------------------------------ inside

    @property
    def _settle_ms(self) -> int:
        return 2 * self._config.checks_timeout_ms

    @property
    def _leads(self) -> bool:
        return self._election.role is Role.LEADER

    def _after(self, now_ms: int) -> None:
        """What may have become possible by whatever has just happened."""
        won, self._election.won = self._election.won, None
        if won is not None:
            self._begin_to_lead(won.reason, won.unknown_ms, now_ms)
        if self._election.leader != self._leader:
            self._tell_leader(now_ms)
        if self._leads:
            majority = self._election.majority
            if self._register.count(self._election.term, majority):
                self._beat_due_ms = now_ms
        self._publish_committed(now_ms)
        self._propose(now_ms)
        self._pass_orders_on(now_ms)
        if self._leads and not self._alone and now_ms >= self._beat_due_ms:
            self._send_beats(now_ms)

    def _begin_to_lead(self, reason: str, unknown_ms: int, now_ms: int) -> None:
        self._register.held.clear()
        self._granted.begin(now_ms, unknown_ms)
        self._members_since_ms = now_ms
        self._held.give_up(now_ms)
        self._tell_regained()
        self._leader = self._config.name
        event = QuorumEvent(self._election.term, self._config.name, None, reason)
        self._events.append((Topic.QUORUM_LEADER, event))
        self._lease_changes += 1
        self._state_version += 1
        self._beat_due_ms = now_ms
        self._stale = True

    def _tell_leader(self, now_ms: int) -> None:
        lost = self._election.leader is None
        if lost:
            topic, reason = Topic.QUORUM_LOST, "no leader is heard"
        else:
            topic, reason = Topic.QUORUM_LEADER, f"{self._election.leader} leads"
        self._tell_regained()
        self._leader = self._election.leader
        event = QuorumEvent(self._election.term, self._leader, None, reason)
        self._events.append((topic, event))
        self._state_version += 1
        for queue in self._queues:
            queue.lead_ended()
        self._parting.clear()

    def _tell_regained(self) -> None:
        """There is a leader again, after it was told that there was none."""
        if self._lost and self._election.leader is not None:
            event = QuorumEvent(
                self._election.term, self._election.leader, None, "a leader is heard"
            )
            self._events.append((Topic.QUORUM_REGAINED, event))
        self._lost = self._election.leader is None

    def _send_beats(self, now_ms: int) -> None:
        election = self._election
        seq = election.next_beat(now_ms)
        self._beat_due_ms = now_ms + election.timing.beat_ms
        proposed = version_of(self._register.accepted)
        committed = self._register.committed_version
        told = self._members_to_tell(now_ms)
        for address, peer in self._peers.items():
            heard = self._heard.get(peer.name)
            beat = Beat(
                self._config.name,
                election.term,
                seq,
                election.timing.promise_ms,
                committed,
                proposed,
                self._table_for(address, peer, proposed, now_ms),
                (heard.boot, heard.view.version) if heard is not None else None,
                told,
            )
            self._outbox.append(Outgoing(address, beat, election.term_mark))
        self._send_to_parting(seq, now_ms)

    def _send_to_parting(self, seq: int, now_ms: int) -> None:
        """Beats with the table by which they are members no more, until they are known to have it
        and to know that it is committed.
        """
        election, held = self._election, self._register.accepted
        for address, each in list(self._parting.items()):
            if held is None or now_ms >= each.until_ms:
                del self._parting[address]
                continue
            lacks = each.accepted != held.version
            due = each.sent_ms is None or now_ms >= each.sent_ms + RESEND_MS
            table = held.at(now_ms) if lacks and due else None
            if table is not None:
                each.sent_ms = now_ms
            beat = Beat(
                *(self._config.name, election.term, seq, election.timing.promise_ms),
                *(self._register.committed_version, held.version, table, None),
            )
            self._outbox.append(Outgoing(address, beat, election.term_mark))

    def _members_to_tell(self, now_ms: int) -> tuple[MemberSeen, ...] | None:
        """How the leader sees all of them, when that has changed, or was told long ago."""
        seen = tuple(
            MemberSeen(
                *(each.name, each.address, each.alive, each.term, each.epoch, each.why_not),
                *(each.staged, each.late),
            )
            for each in self._members_seen(now_ms)
            if each.name
        )
        if seen == self._told_members and now_ms < self._told_members_ms + MEMBERS_MS:
            return None
        self._told_members, self._told_members_ms = seen, now_ms
        return seen

    def _table_for(
        self, address: str, peer: _Peer, proposed: Version, now_ms: int
    ) -> NodeTable | None:
        """The proposal, if the peer has not acknowledged it and was not just sent it."""
        held = self._register.accepted
        if held is None or self._register.held.get(address) == proposed:
            return None
        if peer.table_sent == proposed and now_ms < peer.table_sent_ms + RESEND_MS:
            return None
        peer.table_sent, peer.table_sent_ms = proposed, now_ms
        return held.at(now_ms)

    def _send_view(self, seen: tuple[str, int] | None, now_ms: int) -> None:
        """To the leader, if it does not have this LB's newest view."""
        own, leader = self._own_view, self._election.leader
        if own is None or self._leads or seen == (own.boot, own.view.version):
            return
        if seen is not None and own.sent_ms is not None and now_ms < own.sent_ms + RESEND_MS:
            return
        for address, peer in self._peers.items():
            if peer.name == leader:
                own.sent_ms = now_ms
                age_ms = now_ms - own.made_ms
                report = ViewReport(self._config.name, own.boot, own.view, age_ms)
                self._outbox.append(Outgoing(address, report, 0))

    def _take_report(self, lb: str, boot: str, view: LocalView, now_ms: int, made_ms: int) -> None:
        """`lb` saw its nodes like this. A repeated or overtaken view changes nothing."""
        heard = self._heard.get(lb)
        if heard is None or heard.boot != boot:
            self._heard[lb] = _Heard(boot, now_ms, made_ms, view, settled=False)
        elif view.version > heard.view.version:
            heard.view, heard.newest_ms = view, made_ms
        else:
            return
        self._stale = True

    # ------------------------------------------------------------------ the register

    def _accept(self, table: NodeTable, now_ms: int) -> None:
        if self._register.accept(table, now_ms):
            self._election.table_changed()
            self._go_by_members(now_ms)

    def _next_persist(self, now_ms: int) -> Persist | None:
        """One write at a time; the next one has whatever came meanwhile."""
        election, accepted = self._election, self._register.accepted
        if self._writing is not None or election.mark == self._durable_mark:
            return None
        self._writing, self._writing_since_ms = election.mark, now_ms
        self._being_stored = accepted
        table = accepted.at(now_ms) if accepted is not None else None
        joined = not self._alone and not election.is_blank
        state = HardState(election.term, election.vote, table, election.promise_ms, joined)
        return Persist(election.mark, state)

    def _publish_committed(self, now_ms: int) -> None:
        before = self._register.committed
        held = self._register.take_committed()
        if held is None:
            return
        self._election.has_stored_committed()
        table = held.table
        up = sum(node.state is NodeState.UP for node in table.nodes)
        told = changes(before.table if before is not None else None, table)
        event = TableEvent(table.term, table.epoch, up, told)
        self._events.append((Topic.TABLE_COMMITTED, event))
        if before is None or not same_config(before.table, table):
            self._note_config(table)
        self._tell_orders(before.table if before is not None else None, table)
        self._desk.committed(table)
        members = before.table.members if before is not None else ()
        if {each.address for each in members} != {each.address for each in table.members}:
            self._members_since_ms = now_ms
        self._tell_members(members, table.members)
        self._changes.committed(table.members)
        self._table_version += 1
        self._state_version += 1
        self._unpublished = True

    def _note_config(self, table: NodeTable) -> None:
        """Other services or VIPs are committed than before, or the first that are known here."""
        was, self._agreed = self._agreed, digest(agreed(table))
        self._by_majority = False
        if was not in ("", self._agreed):
            self._tell_config(Topic.CONFIG_COMMITTED, self._agreed)

    def _propose(self, now_ms: int) -> None:
        """Merge what is known by now into the next table, unless one is still on its way."""
        accepted, term = self._register.accepted, self._election.term
        inherited = accepted is not None and accepted.version.term != term and not self._alone
        if not self._leads or not (inherited or self._register.is_settled()):
            return
        if accepted is None and not self._heard:
            return
        base = accepted.at(now_ms) if accepted is not None else self._first(term)
        circumstances = self._circumstances_of(base, now_ms)
        step = any(now_ms >= at_ms for at_ms in self._steps())
        if not (self._stale or inherited or step) and circumstances == self._circumstances:
            return
        if step:
            self._stepped_ms = now_ms
        self._stale, self._circumstances = False, circumstances
        config = self._next_config(base, now_ms)
        merged = merge(
            base,
            self._reports(now_ms),
            config,
            self._members(base),
            term=term,
            owners=self._owners(base, config, now_ms),
            released=self._released(base, now_ms),
            renew=not self._alone,
            orders=self._desk.next_orders(base, self._known_nodes(base)),
            voters=self._next_members(base, now_ms),
            step=step,
        )
        if (merged.term, merged.epoch) != (base.term, base.epoch):
            self._accept(merged, now_ms)
            self._beat_due_ms = now_ms
        elif merged != base:
            self._register.refresh(merged, now_ms)

    def _next_config(self, base: NodeTable, now_ms: int) -> TableConfig:
        """The services and VIPs of the next table."""
        if self._alone:
            return self._config.table
        forwarding = {each: peer for each, peer in self._peers.items() if peer.witness is not True}
        return next_config(
            base,
            self._config.table,
            [peer.staged for each, peer in forwarding.items() if self._is_alive(each, now_ms)],
            [peer.staged for peer in forwarding.values()],
            members=len(forwarding) + 1,
            by_majority=self._by_majority,
        )

    def _tell_config(self, topic: Topic, name: str) -> None:
        now_ms = self._leaders_members_ms
        staged = [each.staged for each in self._members_seen(now_ms)]
        forwarding = [peer for peer in self._peers.values() if peer.witness is not True]
        self._events.append((topic, ConfigEvent(name, staged.count(name), len(forwarding) + 1)))

    def _first(self, term: int) -> NodeTable:
        """What the first table of a cluster is made of: that of this LB from when it was alone."""
        if self._inherited is None:
            return bootstrap(term, self._hash_seed)
        return replace(self._inherited, term=term, epoch=0, members=())

    def _circumstances_of(self, base: NodeTable, now_ms: int) -> tuple[object, ...]:
        """What may change the next table without a message: merging ten thousand nodes is dear."""
        alive = tuple(self._is_alive(address, now_ms) for address in self._peers)
        free = tuple(self._granted.is_free(vip.address, now_ms) for vip in base.vip_owners)
        self._desk.over = frozenset(order.id for order in base.orders if is_over(order))
        changing = bool(self._changes.waiting.unwritten) and self._may_change_members(now_ms)
        released = self._released(base, now_ms)
        late = self._late(now_ms)
        return (alive, self._silent(now_ms), late, free, released, self._desk.over, changing)

    def _silent(self, now_ms: int) -> frozenset[str]:
        return frozenset(
            peer.name
            for peer in self._peers.values()
            if peer.heard_ms is None or now_ms >= peer.heard_ms + SILENT_REPORT_MS
        )

    def _reports(self, now_ms: int) -> dict[str, Report]:
        """What those see that are heard."""
        silent, late = self._silent(now_ms), self._late(now_ms)
        reports = {
            lb: Report(heard.view, heard.settled, now_ms - heard.newest_ms)
            for lb, heard in self._heard.items()
            if lb not in silent
        }
        return {lb: report for lb, report in reports.items() if lb not in late} or reports

    def _is_late(self, now_ms: int) -> bool:
        """Whether what this LB's health process said last is not to be relied on."""
        own = self._own_view
        if own is None or self._alone:
            return False
        return own.view.late or now_ms >= own.heard_ms + OLD_VIEW_MS

    def _late(self, now_ms: int) -> frozenset[str]:
        """For the leader: whose verdicts do not count."""
        late = {peer.name for peer in self._peers.values() if peer.late}
        return frozenset(late | {self._config.name} if self._is_late(now_ms) else late)

    def _members(self, base: NodeTable) -> list[str]:
        """The LBs that have slots: those that have answered, and before them those that had one."""
        forwarding = [peer for peer in self._peers.values() if peer.witness is not True]
        known = {peer.name for peer in forwarding if peer.witness is not None}
        spoken = {self._config.name, *known}
        size = len(forwarding) + 1
        had = sorted({held.owner for held in base.snat_slices} - spoken)
        names = {member.name for member in base.members}
        if names and "" not in names:
            had = [lb for lb in had if lb in names]
        return sorted(spoken | set(had[: max(0, size - len(spoken))]))

    def _alive(self, now_ms: int) -> dict[str, Standing]:
        """For a leader: who may hold VIPs."""
        alive = {self._config.name: self._standing}
        for address, peer in self._peers.items():
            if self._is_alive(address, now_ms) and not peer.witness:
                alive[peer.name] = peer.standing
        return alive

    def _owners(self, base: NodeTable, config: TableConfig, now_ms: int) -> dict[str, str | None]:
        alive = self._alive(now_ms)
        held = {vip.address: vip.owner for vip in base.vip_owners}
        vips = [vip.address for vip in config.vips]
        return assign(held, vips, alive, lambda vip: self._granted.is_free(vip, now_ms))

    def _released(self, table: NodeTable, now_ms: int) -> frozenset[str]:
        """LBs that left so long ago that others may have their slots; notes who left just now."""
        holders = {held.owner for held in table.snat_slices if held.address is not None}
        gone = holders - set(self._members(table))
        self._departed = {lb: self._departed.get(lb, now_ms) for lb in gone}
        reuse_ms = self._config.slot_reuse_ms
        return frozenset(
            lb for lb, since_ms in self._departed.items() if now_ms >= since_ms + reuse_ms
        )

    # ------------------------------------------------------------------ orders

    def _take_orders(self, now_ms: int) -> None:
        """One that stands in the agreed table already is answered; others are for the next."""
        self._stale = True
        if self._register.committed is not None:
            self._desk.committed(self._register.committed.table)
        self._propose(now_ms)

    def _pass_orders_on(self, now_ms: int) -> None:
        """Orders that wait go to the leader, and the answers to whoever asked."""
        address, name = self._leaders_entry(), self._config.name
        if not self._leads and address is not None:
            passed: list[PeerMessage] = [
                OrderAsked(name, *order) for order in self._desk.waiting.to_pass_on(now_ms)
            ]
            passed += [
                MemberAsked(name, number, wish.change, wish.address)
                for number, wish in self._changes.waiting.to_pass_on(now_ms)
            ]
            self._outbox += [Outgoing(address, message, 0) for message in passed]
        for answer in [each for queue in self._queues for each in queue.take_answers()]:
            if answer.asker is None:
                self._desk.answers.append(answer)
            else:
                reply = OrderAnswered(self._config.name, answer.id, answer.refusal)
                self._outbox.append(Outgoing(answer.asker, reply, 0))

    def _leaders_entry(self) -> str | None:
        """Of another LB that leads, if it is known."""
        leader = self._election.leader
        if leader is None:
            return None
        return next((entry for entry, peer in self._peers.items() if peer.name == leader), None)

    def _known_nodes(self, base: NodeTable) -> Iterator[str]:
        yield from (node.id for node in base.nodes)
        for heard in self._heard.values():
            yield from (node.id for node in heard.view.nodes)

    def _deadlines(self) -> list[int]:
        """When orders of the agreed table are over."""
        held = self._register.accepted
        if held is None:
            return []
        return [
            held.as_of_ms + order.remaining_ms
            for order in held.table.orders
            if order.remaining_ms is not None and order.id not in self._desk.over
        ]

    def _steps(self) -> list[int]:
        """When nodes in slow start are to be given more; nothing if there are none."""
        held = self._register.accepted
        wait_ms = next_step_ms(held.table) if held is not None else None
        if held is None or wait_ms is None:
            return []
        return [max(held.as_of_ms + wait_ms, self._stepped_ms + step_gap_ms(held.table))]

    def _tell_orders(self, before: NodeTable | None, table: NodeTable) -> None:
        """On this LB's stream; one that has just started does not know which ones are new."""
        names = {node.id: node.name for node in table.nodes}
        for order in new_orders(before, table) if before is not None else ():
            asked = order.asked
            name = names.get(asked.node, "")
            event = OrderEvent(
                *(asked.node, name, asked.kind, asked.by, asked.why, asked.weight, asked.within_ms)
            )
            self._events.append((Topic.ORDER_GIVEN, event))

    # ------------------------------------------------------------------ leases

    def _is_alive(self, address: str, now_ms: int) -> bool:
        """Whether the leader has heard the member answer within a promise."""
        heard_ms = self._election.heard_ms(address)
        return heard_ms is not None and now_ms < heard_ms + self._election.timing.promise_ms

    def _mine(self, lb: str) -> tuple[str, ...]:
        """The VIPs that may be granted to `lb` now: its own by what is agreed in this term, with
        no other owner proposed.
        """
        committed, accepted = self._register.committed, self._register.accepted
        if committed is None or accepted is None:
            return ()
        if committed.version.term != self._election.term and not self._alone:
            return ()
        proposed = {vip.address: vip.owner for vip in accepted.table.vip_owners}
        return tuple(
            vip.address
            for vip in committed.table.vip_owners
            if vip.owner == lb and proposed.get(vip.address) == lb
        )

    def _grant(self, address: str, ack: Ack, now_ms: int) -> None:
        until_ms = self._election.lease_until_ms(now_ms)
        vips = self._mine(ack.sender) if now_ms < until_ms else ()
        if not vips or ack.sender not in fit(self._alive(now_ms)):
            return
        for vip in vips:
            self._granted.grant(vip, ack, until_ms)
        grant = Grant(
            self._config.name, self._election.term, ack.boot, ack.asked, vips, until_ms - now_ms
        )
        self._outbox.append(Outgoing(address, grant, 0))

    def _give_up(self, now_ms: int) -> None:
        """This LB is not eligible any more: it claims nothing, and says so."""
        self._held.give_up(now_ms)
        for address, peer in self._peers.items():
            if peer.name == self._election.leader:
                self._send_releases(address, now_ms)

    def _send_releases(self, leader: str, now_ms: int) -> None:
        for vip, asked in self._held.releases(now_ms).items():
            release = Release(self._config.name, self._boot, asked, vip)
            self._outbox.append(Outgoing(leader, release, 0))

    def _new_claims(self, now_ms: int) -> dict[str, int] | None:
        """Until when this LB may claim what, if that is not what the shell was told last."""
        claims = dict(self._held.until_ms)
        if self._leads:
            until_ms = self._election.lease_until_ms(now_ms)
            able = self._config.name in fit(self._alive(now_ms))
            mine = self._mine(self._config.name) if able else ()
            if (
                self._alone
                and mine
                and set(mine) == set(self._claims)
                and now_ms < self._renew_ms()
            ):
                return None
            if self._alone:
                until_ms = now_ms + ALONE_CLAIM_MS
            claims = dict.fromkeys(mine, until_ms)
        claims = {vip: until_ms for vip, until_ms in claims.items() if until_ms > now_ms}
        if claims == self._claims:
            return None
        self._claims = claims
        return claims

    def _renew_ms(self) -> int:
        """When a quorum of one, whom nobody wakes, has to see to its claims."""
        return min(self._claims.values()) - ALONE_CLAIM_MS // 2

    # ------------------------------------------------------------------ what people see

    def _members_seen(self, now_ms: int) -> tuple[QuorumMember, ...]:
        config, held = self._config, self._register.committed
        epoch = held.version.epoch if held else 0
        term, why_not = self._election.term, self._why_not
        own = QuorumMember(
            *(config.name, config.address, True, term, epoch, 0, why_not, self._staged),
            late=self._is_late(now_ms),
        )
        return (own, *(self._member(address, now_ms) for address in sorted(self._peers)))

    def _member(self, address: str, now_ms: int) -> QuorumMember:
        """As this LB hears it or, of one that it never hears, as the leader says."""
        peer = self._peers[address]
        heard_ms = now_ms - peer.heard_ms if peer.heard_ms is not None else 0
        alive = peer.heard_ms is not None and heard_ms < SILENT_REPORT_MS
        name, term, epoch, why_not = peer.name, peer.term, peer.accepted.epoch, peer.why_not
        told, staged, late = self._leaders_members.get(address), peer.staged, peer.late
        if not self._leads and told is not None and self._election.leader is not None:
            term, epoch, why_not, staged = told.term, told.epoch, told.why, told.staged
            name, alive, late = told.name, told.alive, told.late
            heard_ms = min(heard_ms, now_ms - self._leaders_members_ms)
        silent_ms = heard_ms if alive else 0
        seen = (name, address, alive, term, epoch, silent_ms, why_not, staged)
        return QuorumMember(*seen, late=late)

    def _waiting_for(self, leader: str | None) -> str:
        if self._stalled:
            return self._stalled
        if not self._is_member:
            return WAITING_TO_BE_MEMBER
        if leader is None:
            return WAITING_FOR_LEADER
        return WAITING_FOR_VIEW if self._register.committed is None else ""
