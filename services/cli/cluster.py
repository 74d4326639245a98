"""`gale quorum`, `gale quorum add|remove|recover` and `gale handover`: the LBs as one cluster.

`add` and `remove` change who agrees with whom, by one LB at a time; they are done when this says so
and are kept over restarts, whatever the files list, until all of these list something new.

`recover` is for the one case in which no majority will ever come back. It is refused as long as a
leader or another LB is heard, says what it risks, asks, and takes ten seconds in which it can still
be interrupted. Exit code 1: it was refused, or not wanted.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import quote

import typer

from services.cli.client import ApiError, client_of, refused
from services.cli.invocation import NO, Invocation, print_json
from services.cli.status import quorum
from services.cli.watch import Watch

RISK = """\
{name} will decide alone, by the table it has (term {term}, epoch {epoch}), and claim every VIP.
If another LB of the old cluster still runs, or comes back before its list is changed, there are two
clusters with the same VIPs. Be sure that all the others are off: {others}."""
AFTERWARDS = """\
{name} decides alone from now on. Take the others out of load_balancer_quorum.addresses of its file
before its quorum process is restarted; it would wait for them again."""
WAIT_S = 10

app = typer.Typer(
    add_completion=False,
    invoke_without_command=True,
    help="This LB's part in the agreement of the LBs.",
)


@app.callback()
def show(context: typer.Context, watch: Watch = False) -> None:
    """This LB's part in the agreement of the LBs."""
    if context.invoked_subcommand is None:
        quorum(context, watch)


Name = Annotated[
    str,
    typer.Argument(metavar="NAME", help="Its name, or HOST:PORT as its own file lists it."),
]


@app.command()
def add(context: typer.Context, name: Name) -> None:
    """Have an LB be a member, which has the members in its own file and runs."""
    _change(context, "add", name, "is a member: its vote counts")


@app.command()
def remove(context: typer.Context, name: Name) -> None:
    """Have an LB be a member no more; it goes on forwarding what still comes to it."""
    _change(context, "remove", name, "is no member any more: it may be stopped")


def _change(context: typer.Context, change: str, name: str, done: str) -> None:
    invocation = Invocation.of(context)
    try:
        path = f"/v1/quorum/members/{quote(name, safe=':')}/{change}"
        answer = client_of(invocation).post(path, {})
    except ApiError as error:
        raise refused(error) from None
    if invocation.json:
        print_json(answer)
    else:
        typer.echo(f"{name} {done}")


@app.command()
def recover(
    context: typer.Context,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask; the ten seconds stay.")] = False,
) -> None:
    """Two of three are gone for good: have this one decide alone."""
    invocation = Invocation.of(context)
    client = client_of(invocation)
    try:
        state = client.get("/v1/quorum")
        others = state["members"][1:]
        _refuse_if_heard(state["leader"], others)
        told = {key: state[key] for key in ("name", "term", "epoch")}
        typer.echo(RISK.format(**told, others=_names(others)), err=True)
        if not yes and not typer.confirm("Go on?", err=True):
            raise typer.Exit(NO)
        typer.echo(f"in {WAIT_S} seconds; interrupt to leave all as it is", err=True)
        time.sleep(WAIT_S)
        answer = client.command("/v1/quorum/recover")
    except ApiError as error:
        raise refused(error) from None
    if invocation.json:
        print_json(answer)
    else:
        typer.echo(AFTERWARDS.format(name=state["name"]))


def _refuse_if_heard(leader: str | None, others: list[dict[str, Any]]) -> None:
    """Nobody is asked, and nobody waits, where the quorum process would refuse it anyway."""
    if not others:
        raise ApiError("this LB decides alone already")
    there = leader or _names(each for each in others if each["alive"])
    if there:
        raise ApiError(f"{there} is heard: nothing is lost that will not come back")


def _names(members: Iterable[dict[str, Any]]) -> str:
    return ", ".join(each["name"] or each["address"] for each in members)


def handover(context: typer.Context) -> None:
    """Have another LB take the lead and every VIP, without waiting for this one to fall silent."""
    invocation = Invocation.of(context)
    try:
        answer = client_of(invocation).command("/v1/handover")
    except ApiError as error:
        raise refused(error) from None
    if invocation.json:
        print_json(answer)
    else:
        typer.echo(f"handed over: {answer['leader']} leads")
