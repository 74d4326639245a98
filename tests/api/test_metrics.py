"""`/metrics`: names are a contract."""

from __future__ import annotations

from dataclasses import replace

from prometheus_client.parser import text_string_to_metric_families

from bus import topics
from bus.states import QuorumMember, SeatCounters, ServiceState
from bus.topics import Topic
from bus.words import NodeState
from services.api.fold import Fold
from services.api.metrics import Scrape, exposition
from services.api.snapshot import Local
from tests.api.samples import (
    checks,
    counters,
    dataplane,
    envelope,
    everything,
    node,
    node_id,
    quorum,
    seat,
    view,
)

LOCAL = Local("lb-0", "l4", "0.1.0", 99, None, "")
NODE = node_id("node-0")

WITH_A_SOURCE = {
    "gale_ready",
    "gale_quorum_has_majority",
    "gale_quorum_eligible",
    "gale_quorum_members",
    "gale_quorum_members_alive",
    "gale_replication_lag_seconds",
    "gale_replication_total",
    "gale_packets_total",
    "gale_bytes_total",
    "gale_flows_total",
    "gale_verdicts_total",
    "gale_conntrack_entries",
    "gale_conntrack_capacity",
    "gale_snat_ports_used",
    "gale_snat_port_rest_seconds",
    "gale_node_state",
    "gale_node_checks_total",
    "gale_ring_slots",
    "gale_ring_moved_slots_total",
    "gale_table_epoch",
    "gale_quorum_term",
    "gale_quorum_is_leader",
    "gale_lease_remaining_seconds",
    "gale_lease_changes_total",
    "gale_control_age_seconds",
    "gale_bus_dropped_total",
    "gale_rejected_messages_total",
    "gale_build_info",
}

Sample = tuple[str, frozenset[tuple[str, str]]]


def scraped(fold: Fold, now_ms: int = 0) -> dict[Sample, float]:
    scrape = Scrape(fold, LOCAL, {"health": 3}, {"malformed": 2}, now_ms)
    text = exposition(lambda: scrape)().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def sample(name: str, **labels: str) -> Sample:
    return name, frozenset(labels.items())


def full() -> Fold:
    fold = Fold("api", {})
    for message in everything():
        fold.receive(message, 0)
    unfit = QuorumMember("lb-0", "10.81.0.10:8081", True, 3, 1, 0, ("no carrier",))
    counted = SeatCounters("default", NODE, 1, 2, 3, 4, 5, 7.5)
    unheard = SeatCounters("default", node_id("node-1"), 0, 0, 0, 0, 0)
    apart = node(apart=(ServiceState("echo", NodeState.BANNED, "", 5_000),))
    for source, topic, data in (
        (topics.HEALTH, Topic.STATE_VIEW, view(apart)),
        (topics.HEALTH, Topic.STATE_CHECKS, checks(node(), unknown_kind=4)),
        (
            topics.DATAPLANE,
            Topic.STATE_COUNTERS,
            replace(
                counters(counted, unheard, **{"xdp_public.drop_no_node": 6}),
                replication_lag_seconds=0.004,
                replication={"told": 9},
            ),
        ),
        (topics.DATAPLANE, Topic.STATE_DATAPLANE, dataplane(seat("node-0", 65537, 65537))),
        (
            topics.QUORUM,
            Topic.STATE_QUORUM,
            quorum(members=(unfit,), rejected={"stranger": 6}),
        ),
    ):
        fold.receive(envelope(source, topic, data, seq=2), 0)
    return fold


def test_every_name_that_has_a_source() -> None:
    assert {name for name, _ in scraped(full())} >= WITH_A_SOURCE


def test_values_and_labels() -> None:
    values = scraped(full(), now_ms=50)
    where = {"service": "default", "node": NODE, "mode": "l4"}
    expected = {
        sample("gale_packets_total", **where, direction="in"): 1,
        sample("gale_bytes_total", **where, direction="in"): 2,
        sample("gale_packets_total", **where, direction="out"): 3,
        sample("gale_bytes_total", **where, direction="out"): 4,
        sample("gale_flows_total", **where): 5,
        sample("gale_verdicts_total", hook="xdp_public", reason="drop_no_node"): 6,
        sample("gale_conntrack_entries", table="established"): 5,
        sample("gale_conntrack_entries", table="half_open"): 2,
        sample("gale_conntrack_capacity"): 262_144,
        sample("gale_snat_port_rest_seconds", service="default", node=NODE): 7.5,
        sample("gale_ready"): 1,
        sample("gale_quorum_has_majority"): 1,
        sample("gale_quorum_eligible"): 0,
        sample("gale_rejected_messages_total", channel="quorum", reason="stranger"): 6,
        sample("gale_quorum_members"): 1,
        sample("gale_quorum_members_alive"): 1,
        sample("gale_replication_lag_seconds"): 0.004,
        sample("gale_replication_total", event="told"): 9,
        sample("gale_node_state", node=NODE, state="up"): 1,
        sample("gale_node_state", node=NODE, state="down"): 0,
        sample("gale_node_checks_total", node=NODE, result="good"): 10,
        sample("gale_node_checks_total", node=NODE, result="bad"): 1,
        sample("gale_ring_slots", service="default", node=NODE): 65537,
        sample("gale_ring_moved_slots_total"): 7,
        sample("gale_table_epoch"): 1,
        sample("gale_quorum_term"): 3,
        sample("gale_quorum_is_leader"): 1,
        sample("gale_lease_remaining_seconds"): 0.15,
        sample("gale_lease_changes_total"): 1,
        sample("gale_control_age_seconds", process="health"): 0.05,
        sample("gale_bus_dropped_total", source="health"): 3,
        sample("gale_rejected_messages_total", channel="bus", reason="malformed"): 2,
        sample("gale_rejected_messages_total", channel="nodes", reason="unknown_kind"): 4,
        sample("gale_build_info", version="0.1.0"): 1,
    }
    assert {name: values.get(name) for name in expected} == expected


def test_what_counts_faults_is_there_before_the_first_one() -> None:
    values = scraped(full())
    for source in ("dataplane", "quorum"):
        assert values[sample("gale_bus_dropped_total", source=source)] == 0
    for channel in ("nodes", "quorum"):
        refused = sample("gale_rejected_messages_total", channel=channel, reason="malformed")
        assert values[refused] == 0


def test_a_node_that_never_took_a_port_has_no_rest() -> None:
    rests = [labels for name, labels in scraped(full()) if name == "gale_snat_port_rest_seconds"]
    assert [dict(labels)["node"] for labels in rests] == [NODE]


def test_only_a_service_that_goes_its_own_way_has_a_state_of_its_own() -> None:
    found = {key: value for key, value in scraped(full()).items() if "node_service" in key[0]}
    assert found == {
        sample("gale_node_service_state", service="echo", node=NODE, state="banned"): 1
    }


def test_a_node_is_in_exactly_one_state() -> None:
    states = [value for (name, _), value in scraped(full()).items() if name == "gale_node_state"]
    assert sorted(states) == [0] * (len(NodeState) - 1) + [1]


def test_what_is_unknown_is_absent() -> None:
    names = {name for name, _ in scraped(Fold("api", {}))}
    assert "gale_table_epoch" not in names
    assert "gale_conntrack_entries" not in names
    assert "gale_build_info" in names


def test_nothing_identifies_a_client() -> None:
    allowed = {
        *("service", "node", "reason", "mode", "direction", "table", "state", "result"),
        *("process", "source", "channel", "version", "hook", "event"),
    }
    assert {label for _, labels in scraped(full()) for label, _ in labels} <= allowed
