"""What is wanted on the disk gets there, is tried again, and is complained of."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from services.quorum.durable import BLANK, HardState, Persist
from services.quorum.storage import Storage
from services.quorum.writing import RETRY_MS, SILENT_DISK, SILENT_MS, News, Writing

ONE, TWO = Persist(1, HardState(1, "lb-0", None)), Persist(2, HardState(2, None, None))
ENDED_S = 10.0


class Disk(Storage):
    """A directory whose writes take until they are let go, and fail if that is said."""

    def __init__(self, directory: Path) -> None:
        super().__init__(directory, "boot")
        self.may_go = threading.Semaphore(0)
        self.refuses = False

    def save(self, state: HardState, now_ms: int) -> None:
        self.may_go.acquire()
        if self.refuses:
            raise OSError(28, "No space left on device")
        super().save(state, now_ms)


class Rig:
    """A disk, what is written to it, and a wait until the writer says something."""

    def __init__(self, directory: Path) -> None:
        self.disk = Disk(directory)
        self._woken = threading.Semaphore(0)
        self.writing = Writing(self.disk, BLANK, self._woken.release)

    def let_go(self) -> None:
        """One write ends."""
        self.disk.may_go.release()
        assert self._woken.acquire(timeout=ENDED_S)


@pytest.fixture
def made(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def test_what_was_written_is_said_once_and_is_what_is_there(made: Rig) -> None:
    assert made.writing.is_done
    made.writing.want(ONE, 0)
    assert made.writing.turn(1) == News()
    assert not made.writing.is_done
    assert made.writing.stored == BLANK
    made.let_go()
    assert made.writing.turn(2) == News(mark=1)
    assert made.writing.turn(3) == News()
    assert made.writing.is_done
    assert made.writing.stored == ONE.state
    assert made.disk.load(4) == (ONE.state, "")


def test_a_disk_that_refuses_is_asked_again_a_second_later(made: Rig) -> None:
    made.disk.refuses = True
    made.writing.want(ONE, 0)
    assert made.writing.next_due_ms() is None, "it is under way"
    made.let_go()
    assert made.writing.turn(5) == News(trouble=f"{made.disk.path}: No space left on device")
    assert made.writing.next_due_ms() == 5 + RETRY_MS
    made.disk.refuses = False
    assert made.writing.turn(4 + RETRY_MS) == News()
    assert made.writing.next_due_ms() == 5 + RETRY_MS, "not yet"
    assert made.writing.turn(5 + RETRY_MS) == News()
    assert made.writing.next_due_ms() is None
    made.let_go()
    assert made.writing.turn(6 + RETRY_MS) == News(mark=1)


def test_a_disk_that_is_silent_is_complained_of_each_second(made: Rig) -> None:
    made.writing.want(ONE, 0)
    assert made.writing.turn(SILENT_MS - 1) == News()
    said = News(trouble=f"{made.disk.path}: {SILENT_DISK}")
    assert made.writing.turn(SILENT_MS) == said
    assert made.writing.turn(SILENT_MS + 1) == News()
    assert made.writing.turn(2 * SILENT_MS) == said
    made.let_go()
    assert made.writing.turn(2 * SILENT_MS + 1) == News(mark=1)
    made.writing.want(TWO, 2 * SILENT_MS + 2)
    made.let_go()
    assert made.writing.turn(2 * SILENT_MS + 3) == News(mark=2)
