"""What many open consoles cost the API process: `make consoles` (CONSOLES=50, NODES=30).

The process as it is run, over a bus whose other three are played: counters come once a second, and
a node goes down or comes back every two seconds, which each console is shown at once. Measured is
the CPU time of the API process alone, as a part of one core.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from bus import topics
from bus.states import SeatCounters
from bus.topics import Topic
from bus.words import NodeState
from e2e.bench.consoles import CONSOLES, MOST_PERCENT, cpu_s, read
from tests.api.conftest import Gale, wait_for
from tests.api.samples import counters, dataplane, down, node, node_id, quorum, seat, table, view

NODES, FOR_S = 30, 20
SLOTS = 65_537


def main() -> None:
    parser = argparse.ArgumentParser(description="What many open consoles cost.")
    parser.add_argument("--consoles", type=int, default=CONSOLES)
    parser.add_argument("--nodes", type=int, default=NODES)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="gale-", dir="/tmp") as directory:
        gale = Gale(Path(directory))
        gale.start_fakes()
        gale.start_api()
        try:
            wait_for(lambda: gale.get("/readyz").status_code == 200, "the LB to be ready")
            part, got = asyncio.run(measured(gale, chosen.consoles, chosen.nodes))
        finally:
            gale.stop()
    print(
        f"{chosen.consoles} consoles, {chosen.nodes} nodes: {100 * part:.1f} % of a core,"
        f" {got / FOR_S / chosen.consoles / 1000:.1f} kB/s to each"
    )
    raise SystemExit(0 if 100 * part < MOST_PERCENT else 1)


async def measured(gale: Gale, consoles: int, nodes: int) -> tuple[float, int]:
    """The part of a core, and the bytes that all consoles got."""
    names = [f"node-{index}" for index in range(nodes)]
    gale.fakes[topics.QUORUM].publish(Topic.STATE_QUORUM, quorum(version=2))
    gale.fakes[topics.QUORUM].publish(Topic.STATE_TABLE, table(*names, epoch=2))
    moving = asyncio.create_task(_move(gale, names))
    got = [0] * consoles
    readers = [asyncio.create_task(read(gale.port, got, index)) for index in range(consoles)]
    while not all(got):
        await asyncio.sleep(0.05)
    before_s, before, begun_s = _cpu_s(gale), sum(got), time.monotonic()
    await asyncio.sleep(FOR_S)
    part = (_cpu_s(gale) - before_s) / (time.monotonic() - begun_s)
    received = sum(got) - before
    for task in (moving, *readers):
        task.cancel()
    await asyncio.gather(moving, *readers, return_exceptions=True)
    return part, received


async def _move(gale: Gale, names: list[str]) -> None:
    """One second after the other: counters, and every other time a node that dies or returns."""
    second = 1
    while True:
        second += 1
        _count(gale, names, second)
        if second % 2 == 0:
            state = NodeState.DOWN if second % 4 == 0 else NodeState.UP
            first = node(names[0], state)
            rest = [node(name) for name in names[1:]]
            gale.fakes[topics.HEALTH].publish(Topic.NODE_DOWN, down(names[0]))
            gale.fakes[topics.HEALTH].publish(Topic.STATE_VIEW, view(first, *rest, version=second))
            seats = [seat(name, SLOTS // len(names), SLOTS) for name in names]
            gale.fakes[topics.DATAPLANE].publish(
                Topic.STATE_DATAPLANE, dataplane(*seats, version=second)
            )
        await asyncio.sleep(1)


def _count(gale: Gale, names: list[str], second: int) -> None:
    many = 10_000 * second
    rows = [SeatCounters("default", node_id(name), many, many, many, many, many) for name in names]
    said = replace(counters(*rows, **{"xdp_public.l4_established": many}), version=second)
    gale.fakes[topics.DATAPLANE].publish(Topic.STATE_COUNTERS, said)


def _cpu_s(gale: Gale) -> float:
    assert gale.process is not None
    return cpu_s(gale.process.pid)


if __name__ == "__main__":
    main()
