"""A machine that is an LB and a node: what it sends to itself, and its own answers.

`Scene.expect` sees to it that what is passed is byte for byte what came.
"""

from __future__ import annotations

import pytest
from scapy.layers.l2 import ARP, Ether

from tests.bpf.harness import LB_MAC, TcVerdict, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    GUE,
    NODE,
    NODE_MAC,
    OF_THIS_NODE,
    PRIVATE_SIDE,
    RESOLVED,
    SEAT_BY_TC,
    SEAT_OWN,
    SERVICE,
    SNAT,
    UP,
    Connection,
    Scene,
)

OWN = RESOLVED | UP | SEAT_BY_TC | SEAT_OWN
FOR_EVER, LONG_AGO = 2**63, 1
STATELESS = {"l2": ("l2", 0), "ipip": ("l3", 0), "gue": ("l3", GUE)}


@pytest.mark.parametrize("kind", STATELESS)
def test_a_client_s_packet_lies_there_as_the_host_takes_it(scene: Scene, kind: str) -> None:
    mode, flags = STATELESS[kind]
    scene.service(mode, flags=flags)
    scene.seat(flags=OWN)
    scene.expect("xdp_public", tcp(CLIENT, SERVICE), "slow_output")
    scene.expect("tc_public", tcp(CLIENT, SERVICE), "pass_own_node")
    assert scene.counted_at_seat() == {"packets_in": 1, "bytes_in": 54, "flows": 1}


@pytest.mark.parametrize("kind", STATELESS)
def test_all_fragments_of_a_datagram_are_the_host_s(scene: Scene, kind: str) -> None:
    mode, flags = STATELESS[kind]
    scene.service(mode, flags=flags, protocol="udp")
    scene.seat(flags=OWN)
    first = udp(CLIENT, SERVICE, bytes(64), id=7, flags="MF")
    later = udp(CLIENT, SERVICE, bytes(64), id=7, frag=9)
    scene.expect("tc_public", first, "pass_own_node")
    scene.expect("tc_public", later, "pass_own_node")


def test_in_l4_it_comes_in_once_more_translated(scene: Scene) -> None:
    scene.service("l4")
    scene.seat(flags=OWN)
    packet = tcp(CLIENT, SERVICE, "S", seq=100)
    scene.expect("xdp_public", packet, "slow_output")
    outcome = scene.expect("tc_public", packet, "l4_new_flow")
    seen = Ether(outcome.packet)
    assert (seen.dst, seen["IP"].src, seen["IP"].dst) == (NODE_MAC, SNAT, NODE[0])


# --------------------------------------------------------------------------- its own answers


def answered(scene: Scene, to_mac: str) -> tuple[Connection, bytes]:
    """A connection whose node is this machine, and what the host answers, to a neighbour's MAC."""
    scene.service("l4")
    scene.seat(flags=OWN)
    scene.snat_slice()
    connection = Connection(scene)
    outcome = scene.expect("tc_public", tcp(CLIENT, SERVICE, "S", seq=100), "l4_new_flow")
    connection.source = (SNAT, outcome.ports[0])
    frame = Ether(connection.reply("SA", seq=500, ack=101))
    frame.src, frame.dst = LB_MAC, to_mac
    return connection, bytes(frame)


@pytest.mark.parametrize("until_ns", [FOR_EVER, LONG_AGO])
def test_what_the_host_answers_goes_to_the_client(scene: Scene, until_ns: int) -> None:
    """Claimed here, or sent to this LB all the same."""
    connection, frame = answered(scene, LB_MAC)
    scene.claim(SNAT, until_ns, PRIVATE_SIDE)
    outcome = scene.expect("tc_own", frame, "l4_reply")
    wanted = Ether(connection.reply_out("SA", seq=500, ack=101))
    assert bytes(Ether(outcome.packet).payload) == bytes(wanted.payload)


def test_what_is_claimed_here_is_taken_whatever_the_host_s_neighbour_table_says(
    scene: Scene,
) -> None:
    """What leaves a host is none of another's; a test run takes such a frame for that."""
    _, frame = answered(scene, NODE_MAC)
    scene.claim(SNAT, FOR_EVER, PRIVATE_SIDE)
    scene.expect("tc_own", frame, "pass_other_mac")


def left_alone(scene: Scene, frame: bytes) -> None:
    before = scene.counted().sum()
    result = scene.programs.tc_own(frame)
    assert (result.verdict, result.packet) == (TcVerdict.UNSPEC, frame)
    assert scene.counted().sum() == before


@pytest.mark.parametrize("until_ns", [0, LONG_AGO])
def test_what_is_another_lb_s_to_take_leaves(scene: Scene, until_ns: int) -> None:
    """0: the address is none that LBs claim."""
    _, frame = answered(scene, NODE_MAC)
    if until_ns:
        scene.claim(SNAT, until_ns, PRIVATE_SIDE)
    left_alone(scene, frame)


def test_everything_else_that_the_host_sends_leaves(scene: Scene) -> None:
    scene.service("l4")
    scene.claim(SNAT, FOR_EVER, PRIVATE_SIDE)
    left_alone(scene, tcp(NODE, CLIENT))
    left_alone(scene, bytes(Ether(src=LB_MAC, dst=NODE_MAC, type=0x86DD)) + bytes(60))


# --------------------------------------------------------------------------- its own questions


def asked(sender: str, target: str) -> bytes:
    message = ARP(op="who-has", hwsrc=LB_MAC, psrc=sender, pdst=target)
    return bytes(Ether(src=LB_MAC, dst="ff:ff:ff:ff:ff:ff") / message)


def test_who_asks_itself_for_what_it_claims_is_answered(scene: Scene) -> None:
    scene.claim(SNAT, FOR_EVER, PRIVATE_SIDE)
    outcome = scene.expect("tc_own", asked(NODE[0], SNAT), "arp_answered")
    answer = Ether(outcome.packet)
    assert (answer.dst, answer["ARP"].psrc, answer["ARP"].hwsrc) == (LB_MAC, SNAT, LB_MAC)


def test_a_question_for_what_another_lb_claims_leaves(scene: Scene) -> None:
    scene.claim(SNAT, LONG_AGO, PRIVATE_SIDE)
    left_alone(scene, asked(NODE[0], SNAT))


def test_what_this_lb_says_of_its_claim_leaves(scene: Scene) -> None:
    scene.claim(SNAT, FOR_EVER, PRIVATE_SIDE)
    left_alone(scene, asked(SNAT, SNAT))


# --------------------------------------------------------------------------- sent by another LB


def test_in_l2_a_request_by_the_nodes_side_is_the_host_s(scene: Scene) -> None:
    scene.service("l2", flags=OF_THIS_NODE)
    scene.expect("tc_private", tcp(CLIENT, SERVICE), "pass_own_node")


@pytest.mark.parametrize(("mode", "flags"), [("l2", 0), ("l4", OF_THIS_NODE)])
def test_any_other_is_refused_as_ever(scene: Scene, mode: str, flags: int) -> None:
    scene.service(mode, flags=flags)
    scene.expect("tc_private", tcp(CLIENT, SERVICE, "S"), "hairpin_refused")
