"""The MSS that tunnelled VIPs tell their clients: a routing table of Gale's own.

A SYN-ACK's MSS is the `advmss` of the route it takes. So what is sent from a tunnelled VIP looks
into a table of its own (`ip rule from VIP lookup TABLE`), which is a copy of the main one with
`advmss` set. The copy is compared with the original at every turn, so that it follows; between two
turns it may be a second old.

The table's number spells "gale": nobody else has it, so whatever is in it, and each rule that
leads there, is ours, whoever is asked and however often the agent was killed.
"""

from __future__ import annotations

import socket
from collections.abc import Mapping
from typing import Any

from pyroute2 import IPRoute

from services.node.direct import advertised_mss

TABLE = int.from_bytes(b"gale", "big")
PRIORITY = 31_080
"""Of the rules: shortly before the main table's."""

_MAIN_TABLE = 254
_UNICAST = 1
_ON_LINK = 1 << 2
_NOT_COPIED = {"RTA_TABLE", "RTA_CACHEINFO", "RTA_METRICS", "RTA_DST", "UNKNOWN"}
"""A nexthop object is UNKNOWN to older libraries; its gateway is told beside it."""

Route = dict[str, Any]
"""The words of a request that adds or deletes it."""


def clamp(netlink: IPRoute, addresses: frozenset[str], header_bytes: int) -> None:
    """Have these addresses, and no others, tell an MSS that leaves room for the header."""
    present = _rules(netlink)
    for address in present - addresses:
        _rule(netlink, "del", address)
    _follow_main(netlink, header_bytes if addresses else None)
    for address in addresses - present:
        _rule(netlink, "add", address)


def _rules(netlink: IPRoute) -> set[str]:
    return {
        str(rule.get_attr("FRA_SRC"))
        for rule in netlink.get_rules(family=socket.AF_INET)
        if rule.get_attr("FRA_TABLE") == TABLE
    }


def _rule(netlink: IPRoute, verb: str, address: str) -> None:
    netlink.rule(verb, src=address, src_len=32, table=TABLE, priority=PRIORITY)


def _follow_main(netlink: IPRoute, header_bytes: int | None) -> None:
    """Make our table what it is to be; None: empty."""
    wanted: dict[str, Route] = {}
    if header_bytes is not None:
        mtus = {link["index"]: int(link.get_attr("IFLA_MTU")) for link in netlink.get_links()}
        for message in netlink.get_routes(family=socket.AF_INET, table=_MAIN_TABLE):
            route = _copy(message)
            if message["type"] == _UNICAST:
                route["RTA_METRICS"] = _metrics(message, mtus, header_bytes)
            wanted[repr(sorted(route.items()))] = route
    present: dict[str, Route] = {}
    for message in netlink.get_routes(family=socket.AF_INET, table=TABLE):
        route = _copy(message)
        if metrics := message.get_attr("RTA_METRICS"):
            route["RTA_METRICS"] = {"attrs": sorted(map(tuple, metrics["attrs"]))}
        present[repr(sorted(route.items()))] = route
    for key in present.keys() - wanted.keys():
        netlink.route("del", **present[key])
    # Gateways are looked up: the networks they are in come first.
    for key in sorted(wanted.keys() - present.keys(), key=lambda k: -_length(wanted[k])):
        netlink.route("replace", **wanted[key])


def _length(route: Route) -> int:
    return int(route["dst"].partition("/")[2])


def _copy(message: Any) -> Route:
    attributes = {name: value for name, value in message["attrs"] if name not in _NOT_COPIED}
    if "RTA_NH_ID" in attributes:
        for told in ("RTA_GATEWAY", "RTA_OIF", "RTA_MULTIPATH"):
            attributes.pop(told, None)
    destination = message.get_attr("RTA_DST") or "0.0.0.0"
    return {
        "dst": f"{destination}/{message['dst_len']}",
        "table": TABLE,
        "proto": message["proto"],
        "scope": message["scope"],
        "type": message["type"],
        "tos": message["tos"],
        "flags": message["flags"] & _ON_LINK,
        **attributes,
    }


def _metrics(message: Any, mtus: Mapping[int, int], header_bytes: int) -> dict[str, Any]:
    metrics = dict((message.get_attr("RTA_METRICS") or {"attrs": ()})["attrs"])
    hops = message.get_attr("RTA_MULTIPATH") or ()
    indices = [message.get_attr("RTA_OIF"), *(hop["oif"] for hop in hops)]
    limits = [mtus[index] for index in indices if index in mtus]
    if metrics.get("RTAX_MTU"):
        limits.append(metrics["RTAX_MTU"])
    given = int(metrics.get("RTAX_ADVMSS") or 0)
    metrics["RTAX_ADVMSS"] = advertised_mss(min(limits, default=1500), header_bytes, given)
    return {"attrs": sorted(metrics.items())}
