"""The directory of keys: this machine's own, and those of whom it admits.

    /etc/gale/keys/          0700    made by `gale keygen`
        own.secret           0600    this machine's secret key; it never leaves the machine
        own.public           0600    the other half, to be copied to others
        lbs/NAME.public      0600    of each load balancer
        nodes/NAME.public    0600    of each node (needed on load balancers alone)

A file holds one key to a line, in the 40 characters of Z85 (ZeroMQ RFC 32) that CURVE keys are
written in. A `.public` file may hold several, and all of them are that machine's: so a key is
exchanged without a gap, by adding the new one everywhere, then using it, then taking the old one
out. NAME is the name that a key stands for: what a machine says of itself counts for nothing.

Whoever may write here decides who belongs to the cluster; whoever may read `own.secret` is this
machine. What is no key is not admitted, and named in `problems`; of a key that stands under two
names the first one in order has it.

**Changes** take effect by themselves. `refresh` looks at the modes and times of the two folders and
of some files, `LOOKED_AT` at a time, so it costs next to nothing with thousands of them.
"""

from __future__ import annotations

import os
import re
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import zmq

NODES = "nodes"
LBS = "lbs"
GROUPS = (LBS, NODES)
SECRET, PUBLIC = "own.secret", "own.public"
SUFFIX = ".public"
DIRECTORY_MODE, FILE_MODE = 0o700, 0o600
GROUP_MAY_READ = 0o050
"""On a machine whose processes have users of their own, a group of them may read what root owns."""
LONGEST_FILE_BYTES = 4_096
LOOKED_AT = 256
"""Files that `refresh` looks at in one call, beyond those of a folder that has changed."""
_FRESH_NS = 50_000_000
"""A file written so recently may be written again without its time being another."""
_KEY = re.compile(rb"[0-9a-zA-Z.\-:+=^!/*?&<>()\[\]{}@%$#]{40}")


class Pair(NamedTuple):
    """This machine's own keys, both in Z85."""

    public: bytes
    secret: bytes


class _Mark(NamedTuple):
    """What tells one content of a file, or one list of a folder's files, from the next."""

    inode: int
    time_ns: int
    size: int
    mode: int


@dataclass(slots=True)
class _File:
    mark: _Mark | None
    keys: tuple[bytes, ...] = ()
    problem: str = ""


@dataclass(slots=True)
class _Group:
    """The keys of one folder."""

    mark: _Mark | None = None
    files: dict[str, _File] = field(default_factory=dict)
    """By name; in the order in which they are looked at next."""
    problem: str = ""
    owners: dict[bytes, str] = field(default_factory=dict)


class KeyDirectory:
    """What the directory says now; `refresh` reads it again where it has changed."""

    def __init__(self, path: Path, groups: tuple[str, ...] = GROUPS) -> None:
        """`groups`: those of whom this process wants to know."""
        self.path = path
        self.own: Pair | None = None
        """None: `problems` says why."""
        self._own_file = _File(None)
        self._groups = {name: _Group() for name in groups}
        self.refresh()

    @property
    def problems(self) -> tuple[str, ...]:
        """What is wrong with the directory, a line for each."""
        found = [self._own_file.problem]
        for group in self._groups.values():
            found.append(group.problem)
            found += [each.problem for _, each in sorted(group.files.items())]
        return tuple(problem for problem in found if problem)

    def name_of(self, group: str, key: bytes) -> str | None:
        """Whose key (in Z85) this is; None: nobody's of that group."""
        return self._groups[group].owners.get(key)

    def keys_of(self, group: str, name: str) -> tuple[bytes, ...]:
        """The keys of one machine, in the order of its file; none: it is not known."""
        known = self._groups[group].files.get(name)
        return known.keys if known is not None else ()

    def refresh(self) -> bool:
        """Read what has changed; returns whether the keys differ from before."""
        before = self.own
        self._refresh_own()
        changed = self.own != before
        for name, group in self._groups.items():
            changed |= self._refresh_group(self.path / name, group)
        return changed

    def _refresh_own(self) -> None:
        path = self.path / SECRET
        if _same(self._own_file.mark, _mark(path)):
            return
        self._own_file = found = _read(path)
        self.own = None
        if not found.problem and len(found.keys) == 1:
            self.own = Pair(zmq.curve_public(found.keys[0]), found.keys[0])
        elif not found.problem:
            found.problem = f"{path}: {len(found.keys)} keys, expected one"

    def _refresh_group(self, folder: Path, group: _Group) -> bool:
        mark = _mark(folder)
        if not _same(group.mark, mark):
            group.mark = mark
            names = _names(folder)
            group.problem = f"{folder}: cannot be read" if names is None else ""
            gone = group.files.keys() - (names or frozenset())
            for name in gone:
                del group.files[name]
            read = [self._look(folder, group, name) for name in sorted(names or ())]
            changed = bool(gone) or any(read)
        else:
            looked = [self._look(folder, group, name) for name in list(group.files)[:LOOKED_AT]]
            changed = any(looked)
        if changed:
            group.owners = {}
            for name, file in sorted(group.files.items(), reverse=True):
                group.owners |= dict.fromkeys(file.keys, name)
        return changed

    @staticmethod
    def _look(folder: Path, group: _Group, name: str) -> bool:
        """Read one file again if it has changed; returns whether its keys have."""
        path = folder / f"{name}{SUFFIX}"
        known = group.files.pop(name, None)
        if known is not None and _same(known.mark, _mark(path)):
            group.files[name] = known
            return False
        found = group.files[name] = _read(path)
        return known is None or known.keys != found.keys


def _names(folder: Path) -> frozenset[str] | None:
    """The names that the folder has keys of; none if there is no such folder."""
    try:
        with os.scandir(folder) as entries:
            files = [entry.name for entry in entries if entry.name.endswith(SUFFIX)]
    except FileNotFoundError:
        return frozenset()
    except OSError:
        return None
    return frozenset(name.removesuffix(SUFFIX) for name in files)


def _mark(path: Path) -> _Mark | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return _Mark(found.st_ino, found.st_mtime_ns, found.st_size, found.st_mode)


def _same(before: _Mark | None, now: _Mark | None) -> bool:
    """Whether what was read when the mark was `before` still stands."""
    return (
        before is not None
        and before == now
        and time.time_ns() - before.time_ns > _FRESH_NS  # else: written twice within a tick?
    )


def _read(path: Path) -> _File:
    """The keys of one file, all of them or none."""
    mark = _mark(path)
    try:
        if mark is not None and not stat.S_ISREG(mark.mode):
            return _File(mark, problem=f"{path}: is no regular file")
        with path.open("rb") as file:
            lines = file.read(LONGEST_FILE_BYTES + 1).split()
    except OSError as error:
        return _File(mark, problem=f"{path}: {(error.strerror or str(error)).lower()}")
    if not lines or not all(_KEY.fullmatch(line) for line in lines):
        return _File(mark, problem=f"{path}: expected one key to a line, each of 40 characters")
    return _File(mark, tuple(lines))


# --------------------------------------------------------------------------- making and judging


def make_own(directory: Path) -> Pair | None:
    """Make the directory, and this machine's own keys; None: they are there already.

    Raises OSError.
    """
    for folder in (directory, *(directory / group for group in GROUPS)):
        folder.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    if (directory / SECRET).exists():
        return None
    pair = Pair(*zmq.curve_keypair())
    write_key(directory / PUBLIC, pair.public)
    write_key(directory / SECRET, pair.secret)
    return pair


def write_key(path: Path, *keys: bytes) -> None:
    """Replace a file of keys as a whole, readable by its owner alone; raises OSError."""
    temporary = path.with_name(f".{path.name}.new")
    temporary.unlink(missing_ok=True)
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, FILE_MODE)
    with os.fdopen(descriptor, "wb") as file:
        file.write(b"".join(key + b"\n" for key in keys))
    temporary.replace(path)


def permission_problems(directory: Path, owners: frozenset[int]) -> Iterator[str]:
    """Who else could read or change what only its owner may, a line for each.

    `owners`: the users that it may belong to.
    """
    try:
        owner = directory.stat().st_uid
    except OSError as error:
        yield f"{directory}: {error.strerror}, expected a directory made by gale keygen"
        return
    if owner not in owners:
        expected = " or ".join(map(str, sorted(owners)))
        yield f"{directory} belongs to user {owner}, expected {expected}"
    folders = [directory, *(directory / group for group in GROUPS)]
    for folder in folders:
        if folder.is_dir():
            yield from _mode_problem(folder, DIRECTORY_MODE, owner)
            for path in sorted(folder.iterdir()):
                if path.is_file():
                    yield from _mode_problem(path, FILE_MODE, owner)


def _readable_by_group(mode: int) -> int:
    """What is the group's when it may read what the owner may read, and enter where he may."""
    return GROUP_MAY_READ & (mode >> 3)


def _mode_problem(path: Path, expected: int, owner: int) -> Iterator[str]:
    found = path.stat()
    mode = stat.S_IMODE(found.st_mode)
    if mode not in (expected, expected | _readable_by_group(expected)):
        yield f"{path} has mode {mode:04o}, expected {expected:04o}"
    if found.st_uid != owner:
        yield f"{path} belongs to user {found.st_uid}, expected {owner}"
