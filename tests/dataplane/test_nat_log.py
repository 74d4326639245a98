"""What the NAT log tells of flows, and how much at most."""

from __future__ import annotations

import numpy as np
import pytest

from bpf.clock import TICK_MS
from bus.events import FlowsEvent, NatFlow
from bus.topics import Topic
from bus.words import Protocol
from services.dataplane import nat_log
from services.dataplane.flows.listing import Seated
from services.dataplane.flows.record import TCP, UDP
from services.dataplane.flows.records import WIRE, Wire
from services.dataplane.nat_log import MOST_AT_ONCE, MOST_WAITING, PAUSE_MS, NatLog
from services.dataplane.words import address_word, port_word

IDENTITY = 0xFEED_F00D_0000_0001
NOON_MS = 1_800_000_000_000


class Heard:
    """A NAT log, and all that it has told."""

    def __init__(self) -> None:
        self.told: list[tuple[Topic, FlowsEvent]] = []
        self.log = NatLog(lambda topic, event: self.told.append((topic, event)))
        self.log.name({IDENTITY: Seated("node-0@10.81.0.20", "web")})

    def flows(self, topic: Topic) -> list[NatFlow]:
        return [flow for told, event in self.told if told is topic for flow in event.flows]

    def left_out(self, topic: Topic) -> int:
        return sum(event.left_out for told, event in self.told if told is topic)

    def run(self, now_ms: int) -> int:
        """Until nothing waits; when that was."""
        while (due_ms := self.log.next_ms(now_ms)) is not None:
            now_ms = max(now_ms, due_ms)
            self.log.turn(now_ms)
        return now_ms


@pytest.fixture
def heard() -> Heard:
    return Heard()


def wire(count: int = 1, protocol: int = TCP, age_ms: float = 0.0) -> Wire:
    records = np.zeros(count, WIRE)
    for side, field, address, port in (
        ("client", "client_address", "198.51.100.7", 40_000),
        ("vip", "vip", "10.80.0.100", 443),
        ("snat", "snat_address", "10.81.0.10", 1_025),
        ("node", "node_address", "10.81.0.20", 8_080),
    ):
        records[field] = address_word(address)
        records[f"{side}_port"] = port_word(port)
    records["client_port"] = [port_word(40_000 + at % 20_000) for at in range(count)]
    records["node"], records["protocol"] = IDENTITY, protocol
    records["age_ticks"] = round(age_ms / TICK_MS)
    return records


def test_a_flow_is_told_as_both_sides_see_it(heard: Heard) -> None:
    heard.log.opened(wire(), NOON_MS)
    assert heard.log.next_ms(0) == 0
    heard.log.turn(0)
    flow = NatFlow(
        Protocol.TCP,
        client="198.51.100.7:40000",
        vip="10.80.0.100:443",
        snat="10.81.0.10:1025",
        node="10.81.0.20:8080",
        service="web",
        node_id="node-0@10.81.0.20",
        began_ms=NOON_MS,
    )
    assert heard.told == [(Topic.FLOW_OPENED, FlowsEvent((flow,), 0))]
    assert heard.log.next_ms(0) is None


def test_an_end_says_when_the_flow_began(heard: Heard) -> None:
    heard.log.closed(wire(protocol=UDP, age_ms=60_000), NOON_MS)
    heard.log.turn(0)
    (flow,) = heard.flows(Topic.FLOW_CLOSED)
    assert flow.protocol is Protocol.UDP
    assert flow.began_ms == pytest.approx(NOON_MS - 60_000, abs=TICK_MS)


def test_a_node_that_is_not_known_any_more_costs_no_flow(heard: Heard) -> None:
    heard.log.name({})
    heard.log.opened(wire(), NOON_MS)
    heard.log.turn(0)
    assert [(flow.service, flow.node_id) for flow in heard.flows(Topic.FLOW_OPENED)] == [("", "")]


def test_nothing_is_told_of_nothing(heard: Heard) -> None:
    heard.log.opened(wire(0), NOON_MS)
    heard.log.turn(0)
    assert heard.log.next_ms(0) is None
    assert heard.told == []


def test_a_burst_is_told_in_parts_with_pauses_and_in_order(heard: Heard) -> None:
    heard.log.opened(wire(MOST_AT_ONCE + 1), NOON_MS)
    heard.log.opened(wire(2), NOON_MS)
    heard.log.turn(1_000)
    assert heard.log.next_ms(1_001) == 1_000 + PAUSE_MS
    heard.log.turn(1_000 + PAUSE_MS - 1)
    assert [len(event.flows) for _, event in heard.told] == [MOST_AT_ONCE]
    heard.log.turn(1_000 + PAUSE_MS)
    assert [len(event.flows) for _, event in heard.told] == [MOST_AT_ONCE, 3]
    ports = [int(flow.client.split(":")[1]) - 40_000 for flow in heard.flows(Topic.FLOW_OPENED)]
    assert ports == [*range(MOST_AT_ONCE + 1), 0, 1]


def test_what_finds_no_room_is_counted_once(heard: Heard) -> None:
    heard.log.closed(wire(MOST_WAITING - 1), NOON_MS)
    heard.log.closed(wire(11), NOON_MS)
    heard.log.opened(wire(1), NOON_MS)
    heard.run(0)
    assert len(heard.flows(Topic.FLOW_CLOSED)) == MOST_WAITING
    assert heard.left_out(Topic.FLOW_CLOSED) == 10
    assert (len(heard.flows(Topic.FLOW_OPENED)), heard.left_out(Topic.FLOW_OPENED)) == (1, 0)
    heard.log.closed(wire(5), NOON_MS)
    heard.run(10_000_000)
    assert len(heard.flows(Topic.FLOW_CLOSED)) == MOST_WAITING + 5


def test_lost_notes_are_said_even_if_nothing_else_is(heard: Heard) -> None:
    heard.log.lost(7)
    heard.run(0)
    assert heard.told == [(Topic.FLOW_OPENED, FlowsEvent((), 7))]


def test_the_rate_is_bounded(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nat_log, "MOST_AT_ONCE", 8)
    for now_ms in range(0, 10 * PAUSE_MS, 10):
        heard.log.opened(wire(5), NOON_MS)
        heard.log.turn(now_ms)
    assert len(heard.told) == 10
    assert all(len(event.flows) <= 8 for _, event in heard.told)
