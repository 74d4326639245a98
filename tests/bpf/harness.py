"""A packet in, a verdict, a packet and its counted reasons out: the rig of all packet tests.

The programs run in the kernel by BPF_PROG_TEST_RUN, over maps that belong to the test process alone
and are pinned nowhere. XDP and TC share them, as they do in production, so a test may send a SYN
through one and the answer through the other. Redirects return their verdict and send nothing.

What comes out is judged by `problems`, written from the RFCs and sharing no line with the programs
or with scapy, which builds what goes in.

A network device must exist for its index to be taken; 1 is every namespace's loopback. A packet
shorter than an Ethernet header is refused by the kernel itself. A VLAN tag given to TC stays in the
packet's bytes, where a real receive path would have moved it to the sk_buff.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import IntEnum
from functools import cache
from pathlib import Path
from typing import Any

from scapy.layers.inet import ICMP, IP, TCP, UDP
from scapy.layers.l2 import Dot1Q, Ether
from scapy.packet import Packet, Raw

from bpf.loader import (
    SOURCE_DIR,
    LoadedObject,
    compile_program,
    compile_programs,
)
from bpf.syscall import (
    MapType,
    delete_entries,
    map_shape,
    possible_cpus,
    read_entries,
    run_program,
    tc_context,
    write_entries,
    xdp_context,
)
from bpf.table import Table
from services.dataplane.counters import Counters

LOOPBACK = 1
"""The one interface index that every network namespace has."""
LB_MAC = "02:00:00:00:00:0b"
PEER_MAC = "02:00:00:00:00:0a"
IMAGES = SOURCE_DIR.parents[1] / "build" / "images"
"""Compiled programs, kept from one run to the next; each is found by all that went into it."""
_SOURCES = IMAGES.with_name("sources")
SMALL_TABLES: dict[str, str | int] = {"FLOW_BUCKETS": 512, "HALF_OPEN_WAYS": 12}


# --------------------------------------------------------------------------- running a program


class XdpVerdict(IntEnum):
    ABORTED = 0
    DROP = 1
    PASS = 2
    TX = 3
    REDIRECT = 4


class TcVerdict(IntEnum):
    UNSPEC = 0xFFFFFFFF
    OK = 0
    SHOT = 2
    STOLEN = 4
    REDIRECT = 7


@dataclass(frozen=True, slots=True)
class Result:
    """What a program made of a packet."""

    verdict: XdpVerdict | TcVerdict
    packet: bytes
    duration_ns: int
    """Mean over the repetitions."""

    @property
    def scapy(self) -> Packet:
        """The packet dissected. Judge checksums by `problems`, not by this."""
        return Ether(self.packet)


def run_xdp(fd: int, packet: bytes, ingress_ifindex: int = LOOPBACK, *, repeat: int = 1) -> Result:
    run = run_program(fd, packet, xdp_context(packet, ingress_ifindex), repeat)
    return Result(XdpVerdict(run.verdict), run.packet, run.duration_ns)


def run_tc(fd: int, packet: bytes, ingress_ifindex: int = LOOPBACK, *, repeat: int = 1) -> Result:
    context = tc_context(ingress_ifindex, ingress_ifindex)
    run = run_program(fd, packet, context, repeat)
    return Result(TcVerdict(run.verdict), run.packet, run.duration_ns)


# --------------------------------------------------------------------------- the real programs


class Rig:
    """Gale's own programs over private, shared maps. Get one from `rig`.

    `sources`: a folder with a copy of them that was changed on purpose; its images are not kept.
    `more`: sources besides, over the same maps.
    """

    def __init__(
        self,
        defines: dict[str, str | int],
        sources: Path | None = None,
        *,
        more: tuple[str, ...] = (),
    ) -> None:
        folder = SOURCE_DIR if sources is None else sources
        self.xdp_object, self.tc_object, *self.more = compile_programs(
            [str(folder / name) for name in ("xdp.c", "tc.c", *more)],
            defines=defines,
            cache_dir=IMAGES if sources is None else None,
        )
        self._counters = Counters(self.xdp_object.bpf, possible_cpus())

    def function(self, hook: str) -> int:
        """The fd of the program at that hook."""
        if hook.startswith("xdp"):
            return self.xdp_object.function(f"gale_{hook}", "xdp")
        return self.tc_object.function(f"gale_{hook}", "tc")

    def xdp_public(self, packet: bytes, ingress_ifindex: int = LOOPBACK) -> Result:
        return run_xdp(self.function("xdp_public"), packet, ingress_ifindex)

    def tc_public(self, packet: bytes, ingress_ifindex: int = LOOPBACK) -> Result:
        return run_tc(self.function("tc_public"), packet, ingress_ifindex)

    def tc_private(self, packet: bytes, ingress_ifindex: int = LOOPBACK) -> Result:
        return run_tc(self.function("tc_private"), packet, ingress_ifindex)

    def tc_own(self, packet: bytes, ingress_ifindex: int = LOOPBACK) -> Result:
        return run_tc(self.function("tc_own"), packet, ingress_ifindex)

    def xdp_reply(self, packet: bytes, ingress_ifindex: int = LOOPBACK) -> Result:
        return run_xdp(self.function("xdp_reply"), packet, ingress_ifindex)

    def table(self, name: str) -> Table:
        """A map, with `Key` and `Leaf` as the C source declares them."""
        return self.xdp_object.bpf[name.encode()]

    def counted(self) -> dict[str, int]:
        """`hook.reason` → packets since the rig was handed out; only what occurred."""
        return self._counters.verdicts()

    def clear(self) -> None:
        for table in self.xdp_object.bpf.values():
            clear_map(table.map_fd)


@cache
def _compiled_rig(defines: tuple[tuple[str, str | int], ...]) -> Rig:
    return Rig(dict(defines))


@contextmanager
def rig(**defines: str | int) -> Iterator[Rig]:
    """The programs with empty maps. Compiled once per process and set of `defines`."""
    compiled = _compiled_rig(tuple(sorted({**SMALL_TABLES, **defines}.items())))
    compiled.clear()
    yield compiled


def source_file(text: str) -> Path:
    """A file with this text. The same text is the same file in every run, so it may be cached."""
    path = _SOURCES / f"{hashlib.sha256(text.encode()).hexdigest()[:20]}.c"
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_suffix(f".{os.getpid()}")
        beside.write_text(text)
        beside.rename(path)
    return path


@contextmanager
def program(text: str, **defines: str | int) -> Iterator[LoadedObject]:
    """A source of the test's own, with maps of its own."""
    compiled = compile_program(str(source_file(text)), defines=defines, cache_dir=IMAGES)
    try:
        yield compiled
    finally:
        compiled.close()


def open_maps() -> int:
    """How many maps this process holds by a descriptor."""
    return sum(
        "bpf-map" in str(link.readlink())
        for link in Path("/proc/self/fd").iterdir()
        if link.is_symlink()
    )


def clear_map(fd: int) -> None:
    """Delete every entry; of an array, zero every value."""
    kind = map_shape(fd)[0]
    batches = list(read_entries(fd))
    for keys, values in batches:
        if kind not in (MapType.ARRAY, MapType.PERCPU_ARRAY):
            delete_entries(fd, keys)
        elif values.strip(b"\0"):
            write_entries(fd, keys, bytes(len(values)))


# --------------------------------------------------------------------------- packets in


def ethernet(payload: Packet, *, vlans: tuple[int, ...] = ()) -> bytes:
    """A finished frame to the LB, its lengths and checksums filled in by scapy."""
    frame: Packet = Ether(src=PEER_MAC, dst=LB_MAC)
    for tag in vlans:
        frame = frame / Dot1Q(vlan=tag)
    return bytes(frame / payload)


def tcp(
    source: tuple[str, int],
    destination: tuple[str, int],
    flags: str = "S",
    payload: bytes = b"",
    *,
    seq: int = 1000,
    ack: int = 0,
    options: list[Any] | None = None,
    vlans: tuple[int, ...] = (),
    **ip_fields: Any,
) -> bytes:
    """A frame with one TCP segment; `ip_fields` as scapy's IP takes them (ttl, id, flags, ...)."""
    segment = TCP(
        sport=source[1],
        dport=destination[1],
        flags=flags,
        seq=seq,
        ack=ack,
        options=options or [],
    )
    packet = IP(src=source[0], dst=destination[0], **ip_fields) / segment / Raw(payload)
    return ethernet(packet, vlans=vlans)


def udp(
    source: tuple[str, int],
    destination: tuple[str, int],
    payload: bytes = b"",
    *,
    vlans: tuple[int, ...] = (),
    **ip_fields: Any,
) -> bytes:
    """A frame with one UDP datagram."""
    datagram = UDP(sport=source[1], dport=destination[1]) / Raw(payload)
    return ethernet(IP(src=source[0], dst=destination[0], **ip_fields) / datagram, vlans=vlans)


def icmp(
    source: str,
    destination: str,
    kind: int = 8,
    code: int = 0,
    payload: bytes = b"",
    **ip_fields: Any,
) -> bytes:
    """A frame with one ICMP message; `payload` of an error begins with the packet it quotes."""
    message = ICMP(type=kind, code=code) / Raw(payload)
    return ethernet(IP(src=source, dst=destination, **ip_fields) / message)


# --------------------------------------------------------------------------- packets out, judged

_ETH_IPV4 = 0x0800
_ETH_TAGS = (0x8100, 0x88A8)
_ICMP, _IPIP, _TCP, _UDP = 1, 4, 6, 17
_GUE_PORT = 6080


def problems(frame: bytes) -> list[str]:
    """What is wrong with a frame's lengths and checksums, outer to inner; empty when all is well.

    Ethernet with any number of VLAN tags; IPv4; in it TCP, UDP, ICMP, IPIP, GUE. A later fragment
    has no header of its own to check, and of a first one only the IP header can be.
    """
    if len(frame) < 14:
        return ["ethernet: header cut short"]
    kind, start = int.from_bytes(frame[12:14]), 14
    while kind in _ETH_TAGS:
        if len(frame) < start + 4:
            return ["vlan: tag cut short"]
        kind, start = int.from_bytes(frame[start + 2 : start + 4]), start + 4
    return _ipv4_problems(frame[start:], "ipv4") if kind == _ETH_IPV4 else []


def _ipv4_problems(data: bytes, where: str) -> list[str]:
    header_size = (data[0] & 0x0F) * 4 if data else 0
    if len(data) < 20 or data[0] >> 4 != 4 or not 20 <= header_size <= len(data):
        return [f"{where}: header cut short or not IPv4"]
    total = int.from_bytes(data[2:4])
    if not header_size <= total <= len(data):
        return [f"{where}: total length {total}, but {len(data)} bytes there"]
    found = [] if _ones_sum(data[:header_size]) == 0xFFFF else [f"{where}: header checksum"]
    if int.from_bytes(data[6:8]) & 0x3FFF:
        return found
    payload = data[header_size:total]
    protocol = data[9]
    pseudo = data[12:20] + bytes([0, protocol]) + len(payload).to_bytes(2)
    if protocol == _TCP:
        return found + _tcp_problems(payload, pseudo)
    if protocol == _UDP:
        return found + _udp_problems(payload, pseudo)
    if protocol == _ICMP:
        bad = len(payload) < 8 or _ones_sum(payload) != 0xFFFF
        return found + (["icmp: checksum"] if bad else [])
    if protocol == _IPIP:
        return found + _ipv4_problems(payload, "ipip: inner ipv4")
    return found


def _tcp_problems(segment: bytes, pseudo: bytes) -> list[str]:
    if len(segment) < 20 or not 20 <= (segment[12] >> 4) * 4 <= len(segment):
        return ["tcp: header cut short"]
    return [] if _ones_sum(pseudo + segment) == 0xFFFF else ["tcp: checksum"]


def _udp_problems(datagram: bytes, pseudo: bytes) -> list[str]:
    if len(datagram) < 8:
        return ["udp: header cut short"]
    found = []
    length = int.from_bytes(datagram[4:6])
    if length != len(datagram):
        found.append(f"udp: length {length}, but {len(datagram)} bytes there")
    # Zero means: none was calculated (RFC 768).
    if datagram[6:8] != b"\0\0" and _ones_sum(pseudo + datagram) != 0xFFFF:
        found.append("udp: checksum")
    if int.from_bytes(datagram[2:4]) == _GUE_PORT:
        found += _gue_problems(datagram[8:])
    return found


def _gue_problems(data: bytes) -> list[str]:
    """Generic UDP encapsulation: version 0 has a header, version 1 is the bare IP packet."""
    if not data:
        return ["gue: header cut short"]
    if data[0] >> 6 == 1:
        return _ipv4_problems(data, "gue: inner ipv4")
    header_size = 4 + (data[0] & 0x1F) * 4
    if data[0] >> 6 != 0 or len(data) < header_size:
        return ["gue: header cut short or of an unknown version"]
    is_control = bool(data[0] & 0x20)
    if is_control or data[1] != _IPIP:
        return ["gue: does not carry IPv4"]
    return _ipv4_problems(data[header_size:], "gue: inner ipv4")


def _ones_sum(data: bytes) -> int:
    """One's complement sum of 16-bit words; 0xffff over data with a right checksum in it."""
    if len(data) % 2:
        data += b"\0"
    total = sum(int.from_bytes(data[at : at + 2]) for at in range(0, len(data), 2))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    return total


# --------------------------------------------------------------------------- a place of one's own

_CLONE_NEWNET = 0x40000000
_libc = ctypes.CDLL(None, use_errno=True)


@contextmanager
def private_network() -> Iterator[None]:
    """Run this thread in a network namespace of its own, which ends with the block."""
    with Path("/proc/thread-self/ns/net").open() as home:
        if _libc.unshare(_CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), "unshare: a network namespace needs root")
        try:
            yield
        finally:
            if _libc.setns(home.fileno(), _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns: cannot return to the old namespace")


@contextmanager
def private_bpffs() -> Iterator[Path]:
    """A directory below a BPF file system of its own, to pin in."""
    mounted = Path(tempfile.mkdtemp(prefix="gale-bpf-", dir="/tmp"))
    subprocess.run(["mount", "-t", "bpf", "bpf", str(mounted)], check=True)
    try:
        yield mounted / "v1"
    finally:
        subprocess.run(["umount", str(mounted)], check=True)
        mounted.rmdir()
