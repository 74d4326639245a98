"""Answering `trace`: the programs that only look, brought up when somebody asks first.

They are compiled and loaded in a thread, since that takes seconds and the process's loop must go
on; from then on a question costs some milliseconds of a turn. They belong to the programs that are
attached (`Forwarding`), and go with them.

A question is answered in two looks. The first finds out whether a flow is known, by whatever its
records say; the second goes with a packet that fits that flow, hook after hook, as the real one
would: what XDP passes on, TC sees. Nothing living is changed by either (bpf/trace.py).
"""

from __future__ import annotations

import contextlib
import socket
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bpf.clock import ticks
from bpf.trace import Bucket, Run, TracePrograms
from bus.commands import CommandError, Later
from bus.words import Protocol
from services.dataplane.counters import reasons
from services.dataplane.flows.listing import Seated
from services.dataplane.flows.record import FlowState
from services.dataplane.kernel import Settings
from services.dataplane.loading import Loading
from services.dataplane.maps import NO_SEAT, KernelState, Service
from services.dataplane.trace import (
    PASS,
    Known,
    Passage,
    Question,
    Seen,
    answer,
    flags_for,
    frame,
    key_of,
    kind_of,
)
from services.dataplane.words import ServiceKey

MOST_WAITING = 32
"""Questions at a time; whoever asks then is to ask again."""
POLL_MS = 20
_OVER = (FlowState.FREE, FlowState.TCP_TIME_WAIT, FlowState.TCP_RESET)
_KEY_BYTES = 14


@dataclass(frozen=True, slots=True)
class Scene:
    """What the process knows about the maps, besides what stands in them."""

    lb: str
    settings: Settings
    kernel: KernelState
    names: Mapping[int, Seated]
    services: Mapping[int, str]
    """By id."""
    public: str
    private: str
    by_xdp: frozenset[str]
    """The XDP hooks that have a program."""

    @property
    def cursors(self) -> int:
        return max((seat.cursor for seat in self.kernel.seats.values()), default=0) + 1


class Tracing:
    """`living`, `defines`, `cache_dir` as `TracePrograms` takes them; the fds are borrowed."""

    def __init__(
        self, living: Mapping[str, int], defines: Mapping[str, str | int], cache_dir: Path
    ) -> None:
        self._living = living
        self._defines = defines
        self._cache_dir = cache_dir
        self._waiting: deque[tuple[Question, Later]] = deque()
        self._loading: Loading[TracePrograms] | None = None
        self._programs: TracePrograms | None = None
        self._reasons = reasons()
        self._names = list(self._reasons)

    def ask(self, question: Question) -> Later:
        """Raises `CommandError` when too many wait."""
        if len(self._waiting) >= MOST_WAITING:
            raise CommandError(f"{MOST_WAITING} traces wait: ask again")
        if self._programs is None and self._loading is None:
            self._loading = Loading("trace", self._living, self._load)
        later = Later()
        self._waiting.append((question, later))
        return later

    def _load(self, living: Mapping[str, int]) -> TracePrograms:
        return TracePrograms(living, self._defines, self._cache_dir)

    @property
    def is_asked(self) -> bool:
        return bool(self._waiting)

    def next_ms(self, now_ms: int) -> int | None:
        """When to take a turn; None: nobody waits."""
        if not self._waiting:
            return None
        return now_ms if self._programs is not None else now_ms + POLL_MS

    def turn(self, scene: Scene) -> bool:
        """Answer one question, if the programs are there; whether one was answered."""
        if not self._waiting:
            return False
        if self._programs is None:
            if self._loading is None or not self._loading.is_done:
                return False
            loading, self._loading = self._loading, None
            if loading.refusal:
                self._refuse(f"the programs of trace: {loading.refusal}")
                return True
            self._programs = loading.take()
        question, later = self._waiting.popleft()
        try:
            later.result = self._look(self._programs, question, scene)
        except OSError as error:
            later.error = f"the kernel refused to run the program: {error.strerror}"
        return True

    def _refuse(self, why: str) -> None:
        while self._waiting:
            self._waiting.popleft()[1].error = why

    def close(self) -> None:
        self._refuse("the programs are being attached again: ask again")
        if self._loading is not None:
            self._loading.abandon()
        if self._programs is not None:
            self._programs.close()

    # ------------------------------------------------------------------ one question

    def _look(self, programs: TracePrograms, question: Question, scene: Scene) -> dict[str, Any]:
        now = ticks(time.monotonic_ns())
        at_private = question.is_reply and scene.public != scene.private
        side = "private" if at_private else "public"
        own_mac = scene.settings.private_mac if at_private else scene.settings.public_mac
        ifindex = scene.settings.private_ifindex if at_private else scene.settings.public_ifindex
        self._begin(programs, question, scene, frame(question, own_mac, None))
        programs.run(f"tc_{side}", frame(question, own_mac, None), ifindex)
        known = _known(programs, question, now)
        packet = frame(question, own_mac, known)
        self._begin(programs, question, scene, packet)
        passages: list[Passage] = []
        seat, run = NO_SEAT, None
        for hook in (f"xdp_{side}", f"tc_{side}"):
            if hook.startswith("xdp") and hook not in scene.by_xdp:
                continue
            run = programs.run(hook, packet, ifindex)
            seat = run.seat or seat
            reason = self._names[run.reason]
            passages.append(Passage(hook, scene.private if at_private else scene.public, reason))
            if kind_of(reason, self._names) != PASS:
                break
        assert run is not None, "TC has a program on either side"
        seen = self._seen(programs, question, scene, known, passages, seat, run, now)
        return answer(seen, scene.lb, self._reasons)

    def _begin(
        self, programs: TracePrograms, question: Question, scene: Scene, packet: bytes
    ) -> None:
        programs.begin(packet, cursors=scene.cursors, is_reply=question.is_reply)

    def _seen(
        self,
        programs: TracePrograms,
        question: Question,
        scene: Scene,
        known: Known | None,
        passages: list[Passage],
        seat: int,
        run: Run,
        now: int,
    ) -> Seen:
        before = known.mine if known is not None else None
        if seat == NO_SEAT and known is not None and not known.is_over:
            seat = int(known.mine["seat"])
        service = _service(question, scene)
        seated = scene.names.get(seat)
        held = scene.kernel.seats.get(seat)
        name = scene.services.get(service.service_id, "") if service is not None else ""
        if seated is not None and not name:
            name = seated.service
        leaves_by = scene.public
        if kind_of(passages[-1].reason, self._names) == "answer":
            leaves_by = passages[-1].interface
        elif held is not None and held.next_hop is not None and not question.is_reply:
            leaves_by = _interface_name(held.next_hop.ifindex)
        return Seen(
            question=question,
            flags=flags_for(question, known),
            passages=tuple(passages),
            service=name,
            mode=str(service.mode) if service is not None else "",
            node=seated.node if seated is not None else "",
            at=held.address if held is not None else "",
            before=before,
            after=_find(programs.buckets(), question, living=False),
            now=now,
            packet=run.packet,
            leaves_by=leaves_by,
        )


def _service(question: Question, scene: Scene) -> Service | None:
    end = question.source if question.is_reply else question.destination
    if question.protocol == "icmp" or question.is_reply:
        return None
    address = ".".join(map(str, end.address))
    return scene.kernel.services.get(ServiceKey(address, end.port, Protocol(question.protocol)))


def _known(programs: TracePrograms, question: Question, now: int) -> Known | None:
    for bucket in programs.buckets():
        mine = _in(bucket, question, living=True)
        if mine is None:
            continue
        left = (int(mine["deadline"]) - now) & 0xFFFF_FFFF
        is_past = not 0 < left < 1 << 31
        if int(mine["state"]) == FlowState.FREE or is_past:
            return None
        theirs = programs.flow_at(int(mine["other"]), is_old=bucket.is_old)
        return Known(mine, theirs, int(mine["state"]) in _OVER)
    return None


def _find(buckets: list[Bucket], question: Question, *, living: bool) -> Any:
    found = [_in(bucket, question, living=living) for bucket in buckets]
    return next((record for record in found if record is not None), None)


def _in(bucket: Bucket, question: Question, *, living: bool) -> Any:
    """The record of the question's key, as it is or as the packet would leave it; None: none."""
    key = key_of(question)
    for record in bucket.before if living else bucket.after:
        if record["key"].tobytes()[:_KEY_BYTES] == key:
            return record
    return None


def _interface_name(ifindex: int) -> str:
    with contextlib.suppress(OSError):
        return socket.if_indextoname(ifindex)
    return f"interface {ifindex}"
