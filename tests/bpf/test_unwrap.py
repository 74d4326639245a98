"""On the node: outer headers come off what is for a VIP, and nothing else is touched."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from scapy.layers.inet import IP, TCP, UDP
from scapy.packet import Packet, Raw

from bpf.loader import LoadedObject, compile_programs
from tests.bpf.harness import (
    IMAGES,
    TcVerdict,
    XdpVerdict,
    ethernet,
    problems,
    run_tc,
    run_xdp,
    tcp,
    udp,
)
from tests.bpf.scene import CLIENT, SERVICE, SNAT, VIP, address, least_bytes, wrapped

NODE = "10.81.0.20"
UNWRAPPED, CONGESTION_DROPPED = 0, 1


class Unwrapper:
    """The program at one hook."""

    def __init__(self, hook: str, loaded: LoadedObject) -> None:
        self.hook = hook
        self._count = loaded.bpf[b"unwrapped"]
        self._fd = loaded.function("gale_unwrap", "tc" if hook == "tc" else "xdp")
        self._run = run_tc if hook == "tc" else run_xdp

    def __call__(self, frame: bytes) -> tuple[bytes, int]:
        """Frame in → frame out, and how many were unwrapped. All goes on to the kernel."""
        before = self.counted()
        result = self._run(self._fd, frame)
        assert result.verdict in (TcVerdict.UNSPEC, XdpVerdict.PASS)
        return result.packet, self.counted() - before

    def is_dropped(self, frame: bytes) -> bool:
        result = self._run(self._fd, frame)
        return result.verdict in (TcVerdict.SHOT, XdpVerdict.DROP)

    def counted(self, outcome: int = UNWRAPPED) -> int:
        return sum(int(count) for count in self._count[outcome])


@pytest.fixture(scope="session")
def objects() -> Iterator[dict[str, LoadedObject]]:
    loaded = {
        "tc": compile_programs(["unwrap.c"], cache_dir=IMAGES)[0],
        "xdp": compile_programs(["unwrap.c"], defines={"GALE_XDP": 1}, cache_dir=IMAGES)[0],
    }
    for each in loaded.values():
        vips = each.bpf[b"vips"]
        vips[vips.Key(address(VIP))] = vips.Leaf(1)
    yield loaded
    for each in loaded.values():
        each.close()


@pytest.fixture(params=["tc", "xdp"])
def unwrap(request: pytest.FixtureRequest, objects: dict[str, LoadedObject]) -> Unwrapper:
    return Unwrapper(request.param, objects[request.param])


INNER = {
    "SYN": tcp(CLIENT, SERVICE),
    "data": tcp(CLIENT, SERVICE, "PA", b"odd"),
    "udp": udp(CLIENT, SERVICE, b"question"),
    "with options": udp(CLIENT, SERVICE, b"q", options=[b"\x01\x01\x01\x00"]),
    "a later fragment": ethernet(IP(dst=VIP, proto=17, frag=100) / Raw(bytes(100))),
    "padded": tcp(CLIENT, SERVICE) + bytes(6),
    "long": tcp(CLIENT, SERVICE, "A", bytes(1400)),
    "nothing but a header": ethernet(IP(src=CLIENT[0], dst=VIP, proto=99)),
    "wrong inside": tcp(CLIENT, SERVICE, "PA", b"data")[:-1] + b"!",
}


@pytest.mark.parametrize("name", INNER)
@pytest.mark.parametrize("gue_port", [None, 50000])
def test_unwrapped(unwrap: Unwrapper, name: str, gue_port: int | None) -> None:
    outer = wrapped(INNER[name], gue_port=gue_port, source=SNAT, node=NODE)
    assert unwrap(outer) == (INNER[name], 1)


NOT_ECT, ECT_1, ECT_0, CE = range(4)
DROP = -1
DECAPSULATED = {
    NOT_ECT: {NOT_ECT: NOT_ECT, ECT_0: NOT_ECT, ECT_1: NOT_ECT, CE: DROP},
    ECT_0: {NOT_ECT: ECT_0, ECT_0: ECT_0, ECT_1: ECT_1, CE: CE},
    ECT_1: {NOT_ECT: ECT_1, ECT_0: ECT_1, ECT_1: ECT_1, CE: CE},
    CE: {NOT_ECT: CE, ECT_0: CE, ECT_1: CE, CE: CE},
}
"""RFC 6040, figure 4: by the mark inside, then by the mark outside."""


@pytest.mark.parametrize("inside", DECAPSULATED)
@pytest.mark.parametrize("outside", range(4))
@pytest.mark.parametrize("gue_port", [None, 50000])
@pytest.mark.parametrize("dscp", [0, 0xB8, 0xFC])
def test_congestion_is_carried_inside(
    unwrap: Unwrapper, inside: int, outside: int, gue_port: int | None, dscp: int
) -> None:
    frame = tcp(CLIENT, SERVICE, "PA", b"data", tos=dscp | inside)
    outer = bytearray(wrapped(frame, gue_port=gue_port))
    header = IP(bytes(outer[14:34]))
    header.tos, header.chksum = 0x40 | outside, None
    outer[14:34] = bytes(header)
    mark = DECAPSULATED[inside][outside]
    before = unwrap.counted(CONGESTION_DROPPED)
    if mark == DROP:
        assert unwrap.is_dropped(bytes(outer))
        assert unwrap.counted(CONGESTION_DROPPED) == before + 1
        return
    wanted = tcp(CLIENT, SERVICE, "PA", b"data", tos=dscp | mark)
    assert unwrap(bytes(outer)) == (wanted, 1)
    assert unwrap.counted(CONGESTION_DROPPED) == before


def gue(inner: Packet | bytes, header: bytes = b"\0\4\0\0", port: int = 6080) -> bytes:
    datagram = UDP(sport=50000, dport=port, chksum=0) / Raw(header + bytes(inner))
    return ethernet(IP(src=SNAT, dst=NODE) / datagram)


def ipip(inner: Packet | bytes, **fields: Any) -> bytes:
    return ethernet(IP(src=SNAT, dst=NODE, **{"proto": 4, **fields}) / Raw(bytes(inner)))


TO_VIP = IP(src=CLIENT[0], dst=VIP) / TCP(dport=80)
UNTOUCHED = {
    "not wrapped": tcp(CLIENT, SERVICE),
    "to no VIP": ipip(IP(dst="10.80.0.101") / TCP()),
    "gue to no VIP": gue(IP(dst="10.80.0.101") / TCP()),
    "outer options": ipip(TO_VIP, options=[b"\x01\x01\x01\x00"]),
    "an outer first fragment": ipip(TO_VIP, flags="MF"),
    "an outer later fragment": ipip(TO_VIP, frag=1),
    "IPv6 inside": ipip(b"\x60" + bytes(TO_VIP)[1:]),
    "another tunnel": ipip(TO_VIP, proto=47),
    "gue at another port": gue(TO_VIP, port=6081),
    "gue version 1": gue(TO_VIP, b""),
    "gue with optional words": gue(TO_VIP, b"\1\4\0\0wxyz"),
    "gue control": gue(TO_VIP, b"\x20\4\0\0"),
    "gue with flags": gue(TO_VIP, b"\0\4\0\1"),
    "gue of another protocol": gue(TO_VIP, b"\0\x29\0\0"),
    "gue of IPv6": gue(b"\x60" + bytes(TO_VIP)[1:]),
    "nothing inside": ipip(b""),
    "half a header inside": ipip(bytes(TO_VIP)[:19]),
    "gue with nothing inside": gue(b""),
    "tagged": ethernet(IP(ipip(TO_VIP)[14:]), vlans=(5,)),
    "arp": ethernet(TO_VIP)[:12] + b"\x08\x06" + bytes(28),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_untouched(unwrap: Unwrapper, name: str) -> None:
    assert unwrap(UNTOUCHED[name]) == (UNTOUCHED[name], 0)


@pytest.mark.parametrize("gue_port", [None, 50000])
def test_every_truncation(unwrap: Unwrapper, gue_port: int | None) -> None:
    """What is cut off inside is the kernel's to judge; before that, nothing is touched."""
    inner = INNER["data"]
    whole = wrapped(inner, gue_port=gue_port)
    overhead = len(whole) - len(inner)
    for size in range(least_bytes(unwrap.hook, whole), len(whole)):
        if size < 14 + overhead + 20:
            assert unwrap(whole[:size]) == (whole[:size], 0), size
        else:
            assert unwrap(whole[:size]) == (inner[: size - overhead], 1), size


def test_what_a_load_balancer_wraps_arrives_whole(unwrap: Unwrapper) -> None:
    frame, _ = unwrap(wrapped(INNER["data"]))
    assert problems(frame) == []
