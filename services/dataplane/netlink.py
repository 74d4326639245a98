"""What the kernel says of links, neighbours and routes, by netlink, for `nexthop`.

Two sockets. One is subscribed to notifications and stands in the process's poll loop; it is drained
without waiting. The other asks: the kernel answers a request before `send` returns, so reading the
answer does not wait either.

If notifications come faster than they are read the kernel drops some and says so (ENOBUFS): then
the rest is taken off first, since it may be older than what was lost, and everything is read anew.
Subscribing comes before reading, so nothing falls between the two; an old notification that is
folded after a newer answer is followed by all that came after it.

The few kinds of message needed are encoded and decoded here, by `struct`, after rtnetlink(7), so
that this process's own poll loop drains the socket, without waiting, and sees what was lost.
"""

from __future__ import annotations

import errno
import socket
import struct
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from services.dataplane.nexthop import (
    NO_MAC,
    EverythingChanged,
    Link,
    LinkGone,
    Message,
    Neighbour,
    NextHop,
    NextHopTable,
    PathNarrowed,
    Route,
    RoutesChanged,
)

NLMSG_ERROR, NLMSG_DONE = 2, 3
NLM_F_REQUEST, NLM_F_MULTI, NLM_F_ACK, NLM_F_DUMP_INTR = 0x01, 0x02, 0x04, 0x10
NLM_F_DUMP, NLM_F_CREATE = 0x300, 0x400
RTM_NEWLINK, RTM_DELLINK, RTM_GETLINK = 16, 17, 18
RTM_NEWADDR, RTM_DELADDR = 20, 21
RTM_NEWROUTE, RTM_DELROUTE, RTM_GETROUTE = 24, 25, 26
RTM_NEWNEIGH, RTM_DELNEIGH, RTM_GETNEIGH = 28, 29, 30
RTM_NEWRULE, RTM_DELRULE = 32, 33

GROUPS = (1, 3, 5, 7, 8, 9, 11, 19)
"""Links, neighbours, and addresses, routes and rules of IPv4 and IPv6."""

IFLA_ADDRESS, IFLA_MTU = 1, 4
NDA_DST, NDA_LLADDR = 1, 2
RTA_DST, RTA_OIF, RTA_GATEWAY, RTA_PREFSRC, RTA_METRICS, RTA_VIA = 1, 4, 5, 7, 8, 18
RTAX_MTU = 2
RTN_UNICAST, RTN_LOCAL = 1, 2
RTM_F_CLONED = 0x200
NTF_USE = 0x01
IFF_UP = 0x01

HEADER = struct.Struct("=IHHII")
ATTRIBUTE = struct.Struct("=HH")
LINK = struct.Struct("=BxHiII")
NEIGHBOUR = struct.Struct("=BxxxiHBB")
ROUTE = struct.Struct("=8BI")
ERROR = struct.Struct("=i")
U32 = struct.Struct("=I")

LOOPBACK_NETWORK = bytes([127])
SO_RCVBUFFORCE = 33
"""Which Python's socket does not name."""
RECEIVE_BYTES = 1 << 16
NOTIFICATION_BUFFER_BYTES = 4 << 20
NEIGHBOURS_PER_REQUEST = 64
ANSWER_TIMEOUT_S = 1.0
DUMP_TRIES = 5

Attributes = Mapping[int, bytes]

# --------------------------------------------------------------------------- encoding


def _aligned(length: int) -> int:
    return (length + 3) & ~3


def attribute(kind: int, value: bytes) -> bytes:
    length = ATTRIBUTE.size + len(value)
    return ATTRIBUTE.pack(length, kind) + value + bytes(_aligned(length) - length)


def message(kind: int, flags: int, sequence: int, body: bytes) -> bytes:
    return HEADER.pack(HEADER.size + len(body), kind, flags, sequence, 0) + body


def _packed(address: str) -> tuple[int, bytes]:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    return family, socket.inet_pton(family, address)


def route_request(address: str) -> bytes:
    family, packed = _packed(address)
    body = ROUTE.pack(family, len(packed) * 8, 0, 0, 0, 0, 0, 0, 0)
    return body + attribute(RTA_DST, packed)


def use_request(ifindex: int, address: str) -> bytes:
    family, packed = _packed(address)
    return NEIGHBOUR.pack(family, ifindex, 0, NTF_USE, 0) + attribute(NDA_DST, packed)


# --------------------------------------------------------------------------- decoding


def split(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """Kind, flags, sequence and body of each message in a datagram."""
    offset = 0
    while offset + HEADER.size <= len(data):
        length, kind, flags, sequence, _ = HEADER.unpack_from(data, offset)
        if length < HEADER.size:
            return
        yield kind, flags, sequence, data[offset + HEADER.size : offset + length]
        offset += _aligned(length)


def attributes(data: bytes) -> dict[int, bytes]:
    found: dict[int, bytes] = {}
    offset = 0
    while offset + ATTRIBUTE.size <= len(data):
        length, kind = ATTRIBUTE.unpack_from(data, offset)
        if length < ATTRIBUTE.size:
            break
        found[kind & 0x3FFF] = data[offset + ATTRIBUTE.size : offset + length]
        offset += _aligned(length)
    return found


def _address(packed: bytes | None) -> str | None:
    if packed is None:
        return None
    return socket.inet_ntop(socket.AF_INET6 if len(packed) == 16 else socket.AF_INET, packed)


def _mac(raw: bytes | None) -> str | None:
    return raw.hex(":") if raw is not None and len(raw) == 6 else None


def _link(kind: int, body: bytes) -> Message | None:
    family, _, ifindex, flags, _ = LINK.unpack_from(body)
    if family != socket.AF_UNSPEC:
        return None  # a bridge speaking of its port
    if kind == RTM_DELLINK:
        return LinkGone(ifindex)
    found = attributes(body[LINK.size :])
    mtu = U32.unpack(found[IFLA_MTU])[0] if IFLA_MTU in found else 0
    return Link(ifindex, _mac(found.get(IFLA_ADDRESS)) or NO_MAC, mtu, bool(flags & IFF_UP))


def _neighbour(kind: int, body: bytes) -> Message | None:
    family, ifindex, state, _, _ = NEIGHBOUR.unpack_from(body)
    found = attributes(body[NEIGHBOUR.size :])
    address = _address(found.get(NDA_DST))
    if family not in (socket.AF_INET, socket.AF_INET6) or address is None:
        return None  # a bridge's table of stations
    if kind == RTM_DELNEIGH:
        state = 0
    return Neighbour(ifindex, address, _mac(found.get(NDA_LLADDR)), state)


def _route_change(body: bytes) -> Message | None:
    family, length, *_, flags = ROUTE.unpack_from(body)
    if family not in (socket.AF_INET, socket.AF_INET6) or flags & RTM_F_CLONED:
        return None
    anywhere = "::" if family == socket.AF_INET6 else "0.0.0.0"
    network = _address(attributes(body[ROUTE.size :]).get(RTA_DST)) or anywhere
    return RoutesChanged(f"{network}/{length}")


def decode(kind: int, body: bytes) -> Message | None:
    """What one notification means for next hops; None: nothing."""
    if kind in (RTM_NEWLINK, RTM_DELLINK):
        return _link(kind, body)
    if kind in (RTM_NEWNEIGH, RTM_DELNEIGH):
        return _neighbour(kind, body)
    if kind in (RTM_NEWROUTE, RTM_DELROUTE):
        return _route_change(body)
    if kind in (RTM_NEWADDR, RTM_DELADDR, RTM_NEWRULE, RTM_DELRULE):
        return EverythingChanged()
    return None


def decode_route(body: bytes) -> Route | None:
    """The answer to a `route_request`; None unless packets can be sent that way.

    What is of this machine alone (127.0.0.0/8) is no node's address: each LB has it.
    """
    kind = ROUTE.unpack_from(body)[7]
    found = attributes(body[ROUTE.size :])
    is_own = kind == RTN_LOCAL and found.get(RTA_DST, b"")[:1] != LOOPBACK_NETWORK
    if (kind != RTN_UNICAST and not is_own) or RTA_OIF not in found:
        return None
    gateway = found.get(RTA_GATEWAY)
    if gateway is None and RTA_VIA in found:
        gateway = found[RTA_VIA][2:]  # after the family: a gateway of another one
    mtu = attributes(found.get(RTA_METRICS, b"")).get(RTAX_MTU)
    return Route(
        ifindex=U32.unpack(found[RTA_OIF])[0],
        gateway=_address(gateway),
        source=_address(found.get(RTA_PREFSRC)),
        mtu=None if mtu is None else U32.unpack(mtu)[0],
        own=is_own,
    )


# --------------------------------------------------------------------------- the sockets


def drain(notifications: socket.socket, take: Callable[[int, bytes], None]) -> bool:
    """Hand over the kind and body of each until there are none left.

    False: some were lost, and what was read may be old.
    """
    is_complete = True
    while True:
        try:
            data = notifications.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return is_complete
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            is_complete = False
            continue
        for kind, _, _, body in split(data):
            take(kind, body)


class NextHopMonitor:
    """Next hops of the watched addresses, kept current. Put it into the poller, by its `fileno`."""

    def __init__(self) -> None:
        kind = socket.SOCK_RAW | socket.SOCK_CLOEXEC
        self._requests = socket.socket(socket.AF_NETLINK, kind, socket.NETLINK_ROUTE)
        self._requests.settimeout(ANSWER_TIMEOUT_S)
        self._requests.bind((0, 0))
        self._sequence = 0
        self._notifications = socket.socket(
            socket.AF_NETLINK, kind | socket.SOCK_NONBLOCK, socket.NETLINK_ROUTE
        )
        with suppress(PermissionError):
            self._notifications.setsockopt(
                socket.SOL_SOCKET, SO_RCVBUFFORCE, NOTIFICATION_BUFFER_BYTES
            )
        self._notifications.bind((0, sum(1 << (group - 1) for group in GROUPS)))
        self._table = NextHopTable()
        self.resyncs = 0
        """How often notifications were lost and everything was read anew."""
        self._read_all()

    def fileno(self) -> int:
        return self._notifications.fileno()

    def close(self) -> None:
        self._requests.close()
        self._notifications.close()

    def watch(self, addresses: frozenset[str]) -> None:
        """From now on, the next hops of exactly these addresses are kept: call `serve` after."""
        self._table.watch(addresses)

    def narrowed(self, addresses: frozenset[str]) -> None:
        """Packets to these were too long for a router on the way: call `serve` after."""
        for address in addresses:
            self._table.fold(PathNarrowed(address))

    def serve(self, now_ms: int) -> Mapping[str, NextHop | None]:
        """Take in what has happened, refresh what is due, and return all next hops.

        Call it when the descriptor is readable, when `next_ms` has come, and after `watch`.
        """
        if not drain(self._notifications, self._fold):
            self.resyncs += 1
            self._table.forget()
            self._read_all()
        for address in self._table.routes_to_ask():
            self._table.answer(address, self._ask_route(address))
        self._use(self._table.due(now_ms))
        return self._table.next_hops()

    def next_ms(self, now_ms: int) -> int | None:
        """When `serve` is next due, if nothing happens before."""
        return self._table.next_ms(now_ms)

    def _fold(self, kind: int, body: bytes) -> None:
        news = decode(kind, body)
        if news is not None:
            self._table.fold(news)

    def _read_all(self) -> None:
        links = LINK.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        neighbours = NEIGHBOUR.pack(socket.AF_UNSPEC, 0, 0, 0, 0)
        for kind, body in ((RTM_GETLINK, links), (RTM_GETNEIGH, neighbours)):
            for _ in range(DUMP_TRIES):
                if self._exchange([(kind, NLM_F_DUMP, body)], self._fold) != errno.EINTR:
                    break

    def _ask_route(self, address: str) -> Route | None:
        answers: list[bytes] = []
        error = self._exchange(
            [(RTM_GETROUTE, 0, route_request(address))], lambda _, body: answers.append(body)
        )
        return None if error or not answers else decode_route(answers[0])

    def _use(self, neighbours: list[tuple[int, str]]) -> None:
        """An error says that the link has just gone, which the notifications will say too."""
        for start in range(0, len(neighbours), NEIGHBOURS_PER_REQUEST):
            batch = neighbours[start : start + NEIGHBOURS_PER_REQUEST]
            requests = [
                (RTM_NEWNEIGH, NLM_F_CREATE | NLM_F_ACK, use_request(*neighbour))
                for neighbour in batch
            ]
            self._exchange(requests, lambda _kind, _body: None)

    def _exchange(
        self, requests: list[tuple[int, int, bytes]], take: Callable[[int, bytes], None]
    ) -> int:
        """Send all in one go and read until each is answered; the last error, positive, or 0."""
        first = self._sequence + 1
        self._sequence += len(requests)
        self._requests.send(
            b"".join(
                message(kind, NLM_F_REQUEST | flags, first + index, body)
                for index, (kind, flags, body) in enumerate(requests)
            )
        )
        waiting = set(range(first, first + len(requests)))
        failed = 0
        while waiting:
            for kind, flags, sequence, body in split(self._requests.recv(RECEIVE_BYTES)):
                if sequence not in waiting:
                    continue  # the rest of an answer that was given up
                if flags & NLM_F_DUMP_INTR:
                    failed = errno.EINTR  # what it lists changed under its hands
                if kind == NLMSG_ERROR:
                    failed = -ERROR.unpack_from(body)[0] or failed
                elif kind != NLMSG_DONE:
                    take(kind, body)
                if kind in (NLMSG_ERROR, NLMSG_DONE) or not flags & NLM_F_MULTI:
                    waiting.discard(sequence)
        return failed
