"""The model itself: its endpoints finish without a load balancer, and its oracle is right.

What the oracle demands can be done, since the reference does it; and each of the reference's flaws
is one that somebody could have built, and is caught.
"""

from __future__ import annotations

import random

import pytest

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
from tests.bpf.sequences.endpoint import CLIENT, NODE, Endpoint, State, Traits, content
from tests.bpf.sequences.generator import Generator, setup_of
from tests.bpf.sequences.judge import Judge, Packet, Track
from tests.bpf.sequences.reference import FLAWS, Reference
from tests.bpf.sequences.segments import (
    ACK,
    FIN,
    RST,
    SPACE,
    SYN,
    Segment,
    ahead,
    frame,
    opened,
    options,
    rewritten,
)
from tests.bpf.sequences.trial import play_seed, shortened, transcript
from tests.bpf.sequences.world import World

SEEDS, PARTS = 600, 12
CATCH_WITHIN = 2000


class Wire:
    """No load balancer at all: each client has a port of its own for good, at the first node."""

    def begin(self, layout: Layout) -> None:
        pass

    def request(self, sent: bytes) -> Outcome:
        source, _, segment = opened(sent)
        port = FIRST_PORT + CLIENTS.index(source)
        return self._hop(frame((SNAT, port), NODES[0], segment))

    def reply(self, sent: bytes) -> Outcome:
        _, destination, segment = opened(sent)
        return self._hop(frame(SERVICE, CLIENTS[destination[1] - FIRST_PORT], segment))

    def age(self, seconds: float) -> None:
        pass

    def ring(self, first: int) -> None:
        pass

    def live_flows(self) -> list[LiveFlow]:
        return []

    def _hop(self, out: bytes) -> Outcome:
        """One less to live."""
        sum_ = int.from_bytes(out[24:26]) + 0x100
        sum_ = (sum_ & 0xFFFF) + (sum_ >> 16)
        frame_ = out[:22] + bytes([out[22] - 1]) + out[23:24] + sum_.to_bytes(2) + out[26:]
        return Outcome(Verdict.FORWARDED, frame_)


class Unjudged(Judge):
    """Only what the endpoints make of it counts."""

    def _check_place(self, packet: Packet, track: Track, place: tuple[int, int]) -> None:
        pass

    def _fault(self, kind: str, text: str) -> None:
        pass


@pytest.mark.parametrize("part", range(PARTS))
def test_endpoints_finish_by_themselves(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        world = World(setup_of(seed), Wire(), judge=Unjudged)
        generator = Generator(world)
        for draw in [generator.begin, *[generator.step] * generator.steps]:
            for event in draw():
                world.play(event)
        for event in (("finish", seed % 2), ("return", 0), ("return", 0)):
            world.play(event)


@pytest.mark.parametrize("part", range(PARTS))
def test_what_is_demanded_can_be_done(part: int) -> None:
    for seed in range(part, SEEDS, PARTS):
        failure = play_seed(seed, Reference()).failure
        if failure is not None:
            short = shortened(failure, Reference())
            pytest.fail(f"{failure}\n\n{transcript(short, Reference())}", pytrace=False)


@pytest.mark.parametrize("flaw", FLAWS)
def test_a_flaw_is_caught(flaw: str) -> None:
    balancer = Reference(flaw)
    assert any(play_seed(seed, balancer).failure for seed in range(CATCH_WITHIN))


def test_the_same_seed_is_the_same_scenario() -> None:
    played = [play_seed(seed, Reference("any RST closes")) for seed in (4, 4)]
    assert played[0] == played[1]
    assert played[0].failure is not None


def test_a_failing_history_is_made_short() -> None:
    balancer = Reference("any RST closes")
    failure = play_seed(4, balancer).failure
    assert failure is not None
    short = shortened(failure, balancer)
    assert short.kind == failure.kind
    assert len(short.events) < len(failure.events)
    assert short.kind in transcript(short, balancer)


# --------------------------------------------------------------------------- segments and frames


def test_numbers_wrap() -> None:
    assert ahead(5, SPACE - 5) == 10
    assert ahead(SPACE - 5, 5) == -10
    assert Segment(SPACE - 1, 0, SYN | FIN, 0, b"abc").end == 4


def test_a_frame_is_what_it_was_made_of() -> None:
    segment = Segment(1, 2, SYN | ACK, 3, b"odd", options(scale=7, fast=True))
    assert opened(frame(CLIENTS[0], SERVICE, segment)) == (CLIENTS[0], SERVICE, segment)
    assert segment.scale == 7
    assert segment.is_fast
    assert Segment(1, 2, SYN).scale is None


@pytest.mark.parametrize("at", [16, 22, 24, 29, 35, 40, 50, 56])
def test_any_wrong_byte_is_seen(at: int) -> None:
    segment = Segment(10, 20, ACK, 30, b"payload")
    before = frame(CLIENTS[0], SERVICE, segment)
    after = Wire().request(before).frame
    assert rewritten(before, after, (SNAT, FIRST_PORT), NODES[0]) == ""
    spoilt = bytearray(after)
    spoilt[at] ^= 1
    assert rewritten(before, bytes(spoilt), (SNAT, FIRST_PORT), NODES[0]) != ""


# --------------------------------------------------------------------------- one end, by the letter


class TestEndpoint:
    """A node's end that has just been established; the client's first number is 1,000."""

    @pytest.fixture
    def end(self) -> Endpoint:
        end = Endpoint(1, 1, NODE, 5000, Traits(window=1000, delays_acks=False))
        end.accept(Segment(1000, 0, SYN, 1000), 0.0)
        end.arrive(Segment(1001, 5001, ACK, 1000), 0.0)
        assert end.state is State.ESTABLISHED
        end.out.clear()
        return end

    def test_an_exact_reset_ends_it(self, end: Endpoint) -> None:
        end.arrive(Segment(1001, 0, RST), 0.0)
        assert end.state is State.CLOSED

    @pytest.mark.parametrize(("seq", "answers"), [(1002, 1), (2000, 1), (2001, 0), (1000, 0)])
    def test_an_inexact_reset_is_challenged_within_the_window(
        self, end: Endpoint, seq: int, answers: int
    ) -> None:
        end.arrive(Segment(seq, 0, RST), 0.0)
        assert end.state is State.ESTABLISHED
        assert end.out == [Segment(5001, 1001, ACK, 1000)] * answers

    def test_a_syn_is_challenged(self, end: Endpoint) -> None:
        end.arrive(Segment(77, 0, SYN), 0.0)
        assert end.out == [Segment(5001, 1001, ACK, 1000)]

    @pytest.mark.parametrize(
        ("seq", "ack", "flags"),
        [(2001, 5001, ACK), (1001, 5002, ACK), (1001, 4000, ACK), (1001, 5001, 0)],
    )
    def test_what_does_not_fit_is_not_taken(
        self, end: Endpoint, seq: int, ack: int, flags: int
    ) -> None:
        end.arrive(Segment(seq, ack, flags, 1000, b"x"), 0.0)
        assert end.received == b""

    def test_what_comes_out_of_order_is_put_in_order(self, end: Endpoint) -> None:
        said = content(1, CLIENT, 0, 300)
        pieces = [(start, said[start : start + 70]) for start in range(0, 300, 50)]
        random.Random(3).shuffle(pieces)
        for start, piece in pieces:
            end.arrive(Segment(1001 + start, 5001, ACK, 1000, piece), 0.0)
        assert bytes(end.received) == said

    def test_a_fin_before_what_is_missing_waits(self, end: Endpoint) -> None:
        end.arrive(Segment(1003, 5001, FIN | ACK, 1000), 0.0)
        assert end.out[-1].ack == 1001
        end.arrive(Segment(1001, 5001, ACK, 1000, b"ab"), 0.0)
        assert end.out[-1].ack == 1004
        assert end.state is State.CLOSE_WAIT

    def test_both_close_at_once(self, end: Endpoint) -> None:
        end.close(0.0)
        end.arrive(Segment(1001, 5001, FIN | ACK, 1000), 0.0)
        seen = [end.state]
        end.arrive(Segment(1002, 5002, ACK, 1000), 0.0)
        seen.append(end.state)
        end.tick(60.0)
        assert [*seen, end.state] == [State.CLOSING, State.TIME_WAIT, State.CLOSED]

    def test_what_is_lost_is_sent_again(self, end: Endpoint) -> None:
        end.send(10, 0.0)
        end.tick(0.9)
        assert len(end.out) == 1
        end.tick(1.0)
        assert end.out[0] == end.out[1]

    def test_windows_are_scaled_if_both_say_so(self) -> None:
        for theirs, window in ((None, 65535), (2, 16384 << 4)):
            end = Endpoint(1, 1, NODE, 0, Traits(window=16384 << 4, scale=4))
            end.accept(Segment(9, 0, SYN, 100, b"", options(scale=theirs, fast=False)), 0.0)
            assert end.window == window
            assert end.out[0].scale == (None if theirs is None else 4)
