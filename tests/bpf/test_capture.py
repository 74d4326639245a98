"""Packets as they enter and leave the programs of GALE_CAPTURE, read from their ring."""

from __future__ import annotations

import ctypes
import time
from collections.abc import Iterator

import pytest
from scapy.layers.l2 import Dot1Q, Ether

from bpf.capture import OWN, CapturePrograms
from bpf.passage import Part, Passage, Setup, Term, read_passage
from bpf.ring import RecordRing
from bpf.syscall import map_shape
from services.dataplane.capture import read_filter
from services.dataplane.counters import hooks, reasons
from tests.bpf.harness import IMAGES, Result, Rig, clear_map, run_tc, run_xdp, tcp, udp
from tests.bpf.scene import CLIENT, CLIENT_ADDRESS, NODE, SERVICE, SNAT, VIP, Scene
from tests.dataplane import machines

DEFINES = machines.defines()
"""As where a whole process captures, so that both need one compilation."""
NAMES, HOOKS = list(reasons()), hooks()
FUNCTIONS = {"xdp_public": "gale_xdp_public", "xdp_private": "gale_xdp_reply"}
ALL = (1 << 64) - 1

# The first test may have to wait for a compiler.
pytestmark = pytest.mark.timeout(900)


class Capture:
    """The programs over the maps of a scene, and what they have shown."""

    def __init__(self, scene: Scene) -> None:
        rig = scene.programs
        living = {name.decode(): table.map_fd for name, table in rig.xdp_object.bpf.items()}
        self.scene = scene
        self.programs = CapturePrograms(living | rig.xdp_object.rings, DEFINES, IMAGES)
        self.programs.load(HOOKS, frags=False)
        self._ring = RecordRing(self.programs.ring_fd, map_shape(self.programs.ring_fd)[3])

    def show(self, words: str = "", *, kept: int = 2048, until_s: float = 3600.0) -> None:
        wanted = read_filter(words.split(), NAMES, HOOKS)
        until_ns = time.monotonic_ns() + int(until_s * 1e9)
        self.programs.set_up(Setup(until_ns, wanted.reasons, wanted.hooks, kept, wanted.terms))
        clear_map(self.programs.xdp.bpf[b"capture_lost"].map_fd)
        self._ring.take()

    def send(self, hook: str, packet: bytes) -> Result:
        if hook.startswith("xdp"):
            return run_xdp(self.programs.xdp.function(FUNCTIONS[hook], "xdp"), packet)
        return run_tc(self.programs.tc.function(f"gale_{hook}", "tc"), packet)

    def take(self) -> list[Passage]:
        return [read_passage(record) for record in self._ring.take()]

    def one(self, hook: str, packet: bytes) -> tuple[Passage, Result]:
        result = self.send(hook, packet)
        (passage,) = self.take()
        assert HOOKS[passage.hook] == hook
        assert passage.verdict & 0xFFFF_FFFF == result.verdict.value
        return passage, result

    def is_shown(self, hook: str, packet: bytes) -> bool:
        self.send(hook, packet)
        return bool(self.take())

    def close(self) -> None:
        self._ring.close()
        self.programs.close()


@pytest.fixture(scope="module")
def made() -> Iterator[Capture]:
    capture = Capture(Scene(Rig(DEFINES)))
    yield capture
    capture.close()


@pytest.fixture
def capture(made: Capture) -> Capture:
    made.scene.forget()
    made.show()
    return made


def l4(scene: Scene) -> None:
    scene.service("l4")
    scene.snat_slice()


@pytest.mark.parametrize("hook", ["xdp_public", "tc_public"])
def test_a_packet_is_shown_as_it_came_and_as_it_left(capture: Capture, hook: str) -> None:
    l4(capture.scene)
    syn = tcp(CLIENT, SERVICE)
    before_ns = time.monotonic_ns()
    passage, result = capture.one(hook, syn)
    assert before_ns < passage.time_ns < time.monotonic_ns()
    assert NAMES[passage.reason] == "l4_new_flow"
    assert (passage.entry, passage.entry_bytes) == (syn, len(syn))
    assert result.packet != syn
    assert (passage.exit, passage.exit_bytes) == (result.packet, len(result.packet))


@pytest.mark.parametrize("hook", ["xdp_public", "tc_public"])
def test_each_kind_of_verdict(capture: Capture, hook: str) -> None:
    stranger = tcp(CLIENT, (VIP, 9))
    passage, _ = capture.one(hook, stranger)
    assert NAMES[passage.reason] == "pass_not_for_service"
    assert passage.exit == stranger

    capture.scene.service("l4", seats=[])
    asked = tcp(CLIENT, SERVICE)
    passage, result = capture.one(hook, asked)
    assert NAMES[passage.reason] == "no_node_refused"
    assert (passage.entry, passage.exit) == (asked, result.packet)
    assert result.packet != asked

    martian = tcp(("127.0.0.1", 1), SERVICE)
    passage, _ = capture.one(hook, martian)
    assert NAMES[passage.reason] == "drop_martian_source"
    assert (passage.entry, passage.exit, passage.exit_bytes) == (martian, b"", 0)


def test_a_wrapped_packet_is_longer_when_it_leaves(capture: Capture) -> None:
    capture.scene.service("l3")
    syn = tcp(CLIENT, SERVICE)
    for hook in ("xdp_public", "tc_public"):
        passage, result = capture.one(hook, syn)
        assert NAMES[passage.reason] == "l3_forwarded"
        assert passage.exit == result.packet
        assert passage.exit_bytes == len(syn) + 20


def test_only_the_first_bytes_are_kept_and_the_length_is_told(capture: Capture) -> None:
    l4(capture.scene)
    capture.show(kept=60)
    packet = tcp(CLIENT, SERVICE, payload=bytes(400))
    for hook in ("xdp_public", "tc_public"):
        passage, result = capture.one(hook, packet)
        assert (passage.entry, passage.entry_bytes) == (packet[:60], len(packet))
        assert (passage.exit, passage.exit_bytes) == (result.packet[:60], len(packet))


def test_all_bytes_of_a_long_packet(capture: Capture) -> None:
    capture.show(kept=8192)
    packet = tcp(CLIENT, (VIP, 9), payload=bytes(range(256)) * 12)
    passage, _ = capture.one("xdp_public", packet)
    assert passage.entry == passage.exit == packet


def test_a_reply_is_found_by_the_client_it_is_for(capture: Capture) -> None:
    l4(capture.scene)
    capture.show(f"tcp and host {CLIENT_ADDRESS}")
    asked, _ = capture.one("xdp_public", tcp(CLIENT, SERVICE))
    port = Ether(asked.exit).sport
    for hook in ("tc_private", "xdp_private"):
        reply = tcp(NODE, (SNAT, port), "SA", seq=1, ack=1001)
        passage, _ = capture.one(hook, reply)
        assert NAMES[passage.reason] == "l4_reply"
        assert Ether(passage.exit).dst is not None
        capture.show(f"src host {CLIENT_ADDRESS}")
        assert not capture.is_shown(hook, reply)
        capture.show(f"dst host {CLIENT_ADDRESS}")
        assert capture.is_shown(hook, reply)


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("", True),
        ("tcp", True),
        ("udp", False),
        ("ip", True),
        ("arp", False),
        ("icmp", False),
        ("port 9", True),
        ("src port 9", False),
        ("dst port 9", True),
        ("port 40000", True),
        ("src port 40000 dst port 9", True),
        ("port 10", False),
        ("host 10.80.0.100", True),
        ("src host 10.80.0.100", False),
        ("net 192.0.0.0/16", True),
        ("net 192.0.2.0/29", False),
        ("dst net 192.0.0.0/16", False),
        ("net 0.0.0.0/0", True),
        ("pass", True),
        ("drop", False),
        ("forward answer", False),
        ("pass drop", True),
        ("pass_not_for_service", True),
        ("pass_no_flow", False),
        ("xdp_public", True),
        ("tc_public tc_private", False),
        ("tcp and ip host 10.80.0.100 host 192.0.2.33 port 9 port 40000 src port 40000 tcp", True),
        ("tcp and ip host 10.80.0.100 host 192.0.2.33 port 9 port 40000 src port 40000 udp", False),
    ],
)
def test_the_filter(capture: Capture, words: str, wanted: bool) -> None:
    capture.show(words)
    packet = tcp(CLIENT, (VIP, 9))
    assert capture.is_shown("xdp_public", packet) == wanted


@pytest.mark.parametrize("hook", ["xdp_public", "tc_public"])
def test_the_filter_looks_behind_tags_and_options(capture: Capture, hook: str) -> None:
    capture.show(f"udp port 9 host {CLIENT_ADDRESS}")
    for tags in ((), (5,), (5, 6)):
        assert capture.is_shown(hook, udp(CLIENT, (VIP, 9), vlans=tags))
        assert not capture.is_shown(hook, udp(CLIENT, (VIP, 8), vlans=tags))
        later = udp(CLIENT, (VIP, 9), vlans=tags, frag=100)
        assert not capture.is_shown(hook, later)
    options = [b"\x01" * 8]
    assert capture.is_shown(hook, udp(CLIENT, (VIP, 9), options=options))


def test_it_is_over_when_its_time_is(capture: Capture) -> None:
    capture.show(until_s=-0.001)
    for hook in HOOKS:
        assert not capture.is_shown(hook, tcp(CLIENT, (VIP, 9)))


def test_what_finds_the_ring_full_is_counted(capture: Capture) -> None:
    packet = tcp(CLIENT, (VIP, 9), payload=bytes(3000))
    capture.show(kept=8192)
    room = map_shape(capture.programs.ring_fd)[3]
    sent = room // (2 * len(packet)) + 10
    for _ in range(sent):
        capture.send("xdp_public", packet)
    lost = capture.programs.lost
    assert lost >= 10
    shown = capture.take()
    assert len(shown) + lost == sent
    assert all(each.entry == packet == each.exit for each in shown)
    assert capture.is_shown("xdp_public", packet)


def test_the_record_is_laid_out_as_it_is_read(capture: Capture) -> None:
    leaf = capture.programs.xdp.bpf[b"passing"].sLeaf
    raw = leaf(
        time_ns=1,
        entry_bytes=60,
        exit_bytes=70,
        entry_kept=14,
        exit_kept=16,
        ifindex=3,
        verdict=-1,
        hook=2,
        reason=9,
    )
    tag = bytes(Dot1Q(vlan=7, type=0x0800))
    frame = bytes(range(30))
    offset = leaf.bytes.offset
    whole = bytearray(bytes(raw)[:offset] + frame)
    for name, value in (("entry_tag", b"\x81\x00" + tag[:2]), ("exit_tag", bytes(4))):
        at = getattr(leaf, name).offset
        whole[at : at + 4] = value
    assert ctypes.sizeof(leaf) == offset + 2 * 8192
    passage = read_passage(bytes(whole))
    tagged = frame[:12] + b"\x81\x00\x00\x07" + frame[12:14]
    assert passage == Passage(1, 2, 9, -1, 3, tagged, 64, frame[14:], 70)


def test_the_ordinary_programs_know_nothing_of_it(scene: Scene) -> None:
    for loaded in (scene.programs.xdp_object, scene.programs.tc_object):
        names = {name.decode() for name in loaded.bpf} | set(loaded.rings)
        assert not names & set(OWN)


def test_terms_are_all_there_are_room_for(capture: Capture) -> None:
    terms = tuple(Term(Part.PORT, number) for number in (40000, 9) * 4)
    capture.programs.set_up(Setup(time.monotonic_ns() + 10**10, ALL, 15, 100, terms))
    assert capture.is_shown("xdp_public", tcp(CLIENT, (VIP, 9)))
    assert not capture.is_shown("xdp_public", tcp(CLIENT, (VIP, 10)))
