"""A program's cost, by running it behind wrapper.c so many times; and what else is to be done once
for each of many flows.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Literal

from bpf.loader import compile_program
from bpf.syscall import run_program, tc_context, xdp_context
from e2e.bench.generator import Generator

Hook = Literal["xdp", "tc"]
LOOPBACK = 1
_SOURCE = Path(__file__).with_name("wrapper.c")


class Wrapper:
    """The wrapper programs, one of each hook. `images` keeps what was compiled."""

    def __init__(self, images: Path) -> None:
        self.loaded = compile_program(str(_SOURCE), cache_dir=images)

    def floor(self, hook: Hook) -> int:
        """The fd of the program that does nothing."""
        return self.loaded.function(f"bench_floor_{hook}", hook)

    def run(self, hook: Hook, program: int, generator: Generator, repeats: int) -> int:
        """Nanoseconds of this thread's CPU time for the generator's next so many packets."""
        slot = self.loaded.bpf[f"under_test_{hook}".encode()]
        slot[slot.Key(0)] = slot.Leaf(program)
        entry = self.loaded.function(f"bench_wrap_{hook}", hook)
        generator.advance(repeats)
        frame = generator.frame
        context = tc_context(LOOPBACK, LOOPBACK) if hook == "tc" else xdp_context(frame, LOOPBACK)
        begin = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)
        run_program(entry, frame, context, repeats)
        return time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID) - begin
