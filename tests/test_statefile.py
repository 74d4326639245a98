"""A state file is the old one or the new one, whatever happens."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.statefile import StateFile, StrangeFileError


def test_what_was_saved_is_loaded_and_nothing_before(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "deep" / "state.json")
    assert file.load() is None
    file.save(b"one")
    file.save(b"two")
    assert StateFile(file.path).load() == b"two"
    assert file.path.stat().st_mode & 0o777 == 0o600
    assert list(file.path.parent.iterdir()) == [file.path]
    file.remove()
    file.remove()
    assert file.load() is None


@pytest.mark.parametrize("durable", [False, True])
def test_a_full_disk_leaves_the_old_one_and_nothing_half_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    file = StateFile(tmp_path / "state", durable=durable)
    file.save(b"old")

    def full(self: StateFile, content: bytes) -> None:
        self.path.with_name("state.tmp").write_bytes(content[:1])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr(StateFile, "_write", full)
        with pytest.raises(OSError, match="No space"):
            file.save(b"new")
    assert file.load() == b"old"
    assert list(tmp_path.iterdir()) == [file.path]


def test_what_makes_no_sense_is_set_aside_and_named(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "state")
    file.save(b"nonsense")
    assert file.set_aside("no sense") == (
        f"{file.path}: no sense; set aside as {tmp_path / 'state.damaged'}"
    )
    assert file.load() is None
    assert file.damaged.read_bytes() == b"nonsense"


@pytest.mark.parametrize("durable", [False, True])
def test_only_a_durable_one_waits_for_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, durable: bool
) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", synced.append)
    StateFile(tmp_path / "state", durable=durable).save(b"x")
    assert len(synced) == (2 if durable else 0)


def test_a_directory_that_vanished_takes_a_promise_with_it(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    with pytest.raises(FileNotFoundError):
        StateFile(gone / "state", durable=True).save(b"x")
    assert not gone.exists()
    StateFile(gone / "state").save(b"x")
    assert (gone / "state").read_bytes() == b"x"


def fifo(path: Path) -> None:
    os.mkfifo(path)


def endless(path: Path) -> None:
    path.symlink_to("/dev/zero")


def far_too_long(path: Path) -> None:
    with path.open("wb") as opened:
        opened.truncate(1 << 34)


@pytest.mark.parametrize("make", [fifo, endless, far_too_long, Path.mkdir])
def test_what_was_never_saved_is_not_waited_for_and_can_be_set_aside(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    file = StateFile(tmp_path / "state")
    make(file.path)
    with pytest.raises(StrangeFileError):
        file.load()
    file.set_aside("no sense")
    assert file.load() is None
    file.save(b"new")
    assert file.load() == b"new"
