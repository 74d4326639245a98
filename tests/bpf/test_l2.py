"""L2: the packet goes to its node's MAC address, and not one other byte of it changes."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP
from scapy.layers.l2 import ARP, Ether
from scapy.packet import Raw

from tests.bpf.harness import LB_MAC, PEER_MAC, ethernet, icmp, tcp, udp
from tests.bpf.scene import (
    AFFINITY_CLIENT,
    CLIENT,
    CLIENT_ADDRESS,
    PORT,
    PUBLIC,
    REQUEST_HOOKS,
    ROUTER,
    SEAT,
    SEED,
    SERVICE,
    VIP,
    Scene,
    address,
    to_node,
)

FLAGS = ["S", "SA", "A", "PA", "FA", "F", "R", "RA", "SEC", "UA", "SF", "FSRPAU", ""]
NOP_OPTIONS = [b"\x01\x01\x01\x00"]
RECORD_ROUTE = [b"\x07\x27\x04" + bytes(36) + b"\x00"]


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("flags", FLAGS)
def test_every_kind_of_tcp_segment(scene: Scene, hook: str, flags: str) -> None:
    scene.service("l2")
    packet = tcp(CLIENT, SERVICE, flags, b"some bytes")
    scene.expect(hook, packet, "l2_forwarded", to_node(hook, packet))


FORWARDED = {
    "udp": udp(CLIENT, SERVICE, b"question"),
    "udp, empty": udp(CLIENT, SERVICE),
    "udp without a checksum": ethernet(IP(udp(CLIENT, SERVICE, b"q")[14:40] + b"\0\0q")),
    "time to live 1 is the node's business": udp(CLIENT, SERVICE, b"q", ttl=1),
    "ip options": udp(CLIENT, SERVICE, b"q", options=NOP_OPTIONS),
    "as many ip options as fit": udp(CLIENT, SERVICE, b"q", options=RECORD_ROUTE),
    "dscp and ecn": udp(CLIENT, SERVICE, b"q", tos=0xBB),
    "as long as the way allows": udp(CLIENT, SERVICE, bytes(1500 - 28), flags="DF"),
    "padded to Ethernet's least": udp(CLIENT, SERVICE, b"q") + bytes(17),
    "evil bit": udp(CLIENT, SERVICE, b"q", flags=4),
    "wrong checksums are passed on wrong": udp(CLIENT, SERVICE, b"q")[:-1] + b"!",
}


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", FORWARDED)
def test_forwarded_with_nothing_but_the_macs_changed(scene: Scene, hook: str, name: str) -> None:
    scene.service("l2", protocol="udp")
    scene.expect(hook, FORWARDED[name], "l2_forwarded", to_node(hook, FORWARDED[name]))


NOT_OURS = {
    "another port": (tcp(CLIENT, (VIP, PORT + 1)), "pass_not_for_service"),
    "another address": (tcp(CLIENT, ("10.80.0.101", PORT)), "pass_not_for_service"),
    "another protocol at the same port": (udp(CLIENT, SERVICE), "pass_not_for_service"),
    "SCTP": (
        ethernet(IP(src=CLIENT_ADDRESS, dst=VIP, proto=132) / Raw(bytes(20))),
        "pass_not_for_service",
    ),
    "echo request to the VIP": (icmp(CLIENT_ADDRESS, VIP, 8), "pass_icmp_other"),
    "echo reply": (icmp(CLIENT_ADDRESS, VIP, 0), "pass_icmp_other"),
    "redirect": (icmp(CLIENT_ADDRESS, VIP, 5, 1, bytes(28)), "pass_icmp_other"),
    "ARP": (bytes(Ether(src=PEER_MAC, dst=LB_MAC) / ARP()), "pass_not_ipv4"),
    "IPv6": (bytes(Ether(dst=LB_MAC, type=0x86DD) / Raw(b"\x60" + bytes(59))), "pass_not_ipv4"),
    "three tags": (tcp(CLIENT, SERVICE, vlans=(5, 6, 7)), "pass_not_ipv4"),
    "an unknown ethertype": (
        bytes(Ether(dst=LB_MAC, type=0x88B5) / Raw(bytes(50))),
        "pass_not_ipv4",
    ),
    "802.3 length": (bytes(Ether(dst=LB_MAC, type=38) / Raw(bytes(50))), "pass_not_ipv4"),
}


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", NOT_OURS)
def test_what_is_not_for_a_service_passes(scene: Scene, hook: str, name: str) -> None:
    scene.service("l2")
    packet, reason = NOT_OURS[name]
    scene.expect(hook, packet, reason)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestTheWayToTheNode:
    PACKET = tcp(CLIENT, SERVICE)

    def test_no_node_in_the_ring(self, scene: Scene, hook: str) -> None:
        scene.service("l2", seats=[0])
        scene.expect(hook, self.PACKET, "no_node_refused")

    def test_next_hop_unresolved(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.seat(flags=2)
        xdp = hook == "xdp_public"
        scene.expect(hook, self.PACKET, "slow_next_hop" if xdp else "l2_forwarded", self.PACKET)

    def test_no_route(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.seat(flags=2, ifindex=0)
        reason = "slow_next_hop" if hook == "xdp_public" else "drop_no_route"
        scene.expect(hook, self.PACKET, reason)

    def test_ring_names_a_node_that_is_not_up_any_more(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.seat(flags=1)
        scene.expect(hook, self.PACKET, "l2_forwarded", to_node(hook, self.PACKET))

    def test_source_is_the_vip(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.expect(hook, tcp((VIP, 4000), SERVICE), "drop_source_is_vip")

    def test_programs_without_settings(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.settings(public_ifindex=0)
        scene.expect(hook, self.PACKET, "pass_not_ready")

    def test_l2_alone_pays_for_no_conntrack(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.settings(l4_services=0)
        scene.expect(hook, self.PACKET, "l2_forwarded")

    def test_packets_bytes_and_flows_are_counted_at_the_seat(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.send(hook, self.PACKET)
        scene.send(hook, tcp(CLIENT, SERVICE, "A", bytes(100)))
        assert scene.counted_at_seat() == {
            "packets_in": 2,
            "bytes_in": 2 * 54 + 100,
            "flows": 1,
        }


@pytest.mark.parametrize("vlans", [(5,), (5, 6)])
class TestTags:
    def test_xdp_leaves_them_to_tc_if_they_must_come_off(
        self, scene: Scene, vlans: tuple[int, ...]
    ) -> None:
        scene.service("l2")
        scene.expect("xdp_public", tcp(CLIENT, SERVICE, vlans=vlans), "slow_vlan")

    def test_xdp_keeps_them_on_the_same_interface(
        self, scene: Scene, vlans: tuple[int, ...]
    ) -> None:
        scene.service("l2")
        scene.seat(ifindex=PUBLIC)
        packet = tcp(CLIENT, SERVICE, vlans=vlans)
        scene.expect("xdp_public", packet, "l2_forwarded", to_node("xdp_public", packet))

    def test_tc_takes_off_what_it_can(self, scene: Scene, vlans: tuple[int, ...]) -> None:
        scene.service("l2")
        # The second tag moves to the sk_buff, which BPF_PROG_TEST_RUN does not show.
        scene.expect(
            "tc_public",
            tcp(CLIENT, SERVICE, vlans=vlans),
            "l2_forwarded",
            tcp(CLIENT, SERVICE),
        )


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestTooLong:
    """A node's way with a smaller MTU than the client's."""

    @pytest.mark.parametrize("flags", ["DF", ""])
    def test_answered_whether_it_may_be_cut_or_not(
        self, scene: Scene, hook: str, flags: str
    ) -> None:
        scene.service("l2")
        scene.seat(mtu=1280)
        packet = _flagged(1241, flags)
        out = scene.send(hook, packet)
        assert out.reason == "too_big_answered"
        assert out.packet == answer(packet, 1280)

    def test_longest_that_fits(self, scene: Scene, hook: str) -> None:
        scene.service("l2")
        scene.seat(mtu=1280)
        scene.expect(hook, _flagged(1240, "DF"), "l2_forwarded")

    def test_the_first_fragment_of_what_its_sender_cut(self, scene: Scene, hook: str) -> None:
        """Cut for a wider way than there is: with the answer the next one is cut for this one."""
        scene.service("l2", protocol="udp")
        scene.seat(mtu=1280)
        packet = udp(CLIENT, SERVICE, bytes(1256), flags="MF")
        scene.expect(hook, packet, "too_big_answered", answer(packet, 1280))


def _flagged(size: int, flags: str) -> bytes:
    segment = TCP(sport=CLIENT[1], dport=PORT, flags="A") / Raw(bytes(size))
    return ethernet(IP(src=CLIENT_ADDRESS, dst=VIP, flags=flags) / segment)


def answer(packet: bytes, mtu: int) -> bytes:
    """Fragmentation needed, from the VIP to the client, quoting 28 bytes (RFC 792, RFC 1191)."""
    error = ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(packet[14:42])
    whole = IP(src=VIP, dst=CLIENT_ADDRESS, id=0, ttl=64) / error
    return bytes(Ether(src=LB_MAC, dst=PEER_MAC) / whole)


class TestSlots:
    """Which slot a flow takes: an independent calculation of the keyed hash."""

    def test_of_flows(self, scene: Scene) -> None:
        self._spread(scene, 0)

    def test_by_the_clients_address_alone(self, scene: Scene) -> None:
        self._spread(scene, AFFINITY_CLIENT)

    def _spread(self, scene: Scene, flags: int) -> None:
        seats = [3, 4, SEAT, 6, 7]
        scene.service("l2", flags=flags, seats=seats)
        for port in range(40000, 40040):
            client = (f"192.0.2.{port % 3}", port)
            slot = _slot(client, flags)
            before = scene.counted_at_seat(seats[slot % 5])
            scene.send("xdp_public", tcp(client, SERVICE, "A"))
            after = scene.counted_at_seat(seats[slot % 5])
            assert after["packets_in"] == before.get("packets_in", 0) + 1

    def test_errors_follow_their_flow(self, scene: Scene) -> None:
        seats = [3, 4, SEAT, 6, 7]
        scene.service("l2", seats=seats)
        for port in range(40000, 40020):
            quoted = tcp(SERVICE, (CLIENT_ADDRESS, port), "A", bytes(9))[14:42]
            scene.expect("xdp_public", icmp(ROUTER, VIP, 3, 4, quoted), "icmp_to_node")
            seat = seats[_slot((CLIENT_ADDRESS, port), 0) % 5]
            before = scene.counted_at_seat(seat)["packets_in"]
            scene.send("xdp_public", tcp((CLIENT_ADDRESS, port), SERVICE, "A"))
            assert scene.counted_at_seat(seat)["packets_in"] == before + 1


def _slot(client: tuple[str, int], flags: int) -> int:
    mask = (1 << 64) - 1

    def swapped(port: int) -> int:
        return int.from_bytes(port.to_bytes(2, "big"), "little")

    value = address(client[0]) << 32
    if not flags & AFFINITY_CLIENT:
        value |= swapped(client[1]) << 16 | swapped(PORT)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        value ^= SEED
        value = (value ^ value >> shift) * factor & mask
    value ^= value >> 31
    return (value >> 32) * 65537 >> 32
