"""Brings an LB's API to the host: listens there, connects inside the LB's namespace.

Started as `forwarder.py LISTEN_PORT NETNS_FILE TARGET_PORT`. A socket belongs to the namespace that
its process was in when it was made: so listen first, then enter the LB's, then connect. It hands on
bytes and knows no HTTP: event streams pass, and while the API is down connections are closed.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import socket
import sys
from pathlib import Path

CHUNK_BYTES = 65536
CLONE_NEWNET = 0x40000000


def enter_namespace(path: Path) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    with path.open() as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(path))


async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Until one end closes; a broken connection is an end too."""
    with contextlib.suppress(OSError):
        while data := await reader.read(CHUNK_BYTES):
            writer.write(data)
            await writer.drain()


async def join(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, target_port: int
) -> None:
    """Connect a client to the API until either of them has had enough."""
    try:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", target_port)
    except OSError:
        writer.close()
        return
    ways = [
        asyncio.create_task(pump(reader, inner_writer)),
        asyncio.create_task(pump(inner_reader, writer)),
    ]
    await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
    for way in ways:
        way.cancel()
    inner_writer.close()
    writer.close()


async def serve(listener: socket.socket, target_port: int) -> None:
    joined: set[asyncio.Task[None]] = set()  # asyncio itself may forget a task that waits

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(join(reader, writer, target_port))
        joined.add(task)
        task.add_done_callback(joined.discard)

    server = await asyncio.start_server(accept, sock=listener)
    async with server:
        await server.serve_forever()


def main(listen_port: int, netns: Path, target_port: int) -> None:
    listener = socket.create_server(("127.0.0.1", listen_port), backlog=64)
    enter_namespace(netns)
    asyncio.run(serve(listener, target_port))


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3]))
