"""The hard state on the disk: term, vote and the accepted table, in one small file.

It is replaced as a whole and durably (`services.statefile`): whenever the machine stops, the file
is the one from before or the one from after; a temporary file left over means nothing and is
overwritten. The first line says the format and the SHA-256 of the rest, so a truncated or altered
file is known as such; the rest is JSON that an operator can read.

**A damaged file** is set aside as `quorum.state.damaged`, named in the log with what is wrong, and
this LB starts blank. Refusing to start would be worse: the kernel forwards by the last table
anyway, and a quorum process that runs can make a new one. **A file of a newer format** is not
damaged: somebody installed an older Gale. It is refused, untouched.

**Writing takes its time**: a slow disk must not keep beats from being answered, so `Writer` does it
in a thread, one state at a time, and wakes the loop when it is done. A process that ends meanwhile
loses what nobody was told of yet.

The time left of a ban is stored with the monotonic clock and the kernel's boot id: after a restart
of the process it has gone on passing; after one of the machine nobody knows, so it starts again.
"""

from __future__ import annotations

import hashlib
import queue
import re
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from bus.codec import (
    MalformedMessage,
    from_json,
    to_json,
)
from bus.socket import monotonic_ms
from bus.states import NodeTable
from bus.words import (
    LARGEST_WHOLE,
    Duration,
    Signed,
    Stored,
)
from services.quorum.durable import BLANK, HardState, Persist
from services.quorum.table import aged
from services.statefile import StateFile, StrangeFileError

FILE_NAME = "quorum.state"
MAGIC = "gale-quorum"
FORMAT = 1
_FORMAT_NUMBER = re.compile(r"[0-9]{1,9}")
_LARGEST_STORED = LARGEST_WHOLE // 2


class NewerFormatError(RuntimeError):
    """The file was written by a newer Gale; the message names it."""


class _DamagedError(ValueError):
    """What is wrong with the file's content."""


@dataclass(frozen=True, slots=True)
class _Record:
    """The JSON part of the file."""

    term: Stored
    vote: str | None
    table: NodeTable | None
    saved_ms: Signed
    machine_boot: str
    promise_ms: Duration = 0
    joined: bool = False
    first: NodeTable | None = None


class Storage:
    """The state file in one directory. One process at a time: the caller holds the lock."""

    def __init__(self, directory: Path, machine_boot: str) -> None:
        self.path = directory / FILE_NAME
        self._file = StateFile(self.path, durable=True)
        self._machine_boot = machine_boot

    def load(self, now_ms: int) -> tuple[HardState, str]:
        """What was saved last, and a complaint that names the file if it was damaged.

        Raises `NewerFormatError`, or OSError if the file cannot be read or set aside.
        """
        self.path.parent.mkdir(parents=True, exist_ok=True)
        try:
            raw = self._file.load()
            if raw is None:
                return BLANK, ""
            record = self._parse(raw)
        except (StrangeFileError, _DamagedError) as damage:
            return BLANK, f"{self._file.set_aside(damage)}, starting blank"
        table, first = (self._aged(each, record, now_ms) for each in (record.table, record.first))
        state = HardState(record.term, record.vote, table, record.promise_ms, record.joined, first)
        return state, ""

    def save(self, state: HardState, now_ms: int) -> None:
        """Durable when this returns; after an OSError the file is as it was, or new and whole."""
        record = _Record(
            state.term,
            state.vote,
            state.table,
            now_ms,
            self._machine_boot,
            state.promise_ms,
            state.joined,
            state.first,
        )
        body = to_json(record)
        head = f"{MAGIC} {FORMAT} {hashlib.sha256(body).hexdigest()}\n".encode()
        self._file.save(head + body)

    def _aged(self, table: NodeTable | None, record: _Record, now_ms: int) -> NodeTable | None:
        is_of_this_boot = record.machine_boot == self._machine_boot
        return aged(table, now_ms - record.saved_ms) if table and is_of_this_boot else table

    def _parse(self, raw: bytes) -> _Record:
        head, _, body = raw.partition(b"\n")
        words = head.decode(errors="replace").split(" ")
        if len(words) != 3 or words[0] != MAGIC or not _FORMAT_NUMBER.fullmatch(words[1]):
            raise _DamagedError(f"does not start with '{MAGIC} {FORMAT} <checksum>'")
        if int(words[1]) > FORMAT:
            raise NewerFormatError(
                f"{self.path}: format {words[1]} is of a newer Gale, this one reads {FORMAT};"
                " install that again, or move the file away to start blank"
            )
        if hashlib.sha256(body).hexdigest() != words[2]:
            raise _DamagedError(f"the checksum does not match its {len(body)} bytes")
        try:
            record = from_json(_Record, body)
        except MalformedMessage as error:
            raise _DamagedError(str(error)) from None
        for table in (record.table, record.first):
            if table is not None and max(table.term, table.epoch) > _LARGEST_STORED:
                raise _DamagedError(
                    f"term {table.term}, epoch {table.epoch}: nothing follows these"
                )
        return record


@dataclass(frozen=True, slots=True)
class Written:
    """How the writing of a hard state ended."""

    persist: Persist
    error: BaseException | None


class Writer:
    """Saves hard states in a thread of its own; at most one is under way."""

    def __init__(self, storage: Storage, wake: Callable[[], None]) -> None:
        self._storage, self._wake = storage, wake
        self._wanted: queue.SimpleQueue[Persist] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Written] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="storage", daemon=True).start()

    def write(self, persist: Persist) -> None:
        self._wanted.put(persist)

    def take(self) -> Written | None:
        """What has been written, or could not be, since the last call.

        Raises what was no error of the disk: a mistake of ours in the thread ends the process.
        """
        try:
            written = self._done.get_nowait()
        except queue.Empty:
            return None
        if written.error is not None and not isinstance(written.error, OSError):
            raise written.error
        return written

    def _run(self) -> None:
        while True:
            persist = self._wanted.get()
            error: BaseException | None = None
            try:
                self._storage.save(persist.state, monotonic_ms())
            except BaseException as caught:  # handed to the loop, which knows what it means
                error = caught
            self._done.put(Written(persist, error))
            self._wake()
