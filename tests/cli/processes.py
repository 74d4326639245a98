"""The four processes of an LB, as far as `gale reload` and `gale apply` speak to them."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from bus import topics
from bus.commands import CommandServer

TAKEN = {"applied": True, "problems": [], "restart_needed": []}


class Processes:
    """The four of them, each answering `reload` as it is told to."""

    def __init__(self, run_dir: Path) -> None:
        self.answers: dict[str, dict[str, Any]] = {}
        self.reloads: list[str] = []
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._stopping = threading.Event()
        (run_dir / "bus").mkdir()
        names = (topics.QUORUM, topics.DATAPLANE, topics.HEALTH, topics.API)
        self.servers = {
            name: CommandServer(self._context, topics.command_path(run_dir, name)) for name in names
        }
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._stopping.wait(0.01):
            for name, server in self.servers.items():
                server.serve(partial(self._answer, name))
        for server in self.servers.values():
            server.close()
        self._context.term()

    def _answer(self, name: str, _verb: str, _arguments: dict[str, Any]) -> dict[str, Any]:
        self.reloads.append(name)
        return self.answers.get(name, TAKEN)

    def stop(self) -> None:
        self._stopping.set()
        self._thread.join()
