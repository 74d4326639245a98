"""What must be on the disk before anybody hears of it. Pure: the shell writes and sends.

    HardState    the term, the vote, the longest promise, the newest table that was accepted
    Disk         which hard state is on the disk, and which is on its way there
    Outbox       messages to other LBs, each with the hard state that it rests on

The election numbers hard states: each change of one makes a larger number (its *mark*). One is
written at a time, and the next one has whatever came meanwhile. A write may take as long as it
likes: beats, and answers that promise nothing new, go on meanwhile, since they rest on a state that
is stored. What rests on a newer one stays in the outbox until that is stored.

So a table is proposed, stored by a majority, and only then committed (`register`): what was
published was on this disk before, and a process killed between any two instructions starts again
with what it published, or newer.

**Failure.** When the disk does not answer the table stands still, and `stalled` says so to people;
a leader whose disk has not answered for as long as a promise lasts gives up its lead (`core`).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from bus.peer_protocol import PeerMessage
from bus.states import NodeTable
from services.quorum.election import Election, Outgoing
from services.quorum.register import Register, version_of


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
    first: NodeTable | None = None
    """In a cluster that has no table yet: what its first is to be made of."""


BLANK = HardState(0, None, None)


@dataclass(frozen=True, slots=True)
class Persist:
    """A hard state, and its number."""

    mark: int
    state: HardState


class Disk:
    """What is known of it. What the election and the register hold is what is to be stored."""

    def __init__(self, election: Election, register: Register, *, alone: bool) -> None:
        """`alone`: it is of a quorum of one. The register's stored table is on the disk."""
        self._election, self._register, self._alone = election, register, alone
        self._writing_since_ms: int | None = None
        self._being_stored = register.stored
        self.durable_mark = 0
        """The number of the newest hard state that is on the disk."""
        self.stalled = ""
        """Why what was to be persisted did not get there; empty: nothing is known to be wrong."""

    def next_persist(self, now_ms: int) -> Persist | None:
        """What is to be written now; None: nothing, or a write is under way."""
        election, accepted = self._election, self._register.accepted
        if self._writing_since_ms is not None or election.mark == self.durable_mark:
            return None
        self._writing_since_ms = now_ms
        self._being_stored = accepted
        table = accepted.at(now_ms) if accepted is not None else None
        kept = self._register.first
        first = kept.at(now_ms) if kept is not None else None
        joined = not self._alone and not election.is_blank
        term, vote, promise_ms = election.term, election.vote, election.promise_ms
        state = HardState(term, vote, table, promise_ms, joined, first)
        return Persist(election.mark, state)

    def stored(self, mark: int) -> bool:
        """The hard state of that number is on the disk; whether that is of another table."""
        self._writing_since_ms = None
        self.durable_mark = max(self.durable_mark, mark)
        is_news = version_of(self._being_stored) != version_of(self._register.stored)
        self._register.stored = self._being_stored
        return is_news

    def writing_for_ms(self, now_ms: int) -> int:
        """For how long it has not answered; 0: nothing is being written."""
        return 0 if self._writing_since_ms is None else now_ms - self._writing_since_ms


class Outbox:
    """Messages that were not given to the shell yet, in the order in which they were made."""

    def __init__(self) -> None:
        self._waiting: list[Outgoing] = []

    def post(self, to: str, message: PeerMessage, mark: int = 0) -> None:
        """`to`: the entry of an LB. `mark`: of the hard state that the message rests on."""
        self._waiting.append(Outgoing(to, message, mark))

    def collect(self, made: Iterable[Outgoing]) -> None:
        """Those that were made elsewhere."""
        self._waiting += made

    def take(self, durable_mark: int) -> tuple[Outgoing, ...]:
        """Those that rest on what is on the disk; the others stay."""
        ready = tuple(each for each in self._waiting if each.mark <= durable_mark)
        self._waiting = [each for each in self._waiting if each.mark > durable_mark]
        return ready
