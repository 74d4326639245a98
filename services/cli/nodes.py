"""`gale nodes`, `gale services`, `gale flows`: what traffic goes to, and what goes there now.

The column `begun` counts the flows that were ever begun, `flows` those that are there now (mode
l4): which ones, `gale flows` shows.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from rich.console import Group, RenderableType
from rich.text import Text

from services.cli.tables import STATE_STYLES, count, percent, size, span, table
from services.cli.watch import Watch, tell

FLOW_LIMIT = 100
SERVICES_NAMED = 3
"""Of all the services at which a node is not routed to for the same reason."""


def nodes(context: typer.Context, watch: Watch = False) -> None:
    """What this LB and the cluster think of each node."""
    tell(context, "/v1/nodes", _nodes_picture, watch=watch)


def _nodes_picture(answer: dict[str, Any]) -> RenderableType:
    columns = (
        *("node", "address", "state", "agreed", "weight#", "share#", "flows#", "begun#", "fails#"),
        *("ban left#", "seen#", "id", "order", "reason"),
    )
    stacked = (
        *(("node", "address"), ("state", "agreed"), ("weight", "share"), ("flows", "begun")),
        *(("fails", "ban left"), ("seen", "order"), ("id", "reason")),
    )
    return table("", columns, [_node_row(node) for node in answer["nodes"]], stacked)


def services(context: typer.Context, watch: Watch = False) -> None:
    """Every service, and its nodes' parts of the ring with what they carried."""
    tell(context, "/v1/services", _services_picture, watch=watch)


def _services_picture(answer: dict[str, Any]) -> RenderableType:
    columns = (
        *("node", "slots#", "share#", "begun#", "packets in#", "in#", "packets out#", "out#"),
        "remark",
    )
    stacked = (
        *(("node",), ("slots", "share"), ("begun",), ("packets in", "in")),
        *(("packets out", "out"), ("remark",)),
    )
    parts: list[Any] = []
    for service in answer["services"]:
        title = (
            f"{service['name']}: {service['protocol']} {front(service)} -> port"
            f" {service['node_port']}, {service['mode']}, by {service['affinity']},"
            f" {service['nodes_up']} nodes"
        )
        rows = [_seat_row(seat) for seat in service["nodes"]]
        parts.append(table(title, columns, rows, stacked))
    return Group(*parts)


def flows(
    context: typer.Context,
    node: Annotated[str | None, typer.Option(help="Only flows to this node.")] = None,
    service: Annotated[str | None, typer.Option(help="Only flows of this service.")] = None,
    limit: Annotated[int, typer.Option(min=1, help="At most so many.")] = FLOW_LIMIT,
    watch: Watch = False,
) -> None:
    """Conntrack entries, as the kernel has them now."""
    asked = {"node": node, "service": service, "limit": limit}
    tell(context, "/v1/flows", _flows_picture, watch=watch, **asked)


def _flows_picture(answer: dict[str, Any]) -> RenderableType:
    columns = ("protocol", "client", "vip", "snat", "node", "service", "state", "idle#", "age#")
    rows = [
        [
            *(str(flow.get(key) or "") for key in columns[:7]),
            span(flow["idle_ms"]),
            span(flow["age_ms"]),
        ]
        for flow in answer["flows"]
    ]
    stacked = (
        *(("protocol", "state"), ("client", "vip"), ("snat", "node"), ("idle", "age")),
        *(("service",),),
    )
    shown = table("", columns, rows, stacked)
    total = answer.get("total", len(rows))
    if total <= len(rows):
        return shown
    return Group(shown, Text(f"{len(rows)} of {count(total)} flows; --limit shows more"))


def front(service: dict[str, Any]) -> str:
    """What clients speak to; a service without an address has each LB's own public one."""
    first, count = service["port"], service["ports"]
    ports = first if count == 1 else f"{first}-{first + count - 1}"
    return f"{service['address'] or '(public address)'}:{ports}"


def state_text(state: str | None) -> Text:
    return Text(state or "", style=STATE_STYLES.get(state or "", ""))


def _node_row(node: dict[str, Any]) -> list[Any]:
    banned_for_ms = node["banned_for_ms"]
    return [
        node["name"],
        node["address"],
        state_text(node["state"]),
        state_text(node.get("agreed_state")),
        str(node["weight"]),
        percent(node["share"]),
        count(node["flows"]),
        count(sum(seat["flows"] for seat in node.get("services", ()))),
        str(node["fails"]),
        span(banned_for_ms) if banned_for_ms else "",
        span(node["observed_ms"]),
        node["id"],
        ", ".join(order_text(order) for order in node["orders"]),
        "; ".join([node["reason"], *_reasons_at_services(node), *_slow_starts(node)]),
    ]


def order_text(order: dict[str, Any]) -> str:
    """What an operator wants, and for how long."""
    if order["weight"] is not None:
        return f"{order['what']} {order['weight']}"
    if order["remaining_ms"] is None:
        return str(order["what"])
    if order["remaining_ms"] == 0:
        return f"{order['what']}: time is up"
    return f"{order['what']}, {span(order['remaining_ms'])} left"


def _reasons_at_services(node: dict[str, Any]) -> list[str]:
    """Why it is not routed to at some of its services, where the node's own reason is no answer."""
    services: dict[str, list[str]] = {}
    for seat in node.get("services", ()):
        if seat["reason"] and seat["reason"] != node["reason"]:
            services.setdefault(_why_not(seat), []).append(seat["service"])
    return [f"at {_some(names)}: {reason}" for reason, names in services.items()]


def _why_not(seat: dict[str, Any]) -> str:
    """Why it takes no new flows there; of a ban of this service alone, how long it has to go."""
    reason: str = seat["reason"]
    banned_ms = seat["banned_for_ms"]
    return f"{reason}, {span(banned_ms)} left" if banned_ms else reason


def _slow_starts(node: dict[str, Any]) -> list[str]:
    """At which services it does not have its whole weight yet."""
    services: dict[str, list[str]] = {}
    for seat in node.get("services", ()):
        if said := _slow_start(seat):
            services.setdefault(said, []).append(seat["service"])
    return [f"at {_some(names)}: {said}" for said, names in services.items()]


def _slow_start(seat: dict[str, Any]) -> str:
    if not seat["slow_start_ms"] or seat["percent"] == 100:
        return ""
    left = span(seat["slow_start_ms"])
    return f"slow start, {seat['percent']} % of its weight, all of it in {left}"


def _some(names: list[str]) -> str:
    said, more = ", ".join(names[:SERVICES_NAMED]), len(names) - SERVICES_NAMED
    return f"{said} and {more} more services" if more > 0 else said


def _seat_row(seat: dict[str, Any]) -> list[Any]:
    return [
        seat["node"],
        count(seat["slots"]),
        percent(seat["share"]),
        count(seat["flows"]),
        count(seat["packets_in"]),
        size(seat["bytes_in"]),
        count(seat["packets_out"]),
        size(seat["bytes_out"]),
        _why_not(seat) or _slow_start(seat),
    ]
