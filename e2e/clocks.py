"""A load balancer whose wall clock is wrong, for as long as a block lasts.

Nobody sets the machine's own clock: the processes of that one LB are started with a module before
them that tells them another time. Their monotonic clock, and the kernel's, are what they were.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.hosts import LabHosts
from e2e.lab import plan

AHEAD_S = 3_600
MODULE = f"""\
import time

_time, _time_ns = time.time, time.time_ns
time.time = lambda: _time() + {AHEAD_S}
time.time_ns = lambda: _time_ns() + {AHEAD_S} * 1_000_000_000
"""


@contextmanager
def an_hour_ahead(hosts: LabHosts, lb: str) -> Iterator[None]:
    """All processes of the LB are started again, before and after."""
    config = plan.supervisor_conf(lb)
    usual = config.read_text()
    directory = plan.home(lb) / "clock"
    directory.mkdir(mode=0o755)
    (directory / "sitecustomize.py").write_text(MODULE)
    config.write_text(usual.replace("environment=", f'environment=PYTHONPATH="{directory}",', 1))
    try:
        _start_anew(hosts, lb)
        yield
    finally:
        config.write_text(usual)
        _start_anew(hosts, lb)


def _start_anew(hosts: LabHosts, lb: str) -> None:
    # supervisord reads what its children find in their environment when it starts, and not again.
    hosts.run(lb, "kill", "-KILL", str(hosts.supervisord_pid(lb)))
    hosts.start_supervisord(lb)
