"""One DEALER to one LB, and what libzmq tells of its connection.

A DEALER reconnects by itself; what the core must know is when: a connection that stands is greeted,
one that is gone takes its session with it. libzmq's monitor says so. With IMMEDIATE nothing is
queued for an LB that is not there: what it would hear later is old.

libzmq reconnects after a connection that broke off, and never again after one whose other end broke
the protocol: no ZeroMQ, or a message longer than `LARGEST_FRAME`. It tells nobody which of the two
it was, so a link that has lost its connection and not got another one is `spent`, and its owner
makes a new one.

How a link that is cut without a word is noticed, and how quickly it is tried again, is said in
`bus.tcp`, where the options of these sockets stand.

With keys, an LB that does not admit ours says so (`UNADMITTED`); one that has another key than the
expected, or none, hangs up without a word, as something that is no LB does (`FOREIGN`).

libzmq does not tell a refused connection from one that nobody answers, nor that the answer came too
late: `UNREACHED` says that it is worth asking the port itself.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, NamedTuple

import zmq
from zmq.utils.monitor import parse_monitor_message

from bus import tcp

LARGEST_FRAME = 1 << 20
"""A welcome with a thousand services of the longest names takes 200 kB."""

CONNECTED: int = zmq.EVENT_CONNECTED
READY: int = zmq.EVENT_HANDSHAKE_SUCCEEDED
LOST: int = zmq.EVENT_DISCONNECTED
RETRIED: int = zmq.EVENT_CONNECT_RETRIED
UNADMITTED: int = zmq.EVENT_HANDSHAKE_FAILED_AUTH
WATCHED = (
    CONNECTED
    | READY
    | LOST
    | RETRIED
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | UNADMITTED
)


class LinkEvent(StrEnum):
    READY = "ready"
    LOST = "lost"
    FOREIGN = "foreign"
    """Something accepted the connection and does not speak ZeroMQ, or not with our keys."""
    UNADMITTED = "unadmitted"
    UNREACHED = "unreached"


class Address(NamedTuple):
    """Where an LB is, now that its name is resolved."""

    address: str
    port: int

    @property
    def endpoint(self) -> str:
        host = f"[{self.address}]" if ":" in self.address else self.address
        return f"tcp://{host}:{self.port}"


class Link:
    """The connection to one LB; made anew by making another `Link`."""

    def __init__(
        self,
        context: zmq.Context[Any],
        place: Address,
        connect_timeout_ms: int = tcp.CONNECT_TIMEOUT_MS,
        credentials: tcp.Credentials | None = None,
    ) -> None:
        self.place = place
        self.credentials = credentials
        self.socket = tcp.connecting(
            context,
            LARGEST_FRAME,
            connect_timeout_ms,
            ipv6=":" in place.address,
            credentials=credentials,
        )
        self.monitor: zmq.Socket[bytes] = self.socket.get_monitor_socket(WATCHED)
        self.spent = False
        """Whether the connection was lost, and libzmq has not made another one by itself."""
        self.stands = False
        self._accepted = False
        self.socket.connect(place.endpoint)

    def news(self) -> list[LinkEvent]:
        """What has become of the connection since the last call."""
        heard: list[LinkEvent] = []
        while self.monitor.poll(0):
            event = int(parse_monitor_message(self.monitor.recv_multipart())["event"])
            if event == CONNECTED:
                self._accepted = True
            elif event == READY:
                self.stands = True
                self.spent = False
                heard.append(LinkEvent.READY)
            elif event == RETRIED:
                heard.append(LinkEvent.UNREACHED)
            elif event == UNADMITTED and self._accepted and not self.stands:
                heard.append(LinkEvent.UNADMITTED)
                self._accepted = False
                self.spent = True
            elif self.stands or self._accepted:  # the first of several that tell of one end
                heard.append(LinkEvent.LOST if self.stands else LinkEvent.FOREIGN)
                self.stands = self._accepted = False
                self.spent = True
        return heard

    def send(self, frames: list[bytes]) -> bool:
        """Send if the connection stands and has room; never waits, never queues for later."""
        try:
            self.socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def receive(self) -> list[list[bytes]]:
        messages: list[list[bytes]] = []
        while True:
            try:
                messages.append(self.socket.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                return messages

    def close(self) -> None:
        self.socket.disable_monitor()
        self.monitor.close(linger=0)
        self.socket.close(linger=0)
