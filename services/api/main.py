"""The API process: HTTP, metrics and the public event stream over what the other three publish.

The shell of `fold.py`: it owns the sockets and the clock. Of the four processes it is the only one
that outsiders talk to, so it decides nothing and holds no capability; killed, it loses no packet,
no event (its position in the stream is on disk) and at worst the streams that were open.

**In**: states and events of dataplane, health and quorum (`topics.SUBSCRIBES`), the command
`reload`, HTTP. **Out**: `process.started.` on the bus, the public stream at `<run>/events.ipc` (and
at `bus.events` when configured), commands to the dataplane on behalf of `/v1/flows`; on a machine
without avahi, what its name in the LBs' list stands for (`local_name`).

**Start.** For `SETTLE_MS` it only lets things arrive: the bus's replays, and the subscribers of its
previous life, who reconnect by themselves and whose subscriptions take effect only when they are
accepted. Then it folds the replays, accepts the subscribers, and sends first what happened while it
was away.

The loop is asyncio's, because HTTP is. ZeroMQ's descriptors are edge-triggered and any call on a
socket may use up the edge, so whoever touches the sockets calls `_pump`, which goes on until none
of them has anything left; a timer does the same `TICK_MS` later, should an edge be lost.

**Signals.** TERM ends everything within a second or so, open streams included, exit 0. HUP reads
the configuration again, as the command `reload` does: the port moves at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from collections import Counter
from collections.abc import Coroutine, Iterable
from http import HTTPStatus
from importlib.metadata import version
from typing import Any

import structlog
import zmq

from bus import topics
from bus.codec import to_json
from bus.commands import (
    COMMAND_TIMEOUT_MS,
    CommandError,
    request,
)
from bus.socket import PublisherSocket, monotonic_ms
from bus.words import one_line
from conf import LbConfig, Paths, load_lb
from services import connections, process
from services.api.fold import Fold
from services.api.guard import Guard, Token
from services.api.journal import Journal
from services.api.limits import Connections
from services.api.listener import Endpoint, Listener
from services.api.local_name import LocalName
from services.api.metrics import Scrape
from services.api.position import PositionFile
from services.api.problems import refusal
from services.api.routes import application
from services.api.snapshot import Local
from services.api.stream import Entry
from services.machine import LOOPBACK, own_address
from services.process import Bus

SETTLE_MS = 300
"""Three times libzmq's default pause before it reconnects."""
TICK_MS = 100
MOST_ROUNDS = 20
PAUSE_S = 0.005
SUBSCRIBER_LIMITS = connections.Limits(of_address=64, burst_bytes=16 << 10, bytes_per_s=1 << 10)
"""Of the events endpoint. libzmq keeps each subscription, fifty bytes for one of its own; all the
topics there are take a kilobyte."""
RETRY_MS = 1000

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-api`."""
    what = "Gale's API process."
    process.launch("gale-api", what, load_lb, lambda paths: paths.lb_config, _run)


def _run(paths: Paths, config: LbConfig) -> None:
    asyncio.run(ApiProcess(paths, config).run())


class ApiProcess:
    """Sockets, clock and files around one `Fold`; what `routes.Source` asks for."""

    def __init__(self, paths: Paths, config: LbConfig) -> None:
        self._paths = paths
        self._config = config
        self._name = config.local.name
        self._version = version("gale")
        self._bus = Bus(paths.run_dir, topics.API, self._name)
        self._publisher, self._commands = self._bus.publisher, self._bus.commands
        self._subscriber = self._bus.subscriber
        self._public = PublisherSocket(self._bus.context, topics.events_path(paths.run_dir))
        self._polled: tuple[zmq.Socket[bytes], ...] = (
            *self._bus.sockets,
            self._public.socket,
        )
        self._events_unbound = config.bus.events
        self._refused: Counter[str] = Counter()
        self._subscribers = connections.Connections(
            self._bus.context,
            self._public.socket,
            self._refused,
            lambda _: SUBSCRIBER_LIMITS,
            self.now_ms(),
        )
        self._events_retry_ms = 0
        self._events_waiting_for = ""
        self._position = PositionFile(paths.run_dir)
        self._journal = Journal(paths.run_dir)
        self.fold = Fold(self._publisher.boot, self._position.load(), self._journal.load())
        self._news = asyncio.Event()
        self._stopping = asyncio.Event()
        token = Token(lambda: self._config.security.api_token_file)
        guard = Guard(token, lambda: (self._name, socket.gethostname()))
        app = application(self, self._version, guard)
        open_ones = Connections()
        self._listeners = (
            Listener(app, guard, open_ones, lambda: (LOOPBACK, self._config.local.api_port)),
            Listener(app, guard, open_ones, self._private_endpoint),
        )

    async def run(self) -> None:
        """Until SIGTERM."""
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._stop)
        loop.add_signal_handler(signal.SIGINT, self._stop)
        loop.add_signal_handler(signal.SIGHUP, self._reload)
        if not await self._stops_within(SETTLE_MS):
            self._catch_up()
            for polled in self._polled:
                loop.add_reader(int(polled.getsockopt(zmq.FD)), self._pump)
            self._pump()
            ticking = asyncio.create_task(self._tick())
            naming = LocalName(lambda: self._config).run(self._stops_within)
            await asyncio.gather(ticking, naming, *(each.run() for each in self._listeners))
            for polled in self._polled:
                loop.remove_reader(int(polled.getsockopt(zmq.FD)))
        _log.info("stopped", process=topics.API)
        self._subscribers.close()
        self._public.close()
        self._bus.close()

    # ------------------------------------------------------------------ the bus and the stream

    def _catch_up(self) -> None:
        adopted = "its position in the event stream" if self.fold.published else ""
        entries = self.fold.catch_up(self._subscriber.receive(), self.now_ms())
        self._public.subscriptions()
        self._send(entries)
        started = self._bus.started(adopted)
        self._send(self.fold.receive(started, self.now_ms()))

    def _pump(self) -> None:
        """Take in what has come, until nothing is left, or others should have a turn."""
        for _ in range(MOST_ROUNDS):
            self._subscribers.turn(self.now_ms(), hasty=True)
            self._publisher.serve()
            self._commands.serve(self._command)
            prefixes = self._public.subscriptions()
            now_ms = self.now_ms()
            self._send(self.fold.subscribed(prefixes, now_ms))
            for envelope in self._subscriber.receive():
                self._send(self.fold.receive(envelope, now_ms))
            self.fold.repeated(self._subscriber.repeated, now_ms)
            if not any(int(polled.getsockopt(zmq.EVENTS)) & zmq.POLLIN for polled in self._polled):
                return
        asyncio.get_running_loop().call_later(PAUSE_S, self._pump)

    async def _tick(self) -> None:
        while not await self._stops_within(TICK_MS):
            self._bind_events()
            self._send(self.fold.tick(self.now_ms()))
            self._pump()

    def _send(self, entries: Iterable[Entry]) -> None:
        sent = list(entries)
        self._journal.keep_up(self.fold.log)
        for entry in sent:
            self._public.send([entry.topic.encode(), entry.body])
        if not all(entry.topic.is_state for entry in sent):
            self._position.save(self.fold.published)
        if sent:
            self._news.set()
            self._news = asyncio.Event()

    def _bind_events(self) -> None:
        """The second endpoint, when one is configured; its address may not be there yet."""
        now_ms = self.now_ms()
        if self._events_unbound is None or now_ms < self._events_retry_ms:
            return
        try:
            self._public.socket.bind(self._events_unbound)
        except zmq.ZMQError as error:
            waiting_for = f"bus.events: {self._events_unbound}: {error.strerror}"
            if waiting_for != self._events_waiting_for:
                _log.warning("waiting", what=waiting_for)
            self._events_waiting_for = waiting_for
            self._events_retry_ms = now_ms + RETRY_MS
        else:
            _log.info("publishing events", endpoint=self._events_unbound)
            self._events_waiting_for = ""
            self._events_unbound = None

    # ------------------------------------------------------------------ what HTTP asks for

    def now_ms(self) -> int:
        return monotonic_ms()

    def local(self) -> Local:
        waits = (*(listener.waiting_for for listener in self._listeners), self._events_waiting_for)
        return Local(
            name=self._name,
            mode=self._config.local.mode,
            version=self._version,
            pid=os.getpid(),
            public_address=own_address(self._config.local.net_interface_public),
            waiting_for="; ".join(filter(None, waits)),
            keys=self._config.security.keys is not None,
        )

    def scrape(self) -> Scrape:
        rejected = Counter(self._subscriber.rejected)
        rejected.update(self._commands.rejected)
        rejected.update(self._refused)
        return Scrape(self.fold, self.local(), self._subscriber.dropped, rejected, self.now_ms())

    def show_present_state(self) -> None:
        self._send(self.fold.subscribed([b""], self.now_ms()))
        self._pump()

    def next_message(self) -> Coroutine[Any, Any, bool]:
        return self._wait_for(self._news)

    async def command(
        self,
        service: str,
        verb: str,
        arguments: dict[str, Any],
        timeout_ms: int = COMMAND_TIMEOUT_MS,
    ) -> dict[str, Any]:
        """Ask a process of this LB. What of a request no message can carry (JSON has numbers of
        any length, and halves of characters) is the fault of whoever asked."""
        try:
            to_json(arguments)
        except TypeError as error:
            raise refusal(HTTPStatus.BAD_REQUEST, one_line(str(error))) from None
        path = topics.command_path(self._paths.run_dir, service)
        return await asyncio.to_thread(
            request, self._bus.context, path, verb, arguments, timeout_ms
        )

    async def _wait_for(self, news: asyncio.Event) -> bool:
        if not self._stopping.is_set():
            await news.wait()
        return not self._stopping.is_set()

    def _private_endpoint(self) -> Endpoint | str:
        interface = self._config.local.net_interface_private
        address = own_address(interface)
        if address is None:
            return f"{interface}: no IPv4 address yet"
        if address == LOOPBACK:
            return ""
        return address, self._config.local.api_port

    # ------------------------------------------------------------------ signals and commands

    async def _stops_within(self, wait_ms: int) -> bool:
        try:
            await asyncio.wait_for(self._stopping.wait(), wait_ms / 1000)
        except TimeoutError:
            return False
        return True

    def _stop(self) -> None:
        self._stopping.set()
        self._news.set()
        for listener in self._listeners:
            listener.stop()

    def _command(self, verb: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        if verb != "reload":
            raise CommandError(f"unknown command: {verb}; api knows: reload")
        return self._reload()

    def _reload(self) -> dict[str, Any]:
        config, answer = process.reload_lb(self._paths.lb_config, self._config)
        if config is not None:
            self._config = config
        return answer
