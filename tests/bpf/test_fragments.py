"""Fragments: the first has the ports and decides; those that follow go where it went."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from scapy.layers.inet import IP, UDP
from scapy.packet import Raw

from tests.bpf.harness import ethernet, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    GUE,
    NO_SNAT,
    NODE,
    OF_SERVICE,
    PUBLIC,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    SEAT,
    SERVICE,
    SNAT,
    VIP,
    Outcome,
    Scene,
    is_xdp,
    routed,
    to_client,
    to_node,
    wrapped,
)

MODES = {"l2": 0, "ipip": 0, "gue": GUE, "l4": 0}
FIRST = {"l2": "l2_forwarded", "ipip": "l3_forwarded", "gue": "l3_forwarded", "l4": "l4_new_flow"}
SIZES = (1200, 800, 301)


@dataclass(frozen=True)
class Cut:
    """A datagram cut into fragments of SIZES bytes."""

    source: tuple[str, int]
    destination: tuple[str, int]
    ttl: int = 64
    id: int = 4711

    def frames(self) -> list[bytes]:
        data = bytes(range(256)) * 9
        datagram = IP(src=self.source[0], dst=self.destination[0]) / UDP(
            sport=self.source[1], dport=self.destination[1]
        )
        whole = bytes(datagram / Raw(data[: sum(SIZES) - 8]))[20:]
        frames, at = [], 0
        for size in SIZES:
            last = at + size == len(whole)
            header = IP(
                src=self.source[0],
                dst=self.destination[0],
                ttl=self.ttl,
                id=self.id,
                proto=17,
                flags=0 if last else "MF",
                frag=at // 8,
            )
            frames.append(ethernet(header / Raw(whole[at : at + size])))
            at += size
        return frames


def service(scene: Scene, mode: str) -> None:
    scene.service("l3" if mode in ("ipip", "gue") else mode, flags=MODES[mode], protocol="udp")


def expected(hook: str, mode: str, packet: bytes, outcome: Outcome) -> bytes:
    if mode == "l2":
        return to_node(hook, packet)
    if mode == "ipip":
        return to_node(hook, wrapped(routed(packet)))
    port = int.from_bytes(outcome.packet[34:36])
    return to_node(hook, wrapped(routed(packet), gue_port=port))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("mode", ["l2", "ipip", "gue"])
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_stateless(scene: Scene, hook: str, mode: str, order: tuple[int, ...]) -> None:
    service(scene, mode)
    frames = Cut(CLIENT, SERVICE).frames()
    for at in order:
        reason = FIRST[mode] if at == 0 else "fragment_forwarded"
        outcome = scene.expect(hook, frames[at], reason)
        assert outcome.packet == expected(hook, mode, frames[at], outcome)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_l4_requests(scene: Scene, hook: str, order: tuple[int, ...]) -> None:
    service(scene, "l4")
    frames = Cut(CLIENT, SERVICE).frames()
    wanted: list[bytes] = []
    for at in order:
        reason = FIRST["l4"] if at == 0 else "fragment_forwarded"
        outcome = scene.expect(hook, frames[at], reason)
        if at == 0:
            wanted = translated(outcome).frames()
        assert outcome.packet == to_node(hook, wanted[at])


def translated(first: Outcome) -> Cut:
    """The datagram as the node gets it: from a port of the slice, under an id of the LB's own."""
    source = (SNAT, int.from_bytes(first.packet[34:36]))
    return Cut(source, NODE, ttl=63, id=int.from_bytes(first.packet[18:20]))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestIds:
    """All clients look alike to a node, so two of them may not use one id (RFC 6864)."""

    def test_of_one_number_become_two(self, scene: Scene, hook: str) -> None:
        service(scene, "l4")
        cuts = [Cut((f"192.0.2.{number}", 40000), SERVICE) for number in (1, 2, 3)]
        made = [translated(scene.expect(hook, cut.frames()[0], "l4_new_flow")) for cut in cuts]
        assert len({cut.id for cut in made}) == 3
        for cut, wanted in zip(cuts, made, strict=True):
            for later in (1, 2):
                out = to_node(hook, wanted.frames()[later])
                scene.expect(hook, cut.frames()[later], "fragment_forwarded", out)

    def test_stay_without_snat(self, scene: Scene, hook: str) -> None:
        scene.service("l4", protocol="udp", flags=NO_SNAT)
        wanted = Cut(CLIENT, NODE, ttl=63).frames()
        for at, frame in enumerate(Cut(CLIENT, SERVICE).frames()):
            reason = "fragment_forwarded" if at else "l4_new_flow"
            scene.expect(hook, frame, reason, to_node(hook, wanted[at]))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("mode", MODES)
class TestHijacking:
    """A stranger's first fragment under another's address and id leads nobody elsewhere."""

    FORGED = Cut((CLIENT[0], 1), SERVICE)

    def test_a_strangers_first_fragment_is_dropped(
        self, scene: Scene, hook: str, mode: str
    ) -> None:
        service(scene, mode)
        frames = Cut(CLIENT, SERVICE).frames()
        scene.expect(hook, frames[0], FIRST[mode])
        sent = scene.expect(hook, frames[1], "fragment_forwarded").packet
        scene.expect(hook, self.FORGED.frames()[0], "drop_fragment_clash")
        scene.expect(hook, frames[1], "fragment_forwarded", sent)

    def test_one_of_another_service_too(self, scene: Scene, hook: str, mode: str) -> None:
        service(scene, mode)
        scene.service("l2", protocol="udp", at=(VIP, 53), number=1, seats=[SEAT + 1])
        scene.expect(hook, Cut(CLIENT, SERVICE).frames()[0], FIRST[mode])
        scene.expect(hook, Cut(CLIENT, (VIP, 53)).frames()[0], "drop_fragment_clash")

    def test_an_id_is_free_again_when_its_datagram_has_gone_by(
        self, scene: Scene, hook: str, mode: str
    ) -> None:
        """Each socket of one client draws its ids for itself: they meet."""
        service(scene, mode)
        frames = Cut(CLIENT, SERVICE).frames()
        scene.expect(hook, frames[0], FIRST[mode])
        for frame in frames[1:]:
            scene.expect(hook, frame, "fragment_forwarded")
        scene.expect(hook, self.FORGED.frames()[0], FIRST[mode])
        scene.expect(hook, self.FORGED.frames()[1], "fragment_forwarded")
        scene.expect(hook, frames[0], "drop_fragment_clash")

    def test_a_second_later_the_id_may_have_come_round(
        self, scene: Scene, hook: str, mode: str
    ) -> None:
        service(scene, mode)
        scene.expect(hook, Cut(CLIENT, SERVICE).frames()[0], FIRST[mode])
        scene.age("fragments", 1.1)
        scene.expect(hook, self.FORGED.frames()[0], FIRST[mode])
        scene.expect(hook, self.FORGED.frames()[1], "fragment_forwarded")

    def test_the_same_again_is_a_repetition(self, scene: Scene, hook: str, mode: str) -> None:
        service(scene, mode)
        first = Cut(CLIENT, SERVICE).frames()[0]
        scene.expect(hook, first, FIRST[mode])
        scene.expect(hook, first, "l4_opening" if mode == "l4" else FIRST[mode])


@pytest.mark.parametrize("hook", REPLY_HOOKS)
@pytest.mark.parametrize("order", [(0, 1, 2), (0, 2, 1)])
def test_l4_replies(scene: Scene, hook: str, order: tuple[int, ...]) -> None:
    service(scene, "l4")
    source = (SNAT, scene.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
    frames = Cut(NODE, source).frames()
    wanted = Cut(SERVICE, CLIENT, ttl=63).frames()
    for at in order:
        reason = "l4_reply" if at == 0 else "fragment_forwarded"
        scene.expect(hook, frames[at], reason, to_client(hook, wanted[at]))


def test_l4_replies_on_one_arm(one_arm: Scene) -> None:
    service(one_arm, "l4")
    source = (SNAT, one_arm.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
    wanted = Cut(SERVICE, CLIENT, ttl=63).frames()
    for at, frame in enumerate(Cut(NODE, source).frames()):
        reason = "l4_reply" if at == 0 else "fragment_forwarded"
        one_arm.expect("tc_public", frame, reason, to_client("tc_public", wanted[at]))


@pytest.mark.parametrize("hook", [*REQUEST_HOOKS, *REPLY_HOOKS])
class TestAlone:
    def test_before_its_first(self, scene: Scene, hook: str) -> None:
        service(scene, "l4")
        for frame in reversed(Cut(CLIENT, SERVICE).frames()[1:]):
            scene.expect(hook, frame, "pass_fragment_alone")

    def test_to_a_services_address_it_is_for_nobody(self, scene: Scene, hook: str) -> None:
        service(scene, "l4")
        scene.address(VIP, OF_SERVICE)
        reason = "drop_fragment_alone" if hook in REQUEST_HOOKS else "pass_fragment_alone"
        for frame in reversed(Cut(CLIENT, SERVICE).frames()[1:]):
            scene.expect(hook, frame, reason)
        scene.expect(hook, Cut(CLIENT, (SNAT, 22)).frames()[1], "pass_fragment_alone")

    def test_those_of_the_hosts_own_datagrams_pass(self, scene: Scene, hook: str) -> None:
        """To an address that is a service's and the host's."""
        service(scene, "l4")
        scene.address(VIP, OF_SERVICE)
        passed = "pass_not_for_service" if hook in REQUEST_HOOKS else "pass_no_flow"
        for at, frame in enumerate(Cut(CLIENT, (VIP, 500)).frames()):
            scene.expect(hook, frame, "pass_fragment_alone" if at else passed)

    @pytest.mark.parametrize(
        "other",
        [
            Cut(CLIENT, SERVICE, id=4712),
            Cut(("192.0.2.99", 40000), SERVICE),
            Cut(CLIENT, ("10.80.0.101", 8080)),
        ],
    )
    def test_of_another_datagram(self, scene: Scene, hook: str, other: Cut) -> None:
        service(scene, "l2")
        scene.expect("xdp_public", Cut(CLIENT, SERVICE).frames()[0], "l2_forwarded")
        scene.expect(hook, other.frames()[1], "pass_fragment_alone")

    def test_of_another_protocol(self, scene: Scene, hook: str) -> None:
        service(scene, "l2")
        scene.expect("xdp_public", Cut(CLIENT, SERVICE).frames()[0], "l2_forwarded")
        header = IP(src=CLIENT[0], dst=VIP, id=4711, proto=6, frag=100)
        scene.expect(hook, ethernet(header / Raw(bytes(40))), "pass_fragment_alone")

    def test_not_in_the_other_direction(self, scene: Scene, hook: str) -> None:
        service(scene, "l2")
        frames = Cut(CLIENT, SERVICE).frames()
        scene.expect("xdp_public", frames[0], "l2_forwarded")
        reason = "fragment_forwarded" if hook in REQUEST_HOOKS else "pass_fragment_alone"
        scene.expect(hook, frames[1], reason)

    def test_after_half_a_minute_ids_come_round(self, scene: Scene, hook: str) -> None:
        service(scene, "l2")
        frames = Cut(CLIENT, SERVICE).frames()
        scene.expect("xdp_public", frames[0], "l2_forwarded")
        scene.age("fragments", 31)
        scene.expect(hook, frames[1], "pass_fragment_alone")


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("mode", MODES)
class TestTheWay:
    """A later fragment's way is judged like any packet's."""

    def after_first(self, scene: Scene, mode: str, ttl: int = 64) -> bytes:
        service(scene, mode)
        frames = Cut(CLIENT, SERVICE, ttl=ttl).frames()
        first = Cut(CLIENT, SERVICE).frames()[0]
        scene.expect("tc_public", first, FIRST[mode])
        return frames[1]

    def test_unresolved(self, scene: Scene, hook: str, mode: str) -> None:
        later = self.after_first(scene, mode)
        scene.seat(flags=2)
        scene.expect(hook, later, "slow_next_hop" if is_xdp(hook) else "fragment_forwarded")

    def test_no_route(self, scene: Scene, hook: str, mode: str) -> None:
        later = self.after_first(scene, mode)
        scene.seat(flags=2, ifindex=0)
        scene.expect(hook, later, "slow_next_hop" if is_xdp(hook) else "drop_no_route")

    def test_too_long(self, scene: Scene, hook: str, mode: str) -> None:
        later = self.after_first(scene, mode)
        scene.seat(mtu=700)
        scene.expect(hook, later, "drop_too_big")

    def test_too_long_is_not_answered_either(self, scene: Scene, hook: str, mode: str) -> None:
        later = IP(self.after_first(scene, mode)[14:])
        later.flags, later.chksum = "MF+DF", None
        scene.seat(mtu=700)
        scene.expect(hook, ethernet(later), "drop_too_big")

    def test_time_to_live(self, scene: Scene, hook: str, mode: str) -> None:
        later = self.after_first(scene, mode, ttl=1)
        scene.expect(hook, later, "fragment_forwarded" if mode == "l2" else "drop_ttl")

    def test_tags(self, scene: Scene, hook: str, mode: str) -> None:
        later = self.after_first(scene, mode)
        tagged = ethernet(IP(later[14:]), vlans=(5,))
        if is_xdp(hook):
            scene.expect(hook, tagged, "slow_vlan")
        else:
            outcome = scene.expect(hook, tagged, "fragment_forwarded")
            plain = scene.expect(hook, later, "fragment_forwarded")
            assert outcome.packet == plain.packet

    def test_tags_on_the_same_interface(self, scene: Scene, hook: str, mode: str) -> None:
        tagged = ethernet(IP(self.after_first(scene, mode)[14:]), vlans=(5,))
        scene.seat(ifindex=PUBLIC)
        if mode in ("ipip", "gue"):
            reason = "slow_vlan" if is_xdp(hook) else "drop_rewrite_failed"
            scene.expect(hook, tagged, reason)
        else:
            outcome = scene.expect(hook, tagged, "fragment_forwarded")
            assert outcome.packet[12:18] == tagged[12:18]


@pytest.mark.parametrize("hook", REPLY_HOOKS)
class TestTheWayBack:
    def after_first(self, scene: Scene, ttl: int = 64) -> bytes:
        service(scene, "l4")
        source = (SNAT, scene.send("xdp_public", udp(CLIENT, SERVICE, b"q")).ports[0])
        scene.expect("tc_private", Cut(NODE, source).frames()[0], "l4_reply")
        return Cut(NODE, source, ttl=ttl).frames()[1]

    def test_time_to_live(self, scene: Scene, hook: str) -> None:
        scene.expect(hook, self.after_first(scene, ttl=1), "drop_ttl")

    def test_counted(self, scene: Scene, hook: str) -> None:
        later = self.after_first(scene)
        before = scene.counted_at_seat()
        scene.expect(hook, later, "fragment_forwarded")
        after = scene.counted_at_seat()
        assert after["packets_out"] == before["packets_out"] + 1
        assert after["bytes_out"] == before["bytes_out"] + len(later)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_later_fragment_whose_length_lies(scene: Scene, hook: str) -> None:
    service(scene, "l2")
    scene.expect("xdp_public", udp(CLIENT, SERVICE, b"12345678", id=7, flags="MF"), "l2_forwarded")
    later = IP(src=CLIENT[0], dst=VIP, id=7, proto=17, frag=2, len=19) / Raw(bytes(20))
    scene.expect(hook, ethernet(later), "pass_malformed")


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_first_fragment_too_short_for_its_ports(scene: Scene, hook: str) -> None:
    """What hides the TCP header in the second fragment has no good reason to (RFC 1858)."""
    scene.service("l2")
    whole = tcp(CLIENT, SERVICE)[34:]
    header = IP(src=CLIENT[0], dst=VIP, flags="MF", proto=6)
    scene.expect(hook, ethernet(header / Raw(whole[:16])), "pass_malformed")
