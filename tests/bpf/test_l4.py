"""L4: addresses, ports, checksums and the time to live of both directions, at every hook."""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.bpf.harness import LB_MAC, PEER_MAC, ethernet, tcp, udp
from tests.bpf.scene import (
    AFFINITY_CLIENT,
    CLIENT,
    CLIENT_ADDRESS,
    FIRST_PORT,
    FLOATING,
    KEEPS_PORT,
    NO_SNAT,
    NODE,
    OF_SERVICE,
    OF_SNAT,
    PORT,
    PORTS,
    PUBLIC,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    SEAT,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    is_xdp,
    to_client,
    to_node,
)

FLAGS = ["A", "PA", "PAU", "FA", "F", "R", "RA", "S", "SA", "SEC", "AEC", "FSRPAU", ""]
OPTIONS: dict[str, Any] = {"options": [b"\x01\x01\x01\x00"]}


@pytest.fixture
def connection(scene: Scene) -> Connection:
    scene.service("l4")
    return Connection(scene).establish()


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_requests_of_an_established_flow(
    scene: Scene, connection: Connection, hook: str, flags: str
) -> None:
    wanted = to_node(hook, connection.request_out(flags, b"odd"))
    scene.expect(hook, connection.request(flags, b"odd"), "l4_established", wanted)


@pytest.mark.parametrize("flags", FLAGS)
@pytest.mark.parametrize("hook", REPLY_HOOKS)
def test_replies_of_an_established_flow(
    scene: Scene, connection: Connection, hook: str, flags: str
) -> None:
    wanted = to_client(hook, connection.reply_out(flags, b"odd"))
    scene.expect(hook, connection.reply(flags, b"odd"), "l4_reply", wanted)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_range_keeps_its_ports(scene: Scene, hook: str) -> None:
    """Every port of it is a front of the same service."""
    for port in (9000, 9099):
        scene.service("l4", at=(SERVICE[0], port), flags=KEEPS_PORT)
        outcome = scene.send(hook, tcp(CLIENT, (SERVICE[0], port), "S"))
        assert outcome.reason == "l4_new_flow"
        assert outcome.ports[1] == port


@pytest.mark.parametrize("hook", [*REQUEST_HOOKS, *REPLY_HOOKS])
class TestHeaders:
    """What else a header may say, in both directions of an established flow."""

    def check(
        self,
        scene: Scene,
        connection: Connection,
        hook: str,
        reason: str | None = None,
        /,
        payload: bytes = b"",
        padding: int = 0,
        **fields: Any,
    ) -> None:
        """The packet arrives as it should, with one hop taken off; or with this reason."""
        out = {**fields, "ttl": fields.get("ttl", 64) - 1}
        if hook in REQUEST_HOOKS:
            packet = connection.request("PA", payload, **fields)
            wanted = to_node(hook, connection.request_out("PA", payload, **out))
        else:
            packet = connection.reply("PA", payload, **fields)
            wanted = to_client(hook, connection.reply_out("PA", payload, **out))
        usual = "l4_established" if hook in REQUEST_HOOKS else "l4_reply"
        expected = None if reason else wanted + bytes(padding)
        scene.expect(hook, packet + bytes(padding), reason or usual, expected)

    @pytest.mark.parametrize("ttl", [2, 64, 255])
    def test_time_to_live_is_one_less(
        self, scene: Scene, connection: Connection, hook: str, ttl: int
    ) -> None:
        self.check(scene, connection, hook, ttl=ttl)

    @pytest.mark.parametrize("ttl", [0, 1])
    def test_time_to_live_ran_out(
        self, scene: Scene, connection: Connection, hook: str, ttl: int
    ) -> None:
        packet = (connection.request if hook in REQUEST_HOOKS else connection.reply)(ttl=ttl)
        scene.expect(hook, packet, "ttl_answered")

    def test_dscp_ecn_and_id_stay(self, scene: Scene, connection: Connection, hook: str) -> None:
        self.check(scene, connection, hook, tos=0xBB, id=0xFFFF)

    def test_padding_stays(self, scene: Scene, connection: Connection, hook: str) -> None:
        self.check(scene, connection, hook, padding=6)

    def test_tcp_options_and_payload(self, scene: Scene, connection: Connection, hook: str) -> None:
        fields: dict[str, Any] = {"options": [("Timestamp", (1, 2))]}
        if hook in REQUEST_HOOKS:
            packet = tcp(connection.client, SERVICE, "A", bytes(range(251)), **fields)
            wanted = tcp(connection.source, NODE, "A", bytes(range(251)), ttl=63, **fields)
            wanted = to_node(hook, wanted)
        else:
            packet = tcp(NODE, connection.source, "A", bytes(range(251)), **fields)
            wanted = tcp(SERVICE, connection.client, "A", bytes(range(251)), ttl=63, **fields)
            wanted = to_client(hook, wanted)
        assert scene.send(hook, packet).packet == wanted

    @pytest.mark.parametrize("at", [24, 50])
    def test_a_wrong_checksum_stays_wrong(
        self, scene: Scene, connection: Connection, hook: str, at: int
    ) -> None:
        """Nothing is mended that its receiver should refuse."""
        request = hook in REQUEST_HOOKS
        packet = bytearray((connection.request if request else connection.reply)("A", b"data"))
        made = (connection.request_out if request else connection.reply_out)("A", b"data")
        wanted = (to_node if request else to_client)(hook, made)
        packet[at] ^= 0x55
        out = scene.send(hook, bytes(packet)).packet
        assert out[at : at + 2] != wanted[at : at + 2]
        assert out[:at] + out[at + 2 :] == wanted[:at] + wanted[at + 2 :]

    def test_of_the_largest_frames(self, scene: Scene, connection: Connection, hook: str) -> None:
        scene.seat(mtu=9000)
        scene.settings(public_mtu=9000)
        self.check(scene, connection, hook, payload=bytes(range(250)) * 12)


class TestUdp:
    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("reply_hook", REPLY_HOOKS)
    def test_to_and_fro(self, scene: Scene, hook: str, reply_hook: str) -> None:
        source = self.open(scene, hook)
        scene.expect(
            hook,
            udp(CLIENT, SERVICE, b"again"),
            "l4_opening",
            to_node(hook, udp(source, NODE, b"again", ttl=63)),
        )
        answer = to_client(reply_hook, udp(SERVICE, CLIENT, b"answer", ttl=63))
        for _ in range(2):
            scene.expect(reply_hook, udp(NODE, source, b"answer"), "l4_reply", answer)
        more = to_node(hook, udp(source, NODE, b"more", ttl=63))
        for reason in ("l4_promoted", "l4_established"):
            scene.expect(hook, udp(CLIENT, SERVICE, b"more"), reason, more)
        assert scene.flows("half") == []
        assert scene.counted_at_seat()["flows"] == 1

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_ip_options_are_for_tc(self, scene: Scene, hook: str) -> None:
        source = self.open(scene, hook)
        packet = udp(CLIENT, SERVICE, b"q", **OPTIONS)
        wanted = udp(source, NODE, b"q", ttl=63, **OPTIONS)
        if is_xdp(hook):
            scene.expect(hook, packet, "slow_ip_options")
        else:
            scene.expect(hook, packet, "l4_opening", wanted)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_no_checksum_stays_none(self, scene: Scene, hook: str) -> None:
        source = self.open(scene, hook)
        wanted = no_checksum(to_node(hook, udp(source, NODE, b"question", ttl=63)))
        packet = no_checksum(udp(CLIENT, SERVICE, b"question"))
        scene.expect(hook, packet, "l4_opening", wanted)

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_no_checksum_in_the_reply(self, scene: Scene, hook: str) -> None:
        source = self.open(scene, "xdp_public")
        wanted = no_checksum(to_client(hook, udp(SERVICE, CLIENT, b"answer", ttl=63)))
        scene.expect(hook, no_checksum(udp(NODE, source, b"answer")), "l4_reply", wanted)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_a_checksum_that_becomes_zero_is_written_as_all_ones(
        self, scene: Scene, hook: str
    ) -> None:
        source = self.open(scene, hook)
        payload = udp(source, NODE, b"\0\0", ttl=63)[40:42]
        wanted = udp(source, NODE, payload, ttl=63)
        assert wanted[40:42] == b"\xff\xff"
        scene.expect(hook, udp(CLIENT, SERVICE, payload), "l4_opening", to_node(hook, wanted))

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_or_in_the_reply(self, scene: Scene, hook: str) -> None:
        source = self.open(scene, "xdp_public")
        payload = udp(SERVICE, CLIENT, b"\0\0", ttl=63)[40:42]
        wanted = udp(SERVICE, CLIENT, payload, ttl=63)
        assert wanted[40:42] == b"\xff\xff"
        scene.expect(hook, udp(NODE, source, payload), "l4_reply", to_client(hook, wanted))

    def open(self, scene: Scene, hook: str) -> tuple[str, int]:
        scene.service("l4", protocol="udp")
        outcome = scene.expect(hook, udp(CLIENT, SERVICE, b"question"), "l4_new_flow")
        source = (SNAT, outcome.ports[0])
        assert outcome.packet == to_node(hook, udp(source, NODE, b"question", ttl=63))
        return source


def no_checksum(frame: bytes) -> bytes:
    return frame[:40] + b"\0\0" + frame[42:]


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("phase", ["new", "opening", "established"])
class TestTheWayToTheNode:
    """Whatever keeps a packet from its node does so in every phase of a flow."""

    def packet(self, scene: Scene, phase: str, **fields: Any) -> bytes:
        scene.service("l4")
        connection = Connection(scene)
        if phase == "opening":
            connection.syn()
        if phase == "established":
            connection.establish()
        flags = "A" if phase == "established" else "S"
        return connection.request(flags, **fields)

    def test_unresolved(self, scene: Scene, hook: str, phase: str) -> None:
        packet = self.packet(scene, phase)
        scene.seat(flags=2)
        reason = {"new": "l4_new_flow", "opening": "l4_opening"}.get(phase, "l4_established")
        scene.expect(hook, packet, "slow_next_hop" if is_xdp(hook) else reason)

    def test_no_route(self, scene: Scene, hook: str, phase: str) -> None:
        packet = self.packet(scene, phase)
        scene.seat(flags=2, ifindex=0)
        scene.expect(hook, packet, "slow_next_hop" if is_xdp(hook) else "drop_no_route")

    def test_a_tag_has_to_come_off(self, scene: Scene, hook: str, phase: str) -> None:
        packet = self.packet(scene, phase, vlans=(5,))
        if is_xdp(hook):
            scene.expect(hook, packet, "slow_vlan")
        else:
            outcome = scene.send(hook, packet)
            assert outcome.scapy[IP].src == SNAT
            assert len(outcome.packet) == len(packet) - 4

    @pytest.mark.parametrize("vlans", [(5,), (5, 6)])
    def test_tags_stay_on_the_same_interface(
        self, scene: Scene, hook: str, phase: str, vlans: tuple[int, ...]
    ) -> None:
        packet = self.packet(scene, phase, vlans=vlans)
        scene.seat(ifindex=PUBLIC)
        if is_xdp(hook):
            scene.expect(hook, packet, "slow_vlan")
            return
        out = scene.send(hook, packet).packet
        plain = out[:12] + out[12 + 4 * len(vlans) :]
        assert out[12 : 14 + 4 * len(vlans)] == packet[12 : 14 + 4 * len(vlans)]
        source = (SNAT, int.from_bytes(plain[34:36]))
        flags = "A" if phase == "established" else "S"
        wanted = to_node(hook, tcp(source, NODE, flags, seq=101, ack=501, ttl=63))
        assert plain == wanted

    @pytest.mark.parametrize("flags", ["DF", ""])
    def test_too_long_answered(self, scene: Scene, hook: str, phase: str, flags: str) -> None:
        packet = self.long(scene, phase, flags)
        outcome = scene.expect(hook, packet, "too_big_answered")
        error = ICMP(type=3, code=4, nexthopmtu=1000) / Raw(packet[14:42])
        whole = IP(src=VIP, dst=CLIENT_ADDRESS, id=0, ttl=64) / error
        assert outcome.packet == bytes(Ether(src=LB_MAC, dst=PEER_MAC) / whole)

    def test_too_long_in_a_tag_is_for_tc(self, scene: Scene, hook: str, phase: str) -> None:
        """There the tag stands beside the bytes. If it does not, nobody can answer."""
        packet = ethernet(IP(self.long(scene, phase, "DF")[14:]), vlans=(5,))
        scene.seat(mtu=1000, ifindex=PUBLIC)
        scene.expect(hook, packet, "slow_vlan" if is_xdp(hook) else "drop_too_big")

    def long(self, scene: Scene, phase: str, flags: str) -> bytes:
        self.packet(scene, phase)
        scene.seat(mtu=1000)
        frame = tcp(CLIENT, SERVICE, "A" if phase == "established" else "S", bytes(961))
        whole = IP(frame[14:])
        whole.flags, whole.chksum = flags, None
        return frame[:14] + bytes(whole)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestWhoGetsAFlow:
    def test_no_node(self, scene: Scene, hook: str) -> None:
        scene.service("l4", seats=[0])
        scene.expect(hook, tcp(CLIENT, SERVICE), "no_node_refused")

    @pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "SA", "SR", "SF", ""])
    def test_only_a_syn_opens(self, scene: Scene, hook: str, flags: str) -> None:
        scene.service("l4")
        reason = "drop_no_flow" if "R" in flags else "no_flow_reset"
        scene.expect(hook, tcp(CLIENT, SERVICE, flags), reason)
        assert scene.flows() == []

    @pytest.mark.parametrize("flags", ["S", "SEC", "SP", "SU"])
    def test_any_syn_does(self, scene: Scene, hook: str, flags: str) -> None:
        scene.service("l4")
        scene.expect(hook, tcp(CLIENT, SERVICE, flags), "l4_new_flow")

    def test_source_is_the_vip(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.expect(hook, tcp((VIP, 999), SERVICE), "drop_source_is_vip")

    def test_a_draining_node_keeps_its_flow(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        connection = Connection(scene).establish()
        scene.seat(flags=1)
        scene.ring(0, [0])
        wanted = to_node(hook, connection.request_out("PA", b"x"))
        scene.expect(hook, connection.request("PA", b"x"), "l4_established", wanted)

    def test_a_syn_repeated_to_a_dead_node_gets_another(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        Connection(scene).syn(hook)
        scene.seat(flags=1)
        scene.seat(SEAT + 1)
        scene.ring(0, [SEAT + 1])
        outcome = scene.expect(hook, tcp(CLIENT, SERVICE, seq=100), "l4_new_flow")
        assert outcome.scapy[IP].dst == "10.81.0.21"
        seats = sorted(flow.seat for key, flow in scene.flows("half") if key.direction == 0)
        assert seats == [SEAT + 1]

    def test_but_its_acknowledgement_stays(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        connection = Connection(scene)
        connection.syn(hook)
        connection.syn_ack()
        scene.seat(flags=1)
        connection.ack(hook)

    def test_affinity_to_the_client(self, scene: Scene, hook: str) -> None:
        seats = list(range(1, 40))
        scene.service("l4", flags=AFFINITY_CLIENT, seats=seats)
        nodes = {
            scene.send(hook, tcp((CLIENT_ADDRESS, port), SERVICE)).scapy[IP].dst
            for port in range(1000, 1020)
        }
        assert len(nodes) == 1

    def test_affinity_to_the_flow(self, scene: Scene, hook: str) -> None:
        scene.service("l4", seats=range(1, 40))
        nodes = {
            scene.send(hook, tcp((CLIENT_ADDRESS, port), SERVICE)).scapy[IP].dst
            for port in range(1000, 1040)
        }
        assert len(nodes) > 10

    def test_ports_of_the_slice(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        ports = [
            scene.send(hook, tcp((CLIENT_ADDRESS, port), SERVICE)).ports[0]
            for port in range(1000, 1100)
        ]
        assert len(set(ports)) == 100, "the same port to the same node would be the same flow"
        assert all(FIRST_PORT <= port < FIRST_PORT + PORTS for port in ports)

    def test_counted_at_the_seat(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        connection = Connection(scene)
        connection.syn(hook)
        connection.syn_ack()
        connection.ack(hook)
        scene.send("tc_private", connection.reply("PA", bytes(1000)))
        assert scene.counted_at_seat() == {
            "packets_in": 2,
            "bytes_in": 2 * 54,
            "packets_out": 2,
            "bytes_out": 2 * 54 + 1000,
            "flows": 1,
        }


class TestWithoutSnat:
    """The node sees the client's address, and answers through this LB."""

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("reply_hook", REPLY_HOOKS)
    def test_handshake_and_data(self, scene: Scene, hook: str, reply_hook: str) -> None:
        scene.service("l4", flags=NO_SNAT, snat_ports=0)
        connection = Connection(scene, snat=False)
        connection.syn(hook)
        assert connection.source == CLIENT
        connection.syn_ack(reply_hook)
        connection.ack(hook)
        wanted = to_node(hook, connection.request_out("PA", b"question"))
        scene.expect(hook, connection.request("PA", b"question"), "l4_established", wanted)
        wanted = to_client(reply_hook, connection.reply_out("PA", b"answer"))
        scene.expect(reply_hook, connection.reply("PA", b"answer"), "l4_reply", wanted)

    def test_udp(self, scene: Scene) -> None:
        scene.service("l4", flags=NO_SNAT, protocol="udp")
        wanted = to_node("xdp_public", udp(CLIENT, NODE, b"q", ttl=63))
        scene.expect("xdp_public", udp(CLIENT, SERVICE, b"q"), "l4_new_flow", wanted)
        wanted = to_client("tc_private", udp(SERVICE, CLIENT, b"a", ttl=63))
        scene.expect("tc_private", udp(NODE, CLIENT, b"a"), "l4_reply", wanted)

    def test_two_services_on_one_node_port_cannot_both_have_a_client_port(
        self, scene: Scene
    ) -> None:
        """The node could not tell them apart."""
        self.two_services(scene)
        Connection(scene, snat=False).establish()
        scene.expect("xdp_public", tcp(CLIENT, (VIP, 8443)), "drop_no_port")
        assert len(scene.flows()) == 2

    def test_but_what_is_half_open_makes_room(self, scene: Scene) -> None:
        self.two_services(scene)
        Connection(scene, snat=False).syn()
        Connection(scene, service=(VIP, 8443), snat=False).establish()
        assert len(scene.flows("est")) == 2

    def two_services(self, scene: Scene) -> None:
        scene.service("l4", flags=NO_SNAT)
        scene.service("l4", flags=NO_SNAT, at=(VIP, 8443), number=1)


class TestReplies:
    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    @pytest.mark.parametrize("flags", ["S", "A", "R", "SA"])
    def test_the_hosts_own_traffic_passes(self, scene: Scene, hook: str, flags: str) -> None:
        scene.service("l4")
        scene.expect(hook, tcp(NODE, (SNAT, 22), flags), "pass_no_flow")

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_a_reply_from_another_node_is_none(
        self, scene: Scene, connection: Connection, hook: str
    ) -> None:
        scene.expect(hook, tcp(("10.81.0.99", 80), connection.source, "A"), "pass_no_flow")

    @pytest.mark.parametrize("vlans", [(5,), (5, 6)])
    def test_tags_come_off_in_tc(
        self, scene: Scene, connection: Connection, vlans: tuple[int, ...]
    ) -> None:
        packet = connection.reply("PA", b"x", vlans=vlans)
        scene.expect("xdp_reply", packet, "slow_vlan")
        wanted = to_client("tc_private", connection.reply_out("PA", b"x"))
        scene.expect("tc_private", packet, "l4_reply", wanted)

    def test_xdp_knows_no_way_to_a_client_it_has_not_heard(
        self, scene: Scene, connection: Connection
    ) -> None:
        scene.change(1, last_hop=(0,) * 6)
        scene.expect("xdp_reply", connection.reply(), "slow_next_hop")
        scene.expect("tc_private", connection.reply(), "l4_reply", connection.reply_out())

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_programs_without_settings(self, scene: Scene, hook: str) -> None:
        scene.settings(public_ifindex=0)
        scene.expect(hook, tcp(NODE, (SNAT, 22)), "pass_not_ready")

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_options_in_the_answer_to_a_syn(self, scene: Scene, hook: str) -> None:
        scene.service("l4", protocol="udp")
        source = (SNAT, scene.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
        reason = "slow_ip_options" if is_xdp(hook) else "l4_reply"
        scene.expect(hook, udp(NODE, source, b"a", **OPTIONS), reason)


class TestOneArm:
    """Public and private are one interface: TC's one program sees both directions."""

    def test_to_and_fro(self, one_arm: Scene) -> None:
        one_arm.service("l4")
        one_arm.seat(ifindex=PUBLIC)
        connection = Connection(one_arm)
        connection.syn()
        one_arm.expect("xdp_public", connection.reply("SA"), "pass_not_for_service")
        connection.syn_ack("tc_public")
        connection.ack()
        connection.scene.expect("tc_public", connection.request(), "l4_established")
        wanted = to_client("tc_public", connection.reply_out("PA", b"answer"))
        one_arm.expect("tc_public", connection.reply("PA", b"answer"), "l4_reply", wanted)

    def test_to_and_fro_through_a_floating_address(self, one_arm: Scene) -> None:
        one_arm.service("l4")
        one_arm.seat(ifindex=PUBLIC)
        one_arm.address(VIP, OF_SERVICE | FLOATING)
        one_arm.address(SNAT, OF_SNAT | FLOATING, snat_first_port=FIRST_PORT, snat_ports=PORTS)
        connection = Connection(one_arm)
        connection.syn()
        one_arm.expect("xdp_public", connection.reply("SA"), "pass_not_for_service")
        connection.syn_ack("tc_public")
        connection.ack()

    def test_an_answer_to_what_is_a_services_port_too(self, one_arm: Scene) -> None:
        """The one address is the VIP, and that of SNAT."""
        slice_: dict[str, Any] = {"snat_first_port": PORT, "snat_ports": 1}
        one_arm.service("l4", snat_addresses=(VIP,), **slice_)
        one_arm.seat(ifindex=PUBLIC)
        one_arm.snat_slice()
        one_arm.address(VIP, OF_SERVICE | OF_SNAT, **slice_)
        opened = one_arm.expect("xdp_public", tcp(CLIENT, SERVICE, seq=100), "l4_new_flow")
        assert opened.scapy[IP].src == VIP
        assert opened.ports == (PORT, NODE[1])
        answer = tcp(NODE, SERVICE, "SA", seq=500, ack=101)
        one_arm.expect("xdp_public", answer, "pass_not_for_service")
        wanted = to_client("tc_public", tcp(SERVICE, CLIENT, "SA", seq=500, ack=101, ttl=63))
        one_arm.expect("tc_public", answer, "l4_reply", wanted)
        stray = tcp(NODE, SERVICE, "R", seq=9)
        one_arm.age("flows", 86_400)
        one_arm.expect("xdp_public", stray, "pass_not_for_service")
        one_arm.expect("tc_public", stray, "drop_no_flow")

    def test_neither_one_nor_the_other(self, one_arm: Scene) -> None:
        one_arm.service("l4")
        one_arm.expect("tc_public", tcp(NODE, (SNAT, 22)), "pass_no_flow")

    @pytest.mark.parametrize("mode", ["l2", "l3"])
    def test_stateless(self, one_arm: Scene, mode: str) -> None:
        one_arm.service(mode)
        for hook in REQUEST_HOOKS:
            one_arm.expect(hook, tcp(CLIENT, SERVICE), f"{mode}_forwarded")


def with_df(frame: bytes) -> bytes:
    packet = Ether(frame)
    packet[IP].flags = "DF"
    del packet[IP].chksum
    return bytes(packet)


class TestTooLongReplies:
    """The private side may take longer packets than the public one."""

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_are_answered_to_the_node(
        self, scene: Scene, connection: Connection, hook: str
    ) -> None:
        scene.settings(public_mtu=1400)
        packet = with_df(connection.reply("A", bytes(1361)))
        answer = Ether(scene.expect(hook, packet, "too_big_answered").packet)
        assert (answer[IP].src, answer[IP].dst) == (SNAT, NODE[0])
        assert (answer[ICMP].type, answer[ICMP].code, answer[ICMP].nexthopmtu) == (3, 4, 1400)

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_that_fit_exactly_go(self, scene: Scene, connection: Connection, hook: str) -> None:
        scene.settings(public_mtu=1400)
        scene.expect(hook, with_df(connection.reply("A", bytes(1360))), "l4_reply")
