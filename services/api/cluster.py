"""What an operator may ask of the quorum by HTTP: to hand over, to commit, to go on alone."""

from __future__ import annotations

from fastapi import FastAPI
from pydantic import BaseModel

from bus import topics
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


def add_cluster(app: FastAPI, source: Commands) -> None:
    @app.post("/v1/handover", responses=guard.CHANGING)
    async def handover(_caller: guard.MayChange) -> HandedOver:
        """Have this LB give up the lead and every VIP; answers when another LB has them."""
        return HandedOver(**await source.command(topics.QUORUM, "handover", {}))

    @app.post("/v1/quorum/recover", responses=guard.CHANGING)
    async def recover(_caller: guard.MayChange) -> Recovered:
        """Have this LB decide alone, since the others are gone for good; not while one is heard."""
        return Recovered(**await source.command(topics.QUORUM, "recover", {}))

    @app.post("/v1/quorum/commit", responses=guard.CHANGING)
    async def commit(_caller: guard.MayChange) -> Committed:
        """Have the services and VIPs hold that a majority has staged; the leader alone can."""
        return Committed(**await source.command(topics.QUORUM, "commit", {}))
