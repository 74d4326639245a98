"""What is told to a client that cannot be served, and what is never answered.

A RST has the numbers of RFC 9293, 3.5.2, so that whoever sent the packet takes it; a datagram is
answered by ICMP port unreachable, which quotes it (RFC 792). Both speak as the address the client
wrote to. And what is for nobody never reaches the host's own stack, which would answer for itself.
"""

from __future__ import annotations

from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Ether
from scapy.packet import Packet, Raw

from services.dataplane.flows.record import FlowState
from tests.bpf.harness import LB_MAC, PEER_MAC, ethernet, icmp, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    FIRST_PORT,
    FLOATING,
    GUE,
    NO_RESET,
    NODE,
    OF_SERVICE,
    OF_SNAT,
    OWN_PRIVATE,
    OWN_PUBLIC,
    PORTS,
    PUBLIC,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    RESOLVED,
    RETIRED,
    SEAT,
    SEAT_DEAD,
    SEAT_RESET,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    address,
    is_xdp,
    mac,
    node_of,
    to_node,
)

REQUEST, REPLY = 0, 1
OTHER = SEAT + 1
OTHER_NODE = (node_of(OTHER), NODE[1])
DEAD_KEEPS = RESOLVED | SEAT_DEAD
DEAD_RESETS = RESOLVED | SEAT_DEAD | SEAT_RESET
STATELESS = {"l2": ("l2", 0), "ipip": ("l3", 0), "gue": ("l3", GUE)}
Numbers = tuple[int, int | None]
LATER = ethernet(IP(src=CLIENT_ADDRESS, dst=VIP, proto=6, id=77, frag=20) / Raw(bytes(40)))


def reset(
    seq: int,
    ack: int | None = None,
    *,
    source: tuple[str, int] = SERVICE,
    to: tuple[str, int] = CLIENT,
) -> bytes:
    """The RST, as scapy builds it; with an acknowledgement if there is one."""
    flags = "R" if ack is None else "RA"
    segment = TCP(
        sport=source[1], dport=to[1], flags=flags, seq=seq % 2**32, ack=(ack or 0) % 2**32, window=0
    )
    whole = IP(src=source[0], dst=to[0], id=0, flags="DF", ttl=64) / segment
    return bytes(Ether(src=LB_MAC, dst=PEER_MAC) / whole)


def error(packet: bytes, about: ICMP, source: str = VIP, to: str = CLIENT_ADDRESS) -> bytes:
    """About that packet: quoted are its header and the first eight bytes behind it."""
    quoted = packet[14 : 14 + (packet[14] & 0x0F) * 4 + 8]
    whole = IP(src=source, dst=to, id=0, ttl=64) / about / Raw(quoted)
    return bytes(Ether(src=LB_MAC, dst=PEER_MAC) / whole)


def unreachable(packet: bytes, to: str = CLIENT_ADDRESS) -> bytes:
    return error(packet, ICMP(type=3, code=3), to=to)


@pytest.fixture
def established(scene: Scene) -> Connection:
    scene.service("l4")
    return Connection(scene).establish()


# --------------------------------------------------------------------------- TCP of no flow


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestNoFlow:
    """A forgotten flow's client learns of it by its next packet."""

    @pytest.mark.parametrize(
        ("flags", "payload", "wanted"),
        [
            ("A", b"", (700, None)),
            ("PA", b"data", (700, None)),
            ("FA", b"", (700, None)),
            ("SA", b"", (700, None)),
            ("SFA", b"x", (700, None)),
            ("", b"", (0, 5000)),
            ("P", b"data", (0, 5004)),
            ("F", b"", (0, 5001)),
            ("FP", b"data", (0, 5005)),
            ("SF", b"data", (0, 5006)),
        ],
    )
    def test_is_answered_by_numbers_that_its_sender_takes(
        self, scene: Scene, hook: str, flags: str, payload: bytes, wanted: Numbers
    ) -> None:
        scene.service("l4")
        packet = tcp(CLIENT, SERVICE, flags, payload, seq=5000, ack=700)
        scene.expect(hook, packet, "no_flow_reset", reset(*wanted))

    @pytest.mark.parametrize("seq", [2**32 - 4, 2**32 - 1])
    def test_numbers_wrap(self, scene: Scene, hook: str, seq: int) -> None:
        scene.service("l4")
        packet = tcp(CLIENT, SERVICE, "FP", b"data", seq=seq)
        scene.expect(hook, packet, "no_flow_reset", reset(0, seq + 5))

    def test_tcp_options_are_no_data(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        options = [("Timestamp", (1, 2))]
        packet = tcp(CLIENT, SERVICE, "P", b"data", seq=5000, options=options)
        scene.expect(hook, packet, "no_flow_reset", reset(0, 5004))

    def test_nor_is_padding(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        packet = tcp(CLIENT, SERVICE, "P", b"data", seq=5000) + bytes(6)
        scene.expect(hook, packet, "no_flow_reset", reset(0, 5004))

    def test_a_long_packet_is_cut(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        packet = tcp(CLIENT, SERVICE, "PA", bytes(1400), seq=5000, ack=700)
        scene.expect(hook, packet, "no_flow_reset", reset(700))

    @pytest.mark.parametrize("flags", ["R", "RA", "SR", "FSRPAU"])
    def test_a_reset_never_is(self, scene: Scene, hook: str, flags: str) -> None:
        scene.service("l4")
        scene.expect(hook, tcp(CLIENT, SERVICE, flags), "drop_no_flow")

    def test_a_later_fragment_never_is(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.address(VIP, OF_SERVICE)
        scene.expect(hook, LATER, "drop_fragment_alone")

    def test_unless_the_service_says_otherwise(self, scene: Scene, hook: str) -> None:
        scene.service("l4", flags=NO_RESET)
        for flags in ("A", "FA", "SA", ""):
            scene.expect(hook, tcp(CLIENT, SERVICE, flags), "drop_no_flow")

    def test_where_a_tag_is_in_the_way_nothing_is_said(self, scene: Scene, hook: str) -> None:
        """A tag among the bytes; in TC it stands beside them."""
        scene.service("l4")
        tagged = tcp(CLIENT, SERVICE, "A", vlans=(5,))
        scene.expect(hook, tagged, "slow_vlan" if is_xdp(hook) else "drop_no_flow")

    def test_a_flow_that_is_over_is_none(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        scene.age("flows", 86_400)
        packet = established.request("PA", b"late", seq=101, ack=501)
        scene.expect(hook, packet, "no_flow_reset", reset(501))

    def test_from_one_arm_too(self, one_arm: Scene, hook: str) -> None:
        one_arm.service("l4")
        packet = tcp(CLIENT, SERVICE, "A", seq=5000, ack=700)
        one_arm.expect(hook, packet, "no_flow_reset", reset(700))


# --------------------------------------------------------------------------- no node


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestNoNode:
    """Who connects is told at once that nobody is there."""

    def empty(self, scene: Scene, mode: str, protocol: str = "tcp") -> None:
        name, flags = STATELESS.get(mode, (mode, 0))
        scene.service(name, flags=flags, protocol=protocol, seats=[0])

    @pytest.mark.parametrize("mode", [*STATELESS, "l4"])
    @pytest.mark.parametrize(
        ("flags", "payload", "wanted"),
        [
            ("S", b"", (0, 5001)),
            ("S", b"GET /", (0, 5006)),
            ("SEC", b"", (0, 5001)),
        ],
    )
    def test_a_connection_is_refused(
        self, scene: Scene, hook: str, mode: str, flags: str, payload: bytes, wanted: Numbers
    ) -> None:
        self.empty(scene, mode)
        packet = tcp(CLIENT, SERVICE, flags, payload, seq=5000)
        scene.expect(hook, packet, "no_node_refused", reset(*wanted))
        assert scene.flows() == []

    @pytest.mark.parametrize("mode", STATELESS)
    def test_what_is_under_way_is_ended(self, scene: Scene, hook: str, mode: str) -> None:
        self.empty(scene, mode)
        packet = tcp(CLIENT, SERVICE, "PA", b"x", seq=5000, ack=700)
        scene.expect(hook, packet, "no_node_refused", reset(700))

    @pytest.mark.parametrize("mode", [*STATELESS, "l4"])
    @pytest.mark.parametrize("payload", [b"", b"q", bytes(1000)])
    def test_a_datagram_is_refused(
        self, scene: Scene, hook: str, mode: str, payload: bytes
    ) -> None:
        self.empty(scene, mode, "udp")
        packet = udp(CLIENT, SERVICE, payload)
        scene.expect(hook, packet, "no_node_refused", unreachable(packet))

    @pytest.mark.parametrize("mode", STATELESS)
    def test_a_reset_is_not_answered(self, scene: Scene, hook: str, mode: str) -> None:
        self.empty(scene, mode)
        scene.expect(hook, tcp(CLIENT, SERVICE, "R"), "drop_no_node")

    @pytest.mark.parametrize("mode", STATELESS)
    def test_nor_is_an_error(self, scene: Scene, hook: str, mode: str) -> None:
        self.empty(scene, mode)
        quoted = tcp(SERVICE, CLIENT, "A")[14:]
        scene.expect(hook, icmp("192.0.2.1", VIP, 11, 0, quoted), "drop_no_node")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_tag_in_the_way(self, scene: Scene, hook: str, protocol: str) -> None:
        self.empty(scene, "l4", protocol)
        make = tcp if protocol == "tcp" else udp
        packet = make(CLIENT, SERVICE, vlans=(5,))
        scene.expect(hook, packet, "slow_vlan" if is_xdp(hook) else "drop_no_node")

    def test_established_flows_go_on(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        scene.ring(0, [0])
        scene.expect(hook, tcp((CLIENT_ADDRESS, 2), SERVICE), "no_node_refused")
        wanted = to_node(hook, established.request_out())
        scene.expect(hook, established.request(), "l4_established", wanted)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestRetired:
    """A service that is gone from the configuration keeps what it has, and takes nothing new."""

    def test_its_flows_go_on(self, scene: Scene, established: Connection, hook: str) -> None:
        scene.service("l4", flags=RETIRED)
        scene.expect(hook, established.request(), "l4_established")

    def test_it_opens_none(self, scene: Scene, hook: str) -> None:
        scene.service("l4", flags=RETIRED)
        scene.expect(hook, tcp(CLIENT, SERVICE, seq=9000), "no_node_refused", reset(0, 9001))
        scene.service("l4", flags=RETIRED, protocol="udp")
        scene.expect(hook, udp(CLIENT, SERVICE, b"q"), "no_node_refused")

    @pytest.mark.parametrize("later_s", [0, 3600])
    def test_nor_opens_one_again(
        self, scene: Scene, established: Connection, hook: str, later_s: int
    ) -> None:
        scene.expect(hook, established.request("R"), "l4_established")
        scene.age("flows", later_s)
        scene.service("l4", flags=RETIRED)
        scene.expect(hook, established.request("S", seq=9000), "no_node_refused")

    def test_of_another_mode_it_serves_both(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        """L4 until lately: who has a flow keeps it, everybody else is served without."""
        scene.service("l2", flags=16)
        scene.expect(hook, established.request(), "l4_established")
        scene.expect(hook, tcp((CLIENT_ADDRESS, 2), SERVICE), "l2_forwarded")
        scene.expect(hook, tcp((CLIENT_ADDRESS, 2), SERVICE, "A"), "l2_forwarded")
        scene.expect(hook, established.request("R"), "l4_established")
        scene.expect(hook, established.request("S", seq=9000), "l2_forwarded")


# --------------------------------------------------------------------------- a dead node


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestDeadNode:
    def die(self, scene: Scene, flags: int = DEAD_RESETS) -> None:
        scene.seat(flags=flags)
        scene.seat(OTHER)
        scene.ring(0, [OTHER])

    @pytest.mark.parametrize(("flags", "payload"), [("A", b""), ("PA", b"x"), ("FA", b"")])
    def test_its_client_is_told_once(
        self, scene: Scene, established: Connection, hook: str, flags: str, payload: bytes
    ) -> None:
        self.die(scene)
        packet = established.request(flags, payload)
        scene.expect(hook, packet, "dead_node_reset", reset(501))
        assert scene.flows() == []
        scene.expect(hook, packet, "no_flow_reset", reset(501))

    def test_a_closing_flow_too(self, scene: Scene, established: Connection, hook: str) -> None:
        scene.expect(hook, established.request("FA"), "l4_established")
        self.die(scene)
        scene.expect(hook, established.request("A", seq=102), "dead_node_reset", reset(501))

    def test_a_reset_ends_it_in_silence(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        self.die(scene)
        scene.expect(hook, established.request("R"), "drop_no_node")
        assert scene.flows() == []

    def test_a_handshake_with_it_ends_too(self, scene: Scene, hook: str) -> None:
        """It died between its SYN-ACK and the client's acknowledgement."""
        scene.service("l4")
        connection = Connection(scene)
        connection.syn()
        connection.syn_ack()
        self.die(scene)
        scene.expect(hook, connection.request("A"), "dead_node_reset", reset(501))
        assert scene.flows() == []

    @pytest.mark.parametrize("dead", [DEAD_RESETS, DEAD_KEEPS])
    @pytest.mark.parametrize("state", ["opening", "answered", "established", "closing"])
    def test_a_syn_is_given_another_node_at_once(
        self, scene: Scene, hook: str, dead: int, state: str
    ) -> None:
        scene.service("l4")
        connection = Connection(scene)
        connection.syn()
        if state != "opening":
            connection.syn_ack()
        if state in ("established", "closing"):
            connection.ack()
        if state == "closing":
            scene.expect(hook, connection.request("FA"), "l4_established")
        self.die(scene, dead)
        for reason in ("l4_new_flow", "l4_opening"):
            outcome = scene.expect(hook, connection.request("S", seq=9000, ack=0), reason)
            assert outcome.scapy[IP].dst == OTHER_NODE[0]
        assert {flow.seat for _, flow in scene.flows()} == {OTHER}

    @pytest.mark.parametrize("dead", [DEAD_RESETS, DEAD_KEEPS])
    @pytest.mark.parametrize("state", ["asked", "answered", "established"])
    def test_so_is_a_datagram(self, scene: Scene, hook: str, dead: int, state: str) -> None:
        scene.service("l4", protocol="udp")
        question = udp(CLIENT, SERVICE, b"q")
        source = (SNAT, scene.send(hook, question).ports[0])
        if state != "asked":
            scene.expect("tc_private", udp(NODE, source, b"a"), "l4_reply")
        if state == "established":
            scene.expect(hook, question, "l4_promoted")
        self.die(scene, dead)
        outcome = scene.expect(hook, question, "l4_new_flow")
        assert outcome.scapy[IP].dst == OTHER_NODE[0]
        answer = udp(OTHER_NODE, (SNAT, outcome.ports[0]), b"a")
        scene.expect("tc_private", answer, "l4_reply")
        assert {flow.seat for _, flow in scene.flows()} == {OTHER}

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_nobody_else_is_left(self, scene: Scene, hook: str, protocol: str) -> None:
        scene.service("l4", protocol=protocol)
        packet = (tcp if protocol == "tcp" else udp)(CLIENT, SERVICE)
        scene.expect(hook, packet, "l4_new_flow")
        self.die(scene)
        scene.ring(0, [0])
        scene.expect(hook, packet, "no_node_refused")
        assert scene.flows() == []

    def test_who_is_to_keep_its_flows_keeps_them(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        self.die(scene, DEAD_KEEPS)
        for flags, payload in (("A", b""), ("PA", b"x"), ("FA", b"")):
            wanted = to_node(hook, established.request_out(flags, payload))
            scene.expect(hook, established.request(flags, payload), "l4_established", wanted)
        scene.expect("tc_private", established.reply("A"), "l4_reply")
        assert set(scene.states().values()) == {FlowState.TCP_CLOSING}

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_a_draining_one_keeps_them_too(self, scene: Scene, hook: str, protocol: str) -> None:
        scene.service("l4", protocol=protocol)
        if protocol == "tcp":
            packet = Connection(scene).establish().request("PA", b"x")
        else:
            packet = udp(CLIENT, SERVICE, b"q")
            source = (SNAT, scene.send(hook, packet).ports[0])
            scene.expect("tc_private", udp(NODE, source, b"a"), "l4_reply")
            scene.expect(hook, packet, "l4_promoted")
        self.die(scene, RESOLVED)
        outcome = scene.expect(hook, packet, "l4_established")
        assert outcome.scapy[IP].dst == NODE[0]

    @pytest.mark.parametrize("dead", [DEAD_RESETS, DEAD_KEEPS, RESOLVED])
    def test_what_was_closed_comes_back_elsewhere(
        self, scene: Scene, established: Connection, hook: str, dead: int
    ) -> None:
        scene.expect(hook, established.request("R"), "l4_established")
        self.die(scene, dead)
        outcome = scene.expect(hook, established.request("S", seq=9000), "l4_new_flow")
        assert outcome.scapy[IP].dst == OTHER_NODE[0]

    def test_an_expired_flow_is_no_flow(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        self.die(scene)
        scene.age("flows", 86_400)
        scene.expect(hook, established.request(), "no_flow_reset")

    def test_it_comes_back_and_its_new_flows_with_it(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        self.die(scene)
        scene.expect(hook, established.request(), "dead_node_reset")
        scene.seat()
        scene.ring(0, [SEAT])
        established.establish()
        scene.expect(hook, established.request(), "l4_established")

    def test_other_nodes_flows_do_not_notice(self, scene: Scene, hook: str) -> None:
        scene.service("l4", seats=[OTHER])
        other = Connection(scene, node=OTHER_NODE)
        opened = scene.expect(hook, tcp(CLIENT, SERVICE, seq=100), "l4_new_flow")
        other.source = (SNAT, opened.ports[0])
        other.syn_ack()
        other.ack()
        scene.seat(SEAT, flags=DEAD_RESETS)
        wanted = to_node(hook, other.request_out())
        scene.expect(hook, other.request(), "l4_established", wanted)


# --------------------------------------------------------------------------- time to live


def time_exceeded(packet: bytes, source: str, to: str) -> bytes:
    return error(packet, ICMP(type=11, code=0), source, to)


class TestTimeExceeded:
    """Where the LB routes it is a hop, which says so as itself (RFC 1812, 5.3.1)."""

    ROUTED = tuple(mode for mode in (*STATELESS, "l4") if mode != "l2")

    def serve(self, scene: Scene, mode: str, protocol: str = "tcp") -> None:
        name, flags = STATELESS.get(mode, (mode, 0))
        scene.service(name, flags=flags, protocol=protocol)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("mode", ROUTED)
    @pytest.mark.parametrize("ttl", [0, 1])
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_of_a_client(self, scene: Scene, hook: str, mode: str, ttl: int, protocol: str) -> None:
        self.serve(scene, mode, protocol)
        packet = (tcp if protocol == "tcp" else udp)(CLIENT, SERVICE, ttl=ttl)
        wanted = time_exceeded(packet, OWN_PUBLIC, CLIENT_ADDRESS)
        scene.expect(hook, packet, "ttl_answered", wanted)
        assert scene.flows() == []

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_of_a_node(self, scene: Scene, established: Connection, hook: str) -> None:
        packet = established.reply(ttl=1)
        wanted = time_exceeded(packet, OWN_PRIVATE, NODE[0])
        scene.expect(hook, packet, "ttl_answered", wanted)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("mode", [*STATELESS, "l4"])
    def test_two_is_enough(self, scene: Scene, hook: str, mode: str) -> None:
        self.serve(scene, mode)
        outcome = scene.send(hook, tcp(CLIENT, SERVICE, ttl=2))
        inner = outcome.scapy.getlayer(IP, 2) if mode == "ipip" else outcome.scapy[IP]
        if mode == "gue":
            inner = IP(outcome.packet[14 + 32 :])
        assert inner.ttl == (2 if mode == "l2" else 1)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_a_bridge_is_no_hop(self, scene: Scene, hook: str) -> None:
        self.serve(scene, "l2")
        packet = tcp(CLIENT, SERVICE, ttl=1)
        scene.expect(hook, packet, "l2_forwarded", to_node(hook, packet))

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("mode", ROUTED)
    def test_an_error_is_not_answered(self, scene: Scene, hook: str, mode: str) -> None:
        self.serve(scene, mode)
        if mode == "l4":
            Connection(scene).establish()
        quoted = tcp(SERVICE, CLIENT, "A")[14:]
        scene.expect(hook, icmp("192.0.2.1", VIP, 3, 1, quoted, ttl=1), "drop_ttl")

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("mode", ROUTED)
    def test_so_many_a_second(self, scene: Scene, hook: str, mode: str) -> None:
        self.serve(scene, mode)
        scene.settings(answers_per_second=2)
        packet = tcp(CLIENT, SERVICE, ttl=1)
        for reason in ("ttl_answered", "ttl_answered", "drop_answer_rate"):
            scene.refresh("answer_rate")
            scene.expect(hook, packet, reason)


# --------------------------------------------------------------------------- IP options


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("size", [4, 20, 24, 40])
class TestOptions:
    """A packet with so many bytes of IP options: the answer has none, an error quotes them."""

    def sent(self, size: int, transport: Packet, **fields: Any) -> bytes:
        options = [bytes([0x88, 4, 7, number]) for number in range(size // 4)]
        whole: dict[str, Any] = {"src": CLIENT_ADDRESS, "dst": VIP, "options": options, **fields}
        return ethernet(IP(**whole) / transport)

    def segment(self, size: int, kind: str, payload: bytes = b"", **fields: Any) -> bytes:
        transport = TCP(sport=CLIENT[1], dport=SERVICE[1], flags=kind, seq=5000, ack=700)
        return self.sent(size, transport / Raw(payload), **fields)

    @pytest.mark.parametrize("payload", [b"", b"odd", bytes(1000)])
    def test_no_flow(self, scene: Scene, hook: str, size: int, payload: bytes) -> None:
        scene.service("l4")
        scene.expect(hook, self.segment(size, "A", payload), "no_flow_reset", reset(700))

    @pytest.mark.parametrize("mode", [*STATELESS, "l4"])
    def test_no_node(self, scene: Scene, hook: str, size: int, mode: str) -> None:
        for protocol in ("tcp", "udp"):
            TestNoNode().empty(scene, mode, protocol)
        refused = "no_node_refused"
        scene.expect(hook, self.segment(size, "S", b"GET /"), refused, reset(0, 5006))
        for payload in (b"", b"odd", bytes(1000)):
            datagram = UDP(sport=CLIENT[1], dport=SERVICE[1]) / Raw(payload)
            packet = self.sent(size, datagram)
            scene.expect(hook, packet, refused, unreachable(packet))

    @pytest.mark.parametrize("mode", ["ipip", "gue"])
    def test_time_ran_out(self, scene: Scene, hook: str, size: int, mode: str) -> None:
        TestTimeExceeded().serve(scene, mode)
        packet = self.segment(size, "S", ttl=1)
        wanted = time_exceeded(packet, OWN_PUBLIC, CLIENT_ADDRESS)
        scene.expect(hook, packet, "ttl_answered", wanted)

    @pytest.mark.parametrize("mode", [*STATELESS, "l4"])
    def test_too_long(self, scene: Scene, hook: str, size: int, mode: str) -> None:
        TestTimeExceeded().serve(scene, mode)
        scene.seat(mtu=1280)
        packet = self.segment(size, "S", bytes(1300), flags="DF")
        fits = 1280 - {"ipip": 20, "gue": 32}.get(mode, 0)
        wanted = error(packet, ICMP(type=3, code=4, nexthopmtu=fits))
        scene.expect(hook, packet, "too_big_answered", wanted)


# --------------------------------------------------------------------------- for others


@pytest.mark.parametrize("hook", [*REQUEST_HOOKS, *REPLY_HOOKS])
@pytest.mark.parametrize("mode", [*STATELESS, "l4"])
@pytest.mark.parametrize(
    "to",
    ["02:00:00:00:00:0c", "02:00:00:00:01:0b", "03:00:00:00:00:0b", "0a:00:00:00:00:0b",
     "ff:ff:ff:ff:ff:ff", "01:00:5e:00:00:01"],
)  # fmt: skip
def test_a_frame_to_another_machine_passes(scene: Scene, hook: str, mode: str, to: str) -> None:
    """A bridge that floods shows it to all; whoever takes it sends it out once more."""
    name, flags = STATELESS.get(mode, (mode, 0))
    scene.service(name, flags=flags)
    packet = tcp(CLIENT, SERVICE)
    if hook in REPLY_HOOKS:
        scene.service("l4")
        packet = Connection(scene).establish().reply()
    known = len(scene.flows())
    scene.expect(hook, mac(to) + packet[6:], "pass_other_mac")
    assert len(scene.flows()) == known


# --------------------------------------------------------------------------- how many


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestRate:
    """What strangers can provoke is so much a second, for all of them together."""

    LIMIT = 3

    @pytest.mark.parametrize("what", ["no flow", "no node", "datagram"])
    def test_beyond_is_dropped_by_name(self, scene: Scene, hook: str, what: str) -> None:
        protocol = "udp" if what == "datagram" else "tcp"
        scene.service("l4", protocol=protocol, seats=[SEAT if what == "no flow" else 0])
        scene.settings(answers_per_second=self.LIMIT)
        packet = {
            "no flow": tcp(CLIENT, SERVICE, "A"),
            "no node": tcp(CLIENT, SERVICE),
            "datagram": udp(CLIENT, SERVICE),
        }[what]
        told = "no_flow_reset" if what == "no flow" else "no_node_refused"
        self.send(scene, hook, packet, [told] * self.LIMIT + ["drop_answer_rate"] * 3)
        scene.age("answer_rate", 1.1)
        scene.expect(hook, packet, told)

    def test_of_dead_nodes_too(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        connections = [
            Connection(scene, client=(CLIENT_ADDRESS, port)).establish() for port in range(1, 6)
        ]
        scene.seat(flags=DEAD_RESETS)
        scene.settings(answers_per_second=self.LIMIT)
        for number, connection in enumerate(connections):
            reason = "dead_node_reset" if number < self.LIMIT else "drop_answer_rate"
            self.send(scene, hook, connection.request(), [reason])

    def test_none_at_all(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.settings(answers_per_second=0)
        scene.expect(hook, tcp(CLIENT, SERVICE, "A"), "drop_answer_rate")

    def test_what_is_too_long_is_not_of_it(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        """Its sender would send it again and again."""
        scene.settings(answers_per_second=0)
        scene.seat(mtu=100)
        whole = IP(established.request("A", bytes(200))[14:])
        whole.flags, whole.chksum = "DF", None
        scene.expect(hook, ethernet(whole), "too_big_answered")

    def send(self, scene: Scene, hook: str, packet: bytes, reasons: list[str]) -> None:
        for reason in reasons:
            scene.refresh("answer_rate")
            scene.expect(hook, packet, reason)


# --------------------------------------------------------------------------- hairpin


@pytest.mark.parametrize("hook", REPLY_HOOKS)
class TestHairpin:
    """A node as a client, by the side of the nodes."""

    ASKING = (NODE[0], 40_000)

    @pytest.mark.parametrize("mode", [*STATELESS, "l4"])
    @pytest.mark.parametrize("flags", [OF_SERVICE, OF_SERVICE | FLOATING])
    def test_is_refused(self, scene: Scene, hook: str, mode: str, flags: int) -> None:
        name, service_flags = STATELESS.get(mode, (mode, 0))
        scene.service(name, flags=service_flags)
        scene.service(name, flags=service_flags, protocol="udp")
        scene.address(VIP, flags)
        asked = tcp(self.ASKING, SERVICE, "S", seq=5000)
        scene.expect(hook, asked, "hairpin_refused", reset(0, 5001, to=self.ASKING))
        asked = udp(self.ASKING, SERVICE, b"q")
        scene.expect(hook, asked, "hairpin_refused", unreachable(asked, to=NODE[0]))
        assert scene.flows() == []

    def test_only_of_a_service(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.address(VIP, OF_SERVICE)
        scene.expect(hook, tcp(self.ASKING, (VIP, 22)), "pass_no_flow")
        scene.expect(hook, udp(self.ASKING, SERVICE, b"q"), "pass_no_flow")
        scene.expect(hook, tcp(self.ASKING, (OWN_PRIVATE, SERVICE[1])), "pass_no_flow")

    def test_a_reset_is_not_answered(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.address(VIP, OF_SERVICE)
        scene.expect(hook, tcp(self.ASKING, SERVICE, "R"), "drop_no_flow")

    def test_so_many_a_second(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.address(VIP, OF_SERVICE)
        scene.settings(answers_per_second=0)
        scene.expect(hook, tcp(self.ASKING, SERVICE), "drop_answer_rate")


# --------------------------------------------------------------------------- sources


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("mode", [*STATELESS, "l4"])
@pytest.mark.parametrize("protocol", ["tcp", "udp"])
class TestSources:
    def serve(self, scene: Scene, mode: str, protocol: str) -> None:
        name, flags = STATELESS.get(mode, (mode, 0))
        scene.service(name, flags=flags, protocol=protocol)

    @pytest.mark.parametrize(
        "source",
        ["0.0.0.0", "0.1.2.3", "127.0.0.1", "127.255.0.1", "224.0.0.1", "239.1.1.1", "240.0.0.1",
         "255.255.255.255"],
    )  # fmt: skip
    def test_no_host_has_such_an_address(
        self, scene: Scene, hook: str, mode: str, protocol: str, source: str
    ) -> None:
        """RFC 1812, 5.3.7; RFC 6890."""
        self.serve(scene, mode, protocol)
        packet = (tcp if protocol == "tcp" else udp)((source, 4000), SERVICE)
        scene.expect(hook, packet, "drop_martian_source")
        assert scene.flows() == []

    @pytest.mark.parametrize(
        "source", ["1.0.0.1", "10.0.0.1", "126.255.255.255", "128.0.0.1", "223.255.255.255"]
    )
    def test_but_such_a_one(
        self, scene: Scene, hook: str, mode: str, protocol: str, source: str
    ) -> None:
        self.serve(scene, mode, protocol)
        packet = (tcp if protocol == "tcp" else udp)((source, 4000), SERVICE)
        reason = {"l2": "l2_forwarded", "l4": "l4_new_flow"}.get(mode, "l3_forwarded")
        scene.expect(hook, packet, reason)

    @pytest.mark.parametrize("flags", [OF_SERVICE, OF_SERVICE | FLOATING, 4, 0])
    def test_nor_has_a_client_one_of_ours(
        self, scene: Scene, hook: str, mode: str, protocol: str, flags: int
    ) -> None:
        """Another VIP, an SNAT address, the broadcast address of a network of ours: open nothing.

        In the stateless modes nothing is opened, and to ask would cost each packet a look-up.
        """
        self.serve(scene, mode, protocol)
        scene.address("10.80.0.255", flags)
        packet = (tcp if protocol == "tcp" else udp)(("10.80.0.255", 4000), SERVICE)
        reason = {"l2": "l2_forwarded", "l4": "drop_martian_source"}.get(mode, "l3_forwarded")
        scene.expect(hook, packet, reason)
        assert scene.flows() == []

    @pytest.mark.parametrize("side", ["public_address", "private_address"])
    def test_nor_this_lb_s_own(
        self, scene: Scene, hook: str, mode: str, protocol: str, side: str
    ) -> None:
        self.serve(scene, mode, protocol)
        scene.settings(**{side: address("10.80.0.77")})
        packet = (tcp if protocol == "tcp" else udp)(("10.80.0.77", 4000), SERVICE)
        reason = {"l2": "l2_forwarded", "l4": "drop_martian_source"}.get(mode, "l3_forwarded")
        scene.expect(hook, packet, reason)
        assert scene.flows() == []

    def test_the_vip_writes_to_nobody(
        self, scene: Scene, hook: str, mode: str, protocol: str
    ) -> None:
        self.serve(scene, mode, protocol)
        packet = (tcp if protocol == "tcp" else udp)((VIP, 4000), SERVICE)
        scene.expect(hook, packet, "drop_source_is_vip")
        assert scene.flows() == []


# --------------------------------------------------------------------------- for nobody


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestNoService:
    """At a floating address nobody listens but services: no host has it."""

    ELSEWHERE = (VIP, 22)

    @pytest.mark.parametrize("make", [tcp, udp])
    def test_dropped_by_name(self, scene: Scene, hook: str, make: Any) -> None:
        scene.service("l4")
        scene.address(VIP, OF_SERVICE | FLOATING)
        scene.expect(hook, make(CLIENT, self.ELSEWHERE), "drop_no_service")
        scene.expect(hook, tcp(CLIENT, SERVICE), "l4_new_flow")

    @pytest.mark.parametrize("make", [tcp, udp])
    def test_the_hosts_own_address_is_the_hosts(self, scene: Scene, hook: str, make: Any) -> None:
        scene.service("l4")
        scene.address(VIP, OF_SERVICE)
        scene.expect(hook, make(CLIENT, self.ELSEWHERE), "pass_not_for_service")
        scene.expect(hook, make(CLIENT, ("10.80.0.7", 22)), "pass_not_for_service")

    @pytest.mark.parametrize("kind", [3, 8, 11])
    def test_icmp_about_nothing_here(self, scene: Scene, hook: str, kind: int) -> None:
        scene.service("l4")
        packet = icmp("192.0.2.1", VIP, kind, 0, tcp((VIP, 22), CLIENT, "A")[14:])
        scene.expect(hook, packet, "pass_icmp_other")
        scene.address(VIP, OF_SERVICE | FLOATING)
        scene.expect(hook, packet, "drop_no_service")


@pytest.mark.parametrize("hook", REPLY_HOOKS)
class TestStrays:
    """From a node's port to a port of the slice, and of no flow: the host's stack would answer it
    with a RST, which may end a living connection. What is the host's own passes.
    """

    PORT = FIRST_PORT + 7

    @pytest.mark.parametrize("flags", ["A", "PA", "FA", "R", "SA"])
    @pytest.mark.parametrize("port", [FIRST_PORT, FIRST_PORT + 7, FIRST_PORT + PORTS - 1])
    def test_a_nodes_is_dropped_by_name(
        self, scene: Scene, hook: str, flags: str, port: int
    ) -> None:
        scene.service("l4")
        scene.snat_slice()
        scene.expect(hook, tcp(NODE, (SNAT, port), flags), "drop_no_flow")

    def test_its_datagram_too(self, scene: Scene, hook: str) -> None:
        scene.service("l4", protocol="udp")
        scene.snat_slice()
        scene.expect(hook, udp(NODE, (SNAT, self.PORT)), "drop_no_flow")

    def test_its_error_too(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.snat_slice()
        quoted = tcp((SNAT, self.PORT), NODE, "A")[14:]
        scene.expect(hook, icmp(NODE[0], SNAT, 3, 3, quoted), "drop_no_flow")

    @pytest.mark.parametrize("port", [650, 660, 669])
    def test_at_a_low_port_too(self, scene: Scene, hook: str, port: int) -> None:
        scene.service("l4")
        scene.snat_slice()
        slices = {"snat_first_port": FIRST_PORT, "snat_ports": PORTS}
        scene.address(SNAT, OF_SNAT, **slices, low_first_port=650, low_ports=20)
        scene.expect(hook, tcp(NODE, (SNAT, port), "A"), "drop_no_flow")
        for outside in (649, 670):
            scene.expect(hook, tcp(NODE, (SNAT, outside), "A"), "pass_no_flow")

    @pytest.mark.parametrize(
        ("source", "port"),
        [
            (NODE, 7070),  # the node's agent, if it had that port
            ((NODE[0], 45_000), 7070),
            (NODE, 22),
            (NODE, FIRST_PORT - 1),
            (NODE, FIRST_PORT + PORTS),
            ((NODE[0], 22), FIRST_PORT + 7),  # the host's own client, in the slice by chance
            (("10.81.0.99", 80), FIRST_PORT + 7),
        ],
    )
    @pytest.mark.parametrize("make", [tcp, udp])
    def test_the_hosts_own_passes(
        self, scene: Scene, hook: str, source: tuple[str, int], port: int, make: Any
    ) -> None:
        scene.service("l4")
        scene.snat_slice()
        scene.expect(hook, make(source, (SNAT, port)), "pass_no_flow")

    def test_at_a_floating_address_there_is_no_host(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        slices = {"snat_first_port": FIRST_PORT, "snat_ports": PORTS}
        scene.address(SNAT, OF_SNAT | FLOATING, **slices)
        scene.expect(hook, tcp((NODE[0], 22), (SNAT, self.PORT), "A"), "drop_no_flow")

    def test_an_address_of_nobody_passes(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.snat_slice()
        scene.expect(hook, tcp(NODE, ("10.81.0.11", self.PORT), "A"), "pass_no_flow")

    def test_what_has_a_flow_is_no_stray(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.snat_slice()
        connection = Connection(scene).establish()
        scene.expect(hook, connection.reply("PA", b"x"), "l4_reply")
        scene.give_away(REPLY)
        scene.expect(hook, connection.reply("PA", b"x"), "drop_no_flow")


def test_a_datagram_is_refused_on_one_arm_too(one_arm: Scene) -> None:
    one_arm.service("l4", protocol="udp", seats=[0])
    one_arm.seat(SEAT, ifindex=PUBLIC)
    packet = udp(CLIENT, SERVICE, b"q")
    one_arm.expect("tc_public", packet, "no_node_refused", unreachable(packet))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestStraysByTheOtherSide:
    """A node's answer that comes by the public interface."""

    PORT = FIRST_PORT + 7

    @pytest.mark.parametrize("make", [tcp, udp])
    def test_a_nodes_is_dropped_by_name(self, scene: Scene, hook: str, make: Any) -> None:
        scene.service("l4", protocol=make.__name__)
        scene.snat_slice()
        scene.expect(hook, make(NODE, (SNAT, self.PORT)), "drop_no_flow")

    def test_also_of_a_flow(self, scene: Scene, hook: str) -> None:
        scene.service("l4")
        scene.snat_slice()
        connection = Connection(scene).establish()
        scene.expect(hook, connection.reply("PA", b"x"), "drop_no_flow")
        scene.expect("tc_private", connection.reply("PA", b"x"), "l4_reply")

    @pytest.mark.parametrize(
        ("source", "port"),
        [
            (NODE, 7070),
            ((NODE[0], 22), FIRST_PORT + 7),
            (("10.81.0.99", 80), FIRST_PORT + 7),
            (NODE, FIRST_PORT + PORTS),
        ],
    )
    @pytest.mark.parametrize("make", [tcp, udp])
    def test_the_hosts_own_passes(
        self, scene: Scene, hook: str, source: tuple[str, int], port: int, make: Any
    ) -> None:
        scene.service("l4")
        scene.snat_slice()
        scene.expect(hook, make(source, (SNAT, port)), "pass_not_for_service")
