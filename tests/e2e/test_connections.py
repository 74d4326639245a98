"""The program that opens connections, against servers on loopback that do well, ill and nothing."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from itertools import count

import pytest

from e2e.connections import Outcome, dialer_words, outcome_of

Handler = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
ANSWER = b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nnode-0\n"


async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(ANSWER)


async def say_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")


async def reset(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    at_once = struct.pack("ii", 1, 0)
    writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)


@contextmanager
def server(handler: Handler) -> Iterator[int]:
    """The port of a server that closes each connection once its handler has returned."""
    loop = asyncio.new_event_loop()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await handler(reader, writer)
        writer.close()

    listening = loop.run_until_complete(asyncio.start_server(serve, "127.0.0.1", 0, backlog=1024))
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        yield listening.sockets[0].getsockname()[1]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        listening.close()
        loop.close()


def words(port: int, *more: str, rate: float = 200, seconds: float = 0.5) -> list[str]:
    return [*dialer_words("127.0.0.1", rate, seconds, port), *more]


def dialed(port: int, *more: str) -> Outcome:
    done = subprocess.run(words(port, *more), capture_output=True, text=True, check=True)
    return outcome_of(done.stdout)


def test_connections_that_end_well() -> None:
    with server(answer) as port:
        seen = dialed(port)
    assert (seen.opened, seen.failed, seen.errors) == (100, 0, {})
    assert 0 < seen.connect_ms.median <= seen.total_ms.median <= seen.total_ms.largest
    assert seen.slowest_ms == seen.total_ms.largest


def test_one_that_is_held_up_is_told_of_and_holds_up_no_other() -> None:
    number = count()

    async def hold_up_every_tenth(
        reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        if next(number) % 10 == 0:
            await asyncio.sleep(2)
        await answer(reader, writer)

    with server(hold_up_every_tenth) as port:
        seen = dialed(port)
    assert seen.failed == 0
    # All were under way at once: one after the other they would have taken 20 s.
    assert seen.seconds < 10
    assert seen.slow >= 10
    assert len([one for one in seen.worst if one.total_ms >= 2000]) == 10
    assert seen.total_ms.median < 2000


@pytest.mark.parametrize(
    ("handler", "error"), [(say_nothing, "no answer"), (reset, "reset")], ids=["silent", "reset"]
)
def test_connections_that_end_badly(handler: Handler, error: str) -> None:
    with server(handler) as port:
        seen = dialed(port)
    assert seen.errors == {error: 100}
    assert (seen.failed, seen.slow) == (100, 0)
    assert {one.error for one in seen.worst} == {error}


def test_connections_that_never_end_are_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as deaf:
        seen = dialed(deaf.getsockname()[1], "--timeout", "0.3")
    assert seen.errors == {"timeout": 100}
    assert seen.slowest_ms >= 300


def test_where_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    seen = dialed(port)
    assert seen.errors == {"refused": 100}


def test_a_program_that_was_late_says_so_and_does_not_catch_up() -> None:
    begun = threading.Event()

    async def note(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        begun.set()
        await answer(reader, writer)

    with server(note) as port:
        command = words(port, rate=50, seconds=2)
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert begun.wait(timeout=30)
            process.send_signal(signal.SIGSTOP)
            time.sleep(1)
            process.send_signal(signal.SIGCONT)
            seen = outcome_of(process.stdout.read())
    assert seen.opened == 100
    assert seen.lag_ms.largest >= 950
    # Two seconds of schedule, but for the last connection's turn, and one of pause.
    assert seen.seconds >= 2.9
