"""Real sk_buffs through the programs in TC: merged without a count, with checksums to be finished,
in pieces, in VLANs, to others; both directions, all modes. What comes out is read as from a wire,
and each frame of it built anew by scapy.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1AD, Dot1Q, Ether
from scapy.packet import Packet, Raw

from tests.bpf.harness import LB_MAC, PEER_MAC, ethernet, problems, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    GUE,
    NODE,
    NODE_MAC,
    OWN_PRIVATE,
    OWN_PUBLIC,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    different,
    mac,
    routed,
    with_macs,
    wrapped,
)
from tests.bpf.tap import UDP_FRAGMENTS, UDP_SEGMENTS, Merged, Taps, taps
from tests.bpf.test_fragments import Cut

MODES = {"l2": ("l2", 0), "ipip": ("l3", 0), "gue": ("l3", GUE), "l4": ("l4", 0)}
MSS = 1448
LINEAR = [0, 14, 34, 40, 54]
PIECES = pytest.mark.parametrize("linear", LINEAR)


@pytest.fixture
def tap(scene: Scene) -> Iterator[Taps]:
    with taps(scene) as made:
        made.be_the_machine()
        yield made


@pytest.fixture
def connection(scene: Scene, tap: Taps) -> Connection:
    scene.service("l4")
    made = Connection(scene).establish()
    tap.be_the_machine()
    return made


def data(count: int, size: int = MSS) -> bytes:
    """So many full segments; no two of their bytes stand alike."""
    return bytes(i * 31 % 251 for i in range(count * size))


def segments(
    source: tuple[str, int], to: tuple[str, int], payload: bytes, size: int, **fields: Any
) -> list[bytes]:
    """What one merged TCP packet is on the wire: PSH in the last, ids and numbers counted on."""
    seq, first = fields.pop("seq"), fields.pop("id")
    starts = range(0, len(payload), size)
    return [
        tcp(
            source,
            to,
            "PA" if start == starts[-1] else "A",
            payload[start : start + size],
            seq=seq + start,
            id=first + number,
            **fields,
        )
        for number, start in enumerate(starts)
    ]


def big(frame: bytes, payload: bytes) -> bytes:
    """The frame with more payload than its IP header can tell: that says 0 (BIG TCP)."""
    header = IP(frame[14:34])
    header.len, header.chksum = 0, None
    return frame[:14] + bytes(header) + frame[34:] + payload


def check(got: list[bytes], wanted: list[bytes]) -> None:
    assert len(got) == len(wanted), f"{len(got)} frames, not {len(wanted)}"
    for one, other in zip(got, wanted, strict=True):
        assert one == other, different(one, other)


# --------------------------------------------------------------------------- replies


class TestReplies:
    @PIECES
    @pytest.mark.parametrize("count", [2, 3, 20, 40])
    def test_merged_without_a_count(
        self, tap: Taps, connection: Connection, count: int, linear: int
    ) -> None:
        payload = data(count)[:-100]
        sent = connection.reply("PA", payload, id=7)
        before = tap.scene.counted_at_seat()
        assert tap.write("private", sent, merged=Merged(MSS), linear=linear) == {
            "tc_private.l4_reply": 1
        }
        wanted = segments(SERVICE, CLIENT, payload, MSS, seq=501, ack=102, ttl=63, id=7)
        wanted = [with_macs(frame, PEER_MAC, LB_MAC) for frame in wanted]
        check(tap.read("public"), wanted)
        after = tap.scene.counted_at_seat()
        assert after["packets_out"] - before["packets_out"] == count
        assert after["bytes_out"] - before["bytes_out"] == sum(map(len, wanted))

    @PIECES
    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("size", [0, 1, 1459, 1460])
    def test_one_alone(
        self, tap: Taps, connection: Connection, size: int, partial: bool, linear: int
    ) -> None:
        sent = connection.reply("PA", data(1, size) if size else b"")
        counted = tap.write("private", sent, partial=partial, linear=linear)
        assert counted == {"tc_private.l4_reply": 1}
        wanted = connection.reply_out("PA", data(1, size) if size else b"")
        check(tap.read("public"), [with_macs(wanted, PEER_MAC, LB_MAC)])

    def test_merged_that_is_one(self, tap: Taps, connection: Connection) -> None:
        """It says how long its segments are, and is no longer itself."""
        sent = connection.reply("PA", data(1, 1000))
        assert tap.write("private", sent, merged=Merged(1460)) == {"tc_private.l4_reply": 1}
        wanted = connection.reply_out("PA", data(1, 1000))
        check(tap.read("public"), [with_macs(wanted, PEER_MAC, LB_MAC)])
        assert tap.scene.counted_at_seat()["bytes_out"] == 54 + len(wanted)

    def test_longer_than_the_header_can_say(self, tap: Taps, connection: Connection) -> None:
        """BIG TCP: a total length of 0, of what is merged alone."""
        payload = data(46)
        sent = big(connection.reply("PA", b"", id=7), payload)
        counted = tap.write("private", sent, merged=Merged(MSS))
        assert counted == {"tc_private.l4_reply": 1}
        wanted = segments(SERVICE, CLIENT, payload, MSS, seq=501, ack=102, ttl=63, id=7)
        check(tap.read("public"), [with_macs(frame, PEER_MAC, LB_MAC) for frame in wanted])
        assert tap.scene.counted_at_seat()["packets_out"] == 1 + 46

    def test_no_length_and_not_merged_is_malformed(self, tap: Taps, connection: Connection) -> None:
        sent = bytearray(connection.reply("PA", b"data"))
        sent[16:18] = b"\0\0"
        assert tap.write("private", bytes(sent)) == {"tc_private.pass_malformed": 1}

    @pytest.mark.parametrize("partial", [False, True])
    def test_datagrams(self, tap: Taps, scene: Scene, partial: bool) -> None:
        source = self.asked(tap, scene)
        sent = udp(NODE, source, data(1, 1000))
        counted = tap.write("private", sent, partial=partial)
        assert counted == {"tc_private.l4_reply": 1}
        wanted = udp(SERVICE, CLIENT, data(1, 1000), ttl=63)
        check(tap.read("public"), [with_macs(wanted, PEER_MAC, LB_MAC)])

    def test_merged_datagrams(self, tap: Taps, scene: Scene) -> None:
        source = self.asked(tap, scene)
        payload = data(3, 1200)
        sent = udp(NODE, source, payload, id=7)
        counted = tap.write("private", sent, merged=Merged(1200, UDP_SEGMENTS))
        assert counted == {"tc_private.l4_reply": 1}
        wanted = [
            udp(SERVICE, CLIENT, payload[n * 1200 :][:1200], ttl=63, id=7 + n) for n in range(3)
        ]
        check(tap.read("public"), [with_macs(frame, PEER_MAC, LB_MAC) for frame in wanted])
        assert tap.scene.counted_at_seat()["packets_out"] == 3

    def test_a_datagram_that_the_device_is_to_cut(self, tap: Taps, scene: Scene) -> None:
        source = self.asked(tap, scene)
        payload = data(3, 1480)[8:]
        sent = udp(NODE, source, payload, id=7)
        counted = tap.write("private", sent, merged=Merged(1480, UDP_FRAGMENTS))
        assert counted == {"tc_private.l4_reply": 1}
        got = tap.read("public")
        assert [len(frame) for frame in got] == [1514] * 3
        assert b"".join(frame[34:] for frame in got)[8:] == payload
        whole = IP(src=VIP, dst=CLIENT_ADDRESS, ttl=63, id=7) / Raw(
            b"".join(frame[34:] for frame in got)
        )
        whole.proto = 17
        assert problems(got[0][:14] + bytes(whole)) == []

    def asked(self, tap: Taps, scene: Scene) -> tuple[str, int]:
        """A client has asked; where its answer is to go."""
        scene.service("l4", protocol="udp")
        tap.be_the_machine()
        assert tap.write("public", udp(CLIENT, SERVICE, b"q")) == {"tc_public.l4_new_flow": 1}
        (out,) = tap.read("private")
        return (SNAT, Ether(out)[UDP].sport)


# --------------------------------------------------------------------------- requests


@pytest.mark.parametrize("mode", MODES)
class TestRequests:
    def serve(self, tap: Taps, mode: str, protocol: str = "tcp") -> Connection:
        name, flags = MODES[mode]
        tap.scene.service(name, flags=flags, protocol=protocol)
        connection = Connection(tap.scene)
        if mode == "l4" and protocol == "tcp":
            connection.establish()
        tap.be_the_machine()
        return connection

    def wanted(self, mode: str, frame: bytes, connection: Connection, got: bytes) -> bytes:
        """`frame`: one of the wire, as the client sent it."""
        if mode == "l4":
            whole = IP(routed(frame)[14:])
            whole.src, whole.dst, whole.chksum = SNAT, NODE[0], None
            layer = whole[TCP] if TCP in whole else whole[UDP]
            layer.sport, layer.dport = Ether(got)[type(layer)].sport, NODE[1]
            layer.chksum = None
            frame = frame[:14] + bytes(whole)
        elif mode == "ipip":
            frame = _outer(wrapped(routed(frame)), got)
        elif mode == "gue":
            frame = _outer(wrapped(routed(frame), gue_port=int.from_bytes(got[34:36])), got)
        return with_macs(frame, NODE_MAC, LB_MAC)

    def arrives(self, tap: Taps, mode: str, connection: Connection, wire: list[bytes]) -> None:
        """At the node, each of these that a client sent, as the mode has it."""
        got = tap.read("private")
        assert len(got) == len(wire)
        check(
            got,
            [
                self.wanted(mode, one, connection, other)
                for one, other in zip(wire, got, strict=True)
            ],
        )

    @PIECES
    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_one(self, tap: Taps, mode: str, protocol: str, partial: bool, linear: int) -> None:
        connection = self.serve(tap, mode, protocol)
        payload = data(1, 1001)
        sent = (
            udp(CLIENT, SERVICE, payload)
            if protocol == "udp"
            else connection.request("PA", payload)
        )
        (reason,) = tap.write("public", sent, partial=partial, linear=linear)
        assert "drop" not in reason
        assert "pass" not in reason
        (got,) = tap.read("private")
        check([got], [self.wanted(mode, sent, connection, got)])
        assert problems(got) == []

    @PIECES
    @pytest.mark.parametrize("count", [2, 30])
    def test_merged_without_a_count(self, tap: Taps, mode: str, count: int, linear: int) -> None:
        connection = self.serve(tap, mode)
        size = 1400
        payload = data(count, size)
        before = tap.scene.counted_at_seat()
        sent = connection.request("PA", payload, id=7)
        tap.write("public", sent, merged=Merged(size), linear=linear)
        wire = segments(CLIENT, SERVICE, payload, size, seq=101, ack=501, id=7)
        got = tap.read("private")
        assert len(got) == count
        check(
            got,
            [
                self.wanted(mode, one, connection, other)
                for one, other in zip(wire, got, strict=True)
            ],
        )
        after = tap.scene.counted_at_seat()
        assert after["packets_in"] - before.get("packets_in", 0) == count
        assert after["bytes_in"] - before.get("bytes_in", 0) == sum(map(len, wire))

    @pytest.mark.parametrize("size", [65_485, 65_496, 65_800, 100_000])
    def test_longer_than_a_header_can_say(self, tap: Taps, mode: str, size: int) -> None:
        """The client's own, or the one that is put around it: in L3 that is longer."""
        connection = self.serve(tap, mode)
        before = tap.scene.counted_at_seat()
        payload = data(1, size)
        sent = (
            connection.request("PA", payload, id=7)
            if size <= 0xFFFF - 40
            else big(connection.request("PA", b"", id=7), payload)
        )
        (reason,) = tap.write("public", sent, merged=Merged(1400))
        assert reason == (
            "tc_public.l4_established" if mode == "l4" else f"tc_public.{MODES[mode][0]}_forwarded"
        )
        wire = segments(CLIENT, SERVICE, payload, 1400, seq=101, ack=501, id=7)
        self.arrives(tap, mode, connection, wire)
        after = tap.scene.counted_at_seat()
        assert after["packets_in"] - before.get("packets_in", 0) == len(wire)
        assert after["bytes_in"] - before.get("bytes_in", 0) == sum(map(len, wire))

    def test_merged_datagrams(self, tap: Taps, mode: str) -> None:
        connection = self.serve(tap, mode, "udp")
        payload = data(3, 1200)[:-100]
        sent = udp(CLIENT, SERVICE, payload, id=7)
        (reason,) = tap.write("public", sent, merged=Merged(1200, UDP_SEGMENTS))
        assert "drop" not in reason
        wire = [udp(CLIENT, SERVICE, payload[n * 1200 :][:1200], id=7 + n) for n in range(3)]
        self.arrives(tap, mode, connection, wire)
        after = tap.scene.counted_at_seat()
        assert after["packets_in"] == 3
        assert after["bytes_in"] == sum(map(len, wire))

    def test_a_datagram_that_the_device_is_to_cut(self, tap: Taps, mode: str) -> None:
        """The kernel puts nothing around such a one, as old virtual machines send."""
        self.serve(tap, mode, "udp")
        tap.node_behind("private", mtu=1600)
        payload = data(3, 1480)[8:]
        sent = udp(CLIENT, SERVICE, payload, id=7)
        counted = tap.write("public", sent, merged=Merged(1480, UDP_FRAGMENTS))
        got = tap.read("private")
        if MODES[mode][0] == "l3":
            assert counted == {"tc_public.drop_rewrite_failed": 1}
            assert got == []
            return
        assert [len(frame) for frame in got] == [1514] * 3
        assert b"".join(frame[34:] for frame in got)[8:] == payload

    @pytest.mark.parametrize("merged", [None, Merged(1400)])
    def test_too_long(self, tap: Taps, mode: str, merged: Merged | None) -> None:
        """The client is told what fits, whatever its device left undone."""
        connection = self.serve(tap, mode)
        tap.node_behind("private", mtu=1300)
        sent = _unfragmented(connection.request("PA", data(2, 1400) if merged else data(1, 1400)))
        counted = tap.write("public", sent, merged=merged, partial=True)
        assert counted == {"tc_public.too_big_answered": 1}
        fits = 1300 - {"ipip": 20, "gue": 32}.get(mode, 0)
        _check_error(tap, "public", sent, ICMP(type=3, code=4, nexthopmtu=fits), VIP)

    @pytest.mark.parametrize(
        ("to", "is_ours"),
        [(LB_MAC, True), ("02:00:00:00:00:0c", False), ("ff:ff:ff:ff:ff:ff", False),
         ("01:00:5e:00:00:01", False)],
    )  # fmt: skip
    def test_to_whom(self, tap: Taps, mode: str, to: str, is_ours: bool) -> None:
        connection = self.serve(tap, mode)
        (reason,) = tap.write("public", mac(to) + connection.request()[6:])
        assert (reason == "tc_public.pass_other_mac") == (not is_ours)
        assert len(tap.read("private")) == is_ours


def test_the_kernel_knows_a_new_address_first(tap: Taps, scene: Scene) -> None:
    """The maps say it a moment later."""
    scene.service("l2")
    tap.be_the_machine()
    other = "02:00:00:00:00:0c"
    tap.give_address("public", other)
    frame = mac(other) + tcp(CLIENT, SERVICE)[6:]
    assert tap.write("public", frame) == {"tc_public.l2_forwarded": 1}
    assert len(tap.read("private")) == 1


def _outer(frame: bytes, got: bytes) -> bytes:
    """The kernel numbers the outer packets of what was merged; each is a packet of its own."""
    header = IP(frame[14:34])
    header.id, header.chksum = int.from_bytes(got[18:20]), None
    return frame[:14] + bytes(header) + frame[34:]


def _unfragmented(frame: bytes) -> bytes:
    header = IP(frame[14:34])
    header.flags, header.chksum = "DF", None
    return frame[:14] + bytes(header) + frame[34:]


# --------------------------------------------------------------------------- answers


def _check_error(
    tap: Taps, side: Any, about: bytes, error: Packet, source: str, *, quoted: int = 40
) -> None:
    """One error has left, with all its checksums right, and quotes what it is about."""
    (got,) = tap.read(side)
    assert problems(got) == []
    seen = Ether(got)
    assert (seen.src, seen.dst) == (LB_MAC, PEER_MAC)
    assert (seen[IP].src, seen[IP].dst) == (source, IP(about[14:]).src)
    for field in ("type", "code", "nexthopmtu" if error.type == 3 else "unused"):
        assert getattr(seen[ICMP], field) == getattr(error, field), repr(seen)
    quote = got[42:]
    assert len(quote) == quoted
    check_at = 36 if about[23] == 6 else 26
    for at in range(quoted):
        if at not in (check_at, check_at + 1) or (quoted == 28 and about[23] == 6):
            assert quote[at] == about[14 + at], at


class TestAnswers:
    @pytest.mark.parametrize("partial", [False, True])
    def test_too_long_for_the_client(
        self, tap: Taps, connection: Connection, partial: bool
    ) -> None:
        sent = _unfragmented(connection.reply("PA", data(1, 3000)))
        counted = tap.write("private", sent, partial=partial)
        assert counted == {"tc_private.too_big_answered": 1}
        error = ICMP(type=3, code=4, nexthopmtu=1500)
        _check_error(tap, "private", sent, error, SNAT, quoted=40 if partial else 28)

    def test_merged_too_long_for_the_client(self, tap: Taps, connection: Connection) -> None:
        """By the headers alone."""
        sent = _unfragmented(connection.reply("PA", data(3, 1461)))
        counted = tap.write("private", sent, merged=Merged(1461))
        assert counted == {"tc_private.too_big_answered": 1}
        _check_error(tap, "private", sent, ICMP(type=3, code=4, nexthopmtu=1500), SNAT)

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("fill", [0, 1, 0x55, 0xFF])
    def test_a_datagram_too_long_for_the_client(
        self, tap: Taps, scene: Scene, partial: bool, fill: int
    ) -> None:
        source = TestReplies().asked(tap, scene)
        sent = _unfragmented(udp(NODE, source, bytes([fill]) * 3000))
        counted = tap.write("private", sent, partial=partial)
        assert counted == {"tc_private.too_big_answered": 1}
        error = ICMP(type=3, code=4, nexthopmtu=1500)
        _check_error(tap, "private", sent, error, SNAT, quoted=28)

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("side", ["public", "private"])
    def test_time_ran_out(
        self, tap: Taps, connection: Connection, side: Any, partial: bool
    ) -> None:
        make = connection.request if side == "public" else connection.reply
        sent = make("PA", b"odd", ttl=1)
        counted = tap.write(side, sent, partial=partial)
        assert counted == {f"tc_{side}.ttl_answered": 1}
        own = OWN_PUBLIC if side == "public" else OWN_PRIVATE
        error = ICMP(type=11, code=0)
        _check_error(tap, side, sent, error, own, quoted=40 if partial else 28)

    @pytest.mark.parametrize("partial", [False, True])
    @pytest.mark.parametrize("payload", [b"", b"odd", data(1)])
    def test_no_flow(self, tap: Taps, scene: Scene, partial: bool, payload: bytes) -> None:
        scene.service("l4")
        tap.be_the_machine()
        sent = tcp(CLIENT, SERVICE, "A", payload, seq=5000, ack=700)
        counted = tap.write("public", sent, partial=partial)
        assert counted == {"tc_public.no_flow_reset": 1}
        check(tap.read("public"), [_reset(700)])

    @pytest.mark.parametrize("partial", [False, True])
    def test_no_flow_of_what_has_ip_options(self, tap: Taps, scene: Scene, partial: bool) -> None:
        """Its device would write the checksum where the options have put it."""
        scene.service("l4")
        tap.be_the_machine()
        segment = TCP(sport=CLIENT[1], dport=SERVICE[1], flags="A", seq=5000, ack=700)
        options: dict[str, Any] = {"options": [bytes([0x88, 4, 7, 7])] * 10}
        sent = ethernet(IP(src=CLIENT_ADDRESS, dst=VIP, **options) / segment)
        counted = tap.write("public", sent, partial=partial)
        assert counted == {f"tc_public.{'drop_no_flow' if partial else 'no_flow_reset'}": 1}
        check(tap.read("public"), [] if partial else [_reset(700)])

    def test_no_flow_of_what_is_merged(self, tap: Taps, scene: Scene) -> None:
        scene.service("l4")
        tap.be_the_machine()
        sent = tcp(CLIENT, SERVICE, "A", data(4), seq=5000, ack=700)
        assert tap.write("public", sent, merged=Merged(MSS)) == {"tc_public.no_flow_reset": 1}
        check(tap.read("public"), [_reset(700)])

    @pytest.mark.parametrize("partial", [False, True])
    def test_no_node(self, tap: Taps, scene: Scene, partial: bool) -> None:
        scene.service("l4", protocol="udp", seats=[0])
        tap.be_the_machine()
        sent = udp(CLIENT, SERVICE, b"question")
        counted = tap.write("public", sent, partial=partial)
        assert counted == {"tc_public.no_node_refused": 1}
        _check_error(tap, "public", sent, ICMP(type=3, code=3), VIP, quoted=28)


def _reset(seq: int) -> bytes:
    segment = TCP(sport=SERVICE[1], dport=CLIENT[1], flags="R", seq=seq, window=0)
    whole = IP(src=VIP, dst=CLIENT_ADDRESS, id=0, flags="DF", ttl=64) / segment
    return bytes(Ether(src=LB_MAC, dst=PEER_MAC) / whole)


# --------------------------------------------------------------------------- VLANs

TAGS: dict[str, list[Packet]] = {
    "untagged": [],
    "7": [Dot1Q(vlan=7)],
    "8": [Dot1Q(vlan=8)],
    "4094": [Dot1Q(vlan=4094)],
    "a priority alone": [Dot1Q(vlan=0, prio=5)],
    "7 with a priority": [Dot1Q(vlan=7, prio=5)],
    "service tag": [Dot1AD(vlan=7)],
    "7 in 9": [Dot1AD(vlan=9), Dot1Q(vlan=7)],
}
RETURNED = TAGS | {"a priority alone": [], "7 with a priority": [Dot1Q(vlan=7)]}
SINGLE = [name for name, tags in TAGS.items() if len(tags) < 2]


def tagged(frame: bytes, tags: list[Packet]) -> bytes:
    ethernet = Ether(frame[:14])
    whole: Packet = Ether(dst=ethernet.dst, src=ethernet.src)
    for tag in tags:
        whole = whole / tag.copy()
    return bytes(whole / IP(frame[14:]))


class TestVlans:
    """The programs stand on the device that all VLANs come by."""

    def open(self, tap: Taps, tags: list[Packet], node: tuple[str, int] = NODE) -> Connection:
        """A handshake of a client in that VLAN; what was sent to the node has no tag."""
        connection = Connection(tap.scene)
        self.ask(tap, connection, connection.request("S", seq=100, ack=0), tags)
        tap.write("private", connection.reply("SA", seq=500, ack=101))
        tap.read("public")
        self.ask(tap, connection, connection.request("A"), tags)
        return connection

    def ask(self, tap: Taps, connection: Connection, frame: bytes, tags: list[Packet]) -> None:
        (reason,) = tap.write("public", tagged(frame, tags))
        assert reason.startswith("tc_public.l4_")
        (out,) = tap.read("private")
        connection.source = (SNAT, Ether(out)[TCP].sport)
        assert Ether(out).type == 0x0800
        assert problems(out) == []

    def replied(self, tap: Taps, connection: Connection) -> bytes:
        sent = connection.reply("PA", b"answer")
        assert tap.write("private", sent, partial=True) == {"tc_private.l4_reply": 1}
        (got,) = tap.read("public")
        assert problems(got) == []
        return got

    @pytest.mark.parametrize("name", TAGS)
    def test_a_reply_goes_back_into_its_vlan(self, tap: Taps, scene: Scene, name: str) -> None:
        scene.service("l4")
        tap.be_the_machine()
        connection = self.open(tap, TAGS[name])
        wanted = with_macs(connection.reply_out("PA", b"answer"), PEER_MAC, LB_MAC)
        check([self.replied(tap, connection)], [tagged(wanted, RETURNED[name])])

    @pytest.mark.parametrize("name", TAGS)
    def test_so_does_one_in_fragments(self, tap: Taps, scene: Scene, name: str) -> None:
        """Those without ports follow the first."""
        scene.service("l4", protocol="udp")
        tap.be_the_machine()
        asked = tap.write("public", tagged(udp(CLIENT, SERVICE, b"q"), TAGS[name]))
        assert asked == {"tc_public.l4_new_flow": 1}
        (out,) = tap.read("private")
        for frame in Cut(NODE, (SNAT, Ether(out)[UDP].sport)).frames():
            tap.write("private", frame)
        wanted = [with_macs(one, PEER_MAC, LB_MAC) for one in Cut(SERVICE, CLIENT, ttl=63).frames()]
        check(tap.read("public"), [tagged(one, RETURNED[name]) for one in wanted])

    @pytest.mark.parametrize("before", ["untagged", "7"])
    @pytest.mark.parametrize("name", ["8", "untagged", "7 in 9"])
    def test_the_client_is_where_it_was_heard_last(
        self, tap: Taps, scene: Scene, before: str, name: str
    ) -> None:
        scene.service("l4")
        tap.be_the_machine()
        connection = self.open(tap, TAGS[before])
        self.ask(tap, connection, connection.request("PA", b"x"), TAGS[name])
        wanted = with_macs(connection.reply_out("PA", b"answer"), PEER_MAC, LB_MAC)
        check([self.replied(tap, connection)], [tagged(wanted, RETURNED[name])])

    def test_merged(self, tap: Taps, scene: Scene) -> None:
        scene.service("l4")
        tap.be_the_machine()
        connection = self.open(tap, TAGS["7"])
        payload = data(5)
        sent = connection.reply("PA", payload, id=7)
        assert tap.write("private", sent, merged=Merged(MSS)) == {"tc_private.l4_reply": 1}
        wanted = segments(SERVICE, CLIENT, payload, MSS, seq=501, ack=102, ttl=63, id=7)
        whole = [tagged(with_macs(one, PEER_MAC, LB_MAC), TAGS["7"]) for one in wanted]
        check(tap.read("public"), whole)

    @pytest.mark.parametrize("name", TAGS)
    def test_the_nodes_tag_comes_off(self, tap: Taps, connection: Connection, name: str) -> None:
        sent = tagged(connection.reply("PA", b"answer"), TAGS[name])
        assert tap.write("private", sent) == {"tc_private.l4_reply": 1}
        wanted = with_macs(connection.reply_out("PA", b"answer"), PEER_MAC, LB_MAC)
        check(tap.read("public"), [wanted])

    @pytest.mark.parametrize("name", SINGLE)
    @pytest.mark.parametrize("partial", [False, True])
    def test_an_answer_goes_back_into_its_vlan(
        self, tap: Taps, scene: Scene, name: str, partial: bool
    ) -> None:
        scene.service("l4")
        tap.be_the_machine()
        sent = tagged(tcp(CLIENT, SERVICE, "A", b"x", seq=5000, ack=700), TAGS[name])
        assert tap.write("public", sent, partial=partial) == {"tc_public.no_flow_reset": 1}
        check(tap.read("public"), [tagged(_reset(700), TAGS[name])])

    @pytest.mark.parametrize("name", TAGS)
    @pytest.mark.parametrize("mode", ["l2", "ipip", "gue"])
    def test_stateless(self, tap: Taps, scene: Scene, mode: str, name: str) -> None:
        """The node is on another network than the client's: the tag comes off."""
        kind, flags = MODES[mode]
        scene.service(kind, flags=flags)
        tap.be_the_machine()
        (reason,) = tap.write("public", tagged(tcp(CLIENT, SERVICE), TAGS[name]), partial=True)
        assert reason == f"tc_public.{kind}_forwarded"
        (got,) = tap.read("private")
        assert Ether(got).type == 0x0800
        assert problems(got) == []
