"""The lab's `echo` server: the first line is the node's name, then every byte comes back.

Started as `echo.py NAME PORT...` in the node's namespace. A connection stays for as long as its
client wants, so it shows what happens to long flows; a client that vanishes ends only its own.

It takes data from a SYN (TCP Fast Open) where the machine's settings allow that.
"""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Sequence

CHUNK_BYTES = 65536
BACKLOG = 1024


async def serve(name: str, ports: Sequence[int]) -> None:
    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            writer.write(f"{name}\n".encode())
            while data := await reader.read(CHUNK_BYTES):
                writer.write(data)
                await writer.drain()
        except ConnectionError:
            pass
        finally:
            writer.close()

    servers = [await asyncio.start_server(talk, "0.0.0.0", port, backlog=BACKLOG) for port in ports]
    for listening in (one for server in servers for one in server.sockets):
        listening.setsockopt(socket.IPPROTO_TCP, socket.TCP_FASTOPEN, BACKLOG)
    await asyncio.gather(*(server.serve_forever() for server in servers))


if __name__ == "__main__":
    asyncio.run(serve(sys.argv[1], [int(port) for port in sys.argv[2:]]))
