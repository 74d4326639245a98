"""What TCP makes of it: requests, connections and gigabits through Gale and its peers.

The network is that of `tcp_network`, everything on one core. Four loads, in turn: requests on
connections kept alive (wrk), a connection for each request (wrk), one download and eight uploads at
once (iperf3).

What is told is per second of CPU time, that of all these processes and of the core's ksoftirqd
taken together: which is what the core would do if it had nothing else to do. An upload that waits
for what was lost leaves the core idle, so of that load it is told per second of the clock, beside
how many segments had to be sent again. So that no trial suffers from what an earlier one has left,
nobody keeps TIME_WAIT, and a run of connections lasts a second; what becomes of connections where
the kernel's settings are left alone is another benchmark's business (`connections`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from e2e.bench import wire
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_least, ratios, turns
from e2e.bench.tcp_network import (
    BULK_PORT,
    DIRECT,
    GALE,
    HAPROXY,
    HTTP_PORT,
    NFTABLES,
    NFTABLES_ENTRIES,
    NGINX,
    PATHS,
    Network,
    Path,
    network,
)
from e2e.lab import LabError

KEPT, FRESH, BULK, UPLOAD = "requests, kept alive", "new connections", "download", "upload"
LOADS = (KEPT, FRESH, BULK, UPLOAD)
UNITS = {KEPT: "k/s", FRESH: "k/s", BULK: "Gbit/s", UPLOAD: "Gbit/s"}
CONNECTIONS = 32
UPLOADS = 8
QUICK_TCP: dict[str, int | str] = {
    "ipv4__tcp_max_tw_buckets": 0,
    "ipv4__tcp_timestamps": 2,
    "ipv4__ip_local_port_range": "10000 65000",
    "core__somaxconn": 4096,
}


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line of the table."""

    load: str
    against: str
    goal: Goal | None = None


COMPARISONS = (
    Comparison(KEPT, NFTABLES, at_least(1.12, digits=2)),
    Comparison(KEPT, HAPROXY, at_least(1.4)),
    Comparison(KEPT, NGINX),
    Comparison(KEPT, DIRECT),
    Comparison(FRESH, NFTABLES, at_least(1.12, digits=2)),
    Comparison(FRESH, HAPROXY, at_least(1.5)),
    Comparison(FRESH, NGINX),
    Comparison(FRESH, DIRECT),
    Comparison(BULK, NFTABLES, at_least(0.9)),
    Comparison(BULK, HAPROXY),
    Comparison(BULK, NGINX),
    Comparison(BULK, DIRECT),
    Comparison(UPLOAD, NFTABLES),
    Comparison(UPLOAD, HAPROXY),
    Comparison(UPLOAD, NGINX),
    Comparison(UPLOAD, DIRECT),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Thousands or gigabits in a second; of an upload, segments sent again for each gigabit."""

    rate: float
    again: float = 0.0


Seen = Mapping[tuple[str, str], Sequence[Trial]]


def run(trials: int, seconds: int, progress: Callable[[str], None]) -> Result:
    """All loads over all paths, taking turns."""
    paths = tuple(PATHS.values())
    seen: dict[tuple[str, str], list[Trial]] = {
        (load, path.name): [] for load in LOADS for path in paths
    }
    with wire.alone(), wire.room_for_nftables(NFTABLES_ENTRIES):
        progress("building the network")
        with network(ends=QUICK_TCP, balancers=QUICK_TCP) as net:
            for load in LOADS:
                for number, path in turns(paths, trials):
                    progress(f"trial {number + 1} of {trials}: {load}, {path.name}")
                    seen[load, path.name].append(_measured(net, load, path, seconds))
    return Result(
        key="tcp",
        title="TCP through it",
        columns=("Gale", "times", "of"),
        lines=tuple(_line(one, seen) for one in COMPARISONS),
        bar_label="Gale, times what it is compared with",
        remark=(
            "Three nodes, one client, everything on one core, per second of its CPU time (uploads: "
            f"of the clock). {trials} trials of {seconds} s (connections: 1 s), {CONNECTIONS} "
            f"connections at a time, one for the download, {UPLOADS} for the upload. Resent: "
            "segments, for each gigabit."
        ),
    )


def _line(one: Comparison, seen: Seen) -> Line:
    mine, theirs = seen[one.load, GALE], seen[one.load, one.against]
    times = ratios(_rates(mine), _rates(theirs))
    return Line(
        name=one.load,
        cells=(_text(one.load, mine), times.text(2), f"{one.against}: {_text(one.load, theirs)}"),
        bar=times,
        judged=times.median,
        goal=one.goal,
        against=one.against,
    )


def _rates(trials: Sequence[Trial]) -> Sample:
    return Sample(tuple(trial.rate for trial in trials))


def _text(load: str, trials: Sequence[Trial]) -> str:
    rate = _rates(trials).text(1, f" {UNITS[load]}")
    if load != UPLOAD:
        return rate
    again = Sample(tuple(trial.again for trial in trials)).median
    return f"{rate}, {again:.0f} resent"


def _measured(net: Network, load: str, path: Path, seconds: int) -> Trial:
    if load == BULK:
        sent, cpu_s = _iperf(net, path, seconds, "--reverse")
        return Trial(sent["sum_received"]["bytes"] * 8 / 1e9 / cpu_s)
    if load == UPLOAD:
        sent, _ = _iperf(net, path, seconds, "--parallel", str(UPLOADS))
        gigabits = sent["sum_received"]["bytes"] * 8 / 1e9
        again = sent["sum_sent"]["retransmits"] / gigabits
        return Trial(gigabits / sent["sum_received"]["seconds"], again)
    if load == FRESH:
        return Trial(_requests(net, path, 1, "Connection: close") / 1e3)
    return Trial(_requests(net, path, seconds, "Connection: keep-alive") / 1e3)


def _requests(net: Network, path: Path, seconds: int, header: str) -> float:
    url = f"http://{path.public}:{HTTP_PORT}/"
    words = ["wrk", "--threads", "1", "--connections", str(CONNECTIONS)]
    said, cpu_s = net.run([*words, "--duration", f"{seconds}s", "--header", header, url])
    done = re.search(r"(\d+) requests in ", said)
    errors = re.search(r"Non-2xx.*|Socket errors: connect [1-9].*", said)
    if done is None or errors is not None:
        raise LabError(f"{path.name}: wrk failed:\n{said}")
    return int(done[1]) / cpu_s


def _iperf(
    net: Network, path: Path, seconds: int, *options: str
) -> tuple[dict[str, dict[str, float]], float]:
    """What iperf3 says at its end, and CPU seconds."""
    words = ["iperf3", "--client", path.public, "--port", str(BULK_PORT), "--json", *options]
    said, cpu_s = net.run([*words, "--time", str(seconds)])
    return json.loads(said)["end"], cpu_s
