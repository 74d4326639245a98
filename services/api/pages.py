"""The console: one page at `/`, its files, and the one stream that it lives on.

The files lie in `pages/`, are read once at the start and asked for nowhere else: no build step, no
other host, and a Content-Security-Policy that says so to the browser. uPlot draws the charts (MIT,
its licence lies beside it).

**`/v1/live`** is a server-sent stream of pictures: all that the console shows, whole, at most every
`SOONEST_MS` when something has changed and every `LATEST_MS` otherwise (rates move on by
themselves); the larger the picture, the rarer (`BYTES_PER_MS`). A picture is drawn and encoded once
for all who watch, by one task that runs while anybody does, so that fifty consoles cost fifty
writes and not fifty pictures. Between pictures come the events of the log, as they happen. Whoever
is too slow gets the newest picture and none of those between.

Its shape is the console's own affair and may change with it; scripts take `/v1/status`, `/v1/nodes`
and `/v1/events`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, replace
from http import HTTPStatus
from pathlib import Path
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response

from bus.topics import Topic
from services.api import snapshot
from services.api.events import STILL_HERE, STREAM, STREAM_SCHEMA, Streams, or_none, server_sent
from services.api.guard import tag_of
from services.api.problems import Answers, answers, refusal
from services.api.snapshot import data_of
from services.api.source import Source

DIRECTORY = Path(__file__).parent / "pages"
KINDS = {
    ".html": "text/html; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".LICENSE": "text/plain; charset=utf-8",
}
FRONT = "index.html"
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self';"
    " base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
}
SOONEST_MS, LATEST_MS = 200, 1000
BYTES_PER_MS = 500


@dataclass(frozen=True, slots=True)
class _File:
    content: bytes
    kind: str
    tag: str


def _files() -> dict[str, _File]:
    found = {}
    for path in sorted(DIRECTORY.iterdir()):
        if path.suffix in KINDS:
            content = path.read_bytes()
            found[path.name] = _File(content, KINDS[path.suffix], tag_of(content))
    return found


def add_pages(app: FastAPI, source: Source, streams: Streams) -> None:
    files = _files()

    @app.get("/", include_in_schema=False)
    async def front(request: Request) -> Response:
        return _file(files[FRONT], request)

    @app.get("/pages/{name}", include_in_schema=False)
    async def page(name: str, request: Request) -> Response:
        if name not in files:
            raise refusal(HTTPStatus.NOT_FOUND, "the console has no such file")
        return _file(files[name], request)

    live = _Live(source)
    stream: Answers = {200: {"content": {STREAM: {"schema": STREAM_SCHEMA}}}}

    @app.get("/v1/live", response_class=Response, responses=stream | answers(503))
    async def pictures() -> Response:
        """What the console shows, again and again, as server-sent events; its shape may change."""
        return streams.opened(live.watched())


def _file(file: _File, request: Request) -> Response:
    headers = HEADERS | {"ETag": file.tag}
    if request.headers.get("if-none-match") == file.tag:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, headers=headers | {"Content-Type": file.kind})


# --------------------------------------------------------------------------- the pictures


def picture(source: Source) -> dict[str, Any]:
    """All that the console shows, from one moment."""
    fold, now_ms = source.fold, source.now_ms()
    status = snapshot.status(fold, source.local(), now_ms)
    seen = snapshot.nodes(fold, now_ms)
    counters = data_of(fold, Topic.STATE_COUNTERS)
    made = fold.latest.get(Topic.STATE_COUNTERS)
    rests = [
        seat.snat_port_rest_seconds
        for seat in (counters.seats if counters else ())
        if seat.snat_port_rest_seconds is not None
    ]
    return {
        # The nodes list their seats themselves.
        "status": replace(status, services=[replace(each, nodes=[]) for each in status.services]),
        "nodes": seen.nodes if seen is not None else None,
        "counted_ms": made.envelope.head.made_ms if made is not None else None,
        "verdicts": counters.verdicts if counters else {},
        "snat_ports_used": counters.snat_ports_used if counters else None,
        "snat_ports_capacity": counters.snat_ports_capacity if counters else None,
        "snat_port_rest_s": min(rests, default=None),
    }


class _Live:
    """The newest picture, and who waits for the next."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._encoded = b""
        self._drawn = asyncio.Event()
        self._watching = 0
        self._drawing: asyncio.Task[None] | None = None
        self._is_over = False

    async def watched(self) -> AsyncIterator[bytes]:
        """For one console."""
        log = self._source.fold.log
        place = log.end
        self._watching += 1
        try:
            if self._drawing is None or self._drawing.done():
                self._draw()
                self._drawing = asyncio.create_task(self._keep_drawing())
            yield b"retry: 500\n\n" + self._encoded
            while not self._is_over:
                if await or_none(self._next(), 10 * LATEST_MS / 1000) is None:
                    yield STILL_HERE
                    continue
                happened = log.after(place)
                place = log.end
                events = (server_sent(each) for each in happened if not each.topic.is_bulky)
                yield b"".join(events) + self._encoded
        finally:
            self._watching -= 1

    async def _next(self) -> bool:
        await self._drawn.wait()
        return True

    def _draw(self) -> None:
        data = orjson.dumps(picture(self._source))
        self._encoded = b"event: picture\ndata: " + data + b"\n\n"
        self._drawn.set()
        self._drawn = asyncio.Event()

    async def _keep_drawing(self) -> None:
        while self._watching and not self._is_over:
            pause_ms = max(SOONEST_MS, len(self._encoded) // BYTES_PER_MS)
            since = self._source.fold.log.end
            await asyncio.sleep(pause_ms / 1000)
            if self._source.fold.log.end == since:
                left_s = max(0, LATEST_MS - pause_ms) / 1000
                self._is_over = await or_none(self._source.next_message(), left_s) is False
            self._draw()
