"""A plan's values written into real maps, read back the same, and adopted by the next process."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from bpf.loader import SOURCE_DIR, LoadedObject
from bpf.syscall import read_entries
from bus.states import (
    NodeTable,
    SnatSlice,
    TableNode,
    TableService,
)
from bus.words import (
    Affinity,
    Encapsulation,
    Mode,
    NodeState,
    NoFlow,
    Protocol,
)
from services.dataplane import front_table
from services.dataplane import kernel as constants
from services.dataplane.kernel import Kernel, Settings
from services.dataplane.maps import (
    EMPTY,
    ENTRIES,
    LANES,
    NO_PORTS,
    AddressInfo,
    AddressRemoval,
    AddressWrite,
    EndpointRemoval,
    EndpointWrite,
    KernelState,
    LocalFacts,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceRemoval,
    ServiceWrite,
    Slice,
    SlotsWrite,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import Plan, make_plan
from services.dataplane.words import (
    ServiceKey,
    address_text,
    address_word,
    mac_bytes,
    mac_text,
    port_number,
    port_word,
)
from tests.dataplane.maps import maps as real_maps

HOP = NextHop(7, "02:00:00:00:00:0b", "02:00:00:00:00:0c", 1500, None, "10.81.0.10")
SEAT = Seat(
    identity=0xFEDC_BA98_7654_3210,
    service_id=3,
    address="10.81.0.21",
    port=9000,
    cursor=8190,
    up=True,
    dead=False,
    reset=False,
    next_hop=HOP,
)
GUE, IPIP = Encapsulation.GUE, Encapsulation.IPIP
SERVICE = Service(
    service_id=5,
    identity=1,
    mode=Mode.L4,
    affinity=Affinity.FLOW,
    encap=IPIP,
    snat=True,
    no_reset=False,
    has_flows=True,
    retired=False,
    keeps_port=False,
    ring=5,
    snat_addresses=("10.81.0.10",),
    snat_slice=Slice(20_000, 4096, 600, 53),
)
KEY = ServiceKey("10.80.0.100", 8080, Protocol.TCP)


@pytest.fixture
def maps() -> Iterator[LoadedObject]:
    with real_maps() as loaded:
        yield loaded


@pytest.fixture
def kernel(maps: LoadedObject) -> Kernel:
    return Kernel(maps.bpf)


# --------------------------------------------------------------------------- single values


def test_words_and_bytes_are_as_packets_have_them() -> None:
    assert address_text(address_word("10.81.0.21")) == "10.81.0.21"
    assert address_word(None) == address_word("") == 0
    assert mac_bytes("02:00:00:00:00:0b") == bytes([2, 0, 0, 0, 0, 11])
    assert mac_text(mac_bytes("02:00:00:00:00:0b")) == "02:00:00:00:00:0b"
    assert mac_bytes(None) == bytes(6)
    assert port_number(port_word(8080)) == 8080
    assert port_word(8080).to_bytes(2, sys.byteorder) == bytes([8080 >> 8, 8080 & 255])


def test_constants_are_those_of_the_header() -> None:
    header = (SOURCE_DIR / "types.h").read_text() + (SOURCE_DIR / "service.h").read_text()
    defined = dict(re.findall(r"#define (\w+) (\w+)", header))
    both = vars(constants) | vars(front_table)
    names = [
        name
        for name in both
        if name.startswith(("SEAT_", "SERVICE_", "ADDRESS_")) and name.isupper()
    ]
    assert len(names) >= 16
    ours = {name: int(both[name]) for name in names}
    assert ours == {name: int(defined[name].rstrip("UL"), 0) for name in names}
    assert int(defined["RING_LANES"]) == LANES
    assert int(defined["RING_ENTRIES"]) == ENTRIES


def test_sizes_are_those_of_the_maps(kernel: Kernel) -> None:
    assert (kernel.max_seats, kernel.max_rings, kernel.max_endpoints) == (65_536, 16, 262_144)


@pytest.mark.parametrize(
    "seat",
    [
        SEAT,
        replace(SEAT, up=False),
        replace(SEAT, up=False, dead=True),
        replace(SEAT, up=False, dead=True, reset=True),
        replace(SEAT, next_hop=None),
        replace(SEAT, next_hop=replace(HOP, destination_mac=None)),
        replace(SEAT, next_hop=replace(HOP, by_tc=True, own=True)),
        replace(SEAT, next_hop=replace(HOP, gateway="10.81.0.254", mtu=65_535)),
        replace(SEAT, port=65_535, service_id=63, identity=2**64 - 1),
    ],
)
def test_a_seat_is_read_as_it_was_written(kernel: Kernel, seat: Seat) -> None:
    kernel.apply(SeatWrite(8191, seat, fresh=True))
    assert kernel.adopt() == KernelState({8191: seat}, {}, {})
    kernel.apply(SeatRemoval(8191))
    assert kernel.adopt() == EMPTY


def test_nothing_of_a_seats_former_value_stays(maps: LoadedObject, kernel: Kernel) -> None:
    kernel.apply(SeatWrite(1, SEAT, fresh=True))
    kernel.apply(SeatWrite(1, replace(SEAT, next_hop=None), fresh=False))
    raw = maps.bpf[b"seats"][1]
    assert (raw.ifindex, raw.mtu, bytes(raw.destination_mac)) == (0, 0, bytes(6))


def test_in_the_maps_all_is_in_the_order_of_packets(maps: LoadedObject, kernel: Kernel) -> None:
    kernel.apply(SeatWrite(1, SEAT, fresh=True))
    raw = bytes(maps.bpf[b"seats"][1])
    assert raw[:6] == bytes([10, 81, 0, 21]) + (9000).to_bytes(2, "big")
    assert bytes.fromhex("02000000000c02000000000b") in raw
    kernel.apply(ServiceWrite(KEY, SERVICE))
    entries = read_entries(maps.bpf[b"services"].map_fd)
    key = bytes([10, 80, 0, 100]) + (8080).to_bytes(2, "big") + bytes([6, 0])
    assert sum((keys + values).count(key) for keys, values in entries) == 1


def test_only_a_fresh_seat_forgets_what_was_counted(maps: LoadedObject, kernel: Kernel) -> None:
    table = maps.bpf[b"seat_counters"]
    leaf = table.Leaf()
    leaf[0].flows = 9
    table[table.Key(1)] = leaf
    kernel.apply(SeatWrite(1, SEAT, fresh=False))
    assert table[table.Key(1)][0].flows == 9
    kernel.apply(SeatWrite(1, SEAT, fresh=True))
    assert table[table.Key(1)][0].flows == 0


def test_only_a_fresh_cursor_forgets_which_port_was_last(
    maps: LoadedObject, kernel: Kernel
) -> None:
    table = maps.bpf[b"port_cursors"]
    for fresh, expected in ((False, 9), (True, 0)):
        table[table.Key(8190)] = table.Leaf(next=9, taken_at=9)
        kernel.apply(SeatWrite(1, SEAT, fresh=False, fresh_cursor=fresh))
        assert (table[8190].next, table[8190].taken_at) == (expected, expected)


@pytest.mark.parametrize("mode", list(Mode))
@pytest.mark.parametrize("affinity", list(Affinity))
@pytest.mark.parametrize(("encap", "snat"), [(IPIP, True), (GUE, True), (IPIP, False)])
def test_a_service_is_read_as_it_was_written(
    kernel: Kernel, mode: Mode, affinity: Affinity, encap: Encapsulation, snat: bool
) -> None:
    service = replace(SERVICE, mode=mode, affinity=affinity, encap=encap, snat=snat)
    dns = replace(KEY, protocol=Protocol.UDP, port=53)
    both = {KEY: service, dns: replace(service, identity=2)}
    for key, value in both.items():
        kernel.apply(ServiceWrite(key, value))
    assert kernel.adopt().services == both
    for key in (dns, dns):
        kernel.apply(ServiceRemoval(key))
    assert kernel.adopt().services == {KEY: service}


@pytest.mark.parametrize(
    "changed",
    [
        {"no_reset": True},
        {"retired": True},
        {"has_flows": False, "mode": Mode.L3, "snat_addresses": (), "snat_slice": NO_PORTS},
        {"snat_addresses": tuple(f"10.81.0.{number}" for number in range(8))},
        {"snat_addresses": ("10.81.0.1", "10.81.0.2"), "snat_slice": Slice(1, 2, 3, 4)},
    ],
)
def test_every_field_of_a_service_is_kept(kernel: Kernel, changed: dict[str, Any]) -> None:
    service = replace(SERVICE, **changed)
    kernel.apply(ServiceWrite(KEY, SERVICE))
    kernel.apply(ServiceWrite(KEY, service))
    assert kernel.adopt().services == {KEY: service}


def test_addresses_and_endpoints_are_sets(kernel: Kernel) -> None:
    infos = {
        "10.80.0.100": AddressInfo(of_service=True, floating=True, snat_slice=None),
        "10.81.0.10": AddressInfo(of_service=False, floating=False, snat_slice=Slice(1, 2, 3, 4)),
        "10.80.0.10": AddressInfo(of_service=True, floating=False, snat_slice=Slice(5, 6, 0, 0)),
    }
    places = {
        ServiceKey("10.81.0.21", port, protocol): 100 * port + len(protocol)
        for port in (53, 65_535)
        for protocol in Protocol
    }
    for _ in range(2):
        for address, info in infos.items():
            kernel.apply(AddressWrite(address, info))
        for key, seat in places.items():
            kernel.apply(EndpointWrite(key, seat))
    assert kernel.adopt() == replace(EMPTY, addresses=infos, endpoints=places)
    for _ in range(2):
        kernel.apply(AddressRemoval("10.80.0.10"))
        kernel.apply(EndpointRemoval(ServiceKey("10.81.0.21", 53, Protocol.UDP)))
    del infos["10.80.0.10"], places[ServiceKey("10.81.0.21", 53, Protocol.UDP)]
    assert kernel.adopt() == replace(EMPTY, addresses=infos, endpoints=places)


def test_in_the_maps_addresses_are_as_packets_have_them(maps: LoadedObject, kernel: Kernel) -> None:
    kernel.apply(AddressWrite("10.81.0.10", AddressInfo(False, True, Slice(1, 2, 3, 4))))
    ((key, value),) = maps.bpf[b"addresses"].items()
    assert bytes(key) == bytes([10, 81, 0, 10])
    assert (value.flags, value.snat_first_port, value.snat_ports) == (6, 1, 2)
    assert (value.low_first_port, value.low_ports) == (3, 4)


def test_slots_go_to_their_ring_and_leave_others(kernel: Kernel) -> None:
    kernel.apply(ServiceWrite(KEY, SERVICE))
    dice = np.random.default_rng(1)
    whole = dice.integers(0, 8192, (ENTRIES, LANES)).astype(np.uint16)
    indices = np.arange(ENTRIES, dtype=np.uint32) + 5 * ENTRIES
    kernel.apply(SlotsWrite(5, indices, whole))
    assert (kernel.adopt().rings[5] == whole).all()
    some = np.array([0, 9, ENTRIES - 1])
    whole[some] = 77
    kernel.apply(SlotsWrite(5, indices[some], whole[some]))
    rings = kernel.adopt().rings
    assert list(rings) == [5]
    assert (rings[5] == whole).all()
    kernel.apply(ServiceWrite(replace(KEY, port=1), replace(SERVICE, ring=6)))
    assert not kernel.adopt().rings[6].any()


def test_settings_are_read_as_they_were_written(kernel: Kernel) -> None:
    assert kernel.read_settings().public_ifindex == 0
    settings = Settings(
        hash_seed=2**64 - 1,
        flow_seed=2**63,
        public_ifindex=2,
        private_ifindex=2**31,
        public_mac=bytes(range(6)),
        public_mtu=65_535,
        private_mac=bytes(range(6, 12)),
        public_address=address_word("10.80.0.10"),
        private_address=address_word("10.81.0.10"),
        outer_prefix=address_word("10.200.0.0"),
        chained=1,
        new_flows_per_second=10**8,
        new_flows_per_second_per_source=10**7,
        answers_per_second=1000,
        public_by_tc=1,
        private_by_tc=2,
        notes=1,
        timeout=tuple(range(2**32 - 16, 2**32)),
    )
    kernel.write_settings(settings)
    assert kernel.read_settings() == settings


# --------------------------------------------------------------------------- whole plans

FACTS = LocalFacts(
    "lb-0", "10.80.0.10", "10.81.0.10", frozenset({"10.80.0.10"}), 8192, 64, 16, 64, 64
)
STATES = (NodeState.UP, NodeState.UP, NodeState.DRAINING, NodeState.DOWN, NodeState.UP)
NODES = tuple(
    TableNode(f"n{number}@{address}", f"n{number}", address, state, 100, ())
    for number, state in enumerate(STATES)
    for address in [f"10.81.0.{20 + number}"]
)
TABLE = NodeTable(
    term=1,
    epoch=4,
    hash_seed=99,
    services=(
        TableService("web", None, 8080, Protocol.TCP, Mode.L4, 80),
        TableService("dns", "10.80.0.100", 53, Protocol.UDP, Mode.L3, 5300, encap=GUE),
        TableService("raw", None, 9, Protocol.TCP, Mode.L2, 9, Affinity.CLIENT),
        TableService("own", None, 10, Protocol.TCP, Mode.L4, 9, snat=False, no_flow=NoFlow.DROP),
    ),
    nodes=NODES,
    bans=(),
    vip_owners=(),
    snat_slices=(SnatSlice("lb-0", None, 20_000, 4096, 700, 50),),
)
HOPS = {
    NODES[0].address: HOP,
    NODES[1].address: replace(HOP, gateway="10.81.0.254"),
    NODES[2].address: replace(HOP, destination_mac=None),
    NODES[3].address: HOP,
    NODES[4].address: None,
}


def plan(kernel: Kernel, held: KernelState, table: NodeTable = TABLE) -> Plan:
    made = make_plan(held, table, None, HOPS, FACTS, None, 1000)
    after, left_out = kernel.carry_out(made)
    assert (after, left_out) == (made.after, ())
    return made


def test_what_a_plan_left_is_adopted_and_the_next_plan_is_empty(kernel: Kernel) -> None:
    first = plan(kernel, EMPTY)
    assert len(first.writes) > 15
    adopted = kernel.adopt()
    assert adopted.seats == first.after.seats
    assert adopted.services == first.after.services
    assert adopted.addresses == first.after.addresses
    assert adopted.endpoints == first.after.endpoints
    assert plan(kernel, adopted).writes == ()


def test_who_dies_between_two_writes_is_followed_by_one_that_makes_the_rest(
    kernel: Kernel,
) -> None:
    plan(kernel, EMPTY)
    states = (NodeState.DOWN, NodeState.UP, NodeState.UP, NodeState.UP, NodeState.UP)
    nodes = tuple(replace(node, state=state) for node, state in zip(NODES, states, strict=True))
    table = replace(TABLE, epoch=5, nodes=nodes[:4], services=TABLE.services[:3])
    wanted = make_plan(kernel.adopt(), table, None, HOPS, FACTS, None, 1000)
    assert len(wanted.writes) > 8
    for done, write in enumerate(wanted.writes, start=1):
        kernel.apply(write)
        rest = make_plan(kernel.adopt(), table, None, HOPS, FACTS, None, 1000)
        # A ring that nobody goes by yet is not adopted, but written once more.
        again = len(rest.writes) - (len(wanted.writes) - done)
        assert again == 0 or (again == 1 and isinstance(rest.writes[0], SlotsWrite))
        assert rest.after.seats == wanted.after.seats
    assert kernel.adopt().services == wanted.after.services
