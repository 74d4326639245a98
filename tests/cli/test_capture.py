"""`gale capture` where there is nothing to capture; tests/dataplane has a dataplane to ask."""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from bus import topics
from bus.commands import CommandError, CommandServer, Handler
from services.cli import capture
from tests.cli.conftest import Gale


@pytest.fixture(autouse=True)
def run_dir(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    # pytest's own folders have names that are too long for a socket.
    with tempfile.TemporaryDirectory(prefix="gale-", dir="/tmp") as made:
        monkeypatch.setenv("GALE_RUN_DIR", made)
        yield Path(made)


@contextlib.contextmanager
def serving(run_dir: Path, answer: Handler) -> Iterator[None]:
    """In the dataplane's place."""
    (run_dir / "bus").mkdir()
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    server = CommandServer(context, topics.command_path(run_dir, topics.DATAPLANE))
    stopping = threading.Event()

    def serve() -> None:
        while not stopping.wait(0.005):
            server.serve(answer)
        server.close()

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
        context.term()


def test_without_a_dataplane_it_says_so(
    gale: Gale, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "TIMEOUT_MS", 50)
    result = gale("capture", "tcp", "-w", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert result.stderr.splitlines() == [
        "the dataplane does not answer: is it running, on this machine?"
        " supervisorctl status gale:dataplane"
    ]


def test_a_file_that_cannot_be_written_is_named(gale: Gale, tmp_path: Path) -> None:
    result = gale("capture", "-w", str(tmp_path / "no" / "such"))
    assert result.exit_code == 1
    assert result.stderr == f"{tmp_path}/no/such: No such file or directory\n"


@pytest.mark.parametrize(
    "arguments", [(), ("-w",), ("-w", "x", "--packets", "0"), ("-w", "x", "--bytes", "9000")]
)
def test_wrong_use(gale: Gale, arguments: tuple[str, ...]) -> None:
    assert gale("capture", *arguments).exit_code == 2


def test_what_the_dataplane_says_is_told(gale: Gale, run_dir: Path, tmp_path: Path) -> None:
    """The kernel may refuse the programs: that is known only once they have been loaded."""
    asked = []

    def answer(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        asked.append((verb, arguments))
        if verb == "capture":
            return {"id": "one"}
        raise CommandError("the capture has ended: the programs of capture: no")

    with serving(run_dir, answer):
        result = gale("capture", "udp", "port", "53", "--seconds", "5", "-w", str(tmp_path / "x"))
    assert result.exit_code == 1
    assert result.stderr == "the capture has ended: the programs of capture: no\n"
    wanted = {"filter": ["udp", "port", "53"], "kept": 2048, "seconds": 5}
    assert asked == [("capture", wanted), ("capture_renew", {"id": "one"})]


def test_an_interrupt_at_any_moment_ends_the_capture(
    gale: Gale, run_dir: Path, tmp_path: Path
) -> None:
    asked = []

    def answer(verb: str, _: dict[str, Any]) -> dict[str, Any]:
        asked.append(verb)
        if verb == "capture_renew":
            os.kill(os.getpid(), signal.SIGINT)
        return {"id": "one", "on": False, "lost": 0}

    with serving(run_dir, answer):
        result = gale("capture", "-w", str(tmp_path / "x"))
    assert (result.exit_code, result.stderr) == (1, "interrupted before it had begun\n")
    assert (asked[0], asked[-1]) == ("capture", "capture_end")
