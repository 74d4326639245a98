"""Two taps in two network namespaces, and all frames handed from each to the other.

Started as `taps.py NAME NETNS_FILE OTHER_NAME` in the first namespace; the second tap is made in
the namespace of the file. That is what a hypervisor does for a virtual machine, and here one side
is the machine and the other its port on the host's bridge. The taps ask for no offloads, so the
kernel cuts segments and finishes checksums before a frame is read. They live as long as this does.
"""

from __future__ import annotations

import fcntl
import os
import struct
import sys
import threading
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from e2e.lab.forwarder import enter_namespace

TUNSETIFF = 0x400454CA
IFF_TAP, IFF_NO_PI = 0x0002, 0x1000
FRAME_BYTES = 65_536


def open_tap(name: str) -> int:
    tap = os.open("/dev/net/tun", os.O_RDWR | os.O_CLOEXEC)
    fcntl.ioctl(tap, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TAP | IFF_NO_PI))
    return tap


def hand_over(source: int, target: int) -> None:
    """For ever. A frame that the other side does not take, being down, is lost, as on a cable."""
    while True:
        try:
            frame = os.read(source, FRAME_BYTES)
            os.write(target, frame)
        except OSError:
            continue


def main(name: str, netns: Path, other_name: str) -> None:
    own = open_tap(name)
    enter_namespace(netns)
    other = open_tap(other_name)
    threading.Thread(target=hand_over, args=(own, other), daemon=True).start()
    hand_over(other, own)


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
