"""The sockets between machines: their options, all in one list, and who the other end is.

One side binds and serves many (`accepting`), the other connects to one (`connecting`).

**Queues towards a peer are small.** What it does not read is passed over: it is old by the time it
is read. A message longer than a protocol's longest ends the connection (libzmq's MAXMSGSIZE is per
frame).

**A cut without a word** is noticed by TCP on the connecting side, which gives up what is not
acknowledged within `UNACKNOWLEDGED_MS`; libzmq's slow pings see to it that something is always
under way. A process that is merely stopped acknowledges (its kernel does), so its connections
survive, and what it was sent meanwhile lies there for it to read. Hence `PING_PATIENCE_MS`: the
pings are only to be rid of connections whose other end has vanished.

**Reconnecting** is quick, and IMMEDIATE: nothing is queued for a peer that is not there.

**Who the peer is** is what the kernel says of its connection: its address. No message can claim
another one.
"""

from __future__ import annotations

from typing import Any

import zmq

RECONNECT_MS = 50
LONGEST_RECONNECT_MS = 100
CONNECT_TIMEOUT_MS = 150
"""With the above: after a silent cut has healed, the next SYN is sent within 250 ms."""
FAR_CONNECT_TIMEOUT_MS = 1_000
"""For a peer whose answer to a SYN takes longer than that to come."""
UNACKNOWLEDGED_MS = 1_000
ACCEPTING_PING_MS = 5_000
CONNECTING_PING_MS = 2_000
PING_PATIENCE_MS = 30_000
BACKLOG = 4_096
"""Ten thousand agents may return at once."""
SEND_QUEUE = 64
RECEIVE_QUEUE = 0
"""No limit, on purpose: once libzmq has stopped reading a connection whose queue is full, it does
not survive that connection's being reset (assertion `!_io_error`, libzmq 4.3.5). What one peer may
send is bounded by whoever owns the socket."""


def accepting(context: zmq.Context[Any], longest_frame: int) -> zmq.Socket[bytes]:
    """A ROUTER that others connect to, not bound yet."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.BACKLOG, BACKLOG),
        (zmq.SNDHWM, SEND_QUEUE),
        (zmq.RCVHWM, RECEIVE_QUEUE),
        (zmq.MAXMSGSIZE, longest_frame),
        (zmq.HEARTBEAT_IVL, ACCEPTING_PING_MS),
        (zmq.HEARTBEAT_TIMEOUT, PING_PATIENCE_MS),
    ):
        socket.setsockopt(option, value)
    return socket


def connecting(
    context: zmq.Context[Any],
    longest_frame: int,
    connect_timeout_ms: int = CONNECT_TIMEOUT_MS,
    *,
    ipv6: bool = False,
) -> zmq.Socket[bytes]:
    """A DEALER towards one peer, not connected yet."""
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.IMMEDIATE, 1),
        (zmq.SNDHWM, SEND_QUEUE),
        (zmq.RECONNECT_IVL, RECONNECT_MS),
        (zmq.RECONNECT_IVL_MAX, LONGEST_RECONNECT_MS),
        (zmq.CONNECT_TIMEOUT, connect_timeout_ms),
        (zmq.TCP_MAXRT, UNACKNOWLEDGED_MS),
        (zmq.HEARTBEAT_IVL, CONNECTING_PING_MS),
        (zmq.HEARTBEAT_TIMEOUT, PING_PATIENCE_MS),
        (zmq.MAXMSGSIZE, longest_frame),
        (zmq.IPV6, int(ipv6)),
    ):
        socket.setsockopt(option, value)
    return socket


def peer_address(frame: zmq.Frame) -> str:
    """The address that a received frame came from, as the kernel knows it.

    The look-up costs more than a small message does: make it where it counts.
    """
    return str(frame.get("Peer-Address"))
