"""The API process over real sockets: what HTTP answers, what the public stream carries."""

from __future__ import annotations

import os
import re
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest
import zmq

from bus import topics
from bus.codec import from_json, to_json
from bus.commands import request
from bus.topics import (
    PAYLOADS,
    Topic,
)
from bus.words import NodeState
from services.api.position import FILE_NAME
from tests.api.conftest import FLOW, TIMEOUT_S, Gale, Listener, free_port, wait_for
from tests.api.samples import dataplane, down, node, node_id, seat, view

Listen = Callable[..., Listener]
PAGE = Path(__file__).parents[2] / "docs" / "events.md"
PRESENT = ["state.nodes.", "state.quorum.", "state.table.", "state.dataplane."]


def is_down(name: str) -> Callable[[dict[str, Any]], bool]:
    return lambda message: message["topic"] == "node.down." and message["data"]["name"] == name


def went_down(gale: Gale, name: str) -> None:
    gale.fakes[topics.HEALTH].publish(Topic.NODE_DOWN, down(name))


def check_no_holes(messages: list[dict[str, Any]]) -> None:
    """Of a subscriber to everything: consecutive numbers, over all topics and in each."""
    assert len({message["boot"] for message in messages}) == 1
    first = messages[0]["seq"]
    assert [message["seq"] for message in messages] == list(range(first, first + len(messages)))
    last: dict[str, int] = {}
    for message in messages:
        topic, seq = message["topic"], message["topic_seq"]
        assert seq == last.get(topic, seq - 1) + 1
        last[topic] = seq


@pytest.fixture
def ready(gale: Gale) -> Gale:
    gale.start_fakes()
    gale.start_api()
    wait_for(lambda: gale.get("/readyz").status_code == 200, "the LB to be ready")
    return gale


# --------------------------------------------------------------------------- HTTP


def test_every_path_answers_in_its_shape(ready: Gale) -> None:
    status = ready.get("/v1/status").json()
    assert (status["name"], status["mode"], status["ready"]) == ("lb-0", "l4", True)
    assert set(status["processes"]) == {"dataplane", "health", "quorum", "api"}
    for name in ("dataplane", "health", "quorum"):
        assert status["processes"][name]["age_ms"] >= 0
        assert status["processes"][name]["pid"] == 4242
    assert status["services"][0]["name"] == "default"
    (shown,) = ready.get("/v1/nodes").json()["nodes"]
    assert (shown["id"], shown["state"], shown["share"]) == (node_id("node-0"), "up", 1.0)
    assert ready.get(f"/v1/nodes/{node_id('node-0')}").json()["name"] == "node-0"
    assert ready.get("/v1/quorum").json()["leader"] == "lb-0"
    assert ready.get("/v1/services").json()["services"][0]["address"] == "127.0.0.1"
    metrics = ready.get("/metrics")
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "gale_ring_slots{" in metrics.text
    assert "/v1/nodes/{node_id}" in ready.get("/openapi.json").json()["paths"]


def test_flows_are_asked_of_the_dataplane(ready: Gale) -> None:
    asked = ready.get("/v1/flows?node=node-0@10.81.0.20&service=default&limit=7").json()
    assert asked == {"flows": [FLOW | {"node_id": "node-0@10.81.0.20"}], "total": 1}
    refused = ready.get("/v1/flows?limit=13")
    assert (refused.status_code, refused.json()["detail"]) == (409, "limit: 13 brings bad luck")


def test_flows_without_a_dataplane_time_out(gale: Gale) -> None:
    gale.start_api()
    answer = gale.get("/v1/flows")
    assert answer.status_code == 504
    assert answer.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/v1/nodes/nobody", 404),
        ("/v1/nonsense", 404),
        ("/v1/flows?limit=0", 400),
        ("/v1/flows?limit=many", 400),
        ("/v1/events?since=nonsense", 400),
        ("/v1/events?since=boot:-1", 400),
        ("/v1/events?since=boot:99999999999999999999", 400),
        (f"/v1/events?since=boot:{'9' * 5_000}", 400),
        ("/v1/events?since=boot:²", 400),
        (f"/v1/flows?limit={2**63}", 400),
        (f"/v1/flows?limit={'9' * 5_000}", 400),
        ("/v1/events?since=boot:1&limit=0", 400),
    ],
)
def test_errors_are_problem_json(ready: Gale, path: str, status: int) -> None:
    answer = ready.get(path)
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status
    assert answer.json()["detail"]


def test_what_is_not_known_yet_is_503(gale: Gale) -> None:
    gale.start_api()
    for path in ("/v1/nodes", "/v1/services", "/v1/quorum", "/readyz"):
        answer = gale.get(path)
        assert answer.status_code == 503
        assert answer.headers["retry-after"] == "1"
    assert gale.get("/v1/status").json()["ready"] is False


def test_readiness_follows_the_dataplane(ready: Gale) -> None:
    ready.fakes[topics.DATAPLANE].publish(
        Topic.STATE_DATAPLANE,
        dataplane(ready=False, waiting_for="pub0: no such interface", version=2),
    )
    answer = wait_for(lambda: unready(ready), "the LB to be unready")
    assert "pub0: no such interface" in answer.json()["detail"]
    assert ready.get("/healthz").status_code == 200


def test_without_a_node_that_is_up_nobody_should_come_here(ready: Gale) -> None:
    ready.fakes[topics.DATAPLANE].publish(
        Topic.STATE_DATAPLANE, dataplane(seat("node-0", 0, 9), version=2)
    )
    answer = wait_for(lambda: unready(ready), "the LB to be unready")
    assert answer.json()["detail"].startswith("nodes: none is up for any service")
    assert ready.get("/v1/status").json()["not_ready"] == [answer.json()["detail"]]


def unready(gale: Gale) -> httpx.Response | None:
    answer = gale.get("/readyz")
    return answer if answer.status_code == 503 else None


# --------------------------------------------------------------------------- the public stream


def test_present_state_first_then_what_changes(ready: Gale, listen: Listen) -> None:
    listener = listen("")
    present = listener.until(lambda message: message["topic"] == PRESENT[-1])
    assert [message["topic"] for message in present] == PRESENT
    went_down(ready, "node-0")
    ready.fakes[topics.HEALTH].publish(
        Topic.STATE_VIEW, view(node(state=NodeState.DOWN), version=2)
    )
    after = listener.until(
        lambda message: (
            message["topic"] == "state.nodes." and message["data"]["nodes"][0]["state"] == "down"
        )
    )
    assert any(is_down("node-0")(message) for message in after)
    check_no_holes([*present, *after])


def test_nobody_sees_a_hole_when_others_come(ready: Gale, listen: Listen) -> None:
    first = listen("")
    seen = first.until(lambda message: message["topic"] == PRESENT[-1])
    for turn in range(5):
        other = listen("")
        theirs = other.until(lambda message: message["topic"] == PRESENT[-1])
        went_down(ready, f"node-{turn}")
        theirs += other.until(is_down(f"node-{turn}"))
        check_no_holes(theirs)
    check_no_holes(seen + first.until(is_down("node-4")))


def test_what_is_sent_is_what_is_documented(ready: Gale, listen: Listen) -> None:
    listener = listen("")
    listener.until(lambda message: message["topic"] == PRESENT[-1])
    went_down(ready, "node-0")
    messages = listener.until(is_down("node-0"))
    head = re.split(r"^## A message$", PAGE.read_text(), flags=re.MULTILINE)[1]
    documented = re.findall(r"^\| `(\w+)` \|", head.split("\n## ")[0], flags=re.MULTILINE)
    for message in messages:
        assert list(message) == documented
        payload = from_json(PAYLOADS[Topic(message["topic"])], to_json(message["data"]))
        assert orjson.loads(orjson.dumps(payload)) == message["data"]


def test_a_restarted_process_is_followed(ready: Gale, listen: Listen) -> None:
    listener = listen("process.started.", "node.")
    ready.fakes[topics.HEALTH].stop()
    ready.start_fakes(topics.HEALTH)
    listener.until(lambda message: message["source"] == "health")
    went_down(ready, "node-0")
    assert listener.until(is_down("node-0"))[-1]["origin"]["seq"] == 2


def test_killed_api_sends_what_it_missed_once_and_nothing_again(
    ready: Gale, listen: Listen
) -> None:
    listener = listen("")
    listener.until(lambda message: message["topic"] == PRESENT[-1])
    went_down(ready, "before")
    before = listener.until(is_down("before"))[-1]
    first_life = before["boot"]
    position = ready.run_dir / FILE_NAME
    wait_for(
        lambda: orjson.loads(position.read_bytes())["health"]["seq"] == before["origin"]["seq"],
        "the position to be stored",
    )
    ready.kill_api()
    went_down(ready, "meanwhile")
    ready.start_api()
    went_down(ready, "after")
    messages = listener.until(is_down("after"))
    second_life = [message for message in messages if message["boot"] != first_life]
    check_no_holes(second_life)
    downs = [message for message in second_life if message["topic"] == "node.down."]
    assert [message["data"]["name"] for message in downs] == ["meanwhile", "after"]
    assert {message["topic"] for message in second_life[: len(PRESENT)]} == set(PRESENT)
    page = ready.get(f"/v1/events?since={first_life}:{before['seq'] - 1}").json()
    assert page["complete"] is True
    assert [is_down("before")(message) for message in page["events"][:2]] == [True, False]
    names = [message["data"]["name"] for message in page["events"] if is_a_down(message)]
    assert names == ["before", "meanwhile", "after"]


def is_a_down(message: dict[str, Any]) -> bool:
    return bool(message["topic"] == "node.down.")


def check_no_hole_between(ready: Gale, seen: list[dict[str, Any]], last: str) -> None:
    """Of one who was there from `seen[0]` on, and asks for what he missed at each new boot.

    In the end he has every number of every life from his first one on, up to the event `last`.
    """
    had = seen[0]
    followed: list[tuple[str, int]] = []
    downs: dict[tuple[str, int], str] = {}
    while True:
        page = events_since(ready, f"{had['boot']}:{had['seq']}&limit=5")
        assert page["complete"] is True
        if not page["events"]:
            break
        for message in page["events"]:
            same = message["boot"] == had["boot"]
            assert message["seq"] == (had["seq"] + 1 if same else 1)
            had = message
            followed.append((message["boot"], message["seq"]))
            if is_a_down(message):
                origin = message["origin"]
                downs[origin["boot"], origin["seq"]] = message["data"]["name"]
    got = {(message["boot"], message["seq"]) for message in seen[1:]}
    assert got <= set(followed)
    names = list(downs.values())
    assert names[-1] == last
    assert len(names) == len(set(names)), "twice, if at all, only with the same origin"


def test_before_during_and_after_restarts_the_log_has_no_hole(ready: Gale, listen: Listen) -> None:
    before = listen("")
    seen = before.until(lambda message: message["topic"] == PRESENT[-1])
    for turn in range(3):
        went_down(ready, f"before-{turn}")
        seen += before.until(is_down(f"before-{turn}"))
        ready.kill_api()
        during = listen("")
        went_down(ready, f"during-{turn}")
        ready.start_api()
        went_down(ready, f"after-{turn}")
        seen += before.until(is_down(f"after-{turn}"))
        check_no_hole_between(ready, during.until(is_down(f"after-{turn}")), f"after-{turn}")
        late = listen("").until(lambda message: message["topic"] == PRESENT[-1])
        check_no_holes(late)
    check_no_hole_between(ready, seen, "after-2")


def test_a_browser_that_comes_back_after_a_restart_misses_nothing(ready: Gale) -> None:
    with server_sent(ready) as stream:
        last = [next(stream) for _ in PRESENT][-1]
    ready.kill_api()
    went_down(ready, "meanwhile")
    ready.start_api()
    with server_sent(ready, **{"Last-Event-ID": last["id"]}) as stream:
        message = next(stream)
        while not is_down("meanwhile")(message):
            following = next(stream)
            same = following["boot"] == message["boot"]
            assert following["seq"] == (message["seq"] + 1 if same else 1)
            message = following


def test_a_tcp_endpoint_when_configured(gale: Gale, listen: Listen) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    gale.write_config(gale.port, f'[bus]\nevents = "{endpoint}"\n')
    gale.start_fakes()
    gale.start_api()
    listener = listen("state.", endpoint=endpoint)
    listener.until(lambda message: message["topic"] == "state.dataplane.")


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * resource.getpagesize()


def test_a_subscriber_without_an_end_costs_little_and_nobody_else(
    gale: Gale, listen: Listen
) -> None:
    endpoint = f"tcp://127.0.0.1:{free_port()}"
    gale.write_config(gale.port, f'[bus]\nevents = "{endpoint}"\n')
    gale.start_fakes()
    api = gale.start_api()
    listen("state.", endpoint=endpoint).until(lambda m: m["topic"] == "state.dataplane.")
    before = resident_bytes(api.pid)
    with zmq.Context() as context, context.socket(zmq.SUB) as greedy:
        greedy.setsockopt(zmq.LINGER, 0)
        greedy.connect(endpoint)
        for number in range(40_000):
            greedy.subscribe(b"%d" % number + bytes(200))
        wait_for(lambda: "too_many_bytes" in gale.get("/metrics").text, "its end")
        listen("state.", endpoint=endpoint).until(lambda m: m["topic"] == "state.dataplane.")
        assert resident_bytes(api.pid) < before + (160 << 20)
    assert api.poll() is None


def documented(language: str) -> str:
    """The page's script in a language."""
    (script,) = re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    return str(script)


@contextmanager
def running(gale: Gale, *command: str) -> Iterator[list[str]]:
    """What a script has printed by now, line by line."""
    process = subprocess.Popen(
        command,
        env=gale.environment() | {"GALE_API": gale.url},
        stdout=subprocess.PIPE,
        text=True,
    )
    lines: list[str] = []
    assert process.stdout is not None
    reading = threading.Thread(target=lambda: lines.extend(process.stdout or []), daemon=True)
    reading.start()
    try:
        yield lines
    finally:
        process.kill()
        process.wait()


def test_the_documented_script_prints_a_node_going_down(ready: Gale) -> None:
    with running(ready, sys.executable, "-c", documented("python")) as lines:

        def printed() -> bool:
            went_down(ready, "node-0")  # again and again: the script subscribes in its own time
            return bool(lines)

        wait_for(printed, "the script to print")
        assert lines[0] == "lb-0 lost node-0 - connection refused\n"


def test_the_documented_script_in_perl_misses_nothing(ready: Gale) -> None:
    with running(ready, "perl", "-e", documented("perl")) as lines:

        def printed() -> bool:
            went_down(ready, "node-0")
            return bool(lines)

        wait_for(printed, "the script to print")
        went_down(ready, "before")
        wait_for(lambda: "lb-0 lost before - connection refused\n" in lines, "the last before")
        ready.kill_api()
        went_down(ready, "meanwhile")
        ready.start_api()
        went_down(ready, "after")
        wait_for(lambda: "lb-0 lost after - connection refused\n" in lines, "what came after")
        names = [line.split()[2] for line in lines]
        assert [name for name in names if name != "node-0"] == ["before", "meanwhile", "after"]


# --------------------------------------------------------------------------- the stream by HTTP


@contextmanager
def server_sent(gale: Gale, **headers: str) -> Iterator[Iterator[dict[str, Any]]]:
    """Messages of `/v1/events`, each with its `id`."""
    with (
        httpx.Client(timeout=TIMEOUT_S, trust_env=False) as client,
        client.stream("GET", f"{gale.url}/v1/events", headers=headers) as answer,
    ):
        assert answer.headers["content-type"].startswith("text/event-stream")
        yield parsed(answer)


def parsed(answer: httpx.Response) -> Iterator[dict[str, Any]]:
    event: dict[str, str] = {}
    for line in answer.iter_lines():
        if line:
            name, _, value = line.partition(": ")
            event[name] = value
        elif "data" in event:
            message = orjson.loads(event["data"])
            assert event["event"] == message["topic"]
            assert event["id"] == f"{message['boot']}:{message['seq']}"
            yield message | {"id": event["id"]}
            event = {}


def test_server_sent_events_begin_with_the_present_state(ready: Gale) -> None:
    with server_sent(ready) as stream:
        present = [next(stream) for _ in PRESENT]
        assert [message["topic"] for message in present] == PRESENT
        went_down(ready, "node-0")
        check_no_holes([*present, next(stream)])


def test_a_returning_client_gets_what_it_missed(ready: Gale) -> None:
    with server_sent(ready) as stream:
        last = [next(stream) for _ in PRESENT][-1]
    for name in ("node-0", "node-1"):
        went_down(ready, name)
    with server_sent(ready, **{"Last-Event-ID": last["id"]}) as stream:
        missed = [next(stream)]
        while not is_down("node-1")(missed[-1]):
            missed.append(next(stream))
    check_no_holes([last, *missed])
    assert any(is_down("node-0")(message) for message in missed)


def test_a_page_of_what_was_missed(ready: Gale) -> None:
    boot = ready.get("/v1/status").json()["processes"]["api"]["boot"]
    for turn in range(5):
        went_down(ready, f"node-{turn}")
    wait_for(
        lambda: any(map(is_down("node-4"), events_since(ready, f"{boot}:0")["events"])),
        "the events to arrive",
    )
    whole = events_since(ready, f"{boot}:0")
    assert whole["complete"] is True
    assert whole["first_seq"] == 1
    check_no_holes(whole["events"])
    first = events_since(ready, f"{boot}:0&limit=2")
    second = events_since(ready, f"{first['next']}&limit=3")
    assert whole["events"][:5] == first["events"] + second["events"]
    for ahead in (whole["last_seq"] + 1_000, 2**63 - 1, 10**19 - 1):
        end = events_since(ready, f"{boot}:{ahead}")
        assert (end["events"], end["complete"]) == ([], False)
        assert end["next"] == f"{boot}:{end['last_seq']}", "where one who asks again misses nothing"
    assert events_since(ready, f"{boot}:{end['last_seq']}")["complete"] is True


def events_since(gale: Gale, since: str) -> Any:
    return gale.get(f"/v1/events?since={since}").json()


# --------------------------------------------------------------------------- the process


def test_term_ends_it_well_though_streams_are_open(ready: Gale, listen: Listen) -> None:
    listen("").until(lambda message: message["topic"] == PRESENT[-1])
    assert ready.process is not None
    with server_sent(ready) as stream:
        next(stream)
        ready.process.send_signal(signal.SIGTERM)
        assert ready.process.wait(timeout=TIMEOUT_S) == 0
        list(stream)  # its end is orderly: not cut off, which would raise here


def refused_reload(ready: Gale) -> dict[str, Any]:
    """What the command says, after the signal, of a file that cannot be taken."""
    assert ready.process is not None
    ready.process.send_signal(signal.SIGHUP)
    context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
    path = topics.command_path(ready.run_dir, topics.API)
    answer = request(context, path, "reload", {}, timeout_ms=TIMEOUT_S * 1000)
    context.term()
    assert answer["applied"] is False
    return answer


def test_hangup_with_a_bad_file_changes_nothing(ready: Gale) -> None:
    ready.config.write_text("[local]\nnonsense = 1\n")
    answer = refused_reload(ready)
    assert any("nonsense" in problem for problem in answer["problems"])
    assert ready.get("/healthz").status_code == 200


def test_hangup_with_a_fifo_in_the_files_place_holds_nothing_up(ready: Gale) -> None:
    ready.config.unlink()
    os.mkfifo(ready.config)
    answer = refused_reload(ready)
    assert "no regular file" in answer["problems"][0]
    assert ready.get("/healthz").status_code == 200


@pytest.mark.parametrize("kind", ["service", "node"])
def test_flows_of_what_there_is_not_are_404(ready: Gale, kind: str) -> None:
    answer = ready.get(f"/v1/flows?{kind}=nosuch")
    assert answer.status_code == 404
    assert answer.json()["detail"].startswith(f"no {kind} is named nosuch; there are ")


def test_reload_moves_to_another_port(ready: Gale) -> None:
    before, ready.port = ready.port, free_port()
    ready.write_config(ready.port)
    assert ready.process is not None
    ready.process.send_signal(signal.SIGHUP)
    wait_for(lambda: ready.get("/healthz").status_code == 200, "the new port to answer")
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"http://127.0.0.1:{before}/healthz", trust_env=False)


def test_a_bad_file_at_the_start_is_exit_2(gale: Gale) -> None:
    gale.config.write_text("[local]\nnonsense = 1\n")
    process = gale.spawn("from services.api.main import main; main()")
    output, _ = process.communicate(timeout=TIMEOUT_S)
    assert process.returncode == 2
    assert f"{gale.config}:2: local.nonsense" in output


def test_an_interface_that_is_missing_is_waited_for(gale: Gale) -> None:
    text = gale.config.read_text().replace(
        'net_interface_private = "lo"', 'net_interface_private = "none0"'
    )
    gale.config.write_text(text)
    gale.start_api()
    waits = gale.get("/v1/status").json()["processes"]["api"]["waiting_for"]
    assert waits == "none0: no IPv4 address yet"
