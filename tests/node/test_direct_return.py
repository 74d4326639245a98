"""Direct return for real: LB, agent and client as processes, in all ways a packet can come."""

from __future__ import annotations

import signal
import socket
import time
from typing import Any

import pytest

from bus.words import (
    Mode,
    NodeState,
)
from services.node.core import LEAVE_SETTLE_MS
from tests.health.processes import eventually
from tests.node.host_state import snapshot, tool, write_setting
from tests.node.wire import CLIENT, HEADERS, LB, VIP, Wire, echoed, inside, segment_limit, wire

TIMESTAMPS = 12
TEXT = bytes(range(256)) * 4_000


def network(at: Wire) -> dict[str, Any]:
    status = at.agent_status()
    found: dict[str, Any] = status["network"] if status else {}
    return found


def bring_up(at: Wire) -> Any:
    at.start_health()
    agent = at.start_agent()
    at.wait_for(NodeState.UP)
    return agent


def check_traffic(at: Wire) -> None:
    client, line = at.connect()
    with client:
        assert line == f"{CLIENT} {VIP}\n"
        header = HEADERS[at.encap] if at.mode == "l3" else 0
        assert segment_limit(client) == 1500 - 40 - header - TIMESTAMPS
        assert echoed(client, TEXT) == TEXT


@pytest.mark.parametrize(
    ("mode", "encap", "options"),
    [
        ("l2", "ipip", ""),
        ("l3", "ipip", ""),
        ("l3", "gue", ""),
        ("l3", "ipip", 'unwrap = "xdp"'),
        ("l3", "gue", 'unwrap = "xdp"'),
    ],
)
def test_a_client_is_answered_directly_and_all_is_taken_back(
    mode: str, encap: str, options: str
) -> None:
    with wire(mode, encap, options) as at:
        if "xdp" in options:  # veth has XDP for those whose other end sends whole packets
            with inside(at.outside):
                tool("ethtool", "-K", "far0", "tx", "off")
        agent = bring_up(at)
        check_traffic(at)
        found = network(at)
        assert (found["managed"], found["needed"], found["waiting_for"]) == (True, [VIP], [])
        assert found["prepared"]["addresses"] == [VIP]
        hook = "xdp priv0" if "xdp" in options else "tc priv0"
        assert found["prepared"]["unwrapper"] == ([hook] if mode == "l3" else [])
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(30) == 0
        assert at.node_state() == at.before


@pytest.mark.parametrize("mode", ["l2", "l3"])
def test_a_node_that_answers_through_another_interface(mode: str) -> None:
    with wire(mode) as at:
        with inside(at.outside):
            tool("ip", "link", "add", "far1", "type", "veth", "peer", "name", "pub0",
                 "netns", at.machine)  # fmt: skip
            tool("ip", "link", "set", "far1", "up")
            tool("ip", "address", "add", "10.80.0.254/24", "dev", "far1")
            write_setting("far1/rp_filter", 0)
        with inside(at.machine):
            tool("ip", "link", "set", "pub0", "up")
            tool("ip", "address", "add", "10.80.0.20/24", "dev", "pub0")
            write_setting("pub0/rp_filter", 0)
            write_setting("priv0/rp_filter", 1)
            before = snapshot()
        agent = bring_up(at)
        check_traffic(at)
        agent.terminate()
        assert agent.wait(30) == 0
        assert at.node_state() == before


def test_the_node_is_silent_about_the_vip() -> None:
    with wire("l2") as at:
        bring_up(at)
        with inside(at.outside):
            tool("ip", "route", "del", VIP)
            tool("ip", "route", "add", VIP, "dev", "far0", "src", "10.81.0.10")
            probe = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        with probe:
            probe.sendto(b"who has it?", (VIP, 9))

            def asked_in_vain() -> bool:
                with inside(at.outside):
                    return "FAILED" in tool("ip", "neigh", "show", VIP)

            eventually(asked_in_vain)


@pytest.mark.parametrize("encap", ["ipip", "gue"])
def test_a_killed_agent_leaves_everything_at_work(encap: str) -> None:
    with wire("l3", encap) as at:
        agent = bring_up(at)
        client, _ = at.connect()
        with client:
            agent.kill()
            agent.wait()
            assert echoed(client, TEXT) == TEXT
            check_traffic(at)
            agent = at.start_agent()
            eventually(lambda: network(at).get("prepared", {}).get("addresses") == [VIP])
            at.wait_for(NodeState.UP)
            assert echoed(client, TEXT) == TEXT
        check_traffic(at)
        agent.terminate()
        assert agent.wait(30) == 0
        assert at.node_state() == at.before


def test_open_connections_are_waited_for() -> None:
    with wire("l2") as at:
        agent = bring_up(at)
        client, _ = at.connect()
        agent.terminate()
        at.wait_for(NodeState.DRAINING)
        eventually(lambda: (status := at.agent_status()) and status["activity"] == "leaving")
        until_s = time.monotonic() + 3 * LEAVE_SETTLE_MS / 1_000
        while time.monotonic() < until_s:  # when it would have ended but for this connection
            assert echoed(client, TEXT) == TEXT
        assert agent.poll() is None
        client.close()
        assert agent.wait(30) == 0
        assert at.node_state() == at.before


def test_stop_takes_back_and_start_prepares_again() -> None:
    with wire("l3") as at:
        bring_up(at)
        at.agent_status("POST", "/stop?drain_ms=0")
        eventually(lambda: at.node_state() == at.before)
        at.agent_status("POST", "/start")
        at.wait_for(NodeState.UP)
        check_traffic(at)


def modes(at: Wire) -> tuple[Mode, ...]:
    node = at.node()
    return () if node is None else node.services[0].modes


def write_as(at: Wire, former: str, mode: str) -> None:
    text = at.lb_file.read_text().replace(f'mode = "{former}"', f'mode = "{mode}"')
    at.lb_file.write_text(text.replace('encap = "ipip"\n', ""))


def reload_as(at: Wire, former: str, mode: str) -> None:
    write_as(at, former, mode)
    at.command("reload")


def test_a_service_that_becomes_l4_needs_nothing_more_after_a_while() -> None:
    with wire("l3") as at:
        bring_up(at)
        eventually(lambda: modes(at) == (Mode.L2, Mode.L3, Mode.L4))
        reload_as(at, "l3", "l4")
        eventually(lambda: modes(at) == (Mode.L4,))
        check_traffic(at)  # as a load balancer sends it that has not changed over yet
        eventually(lambda: at.node_state() == at.before)
        assert at.state() is NodeState.UP


def test_a_node_says_when_it_is_prepared_for_another_mode() -> None:
    with wire("l3") as at:
        write_as(at, "l3", "l4")
        bring_up(at)
        assert modes(at) == (Mode.L4,)
        reload_as(at, "l4", "l2")
        eventually(lambda: modes(at) == (Mode.L2, Mode.L4))
        assert network(at)["prepared"]["addresses"] == [VIP]
        reload_as(at, "l2", "l3")
        eventually(lambda: modes(at) == (Mode.L2, Mode.L3, Mode.L4))
        check_traffic(at)
        assert at.state() is NodeState.UP
        assert NodeState.DOWN not in [event.state for _, event in at.events]


def test_who_may_not_touch_the_network_tells_what_is_missing() -> None:
    with wire("l2", node_options="manage_network = false") as at:
        bring_up(at)
        assert at.node_state() == at.before
        status = at.agent_status()
        assert status is not None
        assert status["waiting_for"].startswith(f"{VIP} is not on lo; net.ipv4.conf.all.arp_ignore")


def test_a_node_that_cannot_be_prepared_does_not_serve() -> None:
    with wire("l2") as at:
        with inside(at.machine):
            tool("ip", "address", "add", f"{VIP}/32", "dev", "priv0")
        at.start_health()
        at.start_agent()
        node = at.wait_for(NodeState.DOWN)
        assert node.reason.endswith(f"not prepared: {VIP} is an address of priv0,"
                                    " expected it on lo alone")  # fmt: skip
        with inside(at.machine):
            tool("ip", "address", "del", f"{VIP}/32", "dev", "priv0")
        at.wait_for(NodeState.UP)


def test_the_lbs_own_address_as_the_vip_is_refused_and_cuts_nobody_off() -> None:
    with wire("l2") as at:
        bring_up(at)
        good = at.lb_file.read_text()
        at.lb_file.write_text(good.replace(VIP, LB))
        at.command("reload")
        node = at.wait_for(NodeState.DOWN)
        assert f"not prepared: {LB} is the address by which this machine" in node.reason
        assert network(at)["refused"] == [LB]
        with inside(at.machine):
            assert LB not in tool("ip", "address", "show", "dev", "lo")
        # It is still heard, and hears.
        at.lb_file.write_text(good)
        at.command("reload")
        at.wait_for(NodeState.UP)
        check_traffic(at)
