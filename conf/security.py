"""`[security]`, the same table in both files: keys for CURVE, and who may change things by HTTP."""

from __future__ import annotations

from typing import Annotated

from conf.table import NEEDS_RESTART, Table
from conf.values import AbsolutePath


class Security(Table):
    """`[security]`: without keys, whoever reaches the private interface may be a node."""

    keys: Annotated[AbsolutePath | None, NEEDS_RESTART] = None
    api_token_file: AbsolutePath | None = None
