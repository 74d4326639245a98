"""Real processes on a bus of their own."""

from __future__ import annotations

import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

TIMEOUT_S = 30

Lines = list[dict[str, Any]]


class Peer:
    """A child that runs one role of `peer.py`."""

    def __init__(self, role: str, run_dir: Path) -> None:
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("peer.py")), role, str(run_dir)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        self.pid = self._process.pid
        self.log: list[str] = []
        self._lines: queue.Queue[dict[str, Any]] = queue.Queue()
        for read in (self._read_lines, self._read_log):
            threading.Thread(target=read, daemon=True).start()

    def _read_lines(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(json.loads(line))

    def _read_log(self) -> None:
        assert self._process.stderr is not None
        self.log.extend(self._process.stderr)

    def expect(self, wanted: Callable[[dict[str, Any]], bool]) -> Lines:
        """All lines up to the first that is wanted, that one last."""
        lines: Lines = []
        while not lines or not wanted(lines[-1]):
            try:
                lines.append(self._lines.get(timeout=TIMEOUT_S))
            except queue.Empty:
                raise AssertionError(f"after {lines[-3:]}: {self.log}") from None
        return lines

    def ready(self) -> Any:
        return self.expect(lambda line: "ready" in line)[-1]["ready"]

    def silent(self) -> bool:
        return self._lines.empty()

    def order(self, **what: Any) -> None:
        """Have a publisher do something, and wait until it is done."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what) + "\n")
        self._process.stdin.flush()
        self.expect(lambda line: line.get("done") == what)

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def kill(self) -> None:
        self._process.kill()
        self._process.wait()

    def resident_bytes(self) -> int:
        pages = int(Path(f"/proc/{self.pid}/statm").read_text().split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE")


@pytest.fixture
def run_dir() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="gale-", dir="/tmp"))
    yield path
    shutil.rmtree(path)


@pytest.fixture
def context() -> Iterator[zmq.Context[zmq.Socket[bytes]]]:
    made: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    yield made
    made.destroy(linger=0)


@pytest.fixture
def start(run_dir: Path) -> Iterator[Callable[[str], Peer]]:
    peers: list[Peer] = []

    def start_peer(role: str) -> Peer:
        peers.append(Peer(role, run_dir))
        return peers[-1]

    yield start_peer
    for peer in peers:
        peer.signal(signal.SIGCONT)
        peer.kill()
