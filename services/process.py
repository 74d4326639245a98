"""What all five processes have in common: start, loop, lateness, signals, reload, end.

**Start.** `launch` reads the command line and the file, sets the log up and hands over. A wrong
file ends the process with 2, which supervisord takes as final. Whatever else fails is a fault of
ours, told in one line of the log, and ends it with 1, and not within a second of its start:
supervisord starts it again at once.

**Loop.** `Loop` waits for sockets, for a signal, or for the moment that the process names, and says
how late it came back: a process that was stopped or starved has not listened, and must not accuse
others of silence.

**Signals** set a flag and wake the loop; nothing is done in a handler. Build publishers before
making a `Loop`: they may wait for another copy to end, and must be terminable meanwhile.

**Reload** reads the file anew, as a whole or not at all, and says which keys wait for a restart.

`Lateness` calculates and knows no clock: time comes in. How processes log is said in
`services.logs`.
"""

from __future__ import annotations

import argparse
import os
import signal
import socket
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any, TypeVar

import structlog
import zmq

from bus import topics
from bus.commands import CommandServer
from bus.events import ProcessEvent
from bus.socket import Publisher, Subscriber, monotonic_ms
from bus.topics import Topic
from conf import ConfigError, LbConfig, Paths, load_lb, taken
from services import logs

BETWEEN_TRIES_S = 1.0

_log = structlog.get_logger()
Config = TypeVar("Config", bound=Any)


# --------------------------------------------------------------------------- what is calculated


class Lateness:
    """How late a loop is: of a turn, what it began later than it was meant to."""

    def __init__(self, now_ms: int) -> None:
        self._expected_ms = now_ms

    def begins(self, now_ms: int) -> int:
        """A turn begins; returns by how many ms it is late."""
        return max(0, now_ms - self._expected_ms)

    def waits(self, listened_ms: int, wait_ms: int) -> None:
        """The turn heard nothing after `listened_ms`, and is now to wait for at most `wait_ms`."""
        self._expected_ms = listened_ms + wait_ms


# --------------------------------------------------------------------------- start and end


def launch(
    program: str,
    what: str,
    read: Callable[[Path], Config],
    file: Callable[[Paths], Path],
    run: Callable[[Paths, Config], None],
) -> None:
    """The whole of a console script: `run` returns when the process is to end with 0.

    `read` loads the file that `file` names, or raises `ConfigError`.
    """
    begun_s = time.monotonic()
    argparse.ArgumentParser(prog=program, description=what).parse_args()
    logs.set_up()
    try:
        paths = Paths.from_environment()
        config = read(file(paths))
        logs.set_up(config.log.format, config.log.level)
        run(paths, config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(2)
    except Exception:
        _log.critical("a fault of this program ends it", exc_info=True)
        time.sleep(max(0.0, begun_s + BETWEEN_TRIES_S - time.monotonic()))
        sys.exit(1)


# --------------------------------------------------------------------------- the loop


class Signals:
    """TERM and INT, and HUP, as flags and something to wake a poller with."""

    def __init__(self) -> None:
        self.stopping = self._reload = False
        self._reading, self._writing = socket.socketpair()
        for end in (self._reading, self._writing):
            end.setblocking(False)
        signal.set_wakeup_fd(self._writing.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._on_stop)
        signal.signal(signal.SIGHUP, self._on_hangup)

    def fileno(self) -> int:
        """Readable when a signal has come, or `wake` was called."""
        return self._reading.fileno()

    def wake(self) -> None:
        """For threads: have the loop look at what they left for it."""
        try:
            self._writing.send(b"\0")
        except BlockingIOError:
            return  # it is about to wake anyway

    def heard(self) -> None:
        """What woke the loop is seen to."""
        try:
            self._reading.recv(4096)
        except BlockingIOError:
            return

    def take_stop(self) -> bool:
        """Whether the process has been told to end since this was asked last."""
        wanted, self.stopping = self.stopping, False
        return wanted

    def take_reload(self) -> bool:
        """Whether HUP has come since this was asked last."""
        wanted, self._reload = self._reload, False
        return wanted

    def _on_stop(self, _signal: int, _frame: object) -> None:
        self.stopping = True

    def _on_hangup(self, _signal: int, _frame: object) -> None:
        self._reload = True


class Loop:
    """The poller of a process, and how late it is."""

    def __init__(self) -> None:
        self.signals = Signals()
        self.poller = zmq.Poller()
        self.poller.register(self.signals.fileno(), zmq.POLLIN)
        self._lateness = Lateness(monotonic_ms())

    def watch(self, *polled: zmq.Socket[bytes] | int) -> None:
        for each in polled:
            self.poller.register(each, zmq.POLLIN)

    def watch_errors(self, *descriptors: int) -> None:
        """Of sockets whose news comes by their error queue."""
        for each in descriptors:
            self.poller.register(each, zmq.POLLERR)

    def late_ms(self, now_ms: int) -> int:
        """By how much the turn that begins now is late."""
        return self._lateness.begins(now_ms)

    def wait(self, wait_ms: int, listened_ms: int | None = None) -> dict[Any, int]:
        """Until something is readable, a signal comes, or the time is over; returns what is.

        `listened_ms`: when this turn ended to read its input; None: now.
        """
        self._lateness.waits(monotonic_ms() if listened_ms is None else listened_ms, wait_ms)
        ready = dict(self.poller.poll(wait_ms))
        if self.signals.fileno() in ready:
            self.signals.heard()
        return ready


class Bus:
    """The bus's sockets of one of the LB's processes: what it publishes, hears and is asked."""

    def __init__(self, run_dir: Path, service: str, host: str) -> None:
        self.service = service
        self.context: zmq.Context[Any] = zmq.Context()
        path = topics.publisher_path(run_dir, service)
        self.publisher = Publisher(self.context, path, service, host)
        self.commands = CommandServer(self.context, topics.command_path(run_dir, service))
        self.subscriber = Subscriber(self.context, run_dir, topics.SUBSCRIBES[service])

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll."""
        return self.publisher.poll_socket, self.commands.socket, self.subscriber.socket

    def started(self, adopted: str) -> Any:
        """Tell everybody that this process has started, and what it took over, in words."""
        event = ProcessEvent(self.service, os.getpid(), version("gale"), adopted)
        return self.publisher.publish(Topic.PROCESS_STARTED, event)

    def close(self) -> None:
        for owned in (self.publisher, self.commands, self.subscriber):
            owned.close()
        self.context.term()


# --------------------------------------------------------------------------- reload


def reload_lb(path: Path, goes_by: LbConfig) -> tuple[LbConfig | None, dict[str, Any]]:
    """Read an LB's file anew: what to go by from now on, and the answer to the command.

    `goes_by`: what the process goes by until now.
    None: the file is refused, and all stays as it was.
    """
    config = read_again(path, load_lb)
    if isinstance(config, ConfigError):
        problems = [str(problem) for problem in config.problems]
        return None, {"applied": False, "problems": problems, "restart_needed": []}
    config, waiting = taken(goes_by, config)
    logs.set_up(config.log.format, config.log.level)
    _log.info("configuration applied", path=path, restart_needed=waiting)
    return config, {"applied": True, "problems": [], "restart_needed": waiting}


def read_again(path: Path, read: Callable[[Path], Config]) -> Config | ConfigError:
    """The file's new content, or what is wrong with it, which has been said then."""
    try:
        return read(path)
    except ConfigError as error:
        for problem in error.problems:
            _log.error("the configuration stays as it was", problem=str(problem))
        return error
