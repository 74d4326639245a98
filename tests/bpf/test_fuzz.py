"""A million packets per program, mutated and random, and what must hold of every one of them.

The packets begin as good ones of every kind that the services here know, over maps with live flows
in every state, and are then spoilt: bits flipped, fields set to what breaks parsers, cut short, cut
short by their own word, or nothing but noise. Of what comes out must hold:

- exactly one reason is counted per packet, and as many of each kind as there were such verdicts;
- what is passed is byte for byte what came;
- what is forwarded is sent to a known MAC address (XDP) and a known IPv4 address;
- L2 changes no byte behind the MAC addresses, L3 no byte of the packet that it wraps, and the outer
  header is right;
- L4 changes addresses, ports, time to live and checksums, and no other byte, but for the id of a
  fragment; every one's complement sum stays what it was: what was right is right, and what was
  wrong is not mended;
- what is answered is no RST, and the answer is a RST with the numbers of RFC 9293 or an ICMP error
  that quotes the packet, sent back whence it came.

`GALE_FUZZ_SEED` and `GALE_FUZZ_PACKETS` repeat or widen a run; every failure names its seed.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from socket import inet_aton
from typing import Literal

import numpy as np
import pytest
from numpy.typing import NDArray
from scapy.layers.inet import ICMP, IP
from scapy.packet import Raw

from bpf.loader import compile_programs
from services.dataplane.counters import reasons
from tests.bpf.batch import Batch, Bytes, Numbers, batch_of, ones_sums, run_batch
from tests.bpf.harness import IMAGES, PEER_MAC, TcVerdict, XdpVerdict, ethernet, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    GUE,
    NODE,
    NODE_MAC,
    OF_SERVICE,
    OWN_PRIVATE,
    OWN_PUBLIC,
    REPLY_HOOKS,
    ROUTER,
    SNAT,
    VIP,
    Connection,
    Scene,
    address,
    is_xdp,
    mac,
    wrapped,
)

SEED = int(os.environ.get("GALE_FUZZ_SEED", "20240607"))
PACKETS = int(os.environ.get("GALE_FUZZ_PACKETS", "1000000"))
ROUND = 50_000
WIDTH = 176
ICMP_PROTOCOL, IPIP_PROTOCOL, TCP_PROTOCOL, UDP_PROTOCOL = 1, 4, 6, 17
FIN, SYN, RST, ACK = 1, 2, 4, 16
Truths = NDArray[np.bool_]
PORTS = {"l2": 1001, "l3": 1002, "gue": 1003, "l4": 8080}
NUMBERS = {name: place for place, name in enumerate(PORTS)}
EMPTY = 1005
"""The port of a service without a node: each packet to it is refused."""
LATER = {name: 100 + place for place, name in enumerate(PORTS)}
"""The ids of datagrams whose first fragment has been seen."""

pytestmark = pytest.mark.timeout(900)


# --------------------------------------------------------------------------- what goes in


@dataclass(frozen=True)
class Flows:
    """What the maps hold of L4 when the fuzzing begins: the node's view of each flow."""

    established: tuple[str, int]
    opening: tuple[str, int]
    datagrams: tuple[str, int]


def set_up(scene: Scene) -> Flows:
    for mode, port in PORTS.items():
        for protocol in ("tcp", "udp"):
            scene.service(
                "l3" if mode == "gue" else mode,
                flags=GUE if mode == "gue" else 0,
                at=(VIP, port),
                protocol=protocol,
                number=NUMBERS[mode],
            )
    for protocol in ("tcp", "udp"):
        scene.service("l4", at=(VIP, EMPTY), protocol=protocol, number=len(PORTS), seats=[0])
    scene.address(VIP, OF_SERVICE)
    scene.snat_slice()
    established = Connection(scene).establish()
    opening = Connection(scene, client=(CLIENT_ADDRESS, 40001))
    opening.syn()
    question = udp(CLIENT, (VIP, PORTS["l4"]), b"q")
    datagrams = (SNAT, scene.send("xdp_public", question).ports[0])
    scene.send("tc_private", udp(NODE, datagrams, b"a"))
    for mode, number in LATER.items():
        scene.send("xdp_public", udp(CLIENT, (VIP, PORTS[mode]), b"q", id=number, flags="MF"))
    scene.send("tc_private", udp(NODE, datagrams, b"a", id=200, flags="MF"))
    return Flows(established.source, opening.source, datagrams)


def requests() -> list[bytes]:
    """Good packets of clients, about the VIP's every service."""
    frames = []
    noop = [b"\x01\x01\x01\x00"]
    for mode, port in PORTS.items():
        service = (VIP, port)
        for client in (CLIENT, (CLIENT_ADDRESS, 40001), (CLIENT_ADDRESS, 50000)):
            for flags in ("S", "A", "PA", "FA"):
                frames.append(tcp(client, service, flags, b"payload", seq=101, ack=501))
        frames += [
            tcp(CLIENT, service, "A", b"x", options=[("Timestamp", (1, 2))]),
            udp(CLIENT, service, b"question"),
            udp((CLIENT_ADDRESS, 50001), service, b"another"),
            udp(CLIENT, service, b"with options", options=noop),
            udp(CLIENT, service, b"in a tag", vlans=(5,)),
            tcp(CLIENT, service, "A", b"in two", vlans=(5, 6)),
            udp(CLIENT, service, b"a first fragment", id=LATER[mode], flags="MF"),
            ethernet(later(CLIENT_ADDRESS, VIP, LATER[mode])),
            ethernet(error(ROUTER, VIP, tcp(service, CLIENT, "A", b"seen")[14:])),
            ethernet(error(CLIENT_ADDRESS, VIP, udp(service, CLIENT, b"seen")[14:])),
        ]
    inner = tcp(CLIENT, (VIP, PORTS["l4"]))
    for flags in ("S", "A", "PA", "FA", "F", "R"):
        frames.append(tcp((CLIENT_ADDRESS, 50002), (VIP, PORTS["l4"]), flags, b"x", seq=7, ack=9))
    frames += [
        tcp(CLIENT, (VIP, EMPTY), "S", b"early"),
        udp(CLIENT, (VIP, EMPTY), b"question"),
        wrapped(inner, source=CLIENT_ADDRESS, node=VIP),
        wrapped(inner, gue_port=50000, source=CLIENT_ADDRESS, node=VIP),
        ethernet(IP(src=CLIENT_ADDRESS, dst=VIP) / ICMP() / Raw(b"ping")),
    ]
    return frames


def replies(flows: Flows) -> list[bytes]:
    """Good packets of the node."""
    frames = []
    for source in (flows.established, flows.opening):
        for flags in ("SA", "A", "PA", "FA"):
            frames.append(tcp(NODE, source, flags, b"payload", seq=500, ack=101))
        frames.append(ethernet(error(NODE[0], SNAT, tcp(source, NODE, "A", b"seen")[14:])))
    back = flows.datagrams
    frames += [
        udp(NODE, back, b"answer"),
        udp(NODE, back, b"with options", options=[b"\x01\x01\x01\x00"]),
        udp(NODE, back, b"in a tag", vlans=(5,)),
        udp(NODE, back, b"a first fragment", id=200, flags="MF"),
        ethernet(later(NODE[0], SNAT, 200)),
        ethernet(error("10.81.0.254", SNAT, udp(back, NODE, b"seen")[14:])),
        tcp(NODE, (SNAT, 22), "A", b"the host's own"),
    ]
    return frames


def error(source: str, destination: str, quoted: bytes) -> IP:
    return IP(src=source, dst=destination) / ICMP(type=3, code=3) / Raw(quoted)


def later(source: str, destination: str, number: int) -> IP:
    return IP(src=source, dst=destination, id=number, proto=17, frag=20) / Raw(bytes(range(50)))


HARD = np.array([0, 1, 2, 4, 5, 6, 8, 0x0F, 0x11, 0x40, 0x45, 0x46, 0x4F, 0x7F, 0x80, 0x81, 0xFF])


def spoil(good: Batch, count: int, random: np.random.Generator) -> Batch:
    """`count` packets made of good ones: one in five stays good."""
    which = random.integers(len(good), size=count)
    rows, sizes = good.rows[which].copy(), good.sizes[which].copy()
    how = random.integers(10, size=count)
    every = np.arange(count)

    def place(low: int, high: Numbers | int) -> Numbers:
        chosen: Numbers = random.integers(low, high, size=count)
        return chosen

    def change(where: Truths, at: Numbers, value: Numbers) -> None:
        rows[every[where], at[where]] = value[where]

    for _ in range(3):
        at = place(12, np.minimum(sizes, 90))
        flipped = rows[every, at] ^ (1 << place(0, 8))
        change((how == 1) | (how == 2) & (random.random(count) < 0.4), at, flipped)
        change(how == 3, at, place(0, 256))
        change(
            (how == 4) | (how == 5) & (random.random(count) < 0.4), at, HARD[place(0, len(HARD))]
        )
    cut = (how == 6) | (how == 5)
    sizes[cut] = place(14, sizes + 1)[cut]
    claims = how == 7
    change(claims, np.full(count, 17), place(0, WIDTH))
    change(claims, np.full(count, 16), np.where(random.random(count) < 0.1, place(0, 256), 0))
    noise = how == 8
    start = place(14, np.maximum(sizes, 15))
    fill = random.integers(256, size=rows.shape, dtype=np.uint8)
    columns = np.arange(WIDTH)
    rows = np.where(noise[:, None] & (columns >= start[:, None]), fill, rows)
    # Half of them say of themselves that all is well with their IP header.
    mended = random.random(count) < 0.5
    _mend(rows, mended & (rows[:, 12] == 8) & (rows[:, 13] == 0))
    rows[columns >= sizes[:, None]] = 0
    return Batch(rows, sizes)


def _mend(rows: Bytes, which: Truths) -> None:
    """Set the header checksum of these IPv4 packets without options."""
    rows[which, 24:26] = 0
    header = Batch(rows, np.full(len(rows), 34))
    check = 0xFFFF - ones_sums(header, np.full(len(rows), 14), np.full(len(rows), 34))
    rows[which, 24] = check[which] >> 8
    rows[which, 25] = check[which] & 0xFF


# --------------------------------------------------------------------------- what comes out


@dataclass(frozen=True)
class Run:
    """What went in, the verdicts, what came out; and how to name a packet of it that is wrong."""

    hook: str
    seed: int
    sent: Batch
    verdicts: Numbers
    out: Batch

    def only(self, which: Truths) -> Run:
        sent, out = self.sent.only(which), self.out.only(which)
        return Run(self.hook, self.seed, sent, self.verdicts[which], out)

    def check(self, holds: Truths, what: str) -> None:
        (broken,) = (~holds).nonzero()
        if len(broken):
            at = int(broken[0])
            pytest.fail(
                f"{what}: {len(broken)} packets at {self.hook}, GALE_FUZZ_SEED={self.seed}\n"
                f"in  {self.sent.frame(at).hex()}\nout {self.out.frame(at).hex()}"
            )


KINDS: dict[bool, dict[str, int]] = {
    True: {"drop": XdpVerdict.DROP, "pass": XdpVerdict.PASS, "forward": XdpVerdict.REDIRECT},
    False: {"drop": TcVerdict.SHOT, "pass": TcVerdict.UNSPEC, "forward": TcVerdict.REDIRECT},
}


def judge(run: Run, replying: bool) -> dict[str, int]:
    """What must hold of every packet; returns how many there were of each kind."""
    kinds = KINDS[is_xdp(run.hook)]
    run.check(np.isin(run.verdicts, list(kinds.values())), "no known verdict")
    passed = run.only(run.verdicts == kinds["pass"])
    passed.check(same(passed, 0, 0), "passed, but not as it came")
    forwarded = run.only(run.verdicts == kinds["forward"])
    if not replying:
        answered = is_answer(forwarded)
        _judge_answers(forwarded.only(answered))
        forwarded = forwarded.only(~answered)
    exceeded = is_time_exceeded(forwarded, OWN_PRIVATE if replying else OWN_PUBLIC)
    _judge_time_exceeded(forwarded.only(exceeded))
    forwarded = forwarded.only(~exceeded)
    if is_xdp(run.hook):
        target = np.frombuffer(mac(PEER_MAC if replying else NODE_MAC), np.uint8)
        known = (forwarded.out.rows[:, :6] == target).all(axis=1)
        forwarded.check(known, "sent to an unknown MAC address")
    plain = forwarded.only(~np.isin(words(forwarded.sent.rows, 12), (0x8100, 0x88A8)))
    if replying:
        _judge_l4(plain, CLIENT_ADDRESS)
    else:
        _judge_requests(plain)
    return {name: int((run.verdicts == code).sum()) for name, code in kinds.items()}


def _judge_requests(run: Run) -> None:
    later_ones = is_later(run.sent)
    fragments = run.only(later_ones)
    alike = same(fragments, 12, 12) | came_wrapped(fragments, 20) | came_wrapped(fragments, 32)
    alike |= translated(fragments, NODE[0])
    fragments.check(alike, "a later fragment as no mode would send it")
    run = run.only(~later_ones)
    ports = service_ports(run.sent)
    run.check(np.isin(ports, list(PORTS.values())), "forwarded, but for no service")
    bridged = run.only(ports == PORTS["l2"])
    bridged.check(same(bridged, 12, 12), "L2 changed more than MAC addresses")
    for mode, overhead in (("l3", 20), ("gue", 32)):
        wrap = run.only(ports == PORTS[mode])
        wrap.check(came_wrapped(wrap, overhead), "L3 changed more of what it wrapped than its time")
        every = np.full(len(wrap.sent), 14)
        lengths = words(wrap.out.rows, 16) == words(wrap.out.rows, 16 + overhead) + overhead
        well = (ones_sums(wrap.out, every, every + 20) == 0) & lengths
        wrap.check(well & addressed(wrap.out, NODE[0]), "a wrong outer header")
    _judge_l4(run.only(ports == PORTS["l4"]), NODE[0])


def is_answer(run: Run) -> Truths:
    """Whether what came out goes from where to whence."""
    there, back = run.sent.rows, run.out.rows
    turned: Truths = (there[:, 26:30] == back[:, 30:34]).all(axis=1)
    turned &= (there[:, 30:34] == back[:, 26:30]).all(axis=1)
    turned &= (there[:, 26:30] != there[:, 30:34]).any(axis=1)
    return turned


def is_time_exceeded(run: Run, own: str) -> Truths:
    """Whether what came out is this LB's own word to whom the packet came from."""
    there, back = run.sent.rows, run.out.rows
    source = np.frombuffer(inet_aton(own), np.uint8)
    said: Truths = (back[:, 26:30] == source).all(axis=1)
    said &= (there[:, 26:30] == back[:, 30:34]).all(axis=1)
    return said


def _judge_time_exceeded(run: Run) -> None:
    _judge_header(run)
    run.check(run.sent.rows[:, 22] <= 1, "its time had not run out")
    _judge_errors(run, 11, 0)


def _judge_header(run: Run) -> None:
    there, back = run.sent.rows, run.out.rows
    turned = (back[:, :6] == there[:, 6:12]) & (back[:, 6:12] == there[:, :6])
    header = np.frombuffer(b"\x08\x00\x45\0", np.uint8)
    plain = turned.all(axis=1) & (back[:, 12:16] == header).all(axis=1)
    start = np.full(len(run.sent), 14)
    right = ones_sums(run.out, start, start + 20) == 0
    run.check(plain & right & (back[:, 22] == 64), "a wrong header of an answer")


def _judge_answers(run: Run) -> None:
    _judge_header(run)
    there = run.sent.rows
    is_segment = there[:, 23] == TCP_PROTOCOL
    _judge_resets(run.only(is_segment))
    _judge_errors(run.only(~is_segment), 3, 3)


def _judge_resets(run: Run) -> None:
    """By RFC 9293, 3.5.2."""
    sent, back, start = run.sent, run.out.rows, header_end(run.sent)
    flags = at_each(sent, start + 12) & 0xFF
    run.check((flags & RST) == 0, "a RST was answered")
    has_ack, span = (flags & ACK) != 0, ((flags & SYN) != 0) * 1 + (flags & FIN)
    behind = start + (at_each(sent, start + 12) >> 12) * 4
    payload = np.maximum(ip_end(sent) - behind, 0)
    wanted_ack = (longs_at(sent, start + 4) + payload + span) % 2**32
    well = longs(back, 38) == np.where(has_ack, longs_at(sent, start + 8), 0)
    well &= longs(back, 42) == np.where(has_ack, 0, wanted_ack)
    well &= words(back, 46) == np.where(has_ack, 0x5000 | RST, 0x5000 | RST | ACK)
    well &= words(back, 34) == at_each(sent, start + 2)
    well &= words(back, 36) == at_each(sent, start)
    run.check(well & (run.out.sizes == 54), "a RST that its receiver would not take")
    first = np.full(len(run.sent), 26)
    sums = ones_sums(run.out, first, first + 28) + TCP_PROTOCOL + 20
    run.check(sums % 0xFFFF == 0, "a wrong checksum of a RST")


def _judge_errors(run: Run, kind: int, code: int) -> None:
    """Quoted is the header, with its options, and the first eight bytes behind it."""
    back, first = run.out.rows, np.full(len(run.sent), 34)
    quoted = header_end(run.sent) + 8 - 14
    unquoted = np.arange(WIDTH - 14) >= quoted[:, None]
    alike = back[:, 42 : 42 + WIDTH - 14] == run.sent.rows[:, 14:]
    well = (back[:, 34:36] == (kind, code)).all(axis=1) & (back[:, 23] == ICMP_PROTOCOL)
    well &= (back[:, 38:42] == 0).all(axis=1) & (alike | unquoted).all(axis=1)
    well &= run.out.sizes == 42 + quoted
    well &= ones_sums(run.out, first, first + 8 + quoted) == 0
    run.check(well, "a wrong ICMP error")


def _judge_l4(run: Run, host: str) -> None:
    """One's complement sums tell right from wrong without knowing which the packet was."""
    run.check(translated(run, host), "another length, address, time to live or header sum")
    run.check(untouched(run), "L4 changed what is not its business")
    run = run.only(~is_later(run.sent))
    errors = run.only(run.sent.rows[:, 23] == ICMP_PROTOCOL)
    errors.check(kept(errors), "another sum over the ICMP error")
    segments = run.only(run.sent.rows[:, 23] != ICMP_PROTOCOL)
    check = header_end(segments.sent) + 6
    none = (at_each(segments.sent, check) == 0) & (segments.sent.rows[:, 23] == UDP_PROTOCOL)
    whole = segments.only(~none)
    first = np.full(len(whole.sent), 26)
    sums = [
        ones_sums(batch, first, first + 8) + ones_sums(batch, header_end(batch), ip_end(batch))
        for batch in (whole.sent, whole.out)
    ]
    whole.check((sums[0] - sums[1]) % 0xFFFF == 0, "another sum over pseudo header and segment")
    bare = segments.only(none)
    bare.check(at_each(bare.out, header_end(bare.out) + 6) == 0, "a checksum nobody asked for")


def translated(run: Run, host: str) -> Truths:
    """Whether the IP header is what L4 makes of it."""
    first, end = np.full(len(run.sent), 14), header_end(run.sent)
    sums = ones_sums(run.sent, first, end) == ones_sums(run.out, first, end)
    hops = run.out.rows[:, 22] == run.sent.rows[:, 22] - 1
    well: Truths = sums & hops & (run.out.sizes == run.sent.sizes) & addressed(run.out, host)
    return well


def kept(run: Run) -> Truths:
    """Whether the sum over the IP packet's payload is what it was."""
    first, last = header_end(run.sent), ip_end(run.sent)
    alike: Truths = ones_sums(run.sent, first, last) == ones_sums(run.out, first, last)
    return alike


def untouched(run: Run) -> Truths:
    """Whether nothing but MACs, addresses, ports, time to live and checksums differ."""
    places = np.arange(WIDTH)
    may = (places < 12) | (places == 22) | (places >= 24) & (places < 34)
    is_fragment = (words(run.sent.rows, 20) & 0x3FFF) > 0
    renamed = is_fragment[:, None] & ((places == 18) | (places == 19))
    behind = places - header_end(run.sent)[:, None]
    protocol = run.sent.rows[:, 23][:, None]
    transport = (behind >= 0) & (behind < 4)
    transport |= (protocol == TCP_PROTOCOL) & (behind >= 16) & (behind < 18)
    transport |= (protocol == UDP_PROTOCOL) & (behind >= 6) & (behind < 8)
    quote = (behind >= 2) & (behind < 4) | (behind >= 18) & (behind < 32)
    inside = ~is_later(run.sent)[:, None] & np.where(protocol == ICMP_PROTOCOL, quote, transport)
    alike: Truths = ((run.sent.rows == run.out.rows[:, :WIDTH]) | may | renamed | inside).all(
        axis=1
    )
    return alike


def same(run: Run, from_in: int, from_out: int) -> Truths:
    """Whether what was sent, from one place on, is what came out from another place on."""
    width = WIDTH - from_in
    beyond = np.arange(width) >= (run.sent.sizes - from_in)[:, None]
    lengths = run.out.sizes - from_out == run.sent.sizes - from_in
    pairs = run.sent.rows[:, from_in:] == run.out.rows[:, from_out : from_out + width]
    alike: Truths = lengths & (pairs | beyond).all(axis=1)
    return alike


def came_wrapped(run: Run, overhead: int) -> Truths:
    """Whether what was sent came out behind so many bytes, but for its time to live."""
    width = WIDTH - 14
    places = np.arange(14, WIDTH)
    free = (places == 22) | (places == 24) | (places == 25)
    beyond = places >= run.sent.sizes[:, None]
    pairs = run.sent.rows[:, 14:] == run.out.rows[:, 14 + overhead : 14 + overhead + width]
    alike: Truths = (pairs | beyond | free).all(axis=1)
    alike &= run.out.sizes == run.sent.sizes + overhead
    alike &= run.out.rows[:, 22 + overhead] == run.sent.rows[:, 22] - 1
    first, end = np.full(len(run.sent), 14), header_end(run.sent)
    sums = ones_sums(run.sent, first, end)
    alike &= sums == ones_sums(run.out, first + overhead, end + overhead)
    return alike


def words(rows: Bytes, at: int) -> Numbers:
    return rows[:, at].astype(np.int64) << 8 | rows[:, at + 1]


def longs(rows: Bytes, at: int) -> Numbers:
    return words(rows, at) << 16 | words(rows, at + 2)


def at_each(batch: Batch, places: Numbers) -> Numbers:
    """The word at another place in every packet."""
    every = np.arange(len(batch))
    return batch.rows[every, places].astype(np.int64) << 8 | batch.rows[every, places + 1]


def longs_at(batch: Batch, places: Numbers) -> Numbers:
    return at_each(batch, places) << 16 | at_each(batch, places + 2)


def header_end(batch: Batch) -> Numbers:
    return 14 + (batch.rows[:, 14] & 0x0F).astype(np.int64) * 4


def ip_end(batch: Batch) -> Numbers:
    return 14 + words(batch.rows, 16)


def is_later(batch: Batch) -> Truths:
    later_ones: Truths = (words(batch.rows, 20) & 0x1FFF) > 0
    return later_ones


def service_ports(batch: Batch) -> Numbers:
    """The port at the VIP: the packet's own, or of an error the one in its quote."""
    behind = np.where(batch.rows[:, 23] == ICMP_PROTOCOL, 28, 2)
    return at_each(batch, header_end(batch) + behind)


def addressed(batch: Batch, host: str) -> Truths:
    targets = np.ascontiguousarray(batch.rows[:, 30:34]).view("<u4")[:, 0]
    known: Truths = targets == address(host)
    return known


# --------------------------------------------------------------------------- the runs


def rounds() -> Iterator[tuple[int, int]]:
    """(seed, packets) of every round."""
    for number, done in enumerate(range(0, PACKETS, ROUND)):
        yield SEED + number, min(ROUND, PACKETS - done)


def takes(batch: Batch, xdp: bool) -> Truths:
    """Which packets BPF_PROG_TEST_RUN takes (see `scene.least_bytes`)."""
    kind = words(batch.rows, 12)
    least = np.where(kind == 0x0800, 34, np.where(kind == 0x86DD, 54, 15))
    fit: Truths = batch.sizes >= (14 if xdp else least)
    return fit


@pytest.mark.parametrize("hook", ["xdp_public", "tc_public", "tc_private", "xdp_reply"])
def test_forwarding(scene: Scene, hook: str) -> None:
    xdp, replying = is_xdp(hook), hook in REPLY_HOOKS
    fd = scene.programs.function(hook)
    first, last = (list(reasons()).index(name) for name in ("forward_first", "drop_first"))
    spans = {"pass": (0, first), "forward": (first + 1, last), "drop": (last + 1, None)}
    totals = dict.fromkeys(spans, 0)
    for seed, count in rounds():
        scene.forget()
        flows = set_up(scene)
        good = batch_of(replies(flows) if replying else requests(), WIDTH)
        sent = spoil(good, count, np.random.default_rng(seed))
        sent = sent.only(takes(sent, xdp))
        before = scene.counted()
        run = Run(hook, seed, sent, *run_batch(fd, sent, xdp=xdp))
        counted = (scene.counted() - before).sum(axis=0)
        seen = judge(run, replying)
        by_reason = {kind: int(counted[low:high].sum()) for kind, (low, high) in spans.items()}
        assert by_reason == seen, f"GALE_FUZZ_SEED={seed}: counted {by_reason}, seen {seen}"
        totals = {kind: totals[kind] + seen[kind] for kind in totals}
    assert min(totals["pass"], totals["forward"]) > PACKETS // 10, totals
    assert totals["drop"] > PACKETS // 10_000, totals


@pytest.mark.parametrize("kind", ["xdp", "tc"])
def test_unwrapping(kind: Literal["xdp", "tc"]) -> None:
    """Either the packet as it came, or what was inside, whole."""
    defines = {"GALE_XDP": 1} if kind == "xdp" else {}
    loaded = compile_programs(["unwrap.c"], defines=defines, cache_dir=IMAGES)[0]
    vips = loaded.bpf[b"vips"]
    vips[vips.Key(address(VIP))] = vips.Leaf(1)
    fd = loaded.function("gale_unwrap", kind)
    inner = requests()[:12]
    good = [wrapped(frame) for frame in inner]
    good += [wrapped(frame, gue_port=50000) for frame in inner]
    base = batch_of([*good, *inner[:2]], WIDTH)
    unwrapped = 0
    for seed, count in rounds():
        sent = spoil(base, count, np.random.default_rng(seed))
        sent = sent.only(takes(sent, kind == "xdp"))
        sent.rows[:, 15] &= 0xFC  # marks of congestion, which go inside, have a test of their own
        run = Run(f"unwrap {kind}", seed, sent, *run_batch(fd, sent, xdp=kind == "xdp"))
        run.check(run.verdicts == KINDS[kind == "xdp"]["pass"], "not passed on")
        ipip = same(run, 34, 14) & (sent.rows[:, 23] == IPIP_PROTOCOL)
        gue = same(run, 46, 14) & (sent.rows[:, 23] == UDP_PROTOCOL)
        head = (sent.rows[:, :14] == run.out.rows[:, :14]).all(axis=1)
        run.check(same(run, 0, 0) | (ipip | gue) & head, "neither as it came nor unwrapped")
        unwrapped += int((ipip | gue).sum())
    loaded.close()
    assert unwrapped > PACKETS // 20
