"""Conversations about flows, over a network that loses, repeats, reorders and breaks off.

A record here is a key and the number of its last change; whoever enters one keeps the larger
number, as the flow table knows which word is the later. Once the network is well again a follower
must have all that the teller has, whatever came before.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.codec import MalformedMessage, UnknownVersion
from bus.replica_protocol import (
    NO_POSITION,
    Credit,
    Digests,
    Hello,
    Live,
    Part,
    Refused,
    ReplicaMessage,
    Resume,
    Welcome,
    decode_replica,
    encode_replica,
)
from services.dataplane.flows.replica import (
    CREDITS,
    CUT_MS,
    HELLO_FIRST,
    HELLO_MS,
    NOTHING,
    PATIENCE_MS,
    SILENCE_MS,
    Following,
    Log,
    Message,
    Standing,
    Sync,
    Teller,
    Telling,
)

RECORD = struct.Struct("<II")
LOG_RECORDS = 40
PARTS = 5
CLUSTER = "gale"


def records(*rows: tuple[int, int]) -> bytes:
    return b"".join(RECORD.pack(*row) for row in rows)


def hello(boot: str = "", next_seq: int = 0, position: int = 0) -> Hello:
    return Hello(1, CLUSTER, "lb-b", boot, next_seq, position, RECORD.size)


def telling_of(log: Log, said: Hello | None = None) -> Telling:
    telling = Telling(log, said or hello(), Teller(CLUSTER, "lb-a", "a1"), 0)
    telling.heard(Credit(CREDITS, 0, True))
    return telling


# --------------------------------------------------------------------------- a world of two


@dataclass
class World:
    """A teller and a follower with a network between them."""

    table: dict[int, int] = field(default_factory=dict)
    entered: dict[int, int] = field(default_factory=dict)
    to_follower: list[Message] = field(default_factory=list)
    to_teller: list[ReplicaMessage] = field(default_factory=list)
    now_ms: int = 0
    changes: int = 0
    boots: int = 0

    def __post_init__(self) -> None:
        self.following = Following(CLUSTER, "lb-b", RECORD.size, 0)
        self.restart_teller()

    def restart_teller(self) -> None:
        """The table outlives it, the log does not."""
        self.boots += 1
        self.teller = Teller(CLUSTER, "lb-a", f"{self.boots:016x}")
        self.log = Log(RECORD.size, LOG_RECORDS * RECORD.size)
        self.telling: Telling | None = None
        self.cut()

    def restart_follower(self) -> None:
        """What it has entered outlives it, and how far that was."""
        progress = self.following.progress
        self.following = Following(CLUSTER, "lb-b", RECORD.size, self.now_ms, progress)
        self.cut()

    def cut(self) -> None:
        self.to_follower.clear()
        self.to_teller.clear()

    def happen(self, keys: list[int]) -> None:
        rows = [(key, self._change(key)) for key in keys]
        self.log.append(records(*rows), 0, self.now_ms)

    def lose_notes(self, keys: list[int]) -> None:
        """It happens, and the teller only knows that something has."""
        for key in keys:
            self._change(key)
        self.log.lose()

    def _change(self, key: int) -> int:
        self.changes += 1
        self.table[key] = self.changes
        return self.changes

    # ------------------------------------------------------------------ steps

    def teller_hears(self) -> None:
        if not self.to_teller:
            return
        message = self.to_teller.pop(0)
        match message:
            case Hello():
                self.telling = Telling(self.log, message, self.teller, self.now_ms)
            case Credit() | Resume() if self.telling is not None:
                self.telling.heard(message)
            case _:
                self.to_follower.append((Refused(HELLO_FIRST), b""))

    def teller_tells(self) -> None:
        if self.telling is None:
            return
        self.to_follower += self.telling.take_live(self.now_ms, 0, synced=True)
        if self.telling.wants_part:
            position = self.telling.position
            rows = [row for row in self.table.items() if row[0] % PARTS == position]
            following = position + 1 if position + 1 < PARTS else NO_POSITION
            self.to_follower.append(self.telling.told_part(following, 0, records(*rows)))

    def follower_hears(self) -> None:
        if self.to_follower:
            message, payload = self.to_follower.pop(0)
            entering = self.following.heard(message, payload, self.now_ms)
            for key, change in RECORD.iter_unpack(entering.records if entering else b""):
                self.entered[key] = max(change, self.entered.get(key, 0))

    def follower_says(self) -> None:
        self.to_teller += self.following.take(self.now_ms, synced=True)

    def step(self) -> None:
        self.follower_says()
        self.teller_hears()
        self.teller_tells()
        self.follower_hears()

    def heal(self) -> None:
        """The network is well from now on; nothing more happens."""
        for _ in range(40):
            for _ in range(2 * CREDITS):
                self.step()
            self.now_ms += HELLO_MS // 2

    @property
    def under_way(self) -> int:
        return sum(bool(payload) for _, payload in self.to_follower)


keys = st.lists(st.integers(0, 30), min_size=1, max_size=12)
ACTIONS: dict[str, Callable[[World, list[int]], None]] = {
    "happen": World.happen,
    "happen more": World.happen,
    "step": lambda world, _: world.step(),
    "say": lambda world, _: world.follower_says(),
    "hear": lambda world, _: world.follower_hears(),
    "tell": lambda world, _: world.teller_tells(),
    "listen": lambda world, _: world.teller_hears(),
    "lose to follower": lambda world, chosen: _drop(world.to_follower, chosen[0]),
    "lose to teller": lambda world, chosen: _drop(world.to_teller, chosen[0]),
    "repeat to follower": lambda world, chosen: _repeat(world.to_follower, chosen[0]),
    "repeat to teller": lambda world, chosen: _repeat(world.to_teller, chosen[0]),
    "overtake": lambda world, chosen: _overtake(world.to_follower, chosen[0]),
    "cut": lambda world, _: world.cut(),
    "restart teller": lambda world, _: world.restart_teller(),
    "restart follower": lambda world, _: world.restart_follower(),
    "lose notes": World.lose_notes,
    "time": lambda world, chosen: setattr(world, "now_ms", world.now_ms + 100 * chosen[0]),
}


def _drop(queue: list, at: int) -> None:  # type: ignore[type-arg]
    if queue:
        queue.pop(at % len(queue))


def _repeat(queue: list, at: int) -> None:  # type: ignore[type-arg]
    if queue:
        queue.insert(at % len(queue), queue[at % len(queue)])


def _overtake(queue: list, at: int) -> None:  # type: ignore[type-arg]
    if len(queue) > 1:
        queue.insert(0, queue.pop(at % len(queue)))


@settings(max_examples=400, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(sorted(ACTIONS)), keys), max_size=60))
def test_whatever_happens_the_follower_has_it_all_in_the_end(
    actions: list[tuple[str, list[int]]],
) -> None:
    world = World()
    for action, chosen in actions:
        ACTIONS[action](world, chosen)
        assert world.log.next_seq - world.log.first_seq <= LOG_RECORDS + 12
        assert world.under_way <= 3 * CREDITS
    world.heal()
    assert world.entered == world.table
    assert world.following.standing is Standing.LEVEL
    assert world.telling is not None
    assert world.telling.lag_ms(world.now_ms) == 0


@settings(max_examples=100, deadline=None)
@given(st.lists(keys, max_size=30), st.integers(0, 200))
def test_without_trouble_everything_comes_once(happenings: list[list[int]], steps: int) -> None:
    world = World()
    for chosen in happenings:
        world.happen(chosen)
        for _ in range(steps % 7):
            world.step()
    world.heal()
    assert world.entered == world.table
    assert (world.following.gaps, world.following.passed_over) == (0, 0)


# --------------------------------------------------------------------------- the teller


class TestTelling:
    def test_a_new_follower_gets_the_table_and_what_happens_from_now_on(self) -> None:
        log = Log(RECORD.size)
        log.append(records((1, 1)), 7, 100)
        telling = telling_of(log)
        ((welcome, _),) = telling.take_live(0, 0, synced=True)
        assert welcome == Welcome(1, CLUSTER, "lb-a", "a1", 1, 0, True)
        log.append(records((2, 2), (3, 3)), 8, 200)
        ((live, payload),) = telling.take_live(0, 0, synced=True)
        assert (live, payload) == (Live(1, 8, True), records((2, 2), (3, 3)))
        assert telling.wants_part

    def test_one_that_comes_back_goes_on_where_it_was(self) -> None:
        log = Log(RECORD.size)
        for key in range(4):
            log.append(records((key, key), (key, key + 1)), 0, 0)
        telling = telling_of(log, hello("a1", 3, 2))
        messages = list(telling.take_live(0, 0, synced=False))
        assert messages[0][0] == Welcome(1, CLUSTER, "lb-a", "a1", 3, 2, False)
        assert [m[0].first for m in messages[1:]] == [3, 4, 6]  # type: ignore[union-attr]
        assert messages[1][1] == records((1, 2))
        assert (telling.wants_part, telling.position, telling.snapshots) == (True, 2, 0)

    @pytest.mark.parametrize(("boot", "next_seq"), [("a0", 3), ("a1", 0), ("a1", 9)])
    def test_one_that_nobody_can_go_on_with_begins_anew(self, boot: str, next_seq: int) -> None:
        """Of another start, of what is forgotten, of what never happened."""
        log = Log(RECORD.size, 2 * RECORD.size)
        for key in range(4):
            log.append(records((key, key)), 0, 0)
        assert (log.first_seq, log.next_seq) == (2, 4)
        telling = telling_of(log, hello(boot, next_seq, NO_POSITION))
        ((welcome, _),) = telling.take_live(0, 0, synced=True)
        assert (welcome.next_seq, welcome.position) == (4, 0)  # type: ignore[union-attr]

    def test_what_was_lost_is_made_up_for_by_the_whole_table(self) -> None:
        """Nobody knows what it was, so whoever had everything until then has not any more."""
        log = Log(RECORD.size)
        log.append(records((1, 1)), 0, 0)
        telling = telling_of(log, hello("a1", 1, NO_POSITION))
        list(telling.take_live(0, 0, synced=True))
        assert (telling.position, telling.snapshots) == (NO_POSITION, 0)
        log.lose()
        ((welcome, _),) = telling.take_live(0, 0, synced=True)
        assert welcome == Welcome(1, CLUSTER, "lb-a", "a1", 2, 0, True)
        telling.heard(Credit(CREDITS, 2, True))
        assert telling.wants_part

    def test_no_more_is_sent_than_was_allowed(self) -> None:
        log = Log(RECORD.size)
        telling = telling_of(log)
        list(telling.take_live(0, 0, synced=True))
        for key in range(3 * CREDITS):
            log.append(records((key, key)), 0, 0)
        assert len(list(telling.take_live(0, 0, synced=True))) == CREDITS
        assert not telling.wants_part
        telling.heard(Credit(CREDITS + 2, 10, True))
        assert len(list(telling.take_live(0, 0, synced=True))) == 2
        # Nobody is allowed to allow everything.
        telling.heard(Credit(10**9, 10, True))
        assert len(list(telling.take_live(0, 0, synced=True))) == CREDITS

    def test_lag_is_what_is_not_acknowledged(self) -> None:
        log = Log(RECORD.size)
        telling = telling_of(log)
        assert telling.lag_ms(1_000) == 0
        log.append(records((1, 1)), 0, 1_000)
        log.append(records((2, 2)), 0, 1_200)
        assert telling.lag_ms(1_500) == 500
        list(telling.take_live(1_500, 0, synced=True))
        telling.heard(Credit(40, 1, True))
        assert telling.lag_ms(1_500) == 300
        telling.heard(Credit(41, 2, True))
        assert telling.lag_ms(1_500) == 0

    def test_who_has_nothing_to_tell_says_so(self) -> None:
        telling = telling_of(Log(RECORD.size))
        list(telling.take_live(0, 0, synced=True))
        assert list(telling.take_live(999, 0, synced=True)) == []
        ((live, payload),) = telling.take_live(1_000, 5, synced=True)
        assert (live, payload) == (Live(0, 5, True), b"")


# --------------------------------------------------------------------------- the follower


def follower(now_ms: int = 0) -> Following:
    following = Following(CLUSTER, "lb-b", RECORD.size, now_ms)
    (said,) = following.take(now_ms, synced=True)
    assert said == hello()
    return following


def welcomed(position: int = 0, *, synced: bool = True) -> Following:
    following = follower()
    following.heard(Welcome(1, CLUSTER, "lb-a", "a1", 10, position, synced), b"", 0)
    return following


class TestFollowing:
    def test_it_says_hello_until_it_is_welcome(self) -> None:
        following = follower()
        assert following.take(HELLO_MS - 1, synced=True) == []
        assert following.take(HELLO_MS, synced=True) == [hello()]

    def test_a_hole_is_asked_for_once(self) -> None:
        following = welcomed()
        following.take(0, synced=True)
        for first in (12, 13, 14):
            assert following.heard(Live(first, 0, True), records((1, 1)), 0) is None
        asked = [m for m in following.take(0, synced=True) if isinstance(m, Resume)]
        assert asked == [Resume(10)]
        assert following.gaps == 1

    def test_what_it_has_is_passed_over(self) -> None:
        following = welcomed()
        entering = following.heard(Live(8, 3, True), records((1, 1), (2, 2), (3, 3)), 0)
        assert entering is not None
        assert (entering.records, entering.tick) == (records((3, 3)), 3)
        assert following.passed_over == 2
        assert following.heard(Live(8, 3, True), records((1, 1), (2, 2), (3, 3)), 0) is None
        assert following.progress.next_seq == 11

    def test_the_other_end_has_started_again(self) -> None:
        following = welcomed(NO_POSITION)
        following.heard(Refused(HELLO_FIRST), b"", 5)
        assert following.standing is Standing.SILENT
        assert following.take(5, synced=True) == [hello("a1", 10, NO_POSITION)]

    @pytest.mark.parametrize("cluster", ["other", ""])
    def test_another_cluster_is_not_heard(self, cluster: str) -> None:
        following = follower()
        following.heard(Welcome(1, cluster, "lb-x", "x", 0, 0, True), b"", 0)
        assert following.standing is Standing.REFUSED
        assert following.heard(Live(0, 0, True), records((1, 1)), 0) is None

    def test_who_is_silent_is_not_there(self) -> None:
        following = welcomed(NO_POSITION)
        assert following.standing.value == "level"
        following.take(CUT_MS - 1, synced=True)
        assert following.standing.value == "level"
        assert hello("a1", 10, NO_POSITION) in following.take(CUT_MS, synced=True)
        assert following.refusal == ""
        assert following.progress.boot == "a1"

    def test_a_follower_s_word_makes_no_sense_to_it(self) -> None:
        following = welcomed()
        with pytest.raises(ValueError, match="a Digests is not for a follower"):
            following.heard(Digests(0), b"", 0)


class TestSync:
    def peers(self, *standings: Standing, synced: bool = True) -> list[Following]:
        made = []
        for standing in standings:
            following = welcomed(synced=synced)
            following.standing = standing
            made.append(following)
        return made

    def test_alone(self) -> None:
        assert Sync(0, 0).look([], 0)

    def test_once_it_has_all_that_a_peer_has(self) -> None:
        sync = Sync(0, 2)
        assert not sync.look(self.peers(Standing.CATCHING_UP), PATIENCE_MS - 1)
        assert not sync.look(self.peers(Standing.LEVEL), SILENCE_MS - 1)
        assert not sync.look(self.peers(Standing.LEVEL, Standing.CATCHING_UP), 10)
        assert sync.look(self.peers(Standing.LEVEL, Standing.LEVEL), 20)
        # What comes later is lag.
        assert sync.look(self.peers(Standing.CATCHING_UP), 30)

    def test_nobody_is_waited_for_for_ever(self) -> None:
        assert Sync(0, 1).look(self.peers(Standing.CATCHING_UP), PATIENCE_MS)
        assert not Sync(0, 1).look(self.peers(Standing.SILENT), SILENCE_MS - 1)
        assert Sync(0, 1).look(self.peers(Standing.SILENT), SILENCE_MS)
        assert not Sync(0, 1).look([], SILENCE_MS - 1), "its name is being resolved"
        late = Sync(0, 1)
        late.begin(PATIENCE_MS)
        assert not late.look([], PATIENCE_MS)

    def test_who_is_not_synced_itself_is_not_waited_for(self) -> None:
        assert Sync(0, 1).look(self.peers(Standing.CATCHING_UP, synced=False), 10)
        assert Sync(0, 1).look(self.peers(Standing.REFUSED), 10)


# --------------------------------------------------------------------------- the words


@pytest.mark.parametrize(
    ("message", "payload"),
    [
        (hello("a1", 5, NO_POSITION), b""),
        (Welcome(1, CLUSTER, "lb", "b", 2, NO_POSITION, False), b""),
        (Live(3, 4, True), b"12345678"),
        (Part(0, NO_POSITION, 9), b""),
        (Credit(1, 2, True), b""),
        (Digests(77), b"xyz"),
    ],
)
def test_a_message_comes_as_it_went(message: ReplicaMessage, payload: bytes) -> None:
    assert decode_replica(encode_replica(message, payload)) == (message, payload)


@pytest.mark.parametrize(
    "frames",
    [
        [],
        [b""],
        [b"hello"],
        [b"dance", b"{}"],
        [b"hello", b"{}"],
        [b"hello", b"{}", b""],
        [b"live", b'{"first":-1,"tick":0,"synced":true}', b""],
        [b"live", b'{"first":0,"tick":0,"synced":true}'],
        [b"credit", b'{"allowed":18446744073709551616,"next_seq":0,"synced":true}'],
        [b"\xff", b"{}"],
    ],
)
def test_what_is_no_message_is_refused(frames: list[bytes]) -> None:
    with pytest.raises(MalformedMessage):
        decode_replica(frames)


def test_another_version_is_refused_by_that_name() -> None:
    frames = encode_replica(hello())
    frames[1] = frames[1].replace(b'"v":1', b'"v":2')
    with pytest.raises(UnknownVersion):
        decode_replica(frames)


def test_nothing_is_known_of_a_teller_at_first() -> None:
    assert follower().progress == NOTHING
