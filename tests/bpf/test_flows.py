"""The life of a flow: every row of the table of transitions in flow.h, at every hook.

What a packet is to do is said here by the packets before it, never by what the programs keep: a
flow is brought into its state by real segments, then one more comes, and both of its entries are
in the state that the table says, for as long as that state lasts. All packets go to their receiver,
translated, whatever they do to the state: only an acknowledgement of what the node never sent is
dropped.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pytest

from services.dataplane.flows.record import TOUCH_TICKS, FlowState
from tests.bpf.harness import PEER_MAC, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    NODE,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    RESOLVED,
    SERVICE,
    SNAT,
    TIMEOUTS_S,
    UP,
    VIP,
    Connection,
    Scene,
    address,
    different,
    is_xdp,
    mac,
    now_ticks,
    ticks,
    to_client,
    to_node,
)

REQUEST, REPLY = 0, 1
OPENING, ANSWERED, ESTABLISHED = (
    FlowState.TCP_OPENING,
    FlowState.TCP_ANSWERED,
    FlowState.TCP_ESTABLISHED,
)
CLOSING, TIME_WAIT, RESET = FlowState.TCP_CLOSING, FlowState.TCP_TIME_WAIT, FlowState.TCP_RESET
ASKED, UDP_ANSWERED, UDP_FRESH, UDP_ESTABLISHED = (
    FlowState.UDP_ASKED,
    FlowState.UDP_ANSWERED,
    FlowState.UDP_FRESH,
    FlowState.UDP_ESTABLISHED,
)
RENEWED_SELDOM = (ESTABLISHED, UDP_ESTABLISHED)
FAR = 1 << 20
WINDOW = 8192
"""What scapy offers."""
OTHER_ROUTER = "02:00:00:00:00:77"


# --------------------------------------------------------------------------- segments


@dataclass(frozen=True, slots=True)
class Segment:
    side: int
    flags: str
    seq: int
    ack: int = 0
    payload: bytes = b""

    def __str__(self) -> str:
        who = ("client", "node")[self.side]
        return f"{who} {self.flags or 'nothing'} {self.seq} {self.ack} +{len(self.payload)}"


def client(flags: str, seq: int, ack: int = 0, payload: bytes = b"") -> Segment:
    return Segment(REQUEST, flags, seq, ack, payload)


def node(flags: str, seq: int, ack: int = 0, payload: bytes = b"") -> Segment:
    return Segment(REPLY, flags, seq, ack, payload)


def give(connection: Connection, segment: Segment, hook: str | None = None, **fields: Any) -> str:
    """Send a segment, see that its receiver gets it as it was sent, and say what was counted."""
    scene = connection.scene
    fields = {"seq": segment.seq % 2**32, "ack": segment.ack % 2**32, **fields}
    if segment.side == REQUEST:
        hook = hook or "xdp_public"
        packet = connection.request(segment.flags, segment.payload, **fields)
        wanted = to_node(hook, connection.request_out(segment.flags, segment.payload, **fields))
    else:
        hook = hook or "tc_private"
        packet = connection.reply(segment.flags, segment.payload, **fields)
        wanted = to_client(hook, connection.reply_out(segment.flags, segment.payload, **fields))
    outcome = scene.send(hook, packet)
    if not outcome.reason.startswith("drop_"):
        assert outcome.packet == wanted, different(outcome.packet, wanted)
    return outcome.reason


def give_all(connection: Connection, segments: Sequence[Segment]) -> None:
    for segment in segments:
        give(connection, segment)


def both(state: FlowState) -> dict[int, FlowState]:
    return {REQUEST: state, REPLY: state}


@pytest.fixture
def opened(scene: Scene) -> Connection:
    """After the client's SYN of 100."""
    scene.service("l4")
    connection = Connection(scene)
    connection.syn()
    return connection


@pytest.fixture
def established(opened: Connection) -> Connection:
    """The client has sent up to 101, the node up to 501."""
    give_all(opened, HANDSHAKE)
    return opened


# --------------------------------------------------------------------------- the table

SYN_ACK = node("SA", 500, 101)
HANDSHAKE = (SYN_ACK, client("A", 101, 501))
QUESTION, ANSWER = client("PA", 101, 501, bytes(10)), node("PA", 501, 101, bytes(10))
CLIENT_ENDS, NODE_ENDS = client("FA", 101, 501), node("FA", 501, 101)
STARTS: dict[str, tuple[Segment, ...]] = {
    "opening": (),
    "answered": (SYN_ACK,),
    "established": HANDSHAKE,
    "asked": (*HANDSHAKE, QUESTION),
    "told": (*HANDSHAKE, ANSWER),
    "asked anew": (*HANDSHAKE, client("S", 9000)),
    "client ended": (*HANDSHAKE, CLIENT_ENDS),
    "client ended, heard": (*HANDSHAKE, CLIENT_ENDS, node("A", 501, 102)),
    "node ended": (*HANDSHAKE, NODE_ENDS),
    "node ended, heard": (*HANDSHAKE, NODE_ENDS, client("A", 101, 502)),
    "both ended": (*HANDSHAKE, CLIENT_ENDS, NODE_ENDS),
    "client's end heard": (*HANDSHAKE, CLIENT_ENDS, node("FA", 501, 102)),
    "node's end heard": (*HANDSHAKE, NODE_ENDS, client("FA", 101, 502)),
    "client in doubt": (*HANDSHAKE, QUESTION, client("R", 105)),
    "node in doubt": (*HANDSHAKE, ANSWER, node("R", 505)),
    "both ended, client's end early": (
        *HANDSHAKE,
        client("FA", 102, 501),
        client("PA", 101, 501, b"x"),
        NODE_ENDS,
        node("A", 502, 103),
    ),
    "both ended, node's end early": (
        *HANDSHAKE,
        node("FA", 502, 101),
        node("PA", 501, 101, b"x"),
        CLIENT_ENDS,
        client("A", 102, 503),
    ),
    "time wait": (*HANDSHAKE, CLIENT_ENDS, node("FA", 501, 102), client("A", 102, 502)),
    "reset": (*HANDSHAKE, client("R", 101)),
}
MISMATCH, NEW, JOINS = "drop_handshake_mismatch", "l4_promoted", "l4_opening"
Row = tuple[str, Segment, FlowState, str]

_FROM_CLIENT: list[Row] = [
    ("opening", client("S", 100), OPENING, JOINS),
    ("opening", client("S", 300), OPENING, JOINS),
    ("opening", client("R", 77), OPENING, JOINS),
    ("opening", client("A", 101, 501), OPENING, MISMATCH),
    ("opening", client("A", 101, 0), OPENING, MISMATCH),
    ("opening", client("PA", 101, 501, b"x"), OPENING, MISMATCH),
    ("opening", client("", 101, 501), OPENING, MISMATCH),
    ("answered", client("A", 101, 501), ESTABLISHED, NEW),
    ("answered", client("PA", 101, 501, b"early"), ESTABLISHED, NEW),
    ("answered", client("FA", 101, 501), CLOSING, NEW),
    ("answered", client("A", 101, 500), ANSWERED, MISMATCH),
    ("answered", client("A", 101, 502), ANSWERED, MISMATCH),
    ("answered", client("A", 101, 0), ANSWERED, MISMATCH),
    ("answered", client("A", 101, 501 + (1 << 31)), ANSWERED, MISMATCH),
    ("answered", client("P", 101, 501), ANSWERED, MISMATCH),
    ("answered", client("SA", 101, 501), ANSWERED, MISMATCH),
    ("answered", client("R", 101), RESET, JOINS),
    ("answered", client("RA", 101, 501), RESET, JOINS),
    ("answered", client("R", 100), ANSWERED, JOINS),
    ("answered", client("R", 102), ANSWERED, JOINS),
    ("answered", client("S", 100), ANSWERED, JOINS),
    ("answered", client("S", 300), ANSWERED, JOINS),
    ("answered", client("S", 99), ANSWERED, JOINS),
    ("time wait", client("S", 9000), OPENING, "l4_reopened"),
    ("time wait", client("A", 102, 502), TIME_WAIT, "l4_closed"),
    ("time wait", client("FA", 101, 502), TIME_WAIT, "l4_closed"),
    ("time wait", client("PA", 102, 502, b"x"), TIME_WAIT, "l4_closed"),
    ("time wait", client("R", 102), TIME_WAIT, "l4_closed"),
    ("reset", client("S", 9000), OPENING, "l4_reopened"),
    ("reset", client("A", 101, 501), RESET, "l4_closed"),
    ("reset", client("PA", 101, 501, b"in flight"), RESET, "l4_closed"),
    ("reset", client("FA", 101, 501), RESET, "l4_closed"),
    ("reset", client("R", 101), RESET, "l4_closed"),
]
_FROM_CLIENT_LIVING: list[tuple[str, Segment, FlowState]] = [
    ("established", client("A", 101, 501), ESTABLISHED),
    ("established", client("FA", 101, 501), CLOSING),
    ("established", client("FPA", 101, 501, b"last"), CLOSING),
    ("established", client("FA", 100, 501), ESTABLISHED),
    ("established", client("FA", 102, 501), ESTABLISHED),
    ("established", client("F", 101), ESTABLISHED),
    ("established", client("FA", 101 + FAR, 501), ESTABLISHED),
    ("established", client("FA", 101 - FAR, 501), ESTABLISHED),
    ("established", client("FA", 101, 501 + FAR), ESTABLISHED),
    ("established", client("FA", 101, 501 - FAR), ESTABLISHED),
    ("established", client("R", 101), RESET),
    ("established", client("RA", 101, 501), RESET),
    ("established", client("FRA", 101, 501), RESET),
    ("established", client("R", 100), ESTABLISHED),
    ("established", client("R", 102), ESTABLISHED),
    ("established", client("R", 0xDEAD_BEEF), ESTABLISHED),
    ("asked", client("R", 101), RESET),
    ("asked", client("R", 102), CLOSING),
    ("asked", client("R", 105), CLOSING),
    ("asked", client("R", 111), CLOSING),
    ("asked", client("R", 100), ESTABLISHED),
    ("asked", client("R", 112), ESTABLISHED),
    ("asked", client("FA", 111, 501), CLOSING),
    ("established", client("S", 9000), ESTABLISHED),
    ("established", client("S", 101), ESTABLISHED),
    ("established", client("SA", 101, 501), ESTABLISHED),
    ("established", client("", 101, 501), ESTABLISHED),
    ("established", client("FSRPAU", 1, 1), ESTABLISHED),
    ("asked anew", client("A", 101, 501), ESTABLISHED),
    ("asked anew", client("S", 9000), ESTABLISHED),
    ("client ended", client("FA", 101, 501), CLOSING),
    ("client ended", client("A", 102, 501), CLOSING),
    ("client ended", client("PA", 101, 501, b"more"), ESTABLISHED),
    ("client ended", client("R", 101), RESET),
    ("client ended", client("R", 102), CLOSING),
    ("client ended, heard", client("R", 102), RESET),
    ("client ended, heard", client("R", 101), CLOSING),
    ("client ended", client("S", 9000), CLOSING),
    ("node ended", client("A", 101, 502), CLOSING),
    ("node ended", client("A", 101, 501), CLOSING),
    ("node ended", client("PA", 101, 502, b"more"), CLOSING),
    ("node ended", client("FA", 101, 502), CLOSING),
    ("node ended", client("R", 101), RESET),
    ("both ended", client("A", 102, 502), CLOSING),
    ("both ended, client's end early", client("A", 103, 502), TIME_WAIT),
    ("client's end heard", client("A", 102, 502), TIME_WAIT),
    ("client's end heard", client("FA", 101, 502), TIME_WAIT),
    ("client's end heard", client("A", 102, 501), CLOSING),
    ("client's end heard", client("A", 102, 1502), CLOSING),
    ("node's end heard", client("FA", 101, 502), CLOSING),
    ("client in doubt", client("A", 111, 501), ESTABLISHED),
    ("client in doubt", client("PA", 111, 501, b"alive"), ESTABLISHED),
    ("client in doubt", client("A", 111 + FAR, 501), CLOSING),
    ("client in doubt", client("S", 9000), CLOSING),
    ("node in doubt", client("A", 101, 511), CLOSING),
]
_FROM_NODE: list[tuple[str, Segment, FlowState]] = [
    ("opening", node("SA", 500, 101), ANSWERED),
    ("opening", node("SA", 500, 301), ANSWERED),
    ("opening", node("RA", 0, 101), RESET),
    ("opening", node("RA", 0, 100), OPENING),
    ("opening", node("R", 101, 0), OPENING),
    ("opening", node("A", 9000, 77), OPENING),
    ("opening", node("FA", 501, 101), OPENING),
    ("answered", node("SA", 500, 101), ANSWERED),
    ("answered", node("SA", 600, 102), ANSWERED),
    ("answered", node("A", 501, 101), ANSWERED),
    ("answered", node("PA", 501, 101, b"first"), ANSWERED),
    ("answered", node("R", 501), RESET),
    ("answered", node("RA", 501, 101), RESET),
    ("answered", node("R", 500), ANSWERED),
    ("answered", node("R", 502), ANSWERED),
    ("established", node("A", 501, 101), ESTABLISHED),
    ("established", node("FA", 501, 101), CLOSING),
    ("established", node("FPA", 501, 101, b"last"), CLOSING),
    ("established", node("FA", 500, 101), ESTABLISHED),
    ("established", node("FA", 502, 101), ESTABLISHED),
    ("established", node("F", 501), ESTABLISHED),
    ("established", node("FA", 501 + FAR, 101), ESTABLISHED),
    ("established", node("FA", 501, 101 + FAR), ESTABLISHED),
    ("established", node("R", 501), RESET),
    ("established", node("RA", 501, 101), RESET),
    ("established", node("R", 500), ESTABLISHED),
    ("established", node("R", 502), ESTABLISHED),
    ("established", node("R", 0xDEAD_BEEF), ESTABLISHED),
    ("told", node("R", 501), RESET),
    ("told", node("R", 502), CLOSING),
    ("told", node("R", 505), CLOSING),
    ("told", node("R", 511), CLOSING),
    ("told", node("R", 500), ESTABLISHED),
    ("told", node("R", 512), ESTABLISHED),
    ("established", node("S", 9000), ESTABLISHED),
    ("established", node("SA", 500, 101), ESTABLISHED),
    ("established", node("SA", 7000, 9001), ESTABLISHED),
    ("established", node("", 501, 101), ESTABLISHED),
    ("asked anew", node("A", 501, 101), ESTABLISHED),
    ("asked anew", node("SA", 7000, 9000), ESTABLISHED),
    ("asked anew", node("SA", 7000, 9001), ANSWERED),
    ("node ended", node("FA", 501, 101), CLOSING),
    ("node ended", node("A", 502, 101), CLOSING),
    ("node ended", node("PA", 501, 101, b"more"), ESTABLISHED),
    ("node ended", node("R", 502), CLOSING),
    ("node ended, heard", node("R", 502), RESET),
    ("client ended", node("A", 501, 102), CLOSING),
    ("client ended", node("PA", 501, 102, b"more"), CLOSING),
    ("client ended", node("FA", 501, 102), CLOSING),
    ("client ended", node("R", 501), RESET),
    ("both ended", node("A", 502, 102), CLOSING),
    ("both ended, node's end early", node("A", 503, 102), TIME_WAIT),
    ("node's end heard", node("A", 502, 102), TIME_WAIT),
    ("node's end heard", node("FA", 501, 102), TIME_WAIT),
    ("node's end heard", node("A", 502, 101), CLOSING),
    ("node's end heard", node("A", 502, 1102), CLOSING),
    ("client's end heard", node("FA", 501, 102), CLOSING),
    ("node in doubt", node("A", 511, 101), ESTABLISHED),
    ("node in doubt", node("A", 511 + FAR, 101), CLOSING),
    ("client in doubt", node("A", 501, 111), CLOSING),
    ("time wait", node("FA", 501, 102), TIME_WAIT),
    ("time wait", node("A", 502, 102), TIME_WAIT),
    ("time wait", node("R", 502), TIME_WAIT),
    ("time wait", node("SA", 7000, 9001), TIME_WAIT),
    ("reset", node("PA", 501, 101, b"in flight"), RESET),
    ("reset", node("FA", 501, 101), RESET),
    ("reset", node("R", 501), RESET),
]
ROWS: list[Row] = [
    *_FROM_CLIENT,
    *((*row, "l4_established") for row in _FROM_CLIENT_LIVING),
    *((*row, "l4_reply") for row in _FROM_NODE),
]


@pytest.mark.parametrize("row", ROWS, ids=[f"{row[0]}: {row[1]}" for row in ROWS])
@pytest.mark.parametrize("fast", [True, False], ids=["xdp", "tc"])
def test_a_segment_does_what_the_table_says(
    scene: Scene, opened: Connection, row: Row, fast: bool
) -> None:
    start, segment, becomes, reason = row
    give_all(opened, STARTS[start])
    before = scene.states()
    scene.age("flows", 5)
    held = {flow.deadline for _, flow in scene.flows()}
    hook = (REQUEST_HOOKS, REPLY_HOOKS[::-1])[segment.side][not fast]
    began = now_ticks()
    assert give(opened, segment, hook) == reason
    assert scene.states() == both(becomes)
    check_deadlines(scene, becomes, began, held if before == both(becomes) else set())


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_forged_acknowledgement_keeps_no_genuine_number_from_being_learned(
    scene: Scene, established: Connection, hook: str
) -> None:
    """Somebody has guessed both numbers, and acknowledges what the node has never sent."""
    for ahead in (70_000, 140_000):
        give(established, client("A", 101, 501 + ahead), hook)
    give(established, client("PA", 101, 501, bytes(10)), hook)
    assert scene.states() == both(ESTABLISHED)
    give(established, client("FA", 111, 501), hook)
    assert scene.states() == both(CLOSING)


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_forged_data_keep_no_genuine_segment_from_being_learned(
    scene: Scene, established: Connection, hook: str
) -> None:
    """They end as far ahead as any window reaches, so that what is true seems far behind."""
    give(established, client("PA", 101 + (1 << 16), 501, bytes(50)), hook)
    give(established, client("R", 300, 501), hook)
    assert scene.states() == both(CLOSING), "in doubt"
    give(established, client("PA", 101, 501, bytes(10)), hook)
    assert scene.states() == both(ESTABLISHED)
    give(established, client("FA", 111, 501), hook)
    assert scene.states() == both(CLOSING)


def check_deadlines(
    scene: Scene, state: FlowState, began: int, or_else: Container[int] = ()
) -> None:
    """Both directions have that state's whole time from the packet on, which came after `began`;
    or else what they had before.
    """
    whole = ticks(TIMEOUTS_S[state]) + TOUCH_TICKS * (state in RENEWED_SELDOM)
    whole_from_now = range(began + whole, now_ticks() + whole + 1)
    for _, flow in scene.flows():
        assert flow.deadline in whole_from_now or flow.deadline in or_else


class TestUdp:
    """A question, its answer, and whatever the client says after that."""

    Q, A = REQUEST, REPLY

    @pytest.mark.parametrize("fast", [True, False], ids=["xdp", "tc"])
    @pytest.mark.parametrize(
        ("before", "then_s", "last", "becomes", "reason"),
        [
            ((), 5, Q, ASKED, "l4_new_flow"),
            ((Q,), 5, Q, ASKED, "l4_opening"),
            ((Q,), 5, A, UDP_ANSWERED, "l4_reply"),
            ((Q, A), 5, A, UDP_ANSWERED, "l4_reply"),
            ((Q, Q, A), 5, A, UDP_ANSWERED, "l4_reply"),
            ((Q, A), 0.3, Q, UDP_FRESH, "l4_promoted"),
            ((Q, A), 5, Q, UDP_ESTABLISHED, "l4_promoted"),
            ((Q, A, Q), 0.3, Q, UDP_FRESH, "l4_established"),
            ((Q, A, Q), 0.3, A, UDP_FRESH, "l4_reply"),
            ((Q, A, Q), 5, A, UDP_FRESH, "l4_reply"),
            ((Q, A, Q), 100, Q, UDP_ESTABLISHED, "l4_established"),
        ],
    )
    def test_a_datagram_does_what_the_table_says(
        self,
        scene: Scene,
        fast: bool,
        before: tuple[int, ...],
        then_s: float,
        last: int,
        becomes: FlowState,
        reason: str,
    ) -> None:
        scene.service("l4", protocol="udp")
        for side in before:
            self.give(scene, side)
        scene.age("flows", then_s)
        hook = (REQUEST_HOOKS, REPLY_HOOKS[::-1])[last][not fast]
        began = now_ticks()
        assert self.give(scene, last, hook) == reason
        assert scene.states() == both(becomes)
        check_deadlines(scene, becomes, began)

    def test_whoever_goes_on_for_a_second_is_a_clients(self, scene: Scene) -> None:
        scene.service("l4", protocol="udp")
        self.give(scene, REQUEST)
        self.give(scene, REPLY)
        self.give(scene, REQUEST)
        scene.age("flows", 5)
        assert self.give(scene, REQUEST) == "l4_established"
        for side in (REPLY, REQUEST):
            began = now_ticks()
            self.give(scene, side)
            assert scene.states() == both(UDP_ESTABLISHED)
            check_deadlines(scene, UDP_ESTABLISHED, began - ticks(1))

    def give(self, scene: Scene, side: int, hook: str | None = None) -> str:
        if side == REQUEST:
            outcome = scene.send(hook or "xdp_public", udp(CLIENT, SERVICE, b"q"))
            self.source = (SNAT, outcome.ports[0])
            return outcome.reason
        return scene.send(hook or "tc_private", udp(NODE, self.source, b"a")).reason


# --------------------------------------------------------------------------- entries


class TestEntries:
    def test_both_directions_mirror_each_other(self, scene: Scene, opened: Connection) -> None:
        entries = {key.direction: (key, flow) for key, flow in scene.flows("half")}
        (key, flow), (reply_key, reply) = entries[REQUEST], entries[REPLY]
        assert (key.saddr, key.daddr) == (address(CLIENT_ADDRESS), address(VIP))
        assert (flow.saddr, flow.daddr) == (address(SNAT), address(NODE[0]))
        assert (reply_key.saddr, reply_key.daddr) == (flow.daddr, flow.saddr)
        assert (reply_key.sport, reply_key.dport) == (flow.dport, flow.sport)
        assert (reply.saddr, reply.daddr) == (key.daddr, key.saddr)
        assert (reply.sport, reply.dport) == (key.dport, key.sport)
        assert bytes(reply.last_hop) == bytes(flow.last_hop) == mac(PEER_MAC)
        assert (flow.seat, flow.state) == (reply.seat, reply.state)
        assert scene.flows("est") == []

    def test_each_is_found_by_the_others_index(self, scene: Scene, opened: Connection) -> None:
        table = scene.programs.table("flows")
        ways = len(table[0].flow)
        for key, flow in scene.flows():
            other = table[flow.other // ways].flow[flow.other % ways]
            assert other.key.direction == 1 - key.direction
            assert (other.key.saddr, other.key.sport) == (flow.daddr, flow.dport)

    def test_numbers_are_kept_as_each_side_said_them(
        self, scene: Scene, established: Connection
    ) -> None:
        give_all(established, [QUESTION, node("PA", 501, 111, bytes(7)), client("A", 111, 508)])
        request, reply = scene.entry(REQUEST), scene.entry(REPLY)
        assert (request.end, request.acked) == (111, 508)
        assert (reply.end, reply.acked) == (508, 111)

    def test_numbers_wrap(self, scene: Scene, opened: Connection) -> None:
        give_all(opened, [node("SA", 2**32 - 1, 101), client("A", 101, 0)])
        give_all(opened, [node("PA", 0, 101, b"data"), client("A", 101, 4), node("FA", 4, 101)])
        assert scene.states() == both(CLOSING)
        give_all(opened, [client("FA", 101, 5), node("A", 5, 102)])
        assert scene.states() == both(TIME_WAIT)

    def test_only_what_is_half_open_counts_as_that(self, scene: Scene, opened: Connection) -> None:
        opened.syn_ack()
        assert len(scene.flows("half")) == 2
        opened.ack()
        assert (len(scene.flows("half")), len(scene.flows("est"))) == (0, 2)
        assert scene.counted_at_seat()["flows"] == 1


class TestRenewal:
    """An established flow's deadline is renewed once in four seconds: by each side for itself in
    TCP, where both are heard for as long as they live; by either for both with datagrams.
    """

    @pytest.mark.parametrize("side", [REQUEST, REPLY])
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_after_that_it_has_its_whole_time(self, scene: Scene, side: int, protocol: str) -> None:
        packet = self.establish(scene, protocol)
        scene.age("flows", (TOUCH_TICKS + 1) * 0.067108864)
        held = {key.direction: flow.deadline for key, flow in scene.flows()}
        began = now_ticks()
        packet(side)
        state = ESTABLISHED if protocol == "tcp" else UDP_ESTABLISHED
        check_deadlines(scene, state, began, [held[1 - side]] if protocol == "tcp" else [])

    @pytest.mark.parametrize("side", [REQUEST, REPLY])
    def test_the_first_word_after_half_a_minute_counts_for_both(
        self, scene: Scene, side: int
    ) -> None:
        packet = self.establish(scene, "tcp")
        scene.age("flows", 40)
        began = now_ticks()
        packet(side)
        check_deadlines(scene, ESTABLISHED, began)

    @pytest.mark.parametrize("side", [REQUEST, REPLY])
    @pytest.mark.parametrize("protocol", ["tcp", "udp"])
    def test_not_before(self, scene: Scene, side: int, protocol: str) -> None:
        packet = self.establish(scene, protocol)
        scene.age("flows", -3600)
        before = [flow.deadline for _, flow in scene.flows()]
        packet(side)
        assert [flow.deadline for _, flow in scene.flows()] == before

    @pytest.mark.parametrize(
        ("protocol", "sides"), [("tcp", [REQUEST, REPLY]), ("udp", [REQUEST]), ("udp", [REPLY])]
    )
    def test_a_busy_flow_lives_for_ever(
        self, scene: Scene, protocol: str, sides: list[int]
    ) -> None:
        packet = self.establish(scene, protocol)
        state = ESTABLISHED if protocol == "tcp" else UDP_ESTABLISHED
        for _ in range(5):
            scene.age("flows", TIMEOUTS_S[state] - 10)
            for side in sides:
                packet(side)
        assert scene.states() == both(state)

    def establish(self, scene: Scene, protocol: str) -> Any:
        scene.service("l4", protocol=protocol)
        if protocol == "tcp":
            connection = Connection(scene).establish()
            segments = (client("A", 101, 501), node("A", 501, 101))
            return lambda side: give(connection, segments[side])
        question = udp(CLIENT, SERVICE, b"q")
        source = (SNAT, scene.send("xdp_public", question).ports[0])
        answer = udp(NODE, source, b"a")
        scene.send("tc_private", answer)
        scene.age("flows", 2)
        scene.expect("xdp_public", question, "l4_promoted")
        datagrams = (("xdp_public", question), ("tc_private", answer))
        return lambda side: scene.send(*datagrams[side])


_LAST = {
    OPENING: "opening",
    ANSWERED: "answered",
    ESTABLISHED: "established",
    CLOSING: "client ended",
    TIME_WAIT: "time wait",
    RESET: "reset",
}


@pytest.mark.parametrize("state", _LAST)
class TestExpiry:
    """RFC 5382: established flows for two hours and four minutes, others for four minutes."""

    def until_the_end(self, scene: Scene, opened: Connection, state: FlowState) -> None:
        give_all(opened, STARTS[_LAST[state]])
        scene.age("flows", TIMEOUTS_S[state] - 10 if state != RESET else 0)
        assert scene.states() == both(state)
        scene.age("flows", 20)
        assert scene.states() == {}

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_then_the_client_is_told(
        self, scene: Scene, opened: Connection, state: FlowState, hook: str
    ) -> None:
        self.until_the_end(scene, opened, state)
        scene.expect(hook, opened.request("PA", b"x"), "no_flow_reset")

    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_then_the_node_speaks_to_nobody(
        self, scene: Scene, opened: Connection, state: FlowState, hook: str
    ) -> None:
        scene.snat_slice()
        self.until_the_end(scene, opened, state)
        scene.expect(hook, opened.reply("PA", b"x"), "drop_no_flow")

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_then_a_syn_begins_again_where_it_was(
        self, scene: Scene, opened: Connection, state: FlowState, hook: str
    ) -> None:
        self.until_the_end(scene, opened, state)
        assert give(opened, client("S", 9000), hook) == "l4_reopened"
        assert scene.states() == both(OPENING)


# --------------------------------------------------------------------------- the handshake


class TestHandshake:
    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    def test_a_repeated_syn_keeps_node_and_port(
        self, scene: Scene, opened: Connection, hook: str
    ) -> None:
        for _ in range(3):
            assert give(opened, client("S", 100), hook) == "l4_opening"
        assert len(scene.flows()) == 2

    def test_a_challenge_leads_to_a_connection(self, scene: Scene, opened: Connection) -> None:
        """The node is in TIME_WAIT there: the client's RST ends that, its next SYN is welcome."""
        give_all(opened, [node("A", 9000, 77), client("R", 77)])
        assert scene.states() == both(OPENING)
        assert give(opened, client("S", 100)) == "l4_opening"
        give_all(opened, [SYN_ACK])
        assert give(opened, client("A", 101, 501)) == "l4_promoted"

    def test_another_attempt_from_the_same_port(self, scene: Scene, opened: Connection) -> None:
        give_all(opened, [SYN_ACK, client("S", 300), node("SA", 7000, 301)])
        assert scene.states() == both(ANSWERED)
        assert give(opened, client("A", 101, 501)) == MISMATCH
        assert give(opened, client("A", 301, 7001)) == "l4_promoted"

    def test_an_old_duplicate_of_a_syn_does_not_lock_the_real_one_out(
        self, scene: Scene, opened: Connection
    ) -> None:
        """RFC 9293, 3.5: the node answers it by an acknowledgement, and goes on."""
        give_all(opened, [client("S", 77), SYN_ACK])
        assert give(opened, client("A", 101, 501)) == "l4_promoted"
        assert scene.states() == both(ESTABLISHED)

    def test_the_answer_to_an_older_syn_is_not_noted_in_a_newer_flow(
        self, scene: Scene, opened: Connection
    ) -> None:
        scene.change(REQUEST, sport=99)
        scene.send("tc_private", opened.reply("SA", seq=500, ack=101))
        assert scene.entry(REQUEST).state == OPENING

    def test_a_flow_established_late_has_its_whole_time(
        self, scene: Scene, opened: Connection
    ) -> None:
        give_all(opened, [SYN_ACK])
        scene.age("flows", 200)
        began = now_ticks()
        give_all(opened, [client("A", 101, 501)])
        check_deadlines(scene, ESTABLISHED, began)

    def test_no_blind_pair_of_packets_establishes_anything(self, scene: Scene) -> None:
        scene.service("l4")
        for port in range(2000, 2100):
            source = (CLIENT_ADDRESS, port)
            scene.expect("xdp_public", tcp(source, SERVICE), "l4_new_flow")
            scene.expect("xdp_public", tcp(source, SERVICE, "A", ack=port), MISMATCH)
        assert scene.flows("est") == []
        assert len(scene.flows("half")) == 200


class TestFastOpen:
    """RFC 7413: data in the SYN, and the node's data before the client's first acknowledgement."""

    @pytest.fixture
    def asked(self, scene: Scene) -> Connection:
        scene.service("l4")
        connection = Connection(scene)
        packet = tcp(CLIENT, SERVICE, "S", b"GET /", seq=100)
        outcome = scene.expect("xdp_public", packet, "l4_new_flow")
        connection.source = (SNAT, outcome.ports[0])
        return connection

    @pytest.mark.parametrize("taken", range(6))
    def test_the_node_takes_as_much_of_it_as_it_likes(
        self, scene: Scene, asked: Connection, taken: int
    ) -> None:
        give_all(asked, [node("SA", 500, 101 + taken)])
        assert scene.states() == both(ANSWERED)
        assert give(asked, client("A", 106, 501)) == "l4_promoted"

    @pytest.mark.parametrize("ack", [501, 1001, 1501])
    def test_the_first_acknowledgement_may_be_lost(
        self, scene: Scene, asked: Connection, ack: int
    ) -> None:
        give_all(asked, [node("SA", 500, 106), node("PA", 501, 106, bytes(1000))])
        assert give(asked, client("A", 106, ack)) == "l4_promoted"
        assert give(asked, client("PA", 106, 1501, b"GET /2")) == "l4_established"
        assert scene.states() == both(ESTABLISHED)

    def test_a_repeated_answer_takes_nothing_back(self, scene: Scene, asked: Connection) -> None:
        answer = node("SA", 500, 106)
        give_all(asked, [answer, node("PA", 501, 106, bytes(1000)), answer])
        assert give(asked, client("A", 106, 1501)) == "l4_promoted"

    @pytest.mark.parametrize("ack", [500, 1502])
    def test_what_acknowledges_anything_else_is_blind(
        self, scene: Scene, asked: Connection, ack: int
    ) -> None:
        give_all(asked, [node("SA", 500, 106), node("PA", 501, 106, bytes(1000))])
        assert give(asked, client("A", 106, ack)) == MISMATCH

    def test_the_nodes_end_too_may_come_before_it(self, scene: Scene, asked: Connection) -> None:
        give_all(asked, [node("SA", 500, 106), node("FPA", 501, 106, bytes(100))])
        assert give(asked, client("A", 106, 602)) == "l4_promoted"
        give_all(asked, [client("FA", 106, 602), node("A", 602, 107)])
        assert scene.states() == both(TIME_WAIT)

    def test_an_end_without_data_too(self, scene: Scene, asked: Connection) -> None:
        give_all(asked, [node("SA", 500, 106), node("FA", 501, 106)])
        assert give(asked, client("FA", 106, 502)) == "l4_promoted"
        give_all(asked, [node("A", 502, 107)])
        assert scene.states() == both(TIME_WAIT)


class TestWindows:
    """Numbers are learned within a window of what is known: as large as RFC 7323 makes it."""

    def establish(self, scene: Scene, ours: int | None, theirs: int | None) -> Connection:
        scene.service("l4")
        connection = Connection(scene)
        scales = [[("WScale", scale)] if scale is not None else [] for scale in (ours, theirs)]
        connection.syn(options=scales[0])
        packet = connection.reply("SA", seq=500, ack=101, options=scales[1])
        scene.expect("tc_private", packet, "l4_reply")
        connection.ack()
        return connection

    @pytest.mark.parametrize(
        ("ours", "theirs", "reach", "room"),
        [
            (None, None, 1 << 16, WINDOW),
            (7, None, 1 << 16, WINDOW),
            (None, 7, 1 << 16, WINDOW),
            (7, 7, 1 << 23, WINDOW << 7),
            (2, 7, 1 << 23, WINDOW << 2),
            (7, 2, 1 << 23, WINDOW << 7),
            (0, 14, 1 << 30, WINDOW),
            (0, 255, 1 << 30, WINDOW),
        ],
    )
    def test_the_scales_count_if_both_sides_scale(
        self, scene: Scene, ours: int | None, theirs: int | None, reach: int, room: int
    ) -> None:
        """A side sends no more than the larger window, and acknowledges what it has room for, and
        a segment that begins there.
        """
        connection = self.establish(scene, ours, theirs)
        farthest = 501 + room + 0xFFFF
        give(connection, client("A", 101 + reach + 1, 501))
        give(connection, client("A", 101, farthest + 1))
        assert (scene.entry(REQUEST).end, scene.entry(REQUEST).acked) == (101, 501)
        give(connection, client("A", 101 + reach, farthest))
        request = scene.entry(REQUEST)
        assert (request.end, request.acked) == (101 + reach, farthest)

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize(
        "options",
        [
            [("WScale", 5)],
            [("NOP", None), ("NOP", None), ("WScale", 5), ("NOP", None)],
            [("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 2)), ("NOP", None), ("WScale", 5)],
        ],
    )
    def test_wherever_the_option_stands(self, scene: Scene, hook: str, options: list[Any]) -> None:
        scene.service("l4")
        Connection(scene).syn(hook, options=options)
        assert scene.entry(REQUEST).scale == 5

    @pytest.mark.parametrize("hook", REQUEST_HOOKS)
    @pytest.mark.parametrize("options", [[], [("EOL", None), ("WScale", 5)], [(77, b"")] * 9])
    def test_or_does_not(self, scene: Scene, hook: str, options: list[Any]) -> None:
        scene.service("l4")
        Connection(scene).syn(hook, options=options)
        assert scene.entry(REQUEST).scale == 255

    def test_an_end_beyond_the_receivers_window_is_none(
        self, scene: Scene, established: Connection
    ) -> None:
        scene.change(REPLY, edge=105)
        give(established, client("FPA", 101, 501, b"12345"))
        assert scene.states() == both(ESTABLISHED)
        give(established, client("FPA", 101, 501, b"1234"))
        assert scene.states() == both(CLOSING)


# --------------------------------------------------------------------------- ends, true and forged


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestForgeries:
    """Who sees nothing of a flow cannot harm it, knowing the client's port alone (RFC 5961)."""

    def stranger_finds_no_port(self, scene: Scene, connection: Connection) -> None:
        port = connection.source[1]
        scene.service("l4", snat_first_port=port, snat_ports=1)
        scene.expect("xdp_public", tcp((CLIENT_ADDRESS, 2), SERVICE), "drop_no_port")

    @pytest.mark.parametrize("forged", [client("R", 0xDEAD_BEEF), client("FA", 0xDEAD_BEEF, 7)])
    def test_a_reset_or_an_end_and_then_a_syn(
        self, scene: Scene, established: Connection, hook: str, forged: Segment
    ) -> None:
        assert give(established, forged, hook) == "l4_established"
        assert give(established, client("S", 1), hook) == "l4_established"
        assert give(established, client("PA", 101, 501, b"y")) == "l4_established"
        assert give(established, node("PA", 501, 102, b"z")) == "l4_reply"
        assert scene.states() == both(ESTABLISHED)
        self.stranger_finds_no_port(scene, established)

    @pytest.mark.parametrize("forged", [client("R", 0xDEAD_BEEF), client("FA", 0xDEAD_BEEF, 7)])
    @pytest.mark.parametrize("idle_s", [11, 241, 7400])
    def test_one_and_then_silence(
        self, scene: Scene, established: Connection, hook: str, forged: Segment, idle_s: int
    ) -> None:
        give(established, forged, hook)
        scene.age("flows", idle_s)
        assert give(established, client("PA", 101, 501, b"y"), hook) == "l4_established"

    @pytest.mark.parametrize("seq", [102, 106, 111])
    def test_a_reset_that_may_be_one_shortens_the_time_until_the_next_word(
        self, scene: Scene, established: Connection, hook: str, seq: int
    ) -> None:
        give_all(established, [QUESTION])
        began = now_ticks()
        give(established, client("R", seq), hook)
        check_deadlines(scene, CLOSING, began)
        self.stranger_finds_no_port(scene, established)
        give(established, client("A", 111, 501), hook)
        assert scene.states() == both(ESTABLISHED)
        scene.age("flows", 7400)
        assert give(established, client("PA", 111, 501, b"y"), hook) == "l4_established"

    def test_an_acknowledgement_of_what_was_never_sent_is_taken_back(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        give(established, client("A", 101, 5501), hook)
        give(established, node("R", 501))
        assert scene.states() == both(RESET)

    def test_or_when_the_flow_goes_on(
        self, scene: Scene, established: Connection, hook: str
    ) -> None:
        give(established, client("A", 101, 5501), hook)
        give_all(established, [client("FA", 101, 501), node("FA", 501, 102)])
        assert scene.states() == both(CLOSING), "the node's end is not acknowledged"
        give(established, client("A", 102, 502), hook)
        assert scene.states() == both(TIME_WAIT)


class TestEnds:
    """A flow is over once both ends are acknowledged, and not before."""

    ENDS = (CLIENT_ENDS, node("FPA", 501, 102, b"last"))

    def test_the_nodes_last_data_may_be_sent_again(
        self, scene: Scene, established: Connection
    ) -> None:
        """It was lost behind this LB: nobody else gets it, and the client does."""
        give_all(established, self.ENDS)
        assert scene.states() == both(CLOSING)
        scene.age("flows", 200)
        scene.service("l4", snat_first_port=established.source[1], snat_ports=1)
        scene.expect("xdp_public", tcp(("198.51.100.7", 2222), SERVICE), "drop_no_port")
        assert give(established, node("FPA", 501, 102, b"last")) == "l4_reply"
        give(established, client("A", 102, 506))
        assert scene.states() == both(TIME_WAIT)

    @pytest.mark.parametrize("late", [client("A", 102, 506), node("FPA", 501, 102, b"last")])
    def test_afterwards_late_packets_still_arrive(
        self, scene: Scene, established: Connection, late: Segment
    ) -> None:
        give_all(established, [*self.ENDS, client("A", 102, 506)])
        scene.age("flows", 50)
        assert give(established, late) in ("l4_closed", "l4_reply")
        assert scene.states() == both(TIME_WAIT)

    @pytest.mark.parametrize("again", [client("FA", 101, 506), node("FPA", 501, 102, b"last")])
    def test_an_end_sent_again_begins_the_wait_again(
        self, scene: Scene, established: Connection, again: Segment
    ) -> None:
        give_all(established, [*self.ENDS, client("A", 102, 506)])
        scene.age("flows", 50)
        began = now_ticks()
        give(established, again)
        check_deadlines(scene, TIME_WAIT, began)

    def test_an_end_that_overtook_data_is_known_by_its_acknowledgement(
        self, scene: Scene, established: Connection
    ) -> None:
        give_all(established, [node("FA", 511, 101)])
        assert scene.states() == both(ESTABLISHED)
        give_all(established, [ANSWER, client("A", 101, 512)])
        give_all(established, [client("FA", 101, 512)])
        assert scene.states() == both(CLOSING)
        give_all(established, [node("A", 512, 102)])
        assert scene.states() == both(TIME_WAIT)

    def test_a_reset_and_what_was_under_way(self, scene: Scene, established: Connection) -> None:
        """The late segment revives nothing, and that tuple's next connection is a whole one."""
        give_all(established, [node("R", 501)])
        assert give(established, client("PA", 101, 501, b"in flight")) == "l4_closed"
        assert scene.states() == both(RESET)
        assert give(established, client("S", 9000)) == "l4_reopened"
        give_all(established, [node("SA", 7000, 9001), client("A", 9001, 7001)])
        assert scene.states() == both(ESTABLISHED)
        scene.age("flows", 241)
        assert give(established, client("PA", 9001, 7001, b"x")) == "l4_established"

    @pytest.mark.parametrize("start", ["established", "client ended", "client in doubt"])
    @pytest.mark.parametrize("hook", REPLY_HOOKS)
    def test_a_node_that_has_forgotten_a_flow_takes_the_clients_next(
        self, scene: Scene, opened: Connection, start: str, hook: str
    ) -> None:
        give_all(opened, [*STARTS[start], client("S", 9000)])
        give(opened, node("SA", 7000, 9001), hook)
        assert scene.states() == both(ANSWERED)
        assert give(opened, client("A", 9001, 7001)) == "l4_promoted"
        give_all(opened, [client("PA", 9001, 7001, b"x"), node("FA", 7001, 9002)])
        give_all(opened, [client("FA", 9002, 7002), node("A", 7002, 9003)])
        assert scene.states() == both(TIME_WAIT)

    def test_a_resets_age_is_that_of_its_first(self, scene: Scene, opened: Connection) -> None:
        give_all(opened, STARTS["reset"])
        scene.age("flows", 8)
        give_all(opened, [client("R", 101), client("A", 101, 501), node("R", 501)])
        scene.age("flows", 3)
        assert scene.states() == {}


# --------------------------------------------------------------------------- the way back


def from_router(frame: bytes, router: str) -> bytes:
    return frame[:6] + mac(router) + frame[12:]


@pytest.mark.parametrize("reply_hook", REPLY_HOOKS)
@pytest.mark.parametrize("hook", REQUEST_HOOKS)
class TestLastHop:
    """Replies go to whom the client's packets come from, from the first that comes otherwise."""

    @pytest.mark.parametrize("start", ["established", "client ended", "node ended"])
    def test_learned_at_once(
        self, scene: Scene, opened: Connection, hook: str, reply_hook: str, start: str
    ) -> None:
        give_all(opened, STARTS[start])
        packet = from_router(opened.request("A", seq=101, ack=501), OTHER_ROUTER)
        scene.expect(hook, packet, "l4_established")
        assert scene.send(reply_hook, opened.reply("A")).scapy.dst == OTHER_ROUTER

    @pytest.mark.parametrize("start", ["opening", "answered", "time wait", "reset"])
    def test_from_a_syn_too(
        self, scene: Scene, opened: Connection, hook: str, reply_hook: str, start: str
    ) -> None:
        give_all(opened, STARTS[start])
        scene.send(hook, from_router(opened.request("S", seq=100, ack=0), OTHER_ROUTER))
        assert scene.send(reply_hook, opened.reply("SA", seq=500)).scapy.dst == OTHER_ROUTER

    def test_from_the_packet_that_establishes_the_flow(
        self, scene: Scene, opened: Connection, hook: str, reply_hook: str
    ) -> None:
        give_all(opened, [SYN_ACK])
        packet = from_router(opened.request("A", seq=101, ack=501), OTHER_ROUTER)
        scene.expect(hook, packet, "l4_promoted")
        assert scene.send(reply_hook, opened.reply("A")).scapy.dst == OTHER_ROUTER

    @pytest.mark.parametrize("start", ["established", "client ended", "node ended"])
    @pytest.mark.parametrize(
        ("flags", "seq", "ack"),
        [
            ("A", 101 + (1 << 25), 501),
            ("A", 101, 501 + (1 << 25)),
            ("PA", 101 - (1 << 25), 501),
            ("FA", 101 + (1 << 25), 501),
            ("R", 101 + (1 << 25), 0),
            ("R", 90, 0),
        ],
    )
    def test_not_from_what_its_receiver_would_ignore(
        self, scene: Scene, opened: Connection, hook: str, reply_hook: str, start: str,
        flags: str, seq: int, ack: int,
    ) -> None:  # fmt: skip
        """And a RST does not prolong the flow's life."""
        give_all(opened, STARTS[start])
        scene.age("flows", 60)
        before = [flow.deadline for _, flow in scene.flows()]
        forged = opened.request(flags, seq=seq % 2**32, ack=ack)
        scene.expect(hook, from_router(forged, OTHER_ROUTER), "l4_established")
        if flags == "R":
            assert [flow.deadline for _, flow in scene.flows()] == before
        assert scene.send(reply_hook, opened.reply("A")).scapy.dst == PEER_MAC

    @pytest.mark.parametrize("seq", [101, 105])
    def test_nor_from_a_reset(
        self, scene: Scene, opened: Connection, hook: str, reply_hook: str, seq: int
    ) -> None:
        give_all(opened, STARTS["established"])
        scene.send(hook, opened.request("PA", bytes(10), seq=101, ack=501))
        scene.send(hook, from_router(opened.request("R", seq=seq, ack=0), OTHER_ROUTER))
        assert scene.send(reply_hook, opened.reply("A")).scapy.dst == PEER_MAC

    @pytest.mark.parametrize("questions", [1, 2, 3])
    def test_from_a_datagram(
        self, scene: Scene, hook: str, reply_hook: str, questions: int
    ) -> None:
        scene.service("l4", protocol="udp")
        question = udp(CLIENT, SERVICE, b"q")
        answer = b""
        for _ in range(questions):
            source = (SNAT, scene.send(hook, question).ports[0])
            answer = udp(NODE, source, b"a")
            if questions > 1:
                scene.send(reply_hook, answer)
        scene.send(hook, from_router(question, OTHER_ROUTER))
        assert scene.send(reply_hook, answer).scapy.dst == OTHER_ROUTER

    def test_one_behind_a_tag_is_known_in_tc(
        self, scene: Scene, established: Connection, hook: str, reply_hook: str
    ) -> None:
        """The entry has no room for a tag, so it keeps nothing: TC has a table for such."""
        tagged = tcp(CLIENT, SERVICE, "A", seq=101, ack=501, vlans=(5,))
        packet = from_router(tagged, OTHER_ROUTER)
        scene.expect(hook, packet, "slow_vlan" if is_xdp(hook) else "l4_established")
        if is_xdp(hook):
            assert scene.send(reply_hook, established.reply("A")).scapy.dst == PEER_MAC
        elif is_xdp(reply_hook):
            scene.expect(reply_hook, established.reply("A"), "slow_next_hop")
        else:
            assert scene.send(reply_hook, established.reply("A")).scapy.dst == OTHER_ROUTER

    def test_a_flow_that_began_behind_one_has_none(
        self, scene: Scene, hook: str, reply_hook: str
    ) -> None:
        scene.service("l4")
        tagged = tcp(CLIENT, SERVICE, "S", seq=100, vlans=(5,))
        scene.expect("tc_public", tagged, "l4_new_flow")
        assert bytes(scene.entry(REPLY).last_hop) == bytes(6)


# --------------------------------------------------------------------------- whose a flow is


@pytest.mark.parametrize("hook", REQUEST_HOOKS)
def test_a_draining_node_keeps_what_it_has(scene: Scene, opened: Connection, hook: str) -> None:
    give_all(opened, [SYN_ACK])
    scene.seat(flags=RESOLVED)
    scene.ring(0, [0])
    assert give(opened, client("A", 101, 501), hook) == "l4_promoted"
    assert give(opened, client("PA", 101, 501, b"x"), hook) == "l4_established"
    assert give(opened, client("S", 9000), hook) == "l4_established"
    scene.seat(flags=RESOLVED | UP)
    assert scene.states() == both(ESTABLISHED)


def test_two_clients_flows_do_not_touch_each_other(scene: Scene) -> None:
    scene.service("l4")
    one = Connection(scene).establish()
    other = Connection(scene, client=(CLIENT_ADDRESS, 40001)).establish()
    give(one, client("R", 101))
    assert give(other, replace(QUESTION)) == "l4_established"
    by_port = {key.sport: flow.state for key, flow in scene.flows() if key.direction == REQUEST}
    assert sorted(by_port.values()) == [ESTABLISHED, RESET]
