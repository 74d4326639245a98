"""A reload that changes services, or takes them away, ends no connection and loses no connect.

The tests build upon each other: changes of mode while clients connect all the time, and back; all
sorts of changes at once; then every service of mode L4 goes.
"""

from __future__ import annotations

import sys
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack
from functools import partial
from typing import Any

import pytest

from e2e.held import Held, hold
from e2e.hosts import (
    Hosts,
    LabHosts,
    lab_hosts,
    read_config,
    traffic,
    verdicts,
    wait_for,
    with_steady_rig,
    write_config,
)
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.traffic import Summary, Traffic

Service = dict[str, Any]

WEB: Service = {"name": "default", "port": 8080}
PLAIN: Service = {"name": "plain", "port": 8081}
SPARE: Service = {"name": "spare", "port": 9104}
ECHOES: dict[str, Service] = {
    "renamed": {"name": "chat", "port": 9000},
    "removed": {"name": "removed", "port": 9001},
    "routed": {"name": "routed", "port": 9002},
    "bridged": {"name": "bridged", "port": 9003},
    "moved": {"name": "moved", "port": 9004},
}
QUERY: Service = {"name": "query", "port": 5300, "protocol": "udp"}
SPARE_QUERY = {"name": "spare-query", "port": 5301, "protocol": "udp"}
AT_FIRST = [WEB, PLAIN, *ECHOES.values(), SPARE, QUERY, SPARE_QUERY]
CHANGED: list[Service] = [
    WEB,
    PLAIN,
    {"name": "talk", "port": 9000},
    {**ECHOES["routed"], "mode": "l3"},
    {**ECHOES["bridged"], "mode": "l2"},
    {**ECHOES["moved"], "node_port": SPARE["port"]},
    SPARE,
    {**QUERY, "node_port": SPARE_QUERY["port"]},
]
FLOWS = 12
RATE = 50
A_MOMENT_MS = 500
REPEATED_MS = 1500
UNDER_WAY = 3
"""So many connections are between SYN and end at one moment, at the most."""
FORGETTING_S = 12.0
"""The dataplane counts flows every five seconds. Two counts later it would have forgotten whatever
it takes for unused."""


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("reload") / "extra.toml"
    extra.write_text(toml_text({"services": AT_FIRST}))
    with lab_hosts(Plan(), say, extra) as machines:
        yield machines


def reload(hosts: Hosts, lb: str, services: list[Service]) -> None:
    """Give the LB these services; returns once they are agreed."""
    config = tomllib.loads(read_config(hosts, lb))
    write_config(hosts, lb, toml_text(config | {"services": services}))
    hosts.supervisorctl(lb, "signal", "HUP", "gale:*")
    wanted = {(one["name"], one["port"], one.get("mode", "l4")) for one in services}

    def agreed() -> bool:
        shown = hosts.api(lb, "/v1/services")["services"]
        return {(one["name"], one["port"], one["mode"]) for one in shown} == wanted

    wait_for(agreed, "the services to be agreed")


def none_lost(seen: Summary) -> None:
    """No connect fails. One may wait for a repeated packet: to put a qdisc on a node's interface
    takes the kernel a moment, in which what the node sends is lost.
    """
    assert seen.results
    assert not seen.failures, seen.errors
    late = [one for one in seen.results if one.took_ms >= A_MOMENT_MS + seen.largest_lag_ms]
    assert len(late) <= UNDER_WAY, late
    assert seen.slowest_ms < REPEATED_MS + seen.largest_lag_ms, late


def go_on(held: Held, count: int = FLOWS) -> None:
    assert held.ask() == count
    assert not held.ended


def forwarded(hosts: Hosts, lb: str) -> dict[str, int]:
    """Packets by the mode they were sent on in."""
    seen = verdicts(hosts, lb)
    return {
        "l2": seen["l2_forwarded"],
        "l3": seen["l3_forwarded"],
        "l4": seen["l4_new_flow"] + seen["l4_reopened"],
    }


def under_load(hosts: Hosts, lb: str, services: list[Service], *modes: str) -> list[Summary]:
    """What became of the clients of two services while their modes changed to these."""
    with ExitStack() as stack:
        running: list[Traffic] = []
        for service in (WEB, PLAIN):
            running.append(traffic(hosts, RATE, service["port"]))
            stack.callback(running[-1].process.kill)
        wait_for(lambda: all(one.results for one in running), "the first answers")
        reload(hosts, lb, services)
        before = forwarded(hosts, lb)
        for mode in modes:
            wait_for(partial(is_in_force, hosts, lb, mode, before[mode]), f"mode {mode}")
        time.sleep(1)
        return [one.stop() for one in running]


def is_in_force(hosts: Hosts, lb: str, mode: str, before: int) -> bool:
    return forwarded(hosts, lb)[mode] > before + RATE


def is_unprepared(hosts: Hosts) -> bool:
    """No node has the VIP, as none needs it in L4."""
    shown = [hosts.run(node, "ip", "address", "show", "lo").stdout for node in hosts.nodes]
    return not any(f"inet {hosts.vip()}/" in text for text in shown)


def lag_of(seen: list[Summary]) -> float:
    return max(one.largest_lag_ms for one in seen)


def test_l4_to_l3_and_to_l2_under_load(hosts: Hosts, lb: str) -> None:
    """The nodes, which know of neither mode yet, are prepared first."""
    changed = [{**WEB, "mode": "l3"}, {**PLAIN, "mode": "l2"}, *AT_FIRST[2:]]

    def attempt() -> list[Summary]:
        if not is_unprepared(hosts):
            reload(hosts, lb, AT_FIRST)
            wait_for(lambda: is_unprepared(hosts), "nodes to give the VIP up", timeout_s=30)
        return under_load(hosts, lb, changed, "l3", "l2")

    for seen in with_steady_rig(attempt, lag_of):
        none_lost(seen)


def test_back_to_l4_under_load(hosts: Hosts, lb: str) -> None:
    """Whoever connects is served. A connection that was under way is of no flow that the LB knows,
    and is told so by RST.
    """
    for seen in with_steady_rig(lambda: under_load(hosts, lb, AT_FIRST, "l4"), lag_of):
        assert set(seen.errors) <= {"reset"}, seen.errors
        assert len(seen.failures) <= UNDER_WAY, seen.errors
        assert seen.slowest_ms < A_MOMENT_MS + seen.largest_lag_ms


def test_changes_of_every_kind_keep_their_connections(hosts: Hosts, lb: str) -> None:
    with ExitStack() as stack:
        held = {
            what: stack.enter_context(hold(hosts, count=FLOWS, port=service["port"]))
            for what, service in ECHOES.items()
        }
        asking = stack.enter_context(hold(hosts, udp=True, count=FLOWS))
        reload(hosts, lb, CHANGED)
        time.sleep(FORGETTING_S)
        for what, flows in held.items():
            assert flows.ask() == FLOWS, what
            assert not flows.ended, what
        go_on(asking)
        assert not asking.moved


def test_what_was_changed_serves_as_it_says_now(hosts: Hosts) -> None:
    """But for the one that was renamed: the nodes' own files know it by its former name."""
    for service in CHANGED:
        if service["port"] > 9000:
            with hold(hosts, count=FLOWS, port=service["port"]) as held:
                go_on(held)
    with hold(hosts, udp=True, count=FLOWS) as asking:
        go_on(asking)
    with pytest.raises(RuntimeError, match="ConnectionRefused"), hold(hosts, port=9001):
        pass


def test_the_last_service_of_mode_l4_goes(hosts: Hosts, lb: str) -> None:
    """Its connections go on, for as long as they like, beside a service of another mode."""
    with hold(hosts, count=FLOWS, port=SPARE["port"]) as held:
        reload(hosts, lb, [{**SPARE, "mode": "l3"}])
        with hold(hosts, count=FLOWS, port=SPARE["port"]) as others:
            go_on(held)
            time.sleep(FORGETTING_S)
            go_on(held)
            go_on(others)
