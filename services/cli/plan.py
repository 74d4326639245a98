"""`gale plan`: what a change would do.

    gale plan lb.new.toml
    gale plan --without node-2@10.81.0.21
    gale plan --weight node-1@10.81.0.20=50

The running dataplane makes the very plan that would carry the change out, and throws it away: so
many slots of each service would move, so many living flows would be hit. `gale apply` shows that
plan first.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from bus.words import LARGEST_WEIGHT
from conf import LbConfig, load_lb
from services.cli.client import ApiError, Client, client_of, refused
from services.cli.invocation import WRONG_USE, Invocation, print_json
from services.cli.tables import count, percent, show, table

TIMEOUT_S = 15.0

File = Annotated[Path | None, typer.Argument(help="A whole configuration file.")]


def plan(
    context: typer.Context,
    file: File = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="A node that would be gone.")
    ] = None,
    weight: Annotated[
        list[str] | None, typer.Option(metavar="NODE=N", help="A node's weight that would be N.")
    ] = None,
) -> None:
    """What a change would do: slots moved, living flows hit. Nothing is applied."""
    invocation = Invocation.of(context)
    if file is None and not without and not weight:
        typer.echo("expected a FILE, --without NODE or --weight NODE=N; see gale plan -h", err=True)
        raise typer.Exit(WRONG_USE)
    question = {
        "without": without or [],
        "weights": dict(map(_weight, weight or [])),
        "services": services_of(load_lb(file)) if file is not None else None,
    }
    answer = ask_plan(client_of(invocation), question)
    if invocation.json:
        print_json(answer)
    else:
        tell_plan(answer)


def _weight(text: str) -> tuple[str, int]:
    node, _, number = text.rpartition("=")
    is_number = number.isascii() and number.isdigit() and int(number) <= LARGEST_WEIGHT
    if not node or not is_number:
        expected = f"expected NODE=N, as node-1@10.81.0.20=50, N from 0 to {LARGEST_WEIGHT}"
        typer.echo(f"--weight {text}: {expected}", err=True)
        raise typer.Exit(WRONG_USE)
    return node, int(number)


def services_of(config: LbConfig) -> list[dict[str, Any]]:
    """As the node table would have them."""
    from services.quorum.from_config import table_service

    least = config.node_health.min_healthy
    read: list[dict[str, Any]] = orjson.loads(
        orjson.dumps([table_service(service, least) for service in config.services])
    )
    return read


def ask_plan(client: Client, question: dict[str, Any]) -> dict[str, Any]:
    """The plan, or one line on stderr and exit code 1."""
    try:
        answer: dict[str, Any] = client.post("/v1/plan", question, TIMEOUT_S)
    except ApiError as error:
        raise refused(error) from None
    return answer


def tell_plan(answer: dict[str, Any]) -> None:
    """As tables."""
    columns = ("service", "mode", "slots moved#", "share#", "flows#", "reset#", "moved#", "left#")
    rows = [
        [
            each["service"],
            each["mode"],
            count(each["slots_moved"]),
            percent(each["share_moved"]),
            *(count(each[name]) for name in ("flows", "flows_reset", "flows_moved", "flows_left")),
            each["change"],
        ]
        for each in answer["services"]
    ]
    nodes = [
        [each["node"], count(each["slots"]), count(each["slots_after"])]
        for each in answer["nodes"]
        if each["slots"] != each["slots_after"]
    ]
    show(table("", (*columns, "change"), rows, _STACKED))
    if nodes:
        show(Text(""), table("", ("node", "slots now#", "slots then#"), nodes))
    for line in answer["refused"]:
        show(Text(f"would find no place: {line}", "bold red"))
    if answer["changes_nothing"]:
        show(Text("the table would stay as it is"))
    moved, hit = count(answer["slots_moved"]), count(answer["flows_hit"])
    show(Text(f"{moved} slots would move, {hit} living flows would be hit; nothing is applied"))
    if any(each["mode"] != "l4" and each["slots_moved"] for each in answer["services"]):
        show(Text("in l2 and l3 nobody counts flows: of each service the share that moves is hit"))


_STACKED = (
    *(("service", "mode"), ("slots moved", "share"), ("flows",), ("reset", "moved"), ("left",)),
    ("change",),
)
