"""The fold: what becomes public, once, in order and without holes, whatever comes in."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field, replace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus import topics
from bus.codec import Envelope
from bus.states import LocalChecks
from bus.topics import Topic
from bus.words import NodeState
from services.api.fold import PUBLIC_STATES, STATE_REPEAT_MS, Fold, Position
from services.api.stream import Entry
from tests.api.samples import (
    checks,
    dataplane,
    down,
    envelope,
    everything,
    node,
    quorum,
    started,
    view,
)

HEALTH, QUORUM, DATAPLANE = topics.HEALTH, topics.QUORUM, topics.DATAPLANE


def fold_of(*envelopes: Envelope) -> Fold:
    fold = Fold("api", {})
    for message in envelopes:
        fold.receive(message, 0)
    return fold


def health(data: Any, seq: int, boot: str = "b1") -> Envelope:
    topic = Topic.NODE_DOWN if hasattr(data, "previous") else Topic.STATE_VIEW
    return envelope(HEALTH, topic, data, boot=boot, seq=seq)


def checked(data: LocalChecks, made_ms: int) -> Envelope:
    return envelope(HEALTH, Topic.STATE_CHECKS, data, made_ms=made_ms)


def at_time(message: Envelope, time_ms: int) -> Envelope:
    return replace(message, head=replace(message.head, time_ms=time_ms))


# --------------------------------------------------------------------------- states


def test_a_state_goes_out_when_it_is_new_and_not_when_it_repeats() -> None:
    fold = Fold("api", {})
    first = health(view(node()), 1)
    assert [(entry.topic, entry.seq, entry.topic_seq) for entry in fold.receive(first, 0)] == [
        (Topic.STATE_NODES, 1, 1)
    ]
    fold.repeated([replace(first.head, seq=2)], 500)
    assert fold.log.last_seq == 1
    assert fold.latest[Topic.STATE_VIEW].age_ms(500) == 0
    assert fold.processes[HEALTH].heard_ms == 500
    changed = fold.receive(health(view(node(state=NodeState.DOWN), version=2), 3), 600)
    assert [(entry.seq, entry.topic_seq) for entry in changed] == [(2, 2)]


def test_a_repetition_of_another_boot_says_nothing_of_what_is_here() -> None:
    fold = fold_of(health(view(node()), 1))
    fold.repeated([replace(health(view(node()), 2).head, boot="b2")], 500)
    assert fold.latest[Topic.STATE_VIEW].age_ms(500) == 500


def test_checks_are_no_news_and_their_numbers_are_shown_with_the_next_view() -> None:
    fold = fold_of(health(view(node()), 1))
    assert fold.receive(checked(checks(node(), hello=2), made_ms=100), 100) == []
    (shown,) = fold.subscribed([b"state.nodes."], 900)
    data = orjson.loads(shown.body)["data"]
    assert data["rejected"] == {"hello": 2}
    assert data["nodes"][0]["checks_good_total"] == 10
    # 100 ms when the checks were made, and 800 ms since.
    assert data["nodes"][0]["observed_ms"] == 900


def test_what_is_left_of_a_ban_is_right_when_it_is_shown() -> None:
    fold = fold_of(health(view(node(state=NodeState.BANNED, banned_for_ms=5_000)), 1))
    fold.repeated([fold.latest[Topic.STATE_VIEW].envelope.head], 1_900)
    (shown,) = fold.subscribed([b"state.nodes."], 2_000)
    message = orjson.loads(shown.body)
    assert message["data"]["nodes"][0]["banned_for_ms"] == 3_000
    assert message["time_ms"] == 1_001 + 2_000


def test_counters_are_kept_and_not_public() -> None:
    fold = fold_of(*everything())
    assert Topic.STATE_COUNTERS in fold.latest
    assert Topic.STATE_COUNTERS not in {entry.topic for entry in fold.log.after(0)}


@pytest.mark.parametrize(
    ("prefix", "topics"),
    [
        (b"", list(PUBLIC_STATES.values())),
        (b"state.", list(PUBLIC_STATES.values())),
        (b"state.table.", [Topic.STATE_TABLE]),
        (b"node.down.", []),
        (b"state.view.", []),
    ],
)
def test_a_new_subscriber_is_shown_the_present_state(prefix: bytes, topics: list[Topic]) -> None:
    fold = fold_of(*everything())
    last = fold.log.last_seq
    shown = fold.subscribed([prefix], 0)
    assert [entry.topic for entry in shown] == topics
    assert [entry.seq for entry in shown] == list(range(last + 1, last + 1 + len(topics)))
    assert all(entry.topic_seq == 2 for entry in shown)


def test_nothing_is_shown_when_nobody_came() -> None:
    assert fold_of(*everything()).subscribed([], 0) == []


def test_the_shown_state_is_the_newest() -> None:
    fold = fold_of(health(view(node()), 1), health(view(node(weight=7), version=2), 2))
    (shown,) = fold.subscribed([b""], 0)
    assert orjson.loads(shown.body)["data"]["nodes"][0]["weight"] == 7


def test_states_are_repeated_while_their_process_speaks() -> None:
    fold = fold_of(health(view(node()), 1))
    assert fold.tick(STATE_REPEAT_MS) == []  # nothing was said since
    fold.repeated([health(view(node()), 2).head], 4000)
    assert fold.tick(STATE_REPEAT_MS - 1) == []
    assert [entry.seq for entry in fold.tick(STATE_REPEAT_MS)] == [2]
    assert fold.tick(STATE_REPEAT_MS) == []
    assert fold.tick(3 * STATE_REPEAT_MS) == []


# --------------------------------------------------------------------------- processes


def test_a_process_is_known_by_what_it_says() -> None:
    fold = Fold("api", {})
    fold.receive(health(view(), 1), 10)
    assert (fold.processes[HEALTH].boot, fold.processes[HEALTH].pid) == ("b1", 0)
    fold.receive(envelope(HEALTH, Topic.PROCESS_STARTED, started(HEALTH, 7), seq=1), 20)
    assert fold.processes[HEALTH].pid == 7
    fold.receive(health(view(), 2), 30)
    assert (fold.processes[HEALTH].pid, fold.processes[HEALTH].heard_ms) == (7, 30)
    fold.receive(health(view(), 1, boot="b2"), 40)
    assert (fold.processes[HEALTH].boot, fold.processes[HEALTH].pid) == ("b2", 0)


# --------------------------------------------------------------------------- restarts of the API


def test_a_restarted_api_sends_what_its_last_life_had_not() -> None:
    fold = Fold("new", {HEALTH: Position("b1", 2)})
    replay = [health(down(), seq) for seq in (1, 2, 3)]
    sent = fold.catch_up([*replay, health(view(node()), 5)], 0)
    assert [entry.topic for entry in sent] == [Topic.STATE_NODES, Topic.NODE_DOWN]
    assert [entry.seq for entry in sent] == [3, 4]
    assert [entry.head.seq for entry in fold.log.after(0)] == [1, 2, 5, 3]
    assert fold.published == {HEALTH: Position("b1", 3)}


def test_a_position_in_an_older_boot_says_nothing_about_this_one() -> None:
    fold = Fold("new", {HEALTH: Position("b0", 99)})
    assert len(fold.catch_up([health(down(), 1)], 0)) == 1


def test_what_was_sent_before_and_comes_late_leaves_no_hole() -> None:
    fold = Fold("new", {HEALTH: Position("b1", 2)})
    fold.catch_up([], 0)
    assert fold.receive(health(down(), 1), 0) == []
    assert [entry.seq for entry in fold.receive(health(down(), 3), 0)] == [1]


def test_each_process_keeps_its_order_though_clocks_disagree() -> None:
    fold = Fold("new", {})
    late_clock = [at_time(health(down(), seq), 1000 - seq) for seq in (1, 2, 3)]
    other = [envelope(QUORUM, Topic.PROCESS_STARTED, started(QUORUM), seq=seq) for seq in (1, 2)]
    sent = fold.catch_up([*late_clock, *other], 0)
    for source in (HEALTH, QUORUM):
        seqs = [entry.head.seq for entry in sent if entry.head.source == source]
        assert seqs == sorted(seqs)


def test_what_several_processes_told_meanwhile_is_in_order_of_time() -> None:
    of_health = [at_time(health(down(), seq), 1_000 * seq) for seq in (1, 3, 5)]
    of_quorum = [
        at_time(envelope(QUORUM, Topic.PROCESS_STARTED, started(QUORUM), seq=seq), 1_000 * seq)
        for seq in (2, 4)
    ]
    sent = Fold("new", {}).catch_up([*of_health, *of_quorum], 0)
    assert [entry.head.seq for entry in sent] == [1, 2, 3, 4, 5]


# --------------------------------------------------------------------------- any interleaving


@dataclass
class Sender:
    """A process that numbers as the bus does, and may repeat itself or restart."""

    source: str
    boot: int = 1
    seq: int = 0
    state_seq: int = 0
    sent: list[Envelope] = field(default_factory=list)

    def event(self) -> Envelope:
        self.seq += 1
        return self._say(Topic.PROCESS_STARTED, started(self.source), self.seq)

    def state(self, variant: int) -> Envelope:
        self.state_seq += 1
        topic, data = {
            HEALTH: (Topic.STATE_VIEW, view(node(fails=variant))),
            QUORUM: (Topic.STATE_QUORUM, quorum(term=variant)),
            DATAPLANE: (Topic.STATE_DATAPLANE, dataplane(ready=bool(variant))),
        }[self.source]
        return self._say(topic, data, self.state_seq)

    def restart(self) -> None:
        self.boot, self.seq, self.state_seq, self.sent = self.boot + 1, 0, 0, []

    def _say(self, topic: Topic, data: Any, seq: int) -> Envelope:
        said = envelope(self.source, topic, data, boot=f"b{self.boot}", seq=seq)
        self.sent.append(said)
        return said


SENDERS = st.sampled_from((HEALTH, QUORUM, DATAPLANE))
ACTIONS = st.one_of(
    st.tuples(st.just("event"), SENDERS, st.just(0)),
    st.tuples(st.just("state"), SENDERS, st.integers(0, 2)),
    st.tuples(st.just("again"), SENDERS, st.integers(0, 5)),
    st.tuples(st.just("restart"), SENDERS, st.just(0)),
    st.tuples(st.just("subscribe"), st.just(""), st.integers(0, 2)),
    st.tuples(st.just("tick"), st.just(""), st.integers(0, 6000)),
)


class World:
    """Three senders and the API, of which each may restart; records what went out."""

    def __init__(self) -> None:
        self.senders = {source: Sender(source) for source in (HEALTH, QUORUM, DATAPLANE)}
        self.fold = Fold("api", {})
        self.now_ms = 0
        self.out: list[Entry] = []

    def act(self, action: tuple[str, str, int]) -> None:
        verb, source, number = action
        sender = self.senders.get(source, Sender(""))
        if verb == "event":
            self.out += self.fold.receive(sender.event(), self.now_ms)
        elif verb == "state":
            self.out += self.fold.receive(sender.state(number), self.now_ms)
        elif verb == "again" and sender.sent:
            again = sender.sent[-1 - number % len(sender.sent)]
            self.out += self.fold.receive(again, self.now_ms)
        elif verb == "restart":
            sender.restart()
        elif verb == "subscribe":
            prefix = (b"", b"state.", b"state.nodes.")[number]
            self.out += self.fold.subscribed([prefix], self.now_ms)
        elif verb == "tick":
            self.now_ms += number
            self.out += self.fold.tick(self.now_ms)

    def restart_api(self, boot: str, *, stored: bool) -> None:
        self.fold = Fold(boot, self.fold.published if stored else {})
        replays = [message for sender in self.senders.values() for message in sender.sent]
        self.out += self.fold.catch_up(replays, self.now_ms)


def check_numbers(entries: list[Entry]) -> None:
    """What goes out of one boot, from its first message on, has no holes and repeats nothing."""
    if entries:
        first = entries[0].seq
        assert [entry.seq for entry in entries] == list(range(first, first + len(entries)))
    last: dict[Topic, int] = {}
    for entry in entries:
        if entry.topic in last:
            assert entry.topic_seq == last[entry.topic] + 1
        last[entry.topic] = entry.topic_seq


def events_of(entries: list[Entry]) -> Counter[tuple[str, str, int]]:
    return Counter(
        (entry.head.source, entry.head.boot, entry.head.seq)
        for entry in entries
        if not entry.topic.is_state
    )


@given(st.lists(ACTIONS, max_size=60))
def test_no_holes_whatever_the_interleaving(actions: list[tuple[str, str, int]]) -> None:
    world = World()
    for action in actions:
        world.act(action)
    check_numbers(world.out)
    assert world.fold.log.after(0) == world.out
    assert [entry.seq for entry in world.out[:1]] in ([], [1])
    assert set(events_of(world.out).values()) <= {1}


@given(st.lists(ACTIONS, max_size=40), st.lists(ACTIONS, max_size=40), st.booleans())
def test_no_event_is_lost_or_doubled_over_a_restart_of_the_api(
    before: list[tuple[str, str, int]], after: list[tuple[str, str, int]], stored: bool
) -> None:
    world = World()
    happened: set[tuple[str, str, int]] = set()
    for action in before:
        world.act(action)
    # While the API is away, one more event happens in each process.
    for sender in world.senders.values():
        said = sender.event()
        happened.add((said.source, said.boot, said.seq))
    first_life, world.out = world.out, []
    world.restart_api("api2", stored=stored)
    for action in after:
        world.act(action)
    check_numbers(world.out)
    sent = events_of(first_life) + events_of(world.out)
    assert happened <= set(sent)
    if stored:
        assert set(sent.values()) == {1}
