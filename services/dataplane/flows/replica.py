"""Flow replication's conversations: who has been told what, and what to do about holes. Pure.

The words are those of `bus.replica_protocol`. Everything here is either part of one conversation
with one peer: the `Teller` has a `Log` of what has happened, and for each follower a `Telling`; the
follower has a `Following` for each teller. Time comes in; messages come in and go out; tables are
read and written by whoever calls.

**Order.** What happens gets numbers without holes within the teller's boot. A follower enters only
what comes next; what it has is passed over, and where something is missing it asks once, and waits
for that. The log keeps the newest `LOG_BYTES`: who asks for older numbers gets a snapshot.

**Snapshot.** The table, part by part, beside what happens meanwhile: an entry that is told twice is
entered twice, which changes nothing, since the table knows which word is the later. The follower
says in its Hello which part comes next, so a snapshot goes on where a broken connection stopped it.

**Credits.** A teller sends only as many messages with records as the follower has allowed, what
happens first. So neither side's queues grow, whatever the other side does: the log forgets, and the
follower will need a snapshot.

**Restart.** A teller that starts again has another boot, and its followers begin with a snapshot. A
follower that starts again says what it had entered last, which outlives it beside the table.

**Synced.** An LB is synced when it has the flows that any live, synced peer had: `Sync` waits for
the snapshots of those that say they are synced, for whoever says nothing `SILENCE_MS`, and in all
no longer than `PATIENCE_MS`.

**Lag** is what the follower has not acknowledged yet: the time since the oldest of it came to be
told. It is measured by the teller's clock alone, on the way there and back.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from bus.replica_protocol import (
    NO_POSITION,
    REPLICA_VERSION,
    Credit,
    Hello,
    Live,
    Mended,
    Part,
    Refused,
    ReplicaMessage,
    Resume,
    Welcome,
)

LOG_BYTES = 16 << 20
"""Some 190,000 records: four seconds at 50,000 a second."""
CREDITS = 32
"""Messages with records that may be under way; fewer than a socket queues."""
RESUME_MS = 500
"""After asking for what is missing, how long a follower waits before it asks again."""
HELLO_MS = 1_000
"""A follower that has heard nothing for so long says Hello (again)."""
KEEPALIVE_MS = 1_000
"""A teller that has nothing to tell says so."""
CUT_MS = 3_500
"""A teller that has not been heard for so long is not there any more."""
HELLO_FIRST = "say hello first"
"""Why a teller that has just started refuses whoever goes on with an earlier conversation."""
SILENCE_MS = 1_500
PATIENCE_MS = 5_000

Message = tuple[ReplicaMessage, bytes]


# --------------------------------------------------------------------------- what has happened


@dataclass(frozen=True, slots=True)
class Batch:
    """Records of one moment, numbered from `first` on."""

    first: int
    count: int
    tick: int
    due_ms: int
    """When the oldest of them came to be told."""
    records: bytes


class Log:
    """The newest of what has happened, bounded in memory."""

    def __init__(self, record_bytes: int, log_bytes: int = LOG_BYTES) -> None:
        self._record_bytes = record_bytes
        self._log_bytes = log_bytes
        self._batches: deque[Batch] = deque()
        self._held_bytes = 0
        self.next_seq = 0
        """The number that the next record gets."""

    @property
    def first_seq(self) -> int:
        """The oldest number that is kept."""
        return self._batches[0].first if self._batches else self.next_seq

    def append(self, records: bytes, tick: int, due_ms: int) -> None:
        count = len(records) // self._record_bytes
        self._batches.append(Batch(self.next_seq, count, tick, due_ms, records))
        self.next_seq += count
        self._held_bytes += len(records)
        while self._held_bytes > self._log_bytes:
            self._held_bytes -= len(self._batches.popleft().records)

    def lose(self) -> None:
        """Something has happened that nobody knows of: a number that nobody will be told."""
        self._batches.clear()
        self._held_bytes = 0
        self.next_seq += 1

    def batch_at(self, seq: int) -> Batch | None:
        """The one that has that number; None: it is forgotten, or nothing of it has happened."""
        if not self.first_seq <= seq < self.next_seq:
            return None
        # Mostly the last one is asked for.
        return next(batch for batch in reversed(self._batches) if batch.first <= seq)

    def oldest_due_ms(self, seq: int) -> int | None:
        """Since when what has that number has been to be told; None: all has been."""
        if seq >= self.next_seq:
            return None
        batch = self.batch_at(seq)
        return batch.due_ms if batch else (self._batches[0].due_ms if self._batches else None)


# --------------------------------------------------------------------------- the teller


@dataclass(frozen=True, slots=True)
class Teller:
    """Who tells: this LB, in this start of its process."""

    cluster: str
    lb: str
    boot: str


class Telling:
    """The teller's side of one conversation."""

    def __init__(self, log: Log, hello: Hello, me: Teller, now_ms: int) -> None:
        self.lb = hello.lb
        self._log = log
        self._me = me
        self._record_bytes = hello.record_bytes
        self._said_ms = now_ms
        boot = me.boot
        is_known = hello.known_boot == boot and log.first_seq <= hello.next_seq <= log.next_seq
        self._next_seq = hello.next_seq if is_known else log.next_seq
        self.acked_seq = self._next_seq
        """Everything before this has been entered there."""
        self.position: int = hello.position if is_known else 0
        """Which part of the table is sent next; NO_POSITION: none."""
        self._allowed = self._sent = 0
        self.snapshots = int(not is_known)
        self._is_welcome = False

    def heard(self, message: Credit | Resume) -> None:
        if isinstance(message, Credit):
            # Nobody can allow more than a follower does, or have entered what was never sent.
            self._allowed = max(self._allowed, min(message.allowed, self._sent + CREDITS))
            self.acked_seq = max(self.acked_seq, min(message.next_seq, self._next_seq))
        elif message.next_seq <= self._next_seq:
            self._next_seq = message.next_seq
            self.acked_seq = min(self.acked_seq, message.next_seq)

    def cut_short(self) -> None:
        """Another table stands there now: what was told of parts is about the one before."""
        if self.position != NO_POSITION:
            self._start_over()

    @property
    def _has_credit(self) -> bool:
        return self._sent < self._allowed

    def take_live(self, now_ms: int, tick: int, *, synced: bool) -> Iterator[Message]:
        """What has happened and may be sent now."""
        if self._log.batch_at(self._next_seq) is None and self._next_seq < self._log.next_seq:
            self._start_over()
        if not self._is_welcome:
            self._is_welcome = True
            self._said_ms = now_ms
            yield self._welcome(synced=synced), b""
        while self._has_credit and (batch := self._log.batch_at(self._next_seq)):
            skipped = self._next_seq - batch.first
            self._sent += 1
            self._said_ms = now_ms
            live = Live(self._next_seq, batch.tick, synced)
            self._next_seq = batch.first + batch.count
            yield live, batch.records[skipped * self._record_bytes :]
        if self._has_credit and now_ms >= self._said_ms + KEEPALIVE_MS:
            self._sent += 1
            self._said_ms = now_ms
            yield Live(self._next_seq, tick, synced), b""

    def _welcome(self, *, synced: bool) -> Welcome:
        me = self._me
        return Welcome(
            REPLICA_VERSION, me.cluster, me.lb, me.boot, self._next_seq, self.position, synced
        )

    def _start_over(self) -> None:
        """The log has forgotten what this follower needs: the whole table instead, as if it had
        said Hello just now.
        """
        self._next_seq = self.acked_seq = self._log.next_seq
        self.position = 0
        self._allowed = self._sent = 0
        self._is_welcome = False
        self.snapshots += 1

    @property
    def wants_part(self) -> bool:
        """Whether a part of the table may be sent now; `told_part` says which it was."""
        return self._has_credit and self.position != NO_POSITION

    def told_part(self, following: int, tick: int, records: bytes) -> Message:
        """The part at `position` has been read."""
        part = Part(self.position, following, tick)
        self.position = following
        self._sent += 1
        return part, records

    @property
    def may_mend(self) -> bool:
        return self._has_credit

    def told_mended(self, tick: int, records: bytes) -> Message:
        self._sent += 1
        return Mended(tick), records

    def lag_ms(self, now_ms: int) -> int:
        """How long the oldest of what has happened has not been entered there; 0: all has."""
        due_ms = self._log.oldest_due_ms(self.acked_seq)
        return 0 if due_ms is None else max(0, now_ms - due_ms)


# --------------------------------------------------------------------------- the follower


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a follower has come with a teller: what outlives its process."""

    boot: str
    next_seq: int
    position: int


NOTHING = Progress("", 0, 0)


@dataclass(frozen=True, slots=True)
class Entering:
    """Records to be entered: made at that tick of the teller's clock."""

    records: bytes
    tick: int


class Standing(StrEnum):
    """How a follower stands with a teller."""

    SILENT = "silent"
    REFUSED = "refused"
    CATCHING_UP = "catching up"
    LEVEL = "level"


class Following:
    """The follower's side of one conversation."""

    def __init__(
        self, cluster: str, lb: str, record_bytes: int, now_ms: int, known: Progress = NOTHING
    ) -> None:
        self._cluster = cluster
        self._lb = lb
        self._record_bytes = record_bytes
        self.progress = known
        self.standing = Standing.SILENT
        self.refusal = ""
        self.teller = ""
        """Its name; empty until it has spoken."""
        self.teller_synced = False
        self._is_welcome = False
        self._consumed = 0
        self._hello_ms = self._heard_ms = now_ms
        self._resume_ms: int | None = None
        self._is_owed = False
        self._out: list[ReplicaMessage] = []
        self.gaps = self.passed_over = self.snapshots = 0

    # ------------------------------------------------------------------ in

    def heard(self, message: ReplicaMessage, payload: bytes, now_ms: int) -> Entering | None:
        """What is to be entered because of it. Raises ValueError: no sense for a follower."""
        self._heard_ms, self._hello_ms = now_ms, now_ms + HELLO_MS
        match message:
            case Welcome():
                self._welcomed(message)
            case Refused() if message.reason == HELLO_FIRST:
                self.cut(now_ms)
            case Refused():
                self._is_welcome = False
                self.standing, self.refusal = Standing.REFUSED, message.reason
            case _ if not self._is_welcome:
                return None  # the end of an earlier conversation
            case Live():
                return self._live(message, payload, now_ms)
            case Part():
                return self._part(message, payload, now_ms)
            case Mended():
                self._consume()
                return Entering(payload, message.tick)
            case _:
                raise ValueError(f"a {type(message).__name__} is not for a follower")
        return None

    def _welcomed(self, message: Welcome) -> None:
        if message.cluster != self._cluster:
            self._is_welcome = False
            self.standing, self.refusal = Standing.REFUSED, f"of the cluster {message.cluster!r}"
            return
        self.teller, self.teller_synced, self.refusal = message.lb, message.synced, ""
        self.snapshots += message.position == 0
        self.progress = Progress(message.boot, message.next_seq, message.position)
        self._is_welcome, self._consumed, self._resume_ms = True, 0, None
        self._judge()
        self._is_owed = True

    def _live(self, message: Live, payload: bytes, now_ms: int) -> Entering | None:
        self._consume()
        self.teller_synced = message.synced
        count = len(payload) // self._record_bytes
        missing = message.first - self.progress.next_seq
        if missing > 0:
            if self._resume_ms is None or now_ms >= self._resume_ms:
                self.gaps += 1
                self._resume_ms = now_ms + RESUME_MS
                self._out.append(Resume(self.progress.next_seq))
            return None
        if -missing >= count:
            self.passed_over += count
            return None
        self._resume_ms = None
        self.passed_over -= missing
        following = message.first + count
        self.progress = Progress(self.progress.boot, following, self.progress.position)
        return Entering(payload[-missing * self._record_bytes :], message.tick)

    def _part(self, message: Part, payload: bytes, now_ms: int) -> Entering | None:
        self._consume()
        if message.position != self.progress.position:
            self.gaps += 1
            self.cut(now_ms)
            return None
        following = message.following
        self.progress = Progress(self.progress.boot, self.progress.next_seq, following)
        self._judge()
        return Entering(payload, message.tick)

    def _consume(self) -> None:
        self._consumed += 1
        self._is_owed = True

    def _judge(self) -> None:
        is_whole = self.progress.position == NO_POSITION
        self.standing = Standing.LEVEL if is_whole else Standing.CATCHING_UP

    # ------------------------------------------------------------------ out

    def take(self, now_ms: int, *, synced: bool) -> list[ReplicaMessage]:
        """What is to be sent. Call it after what `heard` gave has been entered."""
        out, self._out = self._out, []
        if self._is_welcome and now_ms >= self._heard_ms + CUT_MS:
            self.cut(now_ms)
        if now_ms >= self._hello_ms:
            self._hello_ms = now_ms + HELLO_MS
            if self._is_welcome:
                self._is_owed = True
            else:
                known = self.progress
                out.append(
                    Hello(
                        REPLICA_VERSION,
                        self._cluster,
                        self._lb,
                        known.boot,
                        known.next_seq,
                        known.position,
                        self._record_bytes,
                    )
                )
        if self._is_owed and self._is_welcome:
            self._is_owed = False
            out.append(Credit(self._consumed + CREDITS, self.progress.next_seq, synced))
        return out

    def cut(self, now_ms: int) -> None:
        """The connection is gone, or the teller has not been heard for long: begin anew."""
        self._is_welcome = False
        self.standing = Standing.SILENT
        self._hello_ms = now_ms

    @property
    def next_ms(self) -> int:
        return self._hello_ms


class Sync:
    """Whether this LB has the flows that any live, synced peer had."""

    def __init__(self, now_ms: int, others: int) -> None:
        """`others`: how many LBs there are besides this one."""
        self._begun_ms = now_ms
        self._others = others
        self.is_synced = False

    def begin(self, now_ms: int) -> None:
        """Only from now on anything can be heard and entered."""
        self._begun_ms = now_ms

    def look(self, peers: list[Following], now_ms: int) -> bool:
        """Once it is, it stays so: what comes later is lag."""
        waited_ms = now_ms - self._begun_ms
        heard = [peer for peer in peers if peer.standing is not Standing.SILENT]
        is_early = len(heard) < self._others and waited_ms < SILENCE_MS
        is_behind = any(
            peer.standing is Standing.CATCHING_UP and peer.teller_synced for peer in heard
        )
        self.is_synced |= waited_ms >= PATIENCE_MS or not (is_early or is_behind)
        return self.is_synced
