"""The flow table of another size under load, and a small one under floods of ten times its size.

The tests build upon each other: the second floods the table that the first has made small.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from e2e.connections import connections
from e2e.held import hold
from e2e.hosts import (
    Hosts,
    LabHosts,
    lab_hosts,
    send_signal,
    serves_again,
    traffic,
    wait_for,
)
from e2e.lab import Plan
from e2e.lab.files import toml_text

ENTRIES, SMALL_ENTRIES = 65_536, 8_192
HALF_OPEN_SHARE = 4
HELD = 500
RATE = 500
IDLE = 200
FORGER_PROGRAM = Path(__file__).with_name("forger.py").read_text()
GONE = "the flow table before this one was empty, and is gone"


def sizes(entries: int) -> dict[str, object]:
    return {
        "conntrack_entries": entries,
        "half_open_entries": entries // HALF_OPEN_SHARE,
        "tcp_time_wait": "2s",
    }


@pytest.fixture(scope="module")
def hosts(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LabHosts]:
    def say(text: str) -> None:
        print(text, file=sys.stderr)

    extra = tmp_path_factory.mktemp("resize") / "extra.toml"
    extra.write_text(toml_text({"dataplane": sizes(ENTRIES)}))
    with lab_hosts(Plan(), say, extra) as machines:
        yield machines


def resize(hosts: Hosts, lb: str, entries: int) -> None:
    path = hosts.environment(lb)["GALE_CONFIG"]
    text = hosts.run(lb, "cat", path).stdout
    for name, value in sizes(entries).items():
        old = next(line for line in text.splitlines() if line.startswith(f"{name} ="))
        new = f"{name} = {value}" if isinstance(value, int) else old
        text = text.replace(old, new)
    done = hosts.run(lb, "tee", path, stdin=text)
    assert done.returncode == 0, done.stderr
    hosts.supervisorctl(lb, "restart", "gale:dataplane")


def capacity(hosts: Hosts, lb: str) -> int:
    """Flows that fit, as the dataplane says; 0 while it says nothing."""
    try:
        return int(hosts.metrics(lb, "gale_conntrack_capacity")[0].value)
    except (OSError, IndexError):
        return 0


@pytest.mark.timeout(420)
def test_another_size_under_load_breaks_nothing(hosts: Hosts, lb: str) -> None:
    """And the process killed in the midst of it; the old table goes once nobody is in it."""
    with hold(hosts, count=HELD, every_ms=1000) as held:
        before = capacity(hosts, lb)
        load = traffic(hosts, RATE)
        try:
            resize(hosts, lb, SMALL_ENTRIES)
            # It compiles first: on a busy machine that takes a while.
            wait_for(lambda: 0 < capacity(hosts, lb) < before, "the new size", timeout_s=150)
            pid = send_signal(hosts, lb, "gale:dataplane", "KILL")
            killed_at = time.monotonic()
            again = partial(serves_again, hosts, lb, "dataplane", pid, killed_at)
            wait_for(again, "the dataplane to serve again", timeout_s=60)
            seen = load.stop()
        finally:
            load.process.kill()
        print(len(seen.results), "requests", seen.errors, seen.slowest_ms, seen.largest_lag_ms)
        assert not seen.failures, seen.errors
        assert held.ask() == HELD
        assert not held.ended
        assert not is_gone(hosts, lb)
    wait_for(lambda: is_gone(hosts, lb), "the old table to be given up", timeout_s=120)


def is_gone(hosts: Hosts, lb: str) -> bool:
    return GONE in hosts.supervisorctl(lb, "tail", "-20000", "gale:dataplane").stdout


@pytest.mark.parametrize(("what", "port"), [("syn", 8080), ("udp", 5300)])
def test_a_flood_of_ten_times_the_table(hosts: Hosts, what: str, port: int) -> None:
    """From invented sources: no established flow is lost, honest clients are served."""
    with (
        hold(hosts, count=IDLE) as held,
        hold(hosts, count=10, udp=True) as asking,
        ThreadPoolExecutor() as pool,
    ):
        assert asking.ask() == 10
        load = pool.submit(connections, hosts, rate=50, seconds=8)
        options = ("--count", str(10 * SMALL_ENTRIES), "--rate", "15000")
        words = ("python3", "-c", FORGER_PROGRAM, what, hosts.vip(), str(port), *options)
        done = hosts.run(hosts.client, *words)
        assert done.stdout.strip() == str(10 * SMALL_ENTRIES), done.stderr
        seen = load.result()
        print(seen.text)
        assert seen.failed == 0, seen.text
        assert held.ask() == IDLE
        assert not held.ended
        assert asking.ask() == 10
        assert not asking.moved
