"""The few commands of bpf(2) that bcc does not offer, or not with the arguments needed here.

Everything here is one system call, its attribute laid out by hand as `union bpf_attr` in
<linux/bpf.h> has it. That layout is stable: the kernel only ever appends, and refuses a longer
attribute than it knows only where the excess is not zero. What fails raises `OSError` with the
kernel's errno.

File descriptors are plain ints, closed by whoever got them.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from functools import cache
from pathlib import Path

_SYSCALL_NUMBER = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_libc = ctypes.CDLL(None, use_errno=True)
_NAME_BYTES = 16
_LOG_BYTES = 1 << 20
LOAD_TRIES = 5
_NOTHING = ctypes.create_string_buffer(1)
_BATCH_ENTRIES = 8192
_ROOM_TO_GROW = 512
_LIVE_FRAMES = 1 << 1
_NO_EXIST = 1


class _Command(IntEnum):
    MAP_CREATE = 0
    MAP_LOOKUP_ELEM = 1
    MAP_UPDATE_ELEM = 2
    MAP_DELETE_ELEM = 3
    PROG_LOAD = 5
    OBJ_PIN = 6
    OBJ_GET = 7
    PROG_TEST_RUN = 10
    PROG_GET_FD_BY_ID = 13
    OBJ_GET_INFO_BY_FD = 15
    BTF_LOAD = 18
    MAP_LOOKUP_AND_DELETE_ELEM = 21
    MAP_LOOKUP_BATCH = 24
    MAP_UPDATE_BATCH = 26
    MAP_DELETE_BATCH = 27


class MapType(IntEnum):
    """`enum bpf_map_type`, as far as the programs use it."""

    HASH = 1
    ARRAY = 2
    PERCPU_HASH = 5
    PERCPU_ARRAY = 6
    LRU_HASH = 9
    LRU_PERCPU_HASH = 10
    LPM_TRIE = 11
    RINGBUF = 27


PER_CPU = (MapType.PERCPU_HASH, MapType.PERCPU_ARRAY, MapType.LRU_PERCPU_HASH)


class ProgramKind(IntEnum):
    """`enum bpf_prog_type`: the two hooks."""

    TC = 3
    XDP = 6


class ProgramFlag(IntFlag):
    NONE = 0
    XDP_HAS_FRAGS = 1 << 5


@dataclass(frozen=True, slots=True)
class ProgramInfo:
    """What the kernel tells about a loaded program."""

    kind: int
    id: int
    tag: str
    name: str


@dataclass(frozen=True, slots=True)
class PacketRun:
    """What a program made of one packet."""

    verdict: int
    packet: bytes
    duration_ns: int
    """Mean of the repetitions, as the kernel measured it."""


class VerifierError(Exception):
    """The kernel refused a program; the message ends with the verifier's last lines."""

    @property
    def summary(self) -> str:
        """In one line: which program, the kernel's error, and the verifier's reason if it has one.

        The reason is the last thing it says before it counts what it has looked at.
        """
        refusal, *log = str(self).splitlines()
        reasons = [line for line in log if line.strip() and not line.startswith("processed ")]
        return ": ".join([refusal, *reasons[-1:]])


def _bpf(command: _Command, attribute: ctypes.Array[ctypes.c_char]) -> int:
    number = _SYSCALL_NUMBER[platform.machine()]
    result = _libc.syscall(number, int(command), attribute, len(attribute))
    if result < 0:
        error = ctypes.get_errno()
        raise OSError(error, f"bpf({command.name}): {os.strerror(error)}")
    return int(result)


def _address(buffer: ctypes.Array[ctypes.c_char] | ctypes.Array[ctypes.c_ubyte]) -> int:
    return ctypes.addressof(buffer)


def load_program(
    name: str, kind: ProgramKind, instructions: bytes, licence: bytes, flags: ProgramFlag
) -> int:
    """BPF_PROG_LOAD; returns the fd. A refusal is asked for a second time, with the reasons."""
    if len(name) >= _NAME_BYTES:
        raise ValueError(f"{name}: the kernel keeps {_NAME_BYTES - 1} characters of a name")
    code = ctypes.create_string_buffer(instructions, len(instructions))
    words = ctypes.create_string_buffer(licence)
    log = ctypes.create_string_buffer(_LOG_BYTES)

    def load(log_level: int) -> int:
        attribute = struct.pack(
            "=IIQQIIQII16sII",
            kind,
            len(instructions) // 8,
            _address(code),
            _address(words),
            log_level,
            _LOG_BYTES if log_level else 0,
            _address(log) if log_level else 0,
            0,
            flags,
            name.encode(),
            0,
            0,
        )
        buffer = ctypes.create_string_buffer(attribute, len(attribute))
        for _ in range(LOAD_TRIES - 1):
            # The verifier gives up when a signal is pending, of which we know nothing yet.
            with contextlib.suppress(BlockingIOError):
                return _bpf(_Command.PROG_LOAD, buffer)
        return _bpf(_Command.PROG_LOAD, buffer)

    try:
        return load(0)
    except OSError as refusal:
        try:
            return load(1)
        except OSError:
            last_lines = log.value.decode(errors="replace").splitlines()[-40:]
            raise VerifierError("\n".join([f"{name}: {refusal}", *last_lines])) from refusal


def get_object(path: Path) -> int:
    """The fd of a pinned map or program."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attribute = struct.pack("=QII", _address(name), 0, 0)
    return _bpf(_Command.OBJ_GET, ctypes.create_string_buffer(attribute, len(attribute)))


def pin_object(fd: int, path: Path) -> None:
    """Pin a map or program at a path that does not exist yet."""
    name = ctypes.create_string_buffer(os.fsencode(path))
    attribute = struct.pack("=QII", _address(name), fd, 0)
    _bpf(_Command.OBJ_PIN, ctypes.create_string_buffer(attribute, len(attribute)))


def _object_info(fd: int, size: int) -> bytes:
    info = ctypes.create_string_buffer(size)
    attribute = struct.pack("=IIQ", fd, size, _address(info))
    _bpf(_Command.OBJ_GET_INFO_BY_FD, ctypes.create_string_buffer(attribute, len(attribute)))
    return info.raw


def map_shape(fd: int) -> tuple[int, int, int, int, int]:
    """(type, key size, value size, max entries, flags) of a map."""
    kind, _id, key, value, entries, flags = struct.unpack("=6I", _object_info(fd, 24))
    return kind, key, value, entries, flags


def map_name(fd: int) -> str:
    """What the map was called when it was made; at most 15 characters."""
    return _object_info(fd, 40)[24:].split(b"\0")[0].decode(errors="replace")


def create_map(
    name: str,
    kind: int,
    key_size: int,
    value_size: int,
    max_entries: int,
    flags: int,
    *,
    spin_lock: bool = False,
) -> int:
    """A new, empty map, which nothing but the fd returned holds.

    `spin_lock`: its values begin with a `struct bpf_spin_lock`, which the kernel wants to be told
    by type (BTF).
    """
    btf = _spin_lock_btf(value_size) if spin_lock else -1
    try:
        attribute = struct.pack(
            "=7I16s4I",
            kind,
            key_size,
            value_size,
            max_entries,
            flags,
            0,
            0,
            name.encode()[: _NAME_BYTES - 1],
            0,
            btf if spin_lock else 0,
            _BTF_WORD if spin_lock else 0,
            _BTF_VALUE if spin_lock else 0,
        )
        buffer = ctypes.create_string_buffer(attribute, len(attribute))
        return _bpf(_Command.MAP_CREATE, buffer)
    finally:
        if spin_lock:
            os.close(btf)


_BTF_WORD, _BTF_LOCK, _BTF_VALUE = 1, 2, 3
"""Numbers of the types that `_spin_lock_btf` declares."""


def _spin_lock_btf(value_size: int) -> int:
    """The fd of a BTF object (Documentation/bpf/btf.rst) with three types: an unsigned int, a
    struct bpf_spin_lock of one, and the value: that lock, and words behind it.
    """
    names = b"\0unsigned int\0bpf_spin_lock\0val\0value\0lock\0rest\0"

    def at(name: bytes) -> int:
        return names.index(b"\0" + name + b"\0") + 1

    words = value_size // 4
    members = [(at(b"lock"), _BTF_LOCK, 0)]
    members += [(at(b"rest"), _BTF_WORD, 32 * word) for word in range(1, words)]
    types = struct.pack("=IIII", at(b"unsigned int"), 1 << 24, 4, 32)
    types += struct.pack("=III", at(b"bpf_spin_lock"), 4 << 24 | 1, 4)
    types += struct.pack("=III", at(b"val"), _BTF_WORD, 0)
    types += struct.pack("=III", at(b"value"), 4 << 24 | len(members), value_size)
    types += b"".join(struct.pack("=III", *member) for member in members)
    header = struct.pack("=HBBIIIII", 0xEB9F, 1, 0, 24, 0, len(types), len(types), len(names))
    blob = ctypes.create_string_buffer(header + types + names, len(header + types + names))
    attribute = struct.pack("=QQIIII", _address(blob), 0, len(blob), 0, 0, 0)
    return _bpf(_Command.BTF_LOAD, ctypes.create_string_buffer(attribute, len(attribute)))


def lookup_entry(fd: int, key: bytes, value_size: int) -> bytes | None:
    """The value of a key, of all CPUs in a per-CPU map; None when there is no such key."""
    value = ctypes.create_string_buffer(value_size)
    try:
        _element(_Command.MAP_LOOKUP_ELEM, fd, key, value)
    except FileNotFoundError:
        return None
    return value.raw


def update_entry(fd: int, key: bytes, value: bytes) -> None:
    _element(_Command.MAP_UPDATE_ELEM, fd, key, ctypes.create_string_buffer(value, len(value)))


def insert_entry(fd: int, key: bytes, value: bytes) -> bool:
    """False, and nothing changed, when there is such a key already."""
    buffer = ctypes.create_string_buffer(value, len(value))
    try:
        _element(_Command.MAP_UPDATE_ELEM, fd, key, buffer, _NO_EXIST)
    except FileExistsError:
        return False
    return True


def delete_entry(fd: int, key: bytes) -> bool:
    """False when there was no such key."""
    try:
        _element(_Command.MAP_DELETE_ELEM, fd, key, None)
    except FileNotFoundError:
        return False
    return True


def _element(
    command: _Command,
    fd: int,
    key: bytes,
    value: ctypes.Array[ctypes.c_char] | None,
    flags: int = 0,
) -> None:
    key_buffer = ctypes.create_string_buffer(key, len(key))
    value_address = 0 if value is None else _address(value)
    attribute = struct.pack("=I4xQQQ", fd, _address(key_buffer), value_address, flags)
    _bpf(command, ctypes.create_string_buffer(attribute, len(attribute)))


def program_info(fd: int) -> ProgramInfo:
    raw = _object_info(fd, 80)
    kind, number, tag = struct.unpack_from("=II8s", raw)
    name = raw[64:80].split(b"\0")[0].decode(errors="replace")
    return ProgramInfo(kind, number, tag.hex(), name)


def program_by_id(number: int) -> int:
    """The fd of a loaded program, by the id the kernel gave it."""
    attribute = struct.pack("=III", number, 0, 0)
    return _bpf(_Command.PROG_GET_FD_BY_ID, ctypes.create_string_buffer(attribute, len(attribute)))


def xdp_context(packet: bytes, ingress_ifindex: int) -> bytes:
    """A `struct xdp_md`: data, data_end, data_meta, ingress interface, its queue, egress."""
    return struct.pack("=6I", 0, len(packet), 0, ingress_ifindex, 0, 0)


def tc_context(ingress_ifindex: int, ifindex: int) -> bytes:
    """A `struct __sk_buff` with only the two interfaces set, which is about all one may set."""
    return struct.pack("=36x2I148x", ingress_ifindex, ifindex)


def run_program(fd: int, packet: bytes, context: bytes, repeat: int = 1) -> PacketRun:
    """Run a loaded program on a packet. It sends nothing, but its writes to maps are real.

    Repetitions do not start from the same packet: each sees what the one before has left.
    """
    after = ctypes.create_string_buffer(len(packet) + _ROOM_TO_GROW)
    attribute = _test_run(fd, packet, context, repeat, after, flags=0)
    verdict, _, size = struct.unpack_from("=III", attribute, 4)
    duration_ns = struct.unpack_from("=I", attribute, 36)[0]
    return PacketRun(verdict, after.raw[:size], duration_ns)


def send_frames(fd: int, packet: bytes, context: bytes, count: int) -> None:
    """Have an XDP program make live frames, each from `packet`, and send them as its verdict says.

    XDP_TX leaves by the interface of the context; a frame may hold what an earlier one has left.
    """
    _test_run(fd, packet, context, count, None, flags=_LIVE_FRAMES)


def _test_run(
    fd: int,
    packet: bytes,
    context: bytes,
    repeat: int,
    after: ctypes.Array[ctypes.c_char] | None,
    flags: int,
) -> ctypes.Array[ctypes.c_char]:
    before = ctypes.create_string_buffer(packet, len(packet))
    meta = ctypes.create_string_buffer(context, len(context))
    fields = struct.pack(
        "=IIIIQQIIIIQQIII4x",
        fd,
        0,
        len(before),
        0 if after is None else len(after),
        _address(before),
        0 if after is None else _address(after),
        repeat,
        0,
        len(meta),
        0,
        _address(meta),
        0,
        flags,
        0,
        0,
    )
    attribute = ctypes.create_string_buffer(fields, len(fields))
    _bpf(_Command.PROG_TEST_RUN, attribute)
    return attribute


@cache
def possible_cpus() -> int:
    """How many values a per-CPU map keeps of each key."""
    count = 0
    for part in Path("/sys/devices/system/cpu/possible").read_text().strip().split(","):
        first, _, last = part.partition("-")
        count += int(last or first) - int(first) + 1
    return count


def value_bytes(kind: int, value_size: int) -> int:
    """What a lookup returns: per-CPU maps give every CPU's value, each padded to 8 bytes."""
    if kind in PER_CPU:
        return (value_size + 7) // 8 * 8 * possible_cpus()
    return value_size


def read_entries(fd: int, at_most: int | None = None) -> Iterator[tuple[bytes, bytes]]:
    """All of a map in batches: (keys, values), each the bytes of some thousand entries.

    Entries that come or go meanwhile may be seen or not; those that stay are seen once. `at_most`:
    of an array, only so many elements from the first one on.
    """
    kind, key_size, value_size, max_entries, _ = map_shape(fd)
    value_size = value_bytes(kind, value_size)
    left = max_entries if at_most is None else at_most
    count = min(_BATCH_ENTRIES, max_entries, left)
    keys = ctypes.create_string_buffer(key_size * count)
    values = ctypes.create_string_buffer(value_size * count)
    # Where to go on: a key, or for hashes the number of a bucket.
    position = ctypes.create_string_buffer(max(key_size, 4))
    first = True
    while count:
        attribute = _batch_attribute(fd, keys, values, count, 0 if first else _address(position))
        struct.pack_into("=Q", attribute, 8, _address(position))
        last = False
        try:
            _bpf(_Command.MAP_LOOKUP_BATCH, attribute)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            last = True
        found = struct.unpack_from("=I", attribute, 32)[0]
        if found:
            yield keys.raw[: found * key_size], values.raw[: found * value_size]
        if last:
            return
        if at_most is not None:
            left -= found
            count = min(count, left)
        first = False


def write_entries(fd: int, keys: bytes, values: bytes) -> None:
    """Set many entries of a map at once."""
    # Named, because the kernel reads them through bare addresses: they must outlive the call.
    key_buffer = ctypes.create_string_buffer(keys, len(keys))
    value_buffer = ctypes.create_string_buffer(values, len(values))
    count = len(keys) // map_shape(fd)[1]
    _bpf(_Command.MAP_UPDATE_BATCH, _batch_attribute(fd, key_buffer, value_buffer, count, 0))


def delete_entries(fd: int, keys: bytes) -> None:
    """Delete many entries of a map at once; those that are gone already are passed over."""
    key_size = map_shape(fd)[1]
    buffer = ctypes.create_string_buffer(keys, len(keys))
    count = len(keys) // key_size
    done = 0
    while done < count:
        attribute = _batch_attribute(fd, buffer, _NOTHING, count - done, 0)
        struct.pack_into("=Q", attribute, 16, _address(buffer) + done * key_size)
        try:
            _bpf(_Command.MAP_DELETE_BATCH, attribute)
        except OSError as error:
            if error.errno != errno.ENOENT:
                raise
            # The kernel stops at the first that is missing, having counted those before it.
            done += struct.unpack_from("=I", attribute, 32)[0] + 1
        else:
            return


def delete_unchanged(fd: int, keys: bytes, values: bytes) -> None:
    """Delete those of a hash's entries that still are what was read.

    Since then one may have been written again, or have gone and come back under the same key for
    something new. The kernel has no step that compares and deletes, but one that takes out and
    hands over: so what turns out to be another value is put back, a microsecond later.
    """
    _, key_size, value_size, _, _ = map_shape(fd)
    key, value = ctypes.create_string_buffer(key_size), ctypes.create_string_buffer(value_size)
    fields = struct.pack("=IIQQQ", fd, 0, _address(key), _address(value), 0)
    take = ctypes.create_string_buffer(fields, len(fields))
    put_fields = struct.pack("=IIQQQ", fd, 0, _address(key), _address(value), _NO_EXIST)
    put_back = ctypes.create_string_buffer(put_fields, len(put_fields))
    for number in range(len(keys) // key_size):
        key.raw = keys[number * key_size : (number + 1) * key_size]
        try:
            _bpf(_Command.MAP_LOOKUP_AND_DELETE_ELEM, take)
            if value.raw != values[number * value_size : (number + 1) * value_size]:
                _bpf(_Command.MAP_UPDATE_ELEM, put_back)
        except OSError as error:
            # Gone already; or its place was taken in that microsecond.
            if error.errno not in (errno.ENOENT, errno.EEXIST):
                raise


def _batch_attribute(
    fd: int,
    keys: ctypes.Array[ctypes.c_char],
    values: ctypes.Array[ctypes.c_char],
    count: int,
    position: int,
) -> ctypes.Array[ctypes.c_char]:
    attribute = struct.pack(
        "=QQQQIIQQ", position, 0, _address(keys), _address(values), count, fd, 0, 0
    )
    return ctypes.create_string_buffer(attribute, len(attribute))
