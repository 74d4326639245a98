"""Who answers for a floating address: whoever holds its lease, on its side, until the very instant
that it ends. And never the host's own stack.
"""

from __future__ import annotations

import shutil
import time
from pathlib import Path

import pytest
from scapy.layers.inet import ICMP, IP
from scapy.layers.inet6 import (
    ICMPv6EchoReply,
    ICMPv6EchoRequest,
    ICMPv6ND_NA,
    ICMPv6ND_NS,
    ICMPv6NDOptDstLLAddr,
    ICMPv6NDOptSrcLLAddr,
    ICMPv6NDOptUnknown,
    IPv6,
)
from scapy.layers.l2 import ARP, Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpf.loader import SOURCE_DIR
from tests.bpf.harness import LB_MAC, PEER_MAC, SMALL_TABLES, Rig, icmp, tcp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    FLOATING,
    NODE,
    OF_SERVICE,
    OF_SNAT,
    OWN_PRIVATE,
    OWN_PUBLIC,
    PRIVATE_SIDE,
    PUBLIC_SIDE,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    is_xdp,
    least_bytes,
    mac,
    now_ticks,
)

HOOKS = [*REQUEST_HOOKS, *REPLY_HOOKS]
BROADCAST, NOBODY = "ff:ff:ff:ff:ff:ff", "00:00:00:00:00:00"
RIVAL_MAC = "02:00:00:00:66:66"
VIP6, CLIENT6 = "2001:db8::100", "2001:db8::33"
MULTICAST_MAC, MULTICAST = "33:33:ff:00:01:00", "ff02::1:ff00:100"
FOR_EVER = 2**63


def arp_frame(
    *,
    op: str = "who-has",
    sender: str = CLIENT_ADDRESS,
    target: str = VIP,
    source: str = PEER_MAC,
    to: str = BROADCAST,
    vlans: tuple[int, ...] = (),
    padding: int = 0,
    target_mac: str = NOBODY,
) -> bytes:
    message = ARP(op=op, hwsrc=source, psrc=sender, hwdst=target_mac, pdst=target)
    return tagged(Ether(src=source, dst=to), vlans) + bytes(message) + bytes(padding)


def tagged(frame: Packet, vlans: tuple[int, ...], kind: int = 0x0806) -> bytes:
    """The Ethernet header and tags, up to the type of what follows."""
    for tag in vlans:
        frame = frame / Dot1Q(vlan=tag)
    return bytes(frame)[:-2] + kind.to_bytes(2)


def arp_answer(
    *, address: str = VIP, vlans: tuple[int, ...] = (), padding: int = 0, to: str = CLIENT_ADDRESS
) -> bytes:
    return arp_frame(
        op="is-at",
        sender=address,
        target=to,
        source=LB_MAC,
        to=PEER_MAC,
        target_mac=PEER_MAC,
        vlans=vlans,
        padding=padding,
    )


def solicitation(
    *options: Packet,
    target: str = VIP6,
    source: str = CLIENT6,
    to: str = MULTICAST,
    to_mac: str = MULTICAST_MAC,
    vlans: tuple[int, ...] = (),
    hops: int = 255,
    code: int = 0,
    damage: int = 0,
) -> bytes:
    message = IPv6(src=source, dst=to, hlim=hops) / ICMPv6ND_NS(tgt=target, code=code)
    for option in options:
        message = message / option
    head = tagged(Ether(src=PEER_MAC, dst=to_mac), vlans, 0x86DD)
    body = bytearray(bytes(message))
    body[43] ^= damage
    return head + bytes(body)


def advertisement(
    *,
    solicited: bool = True,
    to: str = CLIENT6,
    to_mac: str = PEER_MAC,
    vlans: tuple[int, ...] = (),
) -> bytes:
    message = IPv6(src=VIP6, dst=to, hlim=255)
    message = message / ICMPv6ND_NA(tgt=VIP6, R=0, S=int(solicited), O=1)
    message = message / ICMPv6NDOptDstLLAddr(lladdr=LB_MAC)
    return tagged(Ether(src=LB_MAC, dst=to_mac), vlans, 0x86DD) + bytes(message)


SOURCE_OPTION = ICMPv6NDOptSrcLLAddr(lladdr=PEER_MAC)
NONCE = ICMPv6NDOptUnknown(type=14, len=1, data=b"\x01\x02\x03\x04\x05\x06")
PING = icmp(CLIENT_ADDRESS, VIP, 8, payload=b"0123456789")
PING6 = bytes(
    Ether(src=PEER_MAC, dst=LB_MAC)
    / IPv6(src=CLIENT6, dst=VIP6, hlim=9)
    / ICMPv6EchoRequest(id=7, seq=3, data=b"0123456789")
)
QUESTIONS = {
    "arp": arp_frame(),
    "arp, padded": arp_frame(padding=18),
    "arp to us alone": arp_frame(to=LB_MAC),
    "arp probe": arp_frame(sender="0.0.0.0"),
    "solicitation": solicitation(SOURCE_OPTION),
    "solicitation to us alone": solicitation(to=VIP6, to_mac=LB_MAC),
    "solicitation with a nonce": solicitation(SOURCE_OPTION, NONCE),
    "duplicate address detection": solicitation(source="::"),
    "ping": PING,
    "ping6": PING6,
}
REASONS = {
    name: "arp_answered"
    if name.startswith("arp")
    else "echo_answered"
    if name.startswith("ping")
    else "nd_answered"
    for name in QUESTIONS
}
ANSWERS = {
    "arp": arp_answer(),
    "arp, padded": arp_answer(padding=18),
    "arp to us alone": arp_answer(),
    "arp probe": arp_answer(to="0.0.0.0"),
    "solicitation": advertisement(),
    "solicitation to us alone": advertisement(),
    "solicitation with a nonce": advertisement(),
    "duplicate address detection": advertisement(
        solicited=False, to="ff02::1", to_mac="33:33:00:00:00:01"
    ),
    "ping": bytes(
        Ether(src=LB_MAC, dst=PEER_MAC)
        / IP(src=VIP, dst=CLIENT_ADDRESS, ttl=64)
        / ICMP(type=0)
        / Raw(b"0123456789")
    ),
    "ping6": bytes(
        Ether(src=LB_MAC, dst=PEER_MAC)
        / IPv6(src=VIP6, dst=CLIENT6, hlim=64)
        / ICMPv6EchoReply(id=7, seq=3, data=b"0123456789")
    ),
}


def claimed_until(scene: Scene, until_ns: int, sides: int = PUBLIC_SIDE) -> None:
    scene.service("l4")
    scene.address(VIP, OF_SERVICE | FLOATING)
    for text in (VIP, VIP6):
        scene.claim(text, until_ns, sides)


# --------------------------------------------------------------------------- who is answered


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_the_holder_answers(scene: Scene, hook: str, name: str) -> None:
    claimed_until(scene, FOR_EVER)
    scene.expect(hook, QUESTIONS[name], REASONS[name], ANSWERS[name])


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
@pytest.mark.parametrize("until", ["never", "a second ago"])
def test_whoever_does_not_hold_the_lease_is_silent(
    scene: Scene, hook: str, name: str, until: str
) -> None:
    ago = time.monotonic_ns() - 1_000_000_000
    claimed_until(scene, 0 if until == "never" else ago)
    scene.expect(hook, QUESTIONS[name], "drop_not_claimed")


@pytest.mark.parametrize("hook", REPLY_HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_vip_is_not_answered_for_on_the_private_side(scene: Scene, hook: str, name: str) -> None:
    claimed_until(scene, FOR_EVER)
    scene.expect(hook, QUESTIONS[name], "drop_not_claimed")


@pytest.mark.parametrize("hook", REPLY_HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_an_snat_address_is_answered_for_on_the_private_side(
    scene: Scene, hook: str, name: str
) -> None:
    claimed_until(scene, FOR_EVER, PRIVATE_SIDE)
    scene.expect(hook, QUESTIONS[name], REASONS[name], ANSWERS[name])


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_an_snat_address_is_not_answered_for_on_the_public_side(
    scene: Scene, hook: str, name: str
) -> None:
    claimed_until(scene, FOR_EVER, PRIVATE_SIDE)
    scene.expect(hook, QUESTIONS[name], "drop_not_claimed")


@pytest.mark.parametrize("sides", [PUBLIC_SIDE, PRIVATE_SIDE])
@pytest.mark.parametrize("name", QUESTIONS)
def test_with_one_interface_there_are_no_sides(one_arm: Scene, name: str, sides: int) -> None:
    claimed_until(one_arm, FOR_EVER, sides)
    one_arm.expect("tc_public", QUESTIONS[name], REASONS[name], ANSWERS[name])
    one_arm.expect("xdp_public", QUESTIONS[name], REASONS[name], ANSWERS[name])


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_nobodys_address_is_the_hosts_business(scene: Scene, hook: str, name: str) -> None:
    scene.claim("10.80.0.101", FOR_EVER, PUBLIC_SIDE | PRIVATE_SIDE)
    scene.claim("2001:db8::101", FOR_EVER, PUBLIC_SIDE | PRIVATE_SIDE)
    reason = "pass_icmp_other" if name == "ping" else "pass_not_ipv4"
    scene.expect(hook, QUESTIONS[name], reason)


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_programs_that_are_not_set_up_answer_nobody(scene: Scene, hook: str, name: str) -> None:
    claimed_until(scene, FOR_EVER, PUBLIC_SIDE | PRIVATE_SIDE)
    scene.settings(public_ifindex=0)
    reason = "pass_not_ready" if name == "ping" else "pass_not_ipv4"
    scene.expect(hook, QUESTIONS[name], reason)


# --------------------------------------------------------------------------- the instant

INSTANT = 5_000_000_000_000


@pytest.fixture(scope="session")
def at_an_instant(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    """The programs, with a clock that stands still."""
    folder = tmp_path_factory.mktemp("kernel")
    shutil.copytree(SOURCE_DIR, folder, dirs_exist_ok=True)
    for name in ("claims.h", "discovery.h"):
        text = Path(folder / name).read_text()
        assert "bpf_ktime_get_ns()" in text
        (folder / name).write_text(text.replace("bpf_ktime_get_ns()", f"{INSTANT}ULL"))
    return Scene(Rig(dict(SMALL_TABLES), folder))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_a_claim_ends_at_its_instant_and_not_before(
    at_an_instant: Scene, hook: str, name: str
) -> None:
    scene = at_an_instant
    scene.forget()
    claimed_until(scene, INSTANT + 1)
    scene.expect(hook, QUESTIONS[name], REASONS[name], ANSWERS[name])
    claimed_until(scene, INSTANT)
    scene.expect(hook, QUESTIONS[name], "drop_not_claimed")


def test_a_rival_is_one_while_the_claim_lasts(at_an_instant: Scene) -> None:
    scene = at_an_instant
    scene.forget()
    announced = arp_frame(sender=VIP, source=RIVAL_MAC)
    claimed_until(scene, INSTANT)
    scene.expect("xdp_public", announced, "pass_claimed_elsewhere")
    assert scene.rival(VIP) is None
    claimed_until(scene, INSTANT + 1)
    scene.expect("xdp_public", announced, "drop_rival")
    assert (scene.rival(VIP).last, scene.rival(VIP).seen) == (INSTANT, 1)


# --------------------------------------------------------------------------- frames

VLANS: list[tuple[int, ...]] = [(5,), (5, 6)]


@pytest.mark.parametrize("vlans", VLANS)
def test_a_question_in_a_vlan_is_answered_there(scene: Scene, vlans: tuple[int, ...]) -> None:
    claimed_until(scene, FOR_EVER)
    arp_question, arp_told = arp_frame(vlans=vlans), arp_answer(vlans=vlans)
    question, told = solicitation(vlans=vlans), advertisement(vlans=vlans)
    for hook in REQUEST_HOOKS:
        if is_xdp(hook):
            scene.expect(hook, arp_question, "slow_vlan")
            scene.expect(hook, question, "slow_vlan")
        else:
            scene.expect(hook, arp_question, "arp_answered", arp_told)
            scene.expect(hook, question, "nd_answered", told)


@pytest.mark.parametrize("vlans", VLANS)
def test_a_ping_in_a_vlan_is_answered_there(scene: Scene, vlans: tuple[int, ...]) -> None:
    claimed_until(scene, FOR_EVER)
    head = tagged(Ether(src=PEER_MAC, dst=LB_MAC), vlans, 0x0800)
    back = tagged(Ether(src=LB_MAC, dst=PEER_MAC), vlans, 0x0800)
    scene.expect("tc_public", head + PING[14:], "echo_answered", back + ANSWERS["ping"][14:])
    scene.expect("xdp_public", head + PING[14:], "slow_vlan")


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_device_that_takes_no_frames_from_xdp_is_tcs(scene: Scene, name: str) -> None:
    claimed_until(scene, FOR_EVER)
    scene.settings(public_by_tc=1)
    scene.expect("xdp_public", QUESTIONS[name], "slow_output")
    scene.expect("tc_public", QUESTIONS[name], REASONS[name], ANSWERS[name])


@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", QUESTIONS)
def test_what_is_cut_short_passes_as_it_came(scene: Scene, hook: str, name: str) -> None:
    claimed_until(scene, FOR_EVER, PUBLIC_SIDE | PRIVATE_SIDE)
    whole = QUESTIONS[name]
    length = 42 if name.startswith("arp") else len(whole)
    for size in range(least_bytes(hook, whole), length):
        outcome = scene.send(hook, whole[:size])
        assert outcome.reason in ("pass_not_ipv4", "pass_malformed"), (size, outcome.reason)


ELSEWHERE = "02:00:00:00:00:77"
NOT_FOR_US = {
    "arp": arp_frame(to=ELSEWHERE),
    "solicitation": solicitation(to=VIP6, to_mac=ELSEWHERE),
    "ping": mac(ELSEWHERE) + PING[6:],
    "ping6": mac(ELSEWHERE) + PING6[6:],
    "ping6 to all": mac("33:33:00:00:00:01") + PING6[6:],
    "arp of a rival": arp_frame(op="is-at", sender=VIP, source=RIVAL_MAC, to=ELSEWHERE),
}


@pytest.mark.parametrize("name", NOT_FOR_US)
def test_what_is_for_another_machine_is_left_to_it(scene: Scene, name: str) -> None:
    """TC is not asked here: the kernel's word for whom a frame is stands beside its bytes."""
    claimed_until(scene, FOR_EVER)
    scene.expect("xdp_public", NOT_FOR_US[name], "pass_other_mac")
    assert scene.rival(VIP) is None


NO_QUESTIONS = {
    "an answer of somebody's": arp_frame(op="is-at", target=VIP),
    "reverse ARP": arp_frame(op="RARP-req"),
    "of another network": arp_frame()[:16] + b"\x86\xdd" + arp_frame()[18:],
    "of another link": arp_frame()[:14] + b"\x00\x06" + arp_frame()[16:],
    "with short link addresses": arp_frame()[:18] + b"\x05\x04" + arp_frame()[20:],
    "with long addresses": arp_frame()[:18] + b"\x06\x10" + arp_frame()[20:],
    "for another address": arp_frame(target="10.80.0.99"),
    "passed on by a router": solicitation(SOURCE_OPTION, hops=254),
    "with a code": solicitation(SOURCE_OPTION, code=1),
    "with a wrong sum": solicitation(SOURCE_OPTION, damage=1),
    "plain with a wrong sum": solicitation(damage=1),
    "a nonce and a wrong sum": solicitation(SOURCE_OPTION, NONCE, damage=1),
    "about another address": solicitation(target="2001:db8::99"),
    "about an IPv4 address": solicitation(target=f"::ffff:{VIP}"),
}


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", NO_QUESTIONS)
def test_what_is_no_question_about_the_vip_passes(scene: Scene, hook: str, name: str) -> None:
    claimed_until(scene, FOR_EVER)
    scene.expect(hook, NO_QUESTIONS[name], "pass_not_ipv4")


NO_PINGS = {
    "an echo reply": (icmp(CLIENT_ADDRESS, VIP, 0), "drop_no_service"),
    "an echo request with a code": (icmp(CLIENT_ADDRESS, VIP, 8, 1), "drop_no_service"),
    "a timestamp request": (icmp(CLIENT_ADDRESS, VIP, 13), "drop_no_service"),
    "a part of one": (icmp(CLIENT_ADDRESS, VIP, 8, flags="MF"), "drop_no_service"),
    "with options": (icmp(CLIENT_ADDRESS, VIP, 8, options=[b"\x01" * 4]), "drop_no_service"),
    "of itself": (icmp(VIP, VIP, 8), "drop_source_is_vip"),
    "of a group": (icmp("224.0.0.1", VIP, 8), "drop_martian_source"),
}


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", NO_PINGS)
def test_nothing_but_a_ping_is_answered(scene: Scene, hook: str, name: str) -> None:
    claimed_until(scene, FOR_EVER)
    packet, reason = NO_PINGS[name]
    scene.expect(hook, packet, reason)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_pings_count_towards_no_limit(scene: Scene, hook: str) -> None:
    claimed_until(scene, FOR_EVER)
    scene.settings(answers_per_second=0)
    scene.expect(hook, PING, "echo_answered", ANSWERS["ping"])


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_vip_that_the_host_has_itself_is_never_the_hosts_to_answer_for(
    scene: Scene, hook: str
) -> None:
    """As on an LB that is a node as well."""
    scene.service("l2")
    scene.address(VIP, OF_SERVICE)
    scene.claim(VIP, 0)
    scene.expect(hook, PING, "drop_not_claimed")
    scene.expect(hook, arp_frame(), "drop_not_claimed")


# --------------------------------------------------------------------------- forwarding goes on


@pytest.mark.parametrize("until", [0, FOR_EVER])
def test_forwarding_asks_for_no_claim(scene: Scene, until: int) -> None:
    claimed_until(scene, until)
    scene.address(SNAT, OF_SNAT | FLOATING, snat_first_port=20000, snat_ports=1000)
    scene.claim(SNAT, until, PRIVATE_SIDE)
    Connection(scene).establish()
    scene.expect("tc_public", tcp(CLIENT, (VIP, SERVICE[1] + 1)), "drop_no_service")


# --------------------------------------------------------------------------- a VIP that moves


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize(
    ("until", "moved_ago", "reason"),
    [
        (FOR_EVER, 1_000, "no_flow_reset"),
        (FOR_EVER, 17, "no_flow_reset"),
        (FOR_EVER, 10, "drop_moving_flow"),
        (FOR_EVER, -1, "drop_moving_flow"),
        (0, 1_000, "drop_moving_flow"),
    ],
)
def test_what_may_be_known_elsewhere_is_not_reset(
    scene: Scene, hook: str, until: int, moved_ago: int, reason: str
) -> None:
    """The quorum's clock is finer than the programs', and may be ahead of it by a tick."""
    scene.service("l4")
    scene.claim(VIP, until, moved_ticks=now_ticks() - moved_ago)
    scene.expect(hook, tcp(CLIENT, SERVICE, "PA", b"data", seq=5000, ack=700), reason)
    scene.expect(hook, tcp(CLIENT, SERVICE, "R"), "drop_no_flow")


# --------------------------------------------------------------------------- rivals

SAYING_SO = {
    "gratuitous request": arp_frame(sender=VIP, target=VIP, source=RIVAL_MAC),
    "gratuitous reply": arp_frame(op="is-at", sender=VIP, target=VIP, source=RIVAL_MAC),
    "reply to us": arp_frame(
        op="is-at", sender=VIP, target=OWN_PUBLIC, source=RIVAL_MAC, to=LB_MAC
    ),
    "question of its own": arp_frame(sender=VIP, target="10.80.0.254", source=RIVAL_MAC),
    "in a VLAN": arp_frame(sender=VIP, target=VIP, source=RIVAL_MAC, vlans=(5,)),
}


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", SAYING_SO)
def test_another_mac_that_claims_the_vip_is_written_down(
    scene: Scene, hook: str, name: str
) -> None:
    claimed_until(scene, FOR_EVER)
    before = time.monotonic_ns()
    for _ in range(3):
        scene.expect(hook, SAYING_SO[name], "drop_rival")
    rival = scene.rival(VIP)
    assert bytes(rival.mac) == mac(RIVAL_MAC)
    assert rival.seen == 3
    assert before <= rival.last <= time.monotonic_ns()


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_rivals_advertisement_is_written_down(scene: Scene, hook: str) -> None:
    claimed_until(scene, FOR_EVER)
    frame = mac("33:33:00:00:00:01") + mac(RIVAL_MAC) + advertisement(to="ff02::1")[12:]
    scene.expect(hook, frame, "drop_rival")
    assert bytes(scene.rival(VIP6).mac) == mac(RIVAL_MAC)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", SAYING_SO)
def test_whoever_claims_what_this_lb_does_not_is_most_likely_right(
    scene: Scene, hook: str, name: str
) -> None:
    """The host's own neighbour table is to learn it, too."""
    claimed_until(scene, 0)
    scene.expect(hook, SAYING_SO[name], "pass_claimed_elsewhere")
    assert scene.rival(VIP) is None


@pytest.mark.parametrize("hook", HOOKS)
def test_our_own_announcement_comes_from_no_rival(scene: Scene, hook: str) -> None:
    claimed_until(scene, FOR_EVER, PUBLIC_SIDE | PRIVATE_SIDE)
    scene.expect(
        hook, arp_frame(op="is-at", sender=VIP, target=VIP, source=LB_MAC), "pass_not_ipv4"
    )
    own = mac("33:33:00:00:00:01") + mac(LB_MAC) + advertisement(to="ff02::1")[12:]
    scene.expect(hook, own, "pass_not_ipv4")
    assert scene.rival(VIP) is None
    assert scene.rival(VIP6) is None


def test_whoever_has_the_vip_on_the_other_side_is_no_rival(scene: Scene) -> None:
    """A node has it on its loopback; what it says to nodes is no concern of the clients."""
    claimed_until(scene, FOR_EVER)
    frame = arp_frame(sender=VIP, target=OWN_PRIVATE, source=RIVAL_MAC)
    scene.expect("tc_private", frame, "pass_not_ipv4")
    assert scene.rival(VIP) is None


def test_a_node_that_asks_for_the_snat_address_of_its_flow(scene: Scene) -> None:
    scene.service("l4")
    scene.claim(SNAT, FOR_EVER, PRIVATE_SIDE)
    scene.snat_slice()
    question = arp_frame(sender=NODE[0], target=SNAT)
    scene.expect("tc_private", question, "arp_answered", arp_answer(address=SNAT, to=NODE[0]))
