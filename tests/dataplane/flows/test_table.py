"""Reading the real table through mmap, also while somebody writes."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bpf.clock import ticks
from bpf.loader import LoadedObject
from services.dataplane.flows import table
from services.dataplane.flows.record import FlowState, Records
from services.dataplane.flows.table import Block, FlowTable, whole
from tests.dataplane.flows.made import both, flow_type, reader, readers, requests, write
from tests.dataplane.maps import maps


@pytest.fixture
def loaded() -> Iterator[LoadedObject]:
    with maps() as made:
        yield made


def now() -> int:
    return ticks(time.monotonic_ns())


def test_every_living_record_is_met_once_at_its_place(loaded: LoadedObject) -> None:
    flows = loaded.bpf[b"flows"]
    made = both(requests(flow_type(flows), 5000, now()))
    made["deadline"][::7] = now() - 1
    made["state"][3::7] = FlowState.FREE
    places = write(flows, made)
    lives = np.ones(len(made), bool)
    lives[::7] = lives[3::7] = False

    blocks = list(reader(flows).blocks())
    assert len(blocks) == 2
    found = np.concatenate([block.places for block in blocks])
    assert sorted(found.tolist()) == sorted(places[lives].tolist())
    by_place = dict(zip(places.tolist(), made, strict=True))
    for block in blocks:
        for place, record in zip(block.places.tolist(), block.records, strict=True):
            assert record == by_place[place]


@pytest.mark.parametrize("buckets", [1, 3, 1023, 1025])
def test_tables_of_any_size_are_read_to_their_end(buckets: int) -> None:
    with maps(OLD_FLOW_BUCKETS=buckets) as loaded:
        old = loaded.bpf[b"old_flows"]
        made = requests(flow_type(old), buckets * 16, now())
        write(old, made)
        assert sum(len(block.records) for block in reader(old).blocks()) == len(made)
        assert reader(old).places == len(made)


def test_the_old_table_is_read_first(loaded: LoadedObject) -> None:
    pair = readers(loaded.bpf)
    for name in (b"flows", b"old_flows"):
        write(loaded.bpf[name], requests(flow_type(loaded.bpf[name]), 10, now()))
    order = [block.table for block in pair.blocks() if len(block.records)]
    assert order[0] is pair.old_flows
    assert {id(each) for each in order} == {id(pair.flows), id(pair.old_flows)}


def test_what_is_read_can_be_kept_and_what_was_mapped_is_given_back(loaded: LoadedObject) -> None:
    flows = loaded.bpf[b"flows"]
    write(flows, requests(flow_type(flows), 1000, now()))
    before = mapped()
    blocks = [list(reader(flows).blocks()) for _ in range(50)]
    assert all(sum(len(block.records) for block in each) == 1000 for each in blocks)
    assert mapped() <= before


def mapped() -> set[str]:
    """Where this process sees maps; tests before this one may have left some."""
    return {line for line in Path("/proc/self/maps").read_text().splitlines() if "bpf-map" in line}


# --------------------------------------------------------------------------- torn records


def window(versions: list[int]) -> Records:
    kind = np.dtype([("key", [("version", "<u2")]), ("value", "<u8")])
    made = np.zeros(len(versions), kind)
    made["key"]["version"] = versions
    made["value"] = np.arange(len(versions)) + 100
    return made


def test_a_record_that_is_being_written_is_left_out() -> None:
    memory = window([2, 3, 4, 65_535, 0])
    places, records = whole(memory, np.arange(5))
    assert places.tolist() == [0, 2, 4]
    assert records["value"].tolist() == [100, 102, 104]


def test_a_record_that_changed_while_it_was_copied_is_copied_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    memory = window([2, 4, 6])
    copied: list[int] = []

    def interrupted(records: Records, indices: np.ndarray) -> Records:
        """The second record is being written during the first copy, the third during all."""
        copied.append(len(indices))
        taken: Records = records[indices]
        if len(copied) == 1:
            memory["key"]["version"][1] = 6
            memory["value"][1] = 999
        memory["key"]["version"][2] += 2
        return taken

    monkeypatch.setattr(table, "take", interrupted)
    places, records = whole(memory, np.arange(3))
    assert copied == [3, 2, *[1] * (table.TRIES - 2)]
    assert sorted(zip(places.tolist(), records["value"].tolist(), strict=True)) == [
        (0, 100),
        (1, 999),
    ]


def test_a_place_that_changed_hands_between_two_looks_is_judged_by_what_was_copied(
    loaded: LoadedObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    flows = loaded.bpf[b"flows"]
    write(flows, requests(flow_type(flows), 20, now()))
    real = table.whole

    def ended(window: Records, places: np.ndarray) -> tuple[np.ndarray, Records]:
        found, records = real(window, places)
        records = records.copy()
        records["deadline"][::2] = now() - 1
        return found, records

    monkeypatch.setattr(table, "whole", ended)
    blocks: list[Block] = list(reader(flows).blocks())
    assert sum(len(block.records) for block in blocks) < 20


def test_a_map_that_cannot_be_mapped_says_so(loaded: LoadedObject) -> None:
    seats = loaded.bpf[b"seats"]
    flows = loaded.bpf[b"flows"]
    unmappable = FlowTable(seats.map_fd, np.dtype(flows.Leaf), 1)
    with pytest.raises(OSError, match="Invalid argument"):
        next(unmappable.blocks())
