"""The port that nodes connect to: a ROUTER on the private interface's IPv4 address.

The interface may come later than this process, or change its address: `settle` looks once a second
and binds anew when it must. While it cannot, it says what it waits for. Agents that are connected
stay so when the address changes; they notice themselves when it is gone.

The options are what kernel-notes asks for between machines, on the side of the many: a backlog for
ten thousand agents that return at once, small queues towards each, and pings of libzmq's own, slow
ones, only to be rid of connections whose other end has vanished. They must not fire because this
process was stopped for a while, hence `PING_PATIENCE_MS`: what lies in the sockets by then is still
to be read.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

import zmq

from services.machine import own_address

PING_MS = 5_000
PING_PATIENCE_MS = 30_000
BACKLOG = 4_096
SEND_QUEUE = 64
RECEIVE_QUEUE = 0
"""No limit: connections.py says why, and what limits it."""
MOST_PARTS = 2
DISCARDED_AT_ONCE = 1_000
LARGEST_FRAME = 128 << 10
"""A hello that names a thousand services by the longest names takes 90 kB."""


class Received(NamedTuple):
    connection: bytes
    address: str
    """Of a hello alone: it costs more to look up than the rest of a heartbeat does."""
    frames: list[bytes]


class Listener:
    """The ROUTER, and where it is bound."""

    def __init__(self, context: zmq.Context[Any]) -> None:
        self.endpoint: str | None = None
        self.waiting_for = ""
        self._discarding = False
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.BACKLOG, BACKLOG),
            (zmq.SNDHWM, SEND_QUEUE),
            (zmq.RCVHWM, RECEIVE_QUEUE),
            (zmq.MAXMSGSIZE, LARGEST_FRAME),
            (zmq.HEARTBEAT_IVL, PING_MS),
            (zmq.HEARTBEAT_TIMEOUT, PING_PATIENCE_MS),
        ):
            self.socket.setsockopt(option, value)

    def settle(self, interface: str, port: int) -> None:
        """Be bound to the interface's present address, or say what that lacks."""
        address = own_address(interface)
        if address is None:
            # An address that is gone for good needs no unbinding now: nobody can reach it.
            self.waiting_for = f"an IPv4 address on {interface} (local.net_interface_private)"
            return
        endpoint = f"tcp://{address}:{port}"
        if endpoint != self.endpoint:
            self._bind(endpoint)

    def _bind(self, endpoint: str) -> None:
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            self.waiting_for = f"{endpoint}: {error.strerror}"
            return
        former, self.endpoint = self.endpoint, endpoint
        self.waiting_for = ""
        if former is not None:
            self.socket.unbind(former)

    def receive(self) -> Received | None:
        """The next message; None: there is none.

        Of one with too many parts no more is kept than shows that; the rest is read and forgotten,
        some of it in each call, which gives an empty message.
        """
        if self._discarding:
            return self._discard()
        try:
            connection = self.socket.recv(zmq.NOBLOCK)
        except zmq.Again:
            return None
        # A message is here as a whole or not at all, so the rest of it needs no waiting.
        first = self.socket.recv(zmq.NOBLOCK, copy=False)
        frames, more = [first.bytes], first.more
        while more and len(frames) <= MOST_PARTS:
            frames.append(self.socket.recv(zmq.NOBLOCK))
            more = bool(self.socket.getsockopt(zmq.RCVMORE))
        self._discarding = more
        address = str(first.get("Peer-Address")) if frames[0] == b"hello" else ""
        return Received(connection, address, frames)

    def _discard(self) -> Received:
        for _ in range(DISCARDED_AT_ONCE):
            self._discarding = self.socket.recv(zmq.NOBLOCK, copy=False).more
            if not self._discarding:
                break
        return Received(b"", "", [])

    def close(self) -> None:
        self.socket.close(linger=0)
