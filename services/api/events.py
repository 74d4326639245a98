"""`/v1/events`: the public stream over HTTP.

As server-sent events, `id` is `BOOT:SEQ`: a client that comes back with `Last-Event-ID` gets what
it missed; one without gets the present state, then what changes. Nothing is queued per client: each
reads the one log from its own position, so a slow one costs no memory, and falls out of the log at
worst (it sees the gap by its numbers). With `?since=BOOT:SEQ` the same as a JSON page.

A boot before this one is known as far back as the log goes (`stream.py`), so a restart of the API
makes no gap. Of a boot that is not known: all that is kept. A number that was never given: what
comes from now on, and not `complete`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

import orjson
from fastapi import FastAPI, Header, Query, Response
from fastapi.responses import StreamingResponse

from bus.words import one_line
from services.api.limits import MOST_STREAMS
from services.api.problems import Answers, answers, refusal
from services.api.source import Source
from services.api.stream import KEPT_MESSAGES, Entry, EventLog

KEEP_ALIVE_S = 10.0
PAGE = 1000
STREAM_BATCH = 256
LONGEST_SEQ = 19
"""Digits of a number of 63 bits."""
STREAM = "text/event-stream"
STREAM_SCHEMA = {
    "type": "object",
    "description": "One server-sent event.",
    "properties": {name: {"type": "string"} for name in ("id", "event", "data")},
}
STILL_HERE = b": still here\n\n"
STREAM_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@dataclass(frozen=True, slots=True)
class EventsPage:
    """What followed a number."""

    boot: str
    """The present one."""
    first_seq: int
    """The oldest number of this boot that is kept."""
    last_seq: int
    complete: bool
    """Whether nothing is missing between what was asked for and the first one here."""
    next: str
    """What to ask `since` for the next page."""
    events: list[dict[str, Any]]
    """Messages as docs/events.md describes them, oldest first."""


class Streams:
    """How many are open; `opened` makes an answer of one, or refuses it with 503."""

    def __init__(self, most: int = MOST_STREAMS) -> None:
        self._most = most
        self.open = 0

    def opened(self, parts: AsyncIterator[bytes]) -> Response:
        if self.open >= self._most:
            detail = f"{self._most} streams are open already"
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail)
        return _Counted(self, parts)


class _Counted(StreamingResponse):
    def __init__(self, streams: Streams, parts: AsyncIterator[bytes]) -> None:
        super().__init__(parts, media_type=STREAM, headers=STREAM_HEADERS)
        self._streams = streams

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self._streams.open += 1
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._streams.open -= 1


def add_events(app: FastAPI, source: Source, streams: Streams) -> None:
    log = source.fold.log
    both: Answers = {
        200: {
            "description": "The stream; with `since` a page.",
            "content": {STREAM: {"schema": STREAM_SCHEMA}},
        }
    }

    @app.get("/v1/events", response_model=EventsPage, responses=both | answers(503))
    async def events(
        since: str | None = None,
        limit: Annotated[int, Query(ge=1, le=KEPT_MESSAGES)] = PAGE,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """The public stream: server-sent events, or with `since` a JSON page of what was missed."""
        if since is not None:
            return _page(log, *_position("since", since), limit)
        if last_event_id is not None:
            start = log.find(*_position("Last-Event-ID", last_event_id)).at
        else:
            start = log.end
            source.show_present_state()
        return streams.opened(_stream(source, start))


def _position(name: str, text: str) -> tuple[str, int]:
    boot, separator, seq = text.rpartition(":")
    if not separator or not seq.isascii() or not seq.isdigit() or len(seq) > LONGEST_SEQ:
        detail = f"{name}: {one_line(text)} is not BOOT:SEQ"
        raise refusal(HTTPStatus.BAD_REQUEST, detail)
    return boot, int(seq)


def _page(log: EventLog, boot: str, seq: int, limit: int) -> Response:
    found = log.find(boot, seq)
    entries = log.after(found.at, limit)
    last = (entries[-1].boot, entries[-1].seq) if entries else (log.boot, log.last_seq)
    page = {
        "boot": log.boot,
        "first_seq": log.first_seq,
        "last_seq": log.last_seq,
        "complete": found.complete,
        "next": f"{last[0]}:{last[1]}",
        "events": [orjson.Fragment(entry.body) for entry in entries],
    }
    return Response(orjson.dumps(page), media_type="application/json")


async def _stream(source: Source, position: int) -> AsyncIterator[bytes]:
    yield b"retry: 500\n\n"
    while True:
        entries = source.fold.log.after(position, STREAM_BATCH)
        if entries:
            position = source.fold.log.behind(entries[-1])
            yield b"".join(map(server_sent, entries))
            continue
        more = await or_none(source.next_message(), KEEP_ALIVE_S)
        if more is None:
            yield STILL_HERE
        elif not more:
            return


async def or_none(wait: Coroutine[Any, Any, bool], timeout_s: float) -> bool | None:
    """None: the time is over."""
    try:
        return await asyncio.wait_for(wait, timeout_s)
    except TimeoutError:
        return None


def server_sent(entry: Entry) -> bytes:
    """A message of the log, as a server-sent event."""
    head = f"id: {entry.boot}:{entry.seq}\nevent: {entry.topic.value}\ndata: "
    return head.encode() + entry.body + b"\n\n"
