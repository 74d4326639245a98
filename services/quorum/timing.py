"""How long things last in an election, and why that is safe though clocks drift. Pure.

A leader that sent a beat at t, and heard a majority acknowledge it, may act as the only one until
t + `lease_ms` by its own clock: each of those followers has promised to elect nobody for
`promise_ms` of *its* clock, counted from a later moment. A clock may run fast or slow by `DRIFT`,
so that holds if

    lease · (1 + DRIFT)  ≤  promise · (1 - DRIFT)

which conf checks. A lease that the leader passes on is shortened by both clocks' drift
(`passed_on`). All times are whole milliseconds of one machine's monotonic clock; none is ever
compared with another machine's.
"""

from __future__ import annotations

from dataclasses import dataclass

DRIFT_PERCENT = 2
LARGEST_PROMISE_MS = 2_000
"""What an LB that has lost its memory may have promised."""
LEAST_JITTER_MS = 5
LARGEST_FACTOR = 8


@dataclass(frozen=True, slots=True)
class Timing:
    beat_ms: int = 25
    lease_ms: int = 112
    promise_ms: int = 125
    jitter_ms: int = 60

    def __post_init__(self) -> None:
        lease, promise = self.lease_ms, self.promise_ms
        if lease * (100 + DRIFT_PERCENT) > promise * (100 - DRIFT_PERCENT):
            raise ValueError(f"a promise of {promise} ms does not cover a lease of {lease} ms")
        if promise > LARGEST_PROMISE_MS:
            raise ValueError(f"a promise of {promise} ms, more than {LARGEST_PROMISE_MS}")

    def slower(self, factor: int) -> Timing:
        """All but the pace of beats times `factor`, as far as promises may go."""
        factor = min(factor, LARGEST_PROMISE_MS // self.promise_ms)
        return Timing(
            self.beat_ms, self.lease_ms * factor, self.promise_ms * factor, self.jitter_ms * factor
        )

    def election_ms(self, promise_ms: int, draw: float) -> int:
        """How long to wait for a beat; `draw` from 0 to 1 is a random number."""
        return promise_ms + LEAST_JITTER_MS + int(draw * (self.jitter_ms - LEAST_JITTER_MS))


def passed_on(left_ms: int) -> int:
    """What is left of a lease for somebody whose clock may drift the other way."""
    return left_ms * (100 - DRIFT_PERCENT) // (100 + DRIFT_PERCENT)
