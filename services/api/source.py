"""What the shell lets the HTTP face see of the process. Pure."""

from __future__ import annotations

from collections.abc import Coroutine
from typing import Any, Protocol

from services.api.fold import Fold
from services.api.metrics import Scrape
from services.api.snapshot import Local


class Commands(Protocol):
    """The commands of the other processes of this LB."""

    async def command(
        self,
        service: str,
        verb: str,
        arguments: dict[str, Any],
        timeout_ms: int = ...,
    ) -> dict[str, Any]: ...


class Source(Commands, Protocol):
    """The process, to whoever answers requests."""

    fold: Fold

    def now_ms(self) -> int: ...
    def local(self) -> Local: ...
    def scrape(self) -> Scrape: ...

    def show_present_state(self) -> None:
        """Put the present state into the stream, for somebody who has just come."""

    def next_message(self) -> Coroutine[Any, Any, bool]:
        """Wait until the log has grown *since this call* (True), or streams are to end (False)."""
