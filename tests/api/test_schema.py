"""The OpenAPI document is what is really sent: hundreds of requests made from it, good and bad."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from services.api.problems import ALWAYS
from tests.api.conftest import TIMEOUT_S, Gale, wait_for

EXAMPLES = 12
"""Of each operation, and the same ones every time: what passed yesterday passes today."""
LIVE = "/v1/live"
STREAMS = ("/v1/events", LIVE)


@pytest.fixture(scope="module")
def running() -> Iterator[Gale]:
    with tempfile.TemporaryDirectory(prefix="gale-", dir="/tmp") as directory:
        gale = Gale(Path(directory))
        gale.start_fakes()
        gale.start_api()
        wait_for(lambda: gale.get("/readyz").status_code == 200, "the LB to be ready")
        yield gale
        gale.stop()


def document(gale: Gale) -> Any:
    return gale.get("/openapi.json").json()


@pytest.mark.timeout(400)
def test_every_answer_is_documented_and_none_is_our_fault(running: Gale, tmp_path: Path) -> None:
    """A stream has no end to wait for: `/v1/events` is asked for pages, the console for none."""
    config = tmp_path / "schemathesis.toml"
    config.write_text(
        "[checks.positive_data_acceptance]\nexpected-statuses = "
        '["2xx", "3xx", 401, 403, 404, 409, 412, 429, "5xx"]\n\n'
        "[checks.negative_data_rejection]\nexpected-statuses = "
        '[400, 401, 403, 404, 405, 406, 409, 412, 413, 415, 421, "5xx"]\n\n'
        '[[operations]]\ninclude-path = "/v1/events"\nparameters = { since = "b:1" }\n'
    )
    program = Path(sys.executable).with_name("schemathesis")
    options = ["--max-examples", str(EXAMPLES), "--request-timeout", str(TIMEOUT_S), "--no-color"]
    options += ["--exclude-path", LIVE, "--generation-deterministic"]
    address = f"{running.url}/openapi.json"
    made = subprocess.run(
        [program, "--config-file", config, "run", address, *options],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert made.returncode == 0, made.stdout
    tested = re.search(r"Tested: (\d+)", made.stdout)
    assert tested is not None
    operations = sum(len(each) for each in document(running)["paths"].values())
    assert int(tested[1]) == operations - 1


SERVICE = {
    "name": "web",
    "address": None,
    "port": 80,
    "protocol": "tcp",
    "mode": "l4",
    "node_port": 8080,
}
TOO_LONG, HALF = 10**30, "\ud800"
"""A number and a text that JSON can write down, and that no message can carry."""


@pytest.mark.parametrize(
    ("path", "question"),
    [
        ("plan", {"services": [SERVICE | {"port": TOO_LONG}]}),
        ("plan", {"services": [SERVICE | {"name": HALF}]}),
        ("plan", {"services": [SERVICE | {"mode": "l5"}]}),
        ("plan", {"services": [{"name": "web"}]}),
        ("plan", {"services": [17]}),
        ("plan", {"without": [HALF]}),
        ("plan", {"weights": {HALF: 1}}),
        ("plan", {"weights": {"node-0@10.81.0.20": TOO_LONG}}),
        ("trace", {"protocol": "tcp", "source": HALF, "destination": "10.80.0.10:80"}),
        ("nodes/node-0@10.81.0.20/drain", {"within": HALF}),
    ],
)
def test_what_no_message_can_carry_is_the_fault_of_whoever_asks(
    running: Gale, path: str, question: dict[str, Any]
) -> None:
    answer = httpx.post(
        f"{running.url}/v1/{path}",
        content=json.dumps(question),
        headers={"Content-Type": "application/json"},
        timeout=TIMEOUT_S,
        trust_env=False,
    )
    assert answer.status_code == 400, answer.text


def test_what_a_service_has_besides_is_left_out(running: Gale) -> None:
    """A newer version's field, say."""
    for services in ([SERVICE], [SERVICE | {"new": TOO_LONG}]):
        answer = httpx.post(
            f"{running.url}/v1/plan",
            content=json.dumps({"services": services}),
            headers={"Content-Type": "application/json"},
            timeout=TIMEOUT_S,
            trust_env=False,
        )
        assert answer.status_code == 200, answer.text


def test_every_operation_says_how_it_refuses(running: Gale) -> None:
    for path, operations in document(running)["paths"].items():
        for method, operation in operations.items():
            where = f"{method} {path}"
            assert operation["description"], where
            for status, answer in operation["responses"].items():
                if status.startswith(("4", "5")):
                    assert list(answer["content"]) == ["application/problem+json"], where
            assert {str(status) for status in ALWAYS} <= set(operation["responses"]), where
            assert "422" not in operation["responses"], where


def test_a_stream_begins(running: Gale) -> None:
    for path in STREAMS:
        with httpx.stream("GET", running.url + path, timeout=TIMEOUT_S, trust_env=False) as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            assert next(answer.iter_bytes()).startswith(b"retry: ")
