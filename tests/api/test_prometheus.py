"""What Prometheus is given: the exposition, the alert rules and the dashboard, by its own tool."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from services.api.metrics import Scrape, exposition
from tests.api.test_metrics import LOCAL, full, scraped

SHIPPED = Path(__file__).parents[2] / "conf" / "prometheus"
RULES = SHIPPED / "gale.rules.yml"
DASHBOARD = SHIPPED / "gale-dashboard.json"
OPERATING = Path(__file__).parents[2] / "docs" / "operating.md"
LB, OTHER = 'job="gale",instance="lb-0:5555"', 'job="gale",instance="lb-1:5555"'

WELL = {
    f"up{{{LB}}}": "1",
    f'gale_control_age_seconds{{{LB},process="health"}}': "0.5",
    f"gale_ready{{{LB}}}": "1",
    f'gale_node_state{{{LB},node="n",state="down"}}': "0",
    f'gale_node_state{{{LB},node="n",state="banned"}}': "0",
    f'gale_node_state{{{LB},node="n",state="suspect"}}': "0",
    f'gale_ring_slots{{{LB},service="web",node="n"}}': "65537",
    f"gale_quorum_has_majority{{{LB}}}": "1",
    f"gale_quorum_members{{{LB}}}": "3",
    f"gale_quorum_members_alive{{{LB}}}": "3",
    f"gale_quorum_is_leader{{{LB}}}": "1",
    f"gale_quorum_is_leader{{{OTHER}}}": "0",
    f"gale_table_epoch{{{LB}}}": "7",
    f"gale_table_epoch{{{OTHER}}}": "7",
    f"gale_lease_changes_total{{{LB}}}": "1",
    f'gale_conntrack_entries{{{LB},table="established"}}': "100",
    f'gale_conntrack_entries{{{LB},table="half_open"}}': "100",
    f"gale_conntrack_capacity{{{LB}}}": "1000",
    f"gale_snat_ports_used{{{LB}}}": "10",
    f"gale_snat_ports_capacity{{{LB}}}": "1000",
    f'gale_verdicts_total{{{LB},hook="xdp_public",reason="drop_no_port"}}': "0",
    f'gale_rejected_messages_total{{{LB},channel="nodes",reason="malformed"}}': "0",
    f'gale_bus_dropped_total{{{LB},source="health"}}': "0",
    f"gale_replication_lag_seconds{{{LB}}}": "0.01",
    f'gale_build_info{{{LB},version="1"}}': "1",
    f'gale_build_info{{{OTHER},version="1"}}': "1",
}
"""One sample each, of a cluster in which nothing is wrong."""

TROUBLE: dict[str, dict[str, str]] = {
    "GaleUnreachable": {f"up{{{LB}}}": "0"},
    "GaleProcessSilent": {f'gale_control_age_seconds{{{LB},process="health"}}': "30"},
    "GaleNotReady": {f"gale_ready{{{LB}}}": "0"},
    "GaleNodeDown": {f'gale_node_state{{{LB},node="n",state="down"}}': "1"},
    "GaleNodeBanned": {f'gale_node_state{{{LB},node="n",state="banned"}}': "1"},
    "GaleNodeSuspect": {f'gale_node_state{{{LB},node="n",state="suspect"}}': "1"},
    "GaleServiceEmpty": {f'gale_ring_slots{{{LB},service="web",node="n"}}': "0"},
    "GaleQuorumLost": {f"gale_quorum_has_majority{{{LB}}}": "0"},
    "GaleLbGone": {f"gale_quorum_members_alive{{{LB}}}": "2"},
    "GaleNoLeader": {f"gale_quorum_has_majority{{{LB}}}": "0"},
    "GaleTwoLeaders": {f"gale_quorum_is_leader{{{OTHER}}}": "1"},
    "GaleTableBehind": {f"gale_table_epoch{{{OTHER}}}": "6"},
    "GaleLeaseMoves": {f"gale_lease_changes_total{{{LB}}}": "0+1x480"},
    "GaleFlowTableFilling": {f'gale_conntrack_entries{{{LB},table="established"}}': "801"},
    "GaleSnatPortsShort": {f"gale_snat_ports_used{{{LB}}}": "801"},
    "GaleDrops": {
        f'gale_verdicts_total{{{LB},hook="xdp_public",reason="drop_no_port"}}': "0+3000x480"
    },
    "GaleMessagesRefused": {
        f'gale_rejected_messages_total{{{LB},channel="nodes",reason="malformed"}}': "0+30x480"
    },
    "GaleBusDropped": {f'gale_bus_dropped_total{{{LB},source="health"}}': "0+1x480"},
    "GaleReplicationSlow": {f"gale_replication_lag_seconds{{{LB}}}": "0.6"},
    "GaleVersionsDiffer": {f'gale_build_info{{{OTHER},version="1"}}': "0x0 stale"}
    | {f'gale_build_info{{{OTHER},version="2"}}': "1"},
}
"""By alert: what of that is otherwise."""

ONE_SERVICE = {
    alert: f'gale_node_service_state{{{LB},service="web",node="n",state="{state}"}}'
    for alert, state in (("GaleNodeDown", "down"), ("GaleNodeBanned", "banned"))
}
"""The same may be said of one service of a node alone."""


def promtool(*arguments: str | Path, given: bytes | None = None) -> str:
    """What it says; fails if it is not content."""
    ran = subprocess.run(
        ["promtool", *arguments],
        input=given,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        check=False,
    )
    said = ran.stdout.decode()
    assert ran.returncode == 0, said
    return said


def alerts() -> dict[str, str]:
    """By name: the expression."""
    text = RULES.read_text()
    found = re.findall(r"- alert: (\w+)\n\s+expr: (.+)", text)
    assert len(found) == text.count("alert:")
    return dict(found)


def test_the_exposition_is_as_prometheus_wants_it() -> None:
    scrape = Scrape(full(), LOCAL, {"health": 3}, {"malformed": 2}, 0)
    assert promtool("check", "metrics", given=exposition(lambda: scrape)()) == ""


def test_the_rules_are_rules() -> None:
    assert f"SUCCESS: {len(alerts())} rules found" in promtool("check", "rules", RULES)


def test_every_alert_is_provoked_here() -> None:
    assert set(TROUBLE) == set(alerts())


def test_every_alert_is_explained_to_operators() -> None:
    section = OPERATING.read_text().partition("## What each alert means\n")[2].partition("\n## ")[0]
    rows = [line.strip("| ").split(" | ") for line in section.splitlines() if "| `Gale" in line]
    said = {alert.strip("`"): severity for alert, severity, _, _ in rows}
    severities = re.findall(
        r"- alert: (\w+)\n(?: +\S.*\n)*? +labels: { severity: (\w+) }", RULES.read_text()
    )
    assert said == dict(severities)
    assert set(said) == set(alerts())
    assert len(rows) == len(said)


def test_a_leader_whose_metrics_cannot_be_had_still_leads(tmp_path: Path) -> None:
    silent = {f"gale_quorum_is_leader{{{LB}}}": "0x0 stale"}
    firing = 'count(ALERTS{alertname="GaleNoLeader",alertstate="firing"})'
    file = tmp_path / "test.yml"
    tests = [scene(WELL | silent, firing, [])]
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": tests}))
    promtool("test", "rules", file)


def scene(samples: dict[str, str], expression: str, expected: list[int]) -> dict[str, Any]:
    """Two hours of these samples, one each 15 s, and what the expression is then."""
    return {
        "interval": "15s",
        "input_series": [
            {"series": name, "values": values if "x" in values else f"{values}+0x480"}
            for name, values in samples.items()
        ],
        "promql_expr_test": [
            {
                "expr": expression,
                "eval_time": "118m",
                "exp_samples": [{"labels": "{}", "value": value} for value in expected],
            }
        ],
    }


def test_each_alert_fires_in_its_trouble_and_none_without(tmp_path: Path) -> None:
    scenes = [scene(WELL, 'count(ALERTS{alertstate="firing"})', [])]
    for alert, otherwise in TROUBLE.items():
        firing = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
        scenes.append(scene(WELL | otherwise, firing, [1]))
        if alert in ONE_SERVICE:
            scenes.append(scene(WELL | {ONE_SERVICE[alert]: "1"}, firing, [1]))
    file = tmp_path / "test.yml"
    file.write_text(json.dumps({"rule_files": [str(RULES)], "tests": scenes}))
    promtool("test", "rules", file)


# --------------------------------------------------------------------------- names


def expressions() -> Iterator[tuple[str, str]]:
    """Where, and what is asked of Prometheus there."""
    yield from ((f"alert {name}", expression) for name, expression in alerts().items())
    yield from strings_within(json.loads(DASHBOARD.read_text()), "dashboard")


def strings_within(value: Any, where: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, each in value.items():
            yield from strings_within(each, f"{where}.{name}")
    elif isinstance(value, list):
        for index, each in enumerate(value):
            yield from strings_within(each, f"{where}[{index}]")
    elif isinstance(value, str) and where.rsplit(".", 1)[-1] in ("expr", "query", "definition"):
        yield where, value


def test_only_names_that_exist_are_asked_for() -> None:
    samples = scraped(full())
    labels: dict[str, set[str]] = {}
    for name, pairs in samples:
        labels.setdefault(name, {"job", "instance"}).update(label for label, _ in pairs)
    asked = 0
    for where, expression in expressions():
        for name, selector in re.findall(r"\b(gale_\w+)(?:\{([^}]*)\})?", expression):
            assert name in labels, f"{where}: {name}"
            used = set(re.findall(r"(\w+)\s*(?:=~|!=|!~|=)", selector or ""))
            assert used <= labels[name], f"{where}: {name}{{{selector}}}"
            asked += 1
    assert asked > 40


def test_the_dashboard_shows_most_of_what_there_is() -> None:
    asked = " ".join(expression for _, expression in expressions())
    names = {name for name, _ in scraped(full())}
    assert {name for name in names if name.startswith("gale_") and name not in asked} <= {
        "gale_node_service_state",
        "gale_quorum_term",
        "gale_quorum_eligible",
    }


def test_panels_do_not_lie_on_one_another() -> None:
    dashboard = json.loads(DASHBOARD.read_text())
    taken: set[tuple[int, int]] = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not cells & taken, panel["title"]
        assert at["x"] + at["w"] <= 24
        taken |= cells
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(ids) == len(set(ids))
