"""What the four processes of an LB cost while nothing changes, with very many nodes.

The real processes run in a network namespace; ten thousand agents (`agents`) beat at them from
another, through a router, so that next hops are what they are in a large network. When all nodes
are routed to, and the maps hold them, nobody does anything but beat: what the processes spend then
is the price of standing still. It is counted as CPU time of all their threads, and as the dearest
turn of each loop (`timed`): a loop that is busy for long hears nothing meanwhile.

The beats themselves are work, that nobody can be spared; so another row is measured with health
put in a state in which it hears none: `checks_timeout` is an hour, and the agents have said hello.
A third one is the first with keys: each agent has its own, and the LB a list of all of them.

    python -m e2e.bench.control NODES SECONDS

prints the three rows for another number of nodes.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import zmq

from bus import topics
from bus.socket import Subscriber
from bus.states import CommittedTable, DataplaneState, LocalView
from bus.topics import Topic
from bus.words import NodeState
from e2e.bench import agents, core
from e2e.bench.report import Line, Result, table
from e2e.bench.samples import Sample, at_most
from e2e.lab import LabError

LB, NODES = "gale-control-lb", "gale-control-nodes"
LB_ADDRESS, ROUTER = "10.91.0.1", "10.91.0.254"
NODE_PORT = 7070
GENERATORS = 4
TIMED = (topics.HEALTH, topics.QUORUM, topics.DATAPLANE)
BPF = "bpf"
"""A bpffs of the benchmark's own: not every machine has one mounted at /sys/fs/bpf."""
READY_S = 300
SETTLE_S = 15
MOST_CPU_PERCENT = 10
MOST_TURN_MS = 10

CONFIG = f"""
[local]
name = "lb-0"
node_port = {NODE_PORT}
net_interface_public = "pub0"
net_interface_private = "priv0"
[node_health]
checks_timeout = "CHECKS_TIMEOUT"
probe = "none"
checks_before_routing = 1
[dataplane]
conntrack_entries = 8192
half_open_entries = 8192
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What was seen in one window of time."""

    cpu_percent: dict[str, float]
    turn_ms: dict[str, float]
    """Of the dearest turn, in CPU time."""
    nodes_up: int

    @property
    def total_percent(self) -> float:
        return sum(self.cpu_percent.values())

    @property
    def dearest_ms(self) -> float:
        """Of the two whose loops must hear at once; health has beats to read."""
        return max(self.turn_ms[topics.QUORUM], self.turn_ms[topics.DATAPLANE])


@dataclass(frozen=True, slots=True)
class Course:
    """One row."""

    name: str
    checks_timeout: str
    interval_ms: int
    keys: bool = False


COURSES = (
    Course("beating every 2.5 s, with keys", "5s", 2_500, keys=True),
    Course("beating every 2.5 s", "5s", 2_500),
    Course("silent, and nothing due", "1h", 1_800_000),
)


def run(nodes: int, seconds: int, progress: Callable[[str], None]) -> Result:
    """Both rows; `nodes` agents, measured for `seconds` each."""
    seen: dict[str, Cost] = {}
    for course in COURSES:
        with TemporaryDirectory(prefix="gale-control-") as directory, _network():
            seen[course.name] = _measured(Path(directory), nodes, seconds, course, progress)
    return result(seen, nodes, seconds)


def result(seen: dict[str, Cost], nodes: int, seconds: int) -> Result:
    return Result(
        key="control",
        title="The control plane at rest",
        columns=(
            "nodes up",
            *(f"{name}, %" for name in topics.SERVICES),
            "all, %",
            *(f"{name}'s dearest turn, ms" for name in TIMED),
        ),
        lines=tuple(_line(name, cost) for name, cost in reversed(seen.items())),
        bar_label="CPU of all processes, % of a core",
        remark=(
            f"{nodes:,} nodes of one service, nothing changing for {seconds} s. CPU time of all "
            "threads, in percent of one core; a turn: CPU time of the loop's thread."
        ),
    )


def _line(name: str, cost: Cost) -> Line:
    beats = name.startswith("beating")
    return Line(
        name=name,
        cells=(
            f"{cost.nodes_up:,}",
            *(f"{cost.cpu_percent[service]:.1f}" for service in topics.SERVICES),
            f"{cost.total_percent:.1f}",
            *(f"{cost.turn_ms[service]:.1f}" for service in TIMED),
        ),
        bar=Sample((cost.total_percent,)),
        judged=cost.total_percent,
        goal=at_most(40 if beats else MOST_CPU_PERCENT, " % in all", 0),
    )


# --------------------------------------------------------------------------- the machines


def _ip(*words: str) -> None:
    done = subprocess.run(("ip", *words), capture_output=True, text=True, check=False)
    if done.returncode:
        raise LabError(f"ip {' '.join(words)}: {done.stderr.strip()}")


@contextmanager
def _network() -> Iterator[None]:
    """The LB's namespace, and one that is the router and all the nodes behind it."""
    with ExitStack() as stack:
        for name in (LB, NODES):
            _ip("netns", "add", name)
            stack.callback(_ip, "netns", "delete", name)
            _ip("-n", name, "link", "set", "lo", "up")
        for cable, ours, theirs in (
            ("priv0", LB_ADDRESS, ROUTER),
            ("pub0", "10.92.0.1", "10.92.0.2"),
        ):
            _ip("-n", LB, *f"link add {cable} type veth peer name {cable} netns {NODES}".split())
            for machine, address in ((LB, ours), (NODES, theirs)):
                _ip("-n", machine, "address", "add", f"{address}/24", "dev", cable)
                _ip("-n", machine, "link", "set", cable, "up")
        _ip("-n", LB, "route", "add", agents.NETWORK, "via", ROUTER)
        _ip("-n", NODES, "route", "add", "local", agents.NETWORK, "dev", "lo")
        yield


@contextmanager
def _pins(directory: Path) -> Iterator[None]:
    """Where the LB's programs and maps are pinned."""
    directory.mkdir()
    subprocess.run(("mount", "-t", "bpf", "bpf", directory), check=True)
    try:
        yield
    finally:
        subprocess.run(("umount", directory), check=True)


class _Lb:
    """The four processes, and what they say."""

    def __init__(self, directory: Path, nodes: int, course: Course) -> None:
        self._directory = directory
        text = CONFIG.replace("CHECKS_TIMEOUT", course.checks_timeout)
        self.agents_keys = ""
        if course.keys:
            self.agents_keys = str(agents.make_keys(directory / "keys", nodes))
            text += f'[security]\nkeys = "{directory / "keys"}"\n'
        (directory / "lb.toml").write_text(text)
        (directory / "state").mkdir()
        self._environment = os.environ | {
            "GALE_CONFIG": str(directory / "lb.toml"),
            "GALE_RUN_DIR": str(directory / "run"),
            "GALE_STATE_DIR": str(directory / "state"),
            "GALE_BPF_DIR": str(directory / BPF / "v1"),
        }
        self.processes: dict[str, subprocess.Popen[bytes]] = {}
        self._context: zmq.Context[Any] = zmq.Context()
        wanted: dict[str, tuple[Topic, ...]] = {
            topics.HEALTH: (Topic.STATE_VIEW,),
            topics.QUORUM: (Topic.STATE_TABLE,),
            topics.DATAPLANE: (Topic.STATE_DATAPLANE,),
        }
        self._subscriber = Subscriber(self._context, directory / "run", wanted)
        self._newest: dict[type[Any], Any] = {}

    def start(self) -> None:
        for name in TIMED:
            self._start(name, "-m", "e2e.bench.timed", name, str(self._report(name)))
        self._start(topics.API, "-c", "from services.api.main import main; main()")

    def _start(self, name: str, *words: str) -> None:
        with (self._directory / f"{name}.log").open("wb") as log:
            self.processes[name] = subprocess.Popen(
                ("nsenter", f"--net=/run/netns/{LB}", sys.executable, *words),
                env=self._environment,
                stdout=log,
                stderr=log,
            )

    def _report(self, name: str) -> Path:
        return self._directory / f"{name}.turns"

    @property
    def listens(self) -> bool:
        """Whether agents can come: a hello that is sent before that may be lost."""
        self.nodes_up()
        view = self._newest.get(LocalView)
        return view is not None and not view.waiting_for

    def nodes_up(self) -> int:
        """How many nodes the kernel has been told of, when all processes say the same."""
        for envelope in self._subscriber.receive():
            self._newest[type(envelope.data)] = envelope.data
        view, committed, plane = map(self._newest.get, (LocalView, CommittedTable, DataplaneState))
        if view is None or committed is None or plane is None:
            return 0
        up = sum(node.state is NodeState.UP for node in view.nodes)
        agreed = sum(node.state is NodeState.UP for node in committed.table.nodes)
        return up if up == agreed and plane.epoch == committed.table.epoch else 0

    def turns(self) -> dict[str, float]:
        """The dearest turn of each loop since this was called last, in ms of CPU time."""
        for name in TIMED:
            self._report(name).unlink(missing_ok=True)
            self.processes[name].send_signal(signal.SIGUSR1)
        end_s = time.monotonic() + 10
        while not all(self._report(name).exists() for name in TIMED):
            self.check()
            if time.monotonic() > end_s:
                raise LabError("a loop does not report its turns")
            time.sleep(0.01)
        return {name: json.loads(self._report(name).read_text())["cpu_ms"] for name in TIMED}

    def check(self) -> None:
        for name, process in self.processes.items():
            if process.poll() is not None:
                said = (self._directory / f"{name}.log").read_text()[-2_000:]
                raise LabError(f"{name} has ended:\n{said}")

    def close(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        self._subscriber.close()
        self._context.term()
        detached = subprocess.run(
            ("nsenter", f"--net=/run/netns/{LB}", sys.executable, "-m", "services.cli.main",
             "detach"),
            env=self._environment, capture_output=True, check=False,
        )  # fmt: skip
        if detached.returncode:
            raise LabError(detached.stderr.decode())


def _measured(
    directory: Path,
    nodes: int,
    seconds: int,
    course: Course,
    progress: Callable[[str], None],
) -> Cost:
    name = course.name
    with ExitStack() as stack:
        stack.enter_context(_pins(directory / BPF))
        lb = _Lb(directory, nodes, course)
        stack.callback(lb.close)
        lb.start()
        _until(lambda: lb.listens, lb, "health does not listen")
        for generator in _generators(nodes, course.interval_ms, lb.agents_keys):
            stack.callback(_end, generator)
        _until_all_are_up(lb, nodes, lambda up: progress(f"{name}: {up:,} of {nodes:,} nodes up"))
        progress(f"{name}: settling, then {seconds} s")
        time.sleep(SETTLE_S)
        lb.turns()
        before = {who: core.run_time_ns([p.pid]) for who, p in lb.processes.items()}
        begin_s = time.monotonic()
        time.sleep(seconds)
        spent_s = time.monotonic() - begin_s
        after = {who: core.run_time_ns([p.pid]) for who, p in lb.processes.items()}
        cpu = {who: (after[who] - before[who]) / 1e7 / spent_s for who in after}
        return Cost(cpu, lb.turns(), lb.nodes_up())


def _generators(nodes: int, interval_ms: int, keys: str) -> list[subprocess.Popen[bytes]]:
    share = -(-nodes // GENERATORS)
    return [
        subprocess.Popen(
            (
                *("nsenter", f"--net=/run/netns/{NODES}", sys.executable),
                *("-m", "e2e.bench.agents", f"{LB_ADDRESS}:{NODE_PORT}"),
                *(str(first), str(min(share, nodes - first)), str(interval_ms), keys),
            )
        )
        for first in range(0, nodes, share)
    ]


def _until(is_so: Callable[[], bool], lb: _Lb, otherwise: str) -> None:
    end_s = time.monotonic() + READY_S
    while not is_so():
        lb.check()
        if time.monotonic() > end_s:
            raise LabError(f"{otherwise} after {READY_S} s")
        time.sleep(0.05)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()


def _until_all_are_up(lb: _Lb, nodes: int, tell: Callable[[int], None]) -> None:
    end_s, told_s = time.monotonic() + READY_S, 0.0
    while (up := lb.nodes_up()) < nodes:
        lb.check()
        if time.monotonic() > end_s:
            raise LabError(f"only {up:,} of {nodes:,} nodes are up after {READY_S} s")
        if time.monotonic() > told_s + 5:
            told_s = time.monotonic()
            tell(up)
        time.sleep(0.05)


def main() -> None:
    nodes, seconds = map(int, sys.argv[1:3])
    print(table(run(nodes, seconds, lambda text: print(text, file=sys.stderr))))


if __name__ == "__main__":
    main()
