"""The core that is measured on: who comes first on it, and how much of it somebody has had.

Other work on the machine disturbs a benchmark in two ways: it takes time, which is why everything
here counts CPU time and none counts the clock's, and it empties caches, which is why a benchmark
has the highest priority while it lasts. Three things must be told so: the process (and what it
starts), the scheduler's group of its terminal, and ksoftirqd, which takes over when the network's
work goes on for long.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_PROC = Path("/proc")
_AUTOGROUP = Path("/proc/self/autogroup")
_FIRST = -20


def pick() -> int:
    """The last one: whatever has no choice runs on the first."""
    return max(os.sched_getaffinity(0))


def ksoftirqd(cpu: int) -> int:
    """The process id of that core's thread for softirqs."""
    for comm in _PROC.glob("[0-9]*/comm"):
        with suppress(OSError):
            if comm.read_text().strip() == f"ksoftirqd/{cpu}":
                return int(comm.parent.name)
    raise RuntimeError(f"no ksoftirqd/{cpu}")


@contextmanager
def urgent() -> Iterator[None]:
    """Come first, with all processes that are started within, until the block ends."""
    softirqs = [ksoftirqd(cpu) for cpu in sorted(os.sched_getaffinity(0))]
    priorities = {pid: os.getpriority(os.PRIO_PROCESS, pid) for pid in (os.getpid(), *softirqs)}
    group = _AUTOGROUP.read_text().split()[-1] if _AUTOGROUP.exists() else None
    try:
        for pid in priorities:
            os.setpriority(os.PRIO_PROCESS, pid, _FIRST)
        if group is not None:
            _AUTOGROUP.write_text(str(_FIRST))
        yield
    finally:
        for pid, priority in priorities.items():
            os.setpriority(os.PRIO_PROCESS, pid, priority)
        if group is not None:
            _AUTOGROUP.write_text(group)


def run_time_ns(pids: Iterable[int]) -> int:
    """How long processes have run, with all their threads, to the nanosecond."""
    tasks = (task for pid in pids for task in (_PROC / str(pid) / "task").iterdir())
    return sum(int((task / "schedstat").read_text().split()[0]) for task in tasks)
