"""The rig itself: what it says of good and bad packets, and what it hands to the programs."""

from __future__ import annotations

import errno

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from tests.bpf.harness import (
    LOOPBACK,
    TcVerdict,
    XdpVerdict,
    ethernet,
    icmp,
    problems,
    program,
    rig,
    run_tc,
    run_xdp,
    tcp,
    udp,
)

CLIENT = ("192.0.2.1", 40000)
VIP = ("198.51.100.7", 80)
INNER = IP(src=CLIENT[0], dst=VIP[0]) / TCP(sport=1, dport=2) / Raw(b"odd")
OUTER = IP(src="10.0.0.1", dst="10.0.0.2")


def gue(inner: Packet, header: bytes = b"\x00\x04\x00\x00") -> bytes:
    return ethernet(OUTER / UDP(sport=999, dport=6080) / Raw(header + bytes(inner)))


GOOD = {
    "tcp": tcp(CLIENT, VIP, "PA", b"odd"),
    "tcp with options": tcp(CLIENT, VIP, options=[("MSS", 1460), ("SAckOK", b"")]),
    "udp": udp(CLIENT, VIP, b"even"),
    "icmp": icmp(CLIENT[0], VIP[0], payload=b"ping"),
    "vlan": tcp(CLIENT, VIP, vlans=(5,)),
    "qinq": udp(CLIENT, VIP, b"odd", vlans=(5, 6)),
    "ip options": ethernet(IP(dst=VIP[0], options=[b"\x07\x04\x04\x00"]) / TCP()),
    "ipip": ethernet(OUTER / INNER),
    "gue": gue(INNER),
    "gue with a private field": gue(INNER, b"\x01\x04\x00\x00abcd"),
    "gue version 1": gue(INNER, b""),
}


@pytest.mark.parametrize("name", GOOD)
def test_packets_built_by_scapy_are_well(name: str) -> None:
    assert problems(GOOD[name]) == []


@pytest.mark.parametrize("name", GOOD)
def test_every_flipped_bit_behind_the_ethernet_header_is_a_problem(name: str) -> None:
    frame = GOOD[name]
    start = 14 + 4 * {"vlan": 1, "qinq": 2}.get(name, 0)
    for at in range(start, len(frame)):
        spoilt = frame[:at] + bytes([frame[at] ^ 0x04]) + frame[at + 1 :]
        assert problems(spoilt), f"{name}: byte {at}"


@pytest.mark.parametrize("name", GOOD)
def test_every_truncation_is_a_problem(name: str) -> None:
    frame = GOOD[name]
    for size in range(18 + 4 * {"vlan": 1, "qinq": 2}.get(name, 0), len(frame)):
        assert problems(frame[:size]), f"{name}: {size} bytes"


def test_padding_of_short_frames_is_no_problem() -> None:
    assert problems(GOOD["tcp"] + bytes(6)) == []


def test_udp_without_a_checksum_is_no_problem() -> None:
    frame = bytearray(GOOD["udp"])
    frame[40:42] = b"\0\0"
    assert problems(bytes(frame)) == []


@pytest.mark.parametrize("offset", [0, 1])
def test_of_a_fragment_only_the_ip_header_is_judged(offset: int) -> None:
    packet = IP(dst=VIP[0], flags="MF" if offset == 0 else 0, frag=offset, proto=17) / Raw(b"x" * 8)
    frame = ethernet(packet)
    assert problems(frame) == []
    assert problems(frame[:24] + b"\xff\xff" + frame[26:]) == ["ipv4: header checksum"]


def test_icmp_errors_are_judged_as_a_whole() -> None:
    frame = icmp("10.0.0.1", CLIENT[0], 3, 4, bytes(INNER)[:28])
    assert problems(frame) == []
    assert ICMP in ethernet_of(frame)
    assert problems(frame[:-1] + b"\xee") == ["icmp: checksum"]


def ethernet_of(frame: bytes) -> Packet:
    from scapy.layers.l2 import Ether

    return Ether(frame)


PROGRAMS = """
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include "map_macros.h"
GALE_MAP("array", int, u64, seen, 2, 0);

static __always_inline void add(int at, u64 amount)
{
	u64 *value = seen.lookup(&at);

	if (value)
		*value += amount;
}

int gale_xdp_grow(struct xdp_md *ctx)
{
	add(0, ctx->ingress_ifindex);
	add(1, 1);
	if (bpf_xdp_adjust_head(ctx, -20))
		return XDP_ABORTED;
	return XDP_TX;
}

int gale_tc_spoil(struct __sk_buff *ctx)
{
	u8 zero = 0;

	add(0, ctx->ingress_ifindex);
	add(1, ctx->ifindex);
	bpf_skb_store_bytes(ctx, 0, &zero, 1, 0);
	return TC_ACT_SHOT;
}
"""


def test_xdp_runs_with_its_interface_and_gives_back_the_grown_packet() -> None:
    with program(PROGRAMS) as loaded:
        fd = loaded.function("gale_xdp_grow", "xdp")
        result = run_xdp(fd, GOOD["tcp"])
        seen = loaded.bpf[b"seen"]
        assert result.verdict is XdpVerdict.TX
        assert len(result.packet) == len(GOOD["tcp"]) + 20
        assert result.packet[20:] == GOOD["tcp"]
        assert [seen[0].value, seen[1].value] == [LOOPBACK, 1]


def test_repetitions_are_real_runs() -> None:
    with program(PROGRAMS) as loaded:
        run_tc(loaded.function("gale_tc_spoil", "tc"), GOOD["tcp"], repeat=100)
        assert loaded.bpf[b"seen"][1].value == 100 * LOOPBACK


def test_tc_runs_with_its_interfaces_and_gives_back_the_written_packet() -> None:
    with program(PROGRAMS) as loaded:
        result = run_tc(loaded.function("gale_tc_spoil", "tc"), GOOD["udp"])
        seen = loaded.bpf[b"seen"]
        assert result.verdict is TcVerdict.SHOT
        assert result.packet == b"\0" + GOOD["udp"][1:]
        assert [seen[0].value, seen[1].value] == [LOOPBACK, LOOPBACK]


def test_a_packet_shorter_than_an_ethernet_header_is_refused_by_the_kernel() -> None:
    with program(PROGRAMS) as loaded, pytest.raises(OSError, match="PROG_TEST_RUN") as refusal:
        run_xdp(loaded.function("gale_xdp_grow", "xdp"), bytes(13))
    assert refusal.value.errno == errno.EINVAL


def test_the_rig_counts_and_forgets() -> None:
    with rig() as programs:
        assert programs.counted() == {}
        result = programs.xdp_public(GOOD["tcp"])
        assert result.verdict is XdpVerdict.PASS
        assert result.packet == GOOD["tcp"]
        assert sum(programs.counted().values()) == 1
        programs.tc_public(GOOD["tcp"])
        programs.tc_private(GOOD["tcp"])
        assert sum(programs.counted().values()) == 3
    with rig() as programs:
        assert programs.counted() == {}


def test_the_rigs_programs_share_their_maps() -> None:
    with rig() as programs:
        programs.table("sources")[1] = programs.table("sources").Leaf(flows=7)
        assert programs.tc_object.bpf[b"sources"][1].flows == 7
    with rig() as programs:
        assert list(programs.table("sources").items()) == []
