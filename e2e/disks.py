"""The disk that an LB keeps its state on is full, or does not answer; each for as long as a block
lasts, while all that runs there goes on.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from e2e.hosts import LabHosts

STATE_FILE = "quorum.state"
FILL = """
mount -t tmpfs -o size=4k,mode=1777 full "$GALE_STATE_DIR"
head -c 4096 /dev/zero > "$GALE_STATE_DIR/full"
"""
HANG = f"""
cd "$GALE_STATE_DIR"
rm -f {STATE_FILE}.tmp
mkfifo -m 0600 {STATE_FILE}.tmp
chown --reference={STATE_FILE} {STATE_FILE}.tmp
"""
ANSWER = f"""
cd "$GALE_STATE_DIR"
[ ! -p {STATE_FILE}.tmp ] || timeout 5 cat {STATE_FILE}.tmp > /dev/null
rm -f {STATE_FILE}.tmp
"""


@contextmanager
def full(hosts: LabHosts, lb: str) -> Iterator[None]:
    """A small one stands in the place of the LB's, with no byte of room."""
    _do(hosts, lb, FILL)
    try:
        yield
    finally:
        _do(hosts, lb, 'umount --lazy "$GALE_STATE_DIR"')


@contextmanager
def hung(hosts: LabHosts, lb: str) -> Iterator[None]:
    """What the quorum process writes next is never done: the file that it opens for it is a pipe
    that nobody reads. What is read in the end tells the writer that it was no file, and it tries
    again.
    """
    _do(hosts, lb, HANG)
    try:
        yield
    finally:
        _do(hosts, lb, ANSWER)


def _do(hosts: LabHosts, lb: str, script: str) -> None:
    """Among the mounts of the LB's processes, which have their own."""
    enter = ("nsenter", f"--target={hosts.supervisord_pid(lb)}", "--mount", "--")
    done = hosts.run(lb, *enter, "bash", "-ec", script)
    assert done.returncode == 0, done.stderr
