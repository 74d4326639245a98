"""What outlives the process: maps pinned in `<bpf directory>/maps`, programs in `.../prog`.

A restarted dataplane adopts the maps it finds, with all flows in them. (bcc would too, but it
takes whatever it finds, and opens pins by their id, which is left to CAP_SYS_ADMIN.) The
declaration is what the compiler reported of the source; a pin's shape is what the kernel tells.

Two values of one size may mean different things, so a map carries the fingerprint of its layout: a
hash over type, key size, value size and flags, and over the compiler's description of key and value
(names, types and array lengths of all members). It stands in the kernel object's name, behind the
first letters of the map's: `seats_5c1f02aa`. A member that changes its meaning and nothing else
must therefore change its name. Version 0.1.0 wrote no fingerprints.

For each map there are these cases:

* no pin: a new map is made, to be pinned;
* a pin of the same fingerprint and number of entries: adopted;
* a pin that differs in the number of entries alone: the contents are copied into a new map
  (an array may only grow: its tail means something). Not so for the flow table, which is chained
  instead (chain.py), and for maps with spin locks: while old and new programs are attached side by
  side, two maps would be two locks for the same thing;
* anything else: `PinMismatch`, naming the map, both fingerprints and what differs. Nobody can say
  what the old bytes mean to the new program.

Flows mean nothing without the maps that they point into and that their hash comes from: where a
flow table is pinned and one of `BELONG_TO_FLOWS` is not, that is refused too, by name.

Nothing of the old changes before `commit`, which the caller runs once the new programs are
attached: a program the verifier refuses, or a map that does not fit, leaves the old programs
forwarding over the old maps, and the pins as they were. Before it attaches the first, the caller
runs `prepare`, which pins the maps that are new: from then on there may be flows in them, and a
next start must find these, however far this one gets. The flow table comes last, so that a flow
table's pin means that all are there. Copies replace what they were copied from in `commit`, which
also carries over the entries that the old programs made between copy and attachment; a crash before
it is, for a copy, a crash before the start: the next one copies again.

Pins are replaced atomically (pinned beside, then renamed); bpffs allows no dots in names.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bpf.chain import (
    FLOWS,
    NEW_FLOWS,
    NO_TABLE,
    OLD_FLOWS,
    FlowTables,
    choose,
    settle,
    standing,
)
from bpf.syscall import (
    MapType,
    create_map,
    get_object,
    insert_entry,
    map_name,
    map_shape,
    pin_object,
    read_entries,
    write_entries,
)

_HASHES = (
    MapType.HASH,
    MapType.PERCPU_HASH,
    MapType.LRU_HASH,
    MapType.LRU_PERCPU_HASH,
    MapType.LPM_TRIE,
)
_ARRAYS = (MapType.ARRAY, MapType.PERCPU_ARRAY)
_TYPE_NAMES = {kind.value: kind.name.lower() for kind in MapType}
_FINGERPRINT = re.compile(r"_([0-9a-f]{8})$")
_NAME_LETTERS = 6
_BESIDE = "~"
WRITTEN_BY_THE_GROUP = frozenset(("claims",))
"""Maps that another process, of another user, writes. All else is its owner's alone."""
"""Ends the name of a pin on its way to its place."""

BELONG_TO_FLOWS = (OLD_FLOWS, "flow_locks", "settings", "services", "seats", "port_cursors")
ADVICE = "`gale detach` lets this version start and forgets the flows; the old version keeps them"


class PinMismatch(Exception):  # noqa: N818 - it names what was found, not a mistake in the program
    """Pinned maps that the new programs cannot use. `.problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__(f"{'; '.join(problems)} ({ADVICE})")
        self.problems = tuple(f"{problem} ({ADVICE})" for problem in problems)


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map's shape, as the kernel tells it."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
    fingerprint: str = ""
    """Of its layout; empty when nobody has given it one."""
    spin_lock: bool = field(default=False, compare=False)
    """Whether its values begin with one; the kernel does not say."""

    def differences(self, declared: MapInfo) -> dict[str, tuple[Any, Any]]:
        """Field -> (here, declared) for those that are not equal."""
        return {
            each.name: (_word(each.name, mine), _word(each.name, theirs))
            for each in fields(self)
            if each.compare
            and (mine := getattr(self, each.name)) != (theirs := getattr(declared, each.name))
        }


def layout_fingerprint(info: MapInfo, key: Any, value: Any) -> str:
    """Eight hex digits over all of a map's layout but its size.

    `key` and `value` are the compiler's descriptions, as `table.c_type` takes them.
    """
    shape = [info.type, info.key_size, info.value_size, info.flags]
    text = json.dumps([shape, key, value], separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _word(field: str, value: int) -> str | int:
    if field == "type":
        return _TYPE_NAMES.get(value, value)
    return hex(value) if field == "flags" else value


def map_info(fd: int) -> MapInfo:
    fingerprint = _FINGERPRINT.search(map_name(fd))
    return MapInfo(*map_shape(fd), fingerprint=fingerprint[1] if fingerprint else "")


def open_pin(path: Path) -> int | None:
    """The fd of what is pinned there; None when nothing is."""
    try:
        return get_object(path)
    except FileNotFoundError:
        return None


def pin(fd: int, path: Path) -> None:
    """Pin a map or program at `path`, in one step in the place of what was pinned there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}{_BESIDE}")
    beside.unlink(missing_ok=True)
    pin_object(fd, beside)
    if path.name in WRITTEN_BY_THE_GROUP:
        beside.chmod(0o660)
    beside.rename(path)


class _Migration:
    """One map's contents on their way from an old map to a new one with more or fewer entries."""

    def __init__(self, old_fd: int, new_fd: int) -> None:
        self.old_fd = old_fd
        self.new_fd = new_fd
        self._info = map_info(old_fd)
        self._copied: set[bytes] = set()

    def copy(self) -> None:
        for keys, values in read_entries(self.old_fd):
            write_entries(self.new_fd, keys, values)
            self._copied.update(_split(keys, self._info.key_size))

    def catch_up(self) -> None:
        """Carry over what the old programs have added since `copy`; what the new have, stays."""
        if self._info.type not in _HASHES:
            return
        for keys, values in read_entries(self.old_fd):
            each_key = _split(keys, self._info.key_size)
            each_value = _split(values, len(values) // len(each_key))
            for key, value in zip(each_key, each_value, strict=True):
                if key not in self._copied:
                    insert_entry(self.new_fd, key, value)


def _split(joined: bytes, size: int) -> list[bytes]:
    return [joined[start : start + size] for start in range(0, len(joined), size)]


def _create(name: str, info: MapInfo) -> int:
    return create_map(
        f"{name[:_NAME_LETTERS]}_{info.fingerprint}" if info.fingerprint else name,
        info.type,
        info.key_size,
        info.value_size,
        info.max_entries,
        info.flags,
        spin_lock=info.spin_lock,
    )


class PinnedMaps:
    """The maps of one BPF directory, for one start of the process that owns them.

    Several compiled sources may adopt: what one brought is there for the next. Without a directory
    all maps are new, and this process's alone.
    """

    def __init__(self, bpf_dir: Path | None) -> None:
        self._dir = bpf_dir and bpf_dir / "maps"
        self._held: dict[str, int] = {}
        self._adopted: set[str] = set()
        flows, old_flows = standing(self._flow_pins())
        self._sources: dict[str, str | None] = {FLOWS: flows, OLD_FLOWS: old_flows}
        """Name of a flow table → the pin to take; None: a new one."""
        self._targets: dict[str, str] = {}
        """Name of a map that is new → where to pin it."""
        self._replacing: set[str] = set()
        """New maps whose pin's place is taken by one still in use."""
        self._migrations: dict[str, _Migration] = {}
        self._begins_chain = self._drops_old = False

    # ------------------------------------------------------------------ the flow table's size

    def flow_tables(self, wanted: int, *, old_is_empty: bool = False) -> FlowTables:
        """The sizes that the programs have to be compiled for; `wanted`: buckets, at least 2.

        `old_is_empty`: no flow lives in the table before. Called before `adopt`, if at all;
        without it the pinned sizes are expected.
        """
        pinned = self._flow_pins()
        choice = choose(pinned, wanted, old_is_empty=old_is_empty)
        self._sources = {FLOWS: choice.flows, OLD_FLOWS: choice.old_flows}
        self._begins_chain = choice.begins_chain
        self._drops_old = choice.old_flows is None
        return choice.tables

    def entries(self, name: str) -> int:
        """How many entries the map pinned by that name has; 0: none is."""
        fd = open_pin(self._dir / name) if self._dir else None
        if fd is None:
            return 0
        try:
            return map_info(fd).max_entries
        finally:
            os.close(fd)

    def _flow_pins(self) -> dict[str, int]:
        """The pins of flow tables, and how many buckets each has."""
        found = {}
        for name in (FLOWS, OLD_FLOWS, NEW_FLOWS):
            fd = open_pin(self._dir / name) if self._dir else None
            if fd is not None:
                found[name] = map_info(fd).max_entries
                os.close(fd)
        return found

    # ------------------------------------------------------------------ adopting

    def adopt(self, declared: Mapping[str, MapInfo]) -> None:
        """Have a map for every declaration; `fd` gives it.

        Raises `PinMismatch` for all maps at once, and has then changed nothing.
        """
        for name in self._resized(declared):
            self._migrations[name] = self._copied(name, declared[name])
            self._held[name] = self._migrations[name].new_fd
            self._replacing.add(name)
        for name, info in declared.items():
            if self._hold(name) is None:
                self._make(name, info)
        self._adopted.update(declared)

    def _make(self, name: str, info: MapInfo) -> None:
        self._held[name] = _create(name, info)
        if name == OLD_FLOWS and self._drops_old:
            self._replacing.add(name)
        else:
            begins_chain = name == FLOWS and self._begins_chain
            self._targets[name] = NEW_FLOWS if begins_chain else name

    def _resized(self, declared: Mapping[str, MapInfo]) -> list[str]:
        """The maps that must be copied; raises if any cannot be, or one is missing."""
        problems = []
        resized = []
        for name, wanted in declared.items():
            held_fd = self._hold(name)
            if held_fd is None:
                continue
            here = map_info(held_fd)
            if here == wanted:
                continue
            # Two sources of one start that disagree are a mistake of theirs, not a new size.
            if name not in self._adopted and _may_migrate(name, here, wanted):
                resized.append(name)
            else:
                problems.append(_problem(self._sources.get(name) or name, here, wanted))
        problems += self._missing(declared)
        if problems:
            raise PinMismatch(problems)
        return resized

    def _missing(self, declared: Mapping[str, MapInfo]) -> list[str]:
        """What the pinned flows need and is not pinned."""
        table = self._pinned_table()
        if table is None:
            return []
        return [
            f"maps/{name}: not pinned, and the flows in maps/{table} mean nothing without it"
            for name in BELONG_TO_FLOWS
            if name in declared
            and self._hold(name) is None
            and not (name == OLD_FLOWS and self._drops_old)
        ]

    def _pinned_table(self) -> str | None:
        """The pin of a table in use that may have flows; None when there is none."""
        for name in (FLOWS, OLD_FLOWS):
            if name not in self._held or name in self._targets or name in self._replacing:
                continue
            if name == FLOWS or map_info(self._held[name]).max_entries > NO_TABLE:
                return self._sources[name]
        return None

    def _hold(self, name: str) -> int | None:
        if name not in self._held:
            source = self._sources.get(name, name)
            fd = open_pin(self._dir / source) if self._dir and source else None
            if fd is None:
                return None
            self._held[name] = fd
        return self._held[name]

    def _copied(self, name: str, declared: MapInfo) -> _Migration:
        migration = _Migration(self._held[name], _create(name, declared))
        try:
            migration.copy()
        except OSError as error:
            os.close(migration.new_fd)
            if error.errno != errno.E2BIG:
                raise
            raise PinMismatch(
                [f"maps/{name}: its entries do not fit into the {declared.max_entries} declared"]
            ) from None
        return migration

    def fd(self, name: str) -> int:
        """The fd of a map in use; it stays this object's."""
        return self._held[name]

    @property
    def migrated(self) -> tuple[str, ...]:
        """The maps that were copied to a new size."""
        return tuple(sorted(self._migrations))

    # ------------------------------------------------------------------ pinning

    def prepare(self) -> None:
        """The programs that use these maps are about to be attached: pin the new ones."""
        if self._dir:
            for left_over in self._dir.glob(f"*{_BESIDE}"):
                left_over.unlink()
            settle(self._dir)
            for name in sorted(self._targets, key=lambda name: (name == FLOWS, name)):
                pin(self._held[name], self._dir / self._targets[name])
        self._targets.clear()

    def commit(self) -> None:
        """The programs are attached: replace what they do not use, finish the copies."""
        self.prepare()
        if self._dir:
            for name in sorted(self._replacing):
                pin(self._held[name], self._dir / name)
            settle(self._dir)
        self._replacing.clear()
        for migration in self._migrations.values():
            migration.catch_up()
            os.close(migration.old_fd)
        self._migrations.clear()

    def close(self) -> None:
        """Give back the fds; what is pinned stays."""
        for fd in (*self._held.values(), *(m.old_fd for m in self._migrations.values())):
            os.close(fd)
        self._held.clear()
        self._migrations.clear()


def _may_migrate(name: str, pinned: MapInfo, declared: MapInfo) -> bool:
    if set(pinned.differences(declared)) != {"max_entries"}:
        return False
    if name in (FLOWS, OLD_FLOWS) or declared.spin_lock:
        return False
    return pinned.type in _HASHES or (
        pinned.type in _ARRAYS and declared.max_entries > pinned.max_entries
    )


def _problem(name: str, pinned: MapInfo, declared: MapInfo) -> str:
    words = [
        f"{field} {here} pinned, {there} declared"
        for field, (here, there) in pinned.differences(declared).items()
        if field != "fingerprint"
    ]
    if pinned.fingerprint == declared.fingerprint:
        return f"maps/{name}: {', '.join(words)}"
    here = f"fingerprint {pinned.fingerprint} pinned"
    if not pinned.fingerprint:
        here = "pinned without a fingerprint, as by version 0.1.0"
    layout = [here, f"{declared.fingerprint} declared", *words]
    return f"maps/{name}: its layout is another one: {', '.join(layout)}"
