"""`[log]`, the same table in both files: how and how much the processes say."""

from __future__ import annotations

from conf.table import Table
from conf.values import LogFormat, LogLevel


class Log(Table):
    """`[log]`: one line for each event, on standard error."""

    format: LogFormat = "logfmt"
    level: LogLevel = "info"
