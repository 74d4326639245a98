"""The VIP's holder fails, in one way or another, while a client probes the VIP every 5 ms.

A *fault* is a context: it begins at once and is healed at the end. `outage` makes one, and says
what the client saw of its beginning and of its end: for how long nobody answered.
"""

from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.hosts import LabHosts, pid_of, wait_for
from e2e.lab import network, plan

PROBER_PROGRAM = Path(__file__).with_name("prober.py").read_text()
UDP_PORT, TCP_PORT = 5300, 8080
PROCESSES = ("dataplane", "health", "quorum", "api")
LASTING_S = 1.0
"""A holder that is the same for so long stays one, if nothing happens to it."""
SETTLED_S = 1.0
"""Before a fault and after its healing the client sees for so long that all is well."""

Fault = Callable[[LabHosts, str], AbstractContextManager[None]]


@dataclass(frozen=True, slots=True)
class Gap:
    """Probes that nobody answered: from when (the machine's monotonic ms), and for how long."""

    from_ms: float
    ms: float
    lost: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What a prober saw."""

    sent: int
    answered: int
    lag_ms: float
    gaps: tuple[Gap, ...]

    def longest_ms(self, begin_ms: float = 0.0, end_ms: float = float("inf")) -> float:
        """The longest gap that began within this time, or just before it."""
        within = (gap for gap in self.gaps if begin_ms - 100 <= gap.from_ms < end_ms)
        return max((gap.ms for gap in within), default=0.0)


@dataclass(frozen=True, slots=True)
class Outage:
    """One fault, as a client saw it."""

    gap_ms: float
    """At its beginning."""
    heal_gap_ms: float
    """When it was healed."""
    lost: int
    lag_ms: float


class Probing:
    """A prober at work on a client, and answered."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        assert process.stdout is not None
        if process.stdout.readline().strip() != "answered":
            raise AssertionError("the VIP answers no probe")

    def stop(self) -> Seen:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        assert self._process.stderr is not None
        self._process.stdin.close()
        said, complaint = self._process.stdout.read(), self._process.stderr.read()
        if self._process.wait() != 0:
            raise RuntimeError(f"the prober ended with {self._process.returncode}: {complaint}")
        return read_seen(json.loads(said))


def read_seen(raw: dict[str, Any]) -> Seen:
    gaps = tuple(Gap(gap["from_ms"], gap["ms"], gap["lost"]) for gap in raw["gaps"])
    return Seen(raw["sent"], raw["answered"], raw["lag_ms"], gaps)


def prober_words(host: str, port: int, kind: str) -> list[str]:
    """The command that probes until its input is closed."""
    return ["python3", "-c", PROBER_PROGRAM, host, str(port), "--kind", kind, "--until-input-ends"]


def probing(hosts: LabHosts, kind: str = "udp") -> Probing:
    port = UDP_PORT if kind == "udp" else TCP_PORT
    return Probing(hosts.start(hosts.client, *prober_words(hosts.vip(), port, kind)))


# --------------------------------------------------------------------------- who holds the VIP


def holders(hosts: LabHosts) -> list[str]:
    """The LBs whose kernels answer for the VIP, as far as they can be asked."""
    return [lb for lb in hosts.lbs if hosts.lab.holds_the_vip(lb)]


def the_holder(hosts: LabHosts) -> str:
    """Once there is one, and all LBs take part: the leader hears them all."""

    def steady() -> str | None:
        found = holders(hosts)
        return found[0] if len(found) == 1 and all_take_part(hosts) else None

    return wait_for(steady, "one holder of the VIP, among LBs that all take part", timeout_s=60)


def the_lasting_holder(hosts: LabHosts) -> str:
    """One that is the same a second later: while LBs start, the VIP may move to another of them."""
    while True:
        lb = the_holder(hosts)
        time.sleep(LASTING_S)
        if the_holder(hosts) == lb:
            return lb


def all_take_part(hosts: LabHosts) -> bool:
    try:
        states = [hosts.api(lb, "/v1/quorum") for lb in hosts.lbs]
    except (OSError, ValueError):
        return False
    leaders = {state["leader"] for state in states}
    leading = [state for state in states if state["name"] in leaders]
    return len(leaders) == len(leading) == 1 and all(
        member["alive"] for member in leading[0]["members"]
    )


# --------------------------------------------------------------------------- faults


@contextmanager
def links_down(hosts: LabHosts, lb: str) -> Iterator[None]:
    """As if the machine had lost its power: the carrier goes, on both sides."""
    network.set_links(hosts.lab.plan, lb, up=False)
    yield
    network.set_links(hosts.lab.plan, lb, up=True)


@contextmanager
def public_link_down(hosts: LabHosts, lb: str) -> Iterator[None]:
    """The cable to the clients alone: it still hears its peers and its nodes by the other."""
    (public,) = (link for link in hosts.lab.plan.links(lb) if link.network is plan.PUBLIC)
    network.set_link(public, up=False)
    yield
    network.set_link(public, up=True)


@contextmanager
def cut_from_nodes(hosts: LabHosts, lb: str) -> Iterator[None]:
    """The switch carries nothing between it and any node; it hears its peers and the clients."""
    for node in hosts.nodes:
        hosts.cut_way(lb, node)
        hosts.cut_way(node, lb)
    yield
    hosts.set_cut(lb, cut=False)


@contextmanager
def silent_cut(hosts: LabHosts, lb: str) -> Iterator[None]:
    """The switch carries nothing any more, and the carrier stays."""
    hosts.set_cut(lb, cut=True)
    yield
    hosts.set_cut(lb, cut=False)


@contextmanager
def all_killed(hosts: LabHosts, lb: str) -> Iterator[None]:
    """Every process of Gale's on the machine, and who would start them again."""
    pids = [pid for name in PROCESSES if (pid := pid_of(hosts, lb, f"gale:{name}"))]
    hosts.run(lb, "kill", "-KILL", str(hosts.supervisord_pid(lb)), *map(str, pids))
    yield
    hosts.start_supervisord(lb)


@contextmanager
def quorum_paused(hosts: LabHosts, lb: str) -> Iterator[None]:
    """The machine goes on forwarding, and claims nothing any more."""
    pid = pid_of(hosts, lb, "gale:quorum")
    hosts.run(lb, "kill", "-STOP", str(pid))
    try:
        yield
    finally:
        hosts.run(lb, "kill", "-CONT", str(pid))


@contextmanager
def handed_over(hosts: LabHosts, lb: str) -> Iterator[None]:
    """An operator has asked it to."""
    done = hosts.run(lb, "gale", "handover")
    assert done.returncode == 0, done.stdout + done.stderr
    yield


@contextmanager
def resigned(hosts: LabHosts, lb: str) -> Iterator[None]:
    """Its quorum process is told to end, before maintenance say: it hands over first."""
    hosts.supervisorctl(lb, "stop", "gale:quorum")
    yield
    hosts.supervisorctl(lb, "start", "gale:quorum")


def outage(hosts: LabHosts, fault: Fault, *, lasts_s: float = 5.0, kind: str = "udp") -> Outage:
    """The present holder has that fault for so long; what a client sees."""
    lb = the_lasting_holder(hosts)
    return watched(
        probing(hosts, kind),
        fault(hosts, lb),
        lasts_s=lasts_s,
        has_moved=lambda: any(each != lb for each in holders(hosts)),
        until_steady=lambda: the_holder(hosts),
    )


def watched(
    client: Probing,
    fault: AbstractContextManager[None],
    *,
    lasts_s: float,
    has_moved: Callable[[], bool],
    until_steady: Callable[[], object],
) -> Outage:
    """What a prober sees of a fault that lasts for so long, and at least until the VIP has moved.

    `until_steady` returns when the fault is healed.
    """
    try:
        time.sleep(SETTLED_S)
        begin_ms = time.monotonic() * 1000
        with fault:
            wait_for(has_moved, "another machine to hold the VIP", timeout_s=30)
            time.sleep(max(0.0, begin_ms / 1000 + lasts_s - time.monotonic()))
            healed_ms = time.monotonic() * 1000
        until_steady()
        time.sleep(SETTLED_S)
    finally:
        seen = client.stop()
    return Outage(
        gap_ms=seen.longest_ms(begin_ms, healed_ms - 100),
        heal_gap_ms=seen.longest_ms(healed_ms),
        lost=seen.sent - seen.answered,
        lag_ms=seen.lag_ms,
    )


def mac_of(hosts: LabHosts, lb: str) -> str:
    shown = hosts.run(lb, "ip", "-json", "link", "show", plan.PUBLIC.interface).stdout
    return str(json.loads(shown)[0]["address"])
