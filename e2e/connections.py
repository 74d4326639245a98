"""New connections at a steady rate from the client, and what became of them: dialer.py's reader.

A test says `connections(hosts, rate=…, seconds=…)` and judges the `Outcome`; the benchmark runs the
same program by `dialer_words`. Before it judges the service it looks at `lag_ms`: a rig that could
not open connections in time has measured nothing.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.hosts import Hosts

DIALER = Path(__file__).with_name("dialer.py")
SLOW_MS = 200.0


@dataclass(frozen=True, slots=True)
class Spread:
    """Of a time in milliseconds."""

    median: float
    p99: float
    largest: float


@dataclass(frozen=True, slots=True)
class Unhappy:
    """A connection that failed or was slow. `connect_ms` is 0 if it was never established."""

    sent_ms: float
    connect_ms: float
    total_ms: float
    error: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of all connections. The spreads are of those that did not fail."""

    opened: int
    seconds: float
    errors: dict[str, int]
    slow: int
    connect_ms: Spread
    total_ms: Spread
    lag_ms: Spread
    worst: tuple[Unhappy, ...]

    @property
    def failed(self) -> int:
        return sum(self.errors.values())

    @property
    def slowest_ms(self) -> float:
        """Of all, the failed ones included."""
        return max([self.total_ms.largest, *(one.total_ms for one in self.worst)])

    @property
    def text(self) -> str:
        failed = ", ".join(f"{count} {error}" for error, count in sorted(self.errors.items()))
        return (
            f"{self.opened} connections in {self.seconds:.1f} s: {self.failed} failed"
            f"{f' ({failed})' if failed else ''}, {self.slow} slow, slowest "
            f"{self.slowest_ms:.1f} ms, own lag {self.lag_ms.largest:.1f} ms"
        )


def dialer_words(
    host: str, rate: float, seconds: float, port: int = 8080, program: Path | None = None
) -> list[str]:
    """The command that runs dialer.py, anywhere; `program`: from that file."""
    source = ["-c", DIALER.read_text()] if program is None else [str(program)]
    options = {"--rate": rate, "--seconds": seconds, "--slow-ms": SLOW_MS}
    words = [word for option, value in options.items() for word in (option, str(value))]
    return ["python3", *source, host, str(port), *words]


def outcome_of(line: str) -> Outcome:
    """What the program printed."""
    raw: dict[str, Any] = json.loads(line)
    spreads = {name: Spread(*raw[name]) for name in ("connect_ms", "total_ms", "lag_ms")}
    return Outcome(**raw | spreads | {"worst": tuple(Unhappy(**one) for one in raw["worst"])})


def connections(hosts: Hosts, *, rate: float, seconds: float, port: int = 8080) -> Outcome:
    """Open so many a second from the client to the VIP for so long; returns when all have ended."""
    done = hosts.run(hosts.client, *dialer_words(hosts.vip(), rate, seconds, port))
    if done.returncode != 0:
        raise RuntimeError(f"the dialer ended with {done.returncode}: {done.stderr}")
    return outcome_of(done.stdout)
