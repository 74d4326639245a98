"""Announces the floating addresses that this LB claims: the shell around `announce` and `scripts`.

The kernel's own maps say what is claimed, and who else claims it: so what is announced is what the
programs answer for, whatever any process believes. They are read four times a second, when the
quorum process tells of a VIP that it has acquired or lost, and when an announcement is due.

`announce = "arp"`: frames of our own making leave by the side's interface, by a packet socket, to
whoever is on that network; without a tag, as does everything of this host. `"exec"`: the operator's
script is told instead. It is a child of this process, never waited for, and killed with all its
children when it has run for ten seconds.

Failure: a frame that the kernel refuses (the interface is going down) is one announcement less. A
script that fails is told in the log, as an event, and in `states`, and is run again.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

import structlog

from bus.events import DataplaneEvent, VipEvent
from bus.states import ClaimState, QuorumState
from bus.topics import Topic
from conf.lb import Quorum as QuorumKeys
from services.dataplane.announce import Announcer, Rival, Seen
from services.dataplane.frames import announcement
from services.dataplane.kernel import Floating
from services.dataplane.machine import Interface, Machine
from services.dataplane.scripts import Scripts, Start, Word

LOOK_MS = 250
POLL_MS = 50
"""How often a running script is looked at."""
CONTESTED_MS = 60_000
"""For so long after its last word a rival is shown."""
_NS_PER_MS = 1_000_000

_log = structlog.get_logger()
Event = tuple[Topic, VipEvent | DataplaneEvent]


@dataclass(slots=True)
class _Running:
    process: subprocess.Popen[bytes]
    word: Word


class Announcing:
    """Give it the maps' content by `serve`; it lives as long as the process."""

    def __init__(self, lb: str, now_ms: int) -> None:
        self._lb = lb
        self._core = Announcer()
        self._scripts = Scripts()
        self._running: dict[str, _Running] = {}
        self._failed: dict[str, str] = {}
        """By address: why the script has not carried out what it was told."""
        self._known: frozenset[str] = frozenset()
        self._macs: dict[str, bytes] = {}
        """By address: that of its side's interface."""
        self._look_ms = now_ms
        self._term = 0
        self._socket: socket.socket | None = None
        self._events: list[Event] = []
        self.states: tuple[ClaimState, ...] = ()

    def heard(self, what: QuorumState | VipEvent, now_ms: int) -> None:
        """The quorum process tells of its members, or of a claim that has just changed."""
        if isinstance(what, VipEvent):
            self._look_ms = now_ms
            return
        self._term = what.term
        alive = frozenset(each.address for each in what.members if each.alive)
        self._core.peers(alive, now_ms)

    def is_due(self, now_ms: int) -> bool:
        """Whether the maps are to be read, and `serve` to be called."""
        return now_ms >= self.next_ms()

    def next_ms(self) -> int:
        moments = [self._look_ms, self._core.next_due_ms(), self._scripts.next_due_ms()]
        if self._running:
            moments.append(self._look_ms - LOOK_MS + POLL_MS)
        return min(moment for moment in moments if moment is not None)

    def serve(
        self, maps: Mapping[str, Floating], machine: Machine, keys: QuorumKeys, now_ms: int
    ) -> list[Event]:
        """`maps`: what they say at this moment. Returns what is to be published."""
        self._look_ms = now_ms + LOOK_MS
        self._core.look({text: _seen(each) for text, each in maps.items()}, now_ms)
        sides = {text: _side(each, machine) for text, each in maps.items()}
        macs = {text: side.mac for text, side in sides.items()}
        moved = {text for text, mac in macs.items() if self._macs.get(text, mac) != mac}
        self._macs = macs
        self._core.moved(frozenset(moved), now_ms)
        self._core.tick(now_ms)
        said = self._core.take()
        by_script = keys.announce == "exec"
        if said is not None:
            for text, rival in said.contests:
                self._contest(text, rival)
            if not by_script:
                self._send(said.announce, sides)
        if by_script:
            self._tell_scripts(frozenset(maps), now_ms)
            self._run_scripts(str(keys.announce_command), sides, now_ms)
        self._known = frozenset(maps)
        self.states = tuple(self._states(maps, now_ms))
        events, self._events = self._events, []
        return events

    def close(self) -> None:
        """Scripts that run go on: they are about the address, not about this process."""
        if self._socket is not None:
            self._socket.close()

    # ------------------------------------------------------------------ frames

    def _send(self, addresses: tuple[str, ...], sides: Mapping[str, Interface]) -> None:
        for text in addresses:
            to = sides[text]
            try:
                if self._socket is None:
                    self._socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
                    self._socket.setblocking(False)
                self._socket.sendto(announcement(text, to.mac), (to.name, 0))
            except OSError as error:
                _log.warning("not announced", address=text, interface=to.name, why=error.strerror)

    def _contest(self, text: str, rival: Rival) -> None:
        reason = f"{rival.mac} claims it too; heard {rival.seen} times"
        _log.warning("vip.contested", address=text, reason=reason)
        event = VipEvent(text, self._lb, self._term, reason)
        self._events.append((Topic.VIP_CONTESTED, event))

    # ------------------------------------------------------------------ scripts

    def _tell_scripts(self, present: frozenset[str], now_ms: int) -> None:
        """How things stand: `want` is about that, and about nothing else."""
        held = self._core.held
        self._scripts.want(Word.ACQUIRE, sorted(held), now_ms)
        self._scripts.want(Word.LOSE, sorted((present | self._known) - held), now_ms)

    def _run_scripts(self, command: str, sides: Mapping[str, Interface], now_ms: int) -> None:
        for text, running in list(self._running.items()):
            status = running.process.poll()
            if status is not None:
                del self._running[text]
                self._script_ended(text, running.word, status, now_ms)
        self._scripts.tick(now_ms)
        for each in self._scripts.take():
            if isinstance(each, Start):
                self._start_script(command, each, sides.get(each.address), now_ms)
            elif each.address in self._running:
                with suppress(ProcessLookupError):
                    os.killpg(self._running[each.address].process.pid, signal.SIGKILL)

    def _start_script(
        self, command: str, start: Start, side: Interface | None, now_ms: int
    ) -> None:
        interface = side.name if side is not None else ""
        words = [command, start.word.value, start.address, interface]
        try:
            process = subprocess.Popen(words, stdin=subprocess.DEVNULL, start_new_session=True)
        except OSError as error:
            self._script_failed(start.address, start.word, f"{error.strerror}", now_ms)
            return
        self._running[start.address] = _Running(process, start.word)
        _log.info("announce_command", does=start.word.value, address=start.address)

    def _script_ended(self, text: str, word: Word, status: int, now_ms: int) -> None:
        if status == 0:
            self._failed.pop(text, None)
            self._scripts.ended(text, succeeded=True, now_ms=now_ms)
            return
        how = f"exit {status}" if status > 0 else f"ended by signal {-status}"
        self._script_failed(text, word, how, now_ms)

    def _script_failed(self, text: str, word: Word, how: str, now_ms: int) -> None:
        reason = f"announce_command {word.value} {text}: {how}; it will be run again"
        self._failed[text] = reason
        _log.error("announce_command has failed", reason=reason)
        self._events.append((Topic.DATAPLANE_DEGRADED, DataplaneEvent("", "", "", reason)))
        self._scripts.ended(text, succeeded=False, now_ms=now_ms)

    # ------------------------------------------------------------------ what people see

    def _states(self, maps: Mapping[str, Floating], now_ms: int) -> Iterator[ClaimState]:
        held = self._core.held
        for text, each in sorted(maps.items()):
            trouble = self._failed.get(text, "")
            rival = each.rival
            if rival is not None and now_ms < rival.last_ns // _NS_PER_MS + CONTESTED_MS:
                trouble = f"{rival.mac} claims it too"
            yield ClaimState(text, each.side, text in held, trouble)


def _seen(each: Floating) -> Seen:
    rival = Rival(each.rival.mac, each.rival.seen) if each.rival is not None else None
    return Seen(each.until_ns // _NS_PER_MS, rival)


def _side(each: Floating, machine: Machine) -> Interface:
    return machine.public if each.side == "public" else machine.private
