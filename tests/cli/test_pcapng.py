"""What is written as pcapng, read by scapy."""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import pytest
from scapy.utils import RawPcapNgReader

from services.cli.pcapng import Direction, Frame, VerdictBy, header, packet

INTERFACES = ["pub0 xdp_public", "priv0 tc_private"]


def frame(**fields: Any) -> Frame:
    values: dict[str, Any] = {
        "interface": 0,
        "time_ns": 1_790_000_000_123_456_789,
        "data": bytes(range(61)),
        "length": 1_500,
        "comment": "enters xdp_public; drop: why not (drop_why)",
        "direction": Direction.OUTBOUND,
        "number": 7,
        "verdict": (VerdictBy.XDP, 1),
    }
    return Frame(**values | fields)


@pytest.mark.parametrize("length", range(60, 65))
def test_a_reader_finds_what_was_written(tmp_path: Path, length: int) -> None:
    data = bytes(range(length))
    file = tmp_path / "x.pcapng"
    written = [frame(data=data), frame(interface=1, comment="äöü", direction=Direction.INBOUND)]
    blocks = (packet(each) for each in written)
    file.write_bytes(header("gale 1", "capture", INTERFACES, 2048) + b"".join(blocks))
    with RawPcapNgReader(str(file)) as reader:
        found: list[tuple[bytes, Any]] = list(reader)
    assert [raw for raw, _ in found] == [each.data for each in written]
    for (_, told), each in zip(found, written, strict=True):
        assert told.linktype == 1
        assert told.ifname.decode() == INTERFACES[each.interface]
        assert (told.tshigh << 32) + told.tslow == each.time_ns
        assert told.tsresol == 1_000_000_000
        assert told.wirelen == 1_500
        assert told.direction == each.direction
        assert told.comments == [each.comment.encode()]


def test_number_and_verdict_stand_in_the_options() -> None:
    """By the numbers of the specification: scapy does not read these two."""
    options = {}
    block = packet(frame(verdict=(VerdictBy.TC, -1)))
    at = 8 + 20 + 64
    while (head := struct.unpack_from("=HH", block, at)) != (0, 0):
        number, length = head
        options[number] = block[at + 4 : at + 4 + length]
        at += 4 + (length + 3) // 4 * 4
    assert options[5] == struct.pack("=Q", 7)
    assert options[7] == b"\x01" + struct.pack("=q", -1)
    assert at + 4 == len(block) - 4
    assert struct.unpack("=I", block[-4:])[0] == struct.unpack_from("=I", block, 4)[0] == len(block)
