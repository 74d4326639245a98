"""The oracle: what a load balancer may and must do with each packet, known from both endpoints.

It follows each client's flow with more knowledge than any load balancer has: which connection a
segment belongs to, whether it is genuine, and whether its receiver is going to accept it. From what
has passed the load balancer it keeps two answers for each flow (`Track`):

    kept until   before this, the flow must be there: what is sent arrives at the same peer, the
                 port is nobody else's, and a new SYN of the same client meets the same node and
                 port. Only genuine segments of the connection put it off.
    gone by      after this, the flow must have ended. Any packet may put it off.

Both are a timeout after some packet, by phase; where a load balancer may judge either way (a FIN
that nobody has acknowledged yet, a RST that it cannot know to be exact), the two phases differ.

    opening      a SYN has passed
    established  the client has acknowledged the node's SYN
    closing      one FIN has passed (kept until), and its acknowledgement (gone by)
    time_wait    both FINs and both acknowledgements have passed
    reset        a host has reset that does not have the connection any more (kept until); with the
                 very number that the other side had acknowledged last (gone by)

A RST that fits nothing may shorten the timeout to that of closing, until the next segment of the
side it claims to be from. A SYN changes nothing unless the flow is closed or the node answers it by
SYN-ACK. All else that is forged or out of date changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import IntEnum, auto
from typing import Protocol

from tests.bpf.sequences.contract import (
    CLIENTS,
    NODES,
    SERVICE,
    SNAT,
    Balancer,
    LiveFlow,
    Outcome,
    Verdict,
)
from tests.bpf.sequences.endpoint import CLIENT, NODE, Endpoint
from tests.bpf.sequences.segments import (
    ACK,
    FIN,
    RST,
    SYN,
    Segment,
    ahead,
    opened,
    rewritten,
    unsound,
)

FORGED = -2
"""The serial of what belongs to no connection."""
NOBODY = -1
"""The serial of what a host says about a connection that it does not have."""
NO_CONNECTION = -3


class ViolationError(AssertionError):
    """`kind` is the broken promise, the same for all failures of one cause."""

    def __init__(self, kind: str, text: str) -> None:
        super().__init__(f"{kind}: {text}")
        self.kind = kind


class Phase(IntEnum):
    NONE = 0
    OPENING = auto()
    ESTABLISHED = auto()
    CLOSING = auto()
    TIME_WAIT = auto()
    RESET = auto()


KEPT_S = {
    Phase.NONE: 0.0,
    Phase.OPENING: 2.0,
    Phase.ESTABLISHED: 7440 - 36.0,
    Phase.CLOSING: 240 - 12.0,
    Phase.TIME_WAIT: 60 - 2.0,
    Phase.RESET: 10 - 2.0,
}
"""Less than the timeouts, since a flow need not write down the time of its every packet; and of an
established one each direction keeps itself, so the time may be that of the last packet before half
a minute in which one side has heard the other and said nothing."""
GONE_S = {
    Phase.NONE: 0.0,
    Phase.OPENING: 240 + 5.0,
    Phase.ESTABLISHED: 7440 + 5.0,
    Phase.CLOSING: 240 + 5.0,
    Phase.TIME_WAIT: 60 + 5.0,
    Phase.RESET: 10 + 5.0,
}
_CLOSED = (Phase.NONE, Phase.TIME_WAIT, Phase.RESET)
_ALIVE = (Phase.ESTABLISHED, Phase.CLOSING)

Place = tuple[int, int]
"""A node's number, a SNAT port."""


@dataclass(frozen=True, slots=True)
class Packet:
    """A segment under way, and what only the oracle may know of it."""

    segment: Segment
    side: int
    """Who sent it."""
    client: int
    """Whose tuple it bears, or is about."""
    serial: int
    number: int
    """The endpoint that sent it; 0: none."""
    born: float
    irs: int = 0
    """The peer's first number, as the sender has it."""
    place: Place = (0, 0)
    """Between load balancer and node."""


@dataclass(slots=True)
class Track:
    """One client tuple's flow through the load balancer."""

    place: Place | None = None
    serial: int = NO_CONNECTION
    kept: Phase = Phase.NONE
    kept_from: float = 0.0
    gone: Phase = Phase.NONE
    last: float = 0.0
    syn_ack: int = 0
    """The node's endpoint whose SYN-ACK has passed; 0: none."""
    iss: int | None = None
    """That SYN-ACK's number."""
    asked: list[Segment] = field(default_factory=list)
    """The SYNs that have passed, the newest last."""
    settled: int = 0
    """How many of them had passed when the flow was established."""
    acked: list[int | None] = field(default_factory=lambda: [None, None])
    """By side: the highest acknowledgement of this connection that has passed."""
    fin: list[int | None] = field(default_factory=lambda: [None, None])
    """By side: the number behind its FIN, once that has passed."""
    doubted: set[int] = field(default_factory=set)
    """Sides in whose name a RST has come that fits nothing, and no segment of theirs since."""
    is_unsure: bool = False
    """Of two SYNs on a living flow the node has answered one, or answered one anew that it had
    answered before. A load balancer may have remembered the other, or nothing, and go on with the
    numbers of the connection before."""
    reached: list[int | None] = field(default_factory=lambda: [None, None])
    """By side: the highest number at which a segment of this connection has begun."""
    misled: set[int] = field(default_factory=set)
    """Sides of which somebody has acknowledged, in the other's name, what they have never sent."""
    overstated: set[int] = field(default_factory=set)
    """Sides in whose name somebody has sent what is beyond all that they have."""
    lingers: bool = False
    """A FIN of a misled side was overtaken by what it sent after it, or that side is overstated as
    well. A load balancer cannot tell whether such a FIN is an old one, so the flow may live as long
    as any that is closing."""
    has_lapsed: bool = False
    """It could have been forgotten since it was opened."""
    gave_way: bool = False
    """It was half-open, all ports were held, and its own went to another client."""
    is_answered_late: bool = False
    """A RST has ended it, and since then the node has answered a SYN of before. A load balancer may
    wait for the end of that handshake, and for nothing else."""

    @property
    def kept_until(self) -> float:
        timeout = KEPT_S[self.kept]
        return self.kept_from + (min(timeout, KEPT_S[Phase.CLOSING]) if self.doubted else timeout)

    @property
    def gone_by(self) -> float:
        return self.last + GONE_S[self.gone] if self.gone else 0.0

    def keep(self, phase: Phase, now: float) -> None:
        self.kept, self.kept_from, self.is_answered_late = phase, now, False

    def begin(self, serial: int, now: float) -> None:
        """A handshake is under way."""
        self.serial = serial
        self.keep(Phase.OPENING, now)
        self.syn_ack = 0
        self.acked, self.fin, self.reached = [None, None], [None, None], [None, None]
        self.doubted.clear()
        self.misled.clear()
        self.overstated.clear()
        self.lingers = False


class Hosts(Protocol):
    """What the oracle asks of the world."""

    now: float

    def client_end(self, client: int) -> Endpoint | None: ...

    def node_end(self, place: Place) -> Endpoint | None: ...


PLENTY = 64
"""So many ports are never all in use here."""


class Judge:
    """`ports`: of the SNAT slice. `overlooked`: kinds of violations that are not to be told."""

    def __init__(self, ports: int, hosts: Hosts, overlooked: frozenset[str]) -> None:
        self._ports = ports
        self._hosts = hosts
        self._overlooked = overlooked
        self._number_of = {address: i for i, address in enumerate(CLIENTS)}
        self._node_of = {address: i for i, address in enumerate(NODES)}
        self.tracks = [Track() for _ in CLIENTS]

    # ------------------------------------------------------------------- a client's packet

    def request(self, packet: Packet, sent: bytes, outcome: Outcome) -> tuple[Verdict, Packet]:
        """What became of it: where it goes on, as what came out."""
        track = self.tracks[packet.client]
        now = self._hosts.now
        self._lapse(track)
        if outcome.verdict is Verdict.FORWARDED and self._is_answer(packet, sent, outcome):
            self._not_forwarded(packet, track, "answered")
            return Verdict.ANSWERED, self._answer(packet, outcome)
        if outcome.verdict is not Verdict.FORWARDED:
            self._not_forwarded(packet, track, outcome.verdict.value)
            return outcome.verdict, packet
        place, out = self._sent_to_node(sent, outcome)
        self._check_place(packet, track, place)
        if place != track.place:
            track.kept, track.gone, track.iss = Phase.NONE, Phase.NONE, None
        track.place = place
        self._note(packet, track, now)
        return Verdict.FORWARDED, replace(packet, segment=out, place=place)

    def _sent_to_node(self, sent: bytes, outcome: Outcome) -> tuple[Place, Segment]:
        source, destination, segment = opened(outcome.frame)
        if source[0] != SNAT or destination not in self._node_of:
            raise ViolationError("wrong address", f"{source} → {destination}")
        wrong = rewritten(sent, outcome.frame, source, destination)
        if wrong:
            raise ViolationError("wrong bytes", wrong)
        return (self._node_of[destination], source[1]), segment

    def _check_place(self, packet: Packet, track: Track, place: Place) -> None:
        now = self._hosts.now
        opens = packet.segment.flags & (SYN | ACK | RST | FIN) == SYN
        if now < track.kept_until and place != track.place:
            kind = "moved by a SYN" if opens else "moved"
            raise ViolationError(kind, f"from {track.place} to {place}, {describe(track, now)}")
        if not opens and (track.place is None or place != track.place):
            raise ViolationError("forwarded without a flow", f"to {place}, {describe(track, now)}")
        if not opens and now > track.gone_by:
            self._fault("outlived its deadline", describe(track, now))
        for other in self.tracks:
            if other is not track and other.place == place:
                # Where all ports are held, a half-open flow gives its own away, and no other does.
                gives_way = other.kept is Phase.OPENING and self._ports < PLENTY
                if now < other.kept_until and not gives_way:
                    raise ViolationError("port given away", f"{place} of {describe(other, now)}")
                self._lapse(other)
                other.place, other.kept = None, Phase.NONE
                other.gave_way |= gives_way

    def _not_forwarded(self, packet: Packet, track: Track, what: str) -> None:
        now = self._hosts.now
        flags = packet.segment.flags
        if now < track.kept_until and not self._may_be_refused(packet, track):
            raise ViolationError("living flow lost", f"{what}, {describe(track, now)}")
        if what == "passed":
            self._fault("passed to the host", describe(track, now))
        is_genuine_syn = flags == SYN and packet.serial != FORGED
        if is_genuine_syn and not self.may_lack_ports(packet.client):
            raise ViolationError("refused", f"a SYN was {what}, though ports are free")

    def _may_be_refused(self, packet: Packet, track: Track) -> bool:
        """What a flow that is there need not forward."""
        flags = packet.segment.flags
        if packet.serial == FORGED and flags & SYN and flags & (RST | FIN | ACK):
            return True
        if track.is_answered_late and not flags & (SYN | RST):
            return True
        if track.kept is not Phase.OPENING or flags & (SYN | RST):
            return False
        if track.has_lapsed:
            return True
        return packet.serial != track.serial or not self._completes(packet, track)

    def may_lack_ports(self, client: int) -> bool:
        """Whether others may hold all ports that this client could be given."""
        now = self._hosts.now
        if self._ports >= PLENTY:
            return False
        others = [t for i, t in enumerate(self.tracks) if i != client]
        return any(now <= other.gone_by for other in others)

    # ------------------------------------------------------------------- a node's packet

    def reply(self, packet: Packet, sent: bytes, outcome: Outcome) -> tuple[Verdict, Packet]:
        now = self._hosts.now
        owner = self._owner(packet.place)
        track = self.tracks[owner] if owner is not None else Track()
        self._lapse(track)
        if outcome.verdict is Verdict.FORWARDED and self._is_answer(packet, sent, outcome):
            self._reply_lost(track, "answered")
            return Verdict.ANSWERED, self._answer(packet, outcome)
        if outcome.verdict is not Verdict.FORWARDED:
            self._reply_lost(track, outcome.verdict.value)
            return outcome.verdict, packet
        source, destination, segment = opened(outcome.frame)
        if source != SERVICE or destination not in self._number_of:
            raise ViolationError("wrong address", f"{source} → {destination}")
        if owner is None or self._number_of[destination] != owner:
            raise ViolationError(
                "wrong client", f"{packet.place} belongs to {owner}: {destination}"
            )
        wrong = rewritten(sent, outcome.frame, source, destination)
        if wrong:
            raise ViolationError("wrong bytes", wrong)
        if now > track.gone_by:
            self._fault("outlived its deadline", describe(track, now))
        self._note(packet, track, now)
        return Verdict.FORWARDED, replace(packet, segment=segment, client=owner)

    def _reply_lost(self, track: Track, what: str) -> None:
        now = self._hosts.now
        if now < track.kept_until:
            raise ViolationError(
                "living flow lost", f"the node's was {what}, {describe(track, now)}"
            )
        if what == "passed":
            self._fault("passed to the host", describe(track, now))

    def _owner(self, place: Place) -> int | None:
        for i, track in enumerate(self.tracks):
            if track.place == place:
                return i
        return None

    # ------------------------------------------------------------------- the LB's own answers

    def _is_answer(self, packet: Packet, sent: bytes, outcome: Outcome) -> bool:
        """Turned around, back to its sender."""
        came, went = opened(sent), opened(outcome.frame)
        return went[0] == came[1] and went[1] == came[0]

    def _answer(self, packet: Packet, outcome: Outcome) -> Packet:
        """RFC 9293, 3.10.7.1: what a host says to a segment of no connection."""
        _, _, answer = opened(outcome.frame)
        wrong = unsound(outcome.frame)
        if wrong:
            raise ViolationError("wrong answer", wrong)
        wanted = reset_for(packet.segment)
        if wanted is None or _essence(answer) != _essence(wanted):
            raise ViolationError("wrong answer", f"{answer} to {packet.segment}")
        other = NODE if packet.side == CLIENT else CLIENT
        return Packet(answer, other, packet.client, NOBODY, 0, self._hosts.now, place=packet.place)

    # ------------------------------------------------------------------- what it does to the flow

    def _lapse(self, track: Track) -> None:
        if track.kept and self._hosts.now >= track.kept_until:
            track.has_lapsed = True

    def _note(self, packet: Packet, track: Track, now: float) -> None:
        """A packet has been forwarded."""
        segment = packet.segment
        if segment.flags & RST:
            self._note_reset(packet, track, now)
        elif segment.flags & SYN:
            if packet.side == CLIENT and segment.flags & (ACK | FIN) == 0:
                self._note_syn(packet, track, now)
            elif packet.side == NODE and segment.flags & ACK and packet.serial != FORGED:
                self._note_syn_ack(packet, track, now)
        elif segment.flags & ACK:
            if (
                track.gone is Phase.OPENING
                and packet.side == CLIENT
                and self._may_complete(packet, track)
            ):
                track.gone = Phase.ESTABLISHED
            if packet.serial == track.serial:
                self._note_genuine(packet, track, now)
            elif packet.serial == FORGED:
                self._note_forged(packet, track)
        track.last = now

    def _note_syn(self, packet: Packet, track: Track, now: float) -> None:
        was_gone = now >= track.kept_until
        if track.gone in _CLOSED or now > track.gone_by:
            track.gone = Phase.OPENING
        repeats = track.kept is Phase.OPENING and packet.serial == track.serial
        if track.kept in _CLOSED or (was_gone and not repeats):
            track.has_lapsed = track.is_unsure = track.gave_way = False
            track.asked.clear()
            track.settled = 0
            track.begin(packet.serial, now)
        elif track.kept is Phase.OPENING:
            track.kept_from = now
        track.asked.append(packet.segment)

    def may_answer_syn(self, client: int, segment: Segment) -> bool:
        """Whether this could be a node's answer to a SYN of that client's, data and all."""
        return any(_answers(segment, syn, SEGMENT) for syn in self.tracks[client].asked)

    def _note_syn_ack(self, packet: Packet, track: Track, now: float) -> None:
        if packet.segment.seq == track.iss:
            self._note_syn_ack_again(packet, track, now)
            return
        is_asked = [_answers(packet.segment, syn) for syn in track.asked]
        if track.kept is not Phase.OPENING and not any(is_asked):
            if track.kept is Phase.RESET:
                track.is_answered_late, track.gone = True, Phase.OPENING
            return
        if track.kept is not Phase.OPENING:
            track.is_unsure = not is_asked[-1] or len(is_asked) <= track.settled
        if track.gone is not Phase.OPENING:
            track.gone = Phase.ESTABLISHED if track.is_unsure else Phase.OPENING
        track.begin(packet.serial, now)
        track.syn_ack, track.iss = packet.number, packet.segment.seq
        track.acked[NODE] = packet.segment.ack

    def _note_syn_ack_again(self, packet: Packet, track: Track, now: float) -> None:
        if packet.serial == track.serial:
            self._refresh(packet, track, now)
        elif track.kept is Phase.OPENING:
            # A SYN of another connection has passed since, when the flow could have been
            # forgotten already: whether it was, nobody knows.
            track.begin(packet.serial, now)
            track.has_lapsed = True
        track.syn_ack = packet.number

    def _note_genuine(self, packet: Packet, track: Track, now: float) -> None:
        """A segment of the connection itself, with an acknowledgement."""
        segment, side, other = packet.segment, packet.side, 1 - packet.side
        if track.kept is Phase.OPENING and side == CLIENT and self._completes(packet, track):
            track.keep(Phase.CLOSING if track.is_unsure else Phase.ESTABLISHED, now)
            track.gone = Phase.ESTABLISHED
            track.settled = len(track.asked)
        if track.kept is Phase.OPENING:
            return
        acked = track.acked[side]
        if acked is None or ahead(segment.ack, acked) > 0:
            track.acked[side] = segment.ack
        reached = track.reached[side]
        if segment.flags & FIN:
            overtaken = reached is not None and ahead(reached, segment.end) >= 0
            track.lingers |= side in track.misled and (overtaken or side in track.overstated)
            track.fin[side] = segment.end
            if track.kept is Phase.ESTABLISHED:
                track.keep(Phase.CLOSING, now)
        if reached is None or ahead(segment.seq, reached) > 0:
            track.reached[side] = segment.seq
        self._refresh(packet, track, now)
        self._close(track, other, now)
        self._close(track, side, now)

    def _note_forged(self, packet: Packet, track: Track) -> None:
        node = self._hosts.node_end(track.place) if track.place else None
        client = self._hosts.client_end(packet.client)
        sender, other = (client, node) if packet.side == CLIENT else (node, client)
        if other is not None and ahead(packet.segment.ack, other.nxt) > 0:
            track.misled.add(1 - packet.side)
        if sender is not None and ahead(packet.segment.end, sender.nxt) > 0:
            track.overstated.add(packet.side)

    def _may_complete(self, packet: Packet, track: Track) -> bool:
        """Whether a load balancer that has forgotten nothing takes it for that acknowledgement."""
        return packet.serial != FORGED and packet.irs == track.iss

    def _completes(self, packet: Packet, track: Track) -> bool:
        """Whether the client's segment acknowledges the SYN-ACK that has passed."""
        if not track.syn_ack or track.iss is None or packet.irs != track.iss:
            return False
        return bool(packet.segment.flags & ACK) and ahead(packet.segment.ack, track.iss) > 0

    def _refresh(self, packet: Packet, track: Track, now: float) -> None:
        track.doubted.discard(packet.side)
        if track.kept in _ALIVE:
            track.kept_from = now

    def _close(self, track: Track, side: int, now: float) -> None:
        """Whether that side's FIN is acknowledged by now, and the other's too."""
        if track.kept not in _ALIVE or not self._is_finished(track, side):
            return
        if track.gone is Phase.ESTABLISHED and not track.is_unsure:
            track.gone = Phase.CLOSING
        if self._is_finished(track, 1 - side):
            track.keep(Phase.TIME_WAIT, now)
            if track.gone is Phase.CLOSING and not track.lingers:
                track.gone = Phase.TIME_WAIT

    def _is_finished(self, track: Track, side: int) -> bool:
        fin, acked = track.fin[side], track.acked[1 - side]
        return fin is not None and acked is not None and ahead(acked, fin) >= 0

    def _note_reset(self, packet: Packet, track: Track, now: float) -> None:
        if track.kept not in (*_ALIVE, Phase.TIME_WAIT):
            return
        sender = (
            self._hosts.client_end(packet.client)
            if packet.side == CLIENT
            else (self._hosts.node_end(packet.place))
        )
        lives = sender is not None and sender.serial == track.serial and sender.is_synchronised
        if packet.serial == FORGED or lives:
            track.doubted.add(packet.side)
            return
        track.keep(Phase.RESET, min(now, track.kept_until - KEPT_S[Phase.RESET]))
        exact = packet.segment.seq == track.acked[1 - packet.side]
        # What was sent and what was acknowledged have both been forged: then this may seem too old.
        exact &= packet.side not in track.misled & track.overstated
        if exact and track.gone in _ALIVE and not track.is_unsure:
            track.gone = Phase.RESET

    # ------------------------------------------------------------------- looking into the table

    def check_table(self, balancer: Balancer) -> None:
        """What is there is what must and may be there."""
        now = self._hosts.now
        live = balancer.live_flows()
        by_client = {self._number_of.get(flow.client): flow for flow in live}
        if len(by_client) != len(live) or None in by_client:
            self._fault("table", "two flows of one client, or nobody's: " + _listed(live))
        if len({(flow.node, flow.snat) for flow in live}) != len(live):
            self._fault("table", "two flows with one port: " + _listed(live))
        for i, track in enumerate(self.tracks):
            flow = by_client.get(i)
            if flow is None and now < track.kept_until:
                self._fault("table", f"client {i} has no flow, {describe(track, now)}")
            if flow is not None:
                self._check_entry(flow, track)

    def _check_entry(self, flow: LiveFlow, track: Track) -> None:
        now = self._hosts.now
        if now > track.gone_by:
            self._fault("outlived its deadline", f"{flow}, {describe(track, now)}")
        place = (self._node_of.get(flow.node), flow.snat[1])
        if track.place is not None and place != track.place:
            self._fault("table", f"{flow}, but {describe(track, now)}")

    def _fault(self, kind: str, text: str) -> None:
        """A violation after which the model can go on, if it is to be overlooked."""
        if kind not in self._overlooked:
            raise ViolationError(kind, text)


def _listed(flows: list[LiveFlow]) -> str:
    return ", ".join(str(flow) for flow in flows)


def describe(track: Track, now: float) -> str:
    kept, gone = track.kept_until - now, track.gone_by - now
    doubts = " (a RST in doubt)" if track.doubted else ""
    if track.place is None:
        return "no flow"
    must = f"must be there for {kept:.1f} s more" if kept > 0 else "need not be there"
    may = f"may be there for {gone:.1f} s more" if gone >= 0 else "may not be there"
    return (
        f"flow of connection {track.serial} at {track.place}: "
        f"{track.kept.name.lower()}, {must}; {track.gone.name.lower()}, {may}{doubts}"
    )


def reset_for(segment: Segment) -> Segment | None:
    """What a host without the connection answers (RFC 9293, 3.10.7.1); nothing to a RST."""
    if segment.flags & RST:
        return None
    if segment.flags & ACK:
        return Segment(segment.ack, 0, RST)
    return Segment(0, segment.end, RST | ACK)


SEGMENT = 1_460
"""Bytes: the most that a SYN carries. How much it was a load balancer need not remember."""


def _answers(segment: Segment, syn: Segment, at_least: int = 0) -> bool:
    """Whether a SYN-ACK acknowledges this SYN, and perhaps what it carried, or `at_least` that."""
    return 0 < ahead(segment.ack, syn.seq) <= max(ahead(syn.end, syn.seq), at_least + 1)


def _essence(segment: Segment) -> tuple[int, int, int]:
    return segment.flags, segment.seq, segment.ack if segment.flags & ACK else 0
