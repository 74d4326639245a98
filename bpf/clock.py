"""The clock of the programs: 32 bits of ticks of 2^26 ns (67 ms) of the monotonic clock. Pure.

A moment in a map is such a tick (`TICK_SHIFT` of kernel/types.h). They wrap after nine years, so
two of them are compared by their difference, as a signed number.
"""

from __future__ import annotations

TICK_SHIFT = 26
TICK_MS = (1 << TICK_SHIFT) / 1e6


def ticks(monotonic_ns: int) -> int:
    """The moment as the maps have it."""
    return (monotonic_ns >> TICK_SHIFT) & 0xFFFF_FFFF


def ticks_of_ms(duration_ms: int) -> int:
    """The least number of ticks that is no shorter."""
    return -(-duration_ms * 1_000_000 // (1 << TICK_SHIFT))
