"""Whether an LB's interfaces carry anything: asked of the kernel with every turn of the loop.

SIOCGIFFLAGS (netdevice(7)) is one short system call, by a socket that is in the same network
namespace as the process. IFF_RUNNING is the kernel's word for an operational link (RFC 2863).
"""

from __future__ import annotations

import fcntl
import socket
import struct

from conf.lb import Local

_SIOCGIFFLAGS = 0x8913
_IFF_UP, _IFF_RUNNING = 0x1, 0x40
_REQUEST = struct.Struct("16sH22x")


class Carrier:
    """Of one interface, which may come later, or never."""

    def __init__(self, interface: str) -> None:
        self._request = _REQUEST.pack(interface.encode()[:15], 0)
        self._kernel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)

    def is_up(self) -> bool:
        try:
            answer = fcntl.ioctl(self._kernel, _SIOCGIFFLAGS, self._request)
        except OSError:  # there is no such interface
            return False
        _, flags = _REQUEST.unpack(answer)
        return bool(flags & _IFF_UP and flags & _IFF_RUNNING)


def carriers(local: Local) -> dict[str, Carrier]:
    """Of the interface towards clients, and of the one towards nodes, unless that is the same."""
    interfaces = (local.net_interface_public, local.net_interface_private)
    return {interface: Carrier(interface) for interface in interfaces}
