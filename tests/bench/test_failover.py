"""What the benchmark of failovers, and the prober that it rests on, say of what was made up."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from e2e import prober
from e2e.bench.failover import CUT, FAST, GALE, LINKS, TARGETS, result
from e2e.bench.report import Line, table
from e2e.failover import Gap, Outage, Seen, read_seen
from e2e.hosts import wait_for

PROGRAM = Path(prober.__file__)
QUIET = Outage(0.0, 0.0, 0, 1.0)
GONE = Outage(180.0, 0.0, 36, 1.0)
AGAIN = Outage(380.0, 60.0, 80, 1.0)


def lines(*gales: Outage) -> dict[str, Line]:
    seen: dict[tuple[str, str], tuple[Outage, ...]] = {
        (who, fault): (QUIET,) * 3 for who in (GALE, FAST) for fault in TARGETS
    }
    seen[GALE, LINKS] = gales
    return {line.name: line for line in result(seen).lines}


def test_the_median_is_judged_and_the_longest_is_told() -> None:
    line = lines(GONE, GONE, AGAIN)["links down: Gale"]
    assert line.judged == 180
    assert line.goal is not None
    assert line.goal.is_met(line.judged)
    assert line.cells[:4] == ("180 (180–280)", "380 (≤ 400)", "0 (0–30)", "60 (≤ 50)")
    assert line.bar.trials == (180, 180, 380)


def test_a_slow_median_misses_the_goal() -> None:
    line = lines(AGAIN, GONE, AGAIN)["links down: Gale"]
    assert line.goal is not None
    assert not line.goal.is_met(line.judged)


def test_only_gale_has_goals_and_faults_stand_together() -> None:
    found = lines(GONE)
    assert [name for name, line in found.items() if line.goal] == [f"{f}: Gale" for f in TARGETS]
    assert list(found)[:2] == ["links down: Gale", "links down: keepalived, 0.1 s"]
    seen = {(who, fault): (QUIET,) for who in (GALE, FAST) for fault in TARGETS}
    assert f"| {CUT}: {FAST} |" in table(result(seen))


# --------------------------------------------------------------------------- what was seen

PERIOD_MS = 5
SEEN = Seen(1000, 940, 0.5, (Gap(5_000.0, 200.0, 39), Gap(9_050.0, 110.0, 21)))


@pytest.mark.parametrize(
    ("begin_ms", "end_ms", "longest_ms"),
    [(0, 1e9, 200), (5_050, 9_000, 200), (5_101, 9_051, 110), (5_101, 9_050, 0), (9_151, 1e9, 0)],
)
def test_a_gap_belongs_to_the_fault_it_began_with(
    begin_ms: float, end_ms: float, longest_ms: float
) -> None:
    """The last answered probe before a fault was sent a little before it."""
    assert SEEN.longest_ms(begin_ms, end_ms) == longest_ms


class Server:
    """Answers datagrams and takes connections, until told to be silent."""

    def __init__(self) -> None:
        self.silent = False
        self.asked = 0
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind(("127.0.0.1", 0))
        self.tcp = socket.create_server(("127.0.0.1", 0), backlog=1000)
        for serve in (self._answer, self._accept):
            threading.Thread(target=serve, daemon=True).start()

    def port(self, kind: str) -> int:
        return int((self.udp if kind == "udp" else self.tcp).getsockname()[1])

    def _answer(self) -> None:
        while True:
            try:
                question, client = self.udp.recvfrom(2048)
            except OSError:
                return
            if client is None:
                return
            self.asked += 1
            if not self.silent:
                self.udp.sendto(b"node-1 " + question, client)

    def _accept(self) -> None:
        while True:
            try:
                self.tcp.accept()[0].close()
            except OSError:
                return
            self.asked += 1

    def wait_for_more(self, count: int = 20) -> None:
        """Until so many more probes have come."""
        until = self.asked + count
        wait_for(lambda: self.asked >= until, f"{count} more probes")

    def close(self) -> None:
        """Shut down first: closing alone would leave the threads waiting for ever."""
        for each in (self.udp, self.tcp):
            with contextlib.suppress(OSError):  # an unconnected one wakes its reader, and complains
                each.shutdown(socket.SHUT_RDWR)
            each.close()


@pytest.fixture
def server() -> Iterator[Server]:
    made = Server()
    yield made
    made.close()


class Prober:
    def __init__(self, server: Server, kind: str) -> None:
        words = [sys.executable, str(PROGRAM), "127.0.0.1", str(server.port(kind)), "--kind", kind]
        self._process = subprocess.Popen(
            [*words, "--until-input-ends"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def stop(self) -> Seen:
        said, _ = self._process.communicate(timeout=30)
        first, outcome = said.splitlines()
        assert first == "answered"
        return read_seen(json.loads(outcome))


@pytest.mark.parametrize("kind", ["udp", "syn"])
def test_at_rest_every_probe_is_answered(server: Server, kind: str) -> None:
    client = Prober(server, kind)
    server.wait_for_more()
    seen = client.stop()
    assert seen.sent >= 20
    assert (seen.answered, seen.gaps) == (seen.sent, ())


def test_a_silence_is_one_gap_as_long_as_it_was(server: Server) -> None:
    client = Prober(server, "udp")
    server.wait_for_more()
    begin_ms = time.monotonic() * 1000
    server.silent = True
    time.sleep(0.4)
    server.silent = False
    end_ms = time.monotonic() * 1000
    server.wait_for_more()
    seen = client.stop()
    longest = max(seen.gaps, key=lambda gap: gap.ms)
    silence_ms = end_ms - begin_ms
    # Who holds up this process, or the server's thread, makes the gap longer, and never shorter.
    assert silence_ms - 2 * PERIOD_MS < longest.ms < 3 * silence_ms + 2 * seen.lag_ms
    assert begin_ms - 2 * PERIOD_MS - seen.lag_ms < longest.from_ms < end_ms
    assert sum(gap.lost for gap in seen.gaps) == seen.sent - seen.answered
