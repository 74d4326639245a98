"""HTTP on one address that may come, go and change: the private interface's, or the loopback's.

**Who is answered.** An address of the private interface can be reached through any other one too,
as far as the kernel is concerned: by a client whose router leads there. So a connection is served
only if this machine would itself use the connection's local address to speak to the other end,
which is so on the private network and behind it, and on loopback. Any other is hung up on unread.

What a connection may ask, and how long, is said in `guard.py` and `limits.py`.

An interface that has no address yet is no error: the listener waits, says so once, and looks again
every second. When the address or the port changes (`gale reload`), it moves.

uvicorn wants signals for itself, and a process that has taken them from it exits by the signal
instead of with 0: this server leaves them alone and is told by `should_exit`. Its graceful end is
bounded, since event streams have no end of their own.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
from collections.abc import Callable, Iterator
from typing import Any

import structlog
import uvicorn
from fastapi import FastAPI

from services.api.guard import Guard
from services.api.limits import BoundedHttp, Connections, Door

RETRY_S = 1.0
GRACEFUL_END_S = 1
BACKLOG = 128

Endpoint = tuple[str, int]

_log = structlog.get_logger()


class OwnSideSocket(socket.socket):
    """Accepts those alone to whom this machine would speak from the address they have called."""

    def accept(self) -> tuple[socket.socket, Any]:
        while True:
            connection, peer = super().accept()
            if _source_towards(peer[0]) == connection.getsockname()[0]:
                return connection, peer
            connection.close()


def _source_towards(address: str) -> str | None:
    """The address that this machine would speak to another from; None: there is no way."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect((address, 9))  # of UDP: sends nothing
        except OSError:
            return None
        return str(probe.getsockname()[0])


class Listener:
    """Serves `app` where `wanted` says; an answer in words is why there is nowhere (yet)."""

    def __init__(
        self,
        app: FastAPI,
        guard: Guard,
        open_ones: Connections,
        wanted: Callable[[], Endpoint | str],
    ) -> None:
        self.waiting_for = ""
        self._app = Door(app, guard.knows_host)
        self._protocol = functools.partial(BoundedHttp, book=open_ones)
        self._wanted = wanted
        self._stopped = asyncio.Event()

    async def run(self) -> None:
        """Until `stop`."""
        while not self._stopped.is_set():
            endpoint = self._wanted()
            bound = self._bind(endpoint)
            if bound is None:
                await self._pause()
            else:
                await self._serve(bound, endpoint)

    def stop(self) -> None:
        self._stopped.set()

    def _bind(self, endpoint: Endpoint | str) -> socket.socket | None:
        if isinstance(endpoint, str):
            self._wait_for(endpoint)
            return None
        made = OwnSideSocket(socket.AF_INET, socket.SOCK_STREAM)
        made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            made.bind(endpoint)
            made.listen(BACKLOG)
        except OSError as error:
            made.close()
            self._wait_for(f"{endpoint[0]}:{endpoint[1]}: {error.strerror}")
            return None
        self.waiting_for = ""
        _log.info("listening", address=endpoint[0], port=endpoint[1])
        return made

    def _wait_for(self, what: str) -> None:
        if what and what != self.waiting_for:
            _log.warning("waiting", what=what)
        self.waiting_for = what

    async def _serve(self, bound: socket.socket, endpoint: Endpoint | str) -> None:
        server = _Server(
            uvicorn.Config(
                self._app,
                http=self._protocol,  # type: ignore[arg-type]
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                timeout_graceful_shutdown=GRACEFUL_END_S,
            )
        )
        serving = asyncio.create_task(server.serve(sockets=[bound]))
        while not self._stopped.is_set() and not serving.done() and self._wanted() == endpoint:
            await self._pause()
        server.should_exit = True
        await serving

    async def _pause(self) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._stopped.wait(), RETRY_S)


class _Server(uvicorn.Server):
    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield
