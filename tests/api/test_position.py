"""How far the stream had come: a file that says nothing sensible is as good as none."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from services.api.fold import Position
from services.api.position import FILE_NAME, PositionFile


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    file = PositionFile(tmp_path)
    assert file.load() == {}
    file.save({"health": Position("ab", 7)})
    assert file.load() == {"health": Position("ab", 7)}


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"{",
        b"[1]",
        b'{"health": {"boot": "ab", "seq": -1}}',
        b'{"health": {"boot": "ab", "seq": 9223372036854775807}}',
        b'{"health": {"boot": "ab", "seq": 9223372036854775808}}',
        b'{"health": {"boot": "ab", "seq": "7"}}',
    ],
)
def test_a_damaged_file_is_set_aside_and_the_stream_begins_anew(
    tmp_path: Path, raw: bytes, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / FILE_NAME
    path.write_bytes(raw)
    assert PositionFile(tmp_path).load() == {}
    assert "starting the event stream anew" in capsys.readouterr().out
    assert path.with_name(f"{path.name}.damaged").read_bytes() == raw
    assert not path.exists()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_a_file_that_cannot_be_read_stops_nothing(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / FILE_NAME)
    file = PositionFile(tmp_path)
    assert file.load() == {}
    file.save({"health": Position("ab", 7)})
    assert file.load() == {"health": Position("ab", 7)}
