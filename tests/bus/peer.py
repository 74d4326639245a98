"""One end of the bus in a process of its own, driven by JSON lines.

    peer.py publisher|subscriber|server RUN_DIR

Prints one JSON object a line: first `{"ready": ...}`, then what the role has to tell.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import structlog
import zmq

from bus import topics
from bus.commands import (
    CommandError,
    CommandServer,
)
from bus.events import ProcessEvent
from bus.socket import (
    Publisher,
    Subscriber,
)
from bus.states import (
    CommittedTable,
    NodeTable,
)
from bus.topics import Topic

SOURCE = topics.QUORUM
POLL_MS = 50


def say(**what: Any) -> None:
    print(json.dumps(what), flush=True)


def committed_table(version: int) -> CommittedTable:
    table = NodeTable(1, version, 2, services=(), nodes=(), bans=(), vip_owners=(), snat_slices=())
    return CommittedTable(version=version, table=table)


def publisher(run_dir: Path) -> None:
    """Lines in: `{"events": N, "pad": BYTES}` or `{"state": VERSION}`; each answered when done."""
    context = zmq.Context()
    mine = Publisher(context, topics.publisher_path(run_dir, SOURCE), SOURCE, "lb-0")
    say(ready=mine.boot)
    poller = zmq.Poller()
    poller.register(mine.poll_socket, zmq.POLLIN)
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    while True:
        readable = dict(poller.poll(POLL_MS))
        mine.serve()
        if sys.stdin.fileno() not in readable:
            continue
        line = sys.stdin.readline()
        if not line:
            break
        order = json.loads(line)
        for number in range(order.get("events", 0)):
            event = ProcessEvent("quorum", number, "1", adopted="x" * order.get("pad", 0))
            mine.publish(Topic.PROCESS_STARTED, event)
        if "state" in order:
            mine.publish(Topic.STATE_TABLE, committed_table(order["state"]))
        say(done=order)
    mine.close()


def subscriber(run_dir: Path) -> None:
    """Tells of every message; of a batch, also what was dropped so far."""
    context = zmq.Context()
    mine = Subscriber(context, run_dir, {SOURCE: topics.PUBLISHES[SOURCE]})
    say(ready=True)
    while True:
        if not mine.socket.poll(POLL_MS):
            continue
        for envelope in mine.receive():
            state = envelope.data.version if envelope.topic.is_state else None
            say(boot=envelope.boot, seq=envelope.seq, state=state)
        say(dropped=mine.dropped[SOURCE], rejected=mine.rejected.total())


def server(run_dir: Path) -> None:
    """Commands: `echo`, `refuse`, and `count`, which says how often it was executed."""
    context = zmq.Context()
    mine = CommandServer(context, topics.command_path(run_dir, SOURCE))
    say(ready=True)
    counted = 0

    def handle(verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        nonlocal counted
        if verb == "echo":
            return arguments
        if verb == "count":
            counted += 1
            return {"counted": counted}
        raise CommandError(f"{verb}: unknown command")

    while True:
        if mine.socket.poll(POLL_MS):
            mine.serve(handle)
            say(rejected=mine.rejected.total())


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    {"publisher": publisher, "subscriber": subscriber, "server": server}[sys.argv[1]](
        Path(sys.argv[2])
    )
