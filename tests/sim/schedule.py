"""One schedule: a seed draws the faults, what happens to whom and when, and it is played.

    play(seed, size)    raises `ViolationError`; returns how many steps were taken

After `TROUBLE_MS` everything is healed, and within `LIVE_MS` of that all must be well.

Disks are lost one at a time, and never where there is one LB only. The disk of a quorum of one is
the only copy of what was agreed: without it the LB is a new one, terms and epochs begin again, and
no rule that is played here can hold across that. (What does hold is in `core`: it commits nothing
before its first report, so the kernel goes on by the rings of before.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from functools import partial
from random import Random

from bus.words import MemberChange
from services.quorum.core import Quorum
from tests.sim.faults import Faults, draw
from tests.sim.world import Machine, ViolationError, World, healed

TROUBLE_MS = 6_000.0
LIVE_MS = 5_000.0
EVENT_MS = 150.0
"""The mean time between two events."""


class Schedule:
    """The trouble of one seed."""

    def __init__(self, seed: int, size: int) -> None:
        self.random = Random(seed)
        self.faults = draw(self.random)
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
        return world.steps

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
        kinds += [self._hang] * faults.hung_disk
        kinds += [self._hand_over] * faults.handovers
        kinds += [self._change_eligible] * faults.ineligible
        kinds += [self._reload] * faults.reloads
        kinds += [self._change_members] * (5 * faults.membership)
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
        return bool(others) and all(self.world.machines[each].disk.joined for each in others)

    def _come_back(self, machine: Machine) -> None:
        if machine.core is None:
            self.world.start(machine)

    def _pause(self, machine: Machine) -> None:
        machine.paused = True
        for_ms = self.random.choice((20.0, 150.0, 1_000.0))
        self.world.at(self.world.now_ms + for_ms, lambda: self._go_on(machine))

    def _go_on(self, machine: Machine) -> None:
        if machine.paused:
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
        self.world.act(machine, lambda core, now: core.reconfigure(self.world.config(machine), now))

    def _change_members(self, machine: Machine) -> None:
        """Anybody is asked to have anybody added or removed."""
        whom, number = self.random.choice(list(self.world.machines)), str(self.random.random())
        is_there = whom in self.world.members()
        change = MemberChange.REMOVE if is_there else MemberChange.ADD

        def ask(core: Quorum, now: int) -> None:
            with contextlib.suppress(ValueError):
                core.change_members(number, change, whom, now)

        self.world.act(machine, ask)

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
            self._go_on(machine)
            world.act(machine, lambda core, now: core.stand((), 0, now))


def play(seed: int, size: int) -> int:
    return Schedule(seed, size).play()
