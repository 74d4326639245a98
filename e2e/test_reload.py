"""A reload that changes services, or takes them away, ends no connection and loses no connect.

The tests build upon each other: first all sorts of changes at once, two services with clients that
connect all the time among them; then those back; then every service of mode L4 goes.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from e2e.held import Held, hold
from e2e.hosts import (
    Hosts,
    LabHosts,
    lab_hosts,
    traffic,
    verdicts,
    wait_for,
)
from e2e.lab import Plan
from e2e.lab.files import toml_text
from e2e.traffic import Summary, Traffic

Service = dict[str, Any]

WEB: Service = {"name": "default", "port": 8080}
PLAIN: Service = {"name": "plain", "port": 80, "node_port": 8080}
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
    {**WEB, "mode": "l3"},
    {"name": "plain", "port": 80, "mode": "l2"},
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
    path = hosts.environment(lb)["GALE_CONFIG"]
    head = hosts.run(lb, "cat", path).stdout.partition("[[services]]")[0]
    done = hosts.run(lb, "tee", path, stdin=head + toml_text({"services": services}))
    assert done.returncode == 0, done.stderr
    hosts.supervisorctl(lb, "signal", "HUP", "gale:*")
    wanted = {(one["name"], one["port"], one.get("mode", "l4")) for one in services}

    def agreed() -> bool:
        shown = hosts.api(lb, "/v1/services")["services"]
        return {(one["name"], one["port"], one["mode"]) for one in shown} == wanted

    wait_for(agreed, "the services to be agreed")


def none_lost(seen: Summary) -> None:
    assert seen.results
    assert not seen.failures, seen.errors
    assert seen.slowest_ms < A_MOMENT_MS + seen.largest_lag_ms, f"slowest {seen.slowest_ms} ms"


def go_on(held: Held, count: int = FLOWS) -> None:
    assert held.ask() == count
    assert not held.ended


def under_load(hosts: Hosts, change: Callable[[], None], *ports: int) -> list[Summary]:
    """What became of clients of these ports while `change` ran, and a little longer."""
    with ExitStack() as stack:
        running: list[Traffic] = []
        for port in ports:
            running.append(traffic(hosts, RATE, port))
            stack.callback(running[-1].process.kill)
        wait_for(lambda: all(one.results for one in running), "the first answers")
        change()
        time.sleep(1)
        return [one.stop() for one in running]


def forwarded(hosts: Hosts, lb: str) -> dict[str, int]:
    """Packets by the mode they were sent on in."""
    seen = verdicts(hosts, lb)
    return {
        "l2": seen["l2_forwarded"],
        "l3": seen["l3_forwarded"],
        "l4": seen["l4_new_flow"] + seen["l4_reopened"],
    }


def test_changes_of_every_kind_at_once(hosts: Hosts, lb: str) -> None:
    """L4 to L3 and to L2 under load: the nodes, which know of neither yet, are prepared first."""
    with ExitStack() as stack:
        held = {
            what: stack.enter_context(hold(hosts, count=FLOWS, port=service["port"]))
            for what, service in ECHOES.items()
        }
        asking = stack.enter_context(hold(hosts, udp=True, count=FLOWS))
        assert forwarded(hosts, lb)["l2"] == forwarded(hosts, lb)["l3"] == 0

        def change() -> None:
            reload(hosts, lb, CHANGED)
            wait_for(lambda: forwarded(hosts, lb)["l3"] > 0, "packets to be routed")
            wait_for(lambda: forwarded(hosts, lb)["l2"] > 0, "packets to be bridged")

        for seen in under_load(hosts, change, 8080, 80):
            none_lost(seen)
        time.sleep(FORGETTING_S)
        for what, flows in held.items():
            assert flows.ask() == FLOWS, what
            assert not flows.ended, what
        go_on(asking)
        assert not asking.moved


def test_what_was_changed_serves_as_it_says_now(hosts: Hosts) -> None:
    for service in CHANGED:
        if service["port"] >= 9000:
            with hold(hosts, count=FLOWS, port=service["port"]) as held:
                go_on(held)
    with hold(hosts, udp=True, count=FLOWS) as asking:
        go_on(asking)
    with pytest.raises(RuntimeError, match="ConnectionRefused"), hold(hosts, port=9001):
        pass


def test_back_to_l4_under_load(hosts: Hosts, lb: str) -> None:
    def change() -> None:
        reload(hosts, lb, [WEB, PLAIN, *CHANGED[2:]])
        before = forwarded(hosts, lb)["l4"]
        wait_for(lambda: forwarded(hosts, lb)["l4"] > before + RATE, "new flows")

    for seen in under_load(hosts, change, 8080, 80):
        none_lost(seen)


def test_the_last_service_of_mode_l4_goes(hosts: Hosts, lb: str) -> None:
    """Its connections go on, for as long as they like, beside a service of another mode."""
    with hold(hosts, count=FLOWS) as held:
        reload(hosts, lb, [{**SPARE, "mode": "l3"}])
        with hold(hosts, count=FLOWS, port=SPARE["port"]) as others:
            go_on(held)
            time.sleep(FORGETTING_S)
            go_on(held)
            go_on(others)
