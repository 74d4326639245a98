"""The shell of health, one turn at a time: in which order, how often, and by which clock."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest

from bus import topics
from bus.orders import Asked, Order, OrderKind
from bus.socket import Publisher
from bus.states import Ban, CommittedTable, NodeTable
from bus.topics import Topic
from bus.words import NodeState, ServingStatus
from services.health import main
from services.health.main import MOST_UNDRAINED, REPUBLISH_MS, SETTLE_MS
from tests.health.processes import TIMEOUT_MS
from tests.health.rig import table
from tests.health.turns import Turns, turns

UP, DOWN, BANNED = NodeState.UP, NodeState.DOWN, NodeState.BANNED
NOT_SERVING = ServingStatus.NOT_SERVING
HOUR_MS = 3_600_000
TURN_MS = 50
BANS = 'black_list_after_fails = 1\nblack_list_expiry = "1h"'


def banned(of: Turns) -> None:
    of.bring_up()
    of.say(NOT_SERVING)
    assert of.node().state is BANNED


# ----------------------------------------------------------------- input before deadlines


def test_while_input_waits_nobody_is_judged_and_not_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with turns(monkeypatch) as of:
        of.bring_up()
        monkeypatch.setattr(main, "DRAIN_MS", 0)  # so no turn reads all that there is
        of.pass_by(TIMEOUT_MS + 1)
        for _ in range(MOST_UNDRAINED):
            of.turn()
            assert of.node().state is UP
        of.turn()
        assert of.node().state is DOWN


def test_who_comes_late_has_not_listened(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns(monkeypatch) as of:
        of.bring_up()
        of.now_ms += 2 * TIMEOUT_MS  # the process stood still
        of.turn()
        assert of.node().state is UP
        of.pass_by(TIMEOUT_MS + 1)
        of.turn()
        assert of.node().state is DOWN


# ----------------------------------------------------------------- what is kept


def test_what_is_published_has_been_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns(monkeypatch, health_options=BANS) as of:
        of.bring_up()
        publish = of.process._publisher.publish
        kept: dict[Topic, str] = {}

        def looked_up(topic: Topic, data: Any) -> object:
            kept[topic] = of.kept()["state"]
            return publish(topic, data)

        monkeypatch.setattr(of.process._publisher, "publish", looked_up)
        of.say(NOT_SERVING)
        of.until(lambda: Topic.NODE_BANNED in kept and Topic.STATE_VIEW in kept)
        assert {kept[topic] for topic in (Topic.NODE_BANNED, Topic.STATE_VIEW)} == {BANNED}


def test_a_disk_that_is_full_is_tried_once_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns(monkeypatch) as of:
        of.bring_up()
        of.until(lambda: of.kept()["state"] == UP)
        save = of.process._file.save
        tries: list[int] = []

        def full(*_: object) -> None:
            tries.append(of.now_ms)
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(of.process._file, "save", full)
        for _ in range(100):  # the node falls silent in them, and then there is no more to keep
            of.pass_by(TURN_MS)
            of.turn()
        assert of.node().state is DOWN
        del tries[:]
        for _ in range(100):
            of.pass_by(TURN_MS)
            of.turn()
        assert len(tries) >= 100 * TURN_MS // SETTLE_MS - 1
        assert all(later - earlier >= SETTLE_MS for earlier, later in pairwise(tries))
        monkeypatch.setattr(of.process._file, "save", save)
        of.pass_by(SETTLE_MS)
        of.turn()
        assert of.kept()["state"] == DOWN


def test_a_ban_ages_by_this_machines_own_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns(monkeypatch, health_options=BANS) as of:
        banned(of)
        before_ms = of.node().banned_for_ms
        of.end()
        record = json.loads(of.path.read_text())
        record["time_ms"] -= 2 * HOUR_MS  # as if the wall clock had been put on since
        of.path.write_text(json.dumps(record))
        of.now_ms += 5_000
        of.start()
        assert of.node().banned_for_ms == before_ms - 5_000


# ----------------------------------------------------------------- the agreed table, and readers


@contextlib.contextmanager
def agreed(of: Turns, told: NodeTable) -> Iterator[Publisher]:
    """A quorum process that says so, by the clock of this machine; `serve` it meanwhile."""
    path = topics.publisher_path(of.at.run_dir, topics.QUORUM)
    with contextlib.closing(Publisher(of.at.context, path, topics.QUORUM, "lb-0")) as publisher:
        publisher.publish(Topic.STATE_TABLE, CommittedTable(1, told))
        yield publisher


def until(of: Turns, publisher: Publisher, condition: Callable[[], bool]) -> None:
    def holds() -> bool:
        publisher.serve()
        return condition()

    of.until(holds)


def test_a_ban_of_the_table_is_as_old_as_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    told = table(bans=(Ban("node-9@10.81.0.29", 60_000, 3),))
    with (
        turns(monkeypatch, checks_timeout="60s", ahead_ms=20_000) as of,
        agreed(of, told) as publisher,
    ):
        until(of, publisher, of.known)
        assert of.node().state is BANNED
        assert of.node().banned_for_ms <= 40_000


def test_a_pardon_of_the_table_is_carried_out(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns(monkeypatch, health_options=BANS) as of:
        banned(of)
        asked = Asked(of.node().id, OrderKind.PARDON, "ada")
        order = Order("1", asked, epoch=8, remaining_ms=60_000)
        with agreed(of, replace(table(), epoch=8, orders=(order,))) as publisher:
            until(of, publisher, lambda: of.node().state is not BANNED)
        assert of.node().fails == 0


def test_that_a_view_holds_is_said_twice_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    with turns(monkeypatch) as of:
        of.bring_up()
        repeat = of.process._publisher.repeat
        said: list[Topic] = []

        def repeated(topic: Topic) -> None:
            said.append(topic)
            repeat(topic)

        of.until(lambda: not of.process._view_changed)
        monkeypatch.setattr(of.process._publisher, "repeat", repeated)
        of.pass_by(REPUBLISH_MS)
        of.turn()
        assert said.count(Topic.STATE_VIEW) == 1
