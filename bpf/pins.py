"""What outlives the process: maps pinned in `<bpf directory>/maps`, programs in `.../prog`.

A restarted dataplane adopts the maps it finds, with all flows in them. (bcc would too, but it
takes whatever it finds, and opens pins by their id, which is left to CAP_SYS_ADMIN.) The
declaration is what the compiler reported of the source; a pin's shape is what the kernel tells.

For each map there are four cases:

* no pin: a new map is made, to be pinned;
* a pin of the same shape (type, key size, value size, entries, flags): adopted;
* a pin that differs in the number of entries alone: the contents are copied into a new map
  (an array may only grow: its tail means something);
* anything else: `PinMismatch`, naming the map and both values. Nobody can say what the old bytes
  mean to the new program.

Nothing changes in the BPF directory before `commit`, which the caller runs once the new programs
are attached: a program the verifier refuses, or a map that does not fit, leaves the old programs
forwarding over the old maps, and the pins as they were. Entries the old programs made between the
copy and the attachment are carried over by `commit`. A crash before `commit` is a crash before
the start: the next one begins with the same pins.

Pins are replaced atomically (pinned beside, then renamed); bpffs allows no dots in names.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from bpf.syscall import (
    MapType,
    create_map,
    get_object,
    insert_entry,
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


class PinMismatch(Exception):  # noqa: N818 - it names what was found, not a mistake in the program
    """Pinned maps that the new programs cannot use. `.problems` has one line for each."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("; ".join(problems))
        self.problems = tuple(problems)


@dataclass(frozen=True, slots=True)
class MapInfo:
    """A map's shape, as the kernel tells it."""

    type: int
    key_size: int
    value_size: int
    max_entries: int
    flags: int
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


def _word(field: str, value: int) -> str | int:
    if field == "type":
        return _TYPE_NAMES.get(value, value)
    return hex(value) if field == "flags" else value


def map_info(fd: int) -> MapInfo:
    return MapInfo(*map_shape(fd))


def open_pin(path: Path) -> int | None:
    """The fd of what is pinned there; None when nothing is."""
    try:
        return get_object(path)
    except FileNotFoundError:
        return None


def pin(fd: int, path: Path) -> None:
    """Pin a map or program at `path`, in one step in the place of what was pinned there."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f"{path.name}~")
    beside.unlink(missing_ok=True)
    pin_object(fd, beside)
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
        name,
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
        self._unpinned: set[str] = set()
        self._migrations: dict[str, _Migration] = {}

    def adopt(self, declared: Mapping[str, MapInfo]) -> None:
        """Have a map for every declaration; `fd` gives it.

        Raises `PinMismatch` for all maps at once, and has then changed nothing.
        """
        resized = self._resized(declared)
        migrations = {name: self._copied(name, declared[name]) for name in resized}
        for name, info in declared.items():
            if name in migrations:
                self._held[name] = migrations[name].new_fd
            elif self._hold(name) is None:
                self._held[name] = _create(name, info)
            else:
                continue
            self._unpinned.add(name)
        self._migrations.update(migrations)
        self._adopted.update(declared)

    def _resized(self, declared: Mapping[str, MapInfo]) -> list[str]:
        """The maps that must be copied; raises if any cannot be."""
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
            if name not in self._adopted and _may_migrate(here, wanted):
                resized.append(name)
            else:
                problems.append(_problem(name, here.differences(wanted)))
        if problems:
            raise PinMismatch(problems)
        return resized

    def _hold(self, name: str) -> int | None:
        if name not in self._held:
            fd = open_pin(self._dir / name) if self._dir else None
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

    def commit(self) -> None:
        """The programs that use these maps are attached: pin the new ones, finish the copies."""
        for name in sorted(self._unpinned):
            if self._dir:
                pin(self._held[name], self._dir / name)
        self._unpinned.clear()
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


def _may_migrate(pinned: MapInfo, declared: MapInfo) -> bool:
    if set(pinned.differences(declared)) != {"max_entries"}:
        return False
    return pinned.type in _HASHES or (
        pinned.type in _ARRAYS and declared.max_entries > pinned.max_entries
    )


def _problem(name: str, differences: dict[str, tuple[Any, Any]]) -> str:
    words = [
        f"{field} {here} pinned, {there} declared" for field, (here, there) in differences.items()
    ]
    return f"maps/{name}: {', '.join(words)}"
