"""`gale status` and `gale quorum`: this LB and the cluster at a glance.

`gale status` says no (1) when the LB is not ready, so that a script may ask.

`--watch` shows it anew every second until it is interrupted, through restarts of the API: a screen
that went away at the first hiccup would be of no use in the very moment it is wanted for. With
`--json` it prints one object per line.
"""

from __future__ import annotations

import time
from typing import Annotated, Any

import orjson
import typer
from rich.console import Group, RenderableType
from rich.live import Live
from rich.text import Text

from services.cli.client import ApiError, Client, ask, client_of, refused
from services.cli.invocation import NO, WELL, Invocation, print_json
from services.cli.nodes import front
from services.cli.tables import STATE_STYLES, console, count, show, span, table

WATCH_S = 1.0
NO_KEYS = "no keys: whoever reaches the private network may be a node (security.keys)"


def status(
    context: typer.Context,
    watch: Annotated[bool, typer.Option("--watch", help="Again every second.")] = False,
) -> None:
    """This LB and the cluster at a glance."""
    invocation = Invocation.of(context)
    client = client_of(invocation)
    try:
        answer = client.get("/v1/status")
    except ApiError as error:
        raise refused(error) from None
    if watch:
        _watch(client, answer, as_json=invocation.json)
        return
    if invocation.json:
        print_json(answer)
    else:
        show(_picture(answer))
    raise typer.Exit(WELL if answer["ready"] else NO)


def quorum(context: typer.Context) -> None:
    """This LB's part in the agreement of the LBs."""
    invocation = Invocation.of(context)
    answer = ask(invocation, "/v1/quorum")
    if invocation.json:
        print_json(answer)
        return
    members = [
        [
            member["name"],
            member["address"],
            _yes(member["alive"]),
            str(member["term"]),
            str(member["epoch"]),
            span(member["heard_ms"]),
        ]
        for member in answer["members"]
    ]
    columns = ("LB", "address", "alive", "term#", "epoch#", "heard#")
    show(_quorum_line(answer), table("", columns, members), *_vip_lines(answer))


def _watch(client: Client, answer: dict[str, Any], *, as_json: bool) -> None:
    """Until interrupted."""
    trouble = ""
    try:
        if as_json:
            while True:
                typer.echo(trouble or orjson.dumps(answer).decode(), err=bool(trouble))
                time.sleep(WATCH_S)
                answer, trouble = _again(client, answer)
        with Live(_picture(answer), console=console(), auto_refresh=False) as live:
            while True:
                time.sleep(WATCH_S)
                answer, trouble = _again(client, answer)
                live.update(_picture(answer, trouble), refresh=True)
    except KeyboardInterrupt:
        return


def _again(client: Client, before: dict[str, Any]) -> tuple[dict[str, Any], str]:
    try:
        return client.get("/v1/status"), ""
    except ApiError as error:
        return before, str(error)


def _picture(status: dict[str, Any], trouble: str = "") -> RenderableType:
    ready = Text("ready", "green") if status["ready"] else Text("NOT READY", "bold red")
    head = Text(f"{status['name']}  {status['mode']}  gale {status['version']}  ").append(ready)
    parts: list[RenderableType] = [head]
    if trouble:
        parts.append(Text(f"as it was before the API went: {trouble}", "bold red"))
    parts += [Text(f"  {reason}", "red") for reason in status["not_ready"]]
    parts += [Text(f"  not served: {what}", "yellow") for what in status["warnings"]]
    if not status["keys"]:
        parts.append(Text(f"  {NO_KEYS}", "yellow"))
    parts += _troubles(status["dataplane"])
    parts += [Text(""), _processes(status["processes"])]
    if status["dataplane"] is not None:
        parts += [Text(""), *_dataplane(status["dataplane"])]
    if status["quorum"] is not None:
        parts += [Text(""), _quorum_line(status["quorum"]), *_vip_lines(status["quorum"])]
    parts += [Text(""), _nodes_line(status["nodes"]), Text(""), _services(status["services"])]
    return Group(*parts)


def _processes(processes: dict[str, Any]) -> RenderableType:
    rows = [
        [
            name,
            Text("alive", "green") if process["alive"] else Text("SILENT", "bold red"),
            span(process["age_ms"]),
            str(process["pid"] or ""),
            process["waiting_for"],
        ]
        for name, process in processes.items()
    ]
    return table("", ("process", "", "heard#", "pid#", "waits for"), rows)


def _dataplane(dataplane: dict[str, Any]) -> list[RenderableType]:
    rows = [
        [
            hook["program"],
            hook["interface"],
            Text("attached", "green") if hook["attached"] else Text("NOT ATTACHED", "bold red"),
            hook["flavour"],
            hook["detail"],
        ]
        for hook in dataplane["hooks"]
    ]
    parts: list[RenderableType] = [
        table("", ("program", "interface", "", "flavour", "detail"), rows)
    ]
    if dataplane["outputs"]:
        fields = ("interface", "carries", "hook", "reason")
        ways = [[output[field] for field in fields] for output in dataplane["outputs"]]
        parts.append(table("", ("leaves by", "", "sent by", "because"), ways))
    established, capacity = dataplane["conntrack_established"], dataplane["conntrack_capacity"]
    if established is not None and capacity is not None:
        parts.append(
            Text(
                f"conntrack {count(established)} of {count(capacity)} established,"
                f" {count(dataplane['conntrack_half_open'])} half open;"
                f" the kernel routes by epoch {dataplane['epoch']}"
            )
        )
    return parts


def _quorum_line(quorum: dict[str, Any]) -> Text:
    state = Text("quorum", "green") if quorum["quorum"] else Text("NO QUORUM", "bold red")
    line = Text(f"{quorum['name']} is {quorum['role']}, ").append(state)
    line.append(
        f", leader {quorum['leader'] or 'none'}, term {quorum['term']}, epoch {quorum['epoch']},"
        f" lease {span(quorum['lease_remaining_ms'])}"
    )
    if quorum["waiting_for"]:
        line.append(f", waits for {quorum['waiting_for']}", "yellow")
    return line


def _vip_lines(quorum: dict[str, Any]) -> list[RenderableType]:
    return [Text(f"VIP {vip['address']} at {vip['holder'] or 'nobody'}") for vip in quorum["vips"]]


def _troubles(dataplane: dict[str, Any] | None) -> list[RenderableType]:
    """Of floating addresses."""
    claims = dataplane["claims"] if dataplane is not None else []
    return [
        Text(f"  {claim['address']}: {claim['trouble']}", "yellow")
        for claim in claims
        if claim["trouble"]
    ]


def _nodes_line(nodes: dict[str, int]) -> Text:
    line = Text("nodes: ")
    present = [(state, number) for state, number in nodes.items() if number]
    for index, (state, number) in enumerate(present):
        line.append(", " if index else "").append(f"{number} {state}", STATE_STYLES.get(state, ""))
    return line if present else line.append("none")


def _services(services: list[dict[str, Any]]) -> RenderableType:
    rows = [
        [
            service["name"],
            service["protocol"],
            front(service),
            service["mode"],
            str(service["nodes_up"]),
        ]
        for service in services
    ]
    return table("", ("service", "", "address", "mode", "nodes#"), rows)


def _yes(value: bool) -> Text:
    return Text("yes", "green") if value else Text("no", "red")
