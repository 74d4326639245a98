"""A file that a process keeps its state in, replaced as a whole.

`save` writes a temporary file beside it and renames that over the old one, so a reader finds the
one from before or the one from after, and a full disk leaves the old one as it was. `durable`:
nothing is promised before it is on the disk, so the file and then its directory are synced, and a
directory that has vanished is an error, since what was promised in it is gone. Without it the file
survives the death of the process, not that of the machine.

`set_aside` is for a file that is there and makes no sense, damaged or absurd: it is kept beside as
`NAME.damaged` for whoever wants to know, and the process starts as if there had been none. What
sense is, only its owner can say.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from conf.regular import StrangeFileError, read_regular

MODE = 0o600
LONGEST_BYTES = 256 << 20
"""Of any state file: many times what ten thousand nodes or a whole event log take."""

__all__ = ["LONGEST_BYTES", "StateFile", "StrangeFileError"]


class StateFile:
    """One file of one process: its owner sees to it that nobody else writes it."""

    def __init__(self, path: Path, *, durable: bool = False) -> None:
        self.path = path
        self.damaged = path.with_name(f"{path.name}.damaged")
        self._temporary = path.with_name(f"{path.name}.tmp")
        self._durable = durable

    def load(self) -> bytes | None:
        """What was saved last, None if nothing was.

        Raises OSError if it cannot be read, and of these `StrangeFileError` if what is there (a
        FIFO, a directory, something without an end) was never saved and makes no sense.
        """
        try:
            return read_regular(self.path, LONGEST_BYTES)
        except FileNotFoundError:
            return None

    def save(self, content: bytes) -> None:
        """Replace the file; after an OSError it is as it was, or new and whole."""
        if not self._durable:
            self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            self._write(content)
        except OSError:
            # On a full disk a half-written file would only take more of what is lacking.
            with contextlib.suppress(OSError):
                self._temporary.unlink(missing_ok=True)
            raise
        self._temporary.replace(self.path)
        if self._durable:
            _sync_directory(self.path.parent)

    def set_aside(self, problem: object) -> str:
        """Move a file that makes no sense out of the way; returns what to say of it.

        Raises OSError if that fails.
        """
        self.path.replace(self.damaged)
        return f"{self.path}: {problem}; set aside as {self.damaged}"

    def remove(self) -> None:
        """Have nothing to say any more."""
        self.path.unlink(missing_ok=True)

    def _write(self, content: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC
        descriptor = os.open(self._temporary, flags, MODE)
        with open(descriptor, "wb") as file:  # noqa: PTH123 - opened by descriptor, for its mode
            file.write(content)
            file.flush()
            if self._durable:
                os.fsync(file.fileno())


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
