"""One schedule: a seed draws the faults, what happens to whom and when, and it is played.

    play(seed, size)    raises `ViolationError`; returns how many steps were taken

After `TROUBLE_MS` everything is healed, and within `LIVE_MS` of that all must be well. Within
`LISTED_MS` more the members are those that all files list, if these say the same: an operator is
there by then who has a leader hand over that the list does not name.

Disks are lost one at a time, and never where there is one LB only. The disk of a quorum of one is
the only copy of what was agreed: without it the LB is a new one, terms and epochs begin again, and
no rule that is played here can hold across that. (What does hold is in `core`: it commits nothing
before its first report, so the kernel goes on by the rings of before.)

Every list that is written names an LB that knows the agreement, whatever disk is lost next: LBs
that know nothing and list nobody who does are another cluster.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable
from functools import partial
from random import Random

from bus.words import MOST_MEMBERS, MemberChange, Role
from services.quorum.core import Quorum
from services.quorum.listing import digest
from tests.sim.faults import Faults, draw
from tests.sim.world import Machine, ViolationError, World, healed

TROUBLE_MS = 6_000.0
LIVE_MS = 5_000.0
LISTED_MS = 20_000.0
LOOK_MS = 100.0
"""So often the operator looks why the members are not those of the list."""
EVENT_MS = 150.0
"""The mean time between two events."""


class Schedule:
    """The trouble of one seed."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = Random(seed)
        self.faults = draw(self.random, Random(f"apart {seed}"))
        self.world = World(self.random, size, self.faults)
        self.down: set[str] = set()

    def words(self) -> str:
        """What was drawn."""
        return self.faults.words()

    def play(self) -> int:
        world = self.world
        self._plan()
        world.run(TROUBLE_MS)
        self._heal()
        world.run(TROUBLE_MS + LIVE_MS)
        if not self.forgot_too_much() and not world.is_well():
            raise ViolationError(f"not well {LIVE_MS:.0f} ms after all was healed")
        if len(world.listed) > 1 and not self.forgot_too_much():
            self._wait_for_list(TROUBLE_MS + LIVE_MS + LISTED_MS)
        return world.steps

    def _wait_for_list(self, until_ms: float) -> None:
        world = self.world
        while not world.goes_by_files():
            if world.now_ms >= until_ms:
                raise ViolationError("the members are not those that all files list")
            for machine in world.machines.values():
                world.act(machine, self._hand_over_if_asked)
            world.run(world.now_ms + LOOK_MS)

    @staticmethod
    def _hand_over_if_asked(core: Quorum, now_ms: int) -> None:
        if core.role is Role.LEADER and "gale handover" in core.state(now_ms).why_not_listed:
            with contextlib.suppress(ValueError):
                core.hand_over(now_ms)

    def forgot_too_much(self) -> bool:
        """So many have lost their disk that nobody may vote: an operator has to say what to do."""
        members = self.world.members()
        blank = sum(not self.world.machines[name].disk.joined for name in members)
        size = len(members)
        return size - blank < size // 2 + 1 and 0 < blank < size

    def _plan(self) -> None:
        at_ms = 0.0
        while (at_ms := at_ms + self.random.expovariate(1 / EVENT_MS)) < TROUBLE_MS:
            event = self.random.choice(self._kinds())
            machine = self.random.choice(list(self.world.machines.values()))
            self.world.at(at_ms, partial(event, machine))

    def _kinds(self) -> list[Callable[[Machine], None]]:
        faults: Faults = self.faults
        kinds: list[Callable[[Machine], None]] = [self._see]
        if len(self.world.machines) > 1:
            kinds += [self._cut] * (2 * faults.cuts)
            kinds += [self._cut_link] * (2 * faults.partial)
            kinds += [self._cut_one_way] * (2 * faults.one_way)
        kinds += [self._mend] * (faults.cuts or faults.partial or faults.one_way)
        kinds += [self._crash] * faults.crashes
        kinds += [self._pause] * faults.pauses
        kinds += [self._stand_still] * faults.stills
        kinds += [self._hang] * faults.hung_disk
        kinds += [self._hand_over] * faults.handovers
        kinds += [self._change_eligible] * faults.ineligible
        kinds += [self._reload] * faults.reloads
        kinds += [self._change_members] * (5 * faults.membership)
        kinds += [self._relist] * (2 * faults.relist * (len(self.world.listed) > 1))
        return kinds

    # ------------------------------------------------------------------ events

    def _see(self, machine: Machine) -> None:
        self.world.see(machine)

    def _cut(self, machine: Machine) -> None:
        for other in self.world.machines:
            if other != machine.name:
                self.world.blocked |= {(machine.name, other), (other, machine.name)}

    def _cut_link(self, machine: Machine) -> None:
        other = self._other(machine)
        self.world.blocked |= {(machine.name, other), (other, machine.name)}

    def _cut_one_way(self, machine: Machine) -> None:
        self.world.blocked.add((machine.name, self._other(machine)))

    def _mend(self, _machine: Machine) -> None:
        self.world.blocked.clear()

    def _crash(self, machine: Machine) -> None:
        if machine.core is None:
            return
        forgets = self.faults.amnesia and self.random.random() < 0.3 and self._others_know(machine)
        self.world.crash(machine, forgets=forgets)
        back_ms = self.world.now_ms + self.random.choice((5.0, 100.0, 800.0))
        self.world.at(back_ms, lambda: self._come_back(machine))

    def _others_know(self, machine: Machine) -> bool:
        """Only one disk at a time may be lost: no agreement survives the loss of a majority."""
        others = self.world.members() - {machine.name}
        know = bool(others) and all(self.world.machines[other].disk.joined for other in others)
        return know and all(
            self._knowing(each.listed) - {machine.name} for each in self.world.machines.values()
        )

    def _knowing(self, names: Iterable[str]) -> set[str]:
        """Those of the LBs that have a table on their disk."""
        disks = {name: self.world.machines[name].disk for name in names}
        return {name for name, disk in disks.items() if disk.joined and disk.table is not None}

    def _come_back(self, machine: Machine) -> None:
        if machine.core is None:
            self.world.start(machine)

    def _pause(self, machine: Machine) -> None:
        machine.paused = True
        for_ms = self.random.choice((20.0, 150.0, 1_000.0))
        self.world.at(self.world.now_ms + for_ms, lambda: self._go_on(machine))

    def _go_on(self, machine: Machine) -> None:
        if machine.paused and not machine.is_still:
            self.world.go_on(machine)

    def _stand_still(self, machine: Machine) -> None:
        self.world.stand_still(machine)
        for_ms = self.random.choice((50.0, 400.0, 2_000.0))
        start = machine.start
        self.world.at(self.world.now_ms + for_ms, lambda: self._wake(machine, start))

    def _wake(self, machine: Machine, start: int) -> None:
        if machine.is_still and machine.start == start:
            self.world.go_on(machine)

    def _hang(self, machine: Machine) -> None:
        machine.hung = True
        for_ms = self.random.choice((100.0, 1_000.0))
        self.world.at(self.world.now_ms + for_ms, lambda: self.world.unhang(machine))

    def _hand_over(self, machine: Machine) -> None:
        def ask(core: Quorum, now: int) -> None:
            with contextlib.suppress(ValueError):
                core.hand_over(now)

        self.world.act(machine, ask)

    def _change_eligible(self, machine: Machine) -> None:
        machine.eligible = not machine.eligible
        self.world.act(machine, lambda core, now: core.stand(machine.why_not, 0, now))

    def _reload(self, machine: Machine) -> None:
        machine.services = not machine.services
        self._read_file(machine)

    def _change_members(self, machine: Machine) -> None:
        """Anybody is asked to have anybody added or removed."""
        whom, number = self.random.choice(list(self.world.machines)), str(self.random.random())
        is_there = whom in self.world.members()
        change = MemberChange.REMOVE if is_there else MemberChange.ADD

        def ask(core: Quorum, now: int) -> None:
            with contextlib.suppress(ValueError):
                core.change_members(number, change, whom, now)

        self.world.act(machine, ask)

    def _relist(self, _machine: Machine) -> None:
        """An operator writes another list into the files of all LBs, one after the other."""
        world, random = self.world, self.random
        listed = set(world.members())
        outside = sorted(world.machines.keys() - listed)
        if len(listed) > 2 and random.random() < 0.5:
            listed.discard(random.choice(sorted(listed)))
        if outside and len(listed) < MOST_MEMBERS and random.random() < 0.5:
            listed.add(random.choice(outside))
        if len(self._knowing(listed)) < 2:
            return
        names = tuple(sorted(listed))
        world.lists[digest(names)] = frozenset(names)
        at_ms = world.now_ms
        for each in random.sample(list(world.machines.values()), len(world.machines)):
            at_ms += random.choice((1.0, 30.0, 200.0))
            world.at(at_ms, partial(self._write_list, each, names))

    def _write_list(self, machine: Machine, names: tuple[str, ...]) -> None:
        if len(self._knowing(names)) > 1:
            machine.listed = names
            self._read_file(machine)

    def _read_file(self, machine: Machine) -> None:
        self.world.act(machine, lambda core, now: core.reconfigure(self.world.config(machine), now))

    def _other(self, machine: Machine) -> str:
        return self.random.choice([name for name in self.world.machines if name != machine.name])

    def _heal(self) -> None:
        world = self.world
        world.faults = healed(world.faults)
        world.blocked.clear()
        for machine in world.machines.values():
            machine.eligible = True
            world.unhang(machine)
            if machine.core is None:
                world.start(machine)
            if machine.paused:
                world.go_on(machine)
            world.act(machine, lambda core, now: core.stand((), 0, now))


def play(seed: int, size: int) -> int:
    return Schedule(seed, size).play()
