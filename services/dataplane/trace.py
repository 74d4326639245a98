"""`gale trace`: the packet that is asked about, and in words what would become of it. Pure.

A question names a packet as its sender sees it: protocol, from where, to where. Its bytes are made
here (`frame`), whole and with right checksums. A packet of a known flow has numbers that its
receiver would take: the next ones that the flow's records name; without flags in the question it is
then an ACK, and a SYN where no flow is known.

`Answer` is what `/v1/trace` and the command `trace` give: the verdict, where the packet goes, and
the steps that led there, each a sentence. What two load balancers must say alike stands in
`agreement`: a flow, or the client's hash, leads to the same node on each of them; the SNAT port is
each one's own.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bpf.clock import TICK_MS
from services.dataplane.flows.record import UDP, FlowState
from services.dataplane.words import endpoint_text, mac_text

TCP, ICMP = 6, 1
PROTOCOLS = {"tcp": TCP, "udp": UDP, "icmp": ICMP}
FLAGS = {"fin": 0x01, "syn": 0x02, "rst": 0x04, "psh": 0x08, "ack": 0x10}
TIME_TO_LIVE = 64
WINDOW = 65_535
UNKNOWN_MAC = bytes.fromhex("020000000001")
"""Of a sender of whom no flow says anything: no card has it."""
ECHO_REQUEST = 8
PASS, FORWARD, ANSWER, DROP = "pass", "forward", "answer", "drop"
_ANSWERS = ("_answered", "_reset", "_refused")


class WrongQuestion(ValueError):  # noqa: N818 - it names what was asked
    """The question is none; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class End:
    """One end of a packet. `port` 0: its protocol has none."""

    address: bytes
    port: int

    def __str__(self) -> str:
        text = ".".join(map(str, self.address))
        return f"{text}:{self.port}" if self.port else text


@dataclass(frozen=True, slots=True)
class Question:
    """A packet as its sender sees it."""

    protocol: str
    source: End
    destination: End
    flags: tuple[str, ...]
    """TCP's; empty: those that fit the flow."""
    is_reply: bool
    """It comes from a node, by the private interface."""

    def words(self, flags: Sequence[str]) -> str:
        said = f" {'+'.join(flags).upper()}" if flags else ""
        return f"{self.protocol} {self.source} -> {self.destination}{said}"


def read_question(arguments: Mapping[str, Any]) -> Question:
    """Raises `WrongQuestion`."""
    protocol = arguments.get("protocol")
    if protocol not in PROTOCOLS:
        raise WrongQuestion(f"protocol: {protocol!r}, expected tcp, udp or icmp")
    flags = arguments.get("flags") or []
    if not isinstance(flags, list) or not all(flag in FLAGS for flag in flags):
        raise WrongQuestion(f"flags: {flags!r}, expected some of {', '.join(FLAGS)}")
    if flags and protocol != "tcp":
        raise WrongQuestion(f"flags: {protocol} has none")
    is_reply = arguments.get("reply") or False
    if not isinstance(is_reply, bool):
        raise WrongQuestion(f"reply: {is_reply!r}, expected true or false")
    source = read_end("source", arguments.get("source"), protocol)
    destination = read_end("destination", arguments.get("destination"), protocol)
    return Question(str(protocol), source, destination, tuple(flags), is_reply)


def read_end(name: str, text: Any, protocol: str) -> End:
    """`10.0.0.1:80`, or for ICMP `10.0.0.1`; raises `WrongQuestion`."""
    wanted = "an IPv4 address" if protocol == "icmp" else "ADDRESS:PORT"
    wrong = WrongQuestion(f"{name}: {text!r}, expected {wanted}")
    if not isinstance(text, str):
        raise wrong
    address, colon, port = text.partition(":")
    if (protocol == "icmp") == bool(colon):
        raise wrong
    parts = address.split(".")
    numbers = [part for part in (*parts, *([port] if colon else [])) if _is_number(part)]
    if len(parts) != 4 or len(numbers) != 4 + bool(colon):
        raise wrong
    if any(int(part) > 255 for part in parts) or (colon and not 0 < int(port) <= 65_535):
        raise wrong
    return End(bytes(map(int, parts)), int(port) if colon else 0)


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


# --------------------------------------------------------------------------- the packet


@dataclass(frozen=True, slots=True)
class Known:
    """The flow that a packet belongs to, as its two records say. Numbers are TCP's."""

    mine: Any
    """The record of the packet's own direction, with the fields of `struct flow`."""
    theirs: Any
    is_over: bool
    """Its deadline has passed, or it is closed: a SYN opens a new one."""


def flags_for(question: Question, known: Known | None) -> tuple[str, ...]:
    """Those that were asked for, or those that fit."""
    if question.protocol != "tcp" or question.flags:
        return question.flags
    if known is not None and not known.is_over:
        return ("syn", "ack") if question.is_reply and _is_opening(known) else ("ack",)
    return ("ack",) if question.is_reply else ("syn",)


def _is_opening(known: Known) -> bool:
    return int(known.mine["state"]) == FlowState.TCP_OPENING


def frame(question: Question, own_mac: bytes, known: Known | None) -> bytes:
    """The packet's bytes, from Ethernet on (RFC 791, 793, 768, 792)."""
    source_mac = UNKNOWN_MAC
    if known is not None and not question.is_reply:
        source_mac = bytes(known.mine["last_hop"]) if any(known.mine["last_hop"]) else UNKNOWN_MAC
    if question.protocol == "tcp":
        body = _tcp(question, known)
    elif question.protocol == "udp":
        body = struct.pack("!4H", question.source.port, question.destination.port, 8, 0)
    else:
        body = _with_checksum(struct.pack("!BBHHH", ECHO_REQUEST, 0, 0, 1, 1), 2, b"")
    pseudo = question.source.address + question.destination.address
    number = PROTOCOLS[question.protocol]
    if question.protocol != "icmp":
        place = 16 if number == TCP else 6
        body = _with_checksum(body, place, pseudo + struct.pack("!HH", number, len(body)))
    header = struct.pack("!BBHHHBBH", 0x45, 0, 20 + len(body), 0, 0x4000, TIME_TO_LIVE, number, 0)
    header = _with_checksum(header + pseudo, 10, b"")
    return own_mac + source_mac + b"\x08\x00" + header + body


def _tcp(question: Question, known: Known | None) -> bytes:
    flags = flags_for(question, known)
    sequence = acknowledged = 0
    if known is not None:
        sequence, acknowledged = int(known.mine["end"]), int(known.theirs["end"])
        if "rst" in flags:
            sequence = int(known.theirs["acked"])
        if "syn" in flags and question.is_reply:
            acknowledged = int(known.theirs["acked"])
    return struct.pack(
        "!HHIIBBHHH",
        question.source.port,
        question.destination.port,
        sequence,
        acknowledged if "ack" in flags else 0,
        5 << 4,
        sum(FLAGS[flag] for flag in flags),
        WINDOW,
        0,
        0,
    )


def _with_checksum(data: bytes, place: int, pseudo: bytes) -> bytes:
    """RFC 1071; of a datagram 0 would mean that there is none."""
    padded = pseudo + data + bytes(len(data) % 2)
    total = sum(struct.unpack(f"!{len(padded) // 2}H", padded))
    while total > 0xFFFF:
        total = (total & 0xFFFF) + (total >> 16)
    check = (~total & 0xFFFF) or 0xFFFF
    return data[:place] + check.to_bytes(2, "big") + data[place + 2 :]


def key_of(question: Question) -> bytes:
    """The first 14 bytes of its `struct flow_key`: all but the version."""
    ports = question.source.port.to_bytes(2, "big") + question.destination.port.to_bytes(2, "big")
    end = bytes([PROTOCOLS[question.protocol], question.is_reply])
    return question.source.address + question.destination.address + ports + end


# --------------------------------------------------------------------------- the answer


@dataclass(frozen=True, slots=True)
class Passage:
    """The packet at one hook."""

    hook: str
    interface: str
    reason: str


@dataclass(frozen=True, slots=True)
class Seen:
    """All that a trace has found out."""

    question: Question
    flags: tuple[str, ...]
    passages: tuple[Passage, ...]
    service: str
    mode: str
    node: str
    """Its id; empty: the packet goes to none."""
    at: str
    """The node's address."""
    before: Any
    """The flow's record as it is; None: there is none."""
    after: Any
    """As it would be; None likewise."""
    now: int
    """Ticks."""
    packet: bytes
    """As it leaves the last hook."""
    leaves_by: str


def kind_of(reason: str, names: Sequence[str]) -> str:
    """pass, forward, answer or drop: what the place of the reason in reasons.h means."""
    place = names.index(reason)
    if place >= names.index("drop_first"):
        return DROP
    if place < names.index("forward_first"):
        return PASS
    return ANSWER if reason.endswith(_ANSWERS) else FORWARD


def answer(seen: Seen, lb: str, reasons: Mapping[str, str]) -> dict[str, Any]:
    """What the command gives."""
    last = seen.passages[-1]
    verdict = kind_of(last.reason, list(reasons))
    return {
        "lb": lb,
        "packet": seen.question.words(seen.flags),
        "verdict": verdict,
        "reason": last.reason,
        "why": reasons[last.reason],
        "hook": last.hook,
        "service": seen.service or None,
        "mode": seen.mode or None,
        "node": seen.node or None,
        "state": _state(seen.before, seen.now),
        "state_after": _state(seen.after, seen.now),
        "steps": [*_steps(seen, verdict, reasons)],
        "packet_out": seen.packet.hex() if verdict in (FORWARD, ANSWER) else None,
    }


AGREEMENT = ("verdict", "service", "mode", "node")
"""What all load balancers must say alike."""


def disagreements(answers: Sequence[Mapping[str, Any]]) -> list[str]:
    """What they do not, a line each; empty: they agree."""
    lines = []
    for field in AGREEMENT:
        said: dict[str, list[str]] = {}
        for each in answers:
            said.setdefault(str(each[field] or "none"), []).append(str(each["lb"]))
        if len(said) > 1:
            parts = (f"{value} on {', '.join(lbs)}" for value, lbs in said.items())
            lines.append(f"{field}: {'; '.join(parts)}")
    return lines


def _state(record: Any, now: int) -> str | None:
    if record is None or int(record["state"]) == FlowState.FREE or _left(record, now) <= 0:
        return None
    return FlowState(int(record["state"])).word


def _left(record: Any, now: int) -> int:
    left = (int(record["deadline"]) - now) & 0xFFFF_FFFF
    return left - (1 << 32) if left >= 1 << 31 else left


def _steps(seen: Seen, verdict: str, reasons: Mapping[str, str]) -> list[str]:
    steps = [_service_step(seen)]
    if seen.mode == "l4" or seen.before is not None:
        steps.append(_flow_step(seen))
    for passage in seen.passages:
        where = f"{passage.hook} on {passage.interface}"
        steps.append(f"{where}: {reasons[passage.reason]} ({passage.reason})")
    if seen.node:
        steps.append(f"The node is {seen.node}, at {seen.at}.")
    if verdict == PASS:
        steps.append("The kernel of this load balancer gets it, as it came.")
    elif verdict == DROP:
        steps.append("It is dropped.")
    else:
        steps.append(_leaving(seen, verdict))
    before, after = _state(seen.before, seen.now), _state(seen.after, seen.now)
    if before != after:
        steps.append(f"The flow would go from {before or 'none'} to {after or 'none'}.")
    return steps


def _service_step(seen: Seen) -> str:
    if seen.question.is_reply:
        return "It comes from a node's side: a reply, if there is a flow for it."
    if not seen.service:
        return f"No service is at {seen.question.protocol} {seen.question.destination}."
    return f"The service is {seen.service}, mode {seen.mode}."


def _flow_step(seen: Seen) -> str:
    state = _state(seen.before, seen.now)
    if state is None:
        return "No flow of that name is known here."
    record = seen.before
    left_s = _left(record, seen.now) * TICK_MS / 1_000
    source = endpoint_text(record["saddr"], record["sport"])
    target = endpoint_text(record["daddr"], record["dport"])
    return f"A flow is known, {state}, for {left_s:.0f} s more: rewritten to {source} -> {target}."


def _leaving(seen: Seen, verdict: str) -> str:
    how = "An answer goes back" if verdict == ANSWER else "It leaves"
    return f"{how} by {seen.leaves_by}: {described(seen.packet)}."


def described(packet: bytes) -> str:
    """Addresses and ports of a frame, outermost first."""
    kind, start = packet[12:14], 14
    if kind != b"\x08\x00":
        return f"{len(packet)} bytes with a tag"
    return f"{_described_ip(packet[start:])}, to {mac_text(packet[:6])}"


def _described_ip(packet: bytes) -> str:
    header = (packet[0] & 0x0F) * 4
    ends = [_text(packet[12:16]), _text(packet[16:20])]
    protocol, body = packet[9], packet[header:]
    if protocol in (TCP, UDP) and len(body) >= 4:
        ports = (int.from_bytes(body[0:2], "big"), int.from_bytes(body[2:4], "big"))
        ends = [f"{end}:{port}" for end, port in zip(ends, ports, strict=True)]
    names = {TCP: "tcp", UDP: "udp", ICMP: "icmp", 4: "ipip"}
    return f"{names.get(protocol, str(protocol))} {' -> '.join(ends)}"


def _text(address: bytes) -> str:
    return ".".join(map(str, address))
