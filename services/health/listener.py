"""The port that nodes connect to: a ROUTER on the private interface's IPv4 address.

The interface may come later than this process, or change its address: `settle` looks once a second
and binds anew when it must. While it cannot, it says what it waits for. Agents that are connected
stay so when the address changes; they notice themselves when it is gone.

Where keys are used, it is not bound before this LB's own key is there, and bound anew when that is
another one. Connections that stand are not affected by either.

The options of the socket stand in `bus.tcp`.
"""

from __future__ import annotations

import errno
from typing import Any, NamedTuple

import zmq

from bus import keys, tcp
from bus.keys import KeyDirectory, Pair
from services.machine import own_address

MOST_PARTS = 2
DISCARDED_AT_ONCE = 1_000
LARGEST_FRAME = 128 << 10
"""A hello that names a thousand services by the longest names takes 90 kB."""


class Received(NamedTuple):
    connection: bytes
    address: str
    """Of a hello alone, like the key: looking it up costs more than the rest of a heartbeat."""
    frames: list[bytes]
    key: str = ""


class Listener:
    """The ROUTER, and where it is bound."""

    def __init__(self, context: zmq.Context[Any], known: KeyDirectory | None = None) -> None:
        """`known`: where keys are used; then there must be a `tcp.Door` in the context."""
        self._keys = known
        self._own: Pair | None = None
        self.endpoint: str | None = None
        self.waiting_for = ""
        self._discarding = False
        self.socket = tcp.accepting(context, LARGEST_FRAME)

    def settle(self, interface: str, port: int) -> None:
        """Be bound to the interface's present address, or say what that lacks."""
        address = own_address(interface)
        if address is None:
            # An address that is gone for good needs no unbinding now: nobody can reach it.
            self.waiting_for = f"an IPv4 address on {interface} (local.net_interface_private)"
            return
        if self._keys is not None and self._keys.own is None:
            self.waiting_for = f"this load balancer's key ({'; '.join(self._keys.problems)})"
            return
        if self._keys is not None and self._keys.own != self._own:
            self._own = self._keys.own
            assert self._own is not None
            tcp.guard(self.socket, self._own, keys.NODES)
            if self.endpoint is not None:
                self.socket.unbind(self.endpoint)
                self.endpoint = None
        endpoint = f"tcp://{address}:{port}"
        if endpoint != self.endpoint:
            self._bind(endpoint)
        else:
            self.waiting_for = ""

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
        if frames[0] != b"hello":
            return Received(connection, "", frames)
        key = tcp.peer_key(first) if self._keys is not None else ""
        return Received(connection, tcp.peer_address(first), frames, key)

    def _discard(self) -> Received:
        for _ in range(DISCARDED_AT_ONCE):
            self._discarding = self.socket.recv(zmq.NOBLOCK, copy=False).more
            if not self._discarding:
                break
        return Received(b"", "", [])

    def close(self) -> None:
        self.socket.close(linger=0)
