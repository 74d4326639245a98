"""The table of services: every service is found by the programs where user space has put it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

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
from services.dataplane.kernel import (
    PROTOCOLS,
    SERVICE_PLACES,
    SERVICE_PROBES,
    Kernel,
    NoPlaceError,
    service_places,
)
from services.dataplane.maps import Facts, KernelState, Service, ServiceRemoval, ServiceWrite, Slice
from services.dataplane.plan import make_plan
from services.dataplane.words import ServiceKey, address_word, port_word
from tests.dataplane.maps import maps


def key(number: int) -> ServiceKey:
    protocol = Protocol.UDP if number % 3 else Protocol.TCP
    return ServiceKey(f"10.80.{number % 5}.{number % 250 + 1}", 1 + number * 97, protocol)


def service(number: int) -> Service:
    return Service(
        service_id=number % 4,  # adopting reads the rings up to the highest id
        identity=1000 + number,
        mode=Mode.L4,
        affinity=Affinity.CLIENT,
        encap=Encapsulation.GUE,
        snat=bool(number % 2),
        no_reset=False,
        has_flows=True,
        retired=False,
        snat_addresses=("10.81.0.10",),
        snat_slice=Slice(1536, 31_232, 600, 424),
    )


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with maps() as loaded:
        yield Kernel(loaded.bpf)


def test_places_are_a_few_in_a_row() -> None:
    places = service_places(0x0A00_000A, 0x901F, 6)
    assert len(set(places)) == SERVICE_PROBES
    assert all(0 <= place < SERVICE_PLACES for place in places)
    assert [(place - places[0]) % SERVICE_PLACES for place in places] == [0, 1, 2, 3]


def test_what_is_written_is_adopted(kernel: Kernel) -> None:
    wanted = {key(number): service(number) for number in range(kernel.max_services)}
    for where, what in wanted.items():
        kernel.apply(ServiceWrite(where, what))
    assert kernel.adopt().services == wanted


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


def crowd(size: int) -> list[ServiceKey]:
    """So many services that would all stand at one place."""
    found: dict[int, list[ServiceKey]] = {}
    for port in range(1, 65_000):
        where = ServiceKey("10.80.0.10", port, Protocol.TCP)
        first = _first_place(where)
        found.setdefault(first, []).append(where)
        if len(found[first]) == size:
            return found[first]
    raise AssertionError("65,000 ports meet at a thousand places")


def test_no_free_place_is_said_by_name(kernel: Kernel) -> None:
    *fitting, last = crowd(SERVICE_PROBES + 1)
    for where in fitting:
        kernel.apply(ServiceWrite(where, service(1)))
    with pytest.raises(NoPlaceError, match=f"10.80.0.10:{last.port}"):
        kernel.apply(ServiceWrite(last, service(1)))


def test_who_found_no_place_is_left_out_and_put_in_when_one_is_free(kernel: Kernel) -> None:
    fronts = crowd(SERVICE_PROBES + 1)
    facts = Facts("lb", "10.80.0.10", "10.81.0.10", frozenset(), 64, 64)

    def turn(held: KernelState, wanted: list[ServiceKey]) -> tuple[KernelState, tuple[str, ...]]:
        services = tuple(
            TableService(f"s{each.port}", None, each.port, each.protocol, Mode.L3, each.port)
            for each in wanted
        )
        slices = (SnatSlice("lb", None, 1536, 31_232),)
        table = NodeTable(1, 1, 1, services, (), (), (), slices)
        return kernel.carry_out(make_plan(held, table, None, {}, facts, None, 0))

    held, left_out = turn(kernel.adopt(), fronts)
    assert left_out == (f"service at 10.80.0.10:{fronts[-1].port}: no free place in the table",)
    assert set(held.services) == set(kernel.adopt().services) == set(fronts[:-1])
    # One goes; its place is free only after the others have been written.
    held, left_out = turn(held, fronts[1:])
    assert len(left_out) == 1
    held, left_out = turn(held, fronts[1:])
    assert left_out == ()
    assert set(held.services) == set(kernel.adopt().services) == set(fronts[1:])


@pytest.mark.parametrize(
    "ports", [range(9000, 9064), range(27015, 27047), range(8000, 8256, 4), range(1, 65_000, 1024)]
)
def test_neighbouring_ports_are_no_crowd(kernel: Kernel, ports: range) -> None:
    for port in ports:
        kernel.apply(ServiceWrite(ServiceKey("10.80.0.100", port, Protocol.TCP), service(1)))
    assert len(kernel.adopt().services) == len(ports)


def _first_place(where: ServiceKey) -> int:
    return service_places(
        address_word(where.address), port_word(where.port), PROTOCOLS[where.protocol]
    )[0]
