"""What the quorum process may take of a machine at real-time priority."""

from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

TURN_S = 0.3
NEVER_WAITS = f"""
from services.quorum import realtime
realtime.LONGEST_TURN_S = {TURN_S}
realtime.claim()
while True:
    pass
"""
WAITS_OFTEN = f"""
import time
from services.quorum import realtime
realtime.LONGEST_TURN_S = {TURN_S}
realtime.claim()
end = time.thread_time() + {2 * TURN_S}
while time.thread_time() < end:
    for _ in range(100_000):
        pass
    time.sleep(0.001)
"""


@pytest.fixture(autouse=True)
def _may_be_realtime() -> None:
    before = os.sched_getscheduler(0)
    try:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))
    except PermissionError:
        pytest.skip("this machine allows no real-time priority, so there is nothing to bound")
    os.sched_setscheduler(0, before, os.sched_param(0))


def ended_by(program: str) -> int:
    return subprocess.run([sys.executable, "-c", program], timeout=60, check=False).returncode


def test_a_loop_that_never_waits_is_ended_and_the_machine_goes_on() -> None:
    assert ended_by(NEVER_WAITS) == -signal.SIGXCPU


def test_a_busy_one_that_waits_between_its_turns_is_not() -> None:
    assert ended_by(WAITS_OFTEN) == 0
