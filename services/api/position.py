"""How far the public stream had come, kept on disk for the next life of the API process.

One small JSON file, `{source: {boot, seq}}`, written after each batch of events has been sent, by
temporary file and rename. It lies in the run directory (a tmpfs): positions in logs that live in
the other processes' memory need not survive the machine. Missing, it is as if nothing had been
sent: events go out twice rather than never. So it is when it is damaged; then it is set aside too.
"""

from __future__ import annotations

import contextlib
from pathlib import Path

import structlog

from bus.codec import (
    MalformedMessage,
    from_json,
    to_json,
)
from services.api.fold import Position
from services.logs import words_of
from services.statefile import StateFile

FILE_NAME = "events.position"

_log = structlog.get_logger()


class PositionFile:
    """`<run>/events.position`"""

    def __init__(self, run_dir: Path) -> None:
        self._path = run_dir / FILE_NAME
        self._file = StateFile(self._path)
        self._complained = False

    def load(self) -> dict[str, Position]:
        try:
            raw = self._file.load()
            return from_json(dict[str, Position], raw) if raw is not None else {}
        except (OSError, MalformedMessage) as error:
            problem = words_of(error)
        with contextlib.suppress(OSError):  # the next save replaces it anyway
            problem = self._file.set_aside(problem)
        _log.warning("starting the event stream anew", path=self._path, problem=problem)
        return {}

    def save(self, published: dict[str, Position]) -> None:
        try:
            self._file.save(to_json(published))
            self._complained = False
        except OSError as error:
            if not self._complained:
                _log.error("events may be sent twice: cannot write", path=self._path, why=error)
            self._complained = True
