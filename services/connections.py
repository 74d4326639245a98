"""How much one address, and all together, may cost at a port of libzmq's: connections and bytes.

libzmq accepts whoever comes, reads what they send, and keeps a message in memory until its last
part is there, however many parts that takes; a stranger could so use up descriptors and memory. It
does tell which descriptor it has accepted, and the kernel knows whose that is and how much has come
through it. What is too much is shut down from here, below libzmq, which then sees a peer that has
hung up:

* more connections of one address than `Limits.of_address`: the newest;
* more of all than there are descriptors for: one of somebody who is not known, so that those who
  are can come back however many strangers there are;
* a connection that brings more than `burst_bytes`, and `bytes_per_s` on the average beyond that.
  Each connection is looked at every `LOOK_MS`, and all at once when this process has grown by
  `GROWTH_BYTES` since it last was. With very many agents these looks would be what the process does
  most of: there are no more than `LOOKS_PER_S`, unless so much comes in that it may be a flood.

The queue behind each connection has no limit of its own, on purpose: once libzmq has stopped
reading a connection whose queue is full, it does not survive that connection's being reset
(assertion `!_io_error`, libzmq 4.3.5).

Who is known and trusted may be spared all that, address by address: among load balancers a table or
a whole snapshot of flows is sent as fast as it can be.

Descriptors are libzmq's, and may be another connection by the time its event is read. So before
anything is done to one, the kernel is asked again whose it is: what is no connection of the address
in question is left alone.
"""

from __future__ import annotations

import resource
import socket
import struct
from collections import Counter, OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import zmq
from zmq.utils.monitor import parse_monitor_message

SPARE_DESCRIPTORS = 256
LOOK_MS = 2_000
LOOKS_PER_S = 500
TURN_MS = 20
GROWTH_BYTES = 32 << 20
MOST_EVENTS = 2_000
"""Read in one turn, so that a storm of connections does not keep the loop from the beats."""

_ACCEPTED: int = zmq.EVENT_ACCEPTED
_WATCHED = zmq.EVENT_ACCEPTED | zmq.EVENT_DISCONNECTED
_TCP_INFO_BYTES = 136
_BYTES_RECEIVED = struct.Struct("=Q")
_BYTES_RECEIVED_AT = 128
_AT_ONCE = struct.pack("ii", 1, 0)
_PAGE_BYTES = resource.getpagesize()
_STATM = Path("/proc/self/statm")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Limits:
    """What whoever uses the port rightly stays well below."""

    of_address: int
    """Connections of one address."""
    burst_bytes: int
    bytes_per_s: int


@dataclass(slots=True)
class _Connection:
    address: str
    looked_ms: int
    credit: float
    """What it may bring until it is looked at next, beyond `Limits.bytes_per_s`."""
    received: int = 0
    """Bytes, when it was looked at last."""
    is_shut: bool = False
    """It is there until libzmq says that it has gone."""


class Connections:
    """Of one socket that others connect to.

    Call `turn` in every turn of the loop, and within long ones.
    """

    def __init__(
        self,
        context: zmq.Context[Any],
        bound: zmq.Socket[bytes],
        rejected: Counter[str],
        limits_of: Callable[[str], Limits | None],
        now_ms: int,
        is_known: Callable[[str], bool] = lambda _: False,
    ) -> None:
        """`limits_of`: what an address may cost; None: whatever it likes. `is_known`: whether an
        address is one that strangers make room for, when there is none left.
        """
        self._limits_of, self._is_known = limits_of, is_known
        self._rejected = rejected
        """Where what was shut down is counted, by reason."""
        self.offender = ""
        """Whose connection was shut down last, and why."""
        soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
        self._most = soft - SPARE_DESCRIPTORS
        self._open: OrderedDict[int, _Connection] = OrderedDict()
        """By descriptor; the one that was looked at longest ago first."""
        self._of_address: Counter[str] = Counter()
        self._turned_ms = now_ms
        self._resident = _resident_bytes()
        self._bound = bound
        endpoint = f"inproc://connections-{id(bound)}"
        bound.monitor(endpoint, _WATCHED)
        self.monitor: zmq.Socket[bytes] = context.socket(zmq.PAIR)
        # libzmq's thread waits for room here, and we wait for that thread when we end.
        self.monitor.setsockopt(zmq.RCVHWM, 0)
        self.monitor.setsockopt(zmq.LINGER, 0)
        self.monitor.connect(endpoint)

    def turn(self, now_ms: int, *, hasty: bool = False) -> None:
        """Take note of who came and went; look at some of those who are there.

        `hasty`: what comes in may be a flood.
        """
        for _ in range(MOST_EVENTS):
            try:
                event = parse_monitor_message(self.monitor.recv_multipart(zmq.NOBLOCK))
            except zmq.Again:
                break
            if event["event"] == _ACCEPTED:
                self._accepted(int(event["value"]), now_ms)
            else:
                self._gone(int(event["value"]))
        since_ms = now_ms - self._turned_ms
        if since_ms < TURN_MS:
            return
        self._turned_ms = now_ms
        resident = _resident_bytes()
        if resident >= self._resident + GROWTH_BYTES:
            self._look(len(self._open), now_ms)
            self._resident = resident
        else:
            self._resident = min(self._resident, resident)
            looks = -(-len(self._open) * min(since_ms, LOOK_MS) // LOOK_MS)
            self._look(looks if hasty else min(looks, -(-LOOKS_PER_S * since_ms // 1_000)), now_ms)

    def close(self) -> None:
        self._bound.disable_monitor()
        self.monitor.close(linger=0)

    def __len__(self) -> int:
        return len(self._open)

    def _accepted(self, descriptor: int, now_ms: int) -> None:
        self._gone(descriptor)  # in case its end was not told
        address = _ask(descriptor, _peer)
        if address is None:
            return  # gone already; its end is told next
        limits = self._limits_of(address)
        credit = inf if limits is None else limits.burst_bytes
        self._open[descriptor] = _Connection(address, now_ms, credit)
        self._of_address[address] += 1
        if limits is not None and self._of_address[address] > limits.of_address:
            self._shut(descriptor, "too_many_connections")
        elif len(self._open) > self._most:
            self._shut(self._least_welcome(), "too_many_connections_in_all")

    def _least_welcome(self) -> int:
        """A late connection of a stranger's, as a rule the newest; of anybody's, if there is none.

        It is found at once as long as whoever comes is a stranger itself.
        """
        standing = (each for each in reversed(self._open) if not self._open[each].is_shut)
        return next(filter(self._is_stranger, standing), next(reversed(self._open)))

    def _is_stranger(self, descriptor: int) -> bool:
        address = self._open[descriptor].address
        return self._limits_of(address) is not None and not self._is_known(address)

    def _gone(self, descriptor: int) -> None:
        known = self._open.pop(descriptor, None)
        if known is not None:
            self._of_address[known.address] -= 1
            if not self._of_address[known.address]:
                del self._of_address[known.address]

    def _look(self, count: int, now_ms: int) -> None:
        for _ in range(count):
            descriptor, known = next(iter(self._open.items()))
            self._open.move_to_end(descriptor)
            found = _ask(descriptor, _received)
            if found is None or found[0] != known.address:
                continue
            received = found[1]
            elapsed_s = (now_ms - known.looked_ms) / 1_000
            brought = received - known.received
            known.looked_ms, known.received = now_ms, received
            limits = self._limits_of(known.address)
            if limits is None:
                known.credit = inf
                continue
            credit = known.credit + elapsed_s * limits.bytes_per_s - brought
            known.credit = min(credit, limits.burst_bytes)
            if credit < 0:
                self._shut(descriptor, "too_many_bytes")

    def _shut(self, descriptor: int, reason: str) -> None:
        known = self._open[descriptor]
        address, known.is_shut = known.address, True

        def shut(connection: socket.socket) -> bool:
            if _peer(connection) != address:
                return False
            # A RST when libzmq closes it: whose window is shut hears of nothing else, and stays.
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _AT_ONCE)
            connection.shutdown(socket.SHUT_RDWR)
            return True

        if _ask(descriptor, shut):
            self._rejected[reason] += 1
            self.offender = f"{address}: {reason.replace('_', ' ')}"


def _ask(descriptor: int, question: Callable[[socket.socket], T]) -> T | None:
    """Ask the kernel about libzmq's descriptor; None: it is no such connection any more."""
    try:
        borrowed = socket.socket(socket.AF_INET, socket.SOCK_STREAM, 0, fileno=descriptor)
    except OSError:
        return None
    try:
        return question(borrowed)
    except (OSError, IndexError):  # an address of another family may be an empty string
        return None
    finally:
        borrowed.detach()  # it is not ours to close


def _peer(connection: socket.socket) -> str:
    return str(connection.getpeername()[0])


def _received(connection: socket.socket) -> tuple[str, int]:
    info = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
    return _peer(connection), int(_BYTES_RECEIVED.unpack_from(info, _BYTES_RECEIVED_AT)[0])


def _resident_bytes() -> int:
    return int(_STATM.read_text().split()[1]) * _PAGE_BYTES
