"""A client that sends HTTP requests, each on a new connection, at a steady rate.

It runs on the client machine by itself (`python3 -c <this text> HOST PORT ...`), so it needs
nothing but Python's library. Every request prints one line of JSON when it ends:

    {"sent_ms": 12.5, "took_ms": 1.2, "lag_ms": 0.1, "answer": "node-1", "error": ""}

`sent_ms` counts from the program's start. The schedule is open: a slow answer does not hold back
the requests after it. `lag_ms` is how late the program itself was, so that a reader can tell a slow
rig from a slow service. After a long lag the schedule goes on from where it is: to catch up would
be to measure a burst. It ends after `--seconds`, or when its standard input is closed, and then
waits for what is still under way.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import threading
import time

LONG_LAG_S = 0.1


async def fetch(host: str, port: int) -> str:
    """The body of one answer; raises OSError or ValueError."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        request = f"GET / HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
        writer.write(request.encode())
        answer = await reader.read(-1)
        head, _, body = answer.partition(b"\r\n\r\n")
        if b" 200 " not in head.partition(b"\r\n")[0]:
            raise ValueError("bad answer")
        return body.decode().strip()
    finally:
        writer.close()


def describe(error: Exception) -> str:
    if isinstance(error, ConnectionRefusedError):
        return "refused"
    if isinstance(error, ConnectionResetError):
        return "reset"
    return "timeout" if isinstance(error, TimeoutError) else str(error) or type(error).__name__


async def request(arguments: argparse.Namespace, start: float, due: float) -> None:
    sent = time.monotonic()
    answer, error = "", ""
    try:
        answer = await asyncio.wait_for(fetch(arguments.host, arguments.port), arguments.timeout)
    except (OSError, ValueError) as problem:
        error = describe(problem)
    result = {
        "sent_ms": round((sent - start) * 1000, 2),
        "took_ms": round((time.monotonic() - sent) * 1000, 2),
        "lag_ms": round((sent - due) * 1000, 2),
        "answer": answer,
        "error": error,
    }
    print(json.dumps(result), flush=True)


async def run(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    stopped = asyncio.Event()

    def wait_for_end_of_input() -> None:
        sys.stdin.read()
        loop.call_soon_threadsafe(stopped.set)

    if arguments.until_input_ends:
        threading.Thread(target=wait_for_end_of_input, daemon=True).start()
    under_way: set[asyncio.Task[None]] = set()
    start = due = time.monotonic()
    number = 0
    while number < arguments.seconds * arguments.rate and not stopped.is_set():
        delay = due - time.monotonic()
        if delay > 0:
            await asyncio.sleep(delay)
        task = asyncio.create_task(request(arguments, start, due))
        under_way.add(task)
        task.add_done_callback(under_way.discard)
        number += 1
        late = time.monotonic() - due
        due += (late if late > LONG_LAG_S else 0) + 1 / arguments.rate
    while under_way:
        await asyncio.wait(under_way)


def main() -> None:
    parser = argparse.ArgumentParser(description="steady HTTP requests")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=100.0)
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--timeout", type=float, default=5.0)
    parser.add_argument("--until-input-ends", action="store_true")
    asyncio.run(run(parser.parse_args()))


if __name__ == "__main__":
    main()
