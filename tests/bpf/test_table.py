"""Maps as Python mappings: the layouts are the compiler's, whatever they look like."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bpf.loader import LoadedObject
from bpf.syscall import possible_cpus
from bpf.table import c_type
from tests.bpf.harness import XdpVerdict, program, run_xdp, tcp

PACKET = tcp(("192.0.2.1", 1), ("192.0.2.2", 2))
SOURCE = """
#include <linux/bpf.h>
#include "map_macros.h"

enum colour { RED, GREEN = 7 };
struct inner { u8 a; u32 b; };
struct everything {
	u8 octet;			/* padding follows */
	u64 wide;
	u8 mac[6];
	u16 grid[3];
	struct inner inner;		/* padding within */
	union { u32 word; u8 octets[4]; } either;
	enum colour colour;
	s16 negative;
	__be32 address;
};
struct prefix { u32 length; u32 address; };
struct bucket { struct everything thing[3]; };
struct odd { u8 bytes[13]; };			/* three more before the next one */
GALE_MAP("hash", struct inner, struct everything, things, 16, 0);
GALE_MAP("array", int, u32, numbers, 3, 0);
GALE_MAP("percpu_array", int, struct everything, counts, 2, 0);
GALE_MAP("lpm_trie", struct prefix, u64, routes, 4, BPF_F_NO_PREALLOC);
GALE_MAP("array", int, struct bucket, buckets, 1000, BPF_F_MMAPABLE);
GALE_MAP("array", int, struct odd, odds, 700, BPF_F_MMAPABLE);

int gale_test_fill(struct xdp_md *ctx)
{
	struct inner key = {};
	struct everything value = {};
	struct everything *count;
	struct bucket *bucket;
	struct odd *odd;
	int one = 1, at;

	key.a = 1;
	key.b = 2;
	value.octet = 3;
	value.wide = 0x0102030405060708;
	value.mac[5] = 0x55;
	value.grid[2] = 0x1234;
	value.inner.b = 9;
	value.either.word = 0x01020304;
	value.colour = GREEN;
	value.negative = -2;
	value.address = bpf_htonl(0x0a000001);
	things.update(&key, &value);
	count = counts.lookup(&one);
	if (count)
		count->wide += 5;
	at = 998;
	bucket = buckets.lookup(&at);
	if (bucket) {
		bucket->thing[2].mac[5] = 0x66;
		bucket->thing[2].inner.b = 10;
		bucket->thing[2].either.word = 11;
		bucket->thing[2].negative = -12;
	}
	at = 699;
	odd = odds.lookup(&at);
	if (odd)
		odd->bytes[12] = 13;
	return XDP_PASS;
}
"""


@pytest.fixture
def loaded() -> Iterator[LoadedObject]:
    with program(SOURCE) as compiled:
        yield compiled


def test_what_the_program_writes_is_read_by_name(loaded: LoadedObject) -> None:
    assert run_xdp(loaded.function("gale_test_fill", "xdp"), PACKET).verdict is XdpVerdict.PASS
    things = loaded.bpf[b"things"]
    ((key, value),) = things.items()
    assert (key.a, key.b) == (1, 2)
    assert (value.octet, value.wide, value.mac[5]) == (3, 0x0102030405060708, 0x55)
    assert (value.grid[2], value.inner.b, value.either.word) == (0x1234, 9, 0x01020304)
    assert (value.colour, value.negative) == (7, -2)
    assert value.address.to_bytes(4, "little") == bytes([10, 0, 0, 1])
    assert things[things.Key(a=1, b=2)].wide == value.wide
    assert ctypes.sizeof(things.Leaf) == things.info.value_size


def test_what_is_written_by_name_is_what_the_program_wrote(loaded: LoadedObject) -> None:
    run_xdp(loaded.function("gale_test_fill", "xdp"), PACKET)
    things = loaded.bpf[b"things"]
    leaf = things.Leaf(octet=3, wide=0x0102030405060708, colour=7, negative=-2)
    leaf.mac[5], leaf.grid[2], leaf.inner.b, leaf.either.word = 0x55, 0x1234, 9, 0x01020304
    leaf.address = int.from_bytes(bytes([10, 0, 0, 1]), "little")
    assert bytes(leaf) == bytes(things[things.Key(a=1, b=2)])


def test_a_mapping_as_any_other(loaded: LoadedObject) -> None:
    things = loaded.bpf[b"things"]
    assert len(things) == 0
    key = things.Key(a=1)
    with pytest.raises(KeyError):
        things[key]
    with pytest.raises(KeyError):
        del things[key]
    for number in range(5):
        things[things.Key(a=number)] = things.Leaf(wide=number * 2)
    assert len(things) == 5
    assert {found.a: value.wide for found, value in things.items()} == {
        number: number * 2 for number in range(5)
    }
    assert sorted(found.a for found in things) == [0, 1, 2, 3, 4]
    assert things.get(things.Key(a=9)) is None
    del things[key]
    assert key not in things
    things.clear()
    assert len(things) == 0


def test_scalars_are_given_as_numbers(loaded: LoadedObject) -> None:
    numbers = loaded.bpf[b"numbers"]
    numbers[2] = 77
    numbers[numbers.Key(1)] = numbers.Leaf(66)
    assert [value.value for value in numbers.values()] == [0, 66, 77]
    with pytest.raises(OSError, match="MAP_UPDATE_ELEM"):
        numbers[3] = 1


def test_a_struct_of_another_size_is_refused(loaded: LoadedObject) -> None:
    things = loaded.bpf[b"things"]
    with pytest.raises(TypeError, match="4 bytes given for a inner of 8"):
        things[ctypes.c_uint(1)] = things.Leaf()
    with pytest.raises(TypeError, match="8 bytes given for a everything"):
        things[things.Key()] = things.Key()


def test_per_cpu_values_come_one_for_each_cpu(loaded: LoadedObject) -> None:
    counts = loaded.bpf[b"counts"]
    counts[0] = counts.Leaf(*(counts.sLeaf(wide=cpu) for cpu in range(possible_cpus())))
    assert [value.wide for value in counts[0]] == list(range(possible_cpus()))
    for _ in range(3):
        run_xdp(loaded.function("gale_test_fill", "xdp"), PACKET)
    assert sum(value.wide for value in counts[1]) == 15


def test_prefixes_match_the_longest(loaded: LoadedObject) -> None:
    routes = loaded.bpf[b"routes"]
    ten = int.from_bytes(bytes([10, 0, 0, 0]), "little")
    routes[routes.Key(8, ten)] = 1
    routes[routes.Key(32, ten)] = 2
    assert routes[routes.Key(32, ten)].value == 2
    assert routes[routes.Key(32, ten + (5 << 24))].value == 1
    assert len(routes) == 2


def test_batches_and_numpy_have_the_same_layout(loaded: LoadedObject) -> None:
    things = loaded.bpf[b"things"]
    keys, leaves = (things.Key * 10)(), (things.Leaf * 10)()
    for number in range(10):
        keys[number].a, leaves[number].wide = number, number * 3
    things.items_update_batch(keys, leaves)
    records = np.frombuffer(bytes(leaves), np.dtype(things.Leaf))
    assert list(records["wide"]) == [number * 3 for number in range(10)]
    assert {key.a: value.wide for key, value in things.items()} == {
        number: number * 3 for number in range(10)
    }


# --------------------------------------------------------------------------- memory


def test_mapped_memory_shows_what_the_program_writes(loaded: LoadedObject) -> None:
    with loaded.bpf[b"buckets"].mapped() as memory, loaded.bpf[b"odds"].mapped() as odds:
        things = memory.records["thing"]
        assert things.shape == (1000, 3)
        assert not things["wide"].any()
        run_xdp(loaded.function("gale_test_fill", "xdp"), PACKET)
        assert np.argwhere(things["negative"]).tolist() == [[998, 2]]
        thing = things[998, 2]
        assert (thing["mac"][5], thing["inner"]["b"], thing["negative"]) == (0x66, 10, -12)
        assert int.from_bytes(thing["either"].tobytes(), "little") == 11
        assert np.argwhere(odds.records["bytes"]).tolist() == [[699, 12]]
        del things, thing


def test_mapped_records_lie_where_ctypes_and_the_kernel_have_them(loaded: LoadedObject) -> None:
    table = loaded.bpf[b"buckets"]
    leaf = table.Leaf()
    for name, kind, *_ in leaf.thing[1]._fields_:
        offset = getattr(type(leaf.thing[1]), name).offset
        with table.mapped() as memory:
            fields = memory.records["thing"].dtype.fields
            assert fields is not None
            assert fields[name][1] == offset
            assert fields[name][0].itemsize == ctypes.sizeof(kind)


def test_mapped_memory_cannot_be_written(loaded: LoadedObject) -> None:
    with loaded.bpf[b"buckets"].mapped() as memory:
        with pytest.raises(ValueError, match="read-only"):
            memory.records["thing"]["wide"][0] = 1
        with pytest.raises(ValueError, match="WRITEABLE"):
            memory.records.flags.writeable = True


@pytest.mark.parametrize("name", ["numbers", "things"])
def test_other_maps_have_no_memory_to_read(loaded: LoadedObject, name: str) -> None:
    with pytest.raises(OSError, match=r"Invalid argument|524"):
        loaded.bpf[name.encode()].mapped()


def mappings() -> int:
    return Path("/proc/self/maps").read_text().count("bpf-map")


def test_closing_gives_the_memory_back_when_nobody_looks_any_more() -> None:
    before = mappings()
    with program(SOURCE) as compiled:
        memory = compiled.bpf[b"buckets"].mapped()
    # It needs nobody else: neither the map's fd nor its program.
    assert memory.records["thing"]["wide"][999, 2] == 0
    assert mappings() == before + 1
    memory.close()
    memory.close()
    assert mappings() == before
    with program(SOURCE) as compiled, compiled.bpf[b"buckets"].mapped() as memory:
        part = memory.records["thing"][5]
    assert part["wide"].tolist() == [0, 0, 0]
    assert mappings() == before + 1
    del part
    assert mappings() == before


def test_a_flow_is_where_c_has_it() -> None:
    """Against offsets that the compiler itself has worked out."""
    with program(FLOW_SOURCE, FLOW_BUCKETS=64) as compiled:
        run_xdp(compiled.function("gale_offsets", "xdp"), PACKET)
        offsets = [value.value for value in compiled.bpf[b"offsets"].values()]
        with compiled.bpf[b"flows"].mapped() as memory:
            flow = memory.records["flow"]
            assert flow.shape == (64, 16)
            assert flow.strides == (1024, 64)
            assert flow.dtype.itemsize == 64
            fields = flow.dtype.fields
            assert fields is not None
            assert list(fields) == FLOW_FIELDS
            assert [fields[name][1] for name in FLOW_FIELDS] == offsets
            del flow


FLOW_FIELDS = [
    *("key", "saddr", "daddr", "sport", "dport", "seat", "state", "flags", "other", "deadline"),
    *("end", "acked", "edge", "begin", "last_hop", "scale", "reach"),
]
FLOW_SOURCE = """
#include <linux/bpf.h>
#include "maps.h"
GALE_MAP("array", int, u32, offsets, COUNT, 0);

int gale_offsets(struct xdp_md *ctx)
{
	int zero = 0, at = 0;
	struct flow_bucket *bucket = flows.lookup(&zero);
	u32 offset;

	if (!bucket)
		return XDP_DROP;
SET	return XDP_PASS;
}
""".replace("COUNT", str(len(FLOW_FIELDS))).replace(
    "SET",
    "".join(
        f"\toffset = __builtin_offsetof(struct flow, {name});\n"
        "\toffsets.update(&at, &offset);\n\tat++;\n"
        for name in FLOW_FIELDS
    ),
)


def test_a_layout_that_the_compiler_misdescribes_is_refused() -> None:
    text = SOURCE.replace("grid[3]", "grid[3][2]").replace("grid[2]", "grid[2][1]")
    with pytest.raises(ValueError, match=r"misdescribes .* or (everything|bucket)"), program(text):
        pass


def test_bit_fields_and_unknown_types() -> None:
    bits = c_type(["bits", [["low", "unsigned int", 3], ["high", "unsigned int", 5]], "struct"])
    assert bytes(bits(low=5, high=1))[0] == 5 | 1 << 3
    with pytest.raises(KeyError, match="float"):
        c_type("float")
