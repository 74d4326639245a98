"""How soon a load balancer is heard again once a silent cut of eight seconds is healed.

A lab with three LBs and one node. The switch carries nothing to or from one of the LBs any more,
while all carriers stay: by the end nobody has heard it for long, and TCP has doubled its pauses
between two tries several times. Then the cut is healed, and two watchers, each on its own machine,
say when they find what they wait for. They ask every few milliseconds:

* **LBs**: the leader, whether it hears that LB again (`/v1/quorum`);
* **agent**: the node's agent, whether that LB has admitted it again (`/status`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from e2e.bench.report import Line, Result
from e2e.bench.samples import Sample, at_most
from e2e.cluster import agreed, others
from e2e.hosts import LabHosts, lab_hosts
from e2e.lab import LabError, Plan

CUT_S = 8.0
SETTLE_S = 1.0
GOAL_MS = 500
Progress = Callable[[str], None]

_WATCH = """
import json, sys, time, urllib.request
url, found = sys.argv[1], eval(sys.argv[2])
direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))
before = None
while True:
    try:
        now = bool(found(json.load(direct.open(url, timeout=1))))
    except OSError:
        now = False
    if now is not before:
        print("heard" if now else "lost", time.monotonic(), flush=True)
    before = now
    time.sleep(0.005)
"""
"""The monotonic clock is one for all of the lab's machines."""


class _Watcher:
    """Says on a machine from when on something is found there, and from when on it is not."""

    def __init__(self, hosts: LabHosts, who: str, url: str, found: str) -> None:
        words = ("python3", "-c", _WATCH, url, f"lambda said: {found}")
        self._process = hosts.start(who, *words)
        self.who = who

    def until(self, what: str) -> float:
        """When that was, by the monotonic clock, in seconds."""
        assert self._process.stdout is not None
        lines: IO[str] = self._process.stdout
        for line in lines:
            said, at_s = line.split()
            if said == what:
                return float(at_s)
        raise LabError(f"nobody watches at {self.who} any more")

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()


@contextmanager
def _watchers(hosts: LabHosts, lb: str, leader: str) -> Iterator[dict[str, _Watcher]]:
    node = hosts.nodes[0]
    links = hosts.lab.plan.links
    private = links(lb)[-1].address
    heard = f"[each for each in said['members'] if each['name'] == '{lb}' and each['alive']]"
    admitted = (
        "[each for each in said['load_balancers']"
        f" if each['address'].startswith('{private}:') and each['phase'] == 'admitted']"
    )
    made = {
        "LBs": _Watcher(hosts, leader, "http://127.0.0.1:5555/v1/quorum", heard),
        "agent": _Watcher(hosts, node, "http://127.0.0.1:5556/status", admitted),
    }
    try:
        yield made
    finally:
        for watcher in made.values():
            watcher.close()


def run(times: int, progress: Progress) -> Result:
    """Cut and healed so many times."""
    seen: dict[str, list[float]] = {}
    with lab_hosts(Plan(lbs=3, nodes=1), progress) as hosts:
        leader = agreed(hosts)
        lb = others(hosts, leader)[0]
        with _watchers(hosts, lb, leader) as watchers:
            for watcher in watchers.values():
                watcher.until("heard")
            for number in range(times):
                progress(f"cut {number + 1} of {times}")
                for who, healed_ms in _healed(hosts, lb, watchers).items():
                    seen.setdefault(who, []).append(healed_ms)
    return result({who: tuple(found) for who, found in seen.items()})


def _healed(hosts: LabHosts, lb: str, watchers: dict[str, _Watcher]) -> dict[str, float]:
    """After how long each of them heard it again, in ms."""
    end_s = time.monotonic() + CUT_S
    hosts.set_cut(lb, cut=True)
    for watcher in watchers.values():
        watcher.until("lost")
    time.sleep(max(0.0, end_s - time.monotonic()))
    hosts.set_cut(lb, cut=False)
    healed_s = time.monotonic()
    found = {who: 1_000 * (watcher.until("heard") - healed_s) for who, watcher in watchers.items()}
    time.sleep(SETTLE_S)
    return found


def result(seen: dict[str, tuple[float, ...]]) -> Result:
    """What is made of the times."""
    return Result(
        key="healing",
        title="Heard again after a cut",
        columns=("heard again after, ms", "longest"),
        lines=tuple(
            Line(
                name=f"{who} hear it again" if who == "LBs" else f"the {who} is admitted again",
                cells=(Sample(found).text(0), f"{max(found):.0f}"),
                bar=Sample(found),
                judged=max(found),
                goal=at_most(GOAL_MS, " ms each time", 0),
            )
            for who, found in seen.items()
        ),
        bar_label="ms after the healing",
        remark=(
            f"{min(map(len, seen.values()))} silent cuts of {CUT_S:.0f} s, median (middle half)"
            " and longest."
        ),
        dots=True,
    )
