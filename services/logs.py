"""The log of every process: one line an event, as it is read by people and by grep, or by programs.

    timestamp=2026-11-25T20:00:02.123Z level=warning event=waiting waiting_for="priv0: it is down"

Values are what they say and not what Python calls them: a path, the words of a list, nothing for
None. What has spaces is quoted, and line breaks are written out, so an event stays one line. With
`[log] format = "json"` each line is one object with the same names. supervisord keeps what is
written to stderr, and turns the files over.

**Logging never blocks.** stderr is supervisord's pipe: if that is full, or nobody reads it any
more, the line is dropped and counted, and the next one that gets through says how many were
(`dropped_before`). A process must not be held up by who reads its log.

**A stranger may provoke lines**, so what one event may say within a while is limited (`Budget`);
`unsaid_before` says how many lines were left out.
"""

from __future__ import annotations

import os
import select
import stat
import sys
import time
from collections.abc import Mapping, MutableMapping
from enum import Enum
from typing import Any

import structlog

LONGEST_LINE = select.PIPE_BUF
"""Bytes that a pipe takes as a whole or not at all."""
LONGEST_VALUE = 3_000
"""Characters; of what is longer the end is kept, where a traceback says what happened."""
BUDGET_LINES, BUDGET_MS = 200, 10_000
MOST_EVENTS_COUNTED = 1_000
LEVELS = {"debug": 10, "info": 20, "warning": 30, "error": 40}

_ORDER = ["timestamp", "level", "event"]


def words_of(error: BaseException) -> str:
    """What an error says: of the kernel's (netlink's have a `code`) its words, not its number."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    code = getattr(error, "code", None)
    return os.strerror(code) if isinstance(code, int) else str(error) or type(error).__name__


class Budget:
    """How many lines each event may still say: `lines` within `span_ms`. Time comes in."""

    def __init__(self, lines: int = BUDGET_LINES, span_ms: int = BUDGET_MS) -> None:
        self._lines, self._span_ms = lines, span_ms
        self._spans: dict[str, tuple[int, int, int]] = {}
        """By event: when its span began, what was said in it, and what was not since."""

    def admit(self, event: str, now_ms: int) -> int | None:
        """How many lines of this event were left out before this one; None: it is left out too."""
        begun_ms, said, unsaid = self._spans.get(event, (now_ms, 0, 0))
        if now_ms >= begun_ms + self._span_ms:
            begun_ms, said = now_ms, 0
        if said >= self._lines:
            self._spans[event] = begun_ms, said, unsaid + 1
            return None
        if event not in self._spans and len(self._spans) >= MOST_EVENTS_COUNTED:
            self._spans.clear()
        self._spans[event] = begun_ms, said + 1, 0
        return unsaid


class Line:
    """A file descriptor that takes lines, and never blocks if it is a pipe."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.dropped = 0
        """Lines since the last that got through."""
        # The other end of a terminal, or of a file, is shared with whoever started this process.
        if stat.S_ISFIFO(os.fstat(descriptor).st_mode):
            os.set_blocking(descriptor, False)

    def write(self, text: str) -> None:
        """Write one line, or count it as dropped."""
        if self.dropped:
            text = _with_dropped(text, self.dropped)
        raw = text.encode(errors="replace")[: LONGEST_LINE - 1] + b"\n"
        try:
            os.write(self._descriptor, raw)
        except (BlockingIOError, BrokenPipeError):
            self.dropped += 1
        else:
            self.dropped = 0


def set_up(form: str = "logfmt", level: str = "info") -> None:
    """Every logger of this process writes so from now on; see `[log]` in the files."""
    if form == "json":
        render: Any = structlog.processors.JSONRenderer(ensure_ascii=False)
    else:
        render = structlog.processors.LogfmtRenderer(key_order=_ORDER, bool_as_flag=False)
    line = Line(sys.stderr.fileno())
    structlog.configure(
        processors=[
            _limited(Budget()),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
            structlog.processors.format_exc_info,
            _plain if form == "logfmt" else _simple,
            render,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(LEVELS[level]),
        logger_factory=lambda *_: _Writer(line),
        cache_logger_on_first_use=False,
    )


class _Writer:
    """What structlog hands a finished line to, whatever its level."""

    def __init__(self, line: Line) -> None:
        self.debug = self.info = self.warning = self.error = self.critical = line.write


def _with_dropped(text: str, dropped: int) -> str:
    if text.startswith("{"):
        return f'{text[:-1]}, "dropped_before": {dropped}}}'
    return f"{text} dropped_before={dropped}"


def _limited(budget: Budget) -> Any:
    def limit(
        _logger: Any, _method: str, event: MutableMapping[str, Any]
    ) -> MutableMapping[str, Any]:
        unsaid = budget.admit(str(event["event"]), time.monotonic_ns() // 1_000_000)
        if unsaid is None:
            raise structlog.DropEvent
        if unsaid:
            event["unsaid_before"] = unsaid
        return event

    return limit


def _plain(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key.replace(" ", "_"): _words(value) for key, value in event.items()}


def _simple(
    _logger: Any, _method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """For JSON: numbers, truth and lists stay what they are."""
    return {key.replace(" ", "_"): _value(value) for key, value in event.items()}


def _value(value: Any) -> Any:
    if isinstance(value, list | tuple | set | frozenset):
        return [_value(each) for each in value]
    if isinstance(value, Mapping):
        return {_words(key): _value(inner) for key, inner in value.items()}
    if value is None or (isinstance(value, bool | int | float) and not isinstance(value, Enum)):
        return value
    return _words(value)


def _words(value: Any) -> str:
    """What a value says, without quotes, brackets or the names of types."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return _words(value.value)
    if isinstance(value, Mapping):
        return " ".join(f"{_words(key)}:{_words(inner)}" for key, inner in value.items())
    if isinstance(value, list | tuple | set | frozenset):
        return ", ".join(map(_words, value))
    if isinstance(value, BaseException):
        return _shortened(words_of(value))
    text = value.decode(errors="replace") if isinstance(value, bytes) else str(value)
    return _shortened(text)


def _shortened(text: str) -> str:
    return text if len(text) <= LONGEST_VALUE else f"…{text[-LONGEST_VALUE:]}"
