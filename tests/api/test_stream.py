"""The log: one numbering, bounded memory."""

from __future__ import annotations

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import topics
from bus.topics import Topic
from services.api import stream
from services.api.stream import Entry, EventLog
from tests.api.samples import down, envelope, node, view

EVENT = envelope(topics.HEALTH, Topic.NODE_DOWN, down(), boot="origin", seq=9)
STATE = envelope(topics.HEALTH, Topic.STATE_VIEW, view(node()))


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch) -> EventLog:
    """A log of eight messages, with room for the data of two states."""
    size = len(orjson.dumps(STATE.data))
    monkeypatch.setattr(stream, "KEPT_MESSAGES", 8)
    monkeypatch.setattr(stream, "KEPT_BULKY_BYTES", 2 * size)
    return EventLog("b")


def test_a_message_on_the_wire() -> None:
    log = EventLog("b")
    log.append(Topic.STATE_NODES, STATE)
    log.append(Topic.NODE_DOWN, EVENT)
    body = orjson.loads(log.append(Topic.NODE_DOWN, EVENT).body)
    assert body.pop("data")["reason"] == "connection refused"
    assert body == {
        "v": 1,
        "topic": "node.down.",
        "seq": 3,
        "topic_seq": 2,
        "boot": "b",
        "host": "lb-0",
        "source": "health",
        "time_ms": 1009,
        "origin": {"boot": "origin", "seq": 9},
    }


def test_an_empty_log_has_nothing_after_anything() -> None:
    log = EventLog("b")
    assert (log.first_seq, log.last_seq, log.after(0), log.after(7)) == (1, 0, [], [])
    assert log.after(2**63 - 1) == log.after(2**200) == []


@given(st.integers(0, 30), st.integers(0, 40), st.integers(1, 10))
def test_after_gives_what_follows(count: int, seq: int, limit: int) -> None:
    log = EventLog("b")
    for _ in range(count):
        log.append(Topic.NODE_DOWN, EVENT)
    expected = list(range(seq + 1, count + 1))[:limit]
    assert [entry.seq for entry in log.after(log.find("b", seq).at, limit)] == expected


def test_the_oldest_messages_go(small: EventLog) -> None:
    for _ in range(20):
        small.append(Topic.NODE_DOWN, EVENT)
    assert (small.first_seq, small.last_seq) == (13, 20)
    assert [entry.seq for entry in small.after(0)] == list(range(13, 21))


def test_old_states_lose_their_data_and_events_do_not(small: EventLog) -> None:
    small.append(Topic.NODE_DOWN, EVENT)
    for _ in range(5):
        small.append(Topic.STATE_NODES, STATE)
    bodies = [orjson.loads(entry.body) for entry in small.after(0)]
    assert [body["seq"] for body in bodies] == [1, 2, 3, 4, 5, 6]
    assert [body["data"] is None for body in bodies] == [False, True, True, True, False, False]
    assert ["superseded" in body for body in bodies] == [False, True, True, True, False, False]


def test_memory_of_states_is_bounded_for_ever(small: EventLog) -> None:
    for turn in range(100):
        small.append(Topic.STATE_NODES, STATE)
        if turn % 7 == 0:
            for _ in range(9):
                small.append(Topic.NODE_DOWN, EVENT)
        held = [entry for entry in small.after(0) if entry.topic.is_state and entry.data]
        assert len(held) <= 2


def test_the_nat_log_pushes_nothing_out_but_itself_and_states(small: EventLog) -> None:
    small.append(Topic.NODE_DOWN, EVENT)
    for _ in range(5):
        small.append(Topic.FLOW_OPENED, STATE)
    bodies = [orjson.loads(entry.body) for entry in small.after(0)]
    assert [body["data"] is None for body in bodies] == [False, True, True, True, False, False]


def test_one_state_larger_than_the_room_is_kept(
    small: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "KEPT_BULKY_BYTES", 1)
    small.append(Topic.STATE_NODES, STATE)
    small.append(Topic.STATE_NODES, STATE)
    assert [entry.data is None for entry in small.after(0)] == [True, False]


def earlier_life(count: int) -> list[Entry]:
    log = EventLog("a")
    return [log.append(Topic.NODE_DOWN, EVENT) for _ in range(count)]


def numbers(log: EventLog, boot: str, seq: int) -> tuple[list[tuple[str, int]], bool]:
    place = log.find(boot, seq)
    return [(entry.boot, entry.seq) for entry in log.after(place.at)], place.complete


def test_an_earlier_life_goes_on_in_this_one() -> None:
    log = EventLog("b", earlier_life(3)[1:])
    log.append(Topic.NODE_DOWN, EVENT)
    assert (log.first_seq, log.last_seq) == (1, 1)
    assert numbers(log, "a", 2) == ([("a", 3), ("b", 1)], True)
    assert numbers(log, "a", 1) == ([("a", 2), ("a", 3), ("b", 1)], True)
    assert numbers(log, "a", 0) == ([("a", 2), ("a", 3), ("b", 1)], False), "its first is not kept"
    assert numbers(log, "a", 9) == ([("b", 1)], False), "nobody was given that number"
    assert numbers(log, "b", 0) == ([("b", 1)], True)
    assert numbers(log, "c", 1) == ([("a", 2), ("a", 3), ("b", 1)], False)


def test_an_earlier_life_is_forgotten_as_a_whole(small: EventLog) -> None:
    log = EventLog("b", earlier_life(5))
    for _ in range(7):
        log.append(Topic.NODE_DOWN, EVENT)
    assert numbers(log, "a", 4) == ([("a", 5), *(("b", seq) for seq in range(1, 8))], True)
    log.append(Topic.NODE_DOWN, EVENT)
    assert numbers(log, "a", 5) == ([("b", seq) for seq in range(1, 9)], False)
    assert log.first_seq == 1
    log.append(Topic.NODE_DOWN, EVENT)
    assert (log.first_seq, log.last_seq) == (2, 9)
