"""What routers on the way to the nodes say of packets that are too long for them.

The outer packets of mode L3 must not be fragmented, so a router whose next hop is narrower drops
them and says so (RFC 1191), to their source: this machine. The kernel believes such a message only
if some socket could have sent what it quotes, and these here could: a raw socket for each outer
protocol. Having believed it, the kernel remembers the path's MTU for ten minutes (`mtu_expires`) as
a part of its route, which `netlink` asks for; and this socket's queue of errors says towards whom.
The programs then tell the clients what fits, as they do for the link's own MTU.

Nothing is ever received by these sockets but errors: a filter drops all that is for IP in IP or UDP
on this host before it is queued.
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct
from collections.abc import Iterator

from services.logs import words_of

_IP_RECVERR, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO = 11, 10, 2
_SO_ATTACH_FILTER = 26
_RETURN_NOTHING = struct.pack("=HBBI", 0x06, 0, 0, 0)
_CONTROL_BYTES = 512
_OUTER = (socket.IPPROTO_IPIP, socket.IPPROTO_UDP)


class PathMtu:
    """Put each of `filenos` into the poller, for errors. Without CAP_NET_RAW it hears nothing, and
    `deaf` says why.
    """

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        self.deaf = ""
        try:
            for protocol in _OUTER:
                self._sockets.append(_listening(protocol))
        except OSError as error:
            self.close()
            self.deaf = words_of(error)

    def filenos(self) -> list[int]:
        return [each.fileno() for each in self._sockets]

    def drain(self) -> frozenset[str]:
        """Towards whom packets were too long since the last call."""
        found: set[str] = set()
        for each in self._sockets:
            found |= set(_errors(each))
        return frozenset(found)

    def close(self) -> None:
        for each in self._sockets:
            each.close()
        self._sockets.clear()


def _listening(protocol: int) -> socket.socket:
    made = socket.socket(socket.AF_INET, socket.SOCK_RAW | socket.SOCK_NONBLOCK, protocol)
    try:
        code = ctypes.create_string_buffer(_RETURN_NOTHING, len(_RETURN_NOTHING))
        program = struct.pack("=HxxxxxxQ", 1, ctypes.addressof(code))
        made.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, program)
        made.setsockopt(socket.IPPROTO_IP, _IP_RECVERR, 1)
        made.setsockopt(socket.IPPROTO_IP, _IP_MTU_DISCOVER, _IP_PMTUDISC_DO)
    except OSError:
        made.close()
        raise
    return made


def _errors(each: socket.socket) -> Iterator[str]:
    while True:
        # The error itself is reported once, by whatever is called next, beside its entry.
        each.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        try:
            _, control, _, target = each.recvmsg(0, _CONTROL_BYTES, socket.MSG_ERRQUEUE)
        except BlockingIOError:
            return
        for level, kind, data in control:
            if (level, kind) == (socket.IPPROTO_IP, _IP_RECVERR):
                (number,) = struct.unpack_from("=I", data)
                if number == errno.EMSGSIZE and target:
                    yield target[0]
