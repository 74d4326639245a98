"""A device that takes no frames from XDP: what would leave by it is passed on, and TC sends it.

`Scene.expect` sees to it that what is passed is byte for byte what came.
"""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from tests.bpf.harness import SMALL_TABLES, Rig, ethernet, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    GUE,
    NODE,
    PRIVATE,
    PUBLIC,
    RESOLVED,
    SEAT_BY_TC,
    SERVICE,
    SNAT,
    UP,
    VIP,
    Connection,
    Scene,
)

BY_TC = RESOLVED | UP | SEAT_BY_TC
MODES = {"l2": ("l2", 0), "ipip": ("l3", 0), "gue": ("l3", GUE), "l4": ("l4", 0)}
FORWARDED = {
    "l2": "l2_forwarded",
    "ipip": "l3_forwarded",
    "gue": "l3_forwarded",
    "l4": "l4_new_flow",
}


@pytest.mark.parametrize("kind", MODES)
class TestTowardsTheNode:
    def test_xdp_passes_and_tc_sends(self, scene: Scene, kind: str) -> None:
        mode, flags = MODES[kind]
        scene.service(mode, flags=flags)
        scene.seat(flags=BY_TC)
        packet = tcp(CLIENT, SERVICE)
        scene.expect("xdp_public", packet, "slow_output")
        assert scene.flows() == [], "what XDP passes leaves no trace"
        scene.expect("tc_public", packet, FORWARDED[kind])

    def test_an_unresolved_one_is_called_that(self, scene: Scene, kind: str) -> None:
        mode, flags = MODES[kind]
        scene.service(mode, flags=flags)
        scene.seat(flags=UP | SEAT_BY_TC)
        scene.expect("xdp_public", tcp(CLIENT, SERVICE), "slow_next_hop")


def test_an_established_flow_goes_over_to_tc_and_back(scene: Scene) -> None:
    scene.service("l4")
    connection = Connection(scene).establish()
    for flags, hook, reason in (
        (BY_TC, "xdp_public", "slow_output"),
        (BY_TC, "tc_public", "l4_established"),
        (RESOLVED | UP, "xdp_public", "l4_established"),
    ):
        scene.seat(flags=flags)
        scene.expect(hook, connection.request("PA", b"x"), reason)


class TestTowardsTheClient:
    def test_replies(self, scene: Scene) -> None:
        scene.service("l4")
        connection = Connection(scene).establish()
        scene.settings(public_by_tc=1)
        scene.expect("xdp_reply", connection.reply("PA", b"x"), "slow_output")
        scene.expect("tc_private", connection.reply("PA", b"x"), "l4_reply")
        scene.settings(private_by_tc=1)
        scene.expect("xdp_reply", connection.reply("PA", b"x"), "l4_reply")

    def test_errors_about_what_the_client_sent(self, scene: Scene) -> None:
        scene.service("l4", protocol="udp")
        source = (SNAT, scene.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
        quoted = udp(source, NODE, b"q")[14:]
        error = ethernet(IP(src=NODE[0], dst=SNAT) / ICMP(type=3, code=3) / Raw(quoted))
        scene.settings(public_by_tc=1)
        scene.expect("xdp_reply", error, "slow_output")
        scene.expect("tc_private", error, "icmp_to_client")

    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_answers_to_a_client(self, scene: Scene, protocol: str) -> None:
        scene.service("l2", protocol=protocol, seats=[0])
        packet = (tcp if protocol == "tcp" else udp)(CLIENT, SERVICE)
        scene.settings(public_by_tc=1)
        scene.expect("xdp_public", packet, "slow_output")
        scene.expect("tc_public", packet, "no_node_refused")
        scene.settings(private_by_tc=1)
        scene.expect("xdp_public", packet, "no_node_refused")

    def test_answers_to_a_node(self, scene: Scene) -> None:
        """A reply too long for the client's side is answered on the private one."""
        scene.service("l4")
        connection = Connection(scene).establish()
        ways = {"public_ifindex": PRIVATE, "private_ifindex": PUBLIC, "public_mtu": 600}
        long = connection.reply("PA", bytes(1000))
        scene.settings(**ways, private_by_tc=1)
        scene.expect("xdp_reply", long, "slow_output")
        scene.settings(**ways)
        scene.expect("xdp_reply", long, "too_big_answered")


@pytest.fixture(scope="session")
def generic() -> Scene:
    return Scene(Rig({**SMALL_TABLES, "GALE_GENERIC_XDP": 1}))


@pytest.mark.parametrize("kind", MODES)
def test_generic_xdp_leaves_it_to_tc_what_is_too_long(generic: Scene, kind: str) -> None:
    """It may be many segments that the kernel has merged."""
    generic.forget()
    mode, flags = MODES[kind]
    generic.service(mode, flags=flags)
    generic.expect("xdp_public", tcp(CLIENT, SERVICE), FORWARDED[kind])
    payload = bytes(1600)
    generic.expect("xdp_public", tcp(CLIENT, SERVICE, "PA", payload), "slow_merged")


def test_so_it_does_with_replies(generic: Scene) -> None:
    generic.forget()
    generic.service("l4")
    connection = Connection(generic).establish()
    generic.expect("xdp_reply", connection.reply("PA", bytes(1000)), "l4_reply")
    generic.expect("xdp_reply", connection.reply("PA", bytes(1600)), "slow_merged")


def test_what_is_for_nobody_is_passed_for_its_own_reason(scene: Scene) -> None:
    scene.service("l2")
    scene.seat(flags=BY_TC)
    scene.settings(public_by_tc=1, private_by_tc=1)
    scene.expect("xdp_public", tcp(CLIENT, (VIP, 9)), "pass_not_for_service")
    scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 1), ("192.0.2.1", 9)), "pass_not_for_service")
