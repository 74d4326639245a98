"""`gale capture`: the programs that show packets, on the hooks for as long as somebody watches.

    capture {filter, kept, seconds}  → {id}, at once; the programs are compiled and loaded meanwhile
    capture_renew {id}               → {on, ...}, and where the ring of records is pinned
    capture_end {id}                 → {lost}

One capture at a time. A capture is a lease: its owner renews it every second, and after `LEASE_MS`
without that, or when its seconds are over, the ordinary programs are put back. So it ends however
its owner ends. If this process dies first, the deadline that stands in the programs' own map ends
it within the same time, and the next start attaches the ordinary programs.

The records go to their reader through a ring that is pinned below `capture/`: packets of clients
stand in it, so whoever may open pins of the load balancer (root) may read it, and nobody else.

The programs that show do all that the ordinary ones do, over the same maps, and take their place
and give it back hook by hook in one step each: no packet is lost by it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import structlog
from pyroute2.netlink.exceptions import NetlinkError

from bpf.attach import ForeignProgram, InterfaceMissing
from bpf.capture import CapturePrograms
from bpf.passage import MOST_KEPT, Setup
from bpf.pins import pin
from bus.commands import CommandError
from services.dataplane.capture import WrongFilter, read_filter
from services.dataplane.counters import hooks, reasons
from services.dataplane.loading import Loading
from services.dataplane.machine import Machine
from services.dataplane.programs import Programs
from services.dataplane.trace import kind_of
from services.logs import words_of

LEASE_MS = 5_000
MOST_SECONDS = 86_400
POLL_MS = 20
RETRY_MS = 1_000
RING_PIN = "captured"
_NOT_NOW = (InterfaceMissing, ForeignProgram, NetlinkError, OSError)
"""Reasons of the machine, which may go."""

_log = structlog.get_logger()


class _Capture:
    """One, from being asked for to its end."""

    def __init__(self, setup: Setup, seconds: int, now_ms: int) -> None:
        self.id = uuid.uuid4().hex
        self.setup = setup
        self.seconds = seconds
        self.lease_ms = now_ms + LEASE_MS
        self.until_ms: int | None = None
        """When its seconds are over; None: it has not begun."""
        self.loading: Loading[CapturePrograms] | None = None
        self.programs: CapturePrograms | None = None
        """On the hooks."""

    @property
    def ends_ms(self) -> int:
        return self.lease_ms if self.until_ms is None else min(self.lease_ms, self.until_ms)

    def show(self) -> None:
        """Have the programs show packets for as long as the lease lasts."""
        if self.programs is not None:
            until_ns = self.ends_ms * 1_000_000
            setup = self.setup
            self.programs.set_up(
                Setup(until_ns, setup.reasons, setup.hooks, setup.kept, setup.terms)
            )


class Capturing:
    """Belongs to the programs that are attached, and ends with them."""

    def __init__(
        self, programs: Programs, living: Mapping[str, int], cache_dir: Path, pins: Path
    ) -> None:
        """`living`: the maps by name; `pins`: the directory for the ring's pin."""
        self._programs = programs
        self._living = living
        self._cache_dir = cache_dir
        self._pin = pins / RING_PIN
        self._capture: _Capture | None = None
        self._leaving: CapturePrograms | None = None
        """Still on a hook, since the machine did not let it be taken off."""
        self._retry_ms = 0
        self._ended: dict[str, str] = {}
        """The last capture's id, and why it ended."""
        self._reasons = reasons()
        self._hooks = hooks()
        # Of a process that died while it captured.
        self._pin.unlink(missing_ok=True)

    # ------------------------------------------------------------------ commands

    def begin(self, arguments: Mapping[str, Any], machine: Machine, now_ms: int) -> dict[str, Any]:
        """Raises `CommandError`."""
        if self._capture is not None or self._leaving is not None:
            raise CommandError("packets are being captured already, one capture at a time")
        words = arguments.get("filter") or []
        kept, seconds = arguments.get("kept"), arguments.get("seconds")
        if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
            raise CommandError("filter: expected a list of words")
        if type(kept) is not int or not 1 <= kept <= MOST_KEPT:
            raise CommandError(f"kept: {kept!r}, expected 1 to {MOST_KEPT} bytes")
        if type(seconds) is not int or not 1 <= seconds <= MOST_SECONDS:
            raise CommandError(f"seconds: {seconds!r}, expected 1 to {MOST_SECONDS}")
        try:
            wanted = read_filter(words, list(self._reasons), self._hooks)
        except WrongFilter as wrong:
            raise CommandError(str(wrong)) from None
        setup = Setup(0, wanted.reasons, wanted.hooks, kept, wanted.terms)
        capture = self._capture = _Capture(setup, seconds, now_ms)
        frags, places = self._programs.takes_pieces(machine), tuple(self._programs.places)
        defines = self._programs.compiled_with

        def load(living: Mapping[str, int]) -> CapturePrograms:
            programs = CapturePrograms(living, defines, self._cache_dir)
            programs.load(places, frags=frags)
            return programs

        capture.loading = Loading("capture", self._living, load)
        return {"id": capture.id}

    def renew(self, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
        """Raises `CommandError` with the reason if the capture has ended."""
        capture = self._of(arguments)
        capture.lease_ms = now_ms + LEASE_MS
        if capture.programs is None:
            return {"on": False}
        capture.show()
        names = list(self._reasons)
        return {
            "on": True,
            "lost": capture.programs.lost,
            "ring": str(self._pin),
            "hooks": [
                [number, hook, self._programs.places[hook]]
                for number, hook in enumerate(self._hooks)
                if hook in self._programs.places and capture.setup.hooks >> number & 1
            ],
            "reasons": [[name, kind_of(name, names), text] for name, text in self._reasons.items()],
        }

    def end(self, arguments: Mapping[str, Any], now_ms: int) -> dict[str, Any]:
        """As `renew`."""
        capture = self._of(arguments)
        lost = capture.programs.lost if capture.programs is not None else 0
        self._finish("its owner ended it", now_ms)
        return {"lost": lost}

    def _of(self, arguments: Mapping[str, Any]) -> _Capture:
        asked = arguments.get("id")
        if self._capture is None or self._capture.id != asked:
            why = self._ended.get(str(asked), "the programs have been attached again since")
            raise CommandError(f"the capture has ended: {why}")
        return self._capture

    # ------------------------------------------------------------------ the clock

    def next_ms(self, now_ms: int) -> int | None:
        """When to take a turn; None: nothing is to be done."""
        if self._leaving is not None:
            return self._retry_ms
        if self._capture is None:
            return None
        if self._capture.loading is not None:
            return now_ms + POLL_MS
        return self._capture.ends_ms

    def turn(self, now_ms: int) -> None:
        if self._leaving is not None and now_ms >= self._retry_ms:
            self._put_back(self._leaving, now_ms)
        capture = self._capture
        if capture is None:
            return
        if now_ms >= capture.ends_ms:
            is_left = capture.until_ms is None or now_ms < capture.until_ms
            why = "nobody renewed it" if is_left else f"its {capture.seconds} s are over"
            self._finish(why, now_ms)
        elif capture.loading is not None and capture.loading.is_done:
            self._go_on_hooks(capture, capture.loading, now_ms)

    def _go_on_hooks(
        self, capture: _Capture, loading: Loading[CapturePrograms], now_ms: int
    ) -> None:
        if loading.refusal:
            capture.loading = None
            self._finish(f"the programs of capture: {loading.refusal}", now_ms)
            return
        capture.programs, capture.loading = loading.take(), None
        try:
            pin(capture.programs.ring_fd, self._pin)
            self._programs.put_on(capture.programs.xdp, capture.programs.tc)
        except _NOT_NOW as reason:
            self._finish(f"its programs cannot be attached: {words_of(reason)}", now_ms)
            return
        capture.until_ms = now_ms + capture.seconds * 1_000
        capture.show()
        _log.info("packets are being captured", seconds=capture.seconds)

    def _finish(self, why: str, now_ms: int) -> None:
        capture = self._capture
        if capture is None:
            return
        self._capture = None
        self._ended = {capture.id: why}
        if capture.loading is not None:
            capture.loading.abandon()
        if capture.programs is not None:
            self._put_back(capture.programs, now_ms)
            self._pin.unlink(missing_ok=True)
            _log.info("no more packets are captured", why=why)

    def _put_back(self, programs: CapturePrograms, now_ms: int) -> None:
        """The ordinary programs; where the machine refuses, those that are there show nothing."""
        setup = Setup(0, 0, 0, 1)
        programs.set_up(setup)
        try:
            self._programs.put_on()
        except _NOT_NOW as reason:
            _log.warning("capture's programs cannot be taken off yet", why=reason)
            self._leaving, self._retry_ms = programs, now_ms + RETRY_MS
            return
        self._leaving = None
        programs.close()

    def close(self) -> None:
        """The ordinary programs are on the hooks after this, if the machine lets them."""
        self._finish("the programs are being attached again", time.monotonic_ns() // 1_000_000)
        if self._leaving is not None:
            self._leaving.close()
            self._leaving = None
