"""SNAT ports: in a row over the slice for all CPUs, at rest for as long as it allows, back to whom
they belonged; and what happens when there are none left.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import pytest
from scapy.layers.inet import IP

from services.dataplane.flows.record import FlowState
from tests.bpf.harness import tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    FIRST_PORT,
    NO_SNAT,
    NODE,
    REQUEST_HOOKS,
    RESOLVED,
    SEAT,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    node_of,
    now_ticks,
    ticks,
    to_client,
    to_node,
)

OTHER_SNAT, THIRD_SNAT = "10.81.0.110", "10.81.0.210"
LOW_FIRST, LOW_PORTS = 600, 20
STRANGER = ("198.51.100.7", 2222)
TIME_WAIT_S, RESET_S = 60, 10


@contextmanager
def on_cpu(number: int) -> Iterator[None]:
    """BPF_PROG_TEST_RUN runs where its caller does."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {number})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def source_of(scene: Scene, packet: bytes, reason: str = "l4_new_flow") -> tuple[str, int]:
    """From where the node sees this first packet come."""
    outcome = scene.expect("xdp_public", packet, reason)
    return outcome.scapy[IP].src, outcome.ports[0]


def sources(scene: Scene, count: int, first: int = 2000) -> list[tuple[str, int]]:
    """Of so many new flows, one after another."""
    return [
        source_of(scene, tcp((CLIENT_ADDRESS, port), SERVICE))
        for port in range(first, first + count)
    ]


def row(first: int, count: int, snat: str = SNAT) -> list[tuple[str, int]]:
    return [(snat, port) for port in range(first, first + count)]


def hold(scene: Scene, count: int, first: int = 5000) -> list[Connection]:
    """Established flows."""
    return [
        Connection(scene, client=(CLIENT_ADDRESS, port)).establish()
        for port in range(first, first + count)
    ]


def set_cursor(scene: Scene, number: int, cursor: int = SEAT) -> None:
    """The row goes on from there."""
    table = scene.programs.table("port_cursors")
    leaf = table[cursor]
    leaf.next = number
    table[cursor] = leaf


def finish(connection: Connection) -> None:
    """Both sides close, the client first."""
    scene = connection.scene
    scene.expect("xdp_public", connection.request("FA"), "l4_established")
    scene.expect("tc_private", connection.reply("FA"), "l4_reply")
    scene.expect("xdp_public", connection.request("A", seq=102, ack=502), "l4_established")
    assert set(scene.states("est").values()) == {FlowState.TCP_TIME_WAIT}


class TestInARow:
    def test_over_the_whole_slice_and_round_again(self, scene: Scene) -> None:
        """Short flows, one after another: a port comes back after all others."""
        ports = 200
        scene.service("l4", snat_ports=ports)
        assert sources(scene, ports) == row(FIRST_PORT, ports)
        scene.age("flows", 300)
        assert sources(scene, 20, 20_000) == row(FIRST_PORT, 20)

    def test_whatever_the_cpu(self, scene: Scene) -> None:
        scene.service("l4")
        cpus = sorted(os.sched_getaffinity(0))
        assert len(cpus) > 1, "this needs two CPUs"
        seen = []
        for number in range(40):
            with on_cpu(cpus[number % 2]):
                seen += sources(scene, 1, 3000 + number)
        assert seen == row(FIRST_PORT, 40)

    def test_of_both_protocols(self, scene: Scene) -> None:
        """One cursor for both: each skips what the other took."""
        for protocol in ("tcp", "udp"):
            scene.service("l4", protocol=protocol)
        seen = []
        for port in range(1, 11):
            seen.append(source_of(scene, tcp((CLIENT_ADDRESS, 2000 + port), SERVICE)))
            seen.append(source_of(scene, udp((CLIENT_ADDRESS, 2000 + port), SERVICE)))
        assert seen == row(FIRST_PORT, 20)

    def test_to_the_last_port_there_is(self, scene: Scene) -> None:
        scene.service("l4", snat_first_port=65_534, snat_ports=2)
        assert sources(scene, 2) == [(SNAT, 65_534), (SNAT, 65_535)]

    def test_each_node_has_all_ports(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=1, seats=[1])
        assert sources(scene, 1) == row(FIRST_PORT, 1)
        scene.seat(2)
        scene.ring(0, [2])
        assert sources(scene, 1, 3000) == row(FIRST_PORT, 1)

    def test_two_services_at_one_server_port_share_a_row(self, scene: Scene) -> None:
        """The node's TIME_WAIT does not know which service it was."""
        other = SEAT + 1
        scene.service("l4")
        scene.service("l4", at=(VIP, 8443), number=1, seats=[])
        scene.seat(other, at=NODE, cursor=SEAT)
        scene.ring(1, [other])
        seen = []
        for port in range(3000, 3020):
            seen.append(source_of(scene, tcp((CLIENT_ADDRESS, port), SERVICE)))
            seen.append(source_of(scene, tcp((CLIENT_ADDRESS, port), (VIP, 8443))))
        assert seen == row(FIRST_PORT, 40)

    def test_over_several_addresses(self, scene: Scene) -> None:
        addresses = (SNAT, OTHER_SNAT, THIRD_SNAT)
        scene.service("l4", snat_addresses=addresses, snat_ports=3)
        wanted = [source for address in addresses for source in row(FIRST_PORT, 3, address)]
        assert sources(scene, 9) == wanted

    def test_replies_to_each_of_them_find_their_client(self, scene: Scene) -> None:
        scene.service("l4", snat_addresses=(SNAT, OTHER_SNAT), snat_ports=1)
        for port, snat in ((3000, SNAT), (3001, OTHER_SNAT)):
            client = (CLIENT_ADDRESS, port)
            source = source_of(scene, tcp(client, SERVICE, seq=100))
            assert source == (snat, FIRST_PORT)
            wanted = tcp(SERVICE, client, "SA", seq=500, ack=101, ttl=63)
            packet = tcp(NODE, source, "SA", seq=500, ack=101)
            scene.expect("tc_private", packet, "l4_reply", to_client("tc_private", wanted))


class TestLowPorts:
    """A client's port below 1024 becomes one below 1024 (RFC 4787, REQ-3a)."""

    SLICE: ClassVar[dict[str, Any]] = {"low_first_port": LOW_FIRST, "low_ports": LOW_PORTS}

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize(
        ("port", "first"), [(1, LOW_FIRST), (1023, LOW_FIRST), (1024, FIRST_PORT)]
    )
    def test_below_1024(self, scene: Scene, hook: str, port: int, first: int) -> None:
        scene.service("l4", **self.SLICE)
        outcome = scene.expect(hook, tcp((CLIENT_ADDRESS, port), SERVICE), "l4_new_flow")
        assert outcome.ports[0] == first

    def test_in_a_row_of_their_own_over_all_addresses(self, scene: Scene) -> None:
        scene.service("l4", snat_addresses=(SNAT, OTHER_SNAT), **{**self.SLICE, "low_ports": 2})
        wanted = [*row(LOW_FIRST, 2), *row(LOW_FIRST, 2, OTHER_SNAT)]
        assert sources(scene, 4, 100) == wanted
        assert sources(scene, 2, 3000) == row(FIRST_PORT, 2)

    def test_none_of_them_left(self, scene: Scene) -> None:
        scene.service("l4", **{**self.SLICE, "low_ports": 2})
        hold(scene, 2, 100)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 200), SERVICE), "drop_no_port")
        assert sources(scene, 1, 3000) == row(FIRST_PORT, 1)

    def test_without_such_a_slice_any_port_will_do(self, scene: Scene) -> None:
        scene.service("l4")
        assert sources(scene, 1, 100) == row(FIRST_PORT, 1)


class TestComingBack:
    """The same client tuple gets the same node and port, which the node's TIME_WAIT welcomes."""

    @pytest.fixture
    def connection(self, scene: Scene) -> Connection:
        scene.service("l4", seats=range(1, 40))
        opened = scene.expect("xdp_public", tcp(CLIENT, SERVICE, seq=100), "l4_new_flow")
        connection = Connection(scene, node=(opened.scapy[IP].dst, NODE[1]))
        connection.source = (SNAT, opened.ports[0])
        connection.syn_ack()
        connection.ack()
        return connection

    def comes_back(self, connection: Connection, hook: str = "xdp_public") -> None:
        scene = connection.scene
        wanted = to_node(hook, connection.request_out("S", seq=9000, ack=0))
        scene.expect(hook, connection.request("S", seq=9000, ack=0), "l4_reopened", wanted)
        answer = connection.reply("SA", seq=7000, ack=9001)
        scene.expect("tc_private", answer, "l4_reply")
        scene.expect(hook, connection.request("A", seq=9001, ack=7001), "l4_promoted")

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("later_s", [0, TIME_WAIT_S - 5, TIME_WAIT_S + 5, 3600])
    def test_after_both_sides_closed(
        self, scene: Scene, connection: Connection, hook: str, later_s: int
    ) -> None:
        finish(connection)
        scene.age("flows", later_s)
        self.comes_back(connection, hook)

    @pytest.mark.parametrize("later_s", [0, RESET_S - 2, RESET_S + 2, 3600])
    def test_after_a_reset(self, scene: Scene, connection: Connection, later_s: int) -> None:
        scene.expect("xdp_public", connection.request("R"), "l4_established")
        scene.age("flows", later_s)
        self.comes_back(connection)

    def test_after_its_flow_expired(self, scene: Scene, connection: Connection) -> None:
        scene.age("flows", 86_400)
        self.comes_back(connection)

    def test_while_the_port_rests_whatever_the_ring_says(
        self, scene: Scene, connection: Connection
    ) -> None:
        finish(connection)
        scene.ring(0, [50])
        scene.seat(50)
        self.comes_back(connection)

    def test_afterwards_the_ring_decides(self, scene: Scene, connection: Connection) -> None:
        finish(connection)
        scene.age("flows", TIME_WAIT_S + 5)
        scene.seat(50)
        scene.ring(0, [50])
        outcome = scene.expect("xdp_public", connection.request("S", seq=9000), "l4_new_flow")
        assert outcome.scapy[IP].dst == node_of(50)

    @pytest.mark.parametrize("later_s", [0, TIME_WAIT_S + 5])
    def test_not_to_a_node_that_takes_no_new_flows(
        self, scene: Scene, connection: Connection, later_s: int
    ) -> None:
        finish(connection)
        scene.age("flows", later_s)
        for seat in range(1, 40):
            scene.seat(seat, flags=RESOLVED)
        scene.seat(50)
        scene.ring(0, [50])
        outcome = scene.expect("xdp_public", connection.request("S", seq=9000), "l4_new_flow")
        assert outcome.scapy[IP].dst == node_of(50)

    def test_not_where_the_port_went_to_somebody_else(
        self, scene: Scene, connection: Connection
    ) -> None:
        finish(connection)
        scene.age("flows", TIME_WAIT_S + 5)
        scene.give_away(1)
        source = source_of(scene, connection.request("S", seq=9000))
        assert source != connection.source

    def test_datagrams_too(self, scene: Scene) -> None:
        scene.service("l4", protocol="udp")
        first = source_of(scene, udp(CLIENT, SERVICE))
        scene.age("flows", 3600)
        assert source_of(scene, udp(CLIENT, SERVICE), "l4_reopened") == first

    def test_counts_as_a_new_flow(self, scene: Scene, connection: Connection) -> None:
        finish(connection)
        scene.settings(new_flows_per_second_per_source=1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "l4_new_flow")
        scene.refresh("sources")
        scene.expect("xdp_public", connection.request("S", seq=9000), "drop_source_rate")


class TestRest:
    """A port rests after a connection, and how long it could is told."""

    def test_a_closed_flows_port_is_not_given_away(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=1)
        connection = Connection(scene).establish()
        finish(connection)
        for _ in range(3):
            scene.expect("xdp_public", tcp(STRANGER, SERVICE), "drop_no_port")
            scene.age("flows", (TIME_WAIT_S - 5) / 3)
        scene.age("flows", 10)
        assert source_of(scene, tcp(STRANGER, SERVICE)) == connection.source

    def test_not_even_right_after_a_reset(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=1)
        connection = Connection(scene).establish()
        scene.expect("xdp_public", connection.request("R"), "l4_established")
        scene.expect("xdp_public", tcp(STRANGER, SERVICE), "drop_no_port")
        scene.age("flows", RESET_S + 1)
        assert source_of(scene, tcp(STRANGER, SERVICE)) == connection.source

    @pytest.mark.parametrize("idle_s", [70, 3000])
    def test_how_long_it_was_is_told(self, scene: Scene, idle_s: int) -> None:
        scene.service("l4", snat_ports=1)
        began = now_ticks()
        finish(Connection(scene).establish())
        scene.age("flows", idle_s)
        sources(scene, 1)
        cursor = scene.programs.table("port_cursors")[SEAT]
        assert 0 <= cursor.rest - ticks(idle_s) <= now_ticks() - began
        assert began <= cursor.taken_at <= now_ticks()

    def test_ports_never_used_tell_nothing(self, scene: Scene) -> None:
        scene.service("l4")
        sources(scene, 3)
        assert scene.programs.table("port_cursors")[SEAT].rest == 0

    def test_a_datagrams_port_comes_back_after_half_a_minute(self, scene: Scene) -> None:
        """One question and one answer, as in DNS (RFC 4787 lets a port go so soon)."""
        ports = 50
        scene.service("l4", protocol="udp", snat_ports=ports)
        for round_ in range(3):
            seen = set()
            for number in range(ports):
                client = (CLIENT_ADDRESS, 1000 * round_ + number + 1)
                source = source_of(scene, udp(client, SERVICE))
                scene.expect("tc_private", udp(NODE, source), "l4_reply")
                seen.add(source)
            assert len(seen) == ports
            scene.age("flows", 31)


class TestScarcity:
    def test_no_slice_at_all(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=0)
        scene.expect("xdp_public", tcp(CLIENT, SERVICE), "drop_no_port")

    def test_no_address(self, scene: Scene) -> None:
        scene.service("l4", snat_addresses=())
        scene.expect("xdp_public", tcp(CLIENT, SERVICE), "drop_no_port")

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_none_left(self, scene: Scene, hook: str) -> None:
        """New flows are refused by name, and no established one notices."""
        scene.service("l4", snat_ports=8)
        connections = hold(scene, 8)
        for port in range(1, 30):
            scene.expect(hook, tcp((CLIENT_ADDRESS, port), SERVICE), "drop_no_port")
        for connection in connections:
            wanted = to_node(hook, connection.request_out("PA", b"x"))
            scene.expect(hook, connection.request("PA", b"x"), "l4_established", wanted)
            scene.expect("tc_private", connection.reply("PA", b"y"), "l4_reply")
        assert len(scene.flows()) == 16

    def test_a_stretch_that_long_flows_hold_is_jumped(self, scene: Scene) -> None:
        scene.service("l4", snat_first_port=1024, snat_ports=60_000)
        held = {connection.source for connection in hold(scene, 10)}
        for number in range(10):
            set_cursor(scene, 0)
            (found,) = sources(scene, 1, 3000 + number)
            assert found not in held

    def test_a_dense_slice_is_filled_to_the_end(self, scene: Scene) -> None:
        """No try can be sure to find the last free port; a client that repeats its SYN will."""
        scene.service("l4", snat_ports=32)
        hold(scene, 16)
        seen = set()
        for port in range(1, 400):
            outcome = scene.send("xdp_public", tcp((CLIENT_ADDRESS, port), SERVICE))
            if outcome.reason == "l4_new_flow":
                seen.add(outcome.ports[0])
            else:
                assert outcome.reason == "drop_no_port"
        assert seen == set(range(FIRST_PORT + 16, FIRST_PORT + 32))

    def test_a_half_open_flow_is_passed_over_for_a_free_port(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=3)
        assert sources(scene, 1) == row(FIRST_PORT, 1)
        set_cursor(scene, 0)
        assert sources(scene, 2, 3000) == row(FIRST_PORT + 1, 2)
        assert len(scene.flows()) == 6

    def test_where_all_are_held_the_oldest_half_open_flow_gives_its_port_away(
        self, scene: Scene
    ) -> None:
        scene.service("l4", snat_ports=4)
        sources(scene, 4)
        seen = []
        for number in range(8):
            seen += sources(scene, 1, 3000 + number)
            set_cursor(scene, number + 1)
        assert seen == row(FIRST_PORT, 4) * 2

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_who_lost_a_port_so_gets_another(self, scene: Scene, protocol: str) -> None:
        make = tcp if protocol == "tcp" else udp
        scene.service("l4", protocol=protocol, snat_ports=1)
        first = source_of(scene, make(CLIENT, SERVICE))
        assert source_of(scene, make(STRANGER, SERVICE)) == first
        scene.service("l4", protocol=protocol)
        assert source_of(scene, make(CLIENT, SERVICE)) != first
        scene.expect("xdp_public", make(CLIENT, SERVICE), "l4_opening")

    def test_established_flows_never_do(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=2)
        (connection,) = hold(scene, 1)
        for number in range(20):
            (source,) = sources(scene, 1, 3000 + number)
            assert source != connection.source
        wanted = to_node("xdp_public", connection.request_out())
        scene.expect("xdp_public", connection.request(), "l4_established", wanted)


class TestWithoutSnat:
    def test_the_client_is_the_source_whatever_the_slice(self, scene: Scene) -> None:
        scene.service("l4", flags=NO_SNAT)
        assert source_of(scene, tcp(CLIENT, SERVICE)) == CLIENT

    def test_and_takes_no_port_from_others(self, scene: Scene) -> None:
        scene.service("l4", flags=NO_SNAT)
        source_of(scene, tcp(CLIENT, SERVICE))
        scene.service("l4")
        assert sources(scene, 1) == row(FIRST_PORT, 1)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestRates:
    """So many new flows a second, on this LB as a whole and from each source."""

    def test_on_all(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.settings(new_flows_per_second=3)
        self.flows(scene, hook, 3, "l4_new_flow")
        self.flows(scene, hook, 2, "drop_flow_rate", first=100)
        scene.age("flow_rate", 1.1)
        scene.expect(hook, tcp(("192.0.2.9", 1), SERVICE), "l4_new_flow")
        self.flows(scene, hook, 2, "l4_new_flow", first=200)

    def test_on_each_source(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.settings(new_flows_per_second_per_source=3)
        for source in ("192.0.2.1", "192.0.2.2"):
            self.flows(scene, hook, 3, "l4_new_flow", source=source)
            self.flows(scene, hook, 2, "drop_source_rate", source=source, first=100)
        scene.age("sources", 1.1)
        scene.expect(hook, tcp((source, 1000), SERVICE), "l4_new_flow")
        self.flows(scene, hook, 2, "l4_new_flow", source=source, first=200)
        self.flows(scene, hook, 1, "drop_source_rate", source=source, first=300)

    @pytest.mark.parametrize("limit", ["new_flows_per_second", "new_flows_per_second_per_source"])
    def test_holds_for_the_whole_second(self, scene: Scene, hook: str, limit: str) -> None:
        scene.service("l4")
        scene.settings(**{limit: 3})
        self.flows(scene, hook, 3, "l4_new_flow")
        for name in ("flow_rate", "sources"):
            scene.refresh(name)
            scene.age(name, 0.5)
        reason = scene.send(hook, tcp((CLIENT_ADDRESS, 9), SERVICE)).reason
        assert reason in ("drop_flow_rate", "drop_source_rate")

    def test_a_refused_source_takes_nothing_from_the_others(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.settings(new_flows_per_second=10, new_flows_per_second_per_source=3)
        self.flows(scene, hook, 3, "l4_new_flow")
        self.flows(scene, hook, 20, "drop_source_rate", first=100)
        self.flows(scene, hook, 3, "l4_new_flow", source="192.0.2.2")

    def test_what_is_open_is_not_limited(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        connection = Connection(scene).establish()
        scene.settings(new_flows_per_second=1, new_flows_per_second_per_source=1)
        for _ in range(5):
            scene.expect(hook, connection.request(), "l4_established")

    def flows(
        self,
        scene: Scene,
        hook: str,
        count: int,
        reason: str,
        *,
        source: str = CLIENT_ADDRESS,
        first: int = 1,
    ) -> None:
        for port in range(first, first + count):
            scene.refresh("flow_rate")
            scene.refresh("sources")
            scene.expect(hook, tcp((source, port), SERVICE), reason)
