"""The event log on disk, for the next life of the API process: a restart makes no hole in it.

`<run>/events.journal`, one public message a line, as it goes out (states and the NAT log without
their data: they would be too large). A message is written *before* it is sent, so whoever was sent
a number can ask the next life what followed it. The file lies in the run directory (a tmpfs): like
the log in memory it is a window on what happened lately, and need not survive the machine. It is
written anew, as a whole, when it is `SLACK` lines longer than the log.

**Failures.** A line that makes no sense ends what is read: the last one, half-written when the
process was killed, was never sent; any other is damage, said once, and what follows is lost. A
directory that cannot be written (a full disk) is said once, and the file is written anew as soon as
it can be, so it never has a hole.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import structlog

from bus.codec import Head, MalformedMessage, from_json
from bus.topics import Topic
from services.api.stream import KEPT_MESSAGES, Entry, EventLog
from services.statefile import StateFile, StrangeFileError

FILE_NAME = "events.journal"
SLACK = 2048

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class _Origin:
    boot: str
    seq: int


@dataclass(frozen=True, slots=True)
class _Line:
    topic: Topic
    seq: int
    topic_seq: int
    boot: str
    host: str
    source: str
    time_ms: int
    origin: _Origin
    data: msgspec.Raw

    def entry(self) -> Entry:
        head = Head(
            topic=self.topic,
            source=self.source,
            host=self.host,
            boot=self.origin.boot,
            seq=self.origin.seq,
            version=0,
            time_ms=self.time_ms,
            made_ms=0,
        )
        data = bytes(self.data)
        return Entry(
            seq=self.seq,
            topic_seq=self.topic_seq,
            boot=self.boot,
            head=head,
            topic=self.topic,
            data=None if data == b"null" else data,
        )


class Journal:
    """The file: `load` once, then `keep_up`."""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._file = StateFile(self._path)
        self._lines = self._at = 0
        self._is_whole = False
        self._complained = False

    def load(self) -> list[Entry]:
        """What earlier lives have said, oldest first."""
        try:
            raw = self._file.load() or b""
        except StrangeFileError as problem:
            self._set_aside(str(problem))
            return []
        except OSError as error:
            _log.warning("starting the event log anew", path=self._path, why=error)
            return []
        lines = raw.split(b"\n")
        entries: list[Entry] = []
        for number, line in enumerate(lines[:-1], 1):
            try:
                entries.append(from_json(_Line, line).entry())
            except MalformedMessage as error:
                _log.warning(
                    "the event log is damaged", path=self._path, line=number, why=str(error)
                )
                break
        return _in_order(entries)[-KEPT_MESSAGES:]

    def _set_aside(self, problem: str) -> None:
        with contextlib.suppress(OSError):  # a file is replaced anyway
            problem = self._file.set_aside(problem)
        _log.warning("starting the event log anew", path=self._path, why=problem)

    def keep_up(self, log: EventLog) -> None:
        """Write what has entered the log since the last time: before it is sent."""
        entries = log.after(self._at)
        if not self._is_whole or self._lines + len(entries) > KEPT_MESSAGES + SLACK:
            self._write_anew(log)
        elif entries:
            try:
                _append(self._path, b"".join(map(_line, entries)))
                self._lines += len(entries)
            except OSError:
                self._write_anew(log)
        self._at = log.end

    def _write_anew(self, log: EventLog) -> None:
        entries = log.after(0)
        try:
            self._file.save(b"".join(map(_line, entries)))
        except OSError as error:
            self._failed(error)
            return
        self._lines, self._is_whole, self._complained = len(entries), True, False

    def _failed(self, error: OSError) -> None:
        self._is_whole = False
        if not self._complained:
            _log.error("a restart will lose events: cannot write", path=self._path, why=error)
        self._complained = True


def _line(entry: Entry) -> bytes:
    return (replace(entry, data=None) if entry.topic.is_bulky else entry).body + b"\n"


def _append(path: Path, content: bytes) -> None:
    # Not created here: if somebody has removed it, what is to follow would have a hole before it.
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC)
    try:
        written = os.write(descriptor, content)
    finally:
        os.close(descriptor)
    if written != len(content):
        raise OSError(0, f"{written} of {len(content)} bytes were written")


def _in_order(entries: list[Entry]) -> list[Entry]:
    """The part up to the first number that does not follow: behind it nothing can be told."""
    last: dict[str, int] = {}
    for at, entry in enumerate(entries):
        if entry.seq != last.get(entry.boot, entry.seq - 1) + 1:
            _log.warning("the event log is damaged", seq=entry.seq, why="a number is missing")
            return entries[:at]
        last[entry.boot] = entry.seq
    return entries
