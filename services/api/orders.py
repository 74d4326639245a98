"""`POST /v1/nodes/{id}/drain|enable|ban|pardon|weight`: what an operator wants of a node.

The quorum process gets it as the command `order` and answers when all LBs have agreed; so 200 means
that it stands in the node table, on the disks of a majority. An order is named by the client
(`Idempotency-Key`) or else by a number drawn here: sent again under the same name, to whichever LB,
it is not carried out twice.

The path takes a node's id, or its name where only one node has it. `If-Match` is the tag of the
node as `GET /v1/nodes/{id}` gave it.
"""

from __future__ import annotations

import time
import uuid
from dataclasses import dataclass
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import Body, FastAPI, Header
from pydantic import AfterValidator, Field, TypeAdapter, ValidationError
from pydantic.dataclasses import dataclass as checked

from bus import topics
from bus.commands import CommandError
from bus.orders import LONGEST_TEXT, OrderKind
from bus.topics import Topic
from bus.words import LARGEST_WEIGHT, LONGEST_MS, one_line
from conf.values import duration
from services.api import snapshot
from services.api.guard import CHANGING, Caller, IfMatch, MayChange, check, etag
from services.api.problems import no_such, refusal
from services.api.snapshot import NodeShape
from services.api.source import Source

_within = TypeAdapter(Annotated[int, duration(0, LONGEST_MS)])


Line = Annotated[str, Field(max_length=LONGEST_TEXT), AfterValidator(one_line)]
"""What does not print is left out."""
SPAN = r"^([0-9]{1,11}ms|[0-9]{1,8}s|[0-9]{1,6}m|[0-9]{1,4}h)$"


@checked(frozen=True, slots=True)
class Reason:
    """Who wants it, if not the address that asks, and why."""

    by: Line = ""
    why: Line = ""


@checked(frozen=True, slots=True)
class Drain(Reason):
    within: Annotated[str, Field(max_length=20, pattern=SPAN)] | None = None
    """After so long ("5m") what still goes to the node ends; null: it may take as long as it likes.
    """


@checked(frozen=True, slots=True)
class Weight(Reason):
    weight: Annotated[int, Field(ge=0, le=LARGEST_WEIGHT)] | None = None
    """Null: what the node's own agent says, again."""


@dataclass(frozen=True, slots=True)
class Given:
    """What all LBs have agreed on."""

    id: str
    node: str
    what: str
    by: str
    why: str
    within_ms: int | None
    weight: int | None


IdempotencyKey = Annotated[
    str | None, Header(description="Names the order.", max_length=LONGEST_TEXT, min_length=1)
]


def add_orders(app: FastAPI, source: Source) -> None:
    desk = _Desk(source)
    _add_routing(app, desk)

    @app.post("/v1/nodes/{node_id}/weight", responses=CHANGING)
    async def weight(
        node_id: str,
        caller: MayChange,
        asked: Annotated[Weight | None, Body()] = None,
        if_match: IfMatch = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Given:
        """Give the node another part of the rings than its agent asks for."""
        node = desk.find(node_id, if_match)
        told = asked or Weight()
        order = desk.order(OrderKind.WEIGHT, node, told, caller, weight=told.weight)
        return await desk.give(order, idempotency_key)


def _add_routing(app: FastAPI, desk: _Desk) -> None:
    @app.post("/v1/nodes/{node_id}/drain", responses=CHANGING)
    async def drain(
        node_id: str,
        caller: MayChange,
        asked: Annotated[Drain | None, Body()] = None,
        if_match: IfMatch = None,
        idempotency_key: IdempotencyKey = None,
    ) -> Given:
        """Send the node no new flows; what it has may end by itself, or ends at the deadline."""
        node = desk.find(node_id, if_match)
        told = asked or Drain()
        within_ms = _duration(told.within)
        order = desk.order(OrderKind.DRAIN, node, told, caller, within_ms=within_ms)
        return await desk.give(order, idempotency_key)

    def add(kind: OrderKind, summary: str) -> None:
        @app.post(f"/v1/nodes/{{node_id}}/{kind}", responses=CHANGING, description=summary)
        async def route(
            node_id: str,
            caller: MayChange,
            asked: Annotated[Reason | None, Body()] = None,
            if_match: IfMatch = None,
            idempotency_key: IdempotencyKey = None,
        ) -> Given:
            node = desk.find(node_id, if_match)
            order = desk.order(kind, node, asked or Reason(), caller)
            return await desk.give(order, idempotency_key)

    add(OrderKind.ENABLE, "End an operator's drain or ban.")
    add(OrderKind.BAN, "Route nothing to the node until it is enabled or pardoned.")
    add(OrderKind.PARDON, "End every ban of the node and forget its failures.")


class _Desk:
    def __init__(self, source: Source) -> None:
        self._source = source

    def find(self, node_id: str, if_match: str | None) -> str:
        """The id of the node that is meant; refuses with 404, 409, 412 or 503."""
        shape = snapshot.nodes(self._source.fold, self._source.now_ms())
        if shape is None:
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, "no node is known yet")
        meant = [node for node in shape.nodes if node.id == node_id]
        meant = meant or [node for node in shape.nodes if node.name == node_id]
        if len(meant) > 1:
            ids = ", ".join(node.id for node in meant)
            raise refusal(HTTPStatus.CONFLICT, f"several nodes are named so: {one_line(ids)}")
        if not meant:
            return self._of_an_order(node_id, [node.id for node in shape.nodes])
        node: NodeShape = meant[0]
        check(if_match, etag(node))
        return node.id

    def _of_an_order(self, node_id: str, there: list[str]) -> str:
        """A node that has been forgotten may have orders yet; `there`: the ids of all others."""
        committed = snapshot.data_of(self._source.fold, Topic.STATE_TABLE)
        orders = committed.table.orders if committed is not None else ()
        if not any(order.asked.node == node_id for order in orders):
            raise no_such("node", node_id, there)
        return node_id

    def order(
        self,
        kind: OrderKind,
        node: str,
        told: Reason,
        caller: Caller,
        *,
        weight: int | None = None,
        within_ms: int | None = None,
    ) -> dict[str, Any]:
        return {
            "node": node,
            "kind": kind,
            "by": told.by or str(caller),
            "why": told.why,
            "weight": weight,
            "within_ms": within_ms,
            "time_ms": time.time_ns() // 1_000_000,
        }

    async def give(self, order: dict[str, Any], key: str | None) -> Given:
        number = one_line(key or "") or uuid.uuid4().hex
        try:
            await self._source.command(topics.QUORUM, "order", {"id": number, **order})
        except CommandError as error:
            raise refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from None
        return Given(
            id=number,
            node=order["node"],
            what=order["kind"],
            by=order["by"],
            why=order["why"],
            within_ms=order["within_ms"],
            weight=order["weight"],
        )


def _duration(text: str | None) -> int | None:
    if text is None:
        return None
    try:
        return _within.validate_python(text)
    except ValidationError as error:
        raise refusal(HTTPStatus.BAD_REQUEST, f"within: {error.errors()[0]['msg']}") from None
