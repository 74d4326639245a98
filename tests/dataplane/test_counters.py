"""What the programs count, read as sums: names from the C headers, all CPUs, few seats."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
import pytest

from bpf.syscall import possible_cpus
from services.dataplane.counters import Counters, hooks, reasons
from tests.bpf.harness import Rig, tcp

FIELDS = ("packets_in", "bytes_in", "packets_out", "bytes_out", "flows")


def test_names_are_those_of_the_headers_in_their_order() -> None:
    assert hooks() == ["xdp_public", "tc_public", "tc_private", "xdp_private"]
    names = list(reasons())
    assert names[:2] == ["pass_not_ipv4", "pass_not_for_service"]
    order = [names.index(mark) for mark in ("pass_not_ready", "forward_first", "drop_first")]
    assert order == sorted(order)
    assert len(names) <= 64
    assert all(reasons().values())


def test_a_header_without_hooks_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "types.h").write_text("struct nothing {};")
    with pytest.raises(ValueError, match="no enum hook"):
        hooks(tmp_path / "types.h")


def test_verdicts_are_sums_over_all_cpus_of_what_occurred(maps: Rig, counters: Counters) -> None:
    assert counters.verdicts() == {}
    table = maps.table("verdicts")
    place = 2 * 64 + list(reasons()).index("l4_reply")
    leaf = table.Leaf()
    for cpu in range(possible_cpus()):
        leaf[cpu] = 10 + cpu
    table[table.Key(place)] = leaf
    cpus = possible_cpus()
    assert counters.verdicts() == {"tc_private.l4_reply": 10 * cpus + cpus * (cpus - 1) // 2}


def test_a_real_packet_counts_one_reason(maps: Rig, counters: Counters) -> None:
    maps.xdp_public(tcp(("192.0.2.1", 1), ("192.0.2.2", 2)))
    maps.tc_private(b"\0" * 60)
    assert counters.verdicts() == {
        "xdp_public.pass_not_ready": 1,
        "tc_private.pass_not_ipv4": 1,
    }


def test_seats_are_sums_over_all_cpus_field_by_field(maps: Rig, counters: Counters) -> None:
    table = maps.table("seat_counters")
    for seat in (0, 3, 8191):
        leaf = table.Leaf()
        for cpu in range(possible_cpus()):
            for place, name in enumerate(FIELDS):
                setattr(leaf[cpu], name, 1000 * seat + place)
        table[table.Key(seat)] = leaf
    sums = counters.seats()
    assert tuple(sums) == FIELDS
    for seat in (0, 3, 8191):
        wanted = [possible_cpus() * (1000 * seat + place) for place in range(len(FIELDS))]
        assert [int(sums[name][seat]) for name in FIELDS] == wanted
    assert int(sums["packets_in"].sum()) == possible_cpus() * 1000 * (3 + 8191)


@pytest.mark.parametrize("count", [0, 1, 4, 8191, 8192])
def test_only_as_many_seats_as_asked_for_are_read(
    maps: Rig, counters: Counters, count: int
) -> None:
    table = maps.table("seat_counters")
    values = struct.pack("=5Q", *range(5)) * possible_cpus()
    table[table.Key(3)] = table.Leaf.from_buffer_copy(values)
    sums = counters.seats(count)
    assert {len(column) for column in sums.values()} == {count}
    assert int(sums["flows"].sum()) == (4 * possible_cpus() if count > 3 else 0)


def test_a_port_s_rest_in_seconds_of_the_first_cursors(maps: Rig, counters: Counters) -> None:
    table = maps.table("port_cursors")
    for cursor, rest in ((1, 1000), (3, 1), (8191, 15)):
        table[table.Key(cursor)] = table.Leaf(next=3, rest=rest, taken_at=5)
    # Ports were taken, but none of them for the second time.
    table[table.Key(2)] = table.Leaf(next=3, rest=0, taken_at=5)
    rests = counters.port_rests(4)
    assert rests[[1, 3]].tolist() == pytest.approx([67.108864, 0.067108864])
    assert np.isnan(rests[[0, 2]]).all()
    assert len(counters.port_rests(8192)) == 8192
    assert counters.port_rests(8192)[8191] == pytest.approx(1.00663296)
