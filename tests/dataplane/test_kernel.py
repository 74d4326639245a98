"""The table of services: every service is found by the programs where user space has put it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest

from bpf.syscall import write_entries
from bus.states import (
    NodeTable,
    SnatSlice,
    TableService,
)
from bus.words import (
    Affinity,
    Encapsulation,
    Mode,
    Protocol,
)
from services.dataplane.front_table import (
    MOST_FRONTS,
    SERVICE_PLACES,
    NoPlaceError,
    places_of,
    service_places,
)
from services.dataplane.kernel import Kernel
from services.dataplane.maps import (
    EMPTY,
    KernelState,
    LocalFacts,
    Service,
    ServiceRemoval,
    ServiceWrite,
    Slice,
)
from services.dataplane.plan import make_plan
from services.dataplane.words import ServiceKey
from tests.dataplane.maps import maps


def key(number: int) -> ServiceKey:
    protocol = Protocol.UDP if number % 3 else Protocol.TCP
    return ServiceKey(f"10.80.{number % 5}.{number % 250 + 1}", 1 + number * 97, protocol)


def service(number: int) -> Service:
    return Service(
        service_id=number % 4,
        identity=1000 + number,
        mode=Mode.L4,
        affinity=Affinity.CLIENT,
        encap=Encapsulation.GUE,
        snat=bool(number % 2),
        no_reset=False,
        has_flows=True,
        retired=False,
        keeps_port=bool(number % 3),
        ring=number % 4,
        snat_addresses=("10.81.0.10",),
        snat_slice=Slice(1536, 31_232, 600, 424),
        of_this_node=bool(number % 2),
    )


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with maps() as loaded:
        yield Kernel(loaded.bpf)


def test_places_are_two_pairs() -> None:
    places = service_places(0x0A00_000A, 0x901F, 6)
    assert len(set(places)) == len(places) == 4
    assert all(0 <= place < SERVICE_PLACES for place in places)
    assert places[1] == places[0] ^ 1
    assert places[3] == places[2] ^ 1


def test_what_is_written_is_adopted(kernel: Kernel) -> None:
    wanted = {key(number): service(number) for number in range(250)}
    for where, what in wanted.items():
        kernel.apply(ServiceWrite(where, what))
    assert kernel.adopt().services == wanted


def test_the_key_of_a_new_service_is_written_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """So whoever finds a service finds all that belongs to it."""
    written: list[bytes] = []

    def note(fd: int, keys: bytes, values: bytes) -> None:
        written.append(values)
        write_entries(fd, keys, values)

    monkeypatch.setattr("services.dataplane.kernel.write_entries", note)
    with maps() as loaded:
        Kernel(loaded.bpf).apply(ServiceWrite(key(1), service(1)))
        kind = np.dtype(loaded.bpf[b"services"].Leaf)
    first, last = (np.frombuffer(values, kind)[0] for values in written)
    of_the_key = {"address", "port", "protocol"}
    assert {
        name for name in kind.names or () if first[name].tobytes() != last[name].tobytes()
    } == of_the_key
    assert not any(first[name] for name in of_the_key)


def test_a_change_stays_in_its_place_and_a_removal_frees_it(kernel: Kernel) -> None:
    kernel.apply(ServiceWrite(key(1), service(1)))
    kernel.apply(ServiceWrite(key(1), service(2)))
    assert kernel.adopt().services == {key(1): service(2)}
    kernel.apply(ServiceRemoval(key(1)))
    kernel.apply(ServiceRemoval(key(1)))
    assert kernel.adopt().services == {}


def test_none_moves_when_others_come_and_go(kernel: Kernel) -> None:
    dice = random.Random(7)
    held: dict[ServiceKey, Service] = {}
    for turn in range(400):
        number = dice.randrange(60)
        if key(number) in held:
            del held[key(number)]
            kernel.apply(ServiceRemoval(key(number)))
        else:
            held[key(number)] = service(number)
            kernel.apply(ServiceWrite(key(number), service(number)))
        if turn % 50 == 49:
            assert kernel.adopt().services == held


def crowd(kernel: Kernel) -> tuple[list[ServiceKey], ServiceKey]:
    """Four fronts that stand at all the places of a fifth."""
    last = ServiceKey("10.80.0.10", 1, Protocol.TCP)
    found: list[ServiceKey] = []
    for wanted in (places_of(last)[0], places_of(last)[2]):
        meeting = (
            ServiceKey("10.80.0.10", port, Protocol.TCP)
            for port in range(2, 65_536)
            if places_of(ServiceKey("10.80.0.10", port, Protocol.TCP))[0] == wanted
        )
        found += [next(meeting), next(meeting)]
    for where in found:
        kernel.apply(ServiceWrite(where, service(1)))
    return found, last


def test_whoever_stands_in_the_way_moves_on(kernel: Kernel) -> None:
    found, last = crowd(kernel)
    kernel.apply(ServiceWrite(last, service(2)))
    wanted = {**dict.fromkeys(found, service(1)), last: service(2)}
    assert kernel.adopt().services == wanted


def test_a_front_that_stands_at_two_places_is_one(kernel: Kernel) -> None:
    """Its writer died while it was moving it."""
    kernel.apply(ServiceWrite(key(1), service(1)))
    table = kernel._services
    first, *others = places_of(key(1))
    table[others[-1]] = table[first]
    assert kernel.adopt().services == {key(1): service(1)}
    assert table[others[-1]].port == 0
    kernel.apply(ServiceRemoval(key(1)))
    assert kernel.adopt().services == {}


def test_what_finds_no_place_is_left_out_by_name_until_there_is_one(
    kernel: Kernel, monkeypatch: pytest.MonkeyPatch
) -> None:
    facts = LocalFacts("lb", "10.80.0.10", "10.81.0.10", frozenset(), 64, 64, 64, 64, 64)
    fronts = [ServiceKey("10.80.0.10", port, Protocol.TCP) for port in (80, 81)]
    full = [NoPlaceError("no free place")]
    way_for = kernel._fronts.way_for

    def way(front: ServiceKey) -> list[int]:
        if full and front.port == 81:
            raise full[0]
        return way_for(front)

    def turn(held: KernelState) -> tuple[KernelState, tuple[str, ...]]:
        services = tuple(
            TableService(f"s{each.port}", None, each.port, each.protocol, Mode.L3, each.port)
            for each in fronts
        )
        slices = (SnatSlice("lb", None, 1536, 31_232),)
        table = NodeTable(1, 1, 1, services, (), (), (), slices)
        return kernel.carry_out(make_plan(held, table, None, {}, facts, None, 0))

    monkeypatch.setattr(kernel._fronts, "way_for", way)
    held, left_out = turn(EMPTY)
    assert left_out == ("no free place",)
    assert set(held.services) == {fronts[0]}
    full.clear()
    held, left_out = turn(held)
    assert left_out == ()
    assert set(held.services) == set(kernel.adopt().services) == set(fronts)


@pytest.mark.parametrize(
    "ports", [range(9000, 9064), range(27015, 27047), range(8000, 8256, 4), range(1, 65_000, 1024)]
)
def test_neighbouring_ports_are_no_crowd(kernel: Kernel, ports: range) -> None:
    for port in ports:
        kernel.apply(ServiceWrite(ServiceKey("10.80.0.100", port, Protocol.TCP), service(1)))
    assert len(kernel.adopt().services) == len(ports)


def test_as_many_fronts_as_there_may_be_find_room(kernel: Kernel) -> None:
    """256 addresses with 64 ports each."""
    assert MOST_FRONTS == 256 * 64
    fronts = [
        ServiceKey(f"10.80.{vip % 4}.{vip}", 9000 + port, Protocol.TCP)
        for vip in range(256)
        for port in range(64)
    ]
    writes = [ServiceWrite(front, service(1)) for front in fronts]
    assert kernel._write_services(writes) == {}
    assert set(kernel.adopt().services) == set(fronts)
