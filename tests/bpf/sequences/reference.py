"""A load balancer in Python that keeps every promise the oracle asks for. Pure.

It is here to prove the oracle: what this one passes can be demanded, and each of its `FLAWS` must
be caught. It is written from RFC 5961, RFC 5382 and the design alone, and as short as can be: one
list of flows, no table to fill up.

A flow remembers of each side what it has sent (`end`), acknowledged (`acked`) and offers to take
(`window`). A segment fits if it lies within what its receiver has acknowledged and its window, and
acknowledges something that the receiver has sent; only what fits moves the flow on. A RST fits
if it has exactly the number that its receiver acknowledged last.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NamedTuple

from tests.bpf.sequences.contract import (
    CLIENTS,
    FIRST_PORT,
    NODES,
    SERVICE,
    SNAT,
    Layout,
    LiveFlow,
    Outcome,
    Verdict,
)
from tests.bpf.sequences.endpoint import CLIENT, NODE
from tests.bpf.sequences.judge import reset_for
from tests.bpf.sequences.segments import (
    ACK,
    FIN,
    RST,
    SYN,
    Address,
    Segment,
    ahead,
    frame,
    opened,
)

FLAWS = (
    "any RST closes",
    "any FIN counts",
    "any ACK is noted",
    "an ACK without its sequence is noted",
    "a RST never closes",
    "an inexact RST closes in 10 s",
    "a doubted RST is never forgiven",
    "a SYN replaces a living flow",
    "any SYN-ACK begins anew",
    "no SYN-ACK begins anew",
    "a SYN on a closed flow takes a new port",
    "a SYN on a closed flow takes a new node",
    "FIN twice is closed",
    "FINs are never acknowledged",
    "a client's RST forgets the handshake",
    "only the first acknowledgement fits",
    "ACKs in the handshake are not looked at",
    "closed flows give up their ports",
    "established flows expire after an hour",
    "flows never expire",
    "misfits are dropped",
    "no window scaling",
    "a SYN's window is scaled",
    "no RST for unknown flows",
    "checksums are forgotten",
    "RST keeps a closed flow closing",
)
_SLACK = 65535
"""What may be retransmitted that was acknowledged long ago."""
_OPENING, _ESTABLISHED, _CLOSING, _TIME_WAIT, _RESET = range(5)
_STATES = ("opening", "established", "closing", "time_wait", "reset")
_TIMEOUTS_S = (30.0, 7440.0, 240.0, 60.0, 10.0)
_DOUBT_S = 240.0


class _Place(NamedTuple):
    node: int
    port: int


@dataclass(slots=True)
class _Side:
    end: int = 0
    acked: int = 0
    window: int = 0
    scale: int | None = None
    fin: int | None = None
    doubted: bool = False


@dataclass(slots=True)
class _Flow:
    client: int
    place: _Place
    deadline: float
    syns: list[Segment] = field(default_factory=list)
    """Those that the node has not answered."""
    state: int = _OPENING
    is_answered: bool = False
    iss: int = 0
    """The node's."""
    sides: tuple[_Side, _Side] = field(default_factory=lambda: (_Side(), _Side()))


class Reference:
    def __init__(self, flaw: str = "") -> None:
        assert flaw in ("", *FLAWS)
        self._flaw = flaw
        self.begin(Layout())

    def begin(self, layout: Layout) -> None:
        self._layout = layout
        self._now = 0.0
        self._first = self._next_port = 0
        self._flows: list[_Flow] = []

    def age(self, seconds: float) -> None:
        self._now += seconds

    def ring(self, first: int) -> None:
        self._first = first if first < self._layout.nodes else 0

    def live_flows(self) -> list[LiveFlow]:
        self._expire()
        return [
            LiveFlow(
                CLIENTS[flow.client],
                SERVICE,
                (SNAT, flow.place.port),
                NODES[flow.place.node],
                _STATES[flow.state],
            )
            for flow in self._flows
        ]

    # ------------------------------------------------------------------- packets

    def request(self, sent: bytes) -> Outcome:
        source, _, segment = opened(sent)
        client = CLIENTS.index(source)
        self._expire()
        flow = next((flow for flow in self._flows if flow.client == client), None)
        opens = segment.flags & (SYN | ACK | RST | FIN) == SYN
        if flow and opens:
            flow = self._syn(flow, segment)
        if flow is None:
            flow = self._open(client, segment) if opens else None
            if flow is None:
                return Outcome(Verdict.DROPPED, sent) if opens else self._unknown(sent)
        elif not opens and not self._admitted(flow, segment):
            return Outcome(Verdict.DROPPED, sent, "drop_handshake_mismatch")
        return self._forward(sent, (SNAT, flow.place.port), NODES[flow.place.node])

    def reply(self, sent: bytes) -> Outcome:
        source, destination, segment = opened(sent)
        place = _Place(NODES.index(source), destination[1])
        self._expire()
        flow = next((flow for flow in self._flows if flow.place == place), None)
        if flow is None:
            return self._unknown(sent)
        if segment.flags & RST:
            self._reset(flow, segment, NODE)
        elif segment.flags & SYN:
            self._syn_ack(flow, segment)
        elif flow.state != _OPENING:
            self._follow(flow, segment, NODE)
        elif flow.is_answered:
            self._note_sent(flow.sides[NODE], segment)
        return self._forward(sent, SERVICE, CLIENTS[flow.client])

    def _forward(self, sent: bytes, source: Address, destination: Address) -> Outcome:
        if self._flaw == "checksums are forgotten":
            out = bytearray(sent)
            out[26:38] = (
                source[0] + destination[0] + source[1].to_bytes(2) + destination[1].to_bytes(2)
            )
            return Outcome(Verdict.FORWARDED, bytes(out))
        out = bytearray(frame(source, destination, opened(sent)[2]))
        out[22] -= 1
        total = int.from_bytes(out[24:26]) + 0x100
        out[24:26] = ((total & 0xFFFF) + (total >> 16)).to_bytes(2)
        return Outcome(Verdict.FORWARDED, bytes(out))

    def _unknown(self, sent: bytes) -> Outcome:
        source, destination, segment = opened(sent)
        answer = reset_for(segment)
        if answer is None:
            return Outcome(Verdict.DROPPED, sent, "drop_no_flow")
        if self._flaw == "no RST for unknown flows":
            return Outcome(Verdict.PASSED, sent)
        return Outcome(Verdict.FORWARDED, frame(destination, source, answer), "reset_sent")

    # ------------------------------------------------------------------- the handshake

    def _open(self, client: int, segment: Segment, node: int | None = None) -> _Flow | None:
        nodes = list(range(self._first, self._layout.nodes))
        node = nodes[client % len(nodes)] if node is None else node
        for _ in range(self._layout.ports):
            place = _Place(node, FIRST_PORT + self._next_port % self._layout.ports)
            self._next_port += 1
            holder = next((flow for flow in self._flows if flow.place == place), None)
            if (
                holder
                and self._flaw == "closed flows give up their ports"
                and holder.state > _CLOSING
            ):
                self._flows.remove(holder)
                holder = None
            if holder is None:
                flow = _Flow(client, place, self._now + _TIMEOUTS_S[_OPENING], [segment])
                self._flows.append(flow)
                return flow
        return None

    def _syn(self, flow: _Flow, segment: Segment) -> _Flow | None:
        """A SYN of a client that has a flow. None: forget it."""
        is_closed = flow.state in (_TIME_WAIT, _RESET)
        if self._flaw == "a SYN replaces a living flow" and flow.state != _OPENING:
            is_closed = True
        if is_closed and self._flaw == "a SYN on a closed flow takes a new port":
            self._flows.remove(flow)
            return None
        if is_closed:
            place = flow.place
            if self._flaw == "a SYN on a closed flow takes a new node":
                place = _Place((place.node + 1) % self._layout.nodes, place.port)
            self._flows.remove(flow)
            flow = _Flow(flow.client, place, 0.0)
            self._flows.append(flow)
        if flow.state == _OPENING:
            flow.deadline = self._now + _TIMEOUTS_S[_OPENING]
        flow.syns.append(segment)
        return flow

    def _syn_ack(self, flow: _Flow, segment: Segment) -> None:
        """The node takes the SYN: the flow begins, or begins anew."""
        if not segment.flags & ACK:
            return
        asked = [syn for syn in flow.syns if _answers(segment, syn)]
        answers = bool(asked)
        if self._flaw == "any SYN-ACK begins anew":
            answers = True
        if self._flaw == "no SYN-ACK begins anew":
            answers = False
        is_new = not flow.is_answered or segment.seq != flow.iss
        if flow.state != _OPENING and not (answers and is_new):
            return
        if is_new:
            flow.sides = (_Side(), _Side())
            flow.state, flow.is_answered, flow.iss = _OPENING, True, segment.seq
            client, node = flow.sides
            client.end, client.window = segment.ack, 0xFFFF
            client.scale = asked[0].scale if asked else None
            node.end, node.acked, node.scale = segment.end, segment.ack, segment.scale
            node.window = self._offered(segment, node, client)
            flow.syns.clear()
        flow.deadline = self._now + _TIMEOUTS_S[_OPENING]

    def _admitted(self, flow: _Flow, segment: Segment) -> bool:
        """Follow a client's segment that is no SYN; False: it is refused."""
        if segment.flags & RST:
            if flow.state == _OPENING and self._flaw == "a client's RST forgets the handshake":
                self._flows.remove(flow)
            self._reset(flow, segment, CLIENT)
        elif flow.state != _OPENING:
            misfit = not self._follow(flow, segment, CLIENT)
            return not (misfit and self._flaw == "misfits are dropped")
        elif not segment.flags & SYN:
            sent = ahead(flow.sides[NODE].end, flow.iss)
            if self._flaw == "only the first acknowledgement fits":
                sent = 1
            fits = flow.is_answered and 0 < ahead(segment.ack, flow.iss) <= sent
            if self._flaw == "ACKs in the handshake are not looked at":
                fits = True
            if not fits or not segment.flags & ACK:
                return False
            flow.state, flow.deadline = _ESTABLISHED, self._now + _TIMEOUTS_S[_ESTABLISHED]
            flow.sides[CLIENT].acked = segment.ack
            self._follow(flow, segment, CLIENT)
        return True

    # ------------------------------------------------------------------- and then

    def _follow(self, flow: _Flow, segment: Segment, side: int) -> bool:
        own, other = flow.sides[side], flow.sides[1 - side]
        fits_ack = self._fits_ack(segment, other)
        fits = fits_ack and self._fits_sequence(segment, other)
        if self._flaw == "any ACK is noted" and segment.flags & ACK:
            own.acked = segment.ack
        if self._flaw == "an ACK without its sequence is noted" and fits_ack:
            own.acked = segment.ack
        if self._flaw == "any FIN counts" and segment.flags & FIN:
            own.fin = segment.end
            flow.state, flow.deadline = _CLOSING, self._now + _DOUBT_S
        if not fits or segment.flags & SYN or flow.state == _RESET:
            if flow.state == _RESET and self._flaw == "RST keeps a closed flow closing":
                flow.state, flow.deadline = _CLOSING, self._now + _DOUBT_S
            return fits
        if ahead(segment.ack, own.acked) > 0:
            own.acked = segment.ack
        own.window = self._offered(segment, own, other)
        self._note_sent(own, segment)
        if self._flaw != "a doubted RST is never forgiven":
            own.doubted = False
        if segment.flags & FIN:
            own.fin = segment.end
        self._move_on(flow)
        return True

    def _note_sent(self, own: _Side, segment: Segment) -> None:
        if ahead(segment.end, own.end) > 0:
            own.end = segment.end

    def _fits_ack(self, segment: Segment, other: _Side) -> bool:
        behind = ahead(other.end, segment.ack)
        return bool(segment.flags & ACK) and 0 <= behind <= other.window + _SLACK

    def _fits_sequence(self, segment: Segment, other: _Side) -> bool:
        return -_SLACK <= ahead(segment.seq, other.acked) <= other.window

    def _offered(self, segment: Segment, taker: _Side, giver: _Side) -> int:
        """The window that a segment offers; a SYN's is never scaled (RFC 7323, 2.2)."""
        scales = taker.scale is not None and giver.scale is not None
        if segment.flags & SYN and self._flaw != "a SYN's window is scaled":
            scales = False
        if self._flaw == "no window scaling":
            scales = False
        return segment.window << taker.scale if scales and taker.scale else segment.window

    def _move_on(self, flow: _Flow) -> None:
        fins = [side.fin is not None for side in flow.sides]
        done = [self._is_acknowledged(flow, side) for side in (CLIENT, NODE)]
        if self._flaw == "FIN twice is closed":
            done = fins
        if self._flaw == "FINs are never acknowledged":
            done = [False, False]
        if all(done):
            flow.state = _TIME_WAIT
        elif any(fins):
            flow.state = _CLOSING
        timeout = _TIMEOUTS_S[flow.state]
        if self._flaw == "established flows expire after an hour":
            timeout = min(timeout, 3600.0)
        if any(side.doubted for side in flow.sides):
            timeout = min(timeout, _DOUBT_S)
        flow.deadline = self._now + timeout

    def _is_acknowledged(self, flow: _Flow, side: int) -> bool:
        fin = flow.sides[side].fin
        return fin is not None and ahead(flow.sides[1 - side].acked, fin) >= 0

    def _reset(self, flow: _Flow, segment: Segment, side: int) -> None:
        if flow.state == _OPENING or self._flaw == "a RST never closes":
            return
        own, other = flow.sides[side], flow.sides[1 - side]
        if segment.seq == other.acked or self._flaw == "any RST closes":
            flow.state, flow.deadline = _RESET, self._now + _TIMEOUTS_S[_RESET]
        elif self._flaw == "an inexact RST closes in 10 s":
            flow.deadline = min(flow.deadline, self._now + 10)
        else:
            own.doubted = True
            flow.deadline = min(flow.deadline, self._now + _DOUBT_S)

    def _expire(self) -> None:
        if self._flaw != "flows never expire":
            self._flows = [flow for flow in self._flows if flow.deadline >= self._now]


def _answers(segment: Segment, syn: Segment) -> bool:
    """Whether a SYN-ACK acknowledges this SYN, and perhaps what it carried."""
    return 0 < ahead(segment.ack, syn.seq) <= ahead(syn.end, syn.seq)
