"""The life of a flow: from half to est, its end, its port, and what floods and losses do to it."""

from __future__ import annotations

from typing import Any

import pytest

from tests.bpf.harness import PEER_MAC, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    FIRST_PORT,
    NODE,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    address,
    mac,
    to_node,
)

SYN_SENT, SYN_RECEIVED, ESTABLISHED, CLOSING, CLOSED = range(5)
REQUEST, REPLY = 0, 1


@pytest.fixture
def opened(scene: Scene) -> Connection:
    """After the client's SYN."""
    scene.service("l4")
    connection = Connection(scene)
    connection.syn()
    return connection


@pytest.fixture
def established(scene: Scene) -> Connection:
    scene.service("l4")
    return Connection(scene).establish()


def states(scene: Scene, table: str = "est") -> dict[int, int]:
    """Direction → state."""
    return {key.direction: leaf.state for key, leaf in scene.flows(table)}


def change(scene: Scene, direction: int, table: str = "est", **fields: Any) -> None:
    """Alter the entry of that direction."""
    entries = scene.programs.table(table)
    for key, leaf in scene.flows(table):
        if key.direction == direction:
            for name, value in fields.items():
                setattr(leaf, name, value)
            entries[key] = leaf


def lose(scene: Scene, direction: int, table: str = "est") -> None:
    """As a full LRU table would."""
    entries = scene.programs.table(table)
    for key, _ in scene.flows(table):
        if key.direction == direction:
            del entries[key]


class TestOpening:
    def test_both_directions_stand_in_half_and_mirror_each_other(
        self, scene: Scene, opened: Connection
    ) -> None:
        assert scene.flows("est") == []
        entries = {key.direction: (key, leaf) for key, leaf in scene.flows("half")}
        (key, leaf), (reply_key, reply) = entries[REQUEST], entries[REPLY]
        assert (key.saddr, key.daddr) == (address(CLIENT_ADDRESS), address(VIP))
        assert (leaf.saddr, leaf.daddr) == (address(SNAT), address(NODE[0]))
        assert (reply_key.saddr, reply_key.daddr) == (leaf.daddr, leaf.saddr)
        assert (reply_key.sport, reply_key.dport) == (leaf.dport, leaf.sport)
        assert (reply.saddr, reply.daddr) == (key.daddr, key.saddr)
        assert (reply.sport, reply.dport) == (key.dport, key.sport)
        assert bytes(reply.last_hop) == mac(PEER_MAC)
        assert (leaf.state, reply.state) == (SYN_SENT, SYN_SENT)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_a_repeated_syn_keeps_node_and_port(
        self, scene: Scene, opened: Connection, hook: str
    ) -> None:
        wanted = to_node(hook, opened.request_out("S", seq=100, ack=0))
        for _ in range(3):
            scene.expect(hook, opened.request("S", seq=100, ack=0), "l4_opening", wanted)
        assert len(scene.flows("half")) == 2

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_the_nodes_answer_and_a_repetition_of_it(
        self, scene: Scene, opened: Connection, hook: str
    ) -> None:
        opened.syn_ack(hook)
        opened.syn_ack(hook)
        assert states(scene, "half") == {REQUEST: SYN_RECEIVED, REPLY: SYN_SENT}

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_the_acknowledgement_promotes(
        self, scene: Scene, opened: Connection, hook: str
    ) -> None:
        opened.syn_ack()
        opened.ack(hook)
        assert scene.flows("half") == []
        assert states(scene) == {REQUEST: ESTABLISHED, REPLY: ESTABLISHED}

    @pytest.mark.parametrize("flags", ["PA", "FA", "A"])
    def test_so_does_data_that_overtook_it(
        self, scene: Scene, opened: Connection, flags: str
    ) -> None:
        opened.syn_ack()
        wanted = to_node("xdp_public", opened.request_out(flags, b"early"))
        scene.expect("xdp_public", opened.request(flags, b"early"), "l4_promoted", wanted)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("ack", [500, 502, 0, 501 + (1 << 31)])
    def test_a_wrong_number_does_not(
        self, scene: Scene, opened: Connection, hook: str, ack: int
    ) -> None:
        opened.syn_ack()
        scene.expect(hook, opened.request("A", ack=ack), "drop_handshake_mismatch")
        assert scene.flows("est") == []
        opened.ack()

    def test_a_sequence_number_that_wraps(self, scene: Scene, opened: Connection) -> None:
        scene.expect("tc_private", opened.reply("SA", seq=0xFFFFFFFF, ack=101), "l4_reply")
        scene.expect("xdp_public", opened.request("A", ack=0), "l4_promoted")

    @pytest.mark.parametrize("flags", ["A", "PA", "FA", ""])
    def test_no_acknowledgement_before_the_answer(
        self, scene: Scene, opened: Connection, flags: str
    ) -> None:
        """Not even of zero, which is what the entry holds until then."""
        for ack in (0, 501):
            packet = opened.request(flags, ack=ack)
            scene.expect("xdp_public", packet, "drop_handshake_mismatch")
        assert scene.flows("est") == []

    def test_a_flood_of_blind_pairs_grows_no_table_but_half(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=10000)
        for port in range(2000, 2300):
            client = (CLIENT_ADDRESS, port)
            scene.expect("xdp_public", tcp(client, SERVICE), "l4_new_flow")
            packet = tcp(client, SERVICE, "A", ack=port)
            scene.expect("xdp_public", packet, "drop_handshake_mismatch")
        assert scene.flows("est") == []
        assert len(scene.flows("half")) == 600

    def test_a_flood_of_syns_evicts_no_established_flow(
        self, scene: Scene, established: Connection
    ) -> None:
        scene.flood("xdp_public", (_syn(count) for count in range(50_000)))  # half holds 4096
        wanted = to_node("xdp_public", established.request_out())
        scene.expect("xdp_public", established.request(), "l4_established", wanted)
        scene.expect("tc_private", established.reply(), "l4_reply", established.reply_out())

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_refused_by_the_node(self, scene: Scene, opened: Connection, hook: str) -> None:
        scene.expect(hook, opened.reply("RA", seq=0, ack=101), "l4_reply")
        assert scene.flows("half") == []

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_given_up_by_the_client(self, scene: Scene, opened: Connection, hook: str) -> None:
        wanted = to_node(hook, opened.request_out("R"))
        scene.expect(hook, opened.request("R"), "l4_opening", wanted)
        assert scene.flows("half") == []

    def test_the_nodes_answer_to_nobody(self, scene: Scene, opened: Connection) -> None:
        lose(scene, REQUEST, "half")
        opened.syn_ack()
        assert states(scene, "half") == {REPLY: SYN_SENT}


_SYN = tcp(("198.18.0.1", 0), SERVICE)


def _syn(number: int) -> bytes:
    """A SYN from another port and address each, its checksums left wrong: nobody looks."""
    source = number.to_bytes(4)
    return _SYN[:28] + source[2:] + _SYN[30:34] + source[2:] + _SYN[36:]


class TestPromotionConflicts:
    """Two flows that would have one port in `est`: entries of another LB, or of a stale table."""

    def put_reply(self, scene: Scene, **fields: Any) -> Any:
        """The reply's entry of the opened flow also stands in est, changed in these fields."""
        for key, leaf in scene.flows("half"):
            if key.direction == REPLY:
                for name, value in fields.items():
                    setattr(leaf, name, value)
                scene.programs.table("est")[key] = leaf
                return key
        raise AssertionError("no reply entry")

    @pytest.mark.parametrize(
        "fields",
        [
            {"daddr": address("192.0.2.99")},
            {"dport": 99},
            {"saddr": address("10.80.0.101")},
            {"sport": 99},
        ],
    )
    def test_the_port_is_anothers(
        self, scene: Scene, opened: Connection, fields: dict[str, int]
    ) -> None:
        opened.syn_ack()
        self.put_reply(scene, **fields)
        scene.expect("xdp_public", opened.request("A"), "drop_flow_taken")
        assert list(states(scene)) == [REPLY]

    def test_promoted_twice_at_once(self, scene: Scene, opened: Connection) -> None:
        opened.syn_ack()
        self.put_reply(scene, state=ESTABLISHED)
        opened.ack()
        assert states(scene) == {REQUEST: ESTABLISHED, REPLY: ESTABLISHED}

    def test_the_other_half_is_gone(self, scene: Scene, opened: Connection) -> None:
        opened.syn_ack()
        lose(scene, REPLY, "half")
        scene.expect("xdp_public", opened.request("A"), "drop_flow_taken")
        assert scene.flows("est") == []

    def test_the_other_half_is_anothers(self, scene: Scene, opened: Connection) -> None:
        opened.syn_ack()
        change(scene, REPLY, "half", dport=99)
        scene.expect("xdp_public", opened.request("A"), "drop_flow_taken")
        assert scene.flows("est") == []

    def test_a_udp_reply_without_its_request(self, scene: Scene) -> None:
        scene.service("l4", protocol="udp")
        source = (SNAT, scene.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
        lose(scene, REQUEST, "half")
        scene.expect("tc_private", udp(NODE, source, b"a"), "drop_flow_taken")
        assert scene.flows("est") == []


class TestClosing:
    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("reply_hook", REPLY_HOOKS)
    def test_both_sides_finish(
        self, scene: Scene, established: Connection, hook: str, reply_hook: str
    ) -> None:
        scene.expect(hook, established.request("FA"), "l4_established")
        assert states(scene) == {REQUEST: CLOSING, REPLY: CLOSING}
        scene.expect(hook, established.request("FA"), "l4_established")
        assert states(scene) == {REQUEST: CLOSING, REPLY: CLOSING}, "a repeated FIN is one FIN"
        scene.expect(reply_hook, established.reply("FA"), "l4_reply")
        assert states(scene) == {REQUEST: CLOSED, REPLY: CLOSED}
        scene.expect(hook, established.request("A"), "l4_established")
        scene.expect(reply_hook, established.reply("A"), "l4_reply")

    def test_the_node_finishes_first(self, scene: Scene, established: Connection) -> None:
        scene.expect("tc_private", established.reply("FA"), "l4_reply")
        assert states(scene) == {REQUEST: CLOSING, REPLY: CLOSING}
        scene.expect("xdp_public", established.request("FA"), "l4_established")
        assert states(scene) == {REQUEST: CLOSED, REPLY: CLOSED}

    @pytest.mark.parametrize("flags", ["R", "RA", "FRA"])
    def test_reset_by_the_client(self, scene: Scene, established: Connection, flags: str) -> None:
        scene.expect("xdp_public", established.request(flags), "l4_established")
        assert states(scene) == {REQUEST: CLOSED, REPLY: CLOSED}

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_reset_by_the_node(self, scene: Scene, established: Connection, hook: str) -> None:
        scene.expect(hook, established.reply("R"), "l4_reply")
        assert states(scene) == {REQUEST: CLOSED, REPLY: CLOSED}

    @pytest.mark.parametrize("direction", [REQUEST, REPLY])
    def test_a_forged_reset_closes_nothing_that_lives(
        self, scene: Scene, established: Connection, direction: int
    ) -> None:
        """The next packet says so, and the port is not given away any more."""
        scene.expect("xdp_public", established.request("R"), "l4_established")
        if direction == REQUEST:
            scene.expect("xdp_public", established.request("PA"), "l4_established")
        else:
            scene.expect("tc_private", established.reply("PA"), "l4_reply")
        assert states(scene) == {REQUEST: CLOSING, REPLY: CLOSING}
        scene.service("l4", snat_first_port=established.source[1], snat_ports=1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "drop_no_port")

    def test_a_fin_that_promotes_counts_as_one(self, scene: Scene, opened: Connection) -> None:
        opened.syn_ack()
        scene.expect("xdp_public", opened.request("FA"), "l4_promoted")
        assert states(scene) == {REQUEST: CLOSING, REPLY: CLOSING}
        scene.expect("tc_private", opened.reply("FA"), "l4_reply")
        assert states(scene) == {REQUEST: CLOSED, REPLY: CLOSED}

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_a_closed_tuple_is_opened_anew(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        scene.expect("xdp_public", established.request("R"), "l4_established")
        old = established.source
        established.syn(hook)
        assert established.source != old, "the node may hold the old one in TIME_WAIT"
        assert scene.flows("est") == []
        established.syn_ack()
        established.ack(hook)

    @pytest.mark.parametrize("state", [ESTABLISHED, CLOSING])
    def test_a_syn_of_a_flow_that_is_not_closed_goes_to_its_node(
        self, scene: Scene, established: Connection, state: int
    ) -> None:
        """It may be an old one; the node answers with what it thinks of it (RFC 5961)."""
        if state == CLOSING:
            scene.expect("xdp_public", established.request("FA"), "l4_established")
        scene.expect("xdp_public", established.request("S"), "l4_established")

    def test_closing_leaves_another_flows_entry_alone(
        self, scene: Scene, established: Connection
    ) -> None:
        change(scene, REPLY, daddr=address("192.0.2.99"))
        scene.refresh("est")
        scene.expect("xdp_public", established.request("R"), "l4_established")
        assert states(scene) == {REQUEST: CLOSED, REPLY: ESTABLISHED}
        scene.expect("xdp_public", established.request("S"), "l4_new_flow")
        assert states(scene) == {REPLY: ESTABLISHED}


class TestTouching:
    """Once a second a flow's packet looks at the other direction's entry."""

    @pytest.mark.parametrize("direction", [REQUEST, REPLY])
    def test_both_are_kept_alive(
        self, scene: Scene, established: Connection, direction: int
    ) -> None:
        scene.age("est", 5)
        before = {key.direction: leaf.last_seen for key, leaf in scene.flows("est")}
        self.packet(scene, established, direction)
        after = {key.direction: leaf.last_seen for key, leaf in scene.flows("est")}
        assert all(after[way] - before[way] > 4_900_000_000 for way in (REQUEST, REPLY))
        assert after[REQUEST] == after[REPLY]

    def test_not_within_the_second(self, scene: Scene, established: Connection) -> None:
        scene.refresh("est")
        before = {key.direction: leaf.last_seen for key, leaf in scene.flows("est")}
        lose(scene, REPLY)
        self.packet(scene, established, REQUEST)
        after = {key.direction: leaf.last_seen for key, leaf in scene.flows("est")}
        assert after == {REQUEST: before[REQUEST]}

    @pytest.mark.parametrize("direction", [REQUEST, REPLY])
    def test_a_missing_entry_is_put_back_as_it_was(
        self, scene: Scene, established: Connection, direction: int
    ) -> None:
        lose(scene, 1 - direction)
        scene.age("est", 2)
        self.packet(scene, established, direction)
        assert states(scene) == {REQUEST: ESTABLISHED, REPLY: ESTABLISHED}
        self.packet(scene, established, 1 - direction)
        self.packet(scene, established, direction)

    def test_put_back_with_the_way_to_the_client(
        self, scene: Scene, established: Connection
    ) -> None:
        lose(scene, REPLY)
        scene.age("est", 2)
        self.packet(scene, established, REQUEST)
        scene.expect("xdp_reply", established.reply(), "l4_reply")

    @pytest.mark.parametrize("direction", [REQUEST, REPLY])
    @pytest.mark.parametrize("field", ["saddr", "daddr", "sport", "dport"])
    def test_taken_by_another_it_ends_the_flow(
        self, scene: Scene, established: Connection, direction: int, field: str
    ) -> None:
        fields: dict[str, Any] = {field: 99}
        change(scene, 1 - direction, **fields)
        scene.age("est", 2)
        hook = "xdp_public" if direction == REQUEST else "tc_private"
        packet = established.request() if direction == REQUEST else established.reply()
        scene.expect(hook, packet, "drop_flow_taken")
        assert list(states(scene)) == [1 - direction]

    def test_a_client_that_moved_to_another_hop(
        self, scene: Scene, established: Connection
    ) -> None:
        scene.age("est", 2)
        other = "02:00:00:00:00:77"
        packet = established.request()
        scene.expect("xdp_public", packet[:6] + mac(other) + packet[12:], "l4_established")
        assert scene.send("xdp_reply", established.reply()).scapy.dst == other

    def packet(self, scene: Scene, connection: Connection, direction: int) -> None:
        if direction == REQUEST:
            wanted = to_node("xdp_public", connection.request_out())
            scene.expect("xdp_public", connection.request(), "l4_established", wanted)
        else:
            scene.expect("tc_private", connection.reply(), "l4_reply", connection.reply_out())


class TestPorts:
    def test_one_port_one_flow_per_node(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 1), SERVICE), "l4_new_flow")
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "drop_no_port")
        assert len(scene.flows("half")) == 2

    def test_no_slice_at_all(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=0)
        scene.expect("xdp_public", tcp(CLIENT, SERVICE), "drop_no_port")

    def test_each_node_has_all_ports(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=1, seats=[1])
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 1), SERVICE), "l4_new_flow")
        scene.seat(2)
        scene.ring(0, [2])
        outcome = scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "l4_new_flow")
        assert outcome.ports[0] == FIRST_PORT

    def test_exhausted_and_recovered(self, scene: Scene, established: Connection) -> None:
        port = established.source[1]
        scene.service("l4", snat_first_port=port, snat_ports=1)
        other = tcp((CLIENT_ADDRESS, 2), SERVICE)
        scene.expect("xdp_public", other, "drop_no_port")
        scene.expect("xdp_public", established.request(), "l4_established")
        scene.expect("xdp_public", established.request("FA"), "l4_established")
        scene.expect("xdp_public", other, "drop_no_port")
        scene.expect("tc_private", established.reply("FA"), "l4_reply")
        assert scene.expect("xdp_public", other, "l4_new_flow").ports[0] == port
        scene.expect("xdp_public", established.request(), "drop_no_flow")

    def test_the_last_port_in_the_slice_is_used(self, scene: Scene) -> None:
        scene.service("l4", snat_first_port=65534, snat_ports=2)
        ports = set()
        for port in range(1, 200):
            outcome = scene.send("xdp_public", tcp((CLIENT_ADDRESS, port), SERVICE))
            if outcome.reason == "l4_new_flow":
                ports.add(outcome.ports[0])
        assert ports == {65534, 65535}

    def test_a_dense_slice_is_filled_to_the_end(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=32)
        clients = iter(range(1, 60000))
        ports = set()
        for _ in range(400):
            outcome = scene.send("xdp_public", tcp((CLIENT_ADDRESS, next(clients)), SERVICE))
            if outcome.reason == "l4_new_flow":
                ports.add(outcome.ports[0])
        assert ports == set(range(FIRST_PORT, FIRST_PORT + 32))
        assert len(scene.flows("half")) == 64

    def test_a_stale_half_gives_its_port_up(self, scene: Scene) -> None:
        scene.service("l4", snat_ports=1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 1), SERVICE), "l4_new_flow")
        scene.age("half", 2.5)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "drop_no_port")
        scene.age("half", 1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "l4_new_flow")
        assert len(scene.flows("half")) == 2
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 1), SERVICE), "drop_no_port")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_one_whose_client_repeats_itself_does_not(self, scene: Scene, protocol: str) -> None:
        scene.service("l4", protocol=protocol, snat_ports=1)
        make = tcp if protocol == "tcp" else udp
        scene.expect("xdp_public", make((CLIENT_ADDRESS, 1), SERVICE), "l4_new_flow")
        for _ in range(3):
            scene.age("half", 2)
            scene.expect("xdp_public", make((CLIENT_ADDRESS, 1), SERVICE), "l4_opening")
            scene.expect("xdp_public", make((CLIENT_ADDRESS, 2), SERVICE), "drop_no_port")

    def test_a_repeated_syn_whose_port_was_lost_gets_another(
        self, scene: Scene, opened: Connection
    ) -> None:
        lose(scene, REPLY, "half")
        scene.age("half", 2)
        opened.syn()
        assert states(scene, "half") == {REQUEST: SYN_SENT, REPLY: SYN_SENT}

    def test_a_repeated_syn_whose_port_is_anothers_gets_another(
        self, scene: Scene, opened: Connection
    ) -> None:
        change(scene, REPLY, "half", daddr=address("192.0.2.99"))
        scene.age("half", 2)
        scene.expect("xdp_public", opened.request("S"), "l4_new_flow")
        assert len(scene.flows("half")) == 3

    def test_recycling_a_port_spares_the_tuples_newer_flow(
        self, scene: Scene, established: Connection
    ) -> None:
        """The request's entry got lost, the client opened anew; its old reply entry is closed."""
        old = established.source[1]
        scene.expect("xdp_public", established.request("R"), "l4_established")
        lose(scene, REQUEST)
        established.establish()
        scene.service("l4", snat_first_port=old, snat_ports=1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "l4_new_flow")
        wanted = to_node("xdp_public", established.request_out())
        scene.expect("xdp_public", established.request(), "l4_established", wanted)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestRates:
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

    def test_a_refused_source_takes_nothing_from_the_others(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.settings(new_flows_per_second=10, new_flows_per_second_per_source=3)
        self.flows(scene, hook, 3, "l4_new_flow")
        self.flows(scene, hook, 20, "drop_source_rate", first=100)
        self.flows(scene, hook, 3, "l4_new_flow", source="192.0.2.2")

    def test_what_is_open_is_not_limited(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        scene.settings(new_flows_per_second=1, new_flows_per_second_per_source=1)
        for _ in range(5):
            scene.expect(hook, established.request(), "l4_established")

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
