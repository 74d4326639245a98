"""`gale events` and `gale status --watch`: what goes on, and goes on through restarts."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest

from tests.cli.conftest import Gale
from tests.cli.local_api import ANSWERS, Handler, LocalApi

TIMEOUT_S = 100.0


def message(seq: int, topic: str, data: Any, *, boot: str = "api1", **more: Any) -> dict[str, Any]:
    return {
        "v": 1,
        "topic": topic,
        "seq": seq,
        "boot": boot,
        "host": "lb-0",
        "source": "health",
        "time_ms": 1_700_000_000_123,
        "data": data,
    } | more


def node_event(name: str, seq: int) -> dict[str, Any]:
    data = {
        "id": f"{name}@10.81.0.21",
        "name": name,
        "address": "10.81.0.21",
        "state": "down",
        "previous": "up",
        "reason": "no beat for 1000 ms",
        "fails": 1,
        "banned_for_ms": 0,
    }
    return message(seq, "node.down.", data, origin={"boot": "health1", "seq": seq})


STATE = message(2, "state.nodes.", {"nodes": []})
DATA: list[tuple[str, dict[str, Any], str]] = [
    (
        "table.committed.",
        {"term": 1, "epoch": 9, "nodes_up": 2, "changes": ["a up -> down", "b new -> up"]},
        "term 1 epoch 9, 2 up: a up -> down, b new -> up",
    ),
    (
        "quorum.leader.",
        {"term": 3, "leader": "lb-0", "peer": None, "reason": "elected"},
        "term 3, leader lb-0: elected",
    ),
    (
        "vip.acquired.",
        {"address": "10.80.0.100", "holder": "lb-0", "term": 3, "reason": "granted"},
        "10.80.0.100 at lb-0, term 3: granted",
    ),
    (
        "dataplane.attached.",
        {"program": "xdp_public", "interface": "pub0", "flavour": "native", "reason": "new"},
        "xdp_public on pub0 native: new",
    ),
    (
        "process.started.",
        {"process": "quorum", "pid": 7, "version": "0.1.0", "adopted": "term 1"},
        "quorum pid 7, gale 0.1.0: term 1",
    ),
    ("process.started.", {"of": "a newer Gale"}, "of=a newer Gale"),
    ("weather.changed.", {"to": "rain", "mm": 3}, "to=rain mm=3"),
]


def pages(*parts: list[dict[str, Any]], complete: bool = True) -> Callable[..., None]:
    """Answers of `?since=`: `parts` one after the other, each by the position of the one before."""

    def answer(handler: Handler, parameters: dict[str, str]) -> None:
        number = int(parameters["since"].partition(":")[2])
        part = parts[number] if number < len(parts) else []
        handler.send_json(
            {
                "boot": "api1",
                "first_seq": 1,
                "last_seq": 99,
                "complete": complete,
                "next": f"api1:{number + 1}",
                "events": part,
            }
        )

    return answer


@pytest.mark.parametrize(("topic", "data", "words"), DATA)
def test_each_kind_of_event_is_one_line(
    api: LocalApi, gale: Gale, topic: str, data: dict[str, Any], words: str
) -> None:
    api.paths["/v1/events"] = pages([message(1, topic, data)])
    result = gale("events")
    assert result.exit_code == 0
    (line,) = result.stdout.splitlines()
    assert ".123  " in line
    assert line.endswith(f"  lb-0  {words}")
    assert topic.rstrip(".") in line.split()


def test_all_pages_are_read_and_states_left_out(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/events"] = pages([node_event("node-1", 1), STATE], [node_event("node-2", 3)])
    result = gale("events")
    assert [line.split()[4] for line in result.stdout.splitlines()] == ["node-1", "node-2"]
    assert "node-1 (node-1@10.81.0.21) up -> down: no beat for 1000 ms" in result.stdout
    assert [asked[1]["since"] for asked in api.asked] == ["oldest:0", "api1:1", "api1:2"]
    whole = orjson.loads(gale("events", "--json").stdout)
    assert [event["seq"] for event in whole["events"]] == [1, 2, 3]
    assert whole["complete"] is True


def test_events_are_in_order_of_time_whoever_was_heard_first(api: LocalApi, gale: Gale) -> None:
    late = node_event("late", 1) | {"time_ms": 1_700_000_002_000}
    early = node_event("early", 2) | {"time_ms": 1_700_000_001_000}
    api.paths["/v1/events"] = pages([late], [early])
    shown = gale("events").stdout.splitlines()
    assert [line.split()[4] for line in shown] == ["early", "late"]


def test_what_is_no_longer_kept_is_said(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/events"] = pages([], complete=False)
    result = gale("events", "--since", "api0:0")
    assert result.exit_code == 0
    assert result.stderr == "some of what followed api0:0 is no longer kept\n"


@pytest.mark.parametrize("since", ["7", "boot:", ":7", "boot:x", "boot:-1", "boot:²"])
def test_a_position_that_is_none_is_wrong_use(gale: Gale, since: str) -> None:
    result = gale("events", f"--since={since}")
    assert result.exit_code == 2
    assert "expected BOOT:SEQ" in result.stderr


def _take_sigint() -> None:
    """A shell starts what it puts in the background with SIGINT ignored; so these tests may be."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


class Running:
    """`gale …` as a process, its lines as they come."""

    def __init__(self, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-c", "from services.cli.main import main; main()", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"PYTHONUNBUFFERED": "1"},
            preexec_fn=_take_sigint,
        )
        self._lines: queue.Queue[str] = queue.Queue()
        for pipe in (self.process.stdout, self.process.stderr):
            threading.Thread(target=self._read, args=(pipe,), daemon=True).start()

    def _read(self, pipe: Any) -> None:
        for line in pipe:
            self._lines.put(line.rstrip("\n"))

    def line(self) -> str:
        return self._lines.get(timeout=TIMEOUT_S)

    def interrupt(self) -> int:
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(TIMEOUT_S)


Start = Callable[..., Running]


@pytest.fixture
def start(config: Path) -> Iterator[Start]:
    started: list[Running] = []

    def run(*arguments: str) -> Running:
        started.append(Running("-c", str(config), *arguments))
        return started[-1]

    yield run
    for each in started:
        each.process.kill()
        each.process.wait()


class Stream:
    """An event stream: what the test puts into it; None ends it."""

    def __init__(self, api: LocalApi) -> None:
        self.queue: queue.Queue[dict[str, Any] | None] = queue.Queue()
        api.paths["/v1/events"] = self

    def __call__(self, handler: Handler, _parameters: dict[str, str]) -> None:
        handler.begin_stream()
        while (sent := self.queue.get()) is not None:
            handler.send_event(f"{sent['boot']}:{sent['seq']}", sent)


def test_follow_goes_on_through_a_restart_and_shows_each_once(api: LocalApi, start: Start) -> None:
    stream = Stream(api)
    running = start("events", "--follow", "--since", "api1:0")
    for sent in (node_event("node-1", 1), STATE, node_event("node-2", 3)):
        stream.queue.put(sent)
    assert "node-1" in running.line()
    assert "node-2" in running.line()
    stream.queue.put(None)
    # The new process shows again what health still keeps, under numbers of its own.
    for name, seq, origin in (("node-1", 1, 1), ("node-2", 2, 3), ("node-3", 3, 4)):
        again = node_event(name, seq) | {"boot": "api2"}
        stream.queue.put(again | {"origin": {"boot": "health1", "seq": origin}})
    restarted = node_event("node-4", 4) | {"boot": "api2"}
    stream.queue.put(restarted | {"origin": {"boot": "health2", "seq": 1}})
    assert "node-3" in running.line()
    assert "node-4" in running.line()
    assert [asked[2] for asked in api.asked] == ["api1:0", "api1:3"]
    assert running.interrupt() == 0
    stream.queue.put(None)


def test_follow_waits_for_an_api_that_went_away(api: LocalApi, start: Start) -> None:
    first = Stream(api)
    running = start("events", "--follow", "--json")
    first.queue.put(node_event("node-1", 1))
    assert orjson.loads(running.line())["data"]["name"] == "node-1"
    api.stop()
    first.queue.put(None)
    assert running.line().endswith("; trying again")
    back = LocalApi(api.port)
    try:
        second = Stream(back)
        second.queue.put(node_event("node-2", 2))
        assert orjson.loads(running.line())["data"]["name"] == "node-2"
        assert running.interrupt() == 0
        second.queue.put(None)
    finally:
        back.stop()


def test_follow_in_json_shows_states_too(api: LocalApi, start: Start) -> None:
    stream = Stream(api)
    running = start("events", "--follow", "--json")
    stream.queue.put(STATE)
    assert orjson.loads(running.line()) == STATE
    stream.queue.put(None)


def test_watch_shows_what_changes_and_what_is_wrong(api: LocalApi, start: Start) -> None:
    running = start("status", "--watch", "--json")
    assert orjson.loads(running.line()) == ANSWERS["/v1/status"]
    changed = ANSWERS["/v1/status"] | {"ready": True}
    api.paths["/v1/status"] = changed
    while orjson.loads(running.line()) != changed:
        pass
    api.paths["/v1/status"] = lambda handler, _: handler.send_json({"detail": "upgrading"}, 503)
    while not (line := running.line()).endswith("/v1/status: upgrading"):
        assert orjson.loads(line) == changed
    api.paths["/v1/status"] = changed
    while (line := running.line()).endswith("/v1/status: upgrading"):
        pass
    assert orjson.loads(line) == changed
    assert running.interrupt() == 0


@pytest.mark.parametrize("command", ["nodes", "services", "flows", "quorum"])
def test_other_answers_are_watched_too(api: LocalApi, start: Start, command: str) -> None:
    running = start(command, "--watch", "--json")
    answer = ANSWERS[f"/v1/{command}"]
    assert [orjson.loads(running.line()) for _ in range(2)] == [answer, answer]
    assert running.interrupt() == 0


def test_watch_for_people_ends_well_when_interrupted(api: LocalApi, start: Start) -> None:
    running = start("status", "--watch")
    while len(api.asked) < 2:
        assert running.process.poll() is None
        time.sleep(0.01)
    assert running.interrupt() == 0
    assert running.line() == "lb-0  l4  gale 0.1.0  NOT READY"
