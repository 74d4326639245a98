"""Sends what `resets` has made: whole IPv4 packets, out of the public interface, not too many.

A raw socket of the kernel (IP_HDRINCL): the source is the VIP, which need be no address of this
host. So many a second go out as neither the network nor this process's loop feels; the rest waits.
What the kernel refuses (no route to that client, a full queue) is counted and given up: such a
client finds out when it sends something.
"""

from __future__ import annotations

import socket
from collections import deque

from services.dataplane.flows.resets import Segments

PER_SECOND = 4_000
AT_ONCE = 200
"""In one turn: about a millisecond."""

_DESTINATION = slice(16, 20)


class RawSender:
    """Needs CAP_NET_RAW; raises OSError without it, or when there is no such interface."""

    def __init__(self, interface: str) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        try:
            self._socket.setblocking(False)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, interface.encode())
        except OSError:
            self._socket.close()
            raise
        self._waiting: deque[bytes] = deque()
        self._next_ms = 0.0
        self.sent = 0
        self.refused = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, segments: Segments) -> None:
        self._waiting.extend(bytes(segment) for segment in segments)

    def turn(self, now_ms: int) -> None:
        """Send what may be sent by now."""
        if now_ms < self._next_ms:
            return
        count = min(AT_ONCE, len(self._waiting))
        for _ in range(count):
            packet = self._waiting.popleft()
            try:
                self._socket.sendto(packet, (_destination(packet), 0))
                self.sent += 1
            except OSError:
                self.refused += 1
        self._next_ms = now_ms + count * 1000 / PER_SECOND

    def next_ms(self) -> int | None:
        """When there is something to send."""
        return int(self._next_ms) + 1 if self._waiting else None

    def close(self) -> None:
        self._socket.close()


def _destination(packet: bytes) -> str:
    return socket.inet_ntoa(packet[_DESTINATION])
