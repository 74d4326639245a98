"""Flows that a client holds while something happens to them: holder.py's reader.

A test says `hold(hosts, count=…)`, does what it does, and looks at what ended, when and how, or has
all flows asked whether they still live. What the program says comes in by a thread, so everything
here may be waited for.
"""

from __future__ import annotations

import json
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from e2e.hosts import Hosts, wait_for

HOLDER_PROGRAM = Path(__file__).with_name("holder.py").read_text()
ECHO_PORT = 9000
UDP_PORT = 5300
OPEN_S = 60.0


@dataclass(frozen=True, slots=True)
class Said:
    """One thing that became of one flow."""

    event: str
    number: int
    how: str
    at_ms: float
    """Time of day, in milliseconds since 1970, by the client's clock."""


class Held:
    """A running holder.py, all of whose flows are open."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._said: list[dict[str, Any]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        wait_for(lambda: self._of("open") or self._is_over(), "the flows to open", OPEN_S)
        opened = self._of("open")
        if not opened:
            raise RuntimeError(f"the holder ended: {process.communicate()[1]}")
        self.nodes: list[str] = opened[0]["nodes"]
        """Who serves each flow, or did at first."""
        self.ports: list[int] = opened[0]["ports"]
        """The client's own port of each."""

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._said.append(json.loads(line))

    def _is_over(self) -> bool:
        return not self._reader.is_alive()

    def _of(self, event: str) -> list[dict[str, Any]]:
        return [said for said in list(self._said) if said["event"] == event]

    # ------------------------------------------------------------------ what became of them

    def of_node(self, node: str) -> set[int]:
        """The numbers of the flows that a node serves, or did at first."""
        return {number for number, name in enumerate(self.nodes) if name == node}

    @property
    def ended(self) -> dict[int, Said]:
        """By the flow's number. TCP only: a flow of UDP never ends."""
        return {
            said["number"]: Said("ended", said["number"], said["how"], said["at_ms"])
            for said in self._of("ended")
        }

    @property
    def moved(self) -> list[Said]:
        """UDP: whenever another node answered than did before; `how` is its name."""
        return [
            Said("moved", said["number"], said["node"], said["at_ms"]) for said in self._of("moved")
        ]

    @property
    def refusals(self) -> int:
        """UDP: how often the port was unreachable."""
        return len(self._of("refused"))

    def ask(self) -> int:
        """Have each flow that has not ended asked; how many echoed."""
        before = len(self._of("asked"))
        assert self._process.stdin is not None
        self._process.stdin.write("ask\n")
        self._process.stdin.flush()

        def answered() -> list[dict[str, Any]]:
            return self._of("asked")[before:]

        return int(wait_for(answered, "the flows to be asked", OPEN_S)[0]["echoed"])

    def stop(self) -> float:
        """End all flows; the program's own longest lag in milliseconds."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._reader.join(timeout=30)
        self._process.wait(timeout=30)
        return float(self._of("done")[0]["lag_ms"])

    def kill(self) -> None:
        """Whatever it is doing."""
        self._process.kill()
        self._process.wait()


@contextmanager
def hold(
    hosts: Hosts,
    *,
    count: int = 1,
    port: int = 0,
    udp: bool = False,
    every_ms: float = 0,
    source_port: int = 0,
    spare: int = 0,
) -> Iterator[Held]:
    """Flows from the client to the VIP, by default to the lab's echo or udp service.

    `spare`: so many connections may find no place; others are opened instead.
    """
    port = port or (UDP_PORT if udp else ECHO_PORT)
    options = {"--count": count, "--every-ms": every_ms, "--source-port": source_port}
    options["--spare"] = spare
    words = [str(word) for option in options.items() for word in option]
    if udp:
        words.append("--udp")
    program = ("python3", "-c", HOLDER_PROGRAM, hosts.vip(), str(port))
    held = Held(hosts.start(hosts.client, *program, *words))
    try:
        yield held
    finally:
        held.kill()
