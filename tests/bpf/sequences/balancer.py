"""The load balancer under test, as the model sees it: frames in, frames out, time, and a table.

`RealBalancer` runs Gale's own programs. What XDP passes goes on to TC, as it does in the kernel.
`FlowTable` is the only way into the flow table: whoever changes the table changes this class.
"""

from __future__ import annotations

import mmap
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import run_program, tc_context, xdp_context
from services.dataplane.counters import reasons
from services.dataplane.flows.record import REQUEST, FlowState, is_living
from tests.bpf.harness import LOOPBACK
from tests.bpf.scene import NODE, SEAT, Scene, node_of, now_ticks, ticks
from tests.bpf.sequences.contract import FIRST_PORT, Layout, LiveFlow, Outcome, Verdict
from tests.bpf.sequences.segments import Address

_SEATS = (SEAT, SEAT + 1, SEAT + 2)


class FlowTable:
    """The map `flows`, in this process's memory: time passes there by moving every deadline."""

    def __init__(self, scene: Scene) -> None:
        table = scene.programs.table("flows")
        size = table.info.value_size * table.info.max_entries
        self._memory = mmap.mmap(table.map_fd, size)
        bucket = np.dtype(table.Leaf)
        self._records: NDArray[Any] = np.frombuffer(self._memory, bucket)["flow"].ravel()
        self._cursors = scene.programs.table("port_cursors")

    def clear(self) -> None:
        """Nothing remembered: neither a flow nor which port comes next."""
        self._memory[:] = bytes(len(self._memory))
        for seat in _SEATS:
            self._cursors[seat] = self._cursors.Leaf()

    def age(self, seconds: float) -> None:
        """Let that much time go by."""
        used = self._records["state"] != FlowState.FREE
        self._records["deadline"][used] -= np.uint32(ticks(seconds))
        requests = used & (self._records["key"]["direction"] == REQUEST)
        self._records["begin"][requests] -= np.uint32(ticks(seconds))

    def live_flows(self) -> list[LiveFlow]:
        living = is_living(self._records, now_ticks())
        requests = self._records[living & (self._records["key"]["direction"] == REQUEST)]
        return [self._flow(record) for record in requests if self._is_whole(record)]

    def _is_whole(self, request: Any) -> bool:
        """Whether its other direction is still its own: a half-open flow may lose it."""
        if request["other"] >= len(self._records):
            return False
        reply = self._records[request["other"]]
        key = request["key"]
        here = [key[name] for name in ("saddr", "daddr", "sport", "dport")]
        back = [reply[name] for name in ("daddr", "saddr", "dport", "sport")]
        return here == back

    def _flow(self, record: Any) -> LiveFlow:
        key = record["key"]
        return LiveFlow(
            client=_stored(key["saddr"], key["sport"]),
            vip=_stored(key["daddr"], key["dport"]),
            snat=_stored(record["saddr"], record["sport"]),
            node=_stored(record["daddr"], record["dport"]),
            state=FlowState(record["state"]).word,
        )


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
        self._scene.snat_slice(FIRST_PORT, layout.ports)
        for seat in _SEATS:
            self._scene.endpoint((node_of(seat), NODE[1]))
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
