"""The log: one line an event, and nothing in it that only Python understands."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from services import logs

PROGRAM = """
import sys
from enum import StrEnum
from pathlib import Path
import structlog
from pyroute2.netlink.exceptions import NetlinkError
from bus.words import (
    Mode,
    NodeState,
)
from services import logs

logs.set_up()
log = structlog.get_logger()
log.{level}({event!r}, **{{{values}}})
"""


def line(level: str, event: str, values: str = "") -> str:
    text = PROGRAM.format(level=level, event=event, values=values)
    done = subprocess.run(
        [sys.executable, "-c", text], capture_output=True, text=True, check=True, cwd=Path.cwd()
    )
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    timestamp, _, rest = done.stderr.rstrip("\n").partition(" ")
    assert timestamp.startswith("timestamp=20")
    assert timestamp.endswith("Z")
    return rest


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ("'path': Path('/etc/gale/lb.toml')", "path=/etc/gale/lb.toml"),
        ("'state': NodeState.UP, 'mode': Mode.L4", "state=up mode=l4"),
        ("'changes': ('a up -> down', 'b new')", 'changes="a up -> down, b new"'),
        (
            "'restart_needed': ['local.name', 'bus.events']",
            'restart_needed="local.name, bus.events"',
        ),
        ("'leader': None, 'restart_needed': []", "leader= restart_needed="),
        ("'ready': True", "ready=true"),
        ("'lag_ms': 327", "lag_ms=327"),
        ("'reason': 'no heartbeat'", 'reason="no heartbeat"'),
        ("'reason': 'two\\nlines'", r"reason=two\nlines"),
        ("'verdicts': {'tcp.pass': 7}", "verdicts=tcp.pass:7"),
        ("'raw': b'ab'", "raw=ab"),
        ("'error': OSError(5, 'Input/output error')", 'error="Input/output error"'),
        (
            "'error': IsADirectoryError(21, 'Is a directory', '/run/x')",
            'error="/run/x: Is a directory"',
        ),
        ("'why': NetlinkError(1, 'not now')", 'why="Operation not permitted"'),
        ("'why': ValueError()", "why=ValueError"),
        ("'why': ValueError('no sense')", 'why="no sense"'),
    ],
)
def test_values_are_what_they_say(values: str, shown: str) -> None:
    assert line("info", "it happened", values) == f'level=info event="it happened" {shown}'


def test_levels() -> None:
    assert line("warning", "waiting") == "level=warning event=waiting"
    assert line("error", "waiting").startswith("level=error")


@pytest.mark.parametrize("name", ["health", "quorum", "dataplane", "api", "node"])
def test_every_process_starts_by_the_same_door(name: str) -> None:
    source = Path(__file__).parents[1] / "services" / name / "main.py"
    assert "    process.launch(" in source.read_text()


def test_json_has_the_same_names_and_keeps_numbers() -> None:
    text = PROGRAM.replace("logs.set_up()", 'logs.set_up("json")').format(
        level="info",
        event="it happened",
        values="'lag_ms': 327, 'state': NodeState.UP, 'path': Path('/x'), 'many': ('a', None)",
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, check=True)
    said = json.loads(done.stderr)
    assert said.pop("timestamp").startswith("20")
    assert said == {
        "event": "it happened",
        "level": "info",
        "lag_ms": 327,
        "state": "up",
        "path": "/x",
        "many": ["a", None],
    }


def test_a_level_below_the_one_wanted_is_not_said() -> None:
    text = PROGRAM.replace("logs.set_up()", 'logs.set_up(level="error")')
    for level, lines in (("warning", 0), ("error", 1)):
        program = text.format(level=level, event="x", values="")
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True)
        assert done.stderr.count(b"\n") == lines


def test_a_full_pipe_drops_lines_counts_them_and_holds_nobody_up() -> None:
    reading, writing = os.pipe()
    line = logs.Line(writing)
    written = 0
    while not line.dropped:
        line.write("x" * 1_000)
        written += 1
        assert written < 10_000
    line.write("y" * 1_000)
    assert line.dropped == 2
    while line.dropped:
        os.read(reading, 1 << 16)
        line.write("z")
    rest = os.read(reading, 1 << 20)
    while b"z" not in rest:
        rest += os.read(reading, 1 << 20)
    assert rest.endswith(b"z dropped_before=2\n")
    assert b"y" not in rest
    os.close(writing)
    os.close(reading)


def test_a_pipe_that_nobody_reads_any_more_ends_no_process() -> None:
    reading, writing = os.pipe()
    line = logs.Line(writing)
    os.close(reading)
    line.write("x")
    assert line.dropped == 1
    os.close(writing)


def test_what_one_event_may_say_is_limited_and_what_was_not_said_is_counted() -> None:
    budget = logs.Budget(lines=3, span_ms=1_000)
    assert [budget.admit("a", 0) for _ in range(5)] == [0, 0, 0, None, None]
    assert budget.admit("b", 0) == 0
    assert budget.admit("a", 999) is None
    assert budget.admit("a", 1_000) == 3
    assert budget.admit("a", 1_001) == 0


def test_very_many_events_take_no_memory_without_end() -> None:
    budget = logs.Budget()
    for number in range(10 * logs.MOST_EVENTS_COUNTED):
        budget.admit(f"event {number}", 0)
    assert len(budget._spans) <= logs.MOST_EVENTS_COUNTED
