"""`[security]`, the same table in both files: keys for CURVE, and who may change things by HTTP."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Annotated

from conf.regular import read_regular
from conf.table import NEEDS_RESTART, Table
from conf.values import AbsolutePath

LONGEST_TOKEN_FILE = 4_096
"""Bytes."""


class Security(Table):
    """`[security]`: without keys, whoever reaches the private interface may be a node."""

    keys: Annotated[AbsolutePath | None, NEEDS_RESTART] = None
    api_token_file: AbsolutePath | None = None


def read_token(path: Path) -> str:
    """What is in such a file now; raises OSError if nothing is, or nothing that can be sent."""
    token = read_regular(path, LONGEST_TOKEN_FILE).strip()
    if not token:
        raise OSError(errno.EINVAL, "it is empty")
    if not token.isascii():
        raise OSError(errno.EINVAL, "it is no ASCII text")
    return token.decode("ascii")
