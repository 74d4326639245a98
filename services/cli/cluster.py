"""`gale handover`: this LB gives up what it holds, before somebody stops it."""

from __future__ import annotations

import typer

from services.cli.client import ApiError, client_of, refused
from services.cli.invocation import Invocation, print_json


def handover(context: typer.Context) -> None:
    """Have another LB take the lead and every VIP, without waiting for this one to fall silent."""
    invocation = Invocation.of(context)
    try:
        answer = client_of(invocation).post("/v1/handover", {})
    except ApiError as error:
        raise refused(error) from None
    if invocation.json:
        print_json(answer)
    else:
        typer.echo(f"handed over: {answer['leader']} leads")
