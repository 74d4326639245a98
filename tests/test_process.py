"""What all processes have in common: how they start, fail, hear signals and know they are late."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from services.process import Lateness

PROGRAM = """
from pathlib import Path
from conf import load_lb
from services import process

def run(paths, config):
    {run}

process.launch("gale-test", "A test.", load_lb, lambda paths: Path({path!r}), run)
"""
FILE = """
[local]
net_interface_private = "lo"
net_interface_public = "lo"
[log]
{log}
"""


def program(tmp_path: Path, run: str, log: str = "") -> list[str]:
    path = tmp_path / "lb.toml"
    path.write_text(FILE.format(log=log))
    return [sys.executable, "-c", PROGRAM.format(run=run, path=str(path))]


def test_a_wrong_file_ends_it_with_2_and_the_line(tmp_path: Path) -> None:
    words = program(tmp_path, "raise SystemExit(7)", 'format = "xml"')
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "lb.toml:6: log.format" in done.stderr


def test_a_fault_ends_it_with_1_in_one_line_and_not_within_a_second(tmp_path: Path) -> None:
    begun_s = time.monotonic()
    words = program(tmp_path, "raise ValueError('the reason')")
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert time.monotonic() - begun_s >= 1
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "level=critical" in done.stderr
    assert "ValueError: the reason" in done.stderr


def test_the_file_says_how_to_log(tmp_path: Path) -> None:
    run = "import structlog; structlog.get_logger().error('x')"
    for log, start in (("", "timestamp="), ('format = "json"', "{")):
        words = program(tmp_path, run, log)
        done = subprocess.run(words, capture_output=True, text=True, check=True)
        assert done.stderr.startswith(start)


@pytest.mark.parametrize(
    ("number", "said"),
    [(signal.SIGTERM, "stop"), (signal.SIGINT, "stop"), (signal.SIGHUP, "reload")],
)
def test_a_signal_wakes_the_loop_and_is_taken_once(
    tmp_path: Path, number: signal.Signals, said: str
) -> None:
    run = (
        "loop = process.Loop(); print('ready', flush=True); loop.wait(60_000);"
        " s = loop.signals; print('stop' if s.take_stop() else '', 'reload' if s.take_reload()"
        " else '', s.take_stop(), s.take_reload(), flush=True)"
    )
    started = subprocess.Popen(program(tmp_path, run), stdout=subprocess.PIPE, text=True)
    assert started.stdout is not None
    assert started.stdout.readline() == "ready\n"
    os.kill(started.pid, number)
    assert started.stdout.readline().split() == [said, "False", "False"]
    assert started.wait() == 0


def test_what_has_woken_the_loop_is_seen_to(tmp_path: Path) -> None:
    run = (
        "loop = process.Loop(); loop.signals.wake();"
        " print(len(loop.wait(60_000)), len(loop.wait(0)))"
    )
    done = subprocess.run(program(tmp_path, run), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["1", "0"]


def test_who_has_not_listened_for_so_long_is_late_by_that(tmp_path: Path) -> None:
    run = (
        "now_ms = process.monotonic_ms(); loop = process.Loop(); loop.wait(0, now_ms - 5_000);"
        " print(loop.late_ms(now_ms))"
    )
    done = subprocess.run(program(tmp_path, run), capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["5000"]


def test_late_is_what_a_turn_begins_after_the_moment_it_waited_for() -> None:
    lateness = Lateness(1_000)
    assert lateness.begins(1_000) == 0
    lateness.waits(1_010, 100)
    assert lateness.begins(1_050) == 0, "woken by input"
    assert lateness.begins(1_110) == 0
    assert lateness.begins(1_400) == 290
    lateness.waits(2_000, 0)
    assert lateness.begins(2_030) == 30, "what the turn itself took after it had listened"
