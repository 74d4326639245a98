"""Packets by the hundred thousand: many through one program, in arrays, a few microseconds each.

A packet is a row of a byte matrix and a length; so is what comes out. What is said of all of them
is said in numpy.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bpf.syscall import tc_context, xdp_context
from tests.bpf.harness import LOOPBACK

Bytes = NDArray[np.uint8]
Numbers = NDArray[np.int64]

_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}
_TEST_RUN = 10
_ATTRIBUTE = struct.Struct("=IIIIQQIIIIQQIII4x")
_libc = ctypes.CDLL(None, use_errno=True)
GROWTH = 64
"""More than any program puts in front of a packet."""


@dataclass(frozen=True)
class Batch:
    """Packets: the first `sizes[i]` bytes of each row of `rows`."""

    rows: Bytes
    sizes: Numbers

    def __len__(self) -> int:
        return len(self.sizes)

    def frame(self, at: int) -> bytes:
        return self.rows[at, : self.sizes[at]].tobytes()

    def only(self, which: NDArray[np.bool_] | Numbers) -> Batch:
        return Batch(self.rows[which], self.sizes[which])


def run_batch(fd: int, packets: Batch, *, xdp: bool) -> tuple[Numbers, Batch]:
    """Each packet once through the program: the verdicts, and what came out."""
    rows = np.ascontiguousarray(packets.rows)
    count, width = rows.shape
    out = np.zeros((count, width + GROWTH), np.uint8)
    context = xdp_context(b"", LOOPBACK) if xdp else tc_context(LOOPBACK, LOOPBACK)
    meta = ctypes.create_string_buffer(context, len(context))
    attribute = ctypes.create_string_buffer(_ATTRIBUTE.size)
    verdicts, sizes = np.zeros(count, np.int64), np.zeros(count, np.int64)
    number = _SYSCALL[platform.machine()]
    pack, place, call = _ATTRIBUTE.pack_into, struct.Struct("=I").pack_into, _libc.syscall
    unpack = struct.Struct("=4xIII").unpack_from
    room, source, target = width + GROWTH, rows.ctypes.data, out.ctypes.data
    meta_address, meta_size = ctypes.addressof(meta), len(meta)
    for at, size in enumerate(packets.sizes.tolist()):
        if xdp:
            place(meta, 4, size)
        fields = (size, room, source, target, 1, 0, meta_size, 0, meta_address, 0, 0, 0, 0)
        pack(attribute, 0, fd, 0, *fields)
        if call(number, _TEST_RUN, attribute, _ATTRIBUTE.size) < 0:
            error = ctypes.get_errno()
            raise OSError(error, f"{os.strerror(error)}: {packets.frame(at).hex()}")
        verdicts[at], _, sizes[at] = unpack(attribute)
        source += width
        target += room
    return verdicts, Batch(out, sizes)


def batch_of(frames: list[bytes], width: int) -> Batch:
    rows = np.zeros((len(frames), width), np.uint8)
    for at, frame in enumerate(frames):
        rows[at, : len(frame)] = np.frombuffer(frame, np.uint8)
    return Batch(rows, np.array([len(frame) for frame in frames], np.int64))


def ones_sums(batch: Batch, first: Numbers, last: Numbers) -> Numbers:
    """One's complement sums of the 16-bit words in [first, last) of each row, modulo 0xffff.

    `first` is even; a last odd byte counts as the upper half of a word.
    """
    places = np.arange(batch.rows.shape[1])
    inside = (places >= first[:, None]) & (places < last[:, None])
    # Swapping the bytes of every word swaps those of the sum (RFC 1071), here back again.
    swapped = (batch.rows * inside).view("<u2").sum(axis=1, dtype=np.int64) % 0xFFFF
    sums: Numbers = (swapped & 0xFF) << 8 | swapped >> 8
    return sums % 0xFFFF
