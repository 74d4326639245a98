"""New connections for a minute where nobody has touched the kernel's settings.

One client opens 3,700 connections a second through each load balancer of `tcp_network` in turn,
each for one request, at whose end the node closes first: so it is the nodes that keep TIME_WAIT,
for 60 seconds, under the load balancer's address. Within that minute the client uses each of its
28,000 ports several times, and a load balancer with source NAT each of its own at every node. What
a node thinks of a port that comes back is the matter of this benchmark, not rates (`tcp`).

The goal is that no connection fails and none takes longer than 200 ms from the call that opens it
to the end of the answer. The client (e2e/dialer.py) does not wait for one to open the next, and
says how late it was itself: the way without a load balancer shows what is the core's doing.

The three nodes share a namespace, and so would share one node's limit of what it keeps in
TIME_WAIT: that is raised. Everything else is as the kernel has it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

from e2e.bench import wire
from e2e.bench.report import Line, Result
from e2e.bench.samples import Sample, at_most
from e2e.bench.tcp_network import (
    DIRECT,
    GALE,
    HTTP_PORT,
    NFTABLES,
    NFTABLES_ENTRIES,
    PATHS,
    network,
)
from e2e.connections import DIALER, SLOW_MS, Outcome, dialer_words, outcome_of

RATE = 3700
CAST = (DIRECT, NFTABLES, GALE)
_TIME_WAIT = {"ipv4__tcp_max_tw_buckets": 1 << 20}


def run(seconds: int, progress: Callable[[str], None]) -> Result:
    """Each once: what happens is the sum of many thousand connections."""
    seen: dict[str, Outcome] = {}
    with wire.alone(), wire.room_for_nftables(NFTABLES_ENTRIES):
        progress("building the network")
        with network(ends=_TIME_WAIT, balancers={}) as net:
            for name in CAST:
                progress(f"{RATE} connections a second for {seconds} s: {name}")
                said, _ = net.run(
                    dialer_words(PATHS[name].public, RATE, seconds, HTTP_PORT, DIALER)
                )
                seen[name] = outcome_of(said)
    return result(seen, seconds)


def result(seen: Mapping[str, Outcome], seconds: int) -> Result:
    """What is made of the outcomes."""
    return Result(
        key="connections",
        title="New connections, the kernel's settings as they are",
        columns=("connections", "failed", "slow", "median, ms", "p99", "slowest", "client's lag"),
        lines=tuple(_line(name, seen[name]) for name in reversed(CAST)),
        bar_label="connections that failed or took longer than 200 ms",
        remark=(
            f"{RATE:,} new connections a second for {seconds} s from one client address, three "
            f"nodes, which close first; slow: longer than {SLOW_MS:.0f} ms. Times from opening to "
            "the end of the answer, in ms; lag: how late at most the client itself was."
        ),
    )


def _line(name: str, outcome: Outcome) -> Line:
    missed = outcome.failed + outcome.slow
    errors = ", ".join(f"{count} {error}" for error, count in sorted(outcome.errors.items()))
    return Line(
        name={GALE: "Gale", DIRECT: "no load balancer"}.get(name, name),
        cells=(
            f"{outcome.opened:,}",
            errors or "0",
            str(outcome.slow),
            f"{outcome.total_ms.median:.1f}",
            f"{outcome.total_ms.p99:.1f}",
            f"{outcome.slowest_ms:.0f}",
            f"{outcome.lag_ms.largest:.0f}",
        ),
        bar=Sample((float(missed),)),
        judged=float(missed),
        goal=at_most(0, " failed or slow", 0) if name == GALE else None,
    )
