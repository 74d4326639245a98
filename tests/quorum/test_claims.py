"""What of the leases is in the kernel: there before it is told, gone before anybody hears of it."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpf.syscall import MapType, create_map, get_object, lookup_entry, pin_object, read_entries
from bus.states import TableService
from bus.topics import Topic
from bus.words import Mode, Protocol
from services.quorum.claims import LOOK_MS, RETRY_MS, Claims, Told
from services.quorum.table import FloatingVip, TableConfig
from tests.bpf.harness import private_bpffs

VIP, OTHER, SNAT, SECOND_SNAT = "10.80.0.100", "10.80.0.101", "10.81.0.100", "10.81.0.101"
NS = 1_000_000
PUBLIC, PRIVATE = 1, 2
TOLD = Told("lb-0", 3)
CONFIG = TableConfig((), (FloatingVip(VIP, (SNAT,)), FloatingVip(OTHER)))


def key(address: str) -> bytes:
    return bytes(10) + b"\xff\xff" + bytes(map(int, address.split(".")))


class Kernel:
    """A BPF directory with the map of claims, if the dataplane has made it."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.pin = directory / "maps" / "claims"
        self.pin.parent.mkdir(parents=True)
        self.moved: dict[bytes, int] = {}
        """Ticks, as they were when this was read last."""

    def make(self, kind: MapType = MapType.HASH, value_bytes: int = 16) -> None:
        key_bytes = 16 if kind is MapType.HASH else 4
        fd = create_map("claims", kind, key_bytes, value_bytes, 64, 0)
        pin_object(fd, self.pin)
        os.close(fd)

    def holds(self) -> dict[bytes, tuple[int, int]]:
        fd = get_object(self.pin)
        found = {}
        for keys, _ in read_entries(fd):
            for at in range(0, len(keys), 16):
                value = lookup_entry(fd, keys[at : at + 16], 16)
                assert value is not None
                self.moved[keys[at : at + 16]] = int.from_bytes(value[12:], "little")
                until, side = int.from_bytes(value[:8], "little"), value[8]
                found[keys[at : at + 16]] = (until, side)
        os.close(fd)
        return found


@pytest.fixture
def kernel() -> Iterator[Kernel]:
    with private_bpffs() as directory:
        yield Kernel(directory)


def claims_of(kernel: Kernel, config: TableConfig = CONFIG, *, alone: bool = False) -> Claims:
    return Claims(kernel.directory, config, 1_000, alone=alone)


def told(claims: Claims) -> list[tuple[Topic, str, str]]:
    return [(topic, event.address, event.reason) for topic, event in claims.take()]


def test_every_floating_address_is_known_before_any_is_claimed(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.tick(TOLD, 1_000)
    assert kernel.holds() == {
        key(VIP): (0, PUBLIC), key(SNAT): (0, PRIVATE), key(OTHER): (0, PUBLIC)
    }  # fmt: skip
    assert told(claims) == []


def test_a_vip_and_its_snat_addresses_are_one_unit(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 1_112}, TOLD, 1_000)
    assert kernel.holds() == {
        key(VIP): (1_112 * NS, PUBLIC),
        key(SNAT): (1_112 * NS, PRIVATE),
        key(OTHER): (0, PUBLIC),
    }
    ((topic, event),) = claims.take()
    assert topic is Topic.VIP_ACQUIRED
    assert (event.address, event.holder, event.term) == (VIP, "lb-0", 3)


def test_so_are_those_of_a_service_of_its_own(kernel: Kernel) -> None:
    kernel.make()
    service = TableService(
        "web", OTHER, 80, Protocol.TCP, Mode.L4, 80, snat_addresses=(SECOND_SNAT,)
    )
    claims = claims_of(kernel, replace(CONFIG, services=(service,)))
    claims.claim({OTHER: 1_112}, TOLD, 1_000)
    assert kernel.holds()[key(SECOND_SNAT)] == (1_112 * NS, PRIVATE)
    assert kernel.holds()[key(SNAT)] == (0, PRIVATE)


def test_a_renewal_is_written_and_not_told(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 1_112}, TOLD, 1_000)
    claims.take()
    claims.claim({VIP: 1_137}, TOLD, 1_025)
    assert kernel.holds()[key(VIP)] == (1_137 * NS, PUBLIC)
    assert told(claims) == []


def test_what_is_given_up_is_out_of_the_kernel_at_once(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 1_112, OTHER: 1_112}, TOLD, 1_000)
    claims.take()
    claims.claim({OTHER: 1_112}, TOLD, 1_010)
    held = kernel.holds()
    assert held[key(VIP)] == (0, PUBLIC)
    assert held[key(SNAT)] == (0, PRIVATE)
    assert held[key(OTHER)] == (1_112 * NS, PUBLIC)
    assert told(claims) == [(Topic.VIP_LOST, VIP, "given up")]


def test_what_ends_by_itself_is_told_at_its_instant(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 1_112}, TOLD, 1_000)
    claims.take()
    assert claims.next_due_ms() == 1_112
    claims.tick(TOLD, 1_111)
    assert told(claims) == []
    claims.tick(TOLD, 1_112)
    assert told(claims) == [(Topic.VIP_LOST, VIP, "the lease has ended")]


def test_a_process_that_was_stopped_tells_that_it_had_lost_what_it_regains(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 1_112}, TOLD, 1_000)
    claims.take()
    claims.claim({VIP: 6_112}, TOLD, 6_000)
    assert [topic for topic, *_ in told(claims)] == [Topic.VIP_LOST, Topic.VIP_ACQUIRED]


def test_when_it_moved_stands_beside_it(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)

    def moved_at(until_ms: dict[str, int], now_ms: int) -> tuple[int, int]:
        claims.claim(until_ms, TOLD, now_ms)
        kernel.holds()
        return kernel.moved[key(VIP)], kernel.moved[key(OTHER)]

    def tick(ms: int) -> int:
        return ms * NS >> 26

    assert moved_at({VIP: 9_112}, 9_000) == (tick(9_000), 0)
    assert moved_at({VIP: 9_512}, 9_100) == (tick(9_000), 0)
    assert moved_at({OTHER: 9_700}, 9_500) == (tick(9_500), tick(9_500))
    assert moved_at({OTHER: 20_000}, 19_000) == (tick(9_500), tick(19_000))


def test_a_claim_that_is_over_when_it_comes_is_none(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 1_000}, TOLD, 1_000)
    assert told(claims) == []


def test_without_a_map_it_waits_and_says_so(kernel: Kernel) -> None:
    claims = claims_of(kernel)
    claims.claim({VIP: 9_000}, TOLD, 1_000)
    assert "the dataplane" in claims.waiting_for
    assert told(claims) == []
    assert claims.next_due_ms() == 1_000 + RETRY_MS
    kernel.make()
    claims.tick(TOLD, 1_000 + RETRY_MS)
    assert claims.waiting_for == ""
    assert kernel.holds()[key(VIP)] == (9_000 * NS, PUBLIC)
    assert told(claims) == [(Topic.VIP_ACQUIRED, VIP, "this LB holds the lease")]


@pytest.mark.parametrize("shape", [(MapType.ARRAY, 16), (MapType.HASH, 24)])
def test_a_map_of_another_layout_is_not_written(kernel: Kernel, shape: tuple[MapType, int]) -> None:
    kernel.make(*shape)
    claims = claims_of(kernel)
    claims.claim({VIP: 9_000}, TOLD, 1_000)
    assert "another version" in claims.waiting_for
    assert told(claims) == []


def test_a_map_that_was_made_anew_is_filled_anew(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 9_000}, TOLD, 1_000)
    claims.take()
    kernel.pin.unlink()
    kernel.make()
    assert claims.next_due_ms() == 1_000 + LOOK_MS
    claims.tick(TOLD, 1_000 + LOOK_MS)
    assert kernel.holds()[key(VIP)] == (9_000 * NS, PUBLIC)
    assert kernel.holds()[key(OTHER)] == (0, PUBLIC)
    assert told(claims) == []


def test_addresses_that_float_no_longer_go(kernel: Kernel) -> None:
    kernel.make()
    claims = claims_of(kernel)
    claims.claim({VIP: 9_000, OTHER: 9_000}, TOLD, 1_000)
    claims.take()
    claims.configure(TableConfig((), (FloatingVip(OTHER),)), 1_010)
    assert claims.next_due_ms() == 1_010
    claims.tick(TOLD, 1_010)
    assert kernel.holds() == {key(OTHER): (9_000 * NS, PUBLIC)}
    assert told(claims) == [(Topic.VIP_LOST, VIP, "given up")]
    claims.configure(TableConfig((), ()), 1_020)
    claims.tick(TOLD, 1_020)
    assert kernel.holds() == {}
    assert told(claims) == [(Topic.VIP_LOST, OTHER, "given up")]
    assert claims.next_due_ms() is None


def test_without_floating_addresses_nothing_is_waited_for(kernel: Kernel) -> None:
    claims = claims_of(kernel, TableConfig((), ()))
    claims.tick(TOLD, 1_000)
    assert claims.waiting_for == ""


def test_a_member_that_starts_claims_nothing_of_before(kernel: Kernel) -> None:
    kernel.make()
    claims_of(kernel).claim({VIP: 9_000}, TOLD, 1_000)
    claims_of(kernel).tick(TOLD, 1_000)
    assert kernel.holds()[key(VIP)] == (0, PUBLIC)


def test_a_quorum_of_one_goes_on_claiming_while_it_starts(kernel: Kernel) -> None:
    kernel.make()
    claims_of(kernel).claim({VIP: 9_000}, TOLD, 1_000)
    again = claims_of(kernel, alone=True)
    again.tick(TOLD, 1_000)
    assert kernel.holds()[key(VIP)] == (9_000 * NS, PUBLIC)


def test_256_vips_are_one_system_call_away(kernel: Kernel) -> None:
    fd = create_map("claims", MapType.HASH, 16, 16, 4096, 0)
    pin_object(fd, kernel.pin)
    vips = tuple(
        FloatingVip(f"10.1.{i}.1", tuple(f"10.2.{i}.{j}" for j in range(8))) for i in range(256)
    )
    claims = claims_of(kernel, TableConfig((), vips))
    begun = time.thread_time()
    claims.claim({vip.address: 9_000 for vip in vips}, TOLD, 1_000)
    assert time.thread_time() - begun < 0.05
    assert len(kernel.holds()) == 256 * 9
    assert {until for until, _ in kernel.holds().values()} == {9_000 * NS}
    os.close(fd)
