"""`/metrics`: the picture as Prometheus reads it, made anew at each scrape.

Names are a contract (dashboards, alerts): prefix `gale_`, base units, `_total` for counters. Labels
are `service`, `node` (its id), `reason`, `mode` and a few fixed words; never a client's address. A
family whose source has not spoken yet is absent rather than 0: unknown is not none. What counts
faults is there with 0 before the first one, since Prometheus sees no increase in a beginning.

Counters are what the kernel counted since the maps were made, so they survive restarts of every
process; `gale_bus_dropped_total` and `gale_rejected_messages_total{channel="bus"}` are the API's
own and start over with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from bus import topics
from bus.codec import MalformedMessage
from bus.states import (
    CommittedTable,
    Counters,
    DataplaneState,
    LocalChecks,
    NodesState,
    QuorumState,
)
from bus.topics import Topic
from bus.words import (
    NodeState,
    Role,
)
from services.api.fold import Fold
from services.api.snapshot import Local, age_ms, data_of, readiness


@dataclass(frozen=True, slots=True)
class Scrape:
    """What one scrape is made of."""

    fold: Fold
    local: Local
    dropped: Mapping[str, int]
    """Messages of the bus that never came, by source."""
    rejected: Mapping[str, int]
    """Messages of the bus that were refused, by reason."""
    now_ms: int


def exposition(scrape: Callable[[], Scrape]) -> Callable[[], bytes]:
    """The function that answers a scrape, in Prometheus's text format."""
    registry = CollectorRegistry()
    registry.register(_GaleCollector(scrape))
    return lambda: generate_latest(registry)


class _GaleCollector(Collector):
    def __init__(self, scrape: Callable[[], Scrape]) -> None:
        self._scrape = scrape

    def describe(self) -> list[Metric]:
        """Nothing: registering must not ask for values that are not there yet."""
        return []

    def collect(self) -> Iterator[Metric]:
        scrape = self._scrape()
        yield from _process_metrics(scrape)
        if (counters := data_of(scrape.fold, Topic.STATE_COUNTERS)) is not None:
            yield from _traffic_metrics(counters, scrape)
            yield from _conntrack_metrics(counters)
            yield from _replication_metrics(counters)
        if (observed := scrape.fold.nodes_state(scrape.now_ms)) is not None:
            yield from _node_metrics(observed)
        if (dataplane := data_of(scrape.fold, Topic.STATE_DATAPLANE)) is not None:
            yield from _ring_metrics(dataplane)
        if (committed := data_of(scrape.fold, Topic.STATE_TABLE)) is not None:
            yield _gauge("gale_table_epoch", "Version of the node table.", committed.table.epoch)
        if (quorum := data_of(scrape.fold, Topic.STATE_QUORUM)) is not None:
            age = age_ms(scrape.fold, Topic.STATE_QUORUM, scrape.now_ms) or 0
            yield from _quorum_metrics(quorum, age)


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(name, documentation, value=value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(name, documentation, value=value)


def _process_metrics(scrape: Scrape) -> Iterator[Metric]:
    build = GaugeMetricFamily("gale_build_info", "1, labelled by version.", labels=["version"])
    build.add_metric([scrape.local.version], 1)
    yield build
    not_ready = readiness(scrape.fold, scrape.now_ms)
    yield _gauge("gale_ready", "1 while this LB forwards, to some node.", float(not not_ready))
    age = GaugeMetricFamily(
        "gale_control_age_seconds", "Since each process was last heard.", labels=["process"]
    )
    for name, process in sorted(scrape.fold.processes.items()):
        heard_ms = scrape.now_ms if name == topics.API else process.heard_ms
        age.add_metric([name], max(0, scrape.now_ms - heard_ms) / 1000)
    yield age
    dropped = CounterMetricFamily(
        "gale_bus_dropped_total", "Messages of the bus the API never got.", labels=["source"]
    )
    for source in sorted({*topics.SERVICES, *scrape.dropped} - {topics.API}):
        dropped.add_metric([source], scrape.dropped.get(source, 0))
    yield dropped
    rejected = CounterMetricFamily(
        "gale_rejected_messages_total",
        "Messages refused as malformed or unwanted.",
        labels=["channel", "reason"],
    )
    checks: LocalChecks | None = data_of(scrape.fold, Topic.STATE_CHECKS)
    quorum: QuorumState | None = data_of(scrape.fold, Topic.STATE_QUORUM)
    channels = {"bus": scrape.rejected}
    if checks is not None:
        channels["nodes"] = checks.rejected
    if quorum is not None:
        channels["quorum"] = quorum.rejected
    for channel, counted in channels.items():
        for reason in sorted({MalformedMessage.reason, *counted}):
            rejected.add_metric([channel, reason], counted.get(reason, 0))
    yield rejected


def _traffic_metrics(counters: Counters, scrape: Scrape) -> Iterator[Metric]:
    committed: CommittedTable | None = data_of(scrape.fold, Topic.STATE_TABLE)
    services = committed.table.services if committed is not None else ()
    modes = {service.name: service.mode.value for service in services}
    labels = ["service", "node", "mode"]
    packets = CounterMetricFamily(
        "gale_packets_total", "Packets, to the node (in) and back.", labels=[*labels, "direction"]
    )
    octets = CounterMetricFamily(
        "gale_bytes_total", "Bytes, to the node (in) and back.", labels=[*labels, "direction"]
    )
    flows = CounterMetricFamily("gale_flows_total", "Flows begun.", labels=labels)
    for seat in counters.seats:
        where = [seat.service, seat.node, modes.get(seat.service, scrape.local.mode)]
        packets.add_metric([*where, "in"], seat.packets_in)
        packets.add_metric([*where, "out"], seat.packets_out)
        octets.add_metric([*where, "in"], seat.bytes_in)
        octets.add_metric([*where, "out"], seat.bytes_out)
        flows.add_metric(where, seat.flows)
    yield from (packets, octets, flows)
    verdicts = CounterMetricFamily(
        "gale_verdicts_total",
        "Packets a program has seen, by the one reason each was given.",
        labels=["hook", "reason"],
    )
    for name, count in sorted(counters.verdicts.items()):
        hook, _, reason = name.partition(".")
        verdicts.add_metric([hook, reason], count)
    yield verdicts


def _conntrack_metrics(counters: Counters) -> Iterator[Metric]:
    entries = GaugeMetricFamily(
        "gale_conntrack_entries", "Conntrack entries in use.", labels=["table"]
    )
    entries.add_metric(["established"], counters.conntrack_established)
    entries.add_metric(["half_open"], counters.conntrack_half_open)
    yield entries
    yield _gauge(
        "gale_conntrack_capacity",
        "Conntrack entries that fit, established ones.",
        counters.conntrack_capacity,
    )
    yield _gauge("gale_snat_ports_used", "SNAT ports taken.", counters.snat_ports_used)
    yield _gauge("gale_snat_ports_capacity", "SNAT ports there are.", counters.snat_ports_capacity)
    rests = GaugeMetricFamily(
        "gale_snat_port_rest_seconds",
        "How long the SNAT port taken last towards the node had not been used.",
        labels=["service", "node"],
    )
    for seat in counters.seats:
        if seat.snat_port_rest_seconds is not None:
            rests.add_metric([seat.service, seat.node], seat.snat_port_rest_seconds)
    yield rests


def _replication_metrics(counters: Counters) -> Iterator[Metric]:
    if counters.replication_lag_seconds is not None:
        yield _gauge(
            "gale_replication_lag_seconds",
            "How long what becomes of flows here took to be known to all other LBs, at most.",
            counters.replication_lag_seconds,
        )
    told = CounterMetricFamily(
        "gale_replication_total",
        "What became of records and messages about flows between LBs.",
        labels=["event"],
    )
    for name, count in sorted(counters.replication.items()):
        told.add_metric([name], count)
    yield told


def _node_metrics(observed: NodesState) -> Iterator[Metric]:
    states = GaugeMetricFamily(
        "gale_node_state",
        "1 for the state a node is in as seen from here, 0 for the others.",
        labels=["node", "state"],
    )
    checks = CounterMetricFamily(
        "gale_node_checks_total", "Health checks by result.", labels=["node", "result"]
    )
    for node in observed.nodes:
        for state in NodeState:
            states.add_metric([node.id, state], node.state is state)
        checks.add_metric([node.id, "good"], node.checks_good_total)
        checks.add_metric([node.id, "bad"], node.checks_bad_total)
    yield from (states, checks, _service_states(observed))


def _service_states(observed: NodesState) -> Metric:
    """Of the services that go their own way alone: ten thousand nodes at sixty services would be
    millions of series that say what `gale_node_state` does.
    """
    apart = GaugeMetricFamily(
        "gale_node_service_state",
        "1 for the state of a service that stands otherwise than its node does, as seen from here.",
        labels=["service", "node", "state"],
    )
    for node in observed.nodes:
        for each in node.apart:
            apart.add_metric([each.service, node.id, each.state], 1)
    return apart


def _ring_metrics(dataplane: DataplaneState) -> Iterator[Metric]:
    slots = GaugeMetricFamily(
        "gale_ring_slots", "Slots of a service's ring that name a node.", labels=["service", "node"]
    )
    for seat in dataplane.seats:
        slots.add_metric([seat.service, seat.node], seat.slots)
    yield slots
    yield _counter(
        "gale_ring_moved_slots_total", "Slots rewritten so far.", dataplane.moved_slots_total
    )


def _quorum_metrics(quorum: QuorumState, age: int) -> Iterator[Metric]:
    remaining_ms = max(0, quorum.lease_remaining_ms - age)
    yield _gauge("gale_quorum_term", "The election's number.", quorum.term)
    yield _gauge(
        "gale_quorum_has_majority", "1 while a majority of the LBs is heard.", float(quorum.quorum)
    )
    alive = sum(1 for member in quorum.members if member.alive)
    yield _gauge("gale_quorum_members", "LBs there should be.", len(quorum.members))
    yield _gauge("gale_quorum_members_alive", "LBs that are heard, this one among them.", alive)
    yield _gauge(
        "gale_quorum_is_leader", "1 while this LB leads.", float(quorum.role is Role.LEADER)
    )
    eligible = any(each.name == quorum.name and not each.why_not for each in quorum.members)
    yield _gauge("gale_quorum_eligible", "1 while this LB may hold VIPs.", float(eligible))
    yield _gauge("gale_lease_remaining_seconds", "What is left of the lease.", remaining_ms / 1000)
    yield _counter(
        "gale_lease_changes_total", "How often the lease has moved.", quorum.lease_changes
    )
