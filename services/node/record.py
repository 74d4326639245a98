"""What of the machine's state is ours, in one small file: `prepared.json` in the run directory.

Written before anything is changed (direct.py), by renaming, so that a reader finds one whole
record. What it speaks of lives as long as the kernel's network does, so it says of which boot and
which network namespace it is, and is nothing to any other; it need not survive a power loss.
A damaged file is set aside and named: then what was prepared is taken for the operator's.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bus.codec import (
    MalformedMessage,
    from_json,
    to_json,
)
from bus.words import (
    Signed,
    Whole,
)
from services.machine import boot_id
from services.node.direct import NOTHING_TAKEN, Need, Setting, Taken
from services.statefile import StateFile, StrangeFileError

FILE_NAME = "prepared.json"


@dataclass(frozen=True, slots=True)
class _Setting:
    name: str
    before: Signed
    ours: Signed


@dataclass(frozen=True, slots=True)
class _Record:
    where: str
    needed: tuple[str, ...]
    tunnelled: tuple[str, ...]
    header_bytes: Whole
    addresses: tuple[str, ...]
    settings: tuple[_Setting, ...]
    hooks: tuple[tuple[str, str], ...]


class RecordFile:
    """The file of one agent."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / FILE_NAME
        self._file = StateFile(self.path)
        self._where = f"{boot_id()} {Path('/proc/thread-self/ns/net').readlink()}"

    def load(self) -> Taken:
        """What was saved last for this network. Raises OSError if it cannot be read."""
        try:
            raw = self._file.load()
            if raw is None:
                return NOTHING_TAKEN
            record = from_json(_Record, raw)
        except (StrangeFileError, MalformedMessage) as problem:
            raise MalformedMessage(self._file.set_aside(problem)) from None
        if record.where != self._where:
            return NOTHING_TAKEN
        return Taken(
            need=Need(frozenset(record.needed), frozenset(record.tunnelled), record.header_bytes),
            addresses=frozenset(record.addresses),
            settings={each.name: Setting(each.before, each.ours) for each in record.settings},
            hooks=frozenset(record.hooks),
        )

    def save(self, taken: Taken) -> None:
        """Replace the file; one that would say nothing is removed."""
        if not taken:
            self._file.remove()
            return
        record = _Record(
            where=self._where,
            needed=tuple(sorted(taken.need.addresses)),
            tunnelled=tuple(sorted(taken.need.tunnelled)),
            header_bytes=taken.need.header_bytes,
            addresses=tuple(sorted(taken.addresses)),
            settings=tuple(
                _Setting(name, each.before, each.ours)
                for name, each in sorted(taken.settings.items())
            ),
            hooks=tuple(sorted(taken.hooks)),
        )
        self._file.save(to_json(record))
