"""What this process asks of the kernel so that beats are in time on a busy machine.

`SCHED_RR` (sched(7)), so that it runs as soon as something comes, before whatever else wants the
processor; and its memory locked as it is touched (mlockall(2) with MCL_ONFAULT), so that it never
waits for a page to come back from the swap. Neither is needed to be right, only to be quick: where
the machine does not allow them, `claim` says what it costs, once, and all goes on without.

Memory is locked only where no limit applies to it, since a limit that is reached later would make
an allocation fail. Threads that are started afterwards, those of libzmq and of the disk, inherit
the class; nothing here keeps the processor for long.

Nor may a mistake of ours do so: a loop that never waits would take a whole processor from everybody
else. The kernel ends the process (SIGXCPU) if one of its threads computes for `LONGEST_TURN_S`
without waiting for anything (RLIMIT_RTTIME, getrlimit(2)); supervisord starts it again. The longest
turn there is, in which a table of ten thousand nodes is made anew, takes far less.
"""

from __future__ import annotations

import ctypes
import os
import resource
from pathlib import Path

PRIORITY = 10
LONGEST_TURN_S = 2.0
_MCL_CURRENT, _MCL_FUTURE, _MCL_ONFAULT = 1, 2, 4
_CAP_IPC_LOCK = 14


def claim() -> list[str]:
    """Ask for both; returns what was refused, in words."""
    return [*_schedule(), *_lock_memory()]


def _schedule() -> list[str]:
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(PRIORITY))
    except OSError as error:
        return [f"SCHED_RR: {error.strerror}: on a busy machine beats may be late"]
    longest_us = int(LONGEST_TURN_S * 1_000_000)
    resource.setrlimit(resource.RLIMIT_RTTIME, (longest_us, 2 * longest_us))
    return []


def _lock_memory() -> list[str]:
    complaint = "mlockall: {}: beats may be late when memory is short"
    limit, _ = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    if limit != resource.RLIM_INFINITY and not _has_ipc_lock():
        return [complaint.format(f"the limit of {limit} bytes is too small")]
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mlockall(_MCL_CURRENT | _MCL_FUTURE | _MCL_ONFAULT) != 0:
        return [complaint.format(os.strerror(ctypes.get_errno()))]
    return []


def _has_ipc_lock() -> bool:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("CapEff:"):
            return bool(int(line.split()[1], 16) >> _CAP_IPC_LOCK & 1)
    return False
