"""One of the two LBs of the benchmark `replication`: the dataplane's own code over real maps.

Run by `e2e.bench.replication` in a network namespace, as `ADDRESS OTHER BUCKETS`. It answers
requests, one JSON object a line:

    {"do": "open", "rate": 50000, "seconds": 10}    opens flows and notes them, in steps of 10 ms
    {"do": "fill", "count": 1000000}                the same at once, and unnoted
    {"do": "report"}                                how it stands

What opening costs is taken off the CPU time that is told: it stands for the packets' programs.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import zmq
from numpy.typing import NDArray

from bpf.loader import LoadedObject, compile_program
from bus.socket import monotonic_ms
from conf import LbConfig, load_lb
from e2e.bench.tables import bench_settings
from services.dataplane.entering import Entering
from services.dataplane.flows.record import REQUEST, TCP, FlowState, is_living
from services.dataplane.flows.table import FlowTable, TablePair
from services.dataplane.flows.told import Flows
from services.dataplane.kernel import Kernel
from services.dataplane.maps import Seat
from services.dataplane.noting import Noting
from services.dataplane.replication import Replication
from services.dataplane.words import address_word, port_word
from services.process import Loop

NODE, NODE_PORT, VIP, PORT = "10.81.0.20", 80, "10.80.0.100", 8080
SEAT, IDENTITY = 1, 0x1122_3344_5566_7788
STEP_MS = 10
_FIRST_PORT, _PORTS = 1_024, 60_000


class End:
    """The process: its maps, its replication, and what it is asked to do."""

    def __init__(self, address: str, other: str, buckets: int) -> None:
        source = Path(__file__).with_name("replication.c")
        sizes: dict[str, str | int] = {"FLOW_BUCKETS": buckets}
        cache = Path(__file__).parents[2] / "build" / "images"
        self._object: LoadedObject = compile_program(str(source), defines=sizes, cache_dir=cache)
        self._kernel = Kernel(self._object.bpf)
        self._settings = bench_settings(len(self._kernel.read_settings().timeout))
        self._note(noted=True)
        self._opening = Entering(self._object, "bench_open")
        bpf = self._object.bpf
        tables = [
            FlowTable(bpf[name].map_fd, np.dtype(bpf[name].Leaf), bpf[name].info.max_entries)
            for name in (b"flows", b"old_flows")
        ]
        self._pair = TablePair(*tables)
        entering = Entering(self._object)
        self._flows = Flows(self._object, self._pair, entering, self._settings.timeout)
        self._loop = Loop()
        self._loop.watch(sys.stdin.fileno())
        config = _config(address, other)
        context: zmq.Context[Any] = zmq.Context()
        self._replication = Replication(context, config, self._loop, monotonic_ms())
        self._noting = Noting(self._loop, self._replication, None, monotonic_ms())
        self._noting.attached(self._flows)
        seat = Seat(IDENTITY, 0, NODE, NODE_PORT, SEAT, True, False, False, None)
        self._noting.name({SEAT: seat}, {})
        self._base = int(address.rsplit(".", 1)[1]) << 24
        self._opened = 0
        self._generating_s = 0.0
        self._lags_ms: list[int] = []
        self._rate = self._left = 0
        self._due_s = 0.0

    def _note(self, *, noted: bool) -> None:
        self._kernel.write_settings(replace(self._settings, notes=int(noted)))

    def run(self) -> None:
        os.set_blocking(sys.stdin.fileno(), False)
        self._say({"ready": True})
        while not self._loop.signals.stopping:
            self._generate()
            now_ms = monotonic_ms()
            self._noting.turn(now_ms)
            if self._rate:
                self._lags_ms.append(self._replication.lag_ms(now_ms))
            wait_ms = max(0, self._noting.next_ms(now_ms) - monotonic_ms())
            if self._left:
                wait_ms = min(wait_ms, max(0, int(1_000 * (self._due_s - time.monotonic()))))
            self._loop.wait(wait_ms)
            line = sys.stdin.readline()
            if line:
                self._do(json.loads(line))

    def _do(self, wanted: dict[str, Any]) -> None:
        match wanted["do"]:
            case "open":
                self._rate = wanted["rate"]
                self._left = wanted["rate"] * wanted["seconds"]
                self._due_s = time.monotonic()
                self._lags_ms.clear()
            case "fill":
                self._note(noted=False)
                for _ in range(0, wanted["count"], 100_000):
                    self._open(min(100_000, wanted["count"]))
                self._note(noted=True)
                self._say({"filled": self._opened})
            case "report":
                self._say(self._report())

    def _generate(self) -> None:
        """What is due by now, so that a late loop catches up."""
        while self._left and time.monotonic() >= self._due_s:
            count = min(self._left, self._rate * STEP_MS // 1_000)
            self._open(count)
            self._left -= count
            self._due_s += STEP_MS / 1_000

    def _open(self, count: int) -> None:
        begun_s = time.thread_time()
        self._opening.enter(self._entries(count))
        self._generating_s += time.thread_time() - begun_s

    def _entries(self, count: int) -> NDArray[Any]:
        numbers = np.arange(self._opened, self._opened + count, dtype=np.uint32)
        self._opened += count
        entries = np.zeros(count, self._opening.record)
        request = entries["request"]
        key = request["key"]
        ports = (_FIRST_PORT + numbers % _PORTS).astype(">u2").view("<u2")
        addresses = (self._base + numbers // _PORTS).astype(">u4").view("<u4")
        key["saddr"], key["sport"] = addresses, ports
        key["daddr"], key["dport"] = address_word(VIP), port_word(PORT)
        key["protocol"], key["direction"] = TCP, REQUEST
        request["saddr"], request["sport"] = addresses, ports
        request["daddr"], request["dport"] = address_word(NODE), port_word(NODE_PORT)
        request["seat"], request["state"] = SEAT, FlowState.TCP_ESTABLISHED
        request["begin"] = self._flows.tick
        request["deadline"] = self._flows.tick + self._settings.timeout[FlowState.TCP_ESTABLISHED]
        return entries

    def _report(self) -> dict[str, Any]:
        peers = self._replication.peers()
        living = own = 0
        for block in self._pair.blocks():
            chosen = block.records["key"]["direction"] == REQUEST
            chosen &= is_living(block.records, block.now)
            living += int(np.count_nonzero(chosen))
            own += int(np.count_nonzero(chosen & (block.records["flags"] == 0)))
        return {
            "opened": self._opened,
            "left": self._left,
            "flows": living,
            "own": own,
            "cpu_s": time.process_time() - self._generating_s,
            "lags_ms": self._lags_ms,
            "counts": dict(self._replication.counts),
            "standing": peers[0].standing if peers else "",
        }

    def _say(self, answer: dict[str, Any]) -> None:
        print(json.dumps(answer), flush=True)


def _config(address: str, other: str) -> LbConfig:
    text = f"""
[local]
name = "{address}"
net_interface_public = "lo"
net_interface_private = "lo"
[load_balancer_quorum]
addresses = [{{ ip = "{address}", port = 7100 }}, {{ ip = "{other}", port = 7100 }}]
"""
    with TemporaryDirectory() as directory:
        path = Path(directory, "lb.toml")
        path.write_text(text)
        return load_lb(path)


if __name__ == "__main__":
    End(sys.argv[1], sys.argv[2], int(sys.argv[3])).run()
