"""The agreement of the LBs on one register, the node table. Pure: no clock, no socket, no disk.

    election     who leads (Raft: pre-vote, check-quorum, a leader's lease)
    register     what is agreed: one table, accepted, stored, committed
    durable      what has to be on the disk, and what waits for it
    roster       who the members are, and what is known of each
    membership   how the members change
    reports      what the LBs see of the nodes
    staged       what their files say of services and VIPs; `listing`: of the LBs
    ownership    which LB is to hold which VIP
    leases       who may claim a VIP at this moment; `grants`: what this LB grants and claims
    desks        what operators want: `orders` of nodes, changes of the members
    proposal     how all this becomes the next table, by the rules of `table`
    opening      when a service that begins is given its first nodes
    leading      what only a leader does: `beats`, and `parting` for who was a member
    following    what is answered
    seen, news   what people are told: how the members are, what has happened

This module puts them together. The shell hands in what happened (`report`, `receive`, `stand`,
`reconfigure`, `order`, `change_members`, `stored`, `tick`) with the monotonic time, and takes what
to do about it (`take`). Each `Ready` is worked off in the order of its fields: **persist, publish,
claim, send, answer**.

    `persist`     write this hard state and fsync it, then call `stored` with its number
    `committed`,
    `events`      publish them
    `claims`      until when this LB may claim which VIPs; None: as before
    `sends`       to whom, what
    `answers`     to orders, and changes of the members, that were asked for here

**One step.** Whatever happened goes to the part that it is about; then `_after` does what may have
become possible by it: lead, publish, propose, pass on, send. So a part needs to know nothing of
what follows from what it learns.

**One LB, or no list.** A quorum of one: it stands for itself in a new term, its own stored vote is
the majority, it leads. After a restart it leads on in the stored term: nobody else can have led in
it. For the same reason its stored table is a committed one, published before any report comes in:
the dataplane is right from the first message on. In a cluster a stored table may have been
overtaken, so a restarted LB publishes nothing before it has heard a leader, and the dataplane goes
on by its maps.

**Quorum lost.** Who hears no leader keeps the table as it is: the dataplane forwards by it and
masks what dies meanwhile. Leases lapse by themselves. `state` says so, and `quorum.lost.` is
published.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bus.orders import Asked
from bus.peer_protocol import (
    Ack,
    Beat,
    Go,
    Grant,
    MemberAsked,
    OrderAnswered,
    OrderAsked,
    PeerMessage,
    PreVote,
    Release,
    ViewReport,
    Vote,
    VoteReply,
)
from bus.states import CommittedTable, LocalView, NodeTable, QuorumState
from bus.topics import Topic
from bus.words import MemberChange, Role
from services.quorum.composition import QuorumConfig, compose
from services.quorum.durable import HardState, Persist
from services.quorum.election import Outgoing
from services.quorum.membership import Wish, find
from services.quorum.news import Event
from services.quorum.ownership import Standing
from services.quorum.waiting import Answer


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
        parts = compose(config, stored, hash_seed, now_ms, boot, draw, self._accept)
        self._own, self._roster = parts.own, parts.roster
        self._register, self._election = parts.register, parts.election
        self._disk, self._outbox = parts.disk, parts.outbox
        self._reports, self._staging, self._desks = parts.reports, parts.staging, parts.desks
        self._grants, self._proposer = parts.grants, parts.proposer
        self._opening = parts.opening
        self._leading, self._following = parts.leading, parts.following
        self._seen, self._news = parts.seen, parts.news
        self.faults: Counter[str] = Counter()
        """What peers did that this LB ignores, by reason."""
        self._table_version = 1 if self._register.committed is not None else 0
        self._state_version = 0
        self._unpublished = self._register.committed is not None
        self._go_by_members(now_ms)
        self.tick(now_ms)

    # ------------------------------------------------------------------ what happened

    def report(self, boot: str, view: LocalView, now_ms: int, age_ms: int = 0) -> None:
        """This LB's health process saw its nodes like this `age_ms` ago."""
        made_ms = now_ms - age_ms
        if self._reports.own.report(boot, view, now_ms, made_ms):
            self._take_report(self._own.name, boot, view, now_ms, made_ms)
            self._following.send_view(None, now_ms)
            self._leading.propose(now_ms)

    def hear_health(self, now_ms: int) -> None:
        """This LB's health process has said that its last view holds."""
        self._reports.own.hear(now_ms)

    def stand(self, why_not: tuple[str, ...], fitness: int, now_ms: int) -> None:
        """Why this LB may hold no VIPs (nothing: it may), and how well it would if nobody may."""
        own = self._own
        if (own.why_not, own.standing.fitness) != (why_not, fitness):
            was, own.standing, own.why_not = own.standing, Standing(not why_not, fitness), why_not
            self._proposer.stale = True
            if was.eligible and why_not:
                self._grants.give_up(now_ms)
            self._following.answer_again(now_ms)
            self._leading.propose(now_ms)

    def reconfigure(self, config: QuorumConfig, now_ms: int) -> None:
        """The file was read again, or more is known of what it lists. The name stays, and whether
        this LB decides alone.
        """
        self._own.witness = config.witness
        self._election.configure(config.timing)
        self._reports.settle_ms = config.settle_ms
        self._proposer.slot_reuse_ms = config.slot_reuse_ms
        self._opening.grace_ms = config.grace_ms
        self._state_version += 1
        if self._staging.stage(config.table, witness=config.witness):
            self._news.staged()
        if config.others and not self._roster.alone:
            self._roster.relist(config.others)
            self._roster.listing.stage(config.entries, config.target or config.entries)
            self._go_by_members(now_ms)
        self._proposer.stale = True
        self._leading.propose(now_ms)

    def commit_staged(self, now_ms: int) -> None:
        """An operator wants this LB's file to hold though not every LB has staged the same.

        Raises ValueError, in words, if that is not for this LB to decide.
        """
        if not self._leading.is_so:
            raise ValueError(f"{self._election.leader or 'nobody'} leads: ask there")
        self._staging.insist([other.staged for other in self._roster.others.values()])
        self._proposer.stale = True
        self._leading.propose(now_ms)

    def order(self, number: str, asked: Asked, now_ms: int) -> None:
        """An operator wants this; `number` names the command. It is answered in `Ready.answers`."""
        self._desks.order(number, asked, None, now_ms)
        self._leading.take_orders(now_ms)
        self._after(now_ms)

    def change_members(self, number: str, change: MemberChange, address: str, now_ms: int) -> None:
        """An operator wants this LB to be a member, or to be none; answered as an order is.

        Raises ValueError, in words, if nothing can come of it.
        """
        if self._roster.alone:
            raise ValueError(
                "this LB decides alone; with others: list them in its file and restart gale:quorum"
            )
        if self._election.leader is None:
            raise ValueError("no leader is heard: nothing can be agreed on")
        self._desks.change(number, Wish(change, address), None, now_ms)
        self._proposer.stale = True
        self._after(now_ms)

    def entry_of(self, who: str, others: Mapping[str, str]) -> str:
        """The entry of whoever an operator calls so, among the members and then `others`.

        Raises ValueError, in words.
        """
        return find(who, self._seen.names(), others)

    def receive(self, peer: str, message: PeerMessage, now_ms: int) -> None:
        """A member, known by its address, says this."""
        if peer in self._leading.parting:
            self._leading.hear_parting(peer, message)
            return
        is_known = peer in self._roster.others
        if not is_known or message.sender == self._own.name:
            self.faults["our name" if is_known else "stranger"] += 1
            return
        self._proposer.stale |= self._roster.hear(peer, message.sender, now_ms)
        handle: dict[type[PeerMessage], Callable[..., None]] = {
            PreVote: self._election.pre_vote,
            Vote: self._election.asked_for_vote,
            VoteReply: self._on_vote_reply,
            Beat: self._on_beat,
            Ack: self._leading.acknowledged,
            Grant: self._on_grant,
            Release: self._on_release,
            Go: self._on_go,
            ViewReport: self._on_view,
            OrderAsked: self._leading.asked_for_order,
            OrderAnswered: self._on_order_answered,
            MemberAsked: self._leading.asked_for_member,
        }
        handle[type(message)](peer, message, now_ms)
        self._after(now_ms)

    def stored(self, mark: int, now_ms: int) -> None:
        """The hard state of that number is on the disk."""
        is_news = self._disk.stored(mark)
        self.stall("")
        self._election.durable(mark, now_ms)
        if is_news:
            self._following.answer_again(now_ms)
        self._after(now_ms)

    def tick(self, now_ms: int) -> None:
        """It is `now_ms`; call this at `next_due_ms` at the latest."""
        self._proposer.stale |= self._reports.settle(now_ms)
        self._desks.tick(now_ms)
        self._election.tick(now_ms)
        if self._disk.writing_for_ms(now_ms) >= self._election.timing.promise_ms:
            self._election.stall(now_ms)
        self._after(now_ms)

    def lagged(self, lag_ms: int) -> None:
        """This loop was late by so much: beats may be waiting for it."""
        self._election.lagged(lag_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never, as things stand."""
        on = self._leaders_entry is not None
        due = [
            self._leading.next_due_ms(),
            self._reports.next_due_ms(),
            self._election.next_due_ms(),
            self._grants.next_due_ms(),
            self._desks.next_due_ms(passes_on=on),
        ]
        return min((each for each in due if each is not None), default=None)

    def stall(self, reason: str) -> None:
        """What was to be persisted did not get there: nothing moves until it does."""
        if reason != self._disk.stalled:
            self._disk.stalled = reason
            self._state_version += 1

    def hand_over(self, now_ms: int) -> str:
        """Lead no more, for the sake of the most current member; its name, or why not: raises."""
        entry = self._leading.hand_over(now_ms)
        self._after(now_ms)
        return self._roster.others[entry].name

    # ------------------------------------------------------------------ what to do about it

    def take(self, now_ms: int) -> Ready | None:
        """What is to be done now; each thing is given out once. None: nothing."""
        persist = self._disk.next_persist(now_ms)
        committed = self.committed(now_ms) if self._unpublished else None
        self._unpublished = False
        events = self._news.take()
        claims = self._grants.new_claims(now_ms)
        self._outbox.collect(self._election.outbox)
        self._election.outbox.clear()
        sends = self._outbox.take(self._disk.durable_mark)
        ready = Ready(persist, committed, events, claims, sends, self._desks.take_answers())
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
        return self._leading.is_so or self._election.leader is not None

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
        return self._staging.own

    @property
    def is_founded(self) -> bool:
        """Whether a table says who the members are; until then the list of this start does."""
        return self._roster.is_founded

    @property
    def entries(self) -> tuple[str, ...]:
        """Whom this LB is to hear and speak to, itself among them; the agreed ones come first."""
        return tuple(dict.fromkeys((*self._roster.entries, *self._leading.parting)))

    def lease_ms(self, now_ms: int) -> int:
        """What is left of this LB's lease as the leader."""
        return max(0, self._election.lease_until_ms(now_ms) - now_ms)

    def state(self, now_ms: int) -> QuorumState:
        """This LB's part in the agreement, for people."""
        won, stalled = self._news.elections_won, self._disk.stalled
        return self._seen.state(self._state_version, won, stalled, now_ms)

    # ------------------------------------------------------------------ messages

    def _on_vote_reply(self, peer: str, message: VoteReply, now_ms: int) -> None:
        self._election.saw_term(message.term, now_ms)
        if message.table is not None and not self._leading.is_so:
            take = self._accept if message.has_table else self._register.begin_with
            take(message.table, now_ms)
        self._election.vote_reply(peer, message, now_ms)

    def _on_beat(self, peer: str, message: Beat, now_ms: int) -> None:
        if not self._following.beat(peer, message, now_ms):
            self.faults["old term"] += 1

    def _on_grant(self, _peer: str, message: Grant, _now_ms: int) -> None:
        self._grants.take(message)

    def _on_release(self, _peer: str, message: Release, _now_ms: int) -> None:
        self._leading.released(message)

    def _on_go(self, _peer: str, message: Go, now_ms: int) -> None:
        self._election.chosen(message, now_ms)

    def _on_view(self, _peer: str, message: ViewReport, now_ms: int) -> None:
        made_ms = now_ms - message.age_ms
        self._take_report(message.sender, message.boot, message.view, now_ms, made_ms)

    def _on_order_answered(self, _peer: str, message: OrderAnswered, _now_ms: int) -> None:
        self._desks.answered(message)

    def _take_report(self, lb: str, boot: str, view: LocalView, now_ms: int, made_ms: int) -> None:
        self._proposer.stale |= self._reports.take(lb, boot, view, now_ms, made_ms)

    # ------------------------------------------------------------------ what follows from it

    def _after(self, now_ms: int) -> None:
        """What may have become possible by whatever has just happened."""
        won, self._election.won = self._election.won, None
        if won is not None:
            self._leading.begin(won.unknown_ms, now_ms)
            self._news.leads(won.reason)
            self._state_version += 1
        if self._news.look_who_leads():
            self._state_version += 1
            self._desks.lead_ended()
            self._leading.end()
        self._leading.look_at_copies(now_ms)
        self._look_what_is_committed(now_ms)
        self._leading.propose(now_ms)
        self._desks.pass_on(self._leaders_entry, now_ms)
        self._leading.send_beats(now_ms)

    @property
    def _leaders_entry(self) -> str | None:
        """Of another LB that leads, if it is known."""
        return self._roster.entry_called(self._election.leader)

    def _accept(self, table: NodeTable, now_ms: int) -> None:
        """A leader's table, this LB's own or another's, if it is newer than what this LB has."""
        if self._register.accept(table, now_ms):
            self._election.table_changed()
            self._go_by_members(now_ms)

    def _go_by_members(self, now_ms: int) -> None:
        """The newest table may say that others agree than before."""
        gone = self._roster.go_by_newest(now_ms)
        self._leading.members_changed(gone, now_ms)
        for name in gone.values():
            self._reports.forget(name)
        if not self._roster.is_member and self._grants.held.until_ms:
            self._grants.give_up(now_ms)

    def _look_what_is_committed(self, now_ms: int) -> None:
        """What all go by from now on, if that is another table than before and on this disk."""
        known = self._register.committed
        held = self._register.take_committed()
        if held is None:
            return
        before, table = known.table if known is not None else None, held.table
        self._election.has_stored_committed()
        config = self._staging.committed(before, table)
        self._news.committed(before, table, config=config)
        self._desks.committed(table)
        self._roster.committed(before, table, now_ms)
        self._roster.listing.committed(table)
        self._table_version += 1
        self._state_version += 1
        self._unpublished = True
