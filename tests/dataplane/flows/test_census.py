"""What a pass counts, and what a plan may conclude from it."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator

import numpy as np
import pytest

from bpf.clock import ticks
from bpf.loader import LoadedObject
from bus.words import Protocol
from services.dataplane.flows.census import Census, Counting, Watch
from services.dataplane.flows.record import TCP, UDP, FlowState
from services.dataplane.words import ServiceKey
from tests.dataplane.flows.made import SNAT, VIP, address, both, flow_type, readers, requests, write
from tests.dataplane.maps import maps


@pytest.fixture
def loaded() -> Iterator[LoadedObject]:
    with maps() as made:
        yield made


def count(loaded: LoadedObject, watch: Watch | None = None) -> Census:
    pair = readers(loaded.bpf)
    counting = Counting(7, watch or Watch())
    for block in pair.blocks():
        counting.add(block.records, old=block.table is pair.old_flows)
    return counting.result()


def put(loaded: LoadedObject, count: int, name: str = "flows", **fields: object) -> None:
    table = loaded.bpf[name.encode()]
    write(table, both(requests(flow_type(table), count, ticks(time.monotonic_ns()), **fields)))


def test_flows_are_counted_by_their_requests_and_by_how_open_they_are(
    loaded: LoadedObject,
) -> None:
    states = np.array([1, 1, 1, 2, 3, 3, 3, 3, 3, 4, 4, 5, 6, 7, 7, 8, 9, 9])
    protocols = np.where(states < FlowState.UDP_ASKED, TCP, UDP)
    put(loaded, len(states), state=states, key_protocol=protocols)
    census = count(loaded)
    assert (census.half_open, census.established) == (3 + 1 + 2 + 1, 5 + 2 + 1 + 1 + 2)
    assert (census.began_ms, census.old_records) == (7, 0)


def test_nothing_is_nothing(loaded: LoadedObject) -> None:
    assert count(loaded) == Census(7, 0, 0, 0, 0, frozenset(), {}, {})


def test_seats_of_both_directions_and_of_both_tables_count(loaded: LoadedObject) -> None:
    table = loaded.bpf[b"flows"]
    now = ticks(time.monotonic_ns())
    made = both(requests(flow_type(table), 2, now))
    # A request that has gone, of which the reply is there; seats up to the last.
    made["seat"] = [5, 6, 5, 65_535]
    made["deadline"][1] = now - 1
    write(table, made)
    put(loaded, 3, "old_flows", seat=9)
    census = count(loaded)
    assert census.seats == {5, 9, 65_535}
    assert census.old_records == 6
    assert census.established == 1 + 3


def test_only_flows_with_an_address_of_ours_hold_a_port(loaded: LoadedObject) -> None:
    number = np.arange(10)
    table = loaded.bpf[b"flows"]
    plain = requests(flow_type(table), 10, 1000)
    source = np.where(number < 4, plain["key"]["saddr"], plain["saddr"])
    put(loaded, 10, saddr=source)
    assert count(loaded).snat_ports == 6


def test_a_port_of_another_lbs_is_not_held_here(loaded: LoadedObject) -> None:
    """Ports of a shared address count by whose they are, those of another one by their own."""
    ports = [600, 652, 653, 1_536, 9_343, 9_344, 60_000, 1_536]
    other = "10.81.0.11"
    number = np.arange(len(ports))
    put(
        loaded,
        len(ports),
        sport=[socket.htons(port) for port in ports],
        saddr=np.where(number == 7, address(other), address(SNAT)),
    )
    shared = (range(1_536, 9_344), range(600, 653))
    assert count(loaded, Watch(own_ports={SNAT: shared})).snat_ports == 4
    assert count(loaded, Watch(own_ports={SNAT: shared, "10.81.0.98": shared})).snat_ports == 4
    both_of_ours = {SNAT: shared, other: (range(1_536, 1_537), range(0))}
    assert count(loaded, Watch(own_ports=both_of_ours)).snat_ports == 5
    assert count(loaded, Watch(own_ports={})).snat_ports == 0
    assert count(loaded).snat_ports == len(ports)


def test_what_is_watched_is_counted_by_address_port_and_protocol(loaded: LoadedObject) -> None:
    web = ServiceKey(VIP, 8080, Protocol.TCP)
    near = [
        ServiceKey(VIP, 8080, Protocol.UDP),
        ServiceKey(VIP, 8081, Protocol.TCP),
        ServiceKey("10.80.0.101", 8080, Protocol.TCP),
    ]
    number = np.arange(9)
    put(
        loaded,
        9,
        key_dport=np.where(number == 8, socket.htons(8081), socket.htons(8080)),
        saddr=np.where(number < 2, address("10.81.0.98"), address(SNAT)),
    )
    watch = Watch(frozenset({web, *near}), frozenset({SNAT, "10.81.0.98", "10.81.0.97", VIP}))
    census = count(loaded, watch)
    assert census.fronts == {web: 8, near[0]: 0, near[1]: 1, near[2]: 0}
    assert census.snat_addresses == {SNAT: 7, "10.81.0.98": 2, "10.81.0.97": 0, VIP: 0}


def test_an_address_of_the_client_s_own_is_no_snat_address(loaded: LoadedObject) -> None:
    put(loaded, 3, saddr=address("192.0.2.1"), key_saddr=address("192.0.2.1"))
    census = count(loaded, Watch(snat_addresses=frozenset({"192.0.2.1"})))
    assert census.snat_addresses == {"192.0.2.1": 0}
