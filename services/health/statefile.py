"""What the registry must not forget, in one small file: `health.json` in the state directory.

It is replaced as a whole (`services.statefile`) and not synced to the disk: what it must survive is
the death of this process, not of the machine, and nodes go down at moments when waiting for a disk
would cost requests. After a power loss the file may be an older one, or damaged; then bans may be
forgotten, which the peers' bans make good.

How much of a ban has passed since the save is told by the monotonic clock, or, if the machine was
booted since, by the wall clock, which may be wrong but never makes a ban longer.

A damaged file, one of another format, or one with a number beyond all sense is set aside as
`health.json.damaged`, named in the log, and the registry starts from nothing: the committed table
is still there to be adopted.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from bus.codec import (
    MalformedMessage,
    from_json,
    to_json,
)
from bus.words import (
    Signed,
    Whole,
)
from services import statefile
from services.health.keeping import KeptNode

FILE_NAME = "health.json"
FORMAT = 1


class Kept(NamedTuple):
    nodes: tuple[KeptNode, ...]
    elapsed_ms: int
    """The time from the save until now."""
    complaint: str
    """What was wrong with the file; empty when nothing was."""


NOTHING = Kept((), 0, "")


@dataclass(frozen=True, slots=True)
class _Record:
    v: Whole
    machine_boot: str
    monotonic_ms: Signed
    time_ms: Signed
    nodes: tuple[KeptNode, ...]


class StateFile:
    """The file of one health process: the caller sees to it that there is but one."""

    def __init__(self, directory: Path, machine_boot: str) -> None:
        self.path = directory / FILE_NAME
        self._file = statefile.StateFile(self.path)
        self._machine_boot = machine_boot

    def load(self, now_ms: int, time_ms: int) -> Kept:
        """What was saved last. Raises OSError when the file is there and cannot be read."""
        try:
            raw = self._file.load()
            if raw is None:
                return NOTHING
            record = from_json(_Record, raw)
            if record.v != FORMAT:
                raise MalformedMessage(f"format {record.v}, expected {FORMAT}")
        except (statefile.StrangeFileError, MalformedMessage) as problem:
            return Kept((), 0, self._file.set_aside(problem))
        if record.machine_boot == self._machine_boot:
            elapsed_ms = now_ms - record.monotonic_ms
        else:
            elapsed_ms = time_ms - record.time_ms
        return Kept(record.nodes, max(0, elapsed_ms), "")

    def save(self, nodes: tuple[KeptNode, ...], now_ms: int, time_ms: int) -> None:
        """Replace the file; after an OSError it is as it was."""
        record = _Record(FORMAT, self._machine_boot, now_ms, time_ms, nodes)
        self._file.save(to_json(record))
