"""The agreement of the LBs on one register, the node table. Pure: no clock, no socket, no disk.

The shell hands in what happened (`report`, `reconfigure`, `tick`) with the monotonic time, and asks
`ready()` what to do about it, until the answer is None. Each `Ready` is worked off in the order of
its fields, which is the whole of the protocol's safety: **persist, then send, then apply**.

    1. `persist`: write the hard state and fsync it. If that fails, stop here: ask again later and
       the same `Ready` comes back. Nothing was promised to anybody yet.
    2. `committed`, `events`: publish them.
    3. `advance(ready)`: says that 1 and 2 are done, and counts this LB's own acceptance.

So a table is proposed, stored, and only then committed: what was published was on the disk before,
and a process killed between any two instructions starts again with what it published, or newer. At
most one proposal is under way; reports that come meanwhile are merged into the next.

**Roles.** This is Raft's election for a cluster whose only member is this LB. It stands for itself
in a new term, its own stored vote is the majority, it leads:

    FOLLOWER -> CANDIDATE   no term in which this LB voted for itself is stored: term + 1
    CANDIDATE -> LEADER     the vote is durable
    FOLLOWER -> LEADER      after a restart, in the stored term: nobody else can have led in it, and
                            all that this LB committed in it is on the disk

For the same reason a stored table is a committed one, published before any report comes in: the
dataplane is right from the first message on.

**Failure.** Without reports (the health process is down) the nodes stay as they are. A health
process that has just started is believed where it names a node and not where it is silent, until it
has `settled`: `2 * checks_timeout` after its boot was first heard, when its own grace is over. A
blank LB commits nothing before the first report: if it lost its file, the rings in the kernel are
better than an empty table. When the disk is full the table stands still and `waiting_for` says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from bus.events import (
    QuorumEvent,
    TableEvent,
)
from bus.states import (
    CommittedTable,
    LocalView,
    NodeTable,
    QuorumMember,
    QuorumState,
    VipHolder,
)
from bus.topics import Topic
from bus.words import (
    NodeState,
    Role,
)
from services.quorum.table import (
    SLOT_REUSE_MS,
    Report,
    TableConfig,
    aged,
    bootstrap,
    changes,
    merge,
)

TRANSITIONS: dict[Role, frozenset[Role]] = {
    Role.FOLLOWER: frozenset({Role.CANDIDATE, Role.LEADER}),
    Role.CANDIDATE: frozenset({Role.LEADER}),
    Role.LEADER: frozenset(),
}

WAITING_FOR_VIEW = "the first view of the health process"


class IllegalTransitionError(RuntimeError):
    """A change of role that the table above does not have: a fault of this program."""


@dataclass(frozen=True, slots=True)
class HardState:
    """What must survive a crash, and be on the disk before anybody hears of it."""

    term: int
    vote: str | None
    table: NodeTable | None
    """The newest table this LB has accepted."""


BLANK = HardState(0, None, None)


@dataclass(frozen=True, slots=True)
class QuorumConfig:
    """What the configuration says, as the core needs it."""

    name: str
    address: str
    """This LB's own entry in the list of addresses, or empty."""
    table: TableConfig
    lease_ms: int
    checks_timeout_ms: int
    slot_reuse_ms: int = SLOT_REUSE_MS
    """How long the SNAT slot of an LB that left is given to nobody."""


Event = TableEvent | QuorumEvent


@dataclass(frozen=True, slots=True)
class Ready:
    """What the shell has to do now, in the order of the fields."""

    persist: HardState | None
    committed: CommittedTable | None
    events: tuple[tuple[Topic, Event], ...]


@dataclass(slots=True)
class _Heard:
    """The newest view of one LB, and since when its publisher has been talking."""

    boot: str
    first_ms: int
    newest_ms: int
    view: LocalView
    settled: bool


class Quorum:
    """One LB's part in the agreement."""

    def __init__(
        self, config: QuorumConfig, stored: HardState, hash_seed: int, now_ms: int
    ) -> None:
        """`hash_seed`: 64 random bits, used only if no table was ever stored."""
        self._config = config
        self._hash_seed = hash_seed
        self._durable = stored
        self._hard = stored
        self._role = Role.FOLLOWER
        self._committed = stored.table
        self._as_of_ms = now_ms
        self._table_version = 1 if stored.table is not None else 0
        self._state_version = 0
        self._unpublished = stored.table is not None
        self._events: list[tuple[Topic, Event]] = []
        self._heard: dict[str, _Heard] = {}
        self._departed: dict[str, int] = {}
        self._stalled = ""
        self._campaign(now_ms)

    # ------------------------------------------------------------------ what happened

    def report(self, lb: str, boot: str, view: LocalView, now_ms: int, age_ms: int = 0) -> None:
        """`lb` saw its nodes like this `age_ms` ago. An overtaken view changes nothing."""
        made_ms = now_ms - age_ms
        heard = self._heard.get(lb)
        if heard is None or heard.boot != boot:
            self._heard[lb] = _Heard(boot, now_ms, made_ms, view, settled=False)
        elif view.version > heard.view.version:
            heard.view, heard.newest_ms = view, made_ms
        else:
            return
        self._propose(now_ms)

    def reconfigure(self, config: QuorumConfig, now_ms: int) -> None:
        """The file was read again. The name stays: it is who this LB is to the others."""
        self._config = replace(config, name=self._config.name)
        self._state_version += 1
        self._propose(now_ms)

    def tick(self, now_ms: int) -> None:
        """It is `now_ms`; call this at `deadline_ms` at the latest."""
        due = self.deadline_ms()
        if due is None or now_ms < due:
            return
        for heard in self._heard.values():
            heard.settled = heard.settled or now_ms >= heard.first_ms + self._settle_ms
        self._propose(now_ms)

    def deadline_ms(self) -> int | None:
        """When `tick` has something to do; None: never, as things stand."""
        due = [h.first_ms + self._settle_ms for h in self._heard.values() if not h.settled]
        if self._hard is self._durable:
            reuse_ms = self._config.slot_reuse_ms
            due += [since_ms + reuse_ms for since_ms in self._departed.values()]
        return min(due, default=None)

    def stall(self, reason: str) -> None:
        """What `ready` wanted on the disk did not get there: nothing moves until it does."""
        if reason != self._stalled:
            self._stalled = reason
            self._state_version += 1

    # ------------------------------------------------------------------ what to do about it

    def ready(self, now_ms: int) -> Ready | None:
        """The next thing to do; the same again until `advance`."""
        if self._unpublished or self._events:
            table = self.committed(now_ms) if self._unpublished else None
            return Ready(None, table, tuple(self._events))
        if self._hard is not self._durable:
            return Ready(self._hard, None, ())
        return None

    def advance(self, ready: Ready, now_ms: int) -> None:
        """`ready` has been done: what it persists is durable, what it publishes is out."""
        if ready.committed is not None:
            self._unpublished = False
        del self._events[: len(ready.events)]
        if ready.persist is not None:
            self._durable = ready.persist
            self.stall("")
            self._accepted_here(now_ms)

    def committed(self, now_ms: int) -> CommittedTable | None:
        """What all LBs route by, or None before the first table."""
        if self._committed is None:
            return None
        table = aged(self._committed, now_ms - self._as_of_ms)
        return CommittedTable(self._table_version, table)

    def state(self) -> QuorumState:
        """This LB's part in the agreement, for people. An LB alone always holds its lease."""
        config, leads = self._config, self._role is Role.LEADER
        term, epoch = self._durable.term, self._committed.epoch if self._committed else 0
        owners = self._committed.vip_owners if self._committed else ()
        waiting_for = WAITING_FOR_VIEW if self._committed is None else ""
        return QuorumState(
            version=self._state_version,
            name=config.name,
            role=self._role,
            term=term,
            leader=config.name if leads else None,
            epoch=epoch,
            quorum=leads,
            lease_remaining_ms=config.lease_ms if leads else 0,
            lease_changes=0,
            vips=tuple(VipHolder(vip.address, vip.owner) for vip in owners),
            members=(QuorumMember(config.name, config.address, True, term, epoch, 0),),
            waiting_for=self._stalled or waiting_for,
        )

    # ------------------------------------------------------------------ inside

    @property
    def _settle_ms(self) -> int:
        return 2 * self._config.checks_timeout_ms

    def _become(self, role: Role) -> None:
        if role not in TRANSITIONS[self._role]:
            raise IllegalTransitionError(f"{self._role.value} -> {role.value}")
        self._role = role
        self._state_version += 1

    def _lead(self, reason: str, now_ms: int) -> None:
        self._become(Role.LEADER)
        name = self._config.name
        event = QuorumEvent(self._hard.term, name, None, reason)
        self._events.append((Topic.QUORUM_LEADER, event))
        self._propose(now_ms)

    def _campaign(self, now_ms: int) -> None:
        name = self._config.name
        if self._hard.vote == name:
            self._lead("a quorum of one: leads on in the term of before its restart", now_ms)
            return
        self._become(Role.CANDIDATE)
        self._hard = HardState(self._hard.term + 1, name, self._hard.table)

    def _accepted_here(self, now_ms: int) -> None:
        """This LB's own vote or acceptance is durable, and one of one is a majority."""
        if self._role is Role.CANDIDATE:
            self._lead("a quorum of one: elected by its own vote", now_ms)
        elif self._durable.table is not None:
            self._commit(self._durable.table)
            self._propose(now_ms)

    def _commit(self, table: NodeTable) -> None:
        up = sum(node.state is NodeState.UP for node in table.nodes)
        event = TableEvent(table.term, table.epoch, up, changes(self._committed, table))
        self._events.append((Topic.TABLE_COMMITTED, event))
        self._committed = table
        self._table_version += 1
        self._state_version += 1
        self._unpublished = True

    def _propose(self, now_ms: int) -> None:
        """Merge what is known by now into the next table, unless one is still on its way."""
        if self._role is not Role.LEADER or self._hard is not self._durable:
            return
        if self._committed is None and not self._heard:
            return
        base = self._committed or bootstrap(self._hard.term, self._hash_seed)
        base = aged(base, now_ms - self._as_of_ms)
        reports = {
            lb: Report(heard.view, heard.settled, now_ms - heard.newest_ms)
            for lb, heard in self._heard.items()
        }
        merged = merge(
            base,
            reports,
            self._config.table,
            [self._config.name],
            term=self._hard.term,
            released=self._released(base, now_ms),
        )
        self._as_of_ms = now_ms
        if merged.epoch == base.epoch:
            self._committed = merged
        else:
            # Until it is committed the old table ages from now on, as the new one does.
            self._committed = base if self._committed is not None else None
            self._hard = replace(self._hard, table=merged)

    def _released(self, table: NodeTable, now_ms: int) -> frozenset[str]:
        """LBs that left so long ago that others may have their slots; notes who left just now."""
        holders = {held.owner for held in table.snat_slices if held.address is not None}
        gone = holders - {self._config.name}
        self._departed = {lb: self._departed.get(lb, now_ms) for lb in gone}
        reuse_ms = self._config.slot_reuse_ms
        return frozenset(
            lb for lb, since_ms in self._departed.items() if now_ms >= since_ms + reuse_ms
        )
