"""The registry's file: what it cannot be read from is set aside, said, and stops nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from bus.states import NodeService
from bus.words import NodeState
from services.health.keeping import KeptNode
from services.health.statefile import NOTHING, StateFile

BOOT = "1e30b1d5"
NODE = KeptNode(
    "n@10.0.0.1", "n", "10.0.0.1", NodeState.UP, 1, (NodeService("default", 80),), 2, 5_000
)


def test_what_is_saved_is_loaded_with_the_time_that_has_passed(tmp_path: Path) -> None:
    file = StateFile(tmp_path / "not" / "yet", BOOT)
    assert file.load(0, 0) == NOTHING
    file.save((NODE,), 1_000, 50_000)
    assert file.load(3_000, 0) == ((NODE,), 2_000, "")
    later = StateFile(tmp_path / "not" / "yet", "another boot")
    assert later.load(0, 57_000) == ((NODE,), 7_000, "")
    assert later.load(0, 10) == ((NODE,), 0, ""), "a clock that was set back makes no ban longer"


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight", -1),
        ("weight", 2**32),
        ("fails", 2**63 - 1),
        ("fails", -1),
        ("ban_remaining_ms", 2**63),
        ("ban_remaining_ms", -5),
        ("address", "::1"),
        ("address", ""),
        ("services", [{"name": "default", "port": 70_000}]),
        ("state", "dancing"),
        ("monotonic_ms", 2**64),
        ("time_ms", -(2**80)),
        ("v", 2),
        ("v", True),
    ],
)
def test_an_absurd_file_is_set_aside_and_said(tmp_path: Path, key: str, value: Any) -> None:
    file = StateFile(tmp_path, BOOT)
    file.save((NODE,), 0, 0)
    record = json.loads(file.path.read_text())
    holder = record if key in record else record["nodes"][0]
    holder[key] = value
    text = json.dumps(record)
    file.path.write_text(text)
    kept = file.load(0, 0)
    assert kept.nodes == ()
    assert f"{file.path}: " in kept.complaint
    assert (tmp_path / "health.json.damaged").read_text() == text
    assert file.load(0, 0) == NOTHING


@pytest.mark.parametrize("raw", [b"", b"{", b"[]", b"\xff\xfe", b"null", b"[" * 100_000])
def test_what_is_no_record_is_set_aside_and_said(tmp_path: Path, raw: bytes) -> None:
    file = StateFile(tmp_path, BOOT)
    file.path.write_bytes(raw)
    assert file.load(0, 0).complaint
    assert file.load(0, 0) == NOTHING


def test_what_was_never_saved_is_set_aside_and_said(tmp_path: Path) -> None:
    file = StateFile(tmp_path, BOOT)
    os.mkfifo(file.path)
    assert "it is no regular file; set aside as" in file.load(0, 0).complaint
    assert file.load(0, 0) == NOTHING
