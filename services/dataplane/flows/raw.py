"""Sends what `resets` has made: whole IPv4 packets, out of the public interface, not too many.

A packet goes where replies to that client go: in a frame to the machine that the client's packets
came from (its last hop), whatever this host's own routes say. Where nobody knows that machine (the
client's packets were tagged) the host's routes decide, by a raw socket (IP_HDRINCL): the source is
the VIP, which need be no address of this host.

So many a second go out as neither the network nor this process's loop feels; the rest waits. What
the kernel refuses is counted and given up: such a client finds out when it sends something.
"""

from __future__ import annotations

import socket
from collections import deque

import numpy as np
from numpy.typing import NDArray

from services.dataplane.flows.resets import Segments

PER_SECOND = 4_000
AT_ONCE = 200
"""In one turn: about a millisecond."""

_IPV4 = 0x0800
_DESTINATION = slice(16, 20)
_NOBODY = bytes(6)


class RawSender:
    """Needs CAP_NET_RAW; raises OSError without it, or when there is no such interface."""

    def __init__(self, interface: str) -> None:
        self._interface = interface
        socket.if_nametoindex(interface)
        self._framed = socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, 0)
        try:
            self._routed = socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW)
        except OSError:
            self._framed.close()
            raise
        self._framed.setblocking(False)
        self._routed.setblocking(False)
        self._waiting: deque[tuple[bytes, bytes]] = deque()
        self._next_ms = 0.0
        self.sent = 0
        self.refused = 0

    def __len__(self) -> int:
        """How many wait."""
        return len(self._waiting)

    def add(self, segments: Segments, last_hops: NDArray[np.uint8]) -> None:
        """`last_hops`, shape (n, 6): to whom; zeros where nobody knows."""
        for segment, last_hop in zip(segments, last_hops, strict=True):
            self._waiting.append((segment.tobytes(), last_hop.tobytes()))

    def turn(self, now_ms: int) -> None:
        """Send what may be sent by now."""
        if now_ms < self._next_ms:
            return
        count = min(AT_ONCE, len(self._waiting))
        for _ in range(count):
            try:
                self._send(*self._waiting.popleft())
                self.sent += 1
            except OSError:
                self.refused += 1
        self._next_ms = now_ms + count * 1000 / PER_SECOND

    def _send(self, packet: bytes, last_hop: bytes) -> None:
        if last_hop == _NOBODY:
            self._routed.sendto(packet, (socket.inet_ntoa(packet[_DESTINATION]), 0))
        else:
            self._framed.sendto(packet, (self._interface, _IPV4, 0, 0, last_hop))

    def next_ms(self) -> int | None:
        """When there is something to send."""
        return int(self._next_ms) + 1 if self._waiting else None

    def close(self) -> None:
        self._framed.close()
        self._routed.close()
