"""Reading a file that somebody has named or left behind, and never waiting for it.

A path may lead to anything: opening a FIFO waits for whoever writes to it, reading a device has no
end. Each process is one loop, or about to begin it, and would be deaf for as long. So what is no
regular file is not read, nor is one beyond the length that its reader expects.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path


class StrangeFileError(OSError):
    """What is there cannot be what is meant, whoever tries again; says so in words alone."""

    def __str__(self) -> str:
        return str(self.strerror)


def read_regular(path: Path, longest_bytes: int) -> bytes:
    """A file's content; raises `StrangeFileError`, or any other OSError if it cannot be opened."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise StrangeFileError(errno.EINVAL, "it is no regular file")
        if found.st_size > longest_bytes:
            raise StrangeFileError(errno.EFBIG, f"it is longer than {_in_words(longest_bytes)}")
        with open(descriptor, "rb", closefd=False) as file:
            return file.read()
    finally:
        os.close(descriptor)


def _in_words(size_bytes: int) -> str:
    mebibytes, rest = divmod(size_bytes, 1 << 20)
    return f"{size_bytes} bytes" if rest else f"{mebibytes} MiB"
