"""The table of services: every service is found by the programs where user space has put it."""

from __future__ import annotations

import random
from collections.abc import Iterator

import pytest

from bus.messages import Affinity, Encapsulation, Mode, Protocol
from services.dataplane.kernel import (
    PROTOCOLS,
    SERVICE_PLACES,
    SERVICE_PROBES,
    Kernel,
    NoPlaceError,
    address_word,
    port_word,
    service_places,
)
from services.dataplane.plan import Service, ServiceKey, ServiceRemoval, ServiceWrite
from tests.bpf.harness import rig


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
        snat_address="10.81.0.10",
        snat_first_port=1536,
        snat_ports=31_232,
    )


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with rig() as programs:
        yield Kernel(programs.tc_object.bpf)


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


def test_no_free_place_is_said_by_name(kernel: Kernel) -> None:
    crowd: dict[int, list[ServiceKey]] = {}
    for port in range(1, 65_000):
        where = ServiceKey("10.80.0.10", port, Protocol.TCP)
        first = _first_place(where)
        crowd.setdefault(first, []).append(where)
        if len(crowd[first]) > SERVICE_PROBES:
            break
    *fitting, last = crowd[first]
    for where in fitting:
        kernel.apply(ServiceWrite(where, service(1)))
    with pytest.raises(NoPlaceError, match=f"10.80.0.10:{last.port}"):
        kernel.apply(ServiceWrite(last, service(1)))


def _first_place(where: ServiceKey) -> int:
    return service_places(
        address_word(where.address), port_word(where.port), PROTOCOLS[where.protocol]
    )[0]
