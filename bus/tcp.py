"""The sockets between machines: their options, all in one list, and who the other end is.

One side binds and serves many (`accepting`), the other connects to one (`connecting`).

**Queues towards a peer are small.** What it does not read is passed over: it is old by the time it
is read. A message longer than a protocol's longest ends the connection (libzmq's MAXMSGSIZE is per
frame).

**A cut without a word** is noticed by TCP on the connecting side, which gives up what is not
acknowledged within `UNACKNOWLEDGED_MS`; libzmq's slow pings see to it that something is always
under way. They are slow because with ten thousand connections a ping costs as much as a message; an
agent that beats, or an LB among its peers, says something more often anyway. A process that is
merely stopped acknowledges (its kernel does), so its connections survive, and what it was sent
meanwhile lies there for it to read. Hence `PING_PATIENCE_MS`.

The accepting side has only to be rid of connections whose other end has vanished, within
`VANISHED_S`. It leaves that to the kernel, whose keepalive costs nothing while somebody speaks.
libzmq's pings would each start and cancel a timer, and it looks for the one to cancel among all the
others, so that ten thousand connections cost a fifth of a core while nobody says a word.

**Reconnecting** is quick, and IMMEDIATE: nothing is queued for a peer that is not there.

**Who the peer is** is what the kernel says of its connection: its address. No message can claim
another one.

**With keys** (`bus.keys`) a connection is CURVE's (ZeroMQ RFC 26): encrypted, and each end knows
the other's key. The connecting end names the key it expects, and speaks to nobody else; the
accepting end asks whoever answers for its context whether to admit a key (ZAP, RFC 27). Without an
answerer libzmq would admit any: `Door` is that one, a socket of the process's own loop. It is asked
at the handshake alone, so a key that is taken off the list later is refused by whoever owns the
socket, message by message: `Door.name_of` says whose connection a frame came by, by the list as it
is now.

How to use it, at the accepting and the connecting end:

    door = Door(context, KeyDirectory(path), rejected)    # one for each context; poll door.socket
    server = accepting(context, LONGEST)
    guard(server, door.keys.own, keys.LBS)                # before it is bound
    ...
    door.serve()                                          # in every turn of the loop
    who = door.name_of(keys.LBS, frame)                   # of a message's frame (copy=False)

    for server_key in directory.keys_of(keys.LBS, name): # one after the other, if there are two
        client = connecting(context, LONGEST, credentials=Credentials(directory.own, server_key))
"""

from __future__ import annotations

from collections import Counter
from typing import Any, NamedTuple

import zmq
from zmq.utils import z85

from bus.keys import KeyDirectory, Pair

RECONNECT_MS = 50
LONGEST_RECONNECT_MS = 100
CONNECT_TIMEOUT_MS = 150
"""With the above: after a silent cut has healed, the next SYN is sent within 250 ms."""
FAR_CONNECT_TIMEOUT_MS = 1_000
"""For a peer whose answer to a SYN takes longer than that to come."""
UNACKNOWLEDGED_MS = 1_000
CONNECTING_PING_MS = 10_000
PING_PATIENCE_MS = 30_000
QUIET_S = 15
"""Nothing came for so long: the accepting side's kernel asks whether there is somebody still,"""
ASK_AGAIN_S = 5
"""and asks again,"""
VANISHED_S = 30
"""until so long after something came last, or was to be acknowledged."""
BACKLOG = 4_096
"""Ten thousand agents may return at once."""
SEND_QUEUE = 64
RECEIVE_QUEUE = 0
"""No limit, on purpose: once libzmq has stopped reading a connection whose queue is full, it does
not survive that connection's being reset (assertion `!_io_error`, libzmq 4.3.5). What one peer may
send is bounded by whoever owns the socket."""


MOST_ANSWERS = 500
"""Handshakes that are answered in one turn: a storm of them does not keep a loop from the rest."""
_ZAP_ENDPOINT = "inproc://zeromq.zap.01"
_ZAP_VERSION = b"1.0"
_ZAP_FRAMES = 9
"""Of a CURVE request, with the two that its ROUTER puts before: the asker and nothing."""


class Credentials(NamedTuple):
    """What a connecting end needs for CURVE: its own keys, and the one the peer must have."""

    own: Pair
    server_key: bytes


def accepting(context: zmq.Context[Any], longest_frame: int) -> zmq.Socket[bytes]:
    """A ROUTER that others connect to, not bound yet."""
    socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
    for option, value in (
        (zmq.LINGER, 0),
        (zmq.BACKLOG, BACKLOG),
        (zmq.SNDHWM, SEND_QUEUE),
        (zmq.RCVHWM, RECEIVE_QUEUE),
        (zmq.MAXMSGSIZE, longest_frame),
        (zmq.TCP_KEEPALIVE, 1),
        (zmq.TCP_KEEPALIVE_IDLE, QUIET_S),
        (zmq.TCP_KEEPALIVE_INTVL, ASK_AGAIN_S),
        (zmq.TCP_KEEPALIVE_CNT, (VANISHED_S - QUIET_S) // ASK_AGAIN_S),
        (zmq.TCP_MAXRT, VANISHED_S * 1_000),
    ):
        socket.setsockopt(option, value)
    return socket


def connecting(
    context: zmq.Context[Any],
    longest_frame: int,
    connect_timeout_ms: int = CONNECT_TIMEOUT_MS,
    *,
    ipv6: bool = False,
    credentials: Credentials | None = None,
) -> zmq.Socket[bytes]:
    """A DEALER towards one peer, not connected yet; with `credentials` it speaks CURVE."""
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
    if credentials is not None:
        present(socket, credentials)
    return socket


def peer_address(frame: zmq.Frame) -> str:
    """The address that a received frame came from, as the kernel knows it.

    The look-up costs more than a small message does: make it where it counts.
    """
    return str(frame.get("Peer-Address"))


# --------------------------------------------------------------------------- keys


def present(socket: zmq.Socket[bytes], credentials: Credentials) -> None:
    """Have a connecting socket speak CURVE, from the next connection on that it makes."""
    socket.setsockopt(zmq.CURVE_PUBLICKEY, credentials.own.public)
    socket.setsockopt(zmq.CURVE_SECRETKEY, credentials.own.secret)
    socket.setsockopt(zmq.CURVE_SERVERKEY, credentials.server_key)


def peer_key(frame: zmq.Frame) -> str:
    """The key, in Z85, that the sender of a frame of a guarded socket has proved to have."""
    return str(frame.get("User-Id"))


def guard(socket: zmq.Socket[bytes], own: Pair, group: str) -> None:
    """Have an accepting socket take CURVE connections alone, of keys of that group of the door's.

    Call it before binding. After a later call, with other keys, new connections meet these once the
    socket is bound anew.
    """
    socket.setsockopt(zmq.CURVE_SERVER, 1)
    socket.setsockopt(zmq.CURVE_SECRETKEY, own.secret)
    socket.setsockopt(zmq.ZAP_DOMAIN, group.encode())
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody is admitted while nobody answers


class Door:
    """Says for the guarded sockets of one context whose keys are admitted. Make it before them."""

    def __init__(
        self, context: zmq.Context[Any], keys: KeyDirectory, rejected: Counter[str]
    ) -> None:
        self.keys = keys
        self.refused = ""
        """Whose key was refused last: in words, for the log."""
        self._rejected = rejected
        """Where refusals are counted, as `key_not_admitted`."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.bind(_ZAP_ENDPOINT)

    def serve(self) -> None:
        """Answer the handshakes that wait."""
        for _ in range(MOST_ANSWERS):
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            self._answer(frames)

    def name_of(self, group: str, frame: zmq.Frame) -> str | None:
        """Who sent a frame of a guarded socket; None: its key is not admitted any more."""
        return self.keys.name_of(group, peer_key(frame).encode())

    def close(self) -> None:
        self.socket.close(linger=0)

    def _answer(self, frames: list[bytes]) -> None:
        asker, request = frames[0], frames[3] if len(frames) > 3 else b""
        key, code, text = b"", b"400", b"key not admitted"
        if len(frames) == _ZAP_FRAMES and frames[2] == _ZAP_VERSION and frames[7] == b"CURVE":
            key, group, address = z85.encode(frames[8]), frames[4].decode(), frames[5].decode()
            if self.keys.name_of(group, key) is not None:
                code, text = b"200", b"OK"
            else:
                self._rejected["key_not_admitted"] += 1
                self.refused = f"{address}: key {key.decode()}"
        user = key if code == b"200" else b""
        self.socket.send_multipart(
            [asker, b"", _ZAP_VERSION, request, code, text, user, b""], zmq.NOBLOCK
        )
