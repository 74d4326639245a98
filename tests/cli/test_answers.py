"""The commands that show what the API knows: tables for people, `--json` for programs."""

from __future__ import annotations

import sys

import orjson
import pytest
from rich.console import Console

from services.cli import tables
from services.cli.tables import count, percent, size, span
from tests.cli.conftest import Gale
from tests.cli.local_api import ANSWERS, FLOW, PLAN, Handler, LocalApi
from tests.cli.test_trace import ANSWER as TRACE


@pytest.mark.parametrize("command", ["status", "nodes", "services", "quorum", "flows"])
def test_json_is_the_apis_answer(gale: Gale, command: str) -> None:
    result = gale(command, "--json")
    assert result.exit_code == (1 if command == "status" else 0), "it is not ready"
    assert orjson.loads(result.stdout) == ANSWERS[f"/v1/{command}"]


def row_of(output: str, word: str) -> list[str]:
    """The words of the line that has this word."""
    return next(line.split() for line in output.splitlines() if word in line.split())


def test_nodes(gale: Gale) -> None:
    result = gale("nodes")
    assert result.exit_code == 0
    row = " ".join(row_of(result.stdout, "node-1"))
    assert row == (
        "node-1 10.81.0.21 banned down 2 25.0 % 2 3 5 4 m 10 s 1.2 s node-1@10.81.0.21 5 failures"
    )


def test_services(gale: Gale) -> None:
    result = gale("services")
    assert "default: tcp (public address):8080 -> port 80, l4, by flow, 2 nodes" in result.stdout
    row = " ".join(row_of(result.stdout, "node-1@10.81.0.21"))
    assert row == "node-1@10.81.0.21 32 768 50.0 % 3 12 345 987 B 7 4.2 kB 5 failures"


def test_quorum(gale: Gale) -> None:
    result = gale("quorum")
    assert (
        "lb-0 is leader, quorum, leader lb-0, term 7, epoch 42, lease 225 ms"
        in result.stdout.splitlines()
    )
    assert "VIP 10.80.0.100 at lb-0" in result.stdout
    assert "2 vote, an even number" in result.stdout.splitlines()
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
    assert result.exit_code == 1, "it is not ready"
    lines = result.stdout.splitlines()
    assert lines[0] == "lb-0  l4  gale 0.1.0  NOT READY"
    assert "  health: nothing heard for 7 s" in lines
    assert "2 vote, an even number" in lines
    assert "  10.80.0.100: 02:00:00:00:66:66 claims it too" in lines
    assert not any("10.81.0.100:" in line for line in lines), "there is no trouble with that one"
    assert " ".join(row_of(result.stdout, "health")) == "health SILENT never priv0 to appear"
    assert " ".join(row_of(result.stdout, "quorum")) == "quorum alive 120 ms 4711"
    assert row_of(result.stdout, "xdp_public")[:3] == ["xdp_public", "pub0", "attached"]
    sent = " ".join(row_of(result.stdout, "requests"))
    assert sent == "priv0 requests tc a bridge: it takes no frames from XDP"
    assert "conntrack 1 234 567 of 2 000 000 established" in result.stdout
    assert "flows: synced, told to the others within 17 ms" in result.stdout
    assert "lb-1: its flows are known here; those of here are told to it" in result.stdout
    assert "10.81.0.12: refuses this LB: this is the cluster 'other'" in result.stdout
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


@pytest.mark.parametrize("options", [(), ("--json",)])
def test_status_says_well_when_it_is_ready(
    api: LocalApi, gale: Gale, options: tuple[str, ...]
) -> None:
    assert gale("status", *options).exit_code == 1
    api.paths["/v1/status"] = ANSWERS["/v1/status"] | {"ready": True, "not_ready": []}
    assert gale("status", *options).exit_code == 0


def test_flows_of_what_there_is_not_are_an_error(api: LocalApi, gale: Gale) -> None:
    def refuse(handler: Handler, _parameters: dict[str, str]) -> None:
        handler.send_json({"title": "Not Found", "detail": "no service is named nosuch"}, 404)

    api.paths["/v1/flows"] = refuse
    result = gale("flows", "--service", "nosuch")
    assert result.exit_code == 1
    assert "no service is named nosuch" in result.stderr
    assert result.stdout == ""


# ----------------------------------------------------------------- room

LONG = "a-name-of-a-node-that-somebody-thought-of"


def drawn(monkeypatch: pytest.MonkeyPatch, gale: Gale, width: int, *command: str) -> str:
    """What a terminal of that width shows."""
    monkeypatch.setattr(
        tables,
        "console",
        lambda: Console(file=sys.stdout, width=width, highlight=False, markup=False),
    )
    result = gale(*command)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert max(map(len, lines)) <= width
    return "\n".join(lines)


def words(text: str) -> str:
    """All that a table says, whatever line it stands in."""
    return "".join(text.split())


COMMANDS = (
    *(("status",), ("nodes",), ("services",), ("flows",), ("quorum",)),
    ("plan", "--without", "node-1"),
    ("trace", "tcp", "192.0.2.7:40000", "10.80.0.100:8080"),
)


@pytest.mark.parametrize("width", [40, 60, 80, 100, 120, 200])
@pytest.mark.parametrize("command", COMMANDS, ids=lambda words: words[0])
def test_no_table_is_too_wide_and_none_loses_a_word(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch, gale: Gale, command: tuple[str, ...], width: int
) -> None:
    api.paths["/v1/status"] = ANSWERS["/v1/status"] | {"ready": True, "not_ready": []}
    api.paths |= {"/v1/plan": PLAN, "/v1/trace": TRACE}
    shown = drawn(monkeypatch, gale, width, *command)
    assert "…" not in shown
    whole = drawn(monkeypatch, gale, 1_000, *command)
    assert sorted(words(shown).replace("─", "")) == sorted(words(whole).replace("─", ""))


def test_flows_show_every_address_in_eighty_columns(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch, gale: Gale
) -> None:
    flow = FLOW | {
        "client": "203.200.113.254:65535",
        "vip": "198.151.100.200:60443",
        "snat": "192.168.100.100:65535",
        "node": "192.168.100.201:60443",
    }
    api.paths["/v1/flows"] = {"flows": [flow, FLOW], "total": 2}
    lines = drawn(monkeypatch, gale, 80, "flows").splitlines()
    row = next(index for index, line in enumerate(lines) if "203.200.113.254:65535" in line)
    assert lines[row].split()[:3] == ["tcp", flow["client"], flow["snat"]]
    assert lines[row + 1].split()[:3] == ["established", flow["vip"], flow["node"]]


def test_nodes_show_name_address_and_reason_in_eighty_columns(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch, gale: Gale
) -> None:
    reason = "not serving: default: port 8080: connection refused"
    node = ANSWERS["/v1/nodes"]["nodes"][0] | {"reason": reason, "address": "192.168.100.201"}
    node["services"] = [{**node["services"][0], "reason": reason}]
    api.paths["/v1/nodes"] = {"nodes": [node], "observed_ms": 1}
    shown = drawn(monkeypatch, gale, 80, "nodes")
    for word in ("node-1", "192.168.100.201", "banned", "refused"):
        assert word in shown.split()


def test_nodes_say_why_one_is_not_routed_to_at_some_services(api: LocalApi, gale: Gale) -> None:
    node = ANSWERS["/v1/nodes"]["nodes"][0] | {"state": "up", "reason": "passed its checks"}
    seat = node["services"][0] | {"state": "up", "slots": 0, "share": 0.0}
    far, full = "it is behind the router 10.81.0.254", "all 65,535 seats are taken"
    reasons = {"a": far, "b": full, "c": "", "d": full, "e": full, "f": full, "g": full}
    node["services"] = [seat | {"service": name, "reason": why} for name, why in reasons.items()]
    api.paths["/v1/nodes"] = {"nodes": [node], "observed_ms": 1}
    row = " ".join(row_of(gale("nodes").stdout, "node-1"))
    assert row.endswith(f" passed its checks; at a: {far}; at b, d, e and 2 more services: {full}")


def test_nodes_say_how_long_one_service_is_banned_yet(api: LocalApi, gale: Gale) -> None:
    node = ANSWERS["/v1/nodes"]["nodes"][0] | {"state": "up", "reason": "passed its checks"}
    seat = node["services"][0] | {"reason": "banned after 3 failures", "banned_for_ms": 40_000}
    node["services"] = [seat]
    api.paths["/v1/nodes"] = {"nodes": [node], "observed_ms": 1}
    row = " ".join(row_of(gale("nodes").stdout, "node-1"))
    assert row.endswith("; at default: banned after 3 failures, 40.0 s left")


def test_nodes_say_where_one_is_in_slow_start(api: LocalApi, gale: Gale) -> None:
    node = ANSWERS["/v1/nodes"]["nodes"][0] | {"state": "up", "reason": "passed its checks"}
    seat = node["services"][0] | {"state": "up", "reason": ""}
    starts = {"a": (30, 21_000), "b": (100, 21_000), "c": (100, 0)}
    node["services"] = [
        seat | {"service": name, "percent": percent, "slow_start_ms": left_ms}
        for name, (percent, left_ms) in starts.items()
    ]
    api.paths["/v1/nodes"] = {"nodes": [node], "observed_ms": 1}
    said = "slow start, 30 % of its weight, all of it in 21.0 s"
    row = " ".join(row_of(gale("nodes").stdout, "node-1"))
    assert row.endswith(f" passed its checks; at a: {said}")
    service = ANSWERS["/v1/services"]["services"][0] | {"nodes": node["services"][:1]}
    api.paths["/v1/services"] = {"services": [service], "observed_ms": 1}
    assert gale("services").stdout.rstrip().endswith(f" {said}")


def test_status_says_what_is_not_served(gale: Gale) -> None:
    said = "  not served: node n-9@10.81.0.29 at web: all 65,535 seats are taken"
    assert said in gale("status").stdout.splitlines()


def test_status_says_when_there_are_no_keys(api: LocalApi, gale: Gale) -> None:
    assert "no keys" not in gale("status").stdout
    api.paths["/v1/status"] = ANSWERS["/v1/status"] | {"keys": False}
    said = "  no keys: whoever reaches the private network may be a node (security.keys)"
    assert said in gale("status").stdout.splitlines()


def test_a_name_that_has_no_room_goes_on_below(
    api: LocalApi, monkeypatch: pytest.MonkeyPatch, gale: Gale
) -> None:
    node = ANSWERS["/v1/nodes"]["nodes"][0] | {"name": LONG, "id": f"{LONG}@192.168.100.201"}
    api.paths["/v1/nodes"] = {"nodes": [node], "observed_ms": 1}
    shown = drawn(monkeypatch, gale, 80, "nodes")
    assert "…" not in shown


def test_a_pipe_gets_every_row_in_one_line(gale: Gale) -> None:
    row = next(line for line in gale("flows").stdout.splitlines() if line.startswith("tcp"))
    for key in ("client", "vip", "snat", "node", "service", "state"):
        assert FLOW[key] in row.split()


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
