"""The table's other writer: records of other LBs' flows, entered by a program (replica.c).

A batch is written into the program's own map, which is mapped here, and the kernel runs the program
once for each record in one system call. What became of each stands in the map afterwards.
"""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.loader import LoadedObject
from bpf.syscall import run_program, tc_context
from services.dataplane.flows.replica import NOTHING, Progress

PROGRAM = "gale_replica"
OUTCOMES = (
    "none",
    "entered",
    "renewed",
    "closed",
    "absent",
    "late",
    "clash",
    "port_taken",
    "full",
)
"""`enum replica_outcome`, number by number."""

_LOOPBACK = 1
_FRAME = bytes(64)


class Entering:
    """Raises `VerifierError` when the kernel refuses the program."""

    def __init__(self, loaded: LoadedObject, program: str = PROGRAM) -> None:
        self._program = loaded.function(program, "tc")
        self._cursor = loaded.bpf[b"replica_cursor"]
        self._progress = loaded.bpf[b"replica_progress"]
        batch = loaded.bpf[b"replicas"]
        self.record: np.dtype[Any] = np.dtype(batch.Leaf)
        """`struct replica`, as the compiler describes it."""
        self._size = batch.info.max_entries
        memory = mmap.mmap(batch.map_fd, self._size * self.record.itemsize, flags=mmap.MAP_SHARED)
        self._batch: NDArray[Any] = np.frombuffer(memory, self.record)

    def enter(self, records: NDArray[Any]) -> dict[str, int]:
        """How many had which outcome."""
        counts = np.zeros(len(OUTCOMES), np.int64)
        for first in range(0, len(records), self._size):
            part = records[first : first + self._size]
            self._batch[: len(part)] = part
            self._run(len(part))
            outcomes = self._batch["outcome"][: len(part)]
            counts += np.bincount(outcomes, minlength=len(OUTCOMES))
        return {name: count for name, count in zip(OUTCOMES, counts.tolist(), strict=True) if count}

    def _run(self, count: int) -> None:
        """A signal ends a run early: the cursor says how far it came."""
        self._cursor[0] = 0
        done = 0
        while done < count:
            try:
                run_program(self._program, _FRAME, tc_context(_LOOPBACK, _LOOPBACK), count - done)
            except InterruptedError:
                done = self._cursor[0].value
            else:
                return

    # ------------------------------------------------------------------ progress

    def progress_of(self, teller: int) -> Progress:
        """What was kept last of the teller of that number."""
        place = self._place(teller)
        leaf = self._progress[place] if place is not None else None
        if leaf is None or leaf.teller != teller:
            return NOTHING
        return Progress(f"{leaf.boot:016x}", leaf.next_seq, leaf.position)

    def keep_progress(self, teller: int, progress: Progress) -> None:
        place = self._place(teller)
        if place is not None and progress.boot:
            self._progress[place] = self._progress.Leaf(
                teller, int(progress.boot, 16), progress.next_seq, progress.position
            )

    def _place(self, teller: int) -> int | None:
        """The teller's place, or the first free one; None: there is none."""
        free = None
        for place in range(self._progress.info.max_entries):
            held = self._progress[place].teller
            if held == teller:
                return place
            if held == 0 and free is None:
                free = place
        return free

    def close(self) -> None:
        """Give the memory back."""
        self._batch = np.empty(0, self.record)
