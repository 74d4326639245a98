"""Clients of dead nodes: who is told, once, and by which bytes."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from scapy.layers.inet import IP, TCP

from bpf.loader import LoadedObject
from services.dataplane.flows.record import UDP, FlowState, Records
from services.dataplane.flows.records import FLOW_REPLICA
from services.dataplane.flows.resets import Resets, segments
from tests.bpf.harness import problems
from tests.dataplane.flows.made import address, both, flow_type, replies, requests
from tests.dataplane.maps import maps

NOW = 1000
PLACES = 1 << 12


@pytest.fixture(scope="module")
def loaded() -> Iterator[LoadedObject]:
    with maps() as made:
        yield made


@pytest.fixture
def kind(loaded: LoadedObject) -> np.dtype[Any]:
    return flow_type(loaded.bpf[b"flows"])


def find(resets: Resets, records: Records, table: int = 0) -> list[int]:
    """The clients' ports."""
    found = resets.find(table, PLACES, np.arange(len(records)), records)
    return sorted(found["key"]["sport"].tolist())


def flows(kind: np.dtype[Any], count: int, **fields: Any) -> Records:
    return requests(kind, count, NOW, key_sport=np.arange(count) + 1, **fields)


def test_only_connected_clients_of_dead_seats_are_told(kind: np.dtype[Any]) -> None:
    resets = Resets()
    assert not resets.is_needed
    assert resets.bury(frozenset({5}))
    assert resets.is_needed
    states = [state for state in FlowState if state.name.startswith("TCP")]
    made = flows(kind, len(states), state=states, seat=5)
    told = (FlowState.TCP_ANSWERED, FlowState.TCP_ESTABLISHED, FlowState.TCP_CLOSING)
    assert find(resets, made) == [states.index(state) + 1 for state in told]
    assert find(resets, flows(kind, 2, seat=[4, 6])) == []
    udp = flows(kind, 1, seat=5, key_protocol=UDP, state=FlowState.UDP_ESTABLISHED)
    assert find(resets, udp) == []


def test_replies_are_nobody_to_tell(kind: np.dtype[Any]) -> None:
    resets = Resets()
    resets.bury(frozenset({5}))
    made = flows(kind, 3, seat=5)
    assert find(resets, replies(made)) == []
    assert len(find(resets, both(made))) == 3


def test_each_is_told_once_for_each_death_of_its_seat(kind: np.dtype[Any]) -> None:
    resets = Resets()
    made = flows(kind, 4, seat=[5, 5, 6, 6])
    assert resets.bury(frozenset({5}))
    assert find(resets, made) == [1, 2]
    assert find(resets, made) == []
    # Another seat dies: nothing new of the first.
    assert resets.bury(frozenset({5, 6}))
    assert find(resets, made) == [3, 4]
    assert not resets.bury(frozenset({5, 6}))
    assert find(resets, made) == []
    # The first lives, and dies again, while the second is dead all the time.
    assert not resets.bury(frozenset({6}))
    assert find(resets, made) == []
    assert resets.bury(frozenset({5, 6}))
    assert find(resets, made) == [1, 2]


def test_another_flow_in_the_same_place_is_another_flow(kind: np.dtype[Any]) -> None:
    resets = Resets()
    resets.bury(frozenset({5}))
    made = flows(kind, 3, seat=5)
    assert find(resets, made) == [1, 2, 3]
    made["key"]["version"][1] += 2
    assert find(resets, made) == [2]
    # The same places of the other table are other places.
    assert find(resets, made, table=1) == [1, 2, 3]


def test_when_all_live_again_nothing_is_remembered(kind: np.dtype[Any]) -> None:
    resets = Resets()
    resets.bury(frozenset({5}))
    made = flows(kind, 2, seat=5)
    find(resets, made)
    resets.bury(frozenset())
    assert not resets.is_needed
    assert find(resets, made) == []
    resets.bury(frozenset({5}))
    assert find(resets, made) == [1, 2]


def test_what_is_sent_is_what_the_client_believes(kind: np.dtype[Any]) -> None:
    count = 50
    dice = np.random.default_rng(3)
    acked = dice.integers(0, 1 << 32, count, dtype=np.uint32)
    made = requests(
        kind,
        count,
        NOW,
        key_saddr=dice.integers(1, 1 << 32, count, dtype=np.uint32),
        key_sport=dice.integers(1, 1 << 16, count).astype(np.uint16),
        acked=acked,
        end=17,
        state=np.where(np.arange(count) % 3, FlowState.TCP_ESTABLISHED, FlowState.TCP_ANSWERED),
    )
    made["acked"][0] = 2**32 - 1
    packets = segments(made)
    assert packets.shape == (count, 40)
    for packet, record in zip(packets, made, strict=True):
        raw = bytes(packet)
        assert problems(bytes(12) + b"\x08\x00" + raw) == []
        ip = IP(raw)
        assert (ip.src, address(ip.dst)) == ("10.80.0.100", record["key"]["saddr"])
        assert (ip.len, ip.ttl, str(ip.flags), ip.proto) == (40, 64, "DF", 6)
        tcp = ip[TCP]
        assert (tcp.sport, tcp.dport) == (8080, socket.ntohs(int(record["key"]["sport"])))
        # Whose first acknowledgement has not come waits for the number after the SYN-ACK's.
        unheard = int(record["state"] == FlowState.TCP_ANSWERED)
        assert (tcp.seq, tcp.ack, str(tcp.flags)) == (
            (int(record["acked"]) + unheard) % 2**32,
            0,
            "R",
        )
        assert (tcp.window, tcp.urgptr, tcp.dataofs) == (0, 0, 5)


def test_another_lb_s_clients_are_asked_by_whoever_holds_their_vip(kind: np.dtype[Any]) -> None:
    """The LB that knows their numbers may be dead with the node."""
    resets = Resets()
    resets.bury(frozenset({5}))
    made = flows(kind, 4, seat=5, flags=[FLOW_REPLICA, FLOW_REPLICA, 0, FLOW_REPLICA])
    made["key"]["daddr"][3] = 7
    assert find(resets, made) == [3]
    vip = np.array([made["key"]["daddr"][0]], np.uint32)
    found = resets.find(0, PLACES, np.arange(4), made, vip)
    assert sorted(found["key"]["sport"].tolist()) == [1, 2], "those told before are told"
    assert len(resets.find(0, PLACES, np.arange(4), made, vip)) == 0


@pytest.mark.parametrize("acked", [1000, 0])
def test_who_is_asked_is_sent_what_was_acknowledged_long_ago(
    kind: np.dtype[Any], acked: int
) -> None:
    made = flows(kind, 1, flags=FLOW_REPLICA, acked=acked, state=FlowState.TCP_ESTABLISHED)
    (packet,) = segments(made)
    assert problems(bytes(12) + b"\x08\x00" + bytes(packet)) == []
    tcp = IP(bytes(packet))[TCP]
    assert (tcp.seq, tcp.ack, str(tcp.flags)) == ((acked - 1) % 2**32, 0, "A")


def test_nobody_to_tell_makes_no_packet(kind: np.dtype[Any]) -> None:
    assert segments(flows(kind, 1)[:0]).shape == (0, 40)
