"""`[log]`: how and how much the processes say; on an LB, of flows too."""

from __future__ import annotations

from typing import Annotated

from conf.table import NEEDS_RESTART, Table
from conf.values import Boolean, LogFormat, LogLevel


class Log(Table):
    """`[log]`: one line for each event, on standard error."""

    format: LogFormat = "logfmt"
    level: LogLevel = "info"


class LbLog(Log):
    """`[log]` of an LB. `nat`: each flow's client, SNAT address and node as events."""

    nat: Annotated[Boolean, NEEDS_RESTART] = False
