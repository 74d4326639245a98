"""The hard state on its way to the disk: a shell around `storage.Writer`.

The core wants one state at a time there, and is told when it is (`core.durable`). A disk that
refuses is asked again every second; one that says nothing for a second is complained of, and waited
for. Meanwhile nothing moves that rests on what is not there, and beats go on being answered.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import structlog

from bus.socket import monotonic_ms
from services.logs import words_of
from services.quorum.durable import HardState, Persist
from services.quorum.storage import Storage, Writer

RETRY_MS = 1_000
SILENT_MS = 1_000
SILENT_DISK = "the disk does not answer"

_log = structlog.get_logger()


@dataclass(frozen=True, slots=True)
class News:
    """What has come of it in a turn."""

    mark: int | None = None
    """The number of a hard state that is on the disk by now."""
    trouble: str = ""
    """What is wrong with the disk; empty: nothing that was not said."""


class Writing:
    """What is on the disk, and what is to be there."""

    def __init__(self, storage: Storage, stored: HardState, wake: Callable[[], None]) -> None:
        """`stored`: what is there now. `wake`: has the loop take a turn; called in a thread."""
        self._path = storage.path
        self._writer = Writer(storage, wake)
        self.stored = stored
        self._wanted: Persist | None = None
        self._retry_ms = 0
        self._late_ms: int | None = None
        """When the write under way will have taken too long; None: none is."""

    @property
    def is_done(self) -> bool:
        """Whether all that was wanted there is there."""
        return self._wanted is None

    def want(self, persist: Persist, now_ms: int) -> None:
        self._wanted, self._retry_ms = persist, now_ms
        self._begin(now_ms)

    def turn(self, now_ms: int) -> News:
        """Look whether a write has ended, and begin the next."""
        written, news = self._writer.take(), News()
        if written is not None:
            self._late_ms = None
            if written.error is None:
                self._wanted, self.stored = None, written.persist.state
                return News(mark=written.persist.mark)
            news = self._trouble(getattr(written.error, "strerror", None) or str(written.error))
            self._retry_ms = now_ms + RETRY_MS
        elif self._late_ms is not None and now_ms >= self._late_ms:
            news = self._trouble(SILENT_DISK)
            self._late_ms = now_ms + SILENT_MS
        self._begin(now_ms)
        return news

    def next_due_ms(self) -> int | None:
        """When a write that was refused is to be tried again."""
        return self._retry_ms if self._wanted is not None and self._late_ms is None else None

    def _begin(self, now_ms: int) -> None:
        if self._wanted is not None and self._late_ms is None and now_ms >= self._retry_ms:
            self._late_ms = now_ms + SILENT_MS
            self._writer.write(self._wanted)

    def _trouble(self, problem: str) -> News:
        return News(trouble=f"{self._path}: {problem}")


def load(storage: Storage) -> tuple[HardState, str]:
    """The stored state and what to say of it; waits for as long as it cannot be read."""
    said = ""
    while True:
        try:
            stored, complaint = storage.load(monotonic_ms())
        except OSError as error:
            if words_of(error) != said:
                said = words_of(error)
                _log.error("waiting: cannot read the stored table", path=storage.path, why=said)
            time.sleep(RETRY_MS / 1_000)
            continue
        if complaint:
            _log.error("the stored table is damaged", problem=complaint)
            return stored, complaint
        if stored.table is None:
            return stored, ""
        adopted = f"term {stored.term}, epoch {stored.table.epoch}, {len(stored.table.nodes)} nodes"
        _log.info("adopted", path=storage.path, table=adopted)
        return stored, adopted
