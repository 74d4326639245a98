"""Flows that another LB told of: what is told, what is entered, and that it works at once."""

from __future__ import annotations

import socket

import numpy as np
import pytest

from services.dataplane.flows.record import FlowState
from services.dataplane.flows.records import CARRIED, WIRE
from tests.bpf.harness import tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    NODE,
    PORTS,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    SERVICE,
    SNAT,
    Connection,
    Scene,
    now_ticks,
    ticks,
    to_node,
)
from tests.bpf.two_lbs import ReplicatingLb

REQUEST, REPLY = 0, 1
REPLICA = 8
GIGABYTES = 3_000_000_000


@pytest.fixture(scope="session")
def lb_a() -> ReplicatingLb:
    return ReplicatingLb(seat=5, first_port=20_000)


@pytest.fixture(scope="session")
def lb_b() -> ReplicatingLb:
    return ReplicatingLb(seat=9, first_port=22_000)


@pytest.fixture(scope="session")
def lb_small() -> ReplicatingLb:
    """A table of one bucket: sixteen places."""
    return ReplicatingLb(seat=7, first_port=23_000, FLOW_BUCKETS=1, HALF_OPEN_WAYS=4)


@pytest.fixture(scope="session")
def lb_deaf() -> ReplicatingLb:
    return ReplicatingLb(seat=5, first_port=20_000, NOTE_PAGES=1)


@pytest.fixture
def a(lb_a: ReplicatingLb) -> ReplicatingLb:
    lb_a.forget()
    lb_a.serve()
    return lb_a


@pytest.fixture
def b(lb_b: ReplicatingLb) -> ReplicatingLb:
    lb_b.forget()
    lb_b.serve()
    return lb_b


@pytest.fixture
def small(lb_small: ReplicatingLb) -> ReplicatingLb:
    lb_small.forget()
    lb_small.serve()
    return lb_small


def client(number: int) -> tuple[str, int]:
    return (CLIENT_ADDRESS, 1000 + number)


def opened(lb: ReplicatingLb, number: int = 0) -> Connection:
    return Connection(lb.scene, client=client(number)).establish()


def moved(connection: Connection, lb: ReplicatingLb) -> Connection:
    """The same connection, whose packets come to that LB from now on."""
    there = Connection(lb.scene, client=connection.client)
    there.source = connection.source
    return there


def close(connection: Connection) -> None:
    scene = connection.scene
    scene.send("xdp_public", connection.request("FA"))
    scene.send("tc_private", connection.reply("FA"))
    scene.send("xdp_public", connection.request("A", seq=102, ack=502))


# --------------------------------------------------------------------------- what is told


class TestTold:
    def test_a_syn_and_its_answer_are_not(self, a: ReplicatingLb) -> None:
        connection = Connection(a.scene)
        connection.syn()
        connection.syn_ack()
        assert len(a.tells()) == 0

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_an_established_flow_is_even_if_it_is_idle(self, a: ReplicatingLb, hook: str) -> None:
        connection = Connection(a.scene)
        connection.syn()
        connection.syn_ack()
        connection.ack(hook)
        assert len(a.pass_by(40)) == 0, "not before it is 50 ms old"
        (told,) = a.pass_by(30)
        assert told["state"] == FlowState.TCP_ESTABLISHED
        assert told["flags"] == CARRIED
        assert told["client_port"] == socket.htons(CLIENT[1])
        assert (socket.ntohs(told["node_port"]), told["protocol"]) == (NODE[1], 6)
        assert (told["request_end"], told["reply_end"]) == (101, 501)
        assert max(told["age_ticks"], told["idle_ticks"]) <= ticks(10)
        assert len(a.pass_by(500)) == 0, "once"

    def test_packets_of_an_established_flow_note_nothing(self, a: ReplicatingLb) -> None:
        connection = opened(a)
        a.tells()
        for hook in REQUEST_HOOKS:
            a.scene.expect(hook, connection.request("PA", b"x"), "l4_established")
        for hook in REPLY_HOOKS:
            a.scene.expect(hook, connection.reply("PA", b"x"), "l4_reply")
        assert len(a.tells()) == 0

    def test_what_is_over_within_the_time_is_told_as_over_only(self, a: ReplicatingLb) -> None:
        close(opened(a))
        told = a.tells()
        assert list(told["state"]) == [FlowState.TCP_TIME_WAIT]

    def test_an_end_is_told_at_once(self, a: ReplicatingLb) -> None:
        connection = opened(a)
        a.tells()
        a.scene.send("xdp_public", connection.request("R"))
        assert list(a.pass_by(10)["state"]) == [FlowState.TCP_RESET]

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_an_end_that_the_node_makes(self, a: ReplicatingLb, hook: str) -> None:
        connection = opened(a)
        a.tells()
        a.scene.send(hook, connection.reply("R", seq=501))
        assert list(a.pass_by(10)["state"]) == [FlowState.TCP_RESET]

    def test_a_flow_is_told_again_a_quarter_of_its_timeout_later(self, a: ReplicatingLb) -> None:
        connection = opened(a)
        a.tells()
        quarter_s = 7440 / 4
        for seconds, times in ((quarter_s - 60, 0), (120, 1), (120, 0)):
            a.scene.age("flows", seconds)
            a.scene.send("xdp_public", connection.request("PA", b"x"))
            a.scene.send("tc_private", connection.reply("PA", b"x"))
            assert len(a.pass_by(10)) == times, seconds

    def test_a_datagram_and_its_answer_are_not_the_third_is(self, a: ReplicatingLb) -> None:
        a.serve("udp")
        source = (SNAT, a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_new_flow").ports[0])
        a.scene.send("tc_private", udp(NODE, source))
        assert len(a.tells()) == 0
        a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_promoted")
        assert list(a.tells()["state"]) == [FlowState.UDP_FRESH]
        a.scene.age("flows", 1)
        a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_established")
        assert list(a.tells()["state"]) == [FlowState.UDP_ESTABLISHED]

    def test_a_one_sided_stream_is_after_a_second(self, a: ReplicatingLb) -> None:
        a.serve("udp")
        a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_new_flow")
        times = []
        for _ in range(12):
            a.scene.age("flows", 0.25)
            a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_opening")
            times.append(len(a.tells()))
        assert sum(times) == 1, times
        assert sum(times[:2]) == 0, times

    def test_nobody_listens_nothing_is_noted(self, a: ReplicatingLb) -> None:
        a.scene.settings(notes=0)
        opened(a)
        assert len(a.tells()) == 0

    def test_a_snapshot_has_all_that_live(self, a: ReplicatingLb) -> None:
        for number in range(20):
            opened(a, number)
        close(opened(a, 30))
        half = Connection(a.scene, client=client(31))
        half.syn()
        told = a.whole()
        assert sorted(socket.ntohs(port) - 1000 for port in told["client_port"]) == list(range(20))
        assert np.array_equal(np.sort(told, order="client_port")["node"], told["node"])


# --------------------------------------------------------------------------- what works then


class TestMoved:
    """The VIP has moved: the flow's packets come to an LB that has only heard of it."""

    @pytest.mark.parametrize("jump", [0, 1, GIGABYTES])
    @pytest.mark.parametrize("first", ["client", "node"])
    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_both_directions_pass(
        self, a: ReplicatingLb, b: ReplicatingLb, hook: str, first: str, jump: int
    ) -> None:
        connection = opened(a)
        assert b.hears(a.tells()) == {"entered": 1}
        there = moved(connection, b)
        numbers = {"seq": (101 + jump) % 2**32, "ack": (501 + jump) % 2**32}
        answers = {"seq": (501 + jump) % 2**32, "ack": (101 + jump) % 2**32}

        def from_client() -> None:
            packet = there.request("PA", b"x", **numbers)
            wanted = there.request_out("PA", b"x", **numbers)
            b.scene.expect(hook, packet, "l4_established", to_node(hook, wanted))

        def from_node() -> None:
            # Whom the client's packets come from is not known before one has come.
            out = b.scene.expect("tc_private", there.reply("PA", b"y", **answers), "l4_reply")
            assert out.packet[14:] == there.reply_out("PA", b"y", **answers)[14:]

        order = (from_client, from_node) if first == "client" else (from_node, from_client)
        for step in (*order, *order):
            step()
        assert {flow.flags & REPLICA for _, flow in b.scene.flows()} == {0}

    def test_it_ends_by_its_own_numbers(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        connection = opened(a)
        b.hears(a.tells())
        there = moved(connection, b)
        at = 2_000_000_000
        b.scene.send("xdp_public", there.request("PA", b"x", seq=at, ack=at))
        b.scene.send("tc_private", there.reply("A", seq=at, ack=at + 1))
        # A RST far from where the flow is by now changes nothing.
        b.scene.send("xdp_public", there.request("R", seq=101))
        assert b.scene.states()[REQUEST] is FlowState.TCP_ESTABLISHED
        b.scene.send("xdp_public", there.request("FA", seq=at + 1, ack=at))
        b.scene.send("tc_private", there.reply("FA", seq=at, ack=at + 2))
        b.scene.send("xdp_public", there.request("A", seq=at + 2, ack=at + 1))
        assert b.scene.states()[REQUEST] is FlowState.TCP_TIME_WAIT

    def test_its_end_is_told_on(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        connection = opened(a)
        b.hears(a.tells())
        there = moved(connection, b)
        b.scene.send("xdp_public", there.request("PA", b"x"))
        b.scene.send("tc_private", there.reply("A"))
        b.scene.send("xdp_public", there.request("R", seq=102))
        told = b.tells()
        assert FlowState.TCP_RESET in list(told["state"])
        assert a.hears(told)["closed"] == 1
        assert set(a.scene.states().values()) == {FlowState.TCP_RESET}

    def test_it_comes_back(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        """What went on elsewhere for a while goes on here from where it is then."""
        connection = opened(a)
        b.hears(a.tells())
        there = moved(connection, b)
        a.scene.age("flows", 30)
        b.scene.age("flows", 30)
        at = 2_000_000_000
        b.scene.send("xdp_public", there.request("PA", b"x", seq=at, ack=at))
        b.scene.send("tc_private", there.reply("A", seq=at, ack=at + 1))
        assert a.hears(b.tells()[-1:]) == {"renewed": 1}
        a.scene.send("xdp_public", connection.request("A", seq=at + 1, ack=at))
        a.scene.send("tc_private", connection.reply("A", seq=at, ack=at + 1))
        a.scene.send("xdp_public", connection.request("R", seq=at + 1))
        assert a.scene.states()[REQUEST] is FlowState.TCP_RESET

    def test_udp(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        for lb in (a, b):
            lb.serve("udp")
        source = (SNAT, a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_new_flow").ports[0])
        a.scene.send("tc_private", udp(NODE, source))
        a.scene.expect("xdp_public", udp(CLIENT, SERVICE), "l4_promoted")
        assert b.hears(a.tells()) == {"entered": 1}
        out = b.scene.expect("xdp_public", udp(CLIENT, SERVICE, b"more"), "l4_established")
        assert out.ports[0] == source[1]
        b.scene.expect("tc_private", udp(NODE, source, b"answer"), "l4_reply")

    def test_its_port_is_nobody_elses(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        """Also where the standby's slice is the same, as it is when slices have moved."""
        for lb in (a, b):
            lb.serve(snat_first_port=20_000, snat_ports=8)
        held = {opened(a, number).source[1] for number in range(4)}
        assert b.hears(a.tells()) == {"entered": 4}
        taken = set()
        for number in range(100, 140):
            outcome = b.scene.send("xdp_public", tcp(client(number), SERVICE))
            if outcome.reason == "l4_new_flow":
                taken.add(outcome.ports[0])
        assert taken
        assert not taken & held


# --------------------------------------------------------------------------- what is entered


class TestEntered:
    def test_again_changes_nothing(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        opened(a)
        told = a.tells()
        b.hears(told)
        before = [bytes(flow) for _, flow in b.scene.flows()]
        assert b.hears(told) == {"renewed": 1}
        now = [bytes(flow) for _, flow in b.scene.flows()]
        assert [flow[:36] for flow in now] == [flow[:36] for flow in before]
        assert len(now) == 2

    def test_what_is_forwarded_here_is_not_touched(
        self, a: ReplicatingLb, b: ReplicatingLb
    ) -> None:
        connection = opened(a)
        told = a.tells()
        b.hears(told)
        there = moved(connection, b)
        b.scene.send("xdp_public", there.request("PA", b"x", seq=5000, ack=6000))
        b.scene.send("tc_private", there.reply("A", seq=6000, ack=5001))
        before = [bytes(flow) for _, flow in b.scene.flows()]
        assert b.hears(told) == {"renewed": 1}
        assert [bytes(flow) for _, flow in b.scene.flows()] == before

    def test_a_close_beats_a_late_update(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        connection = opened(a)
        update = a.tells()
        b.hears(update)
        close(connection)
        assert b.hears(a.tells()) == {"closed": 1}
        assert b.hears(update, delay_ticks=2) == {"late": 1}
        assert set(b.scene.states().values()) == {FlowState.TCP_TIME_WAIT}

    def test_a_close_of_the_one_before_is_late(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        """The client has come back on the same ports, and that was told first."""
        connection = opened(a)
        a.tells()
        close(connection)
        end = a.tells()
        a.scene.age("flows", 20)
        again = Connection(a.scene, client=connection.client)
        again.source = connection.source
        a.scene.expect("xdp_public", again.request("S", seq=9000, ack=0), "l4_reopened")
        a.scene.send("tc_private", again.reply("SA", seq=700, ack=9001))
        a.scene.expect("xdp_public", again.request("A", seq=9001, ack=701), "l4_promoted")
        assert b.hears(a.tells()) == {"entered": 1}
        end["age_ticks"] += ticks(20)
        assert b.hears(end) == {"late": 1}
        assert set(b.scene.states().values()) == {FlowState.TCP_ESTABLISHED}

    def test_a_client_that_comes_back_is_answered_by_way_of_this_lb(
        self, a: ReplicatingLb, b: ReplicatingLb
    ) -> None:
        """The other one's SNAT address is its own, and so are the node's answers to it."""
        b.serve(snat_addresses=("10.81.0.77",))
        connection = opened(a)
        b.hears(a.tells())
        close(connection)
        b.hears(a.tells())
        b.scene.age("flows", 20)
        b.scene.expect("xdp_public", connection.request("S", seq=9000, ack=0), "l4_new_flow")

    def test_a_client_that_comes_back_is_another_flow(
        self, a: ReplicatingLb, b: ReplicatingLb
    ) -> None:
        connection = opened(a)
        b.hears(a.tells())
        close(connection)
        b.hears(a.tells())
        for lb in (a, b):
            lb.scene.age("flows", 20)
        again = connection.request("S", seq=9000, ack=0)
        a.scene.expect("xdp_public", again, "l4_reopened")
        a.scene.send("tc_private", connection.reply("SA", seq=700, ack=9001))
        a.scene.send("xdp_public", connection.request("A", seq=9001, ack=701))
        assert b.hears(a.tells()) == {"entered": 1}
        assert set(b.scene.states().values()) == {FlowState.TCP_ESTABLISHED}

    def test_a_close_of_what_was_never_told(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        close(opened(a))
        assert b.hears(a.tells()) == {"absent": 1}
        assert b.scene.flows() == []

    def test_a_flow_of_its_own_is_not_replaced(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        mine = opened(b)
        opened(a)
        told = a.tells()
        assert b.hears(told) == {"clash": 1}
        b.scene.expect("xdp_public", mine.request("PA", b"x"), "l4_established")
        b.scene.expect("tc_private", mine.reply("PA", b"x"), "l4_reply")

    def test_a_younger_flow_of_the_same_client_replaces_a_replica(
        self, a: ReplicatingLb, b: ReplicatingLb
    ) -> None:
        """Its end was not told, or has not come yet."""
        opened(a)
        b.hears(a.tells())
        b.scene.age("flows", 20)
        a.forget()
        a.serve(snat_first_port=20_500)
        second = opened(a)
        assert b.hears(a.tells()) == {"entered": 1}
        assert second.source[1] == 20_500
        there = moved(second, b)
        b.scene.expect(
            "xdp_public",
            there.request("PA", b"x"),
            "l4_established",
            to_node("xdp_public", there.request_out("PA", b"x")),
        )

    def test_a_port_that_another_flow_holds(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        b.serve(snat_first_port=20_000)
        opened(b, 1)
        opened(a, 2)
        assert b.hears(a.tells()) == {"port_taken": 1}

    def test_a_node_that_has_no_seat_here(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        opened(a)
        told = a.tells()
        b.flows.name_seats({})
        assert b.hears(told) == {"no_node": 1}
        assert b.scene.flows() == []

    def test_idle_time_is_carried(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        opened(a)
        a.scene.age("flows", 7000)
        told = a.whole()
        assert b.hears(told) == {"entered": 1}
        left = b.scene.entry(REQUEST).deadline - now_ticks()
        assert abs(left - ticks(440) - 64) <= 4
        b.scene.age("flows", 400)
        assert len(b.scene.flows()) == 2
        b.scene.age("flows", 60)
        assert b.scene.flows() == []
        told["idle_ticks"] += ticks(500)
        assert b.hears(told) == {"expired": 1}

    @pytest.mark.parametrize(
        ("field", "value"),
        [
            ("state", FlowState.TCP_OPENING),
            ("state", 15),
            ("state", 255),
            ("state", FlowState.UDP_ESTABLISHED),
            ("protocol", 1),
            ("request_scale", 15),
            ("reply_scale", 255),
            ("reach", 31),
            ("client_port", 0),
        ],
    )
    def test_nonsense_is_refused_and_the_rest_entered(
        self, a: ReplicatingLb, b: ReplicatingLb, field: str, value: int
    ) -> None:
        for number in range(3):
            opened(a, number)
        told = a.tells()
        told[field][1] = value
        assert b.hears(told) == {"bad_record": 1, "entered": 2}


class TestFull:
    """Sixteen places: eight flows."""

    def fill(self, lb: ReplicatingLb, flows: int) -> list[Connection]:
        return [opened(lb, number) for number in range(flows)]

    def alive(self, scene: Scene, connections: list[Connection]) -> None:
        for connection in connections:
            scene.expect("xdp_public", connection.request("PA", b"x"), "l4_established")
            scene.expect("tc_private", connection.reply("PA", b"x"), "l4_reply")

    def test_a_replica_never_evicts(self, a: ReplicatingLb, small: ReplicatingLb) -> None:
        own = self.fill(small, 8)
        for number in range(100, 120):
            opened(a, number)
        assert small.hears(a.tells()) == {"full": 20}
        self.alive(small.scene, own)

    def test_not_even_what_is_half_open(self, a: ReplicatingLb, small: ReplicatingLb) -> None:
        own = self.fill(small, 6)
        waiting = [Connection(small.scene, client=client(50 + number)) for number in range(2)]
        for each in waiting:
            each.syn()
        opened(a, 100)
        assert small.hears(a.tells()) == {"full": 1}
        for each in waiting:
            each.syn_ack()
            each.ack()
        self.alive(small.scene, own + waiting)

    def test_one_place_is_none(self, a: ReplicatingLb, small: ReplicatingLb) -> None:
        """A direction that found room gives it back if the other finds none."""
        self.fill(small, 7)
        half = Connection(small.scene, client=client(50))
        half.syn()
        small.scene.change(REQUEST, state=FlowState.TCP_ESTABLISHED)
        small.scene._edit(
            lambda flow: flow.state == FlowState.TCP_OPENING,
            lambda flow: setattr(flow, "state", 0),
        )
        opened(a, 100)
        assert small.hears(a.tells()) == {"full": 1}
        assert len(small.scene.flows()) == 15

    def test_a_full_slice_of_ports_is_no_matter(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        b.serve(snat_ports=1)
        opened(b, 1)
        opened(a, 2)
        assert b.hears(a.tells()) == {"entered": 1}
        assert PORTS > 1

    def test_many_at_once(self, a: ReplicatingLb, b: ReplicatingLb) -> None:
        for number in range(300):
            opened(a, number)
        told = a.tells()
        many = np.concatenate([told] * 20)
        assert len(many) > 4096
        assert b.hears(many) == {"entered": 300, "renewed": len(many) - 300}
        assert len(told) == 300
        assert told.dtype == WIRE


class TestRing:
    def test_what_finds_no_room_is_counted(self, lb_deaf: ReplicatingLb) -> None:
        """A ring of 256 places, one of which is always free, that nobody reads for a while."""
        lb_deaf.forget()
        lb_deaf.serve()
        connections = [opened(lb_deaf, number) for number in range(300)]
        assert len(lb_deaf.tells()) == 255
        assert lb_deaf.flows.take_lost() == 45
        assert lb_deaf.flows.take_lost() == 0
        # What is lost is lost, and the flows are there all the same.
        assert len(lb_deaf.whole()) == 300
        close(connections[0])
        assert len(lb_deaf.tells()) == 1
