"""What the programs would do with a packet: the same source, run beside them, changing nothing.

The source is compiled a second time with GALE_TRACE (bpf/kernel/bucket.h). Its programs read the
very maps that the attached ones go by: settings, services, rings, seats, addresses, endpoints, and
of the flow table the buckets that the packet meets, each of which they copy before they look into
it. Whatever else a packet may write to is a map of their own, filled from the living one with the
entries that the packet can meet. So nothing is left out of what they do, and nothing of it gets
out: the living maps that a program could write to are not even linked to it, but for the flow
table, which it only ever copies from.

BPF_PROG_TEST_RUN carries out no redirect: nothing is sent.

    with TracePrograms(living, defines, cache_dir) as programs:
        programs.begin(frame, cursors=100, is_reply=False)
        run = programs.run("tc_public", frame, ifindex)

`begin` once for each packet, then `run` hook by hook: what a hook has changed, the next one sees,
as it would on the wire. Compiling and loading take seconds; a run takes well below a millisecond,
and its preparation as long as copying the port cursors.

Failures: `CompileError` and `VerifierError` as in loader.py; `ValueError` where a living map has
another shape than the source declares.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from bpf.compiler import SOURCE_DIR, Image, MapDeclaration, compile_images
from bpf.pins import map_info
from bpf.syscall import (
    PER_CPU,
    MapType,
    ProgramFlag,
    ProgramKind,
    create_map,
    delete_entries,
    load_program,
    lookup_entry,
    read_entries,
    run_program,
    tc_context,
    update_entry,
    write_entries,
    xdp_context,
)
from bpf.table import c_type

SHARED = frozenset(
    (
        *("settings", "services", "ring", "seats", "addresses", "endpoints", "claims"),
        *("flows", "old_flows"),
    )
)
"""Maps that the programs read: of the flow tables, whole buckets at once and nothing else."""
COPIED_WHOLE = ("flow_rate", "answer_rate", "fragment_ids")
"""Maps of one entry."""
SOURCES = ("xdp.c", "tc.c")
HOOKS = {
    "xdp_public": ("gale_xdp_public", ProgramKind.XDP),
    "tc_public": ("gale_tc_public", ProgramKind.TC),
    "tc_private": ("gale_tc_private", ProgramKind.TC),
    "xdp_private": ("gale_xdp_reply", ProgramKind.XDP),
}
"""By the names of `enum hook`, in its order of XDP before TC."""
OWN_ENTRIES = 64
"""Of a map whose entries the packet can meet one or two of."""
_MMAPABLE = 1 << 10
_ETHERNET_BYTES = 14
_FRAGMENT_ID, _PROTOCOL, _SOURCE, _DESTINATION = 4, 9, 12, 16


@dataclass(frozen=True, slots=True)
class Run:
    """What one hook made of the packet."""

    reason: int
    """Its number in `enum reason`."""
    seat: int
    """Whose counters it raised; 0: nobody's."""
    packet: bytes


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket of the flow table that the packet met."""

    number: int
    is_old: bool
    """Of the table before this one."""
    before: NDArray[Any]
    after: NDArray[Any]
    """Records with the fields of `struct flow`."""


class TracePrograms:
    """`living`: by name, the fds of the maps that the attached programs use; they are borrowed.

    `defines`: those that the attached programs were compiled with.
    """

    def __init__(
        self, living: Mapping[str, int], defines: Mapping[str, str | int], cache_dir: Path | None
    ) -> None:
        sources = [SOURCE_DIR / name for name in SOURCES]
        images = compile_images(sources, {**defines, "GALE_TRACE": 1}, cache_dir)
        self._declared = {name: each for image in images for name, each in image.maps.items()}
        with ExitStack() as opened:
            self._living = {
                name: _borrowed(opened, fd) for name, fd in living.items() if name in self._declared
            }
            self._own = {
                name: _made(opened, name, each)
                for name, each in self._declared.items()
                if name not in SHARED
            }
            self._check()
            fds = self._own | {name: self._living[name] for name in SHARED}
            self._programs = {
                hook: _loaded(opened, image, name, kind, fds)
                for hook, (name, kind) in HOOKS.items()
                for image in images
                if name in image.functions
            }
            self._seats = _memory(opened, self._own["seat_counters"], self._entry("seat_counters"))
            self._verdicts = _memory(opened, self._own["verdicts"], self._entry("verdicts"))
            bucket = np.dtype(c_type(self._declared["traced"].value))["flow"]
            self._record, self._ways = bucket.base, bucket.shape[0]
            self._opened = opened.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Give back fds and memory. Nothing of the living maps is touched."""
        self._opened.close()

    def _check(self) -> None:
        for name in SHARED:
            here, declared = map_info(self._living[name]), self._declared[name].info
            if here != declared:
                raise ValueError(f"{name}: {here.differences(declared)}")

    def _entry(self, name: str) -> MapDeclaration:
        return self._declared[name]

    # ------------------------------------------------------------------ one packet

    def begin(self, packet: bytes, *, cursors: int, is_reply: bool) -> None:
        """Forget the packet before, and copy what this one can meet.

        `cursors`: how many of the port cursors are in use, from the first on. `is_reply`: it comes
        from a node; its client may be in a VLAN.
        """
        for name in ("traced", "old_traced", "sources", "fragments", "vlan_clients", "rivals"):
            _empty(self._own[name])
        self._seats[:] = 0
        self._verdicts[:] = 0
        for name in COPIED_WHOLE:
            self._copy(name, bytes(4))
        self._copy_many("port_cursors", cursors)
        if is_reply:
            self._copy_many("vlan_clients", None)
        if len(packet) >= _ETHERNET_BYTES + 20:
            header = packet[_ETHERNET_BYTES:]
            addresses = header[_SOURCE : _SOURCE + 8]
            self._copy("sources", addresses[:4])
            datagram = header[_FRAGMENT_ID : _FRAGMENT_ID + 2] + header[_PROTOCOL : _PROTOCOL + 1]
            self._copy("fragments", addresses + datagram + bytes([is_reply]))

    def run(self, hook: str, packet: bytes, ifindex: int) -> Run:
        """Have one hook's program look at the packet, as if it had come by that interface."""
        is_xdp = HOOKS[hook][1] is ProgramKind.XDP
        context = xdp_context(packet, ifindex) if is_xdp else tc_context(ifindex, ifindex)
        before = self._verdicts.copy()
        seats_before = self._seats.copy()
        done = run_program(self._programs[hook], packet, context)
        counted = np.flatnonzero(self._verdicts != before)
        raised = np.flatnonzero((self._seats != seats_before).any(axis=1))
        return Run(int(counted[0]) % 64, int(raised[0]) if len(raised) else 0, done.packet)

    def buckets(self) -> list[Bucket]:
        """Those of the flow table that the packet has met, as they are and as it left copies."""
        return [
            Bucket(
                int.from_bytes(key, "little"),
                is_old,
                self._records(self._living[table], key),
                np.frombuffer(value, self._record),
            )
            for copies, table, is_old in (
                ("traced", "flows", False),
                ("old_traced", "old_flows", True),
            )
            for key, value in _entries(self._own[copies], self._declared[copies])
        ]

    def flow_at(self, index: int, *, is_old: bool) -> Any:
        """The living record at that place of a flow table."""
        number, way = divmod(index, self._ways)
        table = self._living["old_flows" if is_old else "flows"]
        return self._records(table, number.to_bytes(4, "little"))[way]

    def _records(self, fd: int, key: bytes) -> NDArray[Any]:
        value = lookup_entry(fd, key, self._declared["traced"].info.value_size)
        return np.frombuffer(value or b"", self._record)

    # ------------------------------------------------------------------ copies

    def _copy(self, name: str, key: bytes) -> None:
        """The living entry of that key, if there is one."""
        value = lookup_entry(self._living[name], key, self._declared[name].info.value_size)
        if value is not None:
            update_entry(self._own[name], key, value)

    def _copy_many(self, name: str, at_most: int | None) -> None:
        for keys, values in read_entries(self._living[name], at_most):
            write_entries(self._own[name], keys, values)


def _borrowed(opened: ExitStack, fd: int) -> int:
    own = os.dup(fd)
    opened.callback(os.close, own)
    return own


def _made(opened: ExitStack, name: str, declared: MapDeclaration) -> int:
    """A map of the programs' own. What is kept per CPU stands there once, since they run on one."""
    info, kind, flags, entries = declared.info, declared.info.type, 0, declared.info.max_entries
    if kind in PER_CPU:
        kind, flags = MapType.ARRAY, _MMAPABLE
    elif kind == MapType.LRU_HASH:
        kind = MapType.HASH
        entries = entries if name == "vlan_clients" else OWN_ENTRIES
    sizes = (kind, info.key_size, info.value_size, entries, flags)
    fd = create_map(f"trace_{name}", *sizes, spin_lock=info.spin_lock)
    opened.callback(os.close, fd)
    return fd


def _loaded(
    opened: ExitStack, image: Image, name: str, kind: ProgramKind, fds: Mapping[str, int]
) -> int:
    code, licence = image.functions[name].linked(fds), image.licence.encode()
    fd = load_program(name.replace("gale_", "ask_"), kind, code, licence, ProgramFlag.NONE)
    opened.callback(os.close, fd)
    return fd


def _memory(opened: ExitStack, fd: int, declared: MapDeclaration) -> NDArray[Any]:
    """An array of 8-byte words in the kernel's own memory, one row for each entry."""
    words = declared.info.value_size // 8
    size = declared.info.max_entries * declared.info.value_size
    memory = mmap.mmap(fd, size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    whole: NDArray[Any] = np.frombuffer(memory, np.uint64, size // 8)
    return whole.reshape(-1, words) if words > 1 else whole


def _entries(fd: int, declared: MapDeclaration) -> Iterator[tuple[bytes, bytes]]:
    key, value = declared.info.key_size, declared.info.value_size
    for keys, values in read_entries(fd):
        for number in range(len(keys) // key):
            yield (
                keys[number * key : (number + 1) * key],
                values[number * value : (number + 1) * value],
            )


def _empty(fd: int) -> None:
    for keys, _ in list(read_entries(fd)):
        delete_entries(fd, keys)
