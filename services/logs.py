"""The log of every process: one line an event, `key=value`, as it is read by people and by grep.

    timestamp=2026-11-25T20:00:02.123Z level=warning event=waiting waiting_for="priv0: it is down"

Values are what they say and not what Python calls them: a path, the words of a list, nothing for
None. What has spaces is quoted, and line breaks are written out, so an event stays one line.
supervisord keeps what is written to stderr, and turns the files over.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, MutableMapping
from enum import Enum
from typing import Any

import structlog

_ORDER = ["timestamp", "level", "event"]


def set_up() -> None:
    """Every logger of this process writes so from now on."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="%Y-%m-%dT%H:%M:%S.%fZ", utc=True),
            _plain,
            structlog.processors.LogfmtRenderer(key_order=_ORDER, bool_as_flag=False),
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=False,
    )


def _plain(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    return {key.replace(" ", "_"): _words(value) for key, value in event.items()}


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
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    return str(value)
