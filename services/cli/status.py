"""`gale status` and `gale quorum`: this LB and the cluster at a glance.

`gale status` says no (1) when the LB is not ready, so that a script may ask; watched (`watch`), it
ends well when it is interrupted.
"""

from __future__ import annotations

from typing import Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from services.cli.invocation import NO, WELL
from services.cli.nodes import front
from services.cli.tables import STATE_STYLES, count, span, table
from services.cli.watch import Watch, tell

NO_KEYS = "no keys: whoever reaches the private network may be a node (security.keys)"


def status(context: typer.Context, watch: Watch = False) -> None:
    """This LB and the cluster at a glance."""
    answer = tell(context, "/v1/status", _picture, watch=watch)
    raise typer.Exit(WELL if answer["ready"] or watch else NO)


def quorum(context: typer.Context, watch: Watch = False) -> None:
    """This LB's part in the agreement of the LBs."""
    tell(context, "/v1/quorum", _quorum_picture, watch=watch)


def _quorum_picture(answer: dict[str, Any]) -> RenderableType:
    members = [
        [
            member["name"],
            member["address"],
            _yes(member["alive"]),
            str(member["term"]),
            str(member["epoch"]),
            span(member["heard_ms"]),
            "; ".join(member["why_not"]),
        ]
        for member in answer["members"]
    ]
    columns = ("LB", "address", "alive", "term#", "epoch#", "heard#", "may hold no VIP because")
    troubles = [
        Text(f"{member['name'] or member['address']}: {member['trouble']}", "yellow")
        for member in answer["members"]
        if member["trouble"]
    ]
    troubles += [
        Text(f"{member['name']}: its verdicts on nodes do not count, its health is late", "yellow")
        for member in answer["members"]
        if member["late"]
    ]
    applicants = [
        Text(f"{each['name']} ({each['address']}) is no member: gale quorum add {each['name']}")
        for each in answer["applicants"]
    ]
    shown = table("", columns, members)
    return Group(
        _quorum_line(answer),
        shown,
        *_vip_lines(answer),
        *_advice(answer),
        *troubles,
        *applicants,
    )


def _advice(answer: dict[str, Any]) -> list[RenderableType]:
    return [Text(answer["advice"], "yellow")] if answer["advice"] else []


def _picture(status: dict[str, Any]) -> RenderableType:
    ready = Text("ready", "green") if status["ready"] else Text("NOT READY", "bold red")
    head = Text(f"{status['name']}  {status['mode']}  gale {status['version']}  ").append(ready)
    parts: list[RenderableType] = [head]
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
        parts += _advice(status["quorum"])
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
    return [*parts, *_replication(dataplane)]


def _replication(dataplane: dict[str, Any]) -> list[RenderableType]:
    """How this LB and the others stand with each other's flows; nothing where there are none."""
    if not dataplane["replicas"]:
        return []
    lag_ms = dataplane["replication_lag_ms"]
    head = Text("flows: ").append(
        Text("synced", "green") if dataplane["synced"] else Text("not synced yet", "yellow")
    )
    if lag_ms is not None:
        head.append(f", told to the others within {span(lag_ms)}")
    return [head, *(_replica_line(peer) for peer in dataplane["replicas"])]


def _replica_line(peer: dict[str, Any]) -> Text:
    line = Text(f"  {peer['name'] or peer['address']}: ")
    if peer["standing"] == "level":
        line.append("its flows are known here")
    elif peer["standing"] == "refused":
        line.append(f"refuses this LB: {peer['reason']}", "bold red")
    else:
        line.append(peer["standing"], "yellow")
    told = "those of here are told to it" if peer["follows"] else "it is not told of those here"
    return line.append(f"; {told}", "" if peer["follows"] else "yellow")


def _quorum_line(quorum: dict[str, Any]) -> Text:
    state = Text("quorum", "green") if quorum["quorum"] else Text("NO QUORUM", "bold red")
    line = Text(f"{quorum['name']} is {quorum['role']}, ").append(state)
    line.append(
        f", leader {quorum['leader'] or 'none'}, term {quorum['term']}, epoch {quorum['epoch']},"
        f" lease {span(quorum['lease_remaining_ms'])}"
    )
    if quorum["waiting_for"]:
        line.append(f", waits for {quorum['waiting_for']}", "yellow")
    if quorum["staged"]:
        line.append(f", configuration {quorum['staged']}", "yellow")
    if quorum["listed"]:
        line.append(f", list of load balancers {quorum['listed']}", "yellow")
    return line


def _vip_lines(quorum: dict[str, Any]) -> list[RenderableType]:
    lines = [Text(f"VIP {vip['address']} at {vip['holder'] or 'nobody'}") for vip in quorum["vips"]]
    for member in quorum["members"]:
        if member["name"] == quorum["name"] and member["why_not"]:
            why = "; ".join(member["why_not"])
            lines.append(Text(f"{quorum['name']} may hold no VIP: {why}", "yellow"))
    return [*lines]


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
