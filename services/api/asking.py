"""Questions to the dataplane: what would become of a packet, or of a change. They change nothing.

`POST /v1/trace` names a packet and is answered with its verdict, its node and the steps that led
there. The first trace after a start of the dataplane waits for its programs to be compiled, which
takes seconds; so it may take as long as `FIRST_TRACE_MS`.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Annotated, Any, Literal

import msgspec
from fastapi import Depends, FastAPI
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema

from bus import topics
from bus.codec import from_json, to_json
from bus.states import TableService
from bus.words import IPV4, LARGEST_WEIGHT
from services.api.guard import ASKING, may_ask
from services.api.source import Commands

FIRST_TRACE_MS = 60_000
PLAN_MS = 10_000
"""A plan goes through the whole flow table."""


def _whole(number: Any) -> Any:
    """JSON has one kind of number: 3.0 is 3."""
    return int(number) if isinstance(number, float) and number.is_integer() else number


def _service_schema() -> dict[str, Any]:
    """What a service of the table must look like, from the very type that the bus decodes."""
    (_, parts) = msgspec.json.schema_components([TableService], ref_template="{name}")

    def inlined(schema: Any) -> Any:
        if isinstance(schema, list):
            return [inlined(each) for each in schema]
        if not isinstance(schema, dict):
            return schema
        if "$ref" in schema:
            return inlined(parts[schema["$ref"]])
        read = {key: inlined(value) for key, value in schema.items()}
        if "pattern" in read:
            # JSON Schema's patterns are JavaScript's, which knows neither \A nor \Z.
            read["pattern"] = read["pattern"].replace(r"\A", "^").replace(r"\Z", "$")
        return read

    service: dict[str, Any] = inlined(parts["TableService"])
    return service


def _table_service(service: dict[str, Any]) -> dict[str, Any]:
    """The fields of a service that the bus knows; raises ValueError if one of them is wrong.

    It is read here by the very type that the dataplane reads it by.
    """
    known = {field.name: _whole(service[field.name]) for field in _FIELDS if field.name in service}
    try:
        written = to_json(known)
    except TypeError as error:
        raise ValueError(str(error)) from None
    from_json(TableService, written)
    return known


_FIELDS = fields(TableService)
Weight = Annotated[int, Field(ge=0, le=LARGEST_WEIGHT), BeforeValidator(_whole)]
Service = Annotated[
    dict[str, Any], AfterValidator(_table_service), WithJsonSchema(_service_schema())
]
Place = Annotated[str, Field(pattern=rf"^{IPV4}(?::[0-9]{{1,5}})?$")]


class TraceQuestion(BaseModel):
    """A packet, as its sender sees it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: Literal["tcp", "udp", "icmp"]
    source: Place
    """`10.0.0.1:80`; of ICMP the address alone."""
    destination: Place
    flags: Annotated[list[Literal["syn", "ack", "fin", "rst", "psh"]], Field(max_length=5)] = []
    """TCP's; none: those that fit the flow, if one is known, else a SYN."""
    reply: bool = False
    """It comes from a node."""


class TraceAnswer(BaseModel):
    """What the programs of this LB would do with it."""

    lb: str
    packet: str
    verdict: Literal["pass", "forward", "answer", "drop"]
    reason: str
    why: str
    hook: str
    service: str | None
    mode: str | None
    node: str | None
    state: str | None
    """The flow's, as it is now; null: none is known."""
    state_after: str | None
    steps: list[str]
    packet_out: str | None
    """The frame that would leave, in hexadecimal digits."""


class PlanQuestion(BaseModel):
    """A change of the table, in any of these ways at once."""

    model_config = ConfigDict(extra="forbid", strict=True)

    without: Annotated[list[str], Field(max_length=1000)] = []
    """Nodes that would be gone: their ids, or names that only one has."""
    weights: dict[str, Weight] = {}
    """By node, likewise."""
    services: Annotated[list[Service], Field(max_length=1000)] | None = None
    """All there would be, each as the node table has it; null: as they are."""


class ServicePlan(BaseModel):
    """What would become of one service."""

    service: str
    mode: str
    change: str
    slots_moved: int
    share_moved: float
    flows: int
    flows_reset: int
    flows_moved: int
    flows_left: int


class NodePlan(BaseModel):
    """The slots of one node, of all services."""

    node: str
    slots: int
    slots_after: int


class PlanAnswer(BaseModel):
    """Slots that would move, and living flows that would be hit. Nothing is applied."""

    services: list[ServicePlan]
    nodes: list[NodePlan]
    refused: list[str]
    """What would find no place, a line each."""
    slots_moved: int
    flows_hit: int
    changes_nothing: bool


def add_questions(app: FastAPI, source: Commands) -> None:
    options: dict[str, Any] = {"responses": ASKING, "dependencies": [Depends(may_ask)]}

    @app.post("/v1/trace", **options)
    async def trace(question: TraceQuestion) -> TraceAnswer:
        """What the loaded programs would do with a packet; reads the live maps, changes nothing."""
        arguments = question.model_dump()
        answer = await source.command(topics.DATAPLANE, "trace", arguments, FIRST_TRACE_MS)
        return TraceAnswer(**answer)

    @app.post("/v1/plan", **options)
    async def plan(question: PlanQuestion) -> PlanAnswer:
        """Slots that a change would move, and flows that it would hit; nothing is applied."""
        arguments = question.model_dump()
        answer = await source.command(topics.DATAPLANE, "plan", arguments, PLAN_MS)
        return PlanAnswer(**answer)
