"""`gale trace`: what is asked of the API, and what is told."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from tests.cli.conftest import Gale
from tests.cli.local_api import ANSWERS, LocalApi

QUESTION = ("trace", "tcp", "192.0.2.7:40000", "10.80.0.100:8080")
ANSWER: dict[str, Any] = {
    "lb": "lb-0",
    "packet": "tcp 192.0.2.7:40000 -> 10.80.0.100:8080 SYN",
    "verdict": "forward",
    "reason": "l4_new_flow",
    "why": "a new flow: node chosen, port taken",
    "hook": "xdp_public",
    "service": "default",
    "mode": "l4",
    "node": "node-1@10.81.0.21",
    "state": None,
    "state_after": "opening",
    "steps": ["The service is default, mode l4.", "The node is node-1@10.81.0.21."],
    "packet_out": "00",
}


def test_the_packet_is_asked_about_and_the_steps_are_told(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/trace"] = ANSWER
    result = gale(*QUESTION, "--ack", "--fin")
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "lb-0  tcp 192.0.2.7:40000 -> 10.80.0.100:8080 SYN  FORWARD  to node-1@10.81.0.21",
        "  1. The service is default, mode l4.",
        "  2. The node is node-1@10.81.0.21.",
    ]
    asked = {"protocol": "tcp", "source": QUESTION[2], "destination": QUESTION[3]}
    assert api.sent == [("/v1/trace", asked | {"flags": ["ack", "fin"], "reply": False})]


def test_json_has_each_answer(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/trace"] = ANSWER
    told = orjson.loads(gale(*QUESTION, "--json").stdout)
    assert told == {"agree": True, "disagreements": [], "traces": [ANSWER]}


def test_a_packet_that_is_dropped_says_no(api: LocalApi, gale: Gale) -> None:
    api.paths["/v1/trace"] = ANSWER | {"verdict": "drop", "node": None}
    result = gale(*QUESTION)
    assert result.exit_code == 1
    assert "DROP" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("sctp", "192.0.2.7:1", "10.80.0.100:1"), "expected tcp, udp or icmp"),
        (("tcp", "192.0.2.7", "10.80.0.100:1"), "source: '192.0.2.7', expected ADDRESS:PORT"),
        (("tcp", "192.0.2.7:1", "10.80.0.100:65536"), "destination: '10.80.0.100:65536'"),
        (("udp", "192.0.2.7:0", "10.80.0.100:1"), "source: '192.0.2.7:0'"),
        (("icmp", "192.0.2.7:1", "10.80.0.100"), "expected an IPv4 address"),
        (("udp", "192.0.2.7:1", "10.80.0.256:1"), "destination: '10.80.0.256:1'"),
        (("udp", "192.0.2.7:1", "10.80.0.1:1", "--syn"), "flags: udp has none"),
    ],
)
def test_what_is_no_packet_is_wrong_use(
    api: LocalApi, gale: Gale, arguments: tuple[str, ...], expected: str
) -> None:
    result = gale("trace", *arguments)
    assert result.exit_code == 2
    assert expected in result.stderr
    assert api.sent == []


def test_load_balancers_that_disagree_fail(gale: Gale, api: LocalApi) -> None:
    members = [
        {"name": name, "address": f"{address}:9000"}
        for name, address in (("lb-0", "10.81.0.10"), ("lb-1", "127.0.0.1"))
    ]
    api.paths["/v1/quorum"] = ANSWERS["/v1/quorum"] | {"members": members}
    answers = iter([ANSWER, ANSWER | {"lb": "lb-1", "reason": "l4_established"}])
    api.paths["/v1/trace"] = lambda handler, _: handler.send_json(next(answers))
    result = gale(*QUESTION, "--all-lbs")
    assert result.exit_code == 0, result.output
    assert "lb-1" in result.stdout
    answers = iter([ANSWER, ANSWER | {"lb": "lb-1", "node": "node-2@10.81.0.22"}])
    result = gale(*QUESTION, "--all-lbs")
    assert result.exit_code == 1
    assert (
        "the load balancers disagree: node: node-1@10.81.0.21 on lb-0; node-2@10.81.0.22 on lb-1"
        in result.stdout
    )
