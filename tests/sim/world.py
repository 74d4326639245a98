"""The real cores of all LBs on virtual time: their clocks, their disks, the network between them.

True time is what nobody in the world knows: each LB has a clock of its own that began anywhere and
runs a little fast or slow. Whatever is to happen stands in one queue by true time; what is due at
the same instant comes in the order it was put in, so that a seed is one history.

**Invariants**, looked at after every step:

* one lease: no two LBs may lead, nor claim one VIP, at the same instant of true time. What a
  crashed LB had told its kernel is claimed until it ends by itself. A machine that has stood still,
  and its clock with it, cannot know that its lease is over: for as long as one lasts this is not
  asked once it goes on;
* one table: what was committed under one version is the same everywhere;
* nothing committed is lost: of two committed tables the one of the larger version has the larger
  epoch, so that none was made without knowledge of the other;
* one leader in a term;
* members change one at a time, and a list that all files agree on later than on the first one is
  noted in a table whose members are those of it, after the files of most members have said it;
* nothing is published before it is on the disk of who publishes it.

**Liveness**: some time after everything was healed there is a leader with a lease, all that live
have its table, and the VIPs are claimed; and where all files list the same LBs, that list is noted.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import cache
from itertools import count, cycle, pairwise
from random import Random

from bus.peer_protocol import PeerMessage
from bus.states import NodeTable
from bus.words import LARGEST_PROMISE_MS, NodeState, Role
from services.quorum.composition import QuorumConfig
from services.quorum.core import Quorum
from services.quorum.durable import BLANK, HardState, Persist
from services.quorum.listing import digest
from services.quorum.table import FloatingVip, TableConfig, same_content
from services.quorum.timing import Timing
from tests.quorum.views import ECHO, WEB, seen, view
from tests.sim.faults import Faults

VIPS = ("10.80.0.100", "10.80.0.101")
NODES = ("a", "b", "c")
TIMINGS = (Timing(), Timing().slower(2), Timing(50, 200, 225, 80))
"""Of LBs whose files differ, in turn."""
ATTENTION_MS = 0.2
"""What a turn of an LB's loop takes."""


digest_of = cache(digest)
"""It is asked for at every step."""
OF_ONE_SEED = 4_711
OF_ONE = HardState(9, "lb-0", NodeTable(9, 40, OF_ONE_SEED, (), (), (), (), ()))
"""What an LB has on its disk that was alone until now."""


class ViolationError(AssertionError):
    """An invariant does not hold; the message says which, and when."""


@dataclass(slots=True)
class Clock:
    """A machine's monotonic clock."""

    offset_ms: float
    rate: float
    stopped_ms: float | None = None
    """Since when, in true time, it stands still; None: it goes."""
    missed_ms: float = 0.0
    """For how long it has stood still before."""

    def exactly(self, true_ms: float) -> float:
        gone_ms = true_ms if self.stopped_ms is None else self.stopped_ms
        return self.offset_ms + self.rate * (gone_ms - self.missed_ms)

    def at(self, true_ms: float) -> int:
        return int(self.exactly(true_ms))

    def true(self, local_ms: float) -> float:
        """When it will say so, if it does not stand still before."""
        return (local_ms - self.offset_ms) / self.rate + self.missed_ms

    def go_on(self, true_ms: float) -> None:
        if self.stopped_ms is not None:
            self.missed_ms += true_ms - self.stopped_ms
            self.stopped_ms = None


@dataclass(slots=True)
class Machine:
    """One LB: what survives a crash of its process, and the process."""

    name: str
    clock: Clock
    disk: HardState = BLANK
    core: Quorum | None = None
    start: int = 0
    """The number of its starts: what was meant for an earlier process is lost."""
    paused: bool = False
    hung: bool = False
    eligible: bool = True
    waiting: list[Callable[[], None]] = field(default_factory=list)
    """What will be looked at when it goes on."""
    unwritten: Persist | None = None
    claims: dict[str, int] = field(default_factory=dict)
    """In the kernel: until when, by its clock, it answers for which VIP."""
    version: int = 0
    services: bool = False
    listed: tuple[str, ...] = ()
    """The LBs that its file lists."""
    timing: Timing = field(default_factory=Timing)
    said: set[str] = field(default_factory=set)
    """The digests of all that it has told others of that."""

    @property
    def why_not(self) -> tuple[str, ...]:
        """Why it may hold no VIP."""
        return () if self.eligible else ("it is so",)

    @property
    def is_still(self) -> bool:
        return self.clock.stopped_ms is not None

    @property
    def boot(self) -> str:
        return f"{self.name}.{self.start}"


class World:
    """A cluster of LBs and all that happens to it."""

    def __init__(self, random: Random, size: int, faults: Faults) -> None:
        self.random, self.faults = random, faults
        self.now_ms = 0.0
        self._queue: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self.blocked: set[tuple[str, str]] = set()
        """Links, from whom to whom, that carry nothing."""
        self.listed = tuple(f"lb-{number}" for number in range(size))
        """Those that are members at first; two more might join them."""
        there = size + 2 * ((faults.membership or faults.relist) and size > 1)
        self.machines = {f"lb-{number}": self._machine(f"lb-{number}") for number in range(there)}
        self.lists = {digest(self.listed): frozenset(self.listed)}
        """All that files have ever listed, by their digests."""
        self.doubt_until_ms = 0.0
        """Until then somebody may rest on a lease that is over, since its clock stood still."""
        self.committed: dict[tuple[int, int], NodeTable] = {}
        self.leaders: dict[int, str] = {}
        self.steps = 0
        if faults.alone and size > 1:
            self.machines["lb-0"].disk = OF_ONE
        if faults.timings:
            for machine, timing in zip(self.machines.values(), cycle(TIMINGS), strict=False):
                machine.timing = timing
        for machine in self.machines.values():
            self.start(machine)

    def _machine(self, name: str) -> Machine:
        drift = self.random.uniform(-self.faults.drift, self.faults.drift)
        clock = Clock(self.random.uniform(0, 1e6), 1 + drift)
        return Machine(name, clock, listed=self.listed)

    # ------------------------------------------------------------------ time

    def at(self, true_ms: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._queue, (max(true_ms, self.now_ms), next(self._order), action))

    def run(self, until_ms: float) -> None:
        while self._queue and self._queue[0][0] <= until_ms:
            self.now_ms, _, action = heapq.heappop(self._queue)
            action()
        self.now_ms = until_ms

    # ------------------------------------------------------------------ machines

    def config(self, machine: Machine) -> QuorumConfig:
        others = tuple(name for name in machine.listed if name != machine.name)
        services = (WEB, ECHO) if machine.services else (WEB,)
        vips = tuple(FloatingVip(vip) for vip in VIPS)
        table = TableConfig(services, vips)
        listed = machine.listed if others else ()
        return QuorumConfig(
            *(machine.name, machine.name, table, machine.timing, 1_000, others), listed=listed
        )

    def start(self, machine: Machine) -> None:
        machine.start += 1
        if machine.is_still:  # it was switched off
            machine.claims = {}
            machine.clock.go_on(self.now_ms)
        machine.unwritten = None
        machine.waiting.clear()
        machine.paused = False
        machine.core = Quorum(
            self.config(machine),
            machine.disk,
            self.random.getrandbits(64),
            self.local(machine),
            boot=machine.boot,
            draw=self.random.random,
        )
        machine.core.stand(machine.why_not, 0, self.local(machine))
        self.see(machine)
        self.serve(machine)

    def crash(self, machine: Machine, *, forgets: bool = False) -> None:
        machine.core = None
        if forgets:
            machine.disk = BLANK

    def see(self, machine: Machine) -> None:
        """Its health process reports; what it sees is anything."""
        if machine.core is None:
            return
        machine.version += 1
        nodes = [seen(name, self.random.choice((NodeState.UP, NodeState.DOWN))) for name in NODES]
        report = view(*nodes, version=machine.version)
        self.act(machine, lambda core, now: core.report("health", report, now))

    def act(self, machine: Machine, action: Callable[[Quorum, int], object]) -> None:
        """Something happens to the process now, or when it goes on."""
        start = machine.start

        def do() -> None:
            if machine.core is None or machine.start != start:
                return
            if machine.paused:
                machine.waiting.append(do)
                return
            action(machine.core, self.local(machine))
            self.serve(machine)

        do()

    def stand_still(self, machine: Machine) -> None:
        """It does nothing any more, and will not know that time has passed."""
        machine.paused = True
        if not machine.is_still:
            machine.clock.stopped_ms = self.now_ms

    def go_on(self, machine: Machine) -> None:
        if machine.is_still:
            self._doubt()
        machine.clock.go_on(self.now_ms)
        machine.paused = False
        waiting, machine.waiting = machine.waiting, []
        for action in waiting:
            action()
        self.act(machine, lambda core, now: core.tick(now))

    def _doubt(self) -> None:
        """What rests on a lease that is over may last as long as one, and what it granted too."""
        cores = [each.core for each in self.machines.values() if each.core is not None]
        leases_ms = (core._election.timing.lease_ms for core in cores)
        longest_ms = max(leases_ms, default=LARGEST_PROMISE_MS)
        self.doubt_until_ms = max(self.doubt_until_ms, self.now_ms + 2.1 * longest_ms)

    def local(self, machine: Machine) -> int:
        return machine.clock.at(self.now_ms)

    def serve(self, machine: Machine) -> None:
        """Do all that the core wants done, in its order, and come back when it is due."""
        core = machine.core
        assert core is not None
        while (ready := core.take(self.local(machine))) is not None:
            if ready.persist is not None:
                self._write(machine, ready.persist)
            if ready.committed is not None:
                self._note_committed(machine, ready.committed.table)
            if ready.claims is not None:
                machine.claims = dict(ready.claims)
            machine.said.add(digest_of(machine.listed))
            for out in ready.sends:
                self._send(machine.name, out.to, out.message)
        self._check(machine)
        due_ms = core.next_due_ms()
        if due_ms is not None:
            self.at(
                machine.clock.true(due_ms + 1) + ATTENTION_MS,
                self._ticker(machine, machine.start, due_ms),
            )

    def _ticker(self, machine: Machine, start: int, due_ms: int) -> Callable[[], None]:
        def tick() -> None:
            core = machine.core
            if core is not None and machine.start == start and core.next_due_ms() == due_ms:
                self.act(machine, lambda core, now: core.tick(now))

        return tick

    # ------------------------------------------------------------------ disks

    def _write(self, machine: Machine, persist: Persist) -> None:
        machine.unwritten = persist
        if not machine.hung:
            slow_ms = self.faults.slow_disk_ms
            took_ms = self.random.uniform(0, slow_ms) if slow_ms else 0.1
            self._finish_after(machine, took_ms)

    def _finish_after(self, machine: Machine, took_ms: float) -> None:
        start, persist = machine.start, machine.unwritten

        def finish() -> None:
            if machine.start != start or machine.core is None or machine.unwritten is not persist:
                return
            if persist is None or machine.hung:
                return
            machine.disk, machine.unwritten = persist.state, None
            self.act(machine, lambda core, now: core.stored(persist.mark, now))

        self.at(self.now_ms + took_ms, finish)

    def unhang(self, machine: Machine) -> None:
        machine.hung = False
        if machine.unwritten is not None:
            self._finish_after(machine, 0.1)

    # ------------------------------------------------------------------ the network

    def _send(self, sender: str, receiver: str, message: PeerMessage) -> None:
        faults = self.faults
        if (sender, receiver) in self.blocked or self.random.random() < faults.loss:
            return
        copies = 1 + (self.random.random() < faults.repetition)
        for _ in range(copies):
            delay_ms = self.random.uniform(0.05, faults.delay_ms)
            if self.random.random() < faults.late:
                delay_ms += self.random.uniform(0, faults.late_ms)
            self.at(self.now_ms + delay_ms, self._arrival(sender, receiver, message))

    def _arrival(self, sender: str, receiver: str, message: PeerMessage) -> Callable[[], None]:
        machine = self.machines[receiver]

        def arrive() -> None:
            if (sender, receiver) not in self.blocked and not machine.is_still:
                self.act(machine, lambda core, now: core.receive(sender, message, now))

        return arrive

    # ------------------------------------------------------------------ invariants

    def _note_committed(self, machine: Machine, table: NodeTable) -> None:
        if machine.disk.table is None or version(machine.disk.table) < version(table):
            raise ViolationError(f"{machine.name} publishes {version(table)} before it is stored")
        known = self.committed.setdefault(version(table), table)
        if not same_content(known, table):
            raise ViolationError(f"two tables of version {version(table)}")
        if self.faults.alone and len(self.listed) > 1 and table.hash_seed != OF_ONE_SEED:
            raise ViolationError("what was agreed on alone was lost")
        epochs = [epoch for _, epoch in sorted(self.committed)]
        if any(later <= earlier for earlier, later in pairwise(epochs)):
            raise ViolationError(f"a committed table was lost: {sorted(self.committed)[-4:]}")
        self._check_members(table)

    def _check_members(self, table: NodeTable) -> None:
        earlier = [each for each in self.committed if each < version(table)]
        before = self.committed[max(earlier)] if earlier else None
        if before is None or not before.members:
            return
        was, now = ({each.address for each in each.members} for each in (before, table))
        if before.epoch + 1 == table.epoch and len(was ^ now) > 1:
            raise ViolationError(f"members change from {sorted(was)} to {sorted(now)} at once")
        if before.listed in ("", table.listed) or self.faults.membership:
            return
        if now != self.lists[table.listed]:
            raise ViolationError(f"{sorted(now)} are not the list of the files")
        have = sum(table.listed in self.machines[each].said for each in was)
        if 2 * have <= len(was):
            raise ViolationError(f"{have} of {len(was)} have said the list that all are to have")

    def _check(self, changed: Machine) -> None:
        self.steps += 1
        core = changed.core
        assert core is not None
        if core.role is Role.LEADER:
            known = self.leaders.setdefault(core.term, changed.name)
            if known != changed.name:
                raise ViolationError(f"{known} and {changed.name} lead in term {core.term}")
        if self.now_ms < self.doubt_until_ms:
            return
        if core.lease_ms(self.local(changed)):
            for other in self.machines.values():
                if other is not changed and self.has_lease(other):
                    raise ViolationError(f"{changed.name} and {other.name} have a lease")
        for vip in changed.claims:
            holders = [name for name in self.machines if self.claims(self.machines[name], vip)]
            if len(holders) > 1:
                raise ViolationError(f"{vip} is claimed by {' and '.join(holders)}")

    def has_lease(self, machine: Machine) -> bool:
        core = machine.core
        if core is None or machine.is_still:
            return False
        return core.lease_ms(self.local(machine)) > 0

    def claims(self, machine: Machine, vip: str) -> bool:
        until_ms = machine.claims.get(vip, 0)
        return until_ms > machine.clock.exactly(self.now_ms) and not machine.is_still

    def members(self) -> frozenset[str]:
        """Whose votes count by the newest table that anybody has."""
        newest = self.newest()
        listed = newest.members if newest is not None else ()
        return frozenset(each.address for each in listed) or frozenset(self.listed)

    def newest(self) -> NodeTable | None:
        """Of all tables that are on a disk."""
        held = [each.disk.table for each in self.machines.values() if each.disk.table is not None]
        return max(held, key=version, default=None)

    def goes_by_files(self) -> bool:
        """Whether the list is noted that all files say, if they say the same."""
        lists = {each.listed for each in self.machines.values()}
        newest = self.newest()
        return len(lists) > 1 or (newest is not None and newest.listed == digest(lists.pop()))

    def is_well(self) -> bool:
        """One has a lease, all that run have its table, and every VIP is claimed."""
        members = self.members()
        running = [
            machine
            for machine in self.machines.values()
            if machine.core is not None and machine.name in members
        ]
        leaders = [machine for machine in running if self.has_lease(machine)]
        if len(leaders) != 1:
            return False
        versions = set()
        for machine in running:
            assert machine.core is not None
            held = machine.core.committed(self.local(machine))
            versions.add(None if held is None else version(held.table))
        claimed = [any(self.claims(each, vip) for each in running) for vip in VIPS]
        return len(versions) == 1 and None not in versions and all(claimed)


def version(table: NodeTable) -> tuple[int, int]:
    return (table.term, table.epoch)


def healed(faults: Faults) -> Faults:
    """What is left when all is repaired: clocks go on as they are."""
    slow_ms = min(faults.slow_disk_ms, 5.0)
    return replace(faults, loss=0.0, repetition=0.0, late=0.0, slow_disk_ms=slow_ms)
