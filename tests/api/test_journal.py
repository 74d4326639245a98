"""The event log on disk: read back whole, or as far as it makes sense."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from bus import topics
from bus.topics import Topic
from services.api import journal, stream
from services.api.journal import FILE_NAME, Journal
from services.api.stream import Entry, EventLog
from services.statefile import StateFile
from tests.api.samples import down, envelope, node, view

EVENT = envelope(topics.HEALTH, Topic.NODE_DOWN, down(), boot="origin", seq=9)
STATE = envelope(topics.HEALTH, Topic.STATE_VIEW, view(node()))


def written(directory: Path, count: int, boot: str = "a") -> list[Entry]:
    log, kept = EventLog(boot), Journal(directory)
    entries = []
    for _ in range(count):
        entries.append(log.append(Topic.NODE_DOWN, EVENT))
        kept.keep_up(log)
    return entries


def bodies(entries: list[Entry]) -> list[bytes]:
    return [entry.body for entry in entries]


def test_nothing_is_there_at_first(tmp_path: Path) -> None:
    assert Journal(tmp_path).load() == []


def test_it_comes_back_to_the_byte(tmp_path: Path) -> None:
    said = written(tmp_path, 3)
    assert bodies(Journal(tmp_path).load()) == bodies(said)


def test_a_state_comes_back_without_its_data(tmp_path: Path) -> None:
    log, kept = EventLog("a"), Journal(tmp_path)
    log.append(Topic.STATE_NODES, STATE)
    log.append(Topic.NODE_DOWN, EVENT)
    kept.keep_up(log)
    assert [entry.data is None for entry in Journal(tmp_path).load()] == [True, False]


def test_a_half_written_line_was_never_sent(tmp_path: Path) -> None:
    said = written(tmp_path, 3)
    file = tmp_path / FILE_NAME
    file.write_bytes(file.read_bytes()[:-7])
    assert bodies(Journal(tmp_path).load()) == bodies(said[:2])


@pytest.mark.parametrize("damage", [b"nonsense", b"{}", b"[]", b"\xff\xfe", b'{"topic":"no."}'])
def test_behind_a_damaged_line_nothing_can_be_told(tmp_path: Path, damage: bytes) -> None:
    said = written(tmp_path, 3)
    file = tmp_path / FILE_NAME
    lines = file.read_bytes().split(b"\n")
    lines[1] = damage
    file.write_bytes(b"\n".join(lines))
    assert bodies(Journal(tmp_path).load()) == bodies(said[:1])


def test_a_number_that_is_missing_ends_it(tmp_path: Path) -> None:
    said = written(tmp_path, 4)
    file = tmp_path / FILE_NAME
    lines = file.read_bytes().split(b"\n")
    del lines[2]
    file.write_bytes(b"\n".join(lines))
    assert bodies(Journal(tmp_path).load()) == bodies(said[:2])


def test_it_is_no_longer_than_the_log_and_some(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (journal, stream):
        monkeypatch.setattr(module, "KEPT_MESSAGES", 4)
    monkeypatch.setattr(journal, "SLACK", 2)
    said = written(tmp_path, 20)
    lines = (tmp_path / FILE_NAME).read_bytes().count(b"\n")
    assert 4 <= lines <= 6
    assert bodies(Journal(tmp_path).load()) == bodies(said[-4:])


def test_after_a_fault_it_is_written_anew_and_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    log, kept = EventLog("a"), Journal(tmp_path)
    log.append(Topic.NODE_DOWN, EVENT)
    kept.keep_up(log)
    with monkeypatch.context() as patched:
        patched.setattr(journal, "_append", full)
        patched.setattr(StateFile, "save", full)
        log.append(Topic.NODE_DOWN, EVENT)
        kept.keep_up(log)
    log.append(Topic.NODE_DOWN, EVENT)
    kept.keep_up(log)
    assert bodies(Journal(tmp_path).load()) == bodies(log.after(0))


def test_a_file_that_was_removed_is_written_anew(tmp_path: Path) -> None:
    log, kept = EventLog("a"), Journal(tmp_path)
    for _ in range(3):
        log.append(Topic.NODE_DOWN, EVENT)
        kept.keep_up(log)
        (tmp_path / FILE_NAME).unlink()
    assert Journal(tmp_path).load() == []
    log.append(Topic.NODE_DOWN, EVENT)
    kept.keep_up(log)
    assert bodies(Journal(tmp_path).load()) == bodies(log.after(0))


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_never_was_a_journal_is_not_waited_for(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / FILE_NAME)
    assert Journal(tmp_path).load() == []
    said = written(tmp_path, 3)
    assert bodies(Journal(tmp_path).load()) == bodies(said)
