"""What the programs count, per CPU, read as sums.

`verdicts` has one number per hook and reason: each packet a program sees counts exactly one reason.
`seat_counters` has one record per node and service, both directions. The names of hooks and reasons
are read from the C headers themselves, so that a reason cannot have two names.

`port_cursors` says how long the SNAT port taken last towards an address and port had rested.

Nothing here is ever reset: the maps are pinned, so a restart of this process leaves no hole in a
graph. A read while packets fly is a sum of CPUs at slightly different instants, never torn.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.clock import TICK_MS
from bpf.loader import SOURCE_DIR
from bpf.syscall import read_entries

_REASON = re.compile(r'REASON\((\w+), "([^"]*)"\)')
_HOOKS = re.compile(r"enum hook \{([^}]*)\}")
_REASONS_PER_HOOK = 64


def reasons(header: Path = SOURCE_DIR / "reasons.h") -> dict[str, str]:
    """Every reason with what it means, in the order of the C enumeration."""
    return dict(_REASON.findall(header.read_text()))


def hooks(header: Path = SOURCE_DIR / "types.h") -> list[str]:
    """The hooks in the order of the C enumeration: xdp_public, tc_public, ..."""
    match = _HOOKS.search(header.read_text())
    if match is None:
        raise ValueError(f"{header}: no enum hook")
    names = [name.strip().removeprefix("HOOK_").lower() for name in match[1].split(",")]
    return [name for name in names if name != "count"]


def _column(raw: bytes, value_size: int, cpus: int) -> NDArray[np.uint64]:
    """Per-CPU values as an array (entries, CPUs, 8-byte words)."""
    return np.frombuffer(raw, np.uint64).reshape(-1, cpus, value_size // 8)


class Counters:
    """Reads the two counting maps of a loaded object."""

    def __init__(self, bpf: Any, cpus: int) -> None:
        self._verdicts = bpf[b"verdicts"]
        self._seats = bpf[b"seat_counters"]
        self._cursors = bpf[b"port_cursors"]
        self._cpus = cpus
        self._fields = [name for name, *_ in self._seats.sLeaf._fields_]
        self._names = [(hook, list(reasons())) for hook in hooks()]

    def verdicts(self) -> dict[str, int]:
        """`hook.reason` → packets, those that have occurred."""
        sums = self._sums(self._verdicts.map_fd, 8)[:, 0]
        return {
            f"{hook}.{reason}": int(sums[number * _REASONS_PER_HOOK + place])
            for number, (hook, names) in enumerate(self._names)
            for place, reason in enumerate(names)
            if sums[number * _REASONS_PER_HOOK + place]
        }

    def seats(self, count: int | None = None) -> dict[str, NDArray[np.uint64]]:
        """Field → one sum per seat, in the order of the seats; of the first `count` only.

        All of them would be 50 MB a second on a machine of 128 CPUs, and few are taken.
        """
        sums = self._sums(self._seats.map_fd, len(self._fields) * 8, count)
        return {name: sums[:, place] for place, name in enumerate(self._fields)}

    def port_rests(self, count: int) -> NDArray[np.float64]:
        """Seconds, of the first `count` cursors; NaN where no port was ever taken again."""
        leaf = np.dtype(self._cursors.Leaf)
        raw = b"".join(values for _, values in read_entries(self._cursors.map_fd, count))
        cursors = np.frombuffer(raw, leaf)
        # While ports are taken for the first time nobody can say how long they had rested.
        return np.where(cursors["rest"] > 0, cursors["rest"] * (TICK_MS / 1000), np.nan)

    def _sums(self, fd: int, value_size: int, count: int | None = None) -> NDArray[np.uint64]:
        batches = [
            _column(raw, value_size, self._cpus).sum(axis=1, dtype=np.uint64)
            for _, raw in read_entries(fd, count)
        ]
        return np.concatenate([np.empty((0, value_size // 8), np.uint64), *batches])
