"""What an operator may ask of the quorum by HTTP: to hand over, to commit, to go on alone, and who
its members are. A change of the members is one by one: see `services.quorum.membership`.

`If-Match` is the tag of `GET /v1/quorum`: who hands over, because he has seen that this LB leads,
may not want it where another one leads by now.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Path
from pydantic import BaseModel

from bus import topics
from bus.words import MemberChange
from services.api import guard
from services.api.source import Commands


class HandedOver(BaseModel):
    """Who has taken over."""

    leader: str


class Recovered(BaseModel):
    """This LB decides alone."""

    members: int


class Committed(BaseModel):
    """What all LBs go by from now on."""

    agreed: str


class Changed(BaseModel):
    """All that agree go by this."""

    member: str
    """As it was asked for."""
    change: str


Who = Annotated[str, Path(description="Its name, its host, or `HOST:PORT`.", max_length=300)]


def add_cluster(app: FastAPI, source: Commands, tag: Callable[[], str]) -> None:
    """`tag`: of what `GET /v1/quorum` says now."""

    def as_seen(_caller: guard.MayChange, if_match: guard.IfMatch = None) -> None:
        guard.check(if_match, tag())

    changing: dict[str, Any] = {"responses": guard.CHANGING, "dependencies": [Depends(as_seen)]}

    @app.post("/v1/handover", **changing)
    async def handover() -> HandedOver:
        """Have this LB give up the lead and every VIP; answers when another LB has them."""
        return HandedOver(**await source.command(topics.QUORUM, "handover", {}))

    @app.post("/v1/quorum/recover", **changing)
    async def recover() -> Recovered:
        """Have this LB decide alone, since the others are gone for good; not while one is heard."""
        return Recovered(**await source.command(topics.QUORUM, "recover", {}))

    @app.post("/v1/quorum/commit", **changing)
    async def commit() -> Committed:
        """Have the services and VIPs hold that a majority has staged; the leader alone can."""
        return Committed(**await source.command(topics.QUORUM, "commit", {}))

    @app.post("/v1/quorum/members/{member}/add", **changing)
    async def add(member: Who) -> Changed:
        """Have the LB be a member; answers when all go by it. 409: why not."""
        return await _change(source, MemberChange.ADD, member)

    @app.post("/v1/quorum/members/{member}/remove", **changing)
    async def remove(member: Who) -> Changed:
        """Have the LB be a member no more; answers when all go by it. 409: why not."""
        return await _change(source, MemberChange.REMOVE, member)


async def _change(source: Commands, change: MemberChange, member: str) -> Changed:
    asked = {"id": uuid.uuid4().hex, "change": change.value, "member": member}
    await source.command(topics.QUORUM, "member", asked)
    return Changed(member=member, change=change.value)
