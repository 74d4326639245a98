"""Who leads: Raft's election with a question before it, and a leader's lease. Pure.

    from             on                                                  to
    ─────────────────────────────────────────────────────────────────────────────────────
    FOLLOWER         no beat for longer than was promised                PRE_CANDIDATE
    PRE_CANDIDATE    a majority would elect it                           CANDIDATE, term + 1
    CANDIDATE        a majority has elected it                           LEADER
    FOLLOWER         its leader has chosen it and ended its lease        CANDIDATE, term + 1
    PRE_/CANDIDATE   nobody won in time                                  PRE_CANDIDATE
    any but LEADER   a beat of this term's leader                        FOLLOWER
    any              a larger term                                       FOLLOWER
    LEADER           a majority has not answered within a promise        FOLLOWER
    LEADER           it has handed over, or its disk does not answer     FOLLOWER

Raft (Ongaro, 2014) without a log: what is agreed on is one table, whose version takes the place of
the log's last entry. Pre-vote (§9.6) keeps an LB that was cut off from deposing a working leader
with its larger term; check-quorum (§6.2) ends a leader that hears no majority.

**A promise.** Whoever takes a beat elects nobody else for `promise_ms`, whatever term is offered:
so a majority that answered a beat guarantees the leader `lease_ms` from when it *sent* that (see
`timing`). A leader votes for another only once its own lease is over, also if it stopped leading
before: what it has granted lasts as long. After a start nobody knows what was promised before, so
no vote is given for as long as the longest promise that is on record, or could be. A `Vote` that
names a leader which resigned is the exception: that leader has no lease, and whoever it chose waits
for the end of what it has granted.

**A blank LB** has no memory of this cluster on its disk: it is new, or it has forgotten how it
voted and what it had accepted. It votes only once it has stored a committed table; or, at the first
start of a cluster, if all the others have told it, in answer to a question of this start of its
process, that they have no table either (so none was ever committed), and then only in terms larger
than all of theirs (so it has never voted in one). The same answers tell it what the first table is
to be made of, so whoever leads first knows.

**Partial connections.** A voter that knows a newer table than the candidate sends it along, so an
LB that alone reaches a majority can catch up from those that it reaches, and is elected.

**Too many changes.** Three changes of leader in a minute mean that the network, or somebody's
scheduler, is slower than the timing: everything takes twice as long then, up to eight times, and
half as long again for every minute that is quiet. A loop that was late itself accuses nobody:
`lagged` gives the leader that much more time.

In: messages, `tick`, and `durable`, since a vote counts, its own too, only when it is on the disk.
Out: `outbox`, in which every message names the hard state that must be durable before it goes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum, auto

from bus.peer_protocol import (
    Ack,
    Beat,
    Go,
    PeerMessage,
    PreVote,
    Version,
    Vote,
    VoteReply,
)
from bus.words import LARGEST_PROMISE_MS, Role
from services.quorum.register import Register, version_of
from services.quorum.timing import LARGEST_FACTOR, Timing


class Cause(Enum):
    """Why a role changes."""

    SILENCE = auto()
    WOULD_WIN = auto()
    WON = auto()
    CHOSEN = auto()
    ALONE = auto()
    LEADER_HEARD = auto()
    LARGER_TERM = auto()
    MAJORITY_LOST = auto()
    HANDED_OVER = auto()
    STALLED = auto()


TRANSITIONS: dict[tuple[Role, Cause], Role] = {
    (Role.FOLLOWER, Cause.SILENCE): Role.PRE_CANDIDATE,
    (Role.PRE_CANDIDATE, Cause.SILENCE): Role.PRE_CANDIDATE,
    (Role.CANDIDATE, Cause.SILENCE): Role.PRE_CANDIDATE,
    (Role.PRE_CANDIDATE, Cause.WOULD_WIN): Role.CANDIDATE,
    (Role.CANDIDATE, Cause.WON): Role.LEADER,
    (Role.FOLLOWER, Cause.CHOSEN): Role.CANDIDATE,
    (Role.FOLLOWER, Cause.ALONE): Role.LEADER,
    (Role.FOLLOWER, Cause.LEADER_HEARD): Role.FOLLOWER,
    (Role.PRE_CANDIDATE, Cause.LEADER_HEARD): Role.FOLLOWER,
    (Role.CANDIDATE, Cause.LEADER_HEARD): Role.FOLLOWER,
    (Role.FOLLOWER, Cause.LARGER_TERM): Role.FOLLOWER,
    (Role.PRE_CANDIDATE, Cause.LARGER_TERM): Role.FOLLOWER,
    (Role.CANDIDATE, Cause.LARGER_TERM): Role.FOLLOWER,
    (Role.LEADER, Cause.LARGER_TERM): Role.FOLLOWER,
    (Role.LEADER, Cause.MAJORITY_LOST): Role.FOLLOWER,
    (Role.LEADER, Cause.HANDED_OVER): Role.FOLLOWER,
    (Role.LEADER, Cause.STALLED): Role.FOLLOWER,
}

CHANGES_PER_MINUTE = 3
MINUTE_MS = 60_000


class IllegalTransitionError(RuntimeError):
    """A change of role that the table above does not have: a fault of this program."""


@dataclass(frozen=True, slots=True)
class Outgoing:
    """A message, and the number of the hard state that must be on the disk before it goes."""

    to: str
    message: PeerMessage
    mark: int


@dataclass(frozen=True, slots=True)
class Won:
    """Why this LB leads in the present term."""

    reason: str
    unknown_ms: int
    """For so long leases may be about that the leader before has granted, if that one chose it."""


class Election:
    """One LB's part in it. The register's accepted table is what votes go by."""

    def __init__(
        self,
        name: str,
        others: tuple[str, ...],
        timing: Timing,
        register: Register,
        boot: str,
        draw: Callable[[], float],
        now_ms: int,
    ) -> None:
        """`others`: the addresses of the other members. `boot` names this start of the process.
        `draw`: random numbers from 0 to 1.
        """
        self.name, self._others = name, others
        self._register = register
        self._configured = self.timing = self._wanted_timing = timing
        self._timing_mark = 0
        """Of the record that the wanted timing needs."""
        self._draw = draw
        self.role = Role.FOLLOWER
        self.term, self.vote = 0, None  # type: int, str | None
        self.leader: str | None = None
        self.mark = 0
        """The number of the hard state as it is now; rises with every change of it."""
        self.promise_ms = 0
        """The longest promise ever given: a part of the hard state."""
        self.term_mark = 0
        """Of the last change of term, vote or promise: what most messages have to wait for."""
        self.outbox: list[Outgoing] = []
        self.won: Won | None = None
        """Set when it becomes leader, for the caller to take."""
        self.is_blank = False
        self.only_votes = False
        """A witness, or who is no member, asks who would elect it, to learn what the others have,
        and goes no further."""
        self._boot = boot
        self._tableless: dict[str, int] = {}
        """Of the members that told a blank LB that they have no table: the largest term."""
        self._vote_mark = 0
        self._durable_mark = 0
        self._promised_until_ms = now_ms
        self._deadline_ms = now_ms
        self._votes: set[str] = set()
        self._reason = ""
        self._resigned: str | None = None
        self._resigned_left_ms = 0
        """What was left of the leases which that one had granted."""
        self._seq = 0
        self._sent: deque[tuple[int, int, int]] = deque()
        """Of each recent beat: its number, when it went, and until when its promises let lead."""
        self._heard_ms: dict[str, int] = {}
        """By member, when the newest beat went that it has acknowledged."""
        self._promised_ms: dict[str, int] = {}
        """By member, until when its promises let lead."""
        self._led_since_ms = now_ms
        self._changes_ms: deque[int] = deque()
        self._last_leader: str | None = None
        self._factor, self._factor_since_ms = 1, now_ms

    def restore(
        self, term: int, vote: str | None, promise_ms: int, now_ms: int, *, blank: bool
    ) -> None:
        """Begin with what is on the disk."""
        self.term, self.vote, self.promise_ms, self.is_blank = term, vote, promise_ms, blank
        hold_ms = promise_ms or LARGEST_PROMISE_MS
        self._promised_until_ms = now_ms + (hold_ms if self._others else 0)
        self._deadline_ms = self._promised_until_ms + self._timeout_ms(0)
        if not self._others:
            self._deadline_ms = now_ms

    def change_members(self, others: tuple[str, ...], now_ms: int) -> None:
        """From now on these are the other members: whoever is none counts for nothing.

        The lease that the promises of before made lasts: until it is over this LB, whose promises
        count by either list, votes for nobody.
        """
        if others == self._others:
            return
        self._promised_until_ms = max(self._promised_until_ms, self.lease_until_ms(now_ms))
        self._others = others
        self._votes &= set(others)
        for known in (self._heard_ms, self._promised_ms, self._tableless):
            for peer in known.keys() - set(others):
                del known[peer]

    # ------------------------------------------------------------------ time

    def tick(self, now_ms: int) -> None:
        self._calm_down(now_ms)
        if self.role is Role.LEADER:
            if self._others and now_ms >= self._heard_majority_ms() + self.timing.promise_ms:
                self._follow(Cause.MAJORITY_LOST, now_ms)
        elif now_ms >= self._deadline_ms and not self._waits_for_disk():
            self._stand(now_ms)

    def next_due_ms(self) -> int | None:
        if self.role is not Role.LEADER:
            return None if self._waits_for_disk() else self._deadline_ms
        return self._heard_majority_ms() + self.timing.promise_ms if self._others else None

    def _waits_for_disk(self) -> bool:
        """A quorum of one has its only vote, once that is stored."""
        return not self._others and self.role is Role.CANDIDATE

    def lagged(self, lag_ms: int) -> None:
        """This loop was late by so much: beats may be waiting for it."""
        if self.role is not Role.LEADER:
            self._deadline_ms += lag_ms

    def durable(self, mark: int, now_ms: int) -> None:
        """The hard state of that number, or a newer one, is on the disk."""
        self._durable_mark = max(self._durable_mark, mark)
        if self._durable_mark >= self._timing_mark:
            self.timing = self._wanted_timing
        self._count_votes(now_ms)

    @property
    def majority(self) -> int:
        return (len(self._others) + 1) // 2 + 1

    def lease_until_ms(self, now_ms: int) -> int:
        """Until when this LB is the only one that leads; in the past: it may not be."""
        if self.role is not Role.LEADER:
            return now_ms - 1
        if not self._others:
            return now_ms + self.timing.lease_ms
        needed = self.majority - 1
        promised = sorted(self._promised_ms.values(), reverse=True)
        return promised[needed - 1] if len(promised) >= needed else now_ms - 1

    def has_lease(self, now_ms: int) -> bool:
        return now_ms < self.lease_until_ms(now_ms)

    # ------------------------------------------------------------------ standing for election

    def _stand(self, now_ms: int) -> None:
        self._deadline_ms = now_ms + self._timeout_ms(self.timing.promise_ms)
        if not self._others and self.vote == self.name:
            # Nobody else can have led in that term, and what was agreed in it is on the disk.
            self._enter(Cause.ALONE)
            self._lead("a quorum of one: leads on in the term of before its restart", now_ms)
            return
        self._enter(Cause.SILENCE)
        self.leader = None
        self._resigned = None
        self._votes = set()
        self._reason = "the leader was not heard" if self._others else "a quorum of one"
        if not self._others:
            self._ask_for_votes(Cause.WOULD_WIN, now_ms)
            return
        accepted = version_of(self._register.accepted)
        question = PreVote(self.name, self.term + 1, accepted, self._boot)
        self._send_all(question, 0)

    def chosen(self, message: Go, now_ms: int) -> None:
        """The leader has resigned for the sake of this LB."""
        is_leader = message.term == self.term and message.sender == self.leader
        can_lead = not self.is_blank and not self.only_votes
        if self.role is Role.FOLLOWER and is_leader and can_lead:
            self._resigned, self._resigned_left_ms = message.sender, message.left_ms
            self._reason = f"{message.sender} handed over"
            self._ask_for_votes(Cause.CHOSEN, now_ms)

    def _ask_for_votes(self, cause: Cause, now_ms: int) -> None:
        self._enter(cause)
        self.term += 1
        self.vote, self.leader = self.name, None
        self._votes = set()
        self._joined()
        if self._others:
            self.promise_ms = max(self.promise_ms, self.timing.promise_ms)
        self._vote_mark = self._change()
        self._deadline_ms = now_ms + self._timeout_ms(self.timing.promise_ms)
        accepted = version_of(self._register.accepted)
        asking = Vote(self.name, self.term, accepted, self._resigned)
        self._send_all(asking, self._vote_mark)

    def _count_votes(self, now_ms: int) -> None:
        if self.role is Role.PRE_CANDIDATE and len(self._votes) + 1 >= self.majority:
            if not self.only_votes and self._may_vote(self.term + 1, now_ms):
                self._ask_for_votes(Cause.WOULD_WIN, now_ms)
        elif self._has_won():
            self._enter(Cause.WON)
            self._lead(self._reason, now_ms)

    def _has_won(self) -> bool:
        """Its own vote counts once it is on the disk."""
        is_stored = self._durable_mark >= self._vote_mark
        votes = len(self._votes) + is_stored
        has_enough = is_stored and votes >= self.majority
        return self.role is Role.CANDIDATE and has_enough and not self.only_votes

    def _lead(self, reason: str, now_ms: int) -> None:
        self.leader = self.name
        self._heard_ms.clear()
        self._promised_ms.clear()
        self._sent.clear()
        self._led_since_ms = now_ms
        self._note_leader(self.name, now_ms)
        unknown_ms = 0
        if self._resigned is not None:
            unknown_ms = max(self.timing.lease_ms, self._resigned_left_ms)
        self.won = Won(reason, unknown_ms)

    # ------------------------------------------------------------------ voting

    def pre_vote(self, peer: str, message: PreVote, now_ms: int) -> None:
        granted = (
            message.term > self.term
            and self._may_vote(message.term, now_ms)
            and message.accepted >= version_of(self._register.accepted)
        )
        self._reply(peer, message.term, message.accepted, granted, 0, message.boot)

    def asked_for_vote(self, peer: str, message: Vote, now_ms: int) -> None:
        follows = (
            message.resigned is not None
            and message.resigned == self.leader
            and message.term == self.term + 1
            and not self.is_blank
        )
        if message.term < self.term or not (follows or self._may_vote(message.term, now_ms)):
            self._reply(peer, message.term, message.accepted, granted=False, mark=0)
            return
        if message.term > self.term:
            self._adopt(message.term, now_ms)
        granted = (
            self.role is Role.FOLLOWER
            and self.vote in (None, message.sender)
            and message.accepted >= version_of(self._register.accepted)
        )
        if granted:
            if self.vote is None:
                self.vote = message.sender
                self._joined()
                self._change()
            self._deadline_ms = now_ms + self._timeout_ms(self.timing.promise_ms)
        self._reply(peer, message.term, message.accepted, granted, self.term_mark)

    def vote_reply(self, peer: str, message: VoteReply, now_ms: int) -> None:
        if peer in self._others and message.boot == self._boot and not message.has_table:
            self._tableless[peer] = max(self._tableless.get(peer, 0), message.term)
        elif message.has_table:
            self._tableless.pop(peer, None)
        if message.term > self.term:
            self._adopt(message.term, now_ms)
            return
        is_pre = bool(message.boot)
        asked = self.term + is_pre
        wanted = Role.PRE_CANDIDATE if is_pre else Role.CANDIDATE
        counts = message.granted and peer in self._others
        if self.role is wanted and message.asked == asked and counts:
            self._votes.add(peer)
            self._count_votes(now_ms)

    def _may_vote(self, term: int, now_ms: int) -> bool:
        if now_ms < self._promised_until_ms or self.has_lease(now_ms):
            return False
        if not self.is_blank:
            return True
        return all(term > self._tableless.get(peer, term) for peer in self._others)

    def _joined(self) -> None:
        """From now on this LB's disk remembers."""
        self.is_blank = False

    def _reply(
        self, peer: str, asked: int, accepted: Version, granted: bool, mark: int, boot: str = ""
    ) -> None:
        has_table = self._register.accepted is not None
        own = self._register.accepted or self._register.first
        newer = own.table if own is not None and own.version > accepted else None
        reply = VoteReply(self.name, self.term, asked, granted, boot, has_table, newer)
        self.outbox.append(Outgoing(peer, reply, mark))

    # ------------------------------------------------------------------ leading and following

    def next_beat(self, now_ms: int) -> int:
        """The number of the beat that goes to all members now."""
        self._seq += 1
        self._sent.append((self._seq, now_ms, now_ms + self.timing.lease_ms))
        while self._sent[0][1] < now_ms - LARGEST_PROMISE_MS:
            self._sent.popleft()
        return self._seq

    def beat(self, message: Beat, now_ms: int) -> bool:
        """Whether it is the leader's, and so is promised what it asks for."""
        if message.term < self.term:
            return False
        if message.term > self.term:
            self._adopt(message.term, now_ms)
        if self.role is Role.LEADER:
            return False  # of another cluster, or of a member that counts other members
        self._enter(Cause.LEADER_HEARD)
        self.leader = message.sender
        self._note_leader(message.sender, now_ms)
        if message.promise_ms > self.promise_ms:
            self.promise_ms = message.promise_ms
            self._change()
        self._promised_until_ms = max(self._promised_until_ms, now_ms + message.promise_ms)
        self._deadline_ms = now_ms + self._timeout_ms(message.promise_ms)
        return True

    def ack(self, peer: str, message: Ack, now_ms: int) -> bool:
        """Whether it answers a beat of this term."""
        if message.term > self.term:
            self._adopt(message.term, now_ms)
        if self.role is not Role.LEADER or message.term != self.term:
            return False
        if peer not in self._others:
            return False
        for seq, sent_ms, until_ms in self._sent:
            if seq == message.seq:
                self._heard_ms[peer] = max(self._heard_ms.get(peer, sent_ms), sent_ms)
                known_ms = self._promised_ms.get(peer, until_ms)
                self._promised_ms[peer] = max(known_ms, until_ms)
        return True

    def heard_ms(self, peer: str) -> int | None:
        """When the newest beat went that the member has acknowledged in this term."""
        return self._heard_ms.get(peer)

    def stall(self, now_ms: int) -> None:
        """The disk does not answer: who cannot store anything must not lead."""
        if self.role is Role.LEADER and self._others:
            self._follow(Cause.STALLED, now_ms)

    def hand_over(self, now_ms: int) -> None:
        """End this LB's lease; the caller has seen to it that nothing rests on it any more."""
        self._follow(Cause.HANDED_OVER, now_ms)
        self.leader = self.name  # whom the successor names in its `Vote`

    def saw_term(self, term: int, now_ms: int) -> None:
        """A larger term is about: nobody leads in a smaller one any more."""
        if term > self.term:
            self._adopt(term, now_ms)

    def has_stored_committed(self) -> None:
        """A table that is committed is on this disk."""
        if self.is_blank:
            self._joined()
            self._change()

    def _heard_majority_ms(self) -> int:
        """When the newest beat went that a majority has acknowledged, or since when it leads."""
        heard = sorted(self._heard_ms.values(), reverse=True)
        return heard[self.majority - 2] if len(heard) >= self.majority - 1 else self._led_since_ms

    def _adopt(self, term: int, now_ms: int) -> None:
        self.term, self.vote = term, None
        self._change()
        self._follow(Cause.LARGER_TERM, now_ms)

    def _follow(self, cause: Cause, now_ms: int) -> None:
        was_leader = self.role is Role.LEADER
        if was_leader:
            lease_until_ms = self.lease_until_ms(now_ms)
            self._promised_until_ms = max(self._promised_until_ms, lease_until_ms)
        self._enter(cause)
        self.leader = None
        if was_leader:
            self._deadline_ms = now_ms + self._timeout_ms(self.timing.promise_ms)

    def _enter(self, cause: Cause) -> None:
        role = TRANSITIONS.get((self.role, cause))
        if role is None:
            raise IllegalTransitionError(f"{self.role.value}: {cause.name.lower()}")
        self.role = role

    def _change(self) -> int:
        self.mark += 1
        self.term_mark = self.mark
        return self.mark

    def table_changed(self) -> None:
        """A table was accepted: the hard state is another."""
        self.mark += 1

    def _send_all(self, message: PeerMessage, mark: int) -> None:
        self.outbox += [Outgoing(peer, message, mark) for peer in self._others]

    def _timeout_ms(self, promise_ms: int) -> int:
        return self.timing.election_ms(promise_ms, self._draw())

    # ------------------------------------------------------------------ too many changes

    def configure(self, timing: Timing) -> None:
        self._configured = timing
        self._go_by(timing.slower(self._factor))

    def _go_by(self, timing: Timing) -> None:
        """At once; or, where it promises more than is on record, when that is on the disk.

        An LB that has led, and starts again, votes for nobody until all is over that it may have
        granted: it must find there how long that was.
        """
        self._wanted_timing = timing
        known_ms = max(self.promise_ms, self.timing.promise_ms)
        if not self._others or timing.promise_ms <= known_ms:
            self.timing = timing
        else:
            self.promise_ms = timing.promise_ms
            self._timing_mark = self._change()

    def _note_leader(self, name: str, now_ms: int) -> None:
        if name == self._last_leader:
            return
        self._last_leader = name
        self._changes_ms.append(now_ms)
        while self._changes_ms[0] <= now_ms - MINUTE_MS:
            self._changes_ms.popleft()
        if len(self._changes_ms) >= CHANGES_PER_MINUTE:
            self._changes_ms.clear()
            self._slow_down(min(2 * self._factor, LARGEST_FACTOR), now_ms)

    def _calm_down(self, now_ms: int) -> None:
        if self._factor > 1 and now_ms >= self._factor_since_ms + MINUTE_MS:
            self._slow_down(self._factor // 2, now_ms)

    def _slow_down(self, factor: int, now_ms: int) -> None:
        self._factor, self._factor_since_ms = factor, now_ms
        self._go_by(self._configured.slower(factor))
