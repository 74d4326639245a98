"""`gale node drain|enable|ban|pardon|weight`: orders, which all LBs agree on.

An order is done when this says so: it stands in the node table, on the disks of a majority of the
LBs, and survives their restarts. `by` in it is who typed it and where. Answers that say "not now"
are waited for a moment, under one name, so that the order is given once at most.
"""

from __future__ import annotations

import getpass
import os
import socket
import uuid
from typing import Annotated, Any
from urllib.parse import quote

import typer
from pydantic import TypeAdapter, ValidationError

from bus.words import LARGEST_WEIGHT, LONGEST_MS
from conf.values import duration
from services.cli.client import ApiError, Client, client_of, refused
from services.cli.invocation import WRONG_USE, Invocation, print_json
from services.cli.nodes import order_text

app = typer.Typer(no_args_is_help=True, help="What you want of a node, agreed by all LBs.")

Id = Annotated[str, typer.Argument(metavar="ID", help="Its id, or its name if that is unique.")]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="For whoever sees it later.")]
_within = TypeAdapter(Annotated[int, duration(0, LONGEST_MS)])


@app.command()
def drain(
    context: typer.Context,
    node: Id,
    within: Annotated[
        str | None,
        typer.Option(metavar="5m", help="When what is left of its flows ends; else: by itself."),
    ] = None,
    why: Why = "",
) -> None:
    """Send it no new flows, and let those that it has go on."""
    try:
        _within.validate_python("0s" if within is None else within)
    except ValidationError as error:
        typer.echo(f"--within: {error.errors()[0]['msg']}", err=True)
        raise typer.Exit(WRONG_USE) from None
    _give(context, node, "drain", why, within=within)


@app.command()
def enable(context: typer.Context, node: Id, why: Why = "") -> None:
    """End a drain or a ban of an operator's."""
    _give(context, node, "enable", why)


@app.command()
def ban(context: typer.Context, node: Id, why: Why = "") -> None:
    """Route nothing to it, until it is enabled or pardoned."""
    _give(context, node, "ban", why)


@app.command()
def pardon(context: typer.Context, node: Id, why: Why = "") -> None:
    """End every ban of it, the LBs' own too, and forget its failures."""
    _give(context, node, "pardon", why)


@app.command()
def weight(
    context: typer.Context,
    node: Id,
    number: Annotated[str, typer.Argument(metavar="N", help="0 to 1000, or own: its agent's.")],
    why: Why = "",
) -> None:
    """Give it another part of the rings than its agent asks for."""
    is_number = number.isascii() and number.isdigit() and int(number) <= LARGEST_WEIGHT
    if number != "own" and not is_number:
        typer.echo(f"{number}: expected a number from 0 to {LARGEST_WEIGHT}, or own", err=True)
        raise typer.Exit(WRONG_USE)
    _give(context, node, "weight", why, weight=None if number == "own" else int(number))


def _give(context: typer.Context, node: str, what: str, why: str, **more: Any) -> None:
    invocation = Invocation.of(context)
    client = client_of(invocation)
    path = f"/v1/nodes/{quote(node, safe='@')}/{what}"
    body = {"by": _who(), "why": why} | more
    try:
        given = client.change(path, body, key=uuid.uuid4().hex)
        if invocation.json:
            print_json(given)
            return
        typer.echo(_done(client, given))
    except ApiError as error:
        raise refused(error) from None


def _done(client: Client, given: dict[str, Any]) -> str:
    """What was agreed on, and what is left to wait for."""
    said = f"{given['what']} {given['node']}: agreed"
    if given["what"] != "drain":
        return said
    shape = client.get(f"/v1/nodes/{quote(given['node'], safe='@')}")
    said += f"; it has {shape['flows']} flows now"
    order = shape["order"]
    if order is None or order["what"] != "drain" or order["remaining_ms"] is None:
        return f"{said}, and gets no new ones"
    return f"{said}; {order_text(order)}; then {order['at_deadline']}"


def _who() -> str:
    user = os.environ.get("SUDO_USER") or getpass.getuser()
    return f"{user}@{socket.gethostname()}"
