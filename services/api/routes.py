"""The HTTP face: every path, its shape, and what is said when it cannot be answered.

All answers are drawn from the fold at the moment of the request; errors are problem+json
(`problems.py`). What is not known *yet* (the process that says it has not spoken since the API
started) is 503 with `Retry-After`, never an empty list: no node is something else than no news. A
process that has died since makes its values *old*, which `observed_ms` says, and no error.

Every path and every answer stands in `/openapi.json`, from the same dataclasses that are sent.
Tags of states come from the versions of what they are made of, one node's from its content: an
order names that node, and what happens to another is no reason to refuse it.

Who may change something is `guard.py`'s, how much anybody may take `limits.py`'s, the streams are
`events.py`'s and the console `pages.py`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any, TypeVar

import orjson
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from bus import topics
from bus.commands import CommandError
from bus.topics import Topic
from services.api import snapshot
from services.api.asking import add_questions
from services.api.cluster import add_cluster
from services.api.events import Streams, add_events
from services.api.fold import Fold
from services.api.guard import Guard, etag, tag_of
from services.api.metrics import exposition
from services.api.orders import add_orders
from services.api.pages import add_pages
from services.api.problems import Answers, answers, documented, no_such, problem, refusal
from services.api.snapshot import (
    NodeShape,
    NodesShape,
    QuorumShape,
    ServicesShape,
    StatusShape,
)
from services.api.source import Source

LARGEST_FLOW_PAGE = 10_000
PROMETHEUS_TEXT = "text/plain; version=0.0.4; charset=utf-8"
OF_NOW = {"Cache-Control": "no-store"}
VIEW, TABLE, QUORUM, DATAPLANE = (
    Topic.STATE_VIEW,
    Topic.STATE_TABLE,
    Topic.STATE_QUORUM,
    Topic.STATE_DATAPLANE,
)

Shape = TypeVar("Shape")


@dataclass(frozen=True, slots=True)
class Health:
    status: str
    """ok, or ready: there is no other; else the answer is a problem."""


@dataclass(frozen=True, slots=True)
class FlowShape:
    """One flow, as it stands in the kernel's table."""

    protocol: str
    client: str
    """ADDRESS:PORT, as all places here."""
    vip: str
    snat: str
    """What the node sees as the client."""
    node: str
    state: str
    idle_ms: int
    age_ms: int
    node_id: str | None
    service: str | None


@dataclass(frozen=True, slots=True)
class FlowsShape:
    flows: list[FlowShape]
    total: int
    """How many there are in all."""


def application(source: Source, version: str, guard: Guard) -> FastAPI:
    """The ASGI application over one shell."""
    app = FastAPI(
        title="Gale",
        version=version,
        description="What this load balancer does, sees and has agreed on.",
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
    )
    app.state.guard = guard
    _add_problems(app)
    _add_probes(app, source)
    _add_states(app, source)
    _add_flows(app, source)
    add_questions(app, source)
    add_cluster(app, source, lambda: tag(source.fold, QUORUM))
    add_orders(app, source)
    streams = Streams()
    add_events(app, source, streams)
    add_pages(app, source, streams)
    _describe(app)
    return app


def _describe(app: FastAPI) -> None:
    described = app.openapi

    def openapi() -> dict[str, Any]:
        if app.openapi_schema is None:
            app.openapi_schema = documented(described())
        return app.openapi_schema

    app.openapi = openapi  # type: ignore[method-assign]


# --------------------------------------------------------------------------- answers


def _json(value: Any, tag: str | None = None) -> Response:
    headers = OF_NOW if tag is None else OF_NOW | {"ETag": tag}
    return Response(orjson.dumps(value), headers=headers, media_type="application/json")


def tag(fold: Fold, *made_of: Topic) -> str:
    """Of a state that is made of these: other as soon as one of them has a new version."""
    heads = [fold.latest[topic].envelope.head for topic in made_of if topic in fold.latest]
    return tag_of(orjson.dumps([(head.topic, head.boot, head.version) for head in heads]))


def known(shape: Shape | None, process: str) -> Shape:
    """A shape that something is known of; else 503."""
    if shape is None:
        detail = f"{process} has not spoken since the API started"
        raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, detail)
    return shape


def one_node(source: Source, node_id: str) -> NodeShape:
    """A node by its id; else 503 or 404."""
    nodes = known(snapshot.nodes(source.fold, source.now_ms()), topics.HEALTH).nodes
    for candidate in nodes:
        if candidate.id == node_id:
            return candidate
    raise no_such("node", node_id, [each.id for each in nodes])


def _add_problems(app: FastAPI) -> None:
    @app.exception_handler(HTTPException)
    async def refused(_request: Request, error: HTTPException) -> Response:
        return problem(error.status_code, str(error.detail), **dict(error.headers or {}))

    @app.exception_handler(RequestValidationError)
    async def wrong_request(_request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:])
        return problem(HTTPStatus.BAD_REQUEST, f"{where}: {first['msg']}")

    @app.exception_handler(CommandError)
    async def refused_command(_request: Request, error: CommandError) -> Response:
        return problem(HTTPStatus.CONFLICT, str(error))

    @app.exception_handler(TimeoutError)
    async def unanswered_command(_request: Request, error: TimeoutError) -> Response:
        return problem(HTTPStatus.GATEWAY_TIMEOUT, str(error))

    @app.exception_handler(Exception)
    async def fault(_request: Request, error: Exception) -> Response:
        return problem(HTTPStatus.INTERNAL_SERVER_ERROR, type(error).__name__)


# --------------------------------------------------------------------------- paths


def _add_probes(app: FastAPI, source: Source) -> None:
    @app.get("/healthz")
    async def healthz() -> Health:
        """Whether the API process lives: it does, if it answers."""
        return Health("ok")

    @app.get("/readyz", response_model=Health, responses=answers(503))
    async def readyz() -> Response:
        """200 if the dataplane forwards, to some node, and a quorum is heard, else 503."""
        reasons = snapshot.readiness(source.fold, source.now_ms())
        if reasons:
            return problem(HTTPStatus.SERVICE_UNAVAILABLE, "; ".join(reasons))
        return _json(Health("ready"))

    answer = exposition(source.scrape)
    text: Answers = {200: {"content": {"text/plain": {"schema": {"type": "string"}}}}}

    @app.get("/metrics", response_class=Response, responses=text)
    async def metrics() -> Response:
        """For Prometheus, in its text format."""
        return Response(answer(), headers={"Content-Type": PROMETHEUS_TEXT})


def _add_states(app: FastAPI, source: Source) -> None:
    fold = source.fold

    @app.get("/v1/status", response_model=StatusShape)
    async def status() -> Response:
        """This LB and the cluster at a glance."""
        shape = snapshot.status(fold, source.local(), source.now_ms())
        return _json(shape, tag(fold, VIEW, TABLE, QUORUM, DATAPLANE))

    @app.get("/v1/nodes", response_model=NodesShape, responses=answers(503))
    async def nodes() -> Response:
        """Every node that this LB sees or the quorum has agreed on."""
        shape = known(snapshot.nodes(fold, source.now_ms()), topics.HEALTH)
        return _json(shape, tag(fold, VIEW, TABLE, DATAPLANE))

    @app.get("/v1/nodes/{node_id}", response_model=NodeShape, responses=answers(404, 503))
    async def node(node_id: str) -> Response:
        """One node, by its id."""
        shape = one_node(source, node_id)
        return _json(shape, etag(shape))

    @app.get("/v1/services", response_model=ServicesShape, responses=answers(503))
    async def services() -> Response:
        """Every service, with its nodes' parts of the ring and their counters."""
        shape = snapshot.services(fold, source.local(), source.now_ms())
        return _json(known(shape, topics.QUORUM), tag(fold, VIEW, TABLE, DATAPLANE))

    @app.get("/v1/quorum", response_model=QuorumShape, responses=answers(503))
    async def quorum() -> Response:
        """This LB's part in the agreement of the LBs."""
        shape = known(snapshot.quorum(fold, source.now_ms()), topics.QUORUM)
        return _json(shape, tag(fold, QUORUM))


def _add_flows(app: FastAPI, source: Source) -> None:
    @app.get("/v1/flows", response_model=FlowsShape, responses=answers(404, 409, 504))
    async def flows(
        node: str | None = None,
        service: str | None = None,
        limit: Annotated[int, Query(ge=1, le=LARGEST_FLOW_PAGE)] = 100,
    ) -> Response:
        """Conntrack entries, as the dataplane reads them from the kernel now."""
        now_ms = source.now_ms()
        offered = snapshot.services(source.fold, source.local(), now_ms)
        names = {each.name for each in offered.services} if offered is not None else None
        _refuse_unknown("service", service, names)
        seen = snapshot.nodes(source.fold, now_ms)
        if node and seen is not None:
            node = snapshot.id_of(node, seen.nodes)
        ids = {each.id for each in seen.nodes} if seen is not None else None
        _refuse_unknown("node", node, ids)
        arguments = {"node": node, "service": service, "limit": limit}
        return _json(await source.command(topics.DATAPLANE, "flows", arguments))


def _refuse_unknown(kind: str, name: str | None, there: set[str] | None) -> None:
    """404 for a name that nobody has; as long as nothing is known, any may be right."""
    if name and there is not None and name not in there:
        raise no_such(kind, name, there)
