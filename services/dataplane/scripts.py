"""The operator's script that moves an address where ARP cannot: when it runs, and how often. Pure.

`announce = "exec"`: a cloud's network, say, delivers an address to the machine that its API was
told, whatever anybody says by ARP. So a script is run for each address on acquiring and on losing
it:

    SCRIPT acquire|lose ADDRESS INTERFACE

For one address one script runs at a time, and what matters is how things stand: if the address has
been lost and acquired again meanwhile, the next run is for how it stands now. So scripts must bear
to be told the same twice, which they also are after a restart of this process.

    state     on                                              to
    ─────────────────────────────────────────────────────────────────────────────────────
    SETTLED   the address stands otherwise than it was told   RUNNING
    RUNNING   the script ends with 0                          SETTLED, or at once RUNNING anew
    RUNNING   it ends otherwise, or is killed at its deadline RESTING, 1 s and then ever longer
    RESTING   the time is over, or the address stands
              otherwise by now                                RUNNING

In: `want`, `ended`, `tick`. Out, by `take`: scripts to start and to kill.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from enum import StrEnum

DEADLINE_MS = 10_000
FIRST_REST_MS, LONGEST_REST_MS = 1_000, 30_000


class Word(StrEnum):
    """What a script is told of an address."""

    ACQUIRE = "acquire"
    LOSE = "lose"


@dataclass(frozen=True, slots=True)
class Start:
    word: Word
    address: str


@dataclass(frozen=True, slots=True)
class Kill:
    """The script of that address has taken too long."""

    address: str


@dataclass(slots=True)
class _Task:
    wanted: Word
    told: Word | None = None
    """What a script has carried out last."""
    running: Word | None = None
    deadline_ms: int = 0
    killed: bool = False
    failed: Word | None = None
    rest_until_ms: int = 0
    rest_ms: int = FIRST_REST_MS


@dataclass(slots=True)
class Scripts:
    """One script, for every floating address."""

    _tasks: dict[str, _Task] = field(default_factory=dict)
    _out: list[Start | Kill] = field(default_factory=list)

    def want(self, word: Word, addresses: Iterable[str], now_ms: int) -> None:
        """These addresses stand so from now on."""
        for address in addresses:
            task = self._tasks.setdefault(address, _Task(word))
            task.wanted = word
            self._go_on(address, task, now_ms)

    def ended(self, address: str, succeeded: bool, now_ms: int) -> None:
        """The script that ran for the address has ended."""
        task = self._tasks[address]
        word, task.running, task.killed = task.running, None, False
        if succeeded:
            task.told, task.failed, task.rest_ms = word, None, FIRST_REST_MS
        else:
            task.failed, task.told = word, None
            task.rest_until_ms = now_ms + task.rest_ms
            task.rest_ms = min(2 * task.rest_ms, LONGEST_REST_MS)
        self._go_on(address, task, now_ms)

    def tick(self, now_ms: int) -> None:
        for address, task in self._tasks.items():
            if task.running and not task.killed and now_ms >= task.deadline_ms:
                task.killed = True
                self._out.append(Kill(address))
            self._go_on(address, task, now_ms)

    def next_due_ms(self) -> int | None:
        due = []
        for task in self._tasks.values():
            if task.running and not task.killed:
                due.append(task.deadline_ms)
            elif not task.running and task.told is not task.wanted:
                due.append(task.rest_until_ms)
        return min(due, default=None)

    def take(self) -> list[Start | Kill]:
        out, self._out = self._out, []
        return out

    def _go_on(self, address: str, task: _Task, now_ms: int) -> None:
        if task.running or task.told is task.wanted:
            return
        if task.failed is task.wanted and now_ms < task.rest_until_ms:
            return
        task.running, task.deadline_ms = task.wanted, now_ms + DEADLINE_MS
        self._out.append(Start(task.wanted, address))
