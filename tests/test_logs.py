"""The log: one line an event, and nothing in it that only Python understands."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import sys
from enum import StrEnum
from pathlib import Path
import structlog
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
        ("'error': OSError(5, 'Input/output error')", 'error="[Errno 5] Input/output error"'),
    ],
)
def test_values_are_what_they_say(values: str, shown: str) -> None:
    assert line("info", "it happened", values) == f'level=info event="it happened" {shown}'


def test_levels() -> None:
    assert line("warning", "waiting") == "level=warning event=waiting"
    assert line("error", "waiting").startswith("level=error")


@pytest.mark.parametrize("name", ["health", "quorum", "dataplane", "api", "node"])
def test_every_process_sets_its_log_up(name: str) -> None:
    source = Path(__file__).parents[1] / "services" / name / "main.py"
    assert "\n    logs.set_up()\n" in source.read_text()
