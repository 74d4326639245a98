"""The load balancer under test, as the model sees it: frames in, frames out, time, and a table.

`RealBalancer` runs Gale's own programs. What XDP passes goes on to TC, as it does in the kernel.
`FlowTable` is the only way into the flow table: whoever changes the table changes this class.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from bpf.syscall import run_program, tc_context, xdp_context
from services.dataplane.conntrack import (
    CLOSED,
    REQUEST,
    STATE_NAMES,
    Sweep,
    Table,
    expired,
    sweep_established,
    sweep_half,
)
from services.dataplane.counters import reasons
from tests.bpf.harness import LOOPBACK, clear_map
from tests.bpf.scene import SEAT, Scene
from tests.bpf.sequences.contract import FIRST_PORT, Layout, LiveFlow, Outcome, Verdict
from tests.bpf.sequences.segments import Address

_SEATS = (SEAT, SEAT + 1, SEAT + 2)


class FlowTable:
    """The connection tracking maps: `est` and `half`, swept as the dataplane's process does."""

    def __init__(self, scene: Scene) -> None:
        self._scene = scene
        self._tables = {name: Table(scene.programs.table(name)) for name in ("est", "half")}

    def clear(self) -> None:
        for name in self._tables:
            clear_map(self._scene.programs.table(name).map_fd)
        counters = self._scene.programs.table("seat_counters")
        for seat in _SEATS:
            counters[seat] = counters.Leaf()

    def age(self, seconds: float) -> None:
        """Let that much time go by, and what is due happen."""
        # First what is due then: on a machine that has not been up for that long, no time stands
        # for so long ago, and what is aged is seen as younger than it is.
        then_ns = time.monotonic_ns() + int(seconds * 1e9)
        self._sweep(sweep_established(self._tables["est"], then_ns))
        self._sweep(sweep_half(self._tables["half"], then_ns))
        for name in self._tables:
            self._scene.age(name, seconds)

    def live_flows(self) -> list[LiveFlow]:
        now_ns = time.monotonic_ns()
        found = []
        for table in self._tables.values():
            for keys, flows in table.batches():
                wanted = (keys["direction"] == REQUEST) & ~expired(keys, flows, now_ns)
                pairs = zip(keys[wanted], flows[wanted], strict=True)
                found += [self._flow(key, flow) for key, flow in pairs]
        return found

    def _flow(self, key: Any, flow: Any) -> LiveFlow:
        return LiveFlow(
            client=_stored(key["saddr"], key["sport"]),
            vip=_stored(key["daddr"], key["dport"]),
            snat=_stored(flow["saddr"], flow["sport"]),
            node=_stored(flow["daddr"], flow["dport"]),
            state=STATE_NAMES[min(int(flow["state"]), CLOSED)],
        )

    def _sweep(self, sweep: Sweep) -> None:
        for _ in sweep:
            pass


def _stored(host: Any, port: Any) -> Address:
    """As it stands in the maps: network order."""
    return int(host).to_bytes(4, "little"), socket.ntohs(int(port))


class RealBalancer:
    """The programs of one rig. `tells`: find out the reasons too, which costs a look at a map."""

    def __init__(self, scene: Scene, *, tells: bool = False) -> None:
        self.tells = tells
        self._scene = scene
        self._table = FlowTable(scene)
        self._layout = Layout()
        self._names = list(reasons())
        self._fds = {
            hook: scene.programs.function(hook)
            for hook in ("xdp_public", "tc_public", "tc_private", "xdp_reply")
        }

    def begin(self, layout: Layout) -> None:
        self._layout = layout
        self._scene.service(
            "l4",
            seats=_SEATS[: layout.nodes],
            snat_first_port=FIRST_PORT,
            snat_ports=layout.ports,
        )
        self._table.clear()

    def request(self, frame: bytes) -> Outcome:
        return self._through((self._layout.request_hook, "tc_public"), frame)

    def reply(self, frame: bytes) -> Outcome:
        return self._through((self._layout.reply_hook, "tc_private"), frame)

    def age(self, seconds: float) -> None:
        self._table.age(seconds)

    def ring(self, first: int) -> None:
        seats = _SEATS[: self._layout.nodes]
        self._scene.ring(0, seats[first:] or seats)

    def live_flows(self) -> list[LiveFlow]:
        return self._table.live_flows()

    def _through(self, hooks: tuple[str, str], frame: bytes) -> Outcome:
        """Through the first hook, and through the second what the first passes."""
        outcome = self._run(hooks[0], frame)
        if outcome.verdict is Verdict.PASSED and hooks[0] != hooks[1]:
            return self._run(hooks[1], frame)
        return outcome

    def _run(self, hook: str, frame: bytes) -> Outcome:
        is_xdp = hook.startswith("xdp")
        context = xdp_context(frame, LOOPBACK) if is_xdp else tc_context(LOOPBACK, LOOPBACK)
        before = self._scene.counted() if self.tells else None
        run = run_program(self._fds[hook], frame, context)
        reason = ""
        if before is not None:
            places = np.argwhere(self._scene.counted() - before)
            reason = " ".join(self._names[place] for _, place in places.tolist())
        verdict = _VERDICTS[is_xdp].get(run.verdict)
        assert verdict is not None, f"{hook} says {run.verdict}"
        return Outcome(verdict, run.packet, reason)


_VERDICTS = (
    {0xFFFFFFFF: Verdict.PASSED, 0: Verdict.PASSED, 2: Verdict.DROPPED, 7: Verdict.FORWARDED},
    {1: Verdict.DROPPED, 2: Verdict.PASSED, 3: Verdict.FORWARDED, 4: Verdict.FORWARDED},
)
"""TC's, XDP's."""


@contextmanager
def pinned_to_cpu(number: int) -> Iterator[None]:
    """Ports are drawn per CPU: a history repeats itself only on one and the same."""
    before = os.sched_getaffinity(0)
    allowed = sorted(before)
    os.sched_setaffinity(0, {allowed[number % len(allowed)]})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
