"""The HTTP face: every path, its shape, and what is said when it cannot be answered.

Read-only. All answers are drawn from the fold at the moment of the request; errors are problem+json
(RFC 9457). What is not known *yet* (the process that says it has not spoken since the API started)
is 503 with `Retry-After`, never an empty list: no node is something else than no news.

**`/v1/events`** is the public stream. As server-sent events, `id` is `BOOT:SEQ`: a client that
comes back with `Last-Event-ID` gets what it missed; one without gets the present state, then what
changes. Nothing is queued per client: each reads the one log from its own position, so a slow one
costs no memory, and falls out of the log at worst (it sees the gap by its numbers). With
`?since=BOOT:SEQ` the same as a JSON page. A boot that is not this one: all that is kept. A number
that was never given: what comes from now on, and not `complete`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from http import HTTPStatus
from typing import Annotated, Any, Protocol, TypeVar

import orjson
from fastapi import FastAPI, Header, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException

from bus import topics
from bus.commands import COMMAND_TIMEOUT_MS, CommandError
from bus.words import one_line
from services.api import snapshot
from services.api.asking import add_questions
from services.api.fold import Fold
from services.api.metrics import Scrape, exposition
from services.api.snapshot import (
    Local,
    NodeShape,
    NodesShape,
    QuorumShape,
    ServicesShape,
    StatusShape,
)
from services.api.stream import KEPT_MESSAGES, Entry

KEEP_ALIVE_S = 10.0
PAGE = 1000
STREAM_BATCH = 256
NAMES_SHOWN = 10
LONGEST_SEQ = 19
"""Digits of a number of 63 bits."""
LARGEST_FLOW_PAGE = 10_000
PROBLEM = "application/problem+json"
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"

Shape = TypeVar("Shape")


class Source(Protocol):
    """What the shell lets the HTTP face see."""

    fold: Fold

    def now_ms(self) -> int: ...
    def local(self) -> Local: ...
    def scrape(self) -> Scrape: ...

    def show_present_state(self) -> None:
        """Put the present state into the stream, for somebody who has just come."""

    def next_message(self) -> Coroutine[Any, Any, bool]:
        """Wait until the log has grown *since this call* (True), or streams are to end (False)."""

    async def command(
        self,
        service: str,
        verb: str,
        arguments: dict[str, Any],
        timeout_ms: int = COMMAND_TIMEOUT_MS,
    ) -> dict[str, Any]: ...


def application(source: Source, version: str) -> FastAPI:
    """The ASGI application over one shell."""
    app = FastAPI(
        title="Gale",
        version=version,
        description="What this load balancer does, sees and has agreed on.",
        docs_url=None,
        redoc_url=None,
    )
    _add_problems(app)
    _add_probes(app, source)
    _add_states(app, source)
    _add_flows(app, source)
    add_questions(app, source)
    _add_events(app, source)
    return app


# --------------------------------------------------------------------------- answers


def _json(value: Any, status: int = 200) -> Response:
    return Response(orjson.dumps(value), status, media_type="application/json")


def _problem(status: int, detail: str) -> Response:
    body = {
        "type": "about:blank",
        "title": HTTPStatus(status).phrase,
        "status": status,
        "detail": detail,
    }
    headers = {"Retry-After": "1"} if status == HTTPStatus.SERVICE_UNAVAILABLE else None
    return Response(orjson.dumps(body), status, headers=headers, media_type=PROBLEM)


def _known(shape: Shape | None, process: str) -> Shape:
    if shape is None:
        raise HTTPException(
            HTTPStatus.SERVICE_UNAVAILABLE, f"{process} has not spoken since the API started"
        )
    return shape


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        return _problem(error.status_code, str(error.detail))

    @app.exception_handler(RequestValidationError)
    async def wrong_request(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return _problem(HTTPStatus.BAD_REQUEST, f"{where}: {first['msg']}")

    @app.exception_handler(CommandError)
    async def refused_command(_request: Request, error: CommandError) -> Response:
        return _problem(HTTPStatus.BAD_REQUEST, str(error))

    @app.exception_handler(TimeoutError)
    async def unanswered_command(_request: Request, error: TimeoutError) -> Response:
        return _problem(HTTPStatus.GATEWAY_TIMEOUT, str(error))

    @app.exception_handler(Exception)
    async def fault(_request: Request, error: Exception) -> Response:
        return _problem(HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__)


# --------------------------------------------------------------------------- paths


def _add_probes(app: FastAPI, source: Source) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the API process lives: it does, if it answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> Response:
        """200 if the dataplane forwards, to some node, and a quorum is heard, else 503."""
        reasons = snapshot.readiness(source.fold, source.now_ms())
        if reasons:
            return _problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons))
        return _json({"status": "ready"})

    answer = exposition(source.scrape)

    @app.get("/metrics")
    async def metrics() -> Response:
        """For Prometheus, in its text format."""
        return Response(answer(), headers={"Content-Type": PROMETHEUS_TEXT})


def _add_states(app: FastAPI, source: Source) -> None:
    @app.get("/v1/status", response_model=StatusShape)
    async def status() -> Response:
        """This LB and the cluster at a glance."""
        return _json(snapshot.status(source.fold, source.local(), source.now_ms()))

    @app.get("/v1/nodes", response_model=NodesShape)
    async def nodes() -> Response:
        """Every node that this LB sees or the quorum has agreed on."""
        return _json(_known(snapshot.nodes(source.fold, source.now_ms()), topics.HEALTH))

    @app.get("/v1/nodes/{node_id}", response_model=NodeShape)
    async def node(node_id: str) -> Response:
        """One node, by its id."""
        known = _known(snapshot.nodes(source.fold, source.now_ms()), topics.HEALTH)
        for candidate in known.nodes:
            if candidate.id == node_id:
                return _json(candidate)
        raise HTTPException(HTTPStatus.NOT_FOUND, f"no node has the id {node_id}")

    @app.get("/v1/services", response_model=ServicesShape)
    async def services() -> Response:
        """Every service, with its nodes' parts of the ring and their counters."""
        shape = snapshot.services(source.fold, source.local(), source.now_ms())
        return _json(_known(shape, topics.QUORUM))

    @app.get("/v1/quorum", response_model=QuorumShape)
    async def quorum() -> Response:
        """This LB's part in the agreement of the LBs."""
        return _json(_known(snapshot.quorum(source.fold, source.now_ms()), topics.QUORUM))


def _add_flows(app: FastAPI, source: Source) -> None:
    @app.get("/v1/flows")
    async def flows(
        node: str | None = None,
        service: str | None = None,
        limit: Annotated[int, Query(ge=1, le=LARGEST_FLOW_PAGE)] = 100,
    ) -> dict[str, Any]:
        """Conntrack entries, as the dataplane reads them from the kernel now."""
        now_ms = source.now_ms()
        offered = snapshot.services(source.fold, source.local(), now_ms)
        names = {each.name for each in offered.services} if offered is not None else None
        _refuse_unknown("service", service, names)
        known = snapshot.nodes(source.fold, now_ms)
        ids = {each.id for each in known.nodes} if known is not None else None
        _refuse_unknown("node", node, ids)
        arguments = {"node": node, "service": service, "limit": limit}
        return await source.command(topics.DATAPLANE, "flows", arguments)


def _refuse_unknown(kind: str, name: str | None, known: set[str] | None) -> None:
    """404 for a name that nobody has; as long as nothing is known, any may be right."""
    if name and known is not None and name not in known:
        there = ", ".join(sorted(known)[:NAMES_SHOWN]) or "none"
        more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
        detail = f"no {kind} is named {one_line(name)}; there are {there}{more}"
        raise HTTPException(HTTPStatus.NOT_FOUND, detail)


# --------------------------------------------------------------------------- events


def _add_events(app: FastAPI, source: Source) -> None:
    @app.get("/v1/events")
    async def events(
        since: str | None = None,
        limit: Annotated[int, Query(ge=1, le=KEPT_MESSAGES)] = PAGE,
        last_event_id: Annotated[str | None, Header()] = None,
    ) -> Response:
        """The public stream: server-sent events, or with `since` a JSON page of what was missed."""
        if since is not None:
            return _page(source.fold, *_position(since), limit)
        if last_event_id is not None:
            boot, seq = _position(last_event_id)
            log = source.fold.log
            start = min(seq, log.last_seq) if boot == log.boot else 0
        else:
            start = source.fold.log.last_seq
            source.show_present_state()
        return StreamingResponse(
            _stream(source, start),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )


def _position(text: str) -> tuple[str, int]:
    boot, separator, seq = text.rpartition(":")
    if not separator or not seq.isascii() or not seq.isdigit() or len(seq) > LONGEST_SEQ:
        raise HTTPException(HTTPStatus.BAD_REQUEST, f"since: {one_line(text)} is not BOOT:SEQ")
    return boot, int(seq)


def _page(fold: Fold, boot: str, seq: int, limit: int) -> Response:
    log = fold.log
    after = min(seq, log.last_seq) if boot == log.boot else 0
    entries = log.after(after, limit)
    last = entries[-1].seq if entries else after
    return _json(
        {
            "boot": log.boot,
            "first_seq": log.first_seq,
            "last_seq": log.last_seq,
            # Whether nothing is missing between what was asked for and the first one here.
            "complete": boot == log.boot and log.first_seq - 1 <= seq <= log.last_seq,
            "next": f"{log.boot}:{last}",
            "events": [orjson.Fragment(entry.body) for entry in entries],
        }
    )


async def _stream(source: Source, position: int) -> AsyncIterator[bytes]:
    yield b"retry: 500\n\n"
    while True:
        entries = source.fold.log.after(position, STREAM_BATCH)
        if entries:
            position = entries[-1].seq
            yield b"".join(map(_server_sent, entries))
            continue
        more = await _or_none(source.next_message(), KEEP_ALIVE_S)
        if more is None:
            yield b": still here\n\n"
        elif not more:
            return


async def _or_none(wait: Coroutine[Any, Any, bool], timeout_s: float) -> bool | None:
    try:
        return await asyncio.wait_for(wait, timeout_s)
    except TimeoutError:
        return None


def _server_sent(entry: Entry) -> bytes:
    head = f"id: {entry.boot}:{entry.seq}\nevent: {entry.topic.value}\ndata: "
    return head.encode() + entry.body + b"\n\n"
