"""A BPF ring buffer, read through mmap: whatever is there in one go.

The kernel shows three pieces of memory (kernel/bpf/ringbuf.c): the consumer's position, which is
the only thing written here; the producer's; and the data, mapped twice in a row, so that what goes
over the end is still in one piece. Each record is a header of eight bytes, whose first word is the
length and two flags, and the data, filled up to a multiple of eight bytes. Where all data are one
word (`WordRing`), numpy sees a table; records of any length are read one by one (`RecordRing`).

What is not read stays in a pinned ring: a process that is started again reads on where the one
before it stopped. The ring's fd becomes readable when something comes into a ring that was empty.
"""

from __future__ import annotations

import mmap
import sys

import numpy as np
from numpy.typing import NDArray

_BUSY, _DISCARDED = np.uint32(1 << 31), np.uint32(1 << 30)
_HEADER_BYTES = 8
_RECORD = np.dtype([("header", "u4"), ("page", "u4"), ("word", "u8")])

Words = NDArray[np.uint64]


class _Ring:
    """The memory of the ring of that fd, which is borrowed; `size` is the map's, in bytes."""

    def __init__(self, fd: int, size: int) -> None:
        page = mmap.PAGESIZE
        self.fd = fd
        self._mask = size - 1
        self._own = mmap.mmap(fd, page, flags=mmap.MAP_SHARED)
        self._theirs = mmap.mmap(
            fd, page + 2 * size, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ, offset=page
        )
        self._consumed = np.frombuffer(self._own, np.uint64, 1)
        self._produced = np.frombuffer(self._theirs, np.uint64, 1)

    def close(self) -> None:
        """Give the memory back."""
        empty = np.empty(0, np.uint64)
        self._consumed = self._produced = empty
        self._own.close()
        self._theirs.close()


class RecordRing(_Ring):
    """Records of any length, as bytes."""

    def take(self) -> list[bytes]:
        """All records that are complete, oldest first; their places are free again."""
        begin, end = int(self._consumed[0]), int(self._produced[0])
        found = []
        while begin < end:
            at = mmap.PAGESIZE + (begin & self._mask)
            header = int.from_bytes(self._theirs[at : at + 4], sys.byteorder)
            if header & _BUSY:
                break
            length = header & ~int(_DISCARDED)
            if not header & _DISCARDED:
                data = at + _HEADER_BYTES
                found.append(self._theirs[data : data + length])
            begin += _HEADER_BYTES + (length + 7) // 8 * 8
        self._consumed[0] = begin
        return found


class WordRing(_Ring):
    """Records of one word each."""

    def __init__(self, fd: int, size: int) -> None:
        super().__init__(fd, size)
        places = 2 * size // _RECORD.itemsize
        self._records = np.frombuffer(self._theirs, _RECORD, places, mmap.PAGESIZE)

    def take(self) -> Words:
        """All records that are complete, oldest first; their places are free again."""
        begin, end = int(self._consumed[0]), int(self._produced[0])
        first = (begin & self._mask) // _RECORD.itemsize
        records = self._records[first : first + (end - begin) // _RECORD.itemsize]
        headers = records["header"].copy()
        busy = np.flatnonzero(headers & _BUSY)
        count = int(busy[0]) if len(busy) else len(headers)
        words: Words = records["word"][:count][(headers[:count] & _DISCARDED) == 0].copy()
        self._consumed[0] = begin + count * _RECORD.itemsize
        return words

    def close(self) -> None:
        """Give the memory back."""
        self._records = np.empty(0, _RECORD)
        super().close()
