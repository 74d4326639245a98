"""Maps that outlive the process: adopted, grown, or refused with the old program forwarding on."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bpf.loader import LoadedObject, compile_program
from bpf.pins import ADVICE, PinMismatch, PinnedMaps, map_info, open_pin, pin
from bpf.syscall import create_map, get_object, map_shape, program_info
from tests.bpf.harness import (
    IMAGES,
    XdpVerdict,
    open_maps,
    private_bpffs,
    run_xdp,
    source_file,
    tcp,
)

PACKET = tcp(("192.0.2.1", 1), ("192.0.2.2", 2))
SHAPES: dict[str, str | int] = {
    "FLOWS": "lru_hash",
    "FLOW_KEY": "u64",
    "FLOW_VALUE": 14,
    "FLOW_ENTRIES": 1000,
    "FLOW_FLAGS": 0,
    "SEATS": 10,
    "COUNTERS": 10,
    "SOURCES": 16,
    "WORD": "u32",
    "WORDS": "words",
    "PARTS": "u32 length; u32 address",
}
SOURCE = """
#include <linux/bpf.h>
#include "map_macros.h"
struct client { WORD WORDS[FLOW_VALUE]; };
struct prefix { PARTS; };
GALE_MAP(FLOWS, FLOW_KEY, struct client, clients, FLOW_ENTRIES, FLOW_FLAGS);
GALE_MAP("array", int, u64, seats, SEATS, 0);
GALE_MAP("percpu_array", int, u64, counters, COUNTERS, 0);
GALE_MAP("lpm_trie", struct prefix, u32, sources, SOURCES, BPF_F_NO_PREALLOC);

/* Counts its packets as a flow, and what it knows is its verdict. */
int gale_test(struct xdp_md *ctx)
{
	FLOW_KEY key = 1;
	struct client *flow = clients.lookup(&key);
	int zero = 0;
	u64 *count = counters.lookup(&zero);

	if (count)
		*count += 1;
	if (!flow)
		return XDP_DROP;
	flow->WORDS[0] += 1;
	return XDP_TX;
}
"""


@pytest.fixture
def bpf_dir() -> Iterator[Path]:
    with private_bpffs() as directory:
        yield directory


class Start:
    """One start of a process: compiles, adopts, and forgets all when it ends."""

    def __init__(self, bpf_dir: Path, **changes: str | int) -> None:
        defines = {name: value for name, value in (SHAPES | changes).items() if name != "FLOWS"}
        defines["FLOWS"] = f'"{(SHAPES | changes)["FLOWS"]}"'
        self.maps = PinnedMaps(bpf_dir)
        self.loaded: LoadedObject = compile_program(
            str(source_file(SOURCE)), maps=self.maps, defines=defines, cache_dir=IMAGES
        )
        self.fd = self.loaded.function("gale_test", "xdp")

    def end(self) -> None:
        self.loaded.close()
        self.maps.close()


def flow_count(start: Start) -> int:
    return len(list(start.loaded.bpf[b"clients"].items()))


def add_flows(start: Start, first: int, last: int) -> None:
    table = start.loaded.bpf[b"clients"]
    for number in range(first, last):
        leaf = table.Leaf()
        leaf.words[1] = number * 3
        table[table.Key(number)] = leaf


def flow_words(start: Start) -> dict[int, int]:
    return {k.value: v.words[1] for k, v in start.loaded.bpf[b"clients"].items()}


def pinned_names(bpf_dir: Path) -> list[str]:
    return sorted(path.name for path in (bpf_dir / "maps").iterdir())


def test_nothing_is_pinned_before_the_caller_says_so(bpf_dir: Path) -> None:
    start = Start(bpf_dir)
    assert not (bpf_dir / "maps").exists()
    start.maps.prepare()
    names = pinned_names(bpf_dir)
    start.maps.commit()
    assert pinned_names(bpf_dir) == names
    assert pinned_names(bpf_dir) == ["clients", "counters", "seats", "sources"]
    start.end()


def test_a_restart_adopts_and_the_program_sees_the_old_flows(bpf_dir: Path) -> None:
    first = Start(bpf_dir)
    assert run_xdp(first.fd, PACKET).verdict is XdpVerdict.DROP
    add_flows(first, 1, 2)
    first.maps.commit()
    ids = {name: (bpf_dir / "maps" / name).stat().st_ino for name in pinned_names(bpf_dir)}
    first.end()

    second = Start(bpf_dir)
    assert run_xdp(second.fd, PACKET).verdict is XdpVerdict.TX
    assert flow_words(second) == {1: 3}
    assert sum(second.loaded.bpf[b"counters"][0]) == 2
    assert second.maps.migrated == ()
    second.maps.commit()
    assert {name: (bpf_dir / "maps" / name).stat().st_ino for name in ids} == ids
    second.end()


def test_a_second_source_of_the_same_start_shares_the_maps(bpf_dir: Path) -> None:
    start = Start(bpf_dir)
    defines = {**SHAPES, "FLOWS": '"lru_hash"'}
    other = compile_program(str(source_file(SOURCE)), maps=start.maps, defines=defines)
    add_flows(start, 1, 2)
    assert run_xdp(other.function("gale_test", "xdp"), PACKET).verdict is XdpVerdict.TX
    with pytest.raises(PinMismatch, match="maps/seats: max_entries 10 pinned, 11 declared"):
        compile_program(str(source_file(SOURCE)), maps=start.maps, defines=defines | {"SEATS": 11})
    other.close()
    start.end()


LAYOUT = "its layout is another one: fingerprint {} pinned, {} declared"


@pytest.mark.parametrize(
    ("changes", "name", "message"),
    [
        ({"FLOW_VALUE": 16}, "clients", f"{LAYOUT}, value_size 56 pinned, 64 declared"),
        ({"FLOW_KEY": "u32"}, "clients", f"{LAYOUT}, key_size 8 pinned, 4 declared"),
        ({"FLOWS": "hash"}, "clients", f"{LAYOUT}, type lru_hash pinned, hash declared"),
        (
            {"FLOW_FLAGS": "BPF_F_ZERO_SEED"},
            "clients",
            f"{LAYOUT}, flags 0x0 pinned, 0x40 declared",
        ),
        ({"SEATS": 9}, "seats", "max_entries 10 pinned, 9 declared"),
        (
            {"FLOW_VALUE": 16, "FLOW_ENTRIES": 500},
            "clients",
            f"{LAYOUT}, value_size 56 pinned, 64 declared, max_entries 1000 pinned, 500 declared",
        ),
        # Of one size, and something else all the same.
        ({"FLOW_KEY": "s64"}, "clients", LAYOUT),
        ({"WORD": "s32"}, "clients", LAYOUT),
        ({"WORDS": "counts"}, "clients", LAYOUT),
        ({"PARTS": "u32 address, length"}, "sources", LAYOUT),
        ({"PARTS": "struct { u32 length; } inner; u32 address"}, "sources", LAYOUT),
        ({"PARTS": "u32 length; u16 address[2]"}, "sources", LAYOUT),
        ({"PARTS": "u32 length; u8 address[4]"}, "sources", LAYOUT),
    ],
)
def test_another_shape_is_refused_by_name_while_the_old_program_forwards(
    bpf_dir: Path, changes: dict[str, str | int], name: str, message: str
) -> None:
    old = Start(bpf_dir)
    add_flows(old, 1, 2)
    old.maps.commit()
    before = {name: map_info(get_object(bpf_dir / "maps" / name)) for name in pinned_names(bpf_dir)}

    with pytest.raises(PinMismatch) as refusal:
        Start(bpf_dir, **changes)
    alone = Start(bpf_dir.with_name("nowhere"), **changes)
    fingerprints = [map_info(start.maps.fd(name)).fingerprint for start in (old, alone)]
    assert ("fingerprint" in message) == (fingerprints[0] != fingerprints[1])
    told = f"maps/{name}: {message.format(*fingerprints)}"
    assert refusal.value.problems == (f"{told} ({ADVICE})",)
    assert str(refusal.value) == f"{told} ({ADVICE})"
    alone.end()

    assert run_xdp(old.fd, PACKET).verdict is XdpVerdict.TX
    after = {name: map_info(get_object(bpf_dir / "maps" / name)) for name in pinned_names(bpf_dir)}
    assert after == before
    old.end()


def test_a_pin_of_a_version_without_fingerprints_is_refused(bpf_dir: Path) -> None:
    """It looks the same, and nobody can say that it is."""
    start = Start(bpf_dir)
    fingerprints = {}
    for name in ("clients", "sources"):
        shape = map_info(start.maps.fd(name))
        fingerprints[name] = shape.fingerprint
        plain = create_map(name, *map_shape(start.maps.fd(name)))
        assert map_info(plain) == replace(shape, fingerprint="")
        pin(plain, bpf_dir / "maps" / name)
        os.close(plain)
    with pytest.raises(PinMismatch) as refusal:
        Start(bpf_dir)
    assert refusal.value.problems == tuple(
        f"maps/{name}: its layout is another one: pinned without a fingerprint,"
        f" as by version 0.1.0, {fingerprint} declared ({ADVICE})"
        for name, fingerprint in fingerprints.items()
    )
    start.end()


def test_the_fingerprint_is_that_of_the_layout_alone(bpf_dir: Path) -> None:
    one, other = Start(bpf_dir), Start(bpf_dir, FLOW_ENTRIES=7, SEATS=20, COUNTERS=1, SOURCES=3)
    for name in ("clients", "seats", "counters", "sources"):
        mine, theirs = map_info(one.maps.fd(name)), map_info(other.maps.fd(name))
        assert mine.max_entries != theirs.max_entries
        assert mine.fingerprint == theirs.fingerprint != ""
    one.end()
    other.end()


def test_all_problems_are_told_at_once(bpf_dir: Path) -> None:
    old = Start(bpf_dir)
    old.maps.commit()
    with pytest.raises(PinMismatch) as refusal:
        Start(bpf_dir, FLOW_VALUE=16, SEATS=9)
    flows, seats = refusal.value.problems
    assert flows.startswith("maps/clients: its layout")
    assert seats.startswith("maps/seats: max_entries 10 pinned, 9 declared")
    # All in one line says only once what to do.
    assert str(refusal.value).count(ADVICE) == 1
    assert "gale detach" in ADVICE
    old.end()


@pytest.mark.parametrize("kind", ["lru_hash", "hash"])
@pytest.mark.parametrize("entries", [20_000, 400])
def test_another_number_of_entries_takes_the_contents_along(
    bpf_dir: Path, kind: str, entries: int
) -> None:
    old = Start(bpf_dir, FLOWS=kind)
    add_flows(old, 0, 100)
    old.loaded.bpf[b"seats"][9] = old.loaded.bpf[b"seats"].Leaf(77)
    run_xdp(old.fd, PACKET)
    sources = old.loaded.bpf[b"sources"]
    sources[sources.Key(8, 10)] = sources.Leaf(5)
    old.maps.commit()

    changes = {"FLOW_ENTRIES": entries, "SEATS": 50, "COUNTERS": 2000, "SOURCES": 32}
    new = Start(bpf_dir, FLOWS=kind, **changes)
    assert new.maps.migrated == ("clients", "counters", "seats", "sources")
    assert map_info(get_object(bpf_dir / "maps" / "clients")).max_entries == 1000
    assert flow_words(new) == {number: number * 3 for number in range(100)}
    assert [new.loaded.bpf[b"seats"][at].value for at in (9, 49)] == [77, 0]
    assert sum(new.loaded.bpf[b"counters"][0]) == 1
    assert [(k.length, k.address, v.value) for k, v in new.loaded.bpf[b"sources"].items()] == [
        (8, 10, 5)
    ]

    # What the old program adds until the new one is in its place comes along too; what the new
    # one has changed by then stays as it is.
    add_flows(old, 100, 110)
    add_flows(new, 200, 201)
    flows = new.loaded.bpf[b"clients"]
    for number in (5, 107):
        changed = flows.Leaf()
        changed.words[1] = 999
        flows[number] = changed
    del flows[6]
    new.maps.commit()
    assert set(flow_words(new)) == {*range(110), 200} - {6}
    assert [flow_words(new)[number] for number in (5, 105, 107)] == [999, 315, 999]
    assert map_info(get_object(bpf_dir / "maps" / "clients")).max_entries == entries
    assert run_xdp(new.fd, PACKET).verdict is XdpVerdict.TX
    old.end()
    new.end()

    third = Start(bpf_dir, FLOWS=kind, **changes)
    assert third.maps.migrated == ()
    assert set(flow_words(third)) == {*range(110), 200} - {6}
    third.end()


def test_many_entries_take_more_than_one_batch(bpf_dir: Path) -> None:
    old = Start(bpf_dir, FLOWS="hash", FLOW_ENTRIES=30_000)
    table = old.loaded.bpf[b"clients"]
    keys, leaves = (table.Key * 20_000)(*range(20_000)), (table.Leaf * 20_000)()
    for number in range(20_000):
        leaves[number].words[1] = number * 3
    table.items_update_batch(keys, leaves)
    old.maps.commit()
    new = Start(bpf_dir, FLOWS="hash", FLOW_ENTRIES=40_000)
    assert flow_words(new) == {number: number * 3 for number in range(20_000)}
    old.end()
    new.end()


def test_contents_that_do_not_fit_are_refused(bpf_dir: Path) -> None:
    old = Start(bpf_dir, FLOWS="hash")
    add_flows(old, 0, 100)
    old.maps.commit()
    with pytest.raises(PinMismatch, match="maps/clients: its entries do not fit into the 50"):
        Start(bpf_dir, FLOWS="hash", FLOW_ENTRIES=50)
    assert flow_count(old) == 100
    old.end()


def test_a_migration_that_is_given_up_leaves_the_old_pins(bpf_dir: Path) -> None:
    old = Start(bpf_dir)
    add_flows(old, 0, 10)
    old.maps.commit()
    given_up = Start(bpf_dir, FLOW_ENTRIES=2000)
    given_up.maps.prepare()
    given_up.end()
    assert pinned_names(bpf_dir) == ["clients", "counters", "seats", "sources"]
    assert map_info(get_object(bpf_dir / "maps" / "clients")).max_entries == 1000
    again = Start(bpf_dir)
    assert flow_count(again) == 10
    again.end()
    old.end()


def test_fds_are_given_back(bpf_dir: Path) -> None:
    Start(bpf_dir).end()
    before = open_maps()
    for entries in (1000, 2000, 2000):
        start = Start(bpf_dir, FLOW_ENTRIES=entries)
        start.maps.commit()
        start.end()
    assert open_maps() == before


def test_pin_replaces_in_one_step(bpf_dir: Path) -> None:
    start = Start(bpf_dir)
    path = bpf_dir / "prog" / "xdp_public"
    assert open_pin(path) is None
    pin(start.fd, path)
    frags = start.loaded.function("gale_test", "xdp", frags=True)
    # What a process left that died between the two steps is no obstacle.
    pin(start.fd, path.with_name("xdp_public~"))
    pin(frags, path)
    assert [entry.name for entry in path.parent.iterdir()] == ["xdp_public"]
    fd = open_pin(path)
    assert fd is not None
    assert program_info(fd) == program_info(frags)
    os.close(fd)
    start.end()


def test_shape_is_what_the_kernel_says(bpf_dir: Path) -> None:
    start = Start(bpf_dir)
    info = map_info(start.maps.fd("sources"))
    assert (info.key_size, info.value_size, info.max_entries) == (struct.calcsize("II"), 4, 16)
    start.end()
