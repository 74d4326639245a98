"""L3: the client's packet travels whole, in an outer header of IP in IP or of GUE."""

from __future__ import annotations

import sys

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.l2 import Ether
from scapy.packet import Raw

from tests.bpf.harness import LB_MAC, PEER_MAC, icmp, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    GUE,
    PUBLIC,
    REQUEST_HOOKS,
    ROUTER,
    SERVICE,
    SNAT,
    VIP,
    Outcome,
    Scene,
    address,
    routed,
    to_node,
    wrapped,
)

ENCAPSULATIONS = {"ipip": 0, "gue": GUE}
OVERHEAD = {"ipip": 20, "gue": 32}

pytestmark = [
    pytest.mark.parametrize("hook", REQUEST_HOOKS),
    pytest.mark.parametrize("encap", ENCAPSULATIONS),
]


def expected(hook: str, encap: str, packet: bytes, outcome: Outcome) -> bytes:
    """With GUE the source port is the flow's; all that holds of any is its range."""
    if encap == "ipip":
        return to_node(hook, wrapped(routed(packet)))
    port = int.from_bytes(outcome.packet[34:36])
    assert port >= 0xC000
    return to_node(hook, wrapped(routed(packet), gue_port=port))


def forward(scene: Scene, hook: str, encap: str, packet: bytes) -> Outcome:
    outcome = scene.expect(hook, packet, "l3_forwarded")
    assert outcome.packet == expected(hook, encap, packet, outcome), repr(outcome.scapy)
    return outcome


FORWARDED = {
    "SYN": tcp(CLIENT, SERVICE),
    "data": tcp(CLIENT, SERVICE, "PA", b"some bytes"),
    "RST": tcp(CLIENT, SERVICE, "R"),
    "odd length": tcp(CLIENT, SERVICE, "PA", b"odd"),
    "dscp and ecn are copied outward": tcp(CLIENT, SERVICE, tos=0xBB),
    "the shortest time to live": tcp(CLIENT, SERVICE, ttl=2),
    "the longest": tcp(CLIENT, SERVICE, ttl=255),
    "ip options": udp(CLIENT, SERVICE, b"x", options=[b"\x01\x01\x01\x00"]),
    "padded to Ethernet's least": tcp(CLIENT, SERVICE) + bytes(6),
    "wrong checksum inside": tcp(CLIENT, SERVICE, "PA", b"data")[:-1] + b"!",
}


@pytest.mark.parametrize("name", FORWARDED)
def test_wrapped_and_nothing_inside_changed_but_the_time_to_live(
    scene: Scene, hook: str, encap: str, name: str
) -> None:
    for protocol in ("tcp", "udp"):
        scene.service("l3", flags=ENCAPSULATIONS[encap], protocol=protocol)
    forward(scene, hook, encap, FORWARDED[name])


def test_udp_without_a_checksum(scene: Scene, hook: str, encap: str) -> None:
    scene.service("l3", flags=ENCAPSULATIONS[encap], protocol="udp")
    packet = bytearray(udp(CLIENT, SERVICE, b"q"))
    packet[40:42] = b"\0\0"
    forward(scene, hook, encap, bytes(packet))


def test_outer_sources_are_spread_by_flow(scene: Scene, hook: str, encap: str) -> None:
    """So that the node's card spreads flows over its queues: by address, or by GUE's port."""
    scene.service("l3", flags=ENCAPSULATIONS[encap])
    scene.settings(outer_prefix=address("172.20.0.0"))
    seen = []
    for port in range(40000, 40050):
        for flags in ("S", "A"):
            packet = tcp((CLIENT_ADDRESS, port), SERVICE, flags)
            outer = scene.expect(hook, packet, "l3_forwarded").scapy[IP]
            seen.append((outer.src, outer.sport if encap == "gue" else 0))
            prefix = "172.20." if encap == "ipip" else SNAT
            assert outer.src.startswith(prefix)
    assert seen[::2] == seen[1::2], "all packets of a flow look alike"
    assert len(set(seen)) >= 48, "two flows of fifty rarely do"


def test_an_outer_checksum_whose_carry_carries_again(scene: Scene, hook: str, encap: str) -> None:
    """The node's address is chosen so that adding the carry to the sum gives a carry once more."""
    scene.service("l3", flags=ENCAPSULATIONS[encap])
    packet = tcp(CLIENT, SERVICE)
    header = scene.send(hook, packet).packet[14:34]
    places = (0, 2, 4, 6, 8, 12, 14, 16)  # all but the checksum and the address's last half
    others = sum(int.from_bytes(header[at : at + 2], sys.byteorder) for at in places)
    last = (0xFFFF - others & 0xFFFF).to_bytes(2, sys.byteorder)
    node = f"10.81.{last[0]}.{last[1]}"
    scene.seat(at=(node, 80))
    outcome = scene.expect(hook, packet, "l3_forwarded")
    port = int.from_bytes(outcome.packet[34:36]) if encap == "gue" else None
    wanted = wrapped(routed(packet), gue_port=port, node=node)
    assert outcome.packet == to_node(hook, wanted)


class TestTooLong:
    def test_longest_that_fits(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        size = 1500 - OVERHEAD[encap] - 40
        forward(scene, hook, encap, tcp(CLIENT, SERVICE, "A", bytes(size)))

    @pytest.mark.parametrize("flags", ["DF", "", "MF"])
    @pytest.mark.parametrize("size", [0, 1, 500])
    def test_answered(self, scene: Scene, hook: str, encap: str, size: int, flags: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap], protocol="udp")
        longest = 1500 - OVERHEAD[encap]
        packet = udp(CLIENT, SERVICE, bytes(longest - 28 + 1 + size), flags=flags, tos=4)
        scene.expect(hook, packet, "too_big_answered", answer(packet, longest))

    def test_an_error_is_never_answered_by_an_error(
        self, scene: Scene, hook: str, encap: str
    ) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        quoted = tcp(SERVICE, CLIENT, "A", bytes(1400))[14:]
        packet = icmp(ROUTER, VIP, 3, 1, quoted + bytes(60), flags="DF")
        scene.expect(hook, packet, "drop_too_big")

    def test_jumbo_frames(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        scene.seat(mtu=9000)
        size = 3000  # BPF_PROG_TEST_RUN has one page for XDP
        forward(scene, hook, encap, tcp(CLIENT, SERVICE, "A", bytes(size)))


def answer(packet: bytes, mtu: int) -> bytes:
    error = ICMP(type=3, code=4, nexthopmtu=mtu) / Raw(packet[14:42])
    whole = IP(src=VIP, dst=CLIENT_ADDRESS, id=0, ttl=64) / error
    return bytes(Ether(src=LB_MAC, dst=PEER_MAC) / whole)


@pytest.mark.parametrize("vlans", [(5,), (5, 6)])
class TestTags:
    def test_coming_off(self, scene: Scene, hook: str, encap: str, vlans: tuple[int, ...]) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        packet = tcp(CLIENT, SERVICE, vlans=vlans)
        if hook == "xdp_public":
            scene.expect(hook, packet, "slow_vlan")
        elif len(vlans) == 1:
            outcome = scene.expect(hook, packet, "l3_forwarded")
            assert outcome.packet == expected(hook, encap, tcp(CLIENT, SERVICE), outcome)

    def test_on_the_same_interface(
        self, scene: Scene, hook: str, encap: str, vlans: tuple[int, ...]
    ) -> None:
        """XDP would have to move the tags. In TC the outer tag lies in the sk_buff, out of the way;
        BPF_PROG_TEST_RUN leaves it among the bytes, where the kernel inserts no header.
        """
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        scene.seat(ifindex=PUBLIC)
        packet = tcp(CLIENT, SERVICE, vlans=vlans)
        reason = "slow_vlan" if hook == "xdp_public" else "drop_rewrite_failed"
        scene.expect(hook, packet, reason)


class TestTheWayToTheNode:
    PACKET = tcp(CLIENT, SERVICE)

    def test_no_node(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap], seats=[0])
        scene.expect(hook, self.PACKET, "no_node_refused")

    def test_next_hop_unresolved(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        scene.seat(flags=2)
        if hook == "xdp_public":
            scene.expect(hook, self.PACKET, "slow_next_hop")
        else:
            forward(scene, hook, encap, self.PACKET)

    def test_no_route(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        scene.seat(flags=2, ifindex=0)
        reason = "slow_next_hop" if hook == "xdp_public" else "drop_no_route"
        scene.expect(hook, self.PACKET, reason)

    def test_source_is_the_vip(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        scene.expect(hook, tcp((VIP, 999), SERVICE), "drop_source_is_vip")

    def test_errors_are_wrapped_whole(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        packet = icmp(ROUTER, VIP, 3, 4, tcp(SERVICE, CLIENT, "A", bytes(99))[14:])
        outcome = scene.expect(hook, packet, "icmp_to_node")
        assert outcome.packet == expected(hook, encap, packet, outcome)

    def test_echo_passes(self, scene: Scene, hook: str, encap: str) -> None:
        scene.service("l3", flags=ENCAPSULATIONS[encap])
        scene.expect(hook, icmp(CLIENT_ADDRESS, VIP), "pass_icmp_other")
