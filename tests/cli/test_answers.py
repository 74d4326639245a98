"""The commands that show what the API knows: tables for people, `--json` for programs."""

from __future__ import annotations

import orjson
import pytest

from services.cli.tables import count, percent, size, span
from tests.cli.conftest import Gale
from tests.cli.local_api import ANSWERS, LocalApi


@pytest.mark.parametrize("command", ["status", "nodes", "services", "quorum", "flows"])
def test_json_is_the_apis_answer(gale: Gale, command: str) -> None:
    result = gale(command, "--json")
    assert result.exit_code == (command == "status"), "the LB of the samples is not ready"
    assert orjson.loads(result.stdout) == ANSWERS[f"/v1/{command}"]


def row_of(output: str, word: str) -> list[str]:
    """The words of the line that has this word."""
    return next(line.split() for line in output.splitlines() if word in line.split())


def test_nodes(gale: Gale) -> None:
    result = gale("nodes")
    assert result.exit_code == 0
    row = " ".join(row_of(result.stdout, "node-1"))
    assert row == (
        "node-1 10.81.0.21 banned down 2 25.0 % 3 5 4 m 10 s 1.2 s node-1@10.81.0.21 5 failures"
    )


def test_services(gale: Gale) -> None:
    result = gale("services")
    assert "default: tcp (public address):8080 -> port 80, l4, by flow, 2 nodes" in result.stdout
    row = " ".join(row_of(result.stdout, "node-1@10.81.0.21"))
    assert row == "node-1@10.81.0.21 32 768 50.0 % 3 12 345 987 B 7 4.2 kB"


def test_quorum(gale: Gale) -> None:
    result = gale("quorum")
    assert (
        "lb-0 is leader, quorum, leader lb-0, term 7, epoch 42, lease 225 ms"
        in result.stdout.splitlines()
    )
    assert "VIP 10.80.0.100 at lb-0" in result.stdout
    assert " ".join(row_of(result.stdout, "10.81.0.10:8081")) == (
        "lb-0 10.81.0.10:8081 yes 7 42 0 ms"
    )


def test_flows_says_how_many_there_are(api: LocalApi, gale: Gale) -> None:
    result = gale("flows", "--node", "node-1@10.81.0.21", "--limit", "1")
    row = " ".join(row_of(result.stdout, "tcp"))
    assert row == (
        "tcp 10.80.0.2:40000 10.80.0.10:8080 10.81.0.10:1536 10.81.0.21:80 default established"
        " 1.5 s 2 h 4 m"
    )
    assert "1 of 2 000 flows" in result.stdout
    assert api.asked == [("/v1/flows", {"node": "node-1@10.81.0.21", "limit": "1"}, None)]


def test_status(gale: Gale) -> None:
    result = gale("status")
    assert result.exit_code == 1
    lines = result.stdout.splitlines()
    assert lines[0] == "lb-0  l4  gale 0.1.0  NOT READY"
    assert "  health: nothing heard for 7 s" in lines
    assert " ".join(row_of(result.stdout, "health")) == "health SILENT never priv0 to appear"
    assert " ".join(row_of(result.stdout, "quorum")) == "quorum alive 120 ms 4711"
    assert row_of(result.stdout, "xdp_public")[:3] == ["xdp_public", "pub0", "attached"]
    sent = " ".join(row_of(result.stdout, "requests"))
    assert sent == "priv0 requests tc a bridge: it takes no frames from XDP"
    assert "conntrack 1 234 567 of 2 000 000 established" in result.stdout
    assert "nodes: 2 up, 1 down" in lines
    assert " ".join(row_of(result.stdout, "default")) == ("default tcp (public address):8080 l4 2")


def test_status_before_anything_is_known(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/status"] = ANSWERS["/v1/status"] | {
        "quorum": None,
        "dataplane": None,
        "services": [],
        "nodes": {},
    }
    result = gale("status")
    assert result.exit_code == 1
    assert "nodes: none" in result.stdout.splitlines()


def test_status_of_one_that_is_ready(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/status"] = ANSWERS["/v1/status"] | {"ready": True, "not_ready": []}
    for options in ((), ("--json",)):
        assert gale("status", *options).exit_code == 0


@pytest.mark.parametrize(
    ("duration_ms", "said"),
    [
        (None, "never"),
        (0, "0 ms"),
        (999, "999 ms"),
        (1_000, "1.0 s"),
        (59_900, "59.9 s"),
        (60_000, "1 m 0 s"),
        (3_599_999, "59 m 59 s"),
        (3_600_000, "1 h 0 m"),
        (86_399_000, "23 h 59 m"),
        (187_200_000, "2 d 4 h"),
    ],
)
def test_span(duration_ms: float | None, said: str) -> None:
    assert span(duration_ms) == said


def test_numbers() -> None:
    assert [count(n) for n in (0, 999, 1_000, 1_234_567)] == ["0", "999", "1 000", "1 234 567"]
    assert [size(n) for n in (0, 999, 1_000, 1_500, 12_000_000)] == [
        "0 B",
        "999 B",
        "1.0 kB",
        "1.5 kB",
        "12 MB",
    ]
    assert size(5 * 10**16) == "50000 TB"
    assert percent(0.3333) == "33.3 %"
