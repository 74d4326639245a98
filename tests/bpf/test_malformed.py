"""Packets cut short, and packets whose headers lie: passed as they came, at every program."""

from __future__ import annotations

import pytest
from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.packet import Packet, Raw

from tests.bpf.harness import ethernet, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    GUE,
    NODE,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    ROUTER,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    address,
    kind_of,
    least_bytes,
    to_node,
    wrapped,
)

HOOKS = [*REQUEST_HOOKS, *REPLY_HOOKS]
MODES = {"l2": 0, "l3": 0, "gue": GUE, "l4": 0}
SOURCE = (SNAT, 20000)
"""What the node sees of the established flow in L4: the slice has this one port."""


def serve(scene: Scene, mode: str) -> None:
    number = 0
    for protocol in ("tcp", "udp"):
        for port in (SERVICE[1], 6080):
            scene.service(
                "l3" if mode == "gue" else mode,
                flags=MODES[mode],
                protocol=protocol,
                at=(VIP, port),
                number=number,
                snat_first_port=SOURCE[1],
                snat_ports=1,
            )
            number += 1
    if mode == "l4":
        Connection(scene).establish()


ERROR = IP(src=ROUTER, dst=VIP) / ICMP(type=3, code=4) / Raw(tcp(SERVICE, CLIENT, "A")[14:])
ERROR_BACK = IP(src=NODE[0], dst=SNAT) / ICMP(type=3, code=3) / Raw(tcp(SOURCE, NODE, "A")[14:])
WHOLE = {
    "tcp": tcp(CLIENT, SERVICE, "PA", b"0123456789", ack=501, options=[("MSS", 1460)]),
    "tcp reply": tcp(NODE, SOURCE, "PA", b"0123456789"),
    "udp": udp(CLIENT, SERVICE, b"0123456789"),
    "ipip": wrapped(tcp(CLIENT, SERVICE), source=CLIENT_ADDRESS, node=VIP),
    "gue": wrapped(tcp(CLIENT, SERVICE), gue_port=50000, source=CLIENT_ADDRESS, node=VIP),
    "icmp error": ethernet(ERROR),
    "icmp error of a node": ethernet(ERROR_BACK),
    "one tag": tcp(CLIENT, SERVICE, "A", b"0123", vlans=(5,)),
    "two tags": udp(CLIENT, SERVICE, b"0123", vlans=(5, 6)),
    "ip options": udp(CLIENT, SERVICE, b"0123", options=[b"\x01" * 40]),
    "a later fragment": ethernet(IP(src=CLIENT[0], dst=VIP, proto=17, frag=9) / Raw(bytes(30))),
    "arp": b"\xff" * 12 + b"\x08\x06" + bytes(28),
    "ipv6": b"\xff" * 12 + b"\x86\xdd\x60" + bytes(59),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", WHOLE)
def test_every_truncation_passes_as_it_came(scene: Scene, hook: str, name: str, mode: str) -> None:
    serve(scene, mode)
    whole = WHOLE[name]
    for size in range(least_bytes(hook, whole), len(whole)):
        outcome = scene.send(hook, whole[:size])
        assert kind_of(outcome.reason) == "pass", f"{size} bytes: {outcome.reason}"


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("name", ["tcp", "udp", "icmp error"])
def test_every_length_that_the_ip_header_may_claim(scene: Scene, hook: str, name: str) -> None:
    """Cut as by its own word: the rest is padding. Never is a byte read that is not claimed."""
    serve(scene, "l4")
    least = {"tcp": 40, "udp": 28, "icmp error": 52}[name]
    for claimed in range(len(WHOLE[name]) - 14):
        packet = IP(WHOLE[name][14:])
        packet.len, packet.chksum = claimed, None
        outcome = scene.send(hook, ethernet(packet))
        if claimed < least:
            assert kind_of(outcome.reason) == "pass", f"{claimed}: {outcome.reason}"
        else:
            assert kind_of(outcome.reason) == "forward", f"{claimed}: {outcome.reason}"


def lying(packet: Packet, **fields: int) -> bytes:
    """IP fields that scapy would have got right."""
    whole = bytearray(bytes(packet))
    places = {"version": 0, "ihl": 0, "len": 2}
    for name, value in fields.items():
        if name == "len":
            whole[2:4] = value.to_bytes(2)
        elif name == "version":
            whole[places[name]] = value << 4 | whole[0] & 0x0F
        else:
            whole[places[name]] = whole[0] & 0xF0 | value
    return ethernet(IP(src=CLIENT_ADDRESS, dst=VIP))[:14] + bytes(whole)


SEGMENT = IP(src=CLIENT_ADDRESS, dst=VIP) / TCP(sport=40000, dport=8080, flags="A") / Raw(b"data")
LIES = {
    "version 6": lying(SEGMENT, version=6),
    "version 0": lying(SEGMENT, version=0),
    "a header of 16 bytes": lying(SEGMENT, ihl=4),
    "a header of none": lying(SEGMENT, ihl=0),
    "a header longer than the packet": lying(SEGMENT, ihl=15),
    "length of nothing": lying(SEGMENT, len=0),
    "length within the header": lying(SEGMENT, len=19),
    "length of the header alone": lying(SEGMENT, len=20),
    "length within TCP's header": lying(SEGMENT, len=39),
    "length one beyond the frame": lying(SEGMENT, len=45),
    "length of all there could be": lying(SEGMENT, len=65535),
}


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("hook", HOOKS)
@pytest.mark.parametrize("name", LIES)
def test_lies_pass_as_they_came(scene: Scene, hook: str, name: str, mode: str) -> None:
    serve(scene, mode)
    scene.expect(hook, LIES[name], "pass_malformed")


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("offset", [0, 4, 15])
def test_tcps_own_length_is_the_receivers_business(scene: Scene, hook: str, offset: int) -> None:
    serve(scene, "l4")
    segment = TCP(sport=CLIENT[1], dport=SERVICE[1], flags="A", ack=501, dataofs=offset)
    out = TCP(sport=SOURCE[1], dport=NODE[1], flags="A", ack=501, dataofs=offset)
    packet = ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / segment)
    wanted = ethernet(IP(src=SNAT, dst=NODE[0], ttl=63) / out)
    assert scene.send(hook, packet).packet == to_node(hook, wanted)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
@pytest.mark.parametrize("length", [0, 7, 9, 65535])
def test_udps_own_length_is_the_receivers_business(scene: Scene, hook: str, length: int) -> None:
    serve(scene, "l2")
    datagram = UDP(sport=CLIENT[1], dport=SERVICE[1], len=length) / Raw(b"data")
    packet = ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / datagram)
    scene.expect(hook, packet, "l2_forwarded", to_node(hook, packet))


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_tags_with_nothing_behind_them(scene: Scene, hook: str) -> None:
    serve(scene, "l2")
    head = tcp(CLIENT, SERVICE)[:12]
    for tags in (b"\x81\x00\x00\x05", b"\x88\xa8\x00\x05\x81\x00\x00\x06"):
        scene.expect(hook, head + tags + b"\x08\x00", "pass_malformed")
        scene.expect(hook, head + tags, "pass_malformed")


def test_addresses_are_in_network_order() -> None:
    assert address("1.2.3.4").to_bytes(4, "little") == bytes([1, 2, 3, 4])
