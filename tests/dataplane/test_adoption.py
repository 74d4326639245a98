"""A plan's values written into real maps, read back the same, and adopted by the next process."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest

from bpf.syscall import possible_cpus, read_entries
from bus.messages import (
    Affinity,
    Encapsulation,
    Mode,
    NodeState,
    NodeTable,
    Protocol,
    SnatSlice,
    TableNode,
    TableService,
)
from services.dataplane.kernel import (
    Kernel,
    Settings,
    address_text,
    address_word,
    mac_bytes,
    mac_text,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import (
    EMPTY,
    ENTRIES,
    LANES,
    Facts,
    KernelState,
    Plan,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceKey,
    ServiceRemoval,
    ServiceWrite,
    SlotsWrite,
    make_plan,
)
from tests.bpf.harness import Rig, rig

HOP = NextHop(7, "02:00:00:00:00:0b", "02:00:00:00:00:0c", 1500, None, "10.81.0.10")
SEAT = Seat(0xFEDC_BA98_7654_3210, 3, "10.81.0.21", 9000, True, HOP)
GUE, IPIP = Encapsulation.GUE, Encapsulation.IPIP
SERVICE = Service(5, 1, Mode.L4, Affinity.FLOW, IPIP, True, "10.81.0.10", 20_000, 4096)
KEY = ServiceKey("10.80.0.100", 8080, Protocol.TCP)


@pytest.fixture
def maps() -> Iterator[Rig]:
    with rig() as programs:
        yield programs


@pytest.fixture
def kernel(maps: Rig) -> Kernel:
    return Kernel(maps.tc_object.bpf)


# --------------------------------------------------------------------------- single values


def test_words_and_bytes_are_as_packets_have_them() -> None:
    assert address_text(address_word("10.81.0.21")) == "10.81.0.21"
    assert address_word(None) == address_word("") == 0
    assert mac_bytes("02:00:00:00:00:0b") == bytes([2, 0, 0, 0, 0, 11])
    assert mac_text(mac_bytes("02:00:00:00:00:0b")) == "02:00:00:00:00:0b"
    assert mac_bytes(None) == bytes(6)


def test_sizes_are_those_of_the_maps(kernel: Kernel) -> None:
    assert (kernel.max_seats, kernel.max_services) == (8192, 64)


@pytest.mark.parametrize(
    "seat",
    [
        SEAT,
        replace(SEAT, up=False),
        replace(SEAT, next_hop=None),
        replace(SEAT, next_hop=replace(HOP, destination_mac=None)),
        replace(SEAT, next_hop=replace(HOP, gateway="10.81.0.254", mtu=65_535)),
        replace(SEAT, port=65_535, service_id=63, identity=2**64 - 1),
    ],
)
def test_a_seat_is_read_as_it_was_written(kernel: Kernel, seat: Seat) -> None:
    kernel.apply(SeatWrite(8191, seat, fresh=True))
    assert kernel.adopt() == KernelState({8191: seat}, {}, {})
    kernel.apply(SeatRemoval(8191))
    assert kernel.adopt() == EMPTY


def test_nothing_of_a_seats_former_value_stays(maps: Rig, kernel: Kernel) -> None:
    kernel.apply(SeatWrite(1, SEAT, fresh=True))
    kernel.apply(SeatWrite(1, replace(SEAT, next_hop=None), fresh=False))
    raw = maps.table("seats")[1]
    assert (raw.ifindex, raw.mtu, bytes(raw.destination_mac)) == (0, 0, bytes(6))


def test_in_the_maps_all_is_in_the_order_of_packets(maps: Rig, kernel: Kernel) -> None:
    kernel.apply(SeatWrite(1, SEAT, fresh=True))
    raw = bytes(maps.table("seats")[1])
    assert raw[:6] == bytes([10, 81, 0, 21]) + (9000).to_bytes(2, "big")
    assert bytes.fromhex("02000000000c02000000000b") in raw
    kernel.apply(ServiceWrite(KEY, SERVICE))
    entries = read_entries(maps.table("services").map_fd)
    key = bytes([10, 80, 0, 100]) + (8080).to_bytes(2, "big") + bytes([6, 0])
    assert sum((keys + values).count(key) for keys, values in entries) == 1


def test_only_a_fresh_seat_forgets_what_was_counted(maps: Rig, kernel: Kernel) -> None:
    table = maps.table("seat_counters")
    leaf = table.Leaf()
    leaf[0].flows = 9
    table[table.Key(1)] = leaf
    kernel.apply(SeatWrite(1, SEAT, fresh=False))
    assert table[table.Key(1)][0].flows == 9
    kernel.apply(SeatWrite(1, SEAT, fresh=True))
    assert table[table.Key(1)][0].flows == 0


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


def test_slots_go_to_their_services_ring_and_leave_others(kernel: Kernel) -> None:
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
    kernel.apply(ServiceWrite(replace(KEY, port=1), replace(SERVICE, service_id=6)))
    assert not kernel.adopt().rings[6].any()


def test_settings_are_read_as_they_were_written(kernel: Kernel) -> None:
    assert kernel.read_settings().public_ifindex == 0
    settings = Settings(
        hash_seed=2**64 - 1,
        public_ifindex=2,
        private_ifindex=2**31,
        public_mac=bytes(range(6)),
        public_mtu=65_535,
        l4_services=64,
        cpus=possible_cpus(),
        outer_prefix=address_word("10.200.0.0"),
        new_flows_per_second=10**8,
        new_flows_per_second_per_source=10**7,
    )
    kernel.write_settings(settings)
    assert kernel.read_settings() == settings


# --------------------------------------------------------------------------- whole plans

FACTS = Facts("lb-0", "10.80.0.10", "10.81.0.10", 7_440_000, 8192, 64)
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
        TableService("own", None, 10, Protocol.TCP, Mode.L4, 9, snat=False),
    ),
    nodes=NODES,
    bans=(),
    vip_owners=(),
    snat_slices=(SnatSlice("lb-0", None, 20_000, 4096),),
)
HOPS = {
    NODES[0].address: HOP,
    NODES[1].address: replace(HOP, gateway="10.81.0.254"),
    NODES[2].address: replace(HOP, destination_mac=None),
    NODES[3].address: HOP,
    NODES[4].address: None,
}


def plan(kernel: Kernel, held: KernelState, table: NodeTable = TABLE) -> Plan:
    made = make_plan(held, table, None, HOPS, FACTS, 1000)
    for write in made.writes:
        kernel.apply(write)
    return made


def test_what_a_plan_left_is_adopted_and_the_next_plan_is_empty(kernel: Kernel) -> None:
    first = plan(kernel, EMPTY)
    assert len(first.writes) > 15
    adopted = kernel.adopt()
    assert adopted.seats == first.after.seats
    assert adopted.services == first.after.services
    assert plan(kernel, adopted).writes == ()


def test_who_dies_between_two_writes_is_followed_by_one_that_makes_the_rest(
    kernel: Kernel,
) -> None:
    plan(kernel, EMPTY)
    states = (NodeState.DOWN, NodeState.UP, NodeState.UP, NodeState.UP, NodeState.UP)
    nodes = tuple(replace(node, state=state) for node, state in zip(NODES, states, strict=True))
    table = replace(TABLE, epoch=5, nodes=nodes[:4], services=TABLE.services[:3])
    wanted = make_plan(kernel.adopt(), table, None, HOPS, FACTS, 1000)
    assert len(wanted.writes) > 8
    for done, write in enumerate(wanted.writes, start=1):
        kernel.apply(write)
        rest = make_plan(kernel.adopt(), table, None, HOPS, FACTS, 1000)
        assert len(rest.writes) == len(wanted.writes) - done
        assert rest.after.seats == wanted.after.seats
    assert kernel.adopt().services == wanted.after.services
