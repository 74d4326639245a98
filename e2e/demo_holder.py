"""The part of `make demo` about load balancers: the VIP's holder is lost, and its connections live.

While requests run and a client holds open connections, the holder of the VIP is cut off from
everything, silently, which is what a machine that lost its power looks like from outside. Another
load balancer claims the VIP, and knows all flows. The gap is the longest time between two good
answers, as a user at the client sees it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass

from e2e.failover import holders, the_holder
from e2e.held import hold
from e2e.hosts import LabHosts, wait_for
from e2e.replicas import PATIENCE_S, all_know
from e2e.traffic import Summary, Traffic

IDLE, MOVING = 100, 20
EVERY_MS = 50
AFTERWARDS_S = 1.5


@dataclass(frozen=True)
class Loss:
    """The holder's, as a client saw it."""

    gap_ms: float
    alive: int
    of: int
    failed: int
    lag_ms: float


class Holder:
    """The load balancer that has the VIP, under requests."""

    def __init__(self, hosts: LabHosts, requests: Traffic, note: Callable[[str], None]) -> None:
        self._hosts, self._requests, self._note = hosts, requests, note

    def lose(self) -> Loss:
        with ExitStack() as opened:
            idle = opened.enter_context(hold(self._hosts, count=IDLE))
            moving = opened.enter_context(hold(self._hosts, count=MOVING, every_ms=EVERY_MS))
            lost = the_holder(self._hosts)
            all_know(self._hosts, IDLE + MOVING)
            opened.callback(self._hosts.set_cut, lost, cut=False)
            before = len(self._requests.results)
            self._hosts.set_cut(lost, cut=True)
            self._note(f"{lost}, which holds the VIP, is cut off from everything")
            heir = wait_for(lambda: self._heir_of(lost), "another holder of the VIP", PATIENCE_S)
            time.sleep(AFTERWARDS_S)
            seen = self._requests.since(before)
            alive = idle.ask() + moving.ask()
            gap = f"nobody answered for {seen.longest_gap_ms:.0f} ms"
            self._note(f"{heir} holds the VIP now; {gap}")
            self._note(f"{alive} of {IDLE + MOVING} open connections go on, through {heir}")
        self._note(f"{lost} is back")
        the_holder(self._hosts)
        return self._loss(seen, alive)

    def _loss(self, seen: Summary, alive: int) -> Loss:
        return Loss(
            seen.longest_gap_ms, alive, IDLE + MOVING, len(seen.failures), seen.largest_lag_ms
        )

    def _heir_of(self, lost: str) -> str | None:
        others = [lb for lb in holders(self._hosts) if lb != lost]
        return others[0] if others else None
