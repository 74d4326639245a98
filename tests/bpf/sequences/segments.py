"""A TCP segment, its frame on the wire, and arithmetic modulo 2^32. Pure.

`frame` builds Ethernet, IPv4 and TCP by `struct`, `opened` reads them back, and `rewritten` says
what is wrong with a frame that should be another one with new addresses. None of them shares a line
with the programs under test.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
SPACE = 1 << 32

Address = tuple[bytes, int]
"""IPv4 address in network order, port."""

_IP = struct.Struct(">BBHHHBBH4s4s")
_TCP = struct.Struct(">HHIIBBHHH")
_ETHERNET = bytes.fromhex("02000000000b02000000000a0800")
"""From the rig's peer to its load balancer."""
_IP_AT, _TCP_AT = 14, 34
_TTL, _IP_SUM, _TCP_SUM = 22, slice(24, 26), slice(50, 52)
_MAXIMUM_SEGMENT, _WINDOW_SCALE, _FAST_OPEN = 2, 3, 34


@dataclass(frozen=True, slots=True)
class Segment:
    """`ack` counts only with the ACK flag. `window` is as on the wire, not scaled."""

    seq: int
    ack: int
    flags: int
    window: int = 0
    payload: bytes = b""
    options: bytes = b""
    """Padded to words."""

    @property
    def end(self) -> int:
        """The number behind the last it occupies."""
        taken = len(self.payload) + bool(self.flags & SYN) + bool(self.flags & FIN)
        return (self.seq + taken) % SPACE

    @property
    def scale(self) -> int | None:
        """The shift of a SYN's window scale option (RFC 7323)."""
        at = self.options.find(bytes([_WINDOW_SCALE, 3]))
        return self.options[at + 2] if at >= 0 else None

    @property
    def is_fast(self) -> bool:
        """Whether it carries a Fast Open cookie (RFC 7413)."""
        return bytes([_FAST_OPEN, 10]) in self.options

    def __str__(self) -> str:
        letters = "".join(
            letter
            for bit, letter in ((SYN, "S"), (FIN, "F"), (RST, "R"), (PSH, "P"), (ACK, "A"))
            if self.flags & bit
        )
        acks = f" ack={self.ack}" if self.flags & ACK else ""
        data = f" len={len(self.payload)}" if self.payload else ""
        return f"{letters or '-'} seq={self.seq}{acks}{data} win={self.window}"


def options(*, scale: int | None, fast: bool) -> bytes:
    """What a SYN carries; the cookie is the same for all."""
    made = bytes([_MAXIMUM_SEGMENT, 4]) + (1460).to_bytes(2)
    if scale is not None:
        made += bytes([1, _WINDOW_SCALE, 3, scale])
    if fast:
        made += bytes([1, 1, _FAST_OPEN, 10]) + b"\xc0" * 8
    return made


def ahead(number: int, other: int) -> int:
    """How far `number` lies ahead of `other`; negative when behind."""
    return (number - other + SPACE // 2) % SPACE - SPACE // 2


def frame(source: Address, destination: Address, segment: Segment) -> bytes:
    size = 20 + len(segment.options) + len(segment.payload)
    addresses = source[0] + destination[0]
    ip = _IP.pack(0x45, 0, 20 + size, 7, 0x4000, 64, 6, 0, source[0], destination[0])
    head = (
        source[1],
        destination[1],
        segment.seq,
        segment.ack,
        (20 + len(segment.options)) << 2,
        segment.flags,
        segment.window,
    )
    tail = segment.options + segment.payload
    tcp = _TCP.pack(*head, 0, 0)
    checked = _TCP.pack(*head, _checksum(_pseudo(addresses, size) + tcp + tail), 0)
    return _ETHERNET + ip[:10] + _checksum(ip).to_bytes(2) + ip[12:] + checked + tail


def opened(data: bytes) -> tuple[Address, Address, Segment]:
    """Source, destination and segment of a frame; trailing bytes of Ethernet are left out."""
    source, destination = data[26:30], data[30:34]
    end = _IP_AT + int.from_bytes(data[16:18])
    sport, dport, seq, ack, offset, flags, window, _, _ = _TCP.unpack_from(data, _TCP_AT)
    payload_at = _TCP_AT + (offset >> 4) * 4
    options_, payload = data[_TCP_AT + 20 : payload_at], data[payload_at:end]
    segment = Segment(seq, ack, flags, window, payload, options_)
    return (source, sport), (destination, dport), segment


def rewritten(before: bytes, after: bytes, source: Address, destination: Address) -> str:
    """What is wrong with `after`: `before` with these addresses and ports. Empty: nothing.

    Checksums are verified, not compared: zero and 0xffff say the same (RFC 1624).
    """
    wanted = bytearray(before)
    wanted[_TTL] -= 1
    wanted[26:34] = source[0] + destination[0]
    wanted[34:38] = source[1].to_bytes(2) + destination[1].to_bytes(2)
    wanted[_IP_SUM], wanted[_TCP_SUM] = after[_IP_SUM], after[_TCP_SUM]
    if after[_IP_AT:] != wanted[_IP_AT:]:
        return f"wrong bytes: {after.hex()}, wanted (but for the sums) {bytes(wanted).hex()}"
    return unsound(after)


def unsound(data: bytes) -> str:
    """Which checksum of a frame is wrong."""
    end = _IP_AT + int.from_bytes(data[16:18])
    if _remainder(data[_IP_AT:_TCP_AT]):
        return "wrong IP checksum"
    if _remainder(_pseudo(data[26:34], end - _TCP_AT) + data[_TCP_AT:end]):
        return "wrong TCP checksum"
    return ""


def _pseudo(addresses: bytes, size: int) -> bytes:
    return addresses + b"\0\x06" + size.to_bytes(2)


def _remainder(data: bytes) -> int:
    """The one's complement sum of its words, 0 for both zeros: 2^16 is 1 modulo 2^16 - 1."""
    return int.from_bytes(data if len(data) % 2 == 0 else data + b"\0") % 0xFFFF


def _checksum(data: bytes) -> int:
    return 0xFFFF - _remainder(data)
