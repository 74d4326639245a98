"""Questions to the dataplane: what would become of a packet, or of a change. They change nothing.

`POST /v1/trace` names a packet and is answered with its verdict, its node and the steps that led
there. The first trace after a start of the dataplane waits for its programs to be compiled, which
takes seconds; so it may take as long as `FIRST_TRACE_MS`.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal, Protocol

from fastapi import FastAPI
from pydantic import BaseModel, ConfigDict, Field

from bus import topics

FIRST_TRACE_MS = 60_000


class Asked(Protocol):
    """What the shell lets this part of the HTTP face do."""

    async def command(
        self, service: str, verb: str, arguments: dict[str, Any], timeout_ms: int = ...
    ) -> dict[str, Any]: ...


class TraceQuestion(BaseModel):
    """A packet, as its sender sees it."""

    model_config = ConfigDict(extra="forbid", strict=True)

    protocol: Literal["tcp", "udp", "icmp"]
    source: Annotated[str, Field(max_length=21)]
    """`10.0.0.1:80`; of ICMP the address alone."""
    destination: Annotated[str, Field(max_length=21)]
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


def add_questions(app: FastAPI, source: Asked) -> None:
    @app.post("/v1/trace")
    async def trace(question: TraceQuestion) -> TraceAnswer:
        """What the loaded programs would do with a packet; reads the live maps, changes nothing."""
        arguments = question.model_dump()
        answer = await source.command(topics.DATAPLANE, "trace", arguments, FIRST_TRACE_MS)
        return TraceAnswer(**answer)
