"""A map of the kernel as a Python mapping, with the C layout that the compiler reported.

`Key` and `Leaf` are ctypes of exactly the C structs (so is numpy's dtype of them): no layout is
written twice. A per-CPU map's `Leaf` is an array with one `sLeaf` for each possible CPU.

    table[table.Key(address=…, port=…)] = table.Leaf(id=7)
    ring.items_update_batch(keys, leaves)

Missing keys raise KeyError. For whole tables in batches see `syscall.read_entries`. An array map
made with BPF_F_MMAPABLE is read without system calls:

    with table.mapped() as memory:
        flows = memory.records["flow"]
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Iterator, MutableMapping
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.pins import MapInfo
from bpf.syscall import (
    PER_CPU,
    delete_entry,
    lookup_entry,
    possible_cpus,
    read_entries,
    update_entry,
    write_entries,
)

_SCALARS: dict[str, Any] = {
    "_Bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "unsigned char": ctypes.c_ubyte,
    "short": ctypes.c_short,
    "unsigned short": ctypes.c_ushort,
    "int": ctypes.c_int,
    "unsigned int": ctypes.c_uint,
    "long": ctypes.c_long,
    "unsigned long": ctypes.c_ulong,
    "long long": ctypes.c_longlong,
    "unsigned long long": ctypes.c_ulonglong,
    "__int128": ctypes.c_longlong * 2,
    "unsigned __int128": ctypes.c_ulonglong * 2,
}
_KINDS = {"struct": ctypes.Structure, "struct_packed": ctypes.Structure, "union": ctypes.Union}


def c_type(layout: Any) -> Any:
    """The ctypes type of a layout: a scalar's name, or [name, members, "struct" or "union"].

    A member is [name, layout], and [length] after it makes it an array, a number a bit field.
    """
    if isinstance(layout, str):
        return _SCALARS[layout]
    name, members, kind = layout
    body: dict[str, Any] = {"_fields_": [_member(member) for member in members]}
    if kind == "struct_packed":
        # Padding is among the members, by name.
        body["_pack_"] = 1
    return type(str(name), (_KINDS[kind],), body)


def _member(member: Any) -> tuple[Any, ...]:
    name, layout, *rest = member
    kind = c_type(layout)
    if not rest:
        return name, kind
    (count,) = rest
    return (name, kind * count[0]) if isinstance(count, list) else (name, kind, count)


class Table(MutableMapping[Any, Any]):
    """One map. The fd is borrowed: it belongs to the `LoadedObject` it came from."""

    def __init__(self, fd: int, info: MapInfo, key: Any, value: Any) -> None:
        self.map_fd = fd
        self.info = info
        self.Key = c_type(key)
        self.sLeaf = c_type(value)
        # bcc forgets all but the first dimension of an array, for one.
        if (ctypes.sizeof(self.Key), ctypes.sizeof(self.sLeaf)) != (info.key_size, info.value_size):
            raise ValueError(f"bcc misdescribes {self.Key.__name__} or {self.sLeaf.__name__}")
        self.Leaf = self.sLeaf
        if info.type in PER_CPU:
            if info.value_size % 8:
                raise ValueError("a per-CPU map's value must be a multiple of 8 bytes long")
            self.Leaf = self.sLeaf * possible_cpus()

    def __getitem__(self, key: Any) -> Any:
        raw = lookup_entry(self.map_fd, _bytes_of(self.Key, key), ctypes.sizeof(self.Leaf))
        if raw is None:
            raise KeyError(key)
        return self.Leaf.from_buffer_copy(raw)

    def __setitem__(self, key: Any, leaf: Any) -> None:
        update_entry(self.map_fd, _bytes_of(self.Key, key), _bytes_of(self.Leaf, leaf))

    def __delitem__(self, key: Any) -> None:
        if not delete_entry(self.map_fd, _bytes_of(self.Key, key)):
            raise KeyError(key)

    def __iter__(self) -> Iterator[Any]:
        return (key for key, _ in self._entries())

    def items(self) -> Any:
        """Read in batches: what goes meanwhile is no error."""
        return self._entries()

    def _entries(self) -> Iterator[tuple[Any, Any]]:
        key_size, leaf_size = ctypes.sizeof(self.Key), ctypes.sizeof(self.Leaf)
        for keys, leaves in read_entries(self.map_fd):
            for at in range(len(keys) // key_size):
                yield (
                    self.Key.from_buffer_copy(keys, at * key_size),
                    self.Leaf.from_buffer_copy(leaves, at * leaf_size),
                )

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in read_entries(self.map_fd)) // self.info.key_size

    def items_update_batch(self, keys: Any, leaves: Any) -> None:
        """Set many entries at once, from ctypes arrays of `Key` and `Leaf`."""
        write_entries(self.map_fd, bytes(keys), bytes(leaves))

    def mapped(self) -> MappedArray:
        """The memory of an array map made with BPF_F_MMAPABLE; OSError for any other map."""
        return MappedArray(self)


class MappedArray:
    """An array map's own memory, to be read and not to be written.

    `records` has the shape (entries,) and the C struct's fields; a field that is an array adds a
    dimension, so `records["flow"]` of the flow table is (buckets, ways). What is read there is what
    the programs write meanwhile: a record may be half of the old and half of the new.

    The map lives as long as this is open, pinned or not.
    """

    def __init__(self, table: Table) -> None:
        # The kernel starts each value at a multiple of 8 bytes.
        stride = (table.info.value_size + 7) // 8 * 8
        entries = table.info.max_entries
        memory = mmap.mmap(
            table.map_fd, stride * entries, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ
        )
        # An array made of the memory itself would not keep it from being closed.
        octets = np.frombuffer(memory, np.uint8)
        self.records: NDArray[Any] = np.ndarray(
            (entries,), np.dtype(table.Leaf), octets, strides=(stride,)
        )

    def close(self) -> None:
        """Give the memory back. Where somebody still holds a part of `records`, it goes with it."""
        self.records = np.empty((0,), self.records.dtype)

    def __enter__(self) -> MappedArray:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def _bytes_of(kind: Any, value: Any) -> bytes:
    """`value` is a ctypes object of this layout, or the number that a scalar is made of."""
    raw = bytes(kind(value) if isinstance(value, int) else value)
    if len(raw) != ctypes.sizeof(kind):
        raise TypeError(f"{len(raw)} bytes given for a {kind.__name__} of {ctypes.sizeof(kind)}")
    return raw
