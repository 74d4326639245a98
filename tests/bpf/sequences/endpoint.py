"""One end of a TCP connection, as RFC 9293 and RFC 5961 have it. Pure.

What goes in: segments (`arrive`), the application's calls (`send`, `close`, ...), and time
(`tick`, to be called at `due`). What comes out: segments in `out`, bytes in `received`.

    CLOSED → SYN_SENT ─────────────► ESTABLISHED ─► FIN_WAIT_1 ─► FIN_WAIT_2 ─► TIME_WAIT → CLOSED
           → SYN_RECEIVED ──────────►     │               └─────► CLOSING ────────┘
                                          └─► CLOSE_WAIT ─► LAST_ACK → CLOSED

Which segments are accepted is by the letter: a RST only with exactly the next number, else a
challenge ACK where it lies in the window; a SYN on a synchronised connection gets a challenge ACK;
an acknowledgement must lie in [SND.UNA - MAX.SND.WND, SND.NXT]. Segments without data that do not
fit are answered now and then only, or else two ends that disagree would do so for ever.
Retransmission is by one timer, which doubles; a few segments may be under way at once. The window
never shrinks, since the application takes everything at once.

Of each connection all bytes are known (`content`), so what arrives can be judged by anyone.
"""

from __future__ import annotations

import random
from dataclasses import dataclass
from enum import Enum, auto

from tests.bpf.sequences.segments import (
    ACK,
    FIN,
    PSH,
    RST,
    SPACE,
    SYN,
    Segment,
    ahead,
    options,
)

CLIENT, NODE = 0, 1
RETRANSMIT_S, RETRANSMIT_MOST_S, RETRIES = 1.0, 8.0, 6
DELAYED_ACK_S = 0.04
TIME_WAIT_S = 60.0
ANSWER_EVERY_S = 0.5
BURST = 4
"""Segments under way."""
_PATTERN = random.Random(5961).randbytes(1 << 16)


class State(Enum):
    CLOSED = auto()
    SYN_SENT = auto()
    SYN_RECEIVED = auto()
    ESTABLISHED = auto()
    FIN_WAIT_1 = auto()
    FIN_WAIT_2 = auto()
    CLOSE_WAIT = auto()
    CLOSING = auto()
    LAST_ACK = auto()
    TIME_WAIT = auto()


SYNCHRONISED = frozenset(State) - {State.CLOSED, State.SYN_SENT, State.SYN_RECEIVED}
_SENDS = frozenset({State.ESTABLISHED, State.CLOSE_WAIT})
_RECEIVES = frozenset({State.ESTABLISHED, State.FIN_WAIT_1, State.FIN_WAIT_2})
_AFTER_OUR_FIN = {State.ESTABLISHED: State.FIN_WAIT_1, State.CLOSE_WAIT: State.LAST_ACK}
_AFTER_ITS_ACK = {
    State.FIN_WAIT_1: State.FIN_WAIT_2,
    State.CLOSING: State.TIME_WAIT,
    State.LAST_ACK: State.CLOSED,
}
_AFTER_THEIR_FIN = {
    State.ESTABLISHED: State.CLOSE_WAIT,
    State.FIN_WAIT_1: State.CLOSING,
    State.FIN_WAIT_2: State.TIME_WAIT,
}


@dataclass(frozen=True, slots=True)
class Traits:
    """How one end speaks TCP."""

    window: int = 65535
    scale: int | None = None
    segment: int = 60
    """The most bytes in one."""
    delays_acks: bool = True
    fast_open: bool = False


def content(serial: int, side: int, start: int, size: int) -> bytes:
    """Bytes `start` to `start + size` of what that side of that connection says."""
    begin = (serial * 977 + side * 331) % (len(_PATTERN) // 2) + start
    return _PATTERN[begin : begin + size]


class Endpoint:
    """`serial` names the connection, `number` this end of it."""

    def __init__(self, serial: int, number: int, side: int, iss: int, traits: Traits) -> None:
        self.serial, self.number, self.side, self.iss, self.traits = (
            serial,
            number,
            side,
            iss,
            traits,
        )
        self.state = State.CLOSED
        self.out: list[Segment] = []
        self.received = bytearray()
        self.wanted = 0
        """Bytes the application has given us so far."""
        self.closing = False
        """The application will give no more."""
        self.was_reset = False
        self.una = self.nxt = iss
        self.irs = self.rcv_nxt = 0
        self._fin_sent = False
        self._fin_at: int | None = None
        self._early: dict[int, bytes] = {}
        self._scales = False
        self._peer_scale = 0
        self._peer_window = self.peer_window_most = 0
        self._owes_ack = False
        self._answered_at = float("-inf")
        self._retries = 0
        self._resend_at: float | None = None
        self._ack_at: float | None = None
        self._gone_at: float | None = None

    # ------------------------------------------------------------------- what others may ask

    @property
    def window(self) -> int:
        """What we take, in bytes."""
        if self._scales and self.traits.scale is not None:
            return self.traits.window >> self.traits.scale << self.traits.scale
        return min(self.traits.window, 0xFFFF)

    @property
    def is_synchronised(self) -> bool:
        return self.state in SYNCHRONISED

    @property
    def is_idle(self) -> bool:
        """Nothing is under way or owed."""
        return self._resend_at is None and self._ack_at is None

    @property
    def due(self) -> float | None:
        """When `tick` has something to do."""
        times = [t for t in (self._resend_at, self._ack_at, self._gone_at) if t is not None]
        return min(times, default=None)

    def takes_sequence(self, segment: Segment) -> bool:
        """RFC 9293, 3.10.7.4: some of it lies in the window."""
        from_next = ahead(segment.seq, self.rcv_nxt)
        length = len(segment.payload) + bool(segment.flags & FIN)
        if not length:
            return 0 <= from_next < self.window
        return from_next < self.window and from_next + length > 0

    def takes_acknowledgement(self, ack: int) -> bool:
        """RFC 5961, 5.2."""
        return -self.peer_window_most <= ahead(ack, self.una) <= ahead(self.nxt, self.una)

    def encourage(self, now: float) -> None:
        """Begin the retries anew: what hindered them is over."""
        self._retries = 0
        if self._resend_at is not None:
            self._resend_at = min(self._resend_at, now + RETRANSMIT_S)

    # ------------------------------------------------------------------- the application

    def connect(self, size: int, now: float) -> None:
        """The first SYN; with Fast Open it carries the first of `size` bytes."""
        self.state = State.SYN_SENT
        self.wanted = size
        carried = min(size, self.traits.segment) if self.traits.fast_open else 0
        self.nxt = (self.iss + 1 + carried) % SPACE
        self._emit(SYN, self.iss, content(self.serial, self.side, 0, carried))
        self._arm(now)

    def accept(self, syn: Segment, now: float) -> None:
        """Answer a SYN."""
        self.state = State.SYN_RECEIVED
        self.irs, self.rcv_nxt = syn.seq, (syn.seq + 1) % SPACE
        self._note_window(syn)
        self._agree_on_scale(syn)
        if self.traits.fast_open and syn.is_fast:
            self._take(syn.payload)
        self.nxt = (self.iss + 1) % SPACE
        self._emit(SYN | ACK, self.iss)
        self._arm(now)

    def send(self, size: int, now: float) -> None:
        if not self.closing and self.state is not State.CLOSED:
            self.wanted += size
            self._transmit(now)

    def close(self, now: float) -> None:
        """No more is to be sent; what comes is still taken."""
        if self.state is State.SYN_SENT and not self.wanted:
            self.state = State.CLOSED
            self._disarm()
        self.closing = True
        self._transmit(now)

    def abort(self) -> None:
        if self.is_synchronised and self.state is not State.TIME_WAIT:
            self._emit(RST | ACK, self.nxt)
        self._end(was_reset=True)

    def probe(self) -> None:
        """A keepalive: one number too old, so that it must be answered (RFC 9293, 3.8.4)."""
        if self.state in _SENDS and self.una == self.nxt:
            self._emit(ACK, (self.nxt - 1) % SPACE)

    # ------------------------------------------------------------------- a segment comes in

    def arrive(self, segment: Segment, now: float) -> None:
        if self.state is State.SYN_SENT:
            self._answered(segment, now)
        elif segment.flags & RST:
            self._reset_by(segment)
        elif segment.flags & SYN:
            self._syn_again(segment)
        elif not self.takes_sequence(segment):
            self._misfit(segment, now)
            if self.state is State.TIME_WAIT and segment.flags & FIN:
                self._gone_at = now + TIME_WAIT_S
        elif segment.flags & ACK and self._acknowledged(segment, now):
            self._data(segment, now)
        self._transmit(now)
        if self._owes_ack and self.state is not State.CLOSED:
            self._emit(ACK, self.nxt)
        self._owes_ack = False

    def _answered(self, segment: Segment, now: float) -> None:
        """In SYN_SENT (RFC 9293, 3.10.7.3). Simultaneous opening does not occur with a service."""
        has_ack = bool(segment.flags & ACK)
        if has_ack and not 0 < ahead(segment.ack, self.iss) <= ahead(self.nxt, self.iss):
            if not segment.flags & RST:
                self.out.append(Segment(segment.ack, 0, RST))
            return
        if segment.flags & RST:
            if has_ack:
                self._end(was_reset=True)
            return
        if not segment.flags & SYN or not has_ack:
            return
        self.state = State.ESTABLISHED
        self.irs, self.rcv_nxt = segment.seq, (segment.seq + 1) % SPACE
        self.una = segment.ack
        # What Fast Open brought and the node did not take is sent as if for the first time.
        self.nxt = self.una
        self._note_window(segment)
        self._agree_on_scale(segment)
        self._owes_ack = True
        self._disarm()

    def _reset_by(self, segment: Segment) -> None:
        """RFC 5961, 3.2."""
        if segment.seq == self.rcv_nxt:
            self._end(was_reset=True)
        elif 0 < ahead(segment.seq, self.rcv_nxt) < self.window:
            self._owes_ack = True

    def _syn_again(self, segment: Segment) -> None:
        """RFC 5961, 4.2; the same SYN again is answered again."""
        is_same = segment.seq == self.irs and not segment.flags & ACK
        if self.state is State.SYN_RECEIVED and is_same:
            self._emit(SYN | ACK, self.iss)
        else:
            self._owes_ack = True

    def _misfit(self, segment: Segment, now: float) -> None:
        """Say once more what would fit (RFC 5961, 7: not without limit)."""
        if segment.payload or segment.flags & FIN or now - self._answered_at >= ANSWER_EVERY_S:
            self._owes_ack = True
            self._answered_at = now

    def _acknowledged(self, segment: Segment, now: float) -> bool:
        """Take its acknowledgement. Returns whether to go on with the segment."""
        if self.state is State.SYN_RECEIVED:
            if not 0 < ahead(segment.ack, self.una) <= ahead(self.nxt, self.una):
                self.out.append(Segment(segment.ack, 0, RST))
                return False
            self.state = State.ESTABLISHED
        elif not self.takes_acknowledgement(segment.ack):
            self._misfit(segment, now)
            return False
        if ahead(segment.ack, self.una) >= 0:
            self._note_window(segment)
        if ahead(segment.ack, self.una) > 0:
            self.una = segment.ack
            self._retries = 0
            self._disarm()
            if self.una != self.nxt:
                self._arm(now)
        if self._fin_sent and self.una == self.nxt and self.state in _AFTER_ITS_ACK:
            self._enter(_AFTER_ITS_ACK[self.state], now)
        return self.state is not State.CLOSED

    def _data(self, segment: Segment, now: float) -> None:
        before = self.rcv_nxt
        if segment.payload and self.state in _RECEIVES:
            self._early[segment.seq] = segment.payload
        if segment.flags & FIN and self.state in _RECEIVES:
            self._fin_at = (segment.seq + len(segment.payload)) % SPACE
        self._take_in_order()
        if self._fin_at == self.rcv_nxt and self.state in _AFTER_THEIR_FIN:
            self.rcv_nxt = (self.rcv_nxt + 1) % SPACE
            self._enter(_AFTER_THEIR_FIN[self.state], now)
        elif self.rcv_nxt != before and not self._early and self._may_delay():
            self._ack_at = now + DELAYED_ACK_S
            return
        if segment.payload or segment.flags & FIN:
            self._owes_ack = True

    def _may_delay(self) -> bool:
        """Every second segment is acknowledged at once (RFC 9293, 3.8.6.3)."""
        return self.traits.delays_acks and self._ack_at is None

    def _take_in_order(self) -> None:
        for seq in sorted(self._early, key=lambda number: ahead(number, self.rcv_nxt)):
            skipped = ahead(self.rcv_nxt, seq)
            if skipped >= 0:
                self._take(self._early.pop(seq)[skipped:])

    def _take(self, payload: bytes) -> None:
        self.received += payload
        self.rcv_nxt = (self.rcv_nxt + len(payload)) % SPACE

    # ------------------------------------------------------------------- segments and time go out

    def tick(self, now: float) -> None:
        if self._gone_at is not None and self._gone_at <= now:
            self._end(was_reset=False)
        if self._ack_at is not None and self._ack_at <= now:
            self._emit(ACK, self.nxt)
        if self._resend_at is not None and self._resend_at <= now:
            self._retries += 1
            if self._retries > RETRIES:
                self._end(was_reset=True)
            else:
                self._resend()
                self._arm(now)

    def _transmit(self, now: float) -> None:
        """What the window and the burst allow, and a FIN behind the last byte."""
        if self.state is State.SYN_RECEIVED and not self.traits.fast_open:
            return
        while self.state in _SENDS or self.state is State.SYN_RECEIVED:
            offset = ahead(self.nxt, self.iss) - 1
            room = min(self._peer_window, BURST * self.traits.segment) - ahead(self.nxt, self.una)
            size = min(self.wanted - offset, self.traits.segment, room)
            if size <= 0:
                break
            self._emit(ACK | PSH, self.nxt, content(self.serial, self.side, offset, size))
            self.nxt = (self.nxt + size) % SPACE
            self._arm(now)
        if self.closing and self.state in _SENDS and ahead(self.nxt, self.iss) - 1 == self.wanted:
            self._emit(FIN | ACK, self.nxt)
            self.nxt = (self.nxt + 1) % SPACE
            self._fin_sent = True
            self.state = _AFTER_OUR_FIN[self.state]
            self._arm(now)

    def _resend(self) -> None:
        """The oldest that is not acknowledged."""
        if self.state is State.SYN_SENT:
            self._emit(SYN, self.iss)
            return
        if self.una == self.iss:
            self._emit(SYN | ACK, self.iss)
            return
        offset = ahead(self.una, self.iss) - 1
        sent = ahead(self.nxt, self.iss) - 1 - self._fin_sent
        size = min(sent - offset, self.traits.segment)
        flags = ACK | FIN if self._fin_sent and offset + size == sent else ACK | PSH
        self._emit(flags, self.una, content(self.serial, self.side, offset, size))

    def _emit(self, flags: int, seq: int, payload: bytes = b"") -> None:
        window = self.traits.window
        carried = b""
        if flags & SYN:
            offers = self.traits.scale if not flags & ACK or self._scales else None
            carried = options(scale=offers, fast=self.traits.fast_open and not flags & ACK)
        elif self._scales and self.traits.scale is not None:
            window >>= self.traits.scale
        ack = self.rcv_nxt if flags & ACK else 0
        self.out.append(Segment(seq, ack, flags, min(window, 0xFFFF), payload, carried))
        if flags & ACK:
            self._owes_ack = False
            self._ack_at = None

    def _note_window(self, segment: Segment) -> None:
        shift = 0 if segment.flags & SYN else self._peer_scale
        self._peer_window = segment.window << shift
        self.peer_window_most = max(self.peer_window_most, self._peer_window)

    def _agree_on_scale(self, syn: Segment) -> None:
        """Windows are scaled only if both offer it (RFC 7323, 2.2)."""
        theirs = syn.scale
        self._scales = theirs is not None and self.traits.scale is not None
        self._peer_scale = theirs if theirs is not None and self._scales else 0

    def _enter(self, state: State, now: float) -> None:
        self.state = state
        if state is State.TIME_WAIT:
            self._disarm()
            self._gone_at = now + TIME_WAIT_S
        elif state is State.CLOSED:
            self._end(was_reset=False)

    def _end(self, *, was_reset: bool) -> None:
        self.state = State.CLOSED
        self.was_reset = was_reset
        self._disarm()
        self._ack_at = self._gone_at = None

    def _arm(self, now: float) -> None:
        if self._resend_at is None or self._resend_at <= now:
            self._resend_at = now + min(RETRANSMIT_S * 2**self._retries, RETRANSMIT_MOST_S)

    def _disarm(self) -> None:
        self._resend_at = None
