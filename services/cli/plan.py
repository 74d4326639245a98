"""`gale plan` and `gale apply`: what a change would do, and doing it.

    gale plan lb.new.toml
    gale plan --without node-2@10.81.0.21
    gale plan --weight node-1@10.81.0.20=50

The running dataplane makes the very plan that would carry the change out, and throws it away: so
many slots of each service would move, so many living flows would be hit. `apply` shows that plan,
asks, puts the file in the place of the configuration (the old one is kept beside it), has the four
processes read it, and waits until the kernel routes by it. If one of them refuses it, the old file
is put back.
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import orjson
import typer
from rich.text import Text

from conf import LbConfig, Paths, load_lb
from services.cli.client import ApiError, Client, client_of, refused
from services.cli.invocation import NO, WELL, WRONG_USE, Invocation, print_json
from services.cli.reload import is_whole, reload_all, tell
from services.cli.tables import count, percent, show, table

TIMEOUT_S = 15.0
SETTLE_S = 15.0
POLL_S = 0.2

File = Annotated[Path | None, typer.Argument(help="A whole configuration file.")]


def plan(
    context: typer.Context,
    file: File = None,
    without: Annotated[
        list[str] | None, typer.Option(metavar="NODE", help="A node that would be gone (its id).")
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
        "services": _services(load_lb(file)) if file is not None else None,
    }
    answer = _ask(client_of(invocation), question)
    if invocation.json:
        print_json(answer)
    else:
        _tell(answer)


def apply(
    context: typer.Context,
    file: Annotated[Path, typer.Argument(help="The whole new configuration file.")],
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Plan, confirm, put the file in place, have it run, wait; says how it went."""
    invocation = Invocation.of(context)
    config = load_lb(file)
    client = client_of(invocation)
    question = {"without": [], "weights": {}, "services": _services(config)}
    planned = _ask(client, question)
    if not invocation.json:
        _tell(planned)
    if not yes and not sys.stdin.isatty():
        typer.echo("nobody to ask here: --yes applies it without asking", err=True)
        raise typer.Exit(WRONG_USE)
    if not yes and not typer.confirm("Apply it?"):
        typer.echo("nothing was changed", err=True)
        raise typer.Exit(NO)
    place = invocation.config_path()
    before = _put(file, place)
    answers = reload_all(Paths.from_environment().run_dir)
    if not all(each.applied for each in answers) and before is not None:
        _put(before, place)
        reload_all(Paths.from_environment().run_dir)
    settled = all(each.applied for each in answers) and _settled(client, question)
    well = is_whole(answers) and settled
    if invocation.json:
        said = [asdict(each) for each in answers]
        print_json({"ok": well, "plan": planned, "processes": said, "settled": settled})
    else:
        tell(answers)
        show(Text(*_outcome(place, before, settled=settled)))
    raise typer.Exit(WELL if well else NO)


def _outcome(place: Path, before: Path | None, *, settled: bool) -> tuple[str, str]:
    if settled:
        kept = f"; the file before it is {before}" if before is not None else ""
        return f"{place} is applied, and the kernel routes by it{kept}", "green"
    return (
        f"it is not in force: gale status says what is missing; {place} is"
        f" {'as it was' if before is not None else 'the new one'}",
        "bold red",
    )


def _weight(text: str) -> tuple[str, int]:
    node, equals, number = text.rpartition("=")
    if not node or not equals or not number.isascii() or not number.isdigit():
        typer.echo(f"--weight {text}: expected NODE=N, as node-1@10.81.0.20=50", err=True)
        raise typer.Exit(WRONG_USE)
    return node, int(number)


def _services(config: LbConfig) -> list[dict[str, Any]]:
    """As the node table would have them."""
    from services.quorum.from_config import table_service

    least = config.node_health.min_healthy
    read: list[dict[str, Any]] = orjson.loads(
        orjson.dumps([table_service(service, least) for service in config.services])
    )
    return read


def _ask(client: Client, question: dict[str, Any]) -> dict[str, Any]:
    try:
        answer: dict[str, Any] = client.post("/v1/plan", question, TIMEOUT_S)
    except ApiError as error:
        raise refused(error) from None
    return answer


def _tell(answer: dict[str, Any]) -> None:
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


def _put(file: Path, place: Path) -> Path | None:
    """The file in the place of the configuration, in one step. Where the one before is kept."""
    if place.exists() and file.samefile(place):
        return None
    content, kept = file.read_bytes(), place.with_name(f"{place.name}.before")
    beside = place.with_name(f".{place.name}.new")
    before = place.read_bytes() if place.exists() else None
    if before is not None and file != kept:
        kept.write_bytes(before)
        kept.chmod(place.stat().st_mode & 0o777)
    beside.write_bytes(content)
    if before is not None:
        beside.chmod(place.stat().st_mode & 0o777)
    beside.replace(place)
    return kept if before is not None else None


def _settled(client: Client, question: dict[str, Any]) -> bool:
    """Whether, in good time, the table by which the kernel routes is the one that was asked for."""
    deadline = time.monotonic() + SETTLE_S
    while time.monotonic() < deadline:
        try:
            if client.post("/v1/plan", question, TIMEOUT_S)["changes_nothing"]:
                return True
        except ApiError:
            pass  # it may be reading its own part of the file
        time.sleep(POLL_S)
    return False
