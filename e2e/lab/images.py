"""The programs of a lab's LBs, compiled once for all of them before the first one starts.

Every LB of a lab needs the same, and compiling is the slowest part of a start: several at once
would each compile it. A file that an LB will refuse is left for it to say so.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from bpf.chain import NO_TABLE, FlowTables
from bpf.loader import fill_cache
from conf import ConfigError, load_lb
from services.dataplane.programs import SOURCES, ProgramPlan


def fill(config: Path, directory: Path) -> None:
    """Compile what an LB with this file needs, unless `directory` has it."""
    with suppress(ConfigError):
        plan = ProgramPlan.from_config(load_lb(config))
        tables = FlowTables(plan.flow_buckets, NO_TABLE, plan.flow_buckets)
        fill_cache(SOURCES, plan.defines | tables.defines, directory)
