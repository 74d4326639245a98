"""What fifty open consoles cost a load balancer: the CPU time of each of its four processes.

A lab with three LBs and three nodes, and requests all the while, so that there is something to
show: counters move each second. Fifty readers hold the stream that a console reads (`/v1/live`)
open at one of the LBs, and read what comes. The processes are measured for a while without any of
them, and then with all.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from bus import topics
from e2e.bench.report import Line, Result
from e2e.bench.samples import Sample, at_most
from e2e.hosts import LabHosts, lab_hosts, pid_of, traffic, wait_for
from e2e.lab import Plan

CONSOLES = 50
RATE = 100
SETTLE_S = 5.0
MOST_PERCENT = 30
REQUEST = b"GET /v1/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
NONE, ALL = "no console", "{} consoles"
Progress = Callable[[str], None]


def run(consoles: int, seconds: float, progress: Progress) -> Result:
    """Each of the two rows measured for so long."""
    with lab_hosts(Plan(lbs=3, nodes=3), progress) as hosts:
        lb = hosts.lbs[0]
        requests = traffic(hosts, rate=RATE)
        wait_for(lambda: requests.results, "the first answer")
        time.sleep(SETTLE_S)
        progress(f"nobody looks, for {seconds:g} s")
        without = _percents(hosts, lb, seconds)
        with _opened(hosts.lab.plan.api_port(lb), consoles) as got:
            wait_for(lambda: all(got), f"{consoles} consoles to be shown something")
            time.sleep(SETTLE_S)
            progress(f"{consoles} consoles, for {seconds:g} s")
            before = sum(got)
            looked_at = _percents(hosts, lb, seconds)
            each_kb_per_s = (sum(got) - before) / seconds / consoles / 1_000
        requests.stop()
    return result({NONE: without, ALL.format(consoles): looked_at}, seconds, each_kb_per_s)


def _percents(hosts: LabHosts, lb: str, seconds: float) -> dict[str, float]:
    """Of a core, by process."""
    pids = {process: pid_of(hosts, lb, f"gale:{process}") for process in topics.SERVICES}
    before = {process: cpu_s(pid) for process, pid in pids.items()}
    begun_s = time.monotonic()
    time.sleep(seconds)
    took_s = time.monotonic() - begun_s
    return {process: 100 * (cpu_s(pid) - before[process]) / took_s for process, pid in pids.items()}


def cpu_s(pid: int) -> float:
    """That a process has spent so far, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


@contextmanager
def _opened(port: int, consoles: int) -> Iterator[list[int]]:
    """So many, in a thread of their own; the bytes that each has got."""
    got = [0] * consoles
    loop = asyncio.new_event_loop()
    reading = loop.create_task(_read_all(port, got))
    thread = threading.Thread(target=loop.run_until_complete, args=(reading,))
    thread.start()
    try:
        yield got
    finally:
        loop.call_soon_threadsafe(reading.cancel)
        thread.join()
        loop.close()


async def _read_all(port: int, got: list[int]) -> None:
    """Until it is cancelled."""
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*(read(port, got, number) for number in range(len(got))))


async def read(port: int, got: list[int], number: int) -> None:
    """Be one console, and count the bytes that come."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(REQUEST)
    while part := await reader.read(1 << 20):
        got[number] += len(part)


def result(seen: dict[str, dict[str, float]], seconds: float, each_kb_per_s: float) -> Result:
    """What is made of the percentages."""
    return Result(
        key="consoles",
        title="Open consoles",
        columns=tuple(f"{process}, %" for process in topics.SERVICES),
        lines=tuple(_line(name, percents) for name, percents in seen.items()),
        bar_label="CPU of the API process, % of a core",
        remark=(
            f"CPU time of each process in {seconds:g} s, in percent of one core; {RATE} requests a"
            f" second all the while; each console got {each_kb_per_s:.1f} kB/s."
        ),
    )


def _line(name: str, percents: dict[str, float]) -> Line:
    return Line(
        name=name,
        cells=tuple(f"{percents[process]:.1f}" for process in topics.SERVICES),
        bar=Sample((percents[topics.API],)),
        judged=percents[topics.API],
        goal=None if name == NONE else at_most(MOST_PERCENT, " % of the API", 0),
    )
