"""The sockets between the LBs: one ROUTER that the others connect to, a DEALER to each of them.

Every LB sends by the connection it has made itself and hears by those that others have made, so no
connection has two owners. What they say is `bus.peer_protocol`, who is heard is `admission`; the
options of the sockets, and how fast a cut is noticed, stand in `bus.tcp`.

**Which entry of the list is this LB** is what the machine's own addresses say. Names are resolved
in a thread (`services.resolve`) and followed when they move. As long as no entry is this machine's,
`waiting_for` says so and nothing is bound: an interface may come later. Connections go out from
that same address, so that the others know them by it.

**Nothing here waits.** A peer that does not read has `SEND_QUEUE` messages in its queue, and what
is beyond that is dropped: the next beat says it again. A peer that has not been heard for
`RENEW_MS` gets a new socket, since libzmq does not try again after an end that broke the protocol.
Of one turn no more than `MOST_AT_ONCE` messages are read, so that a flood does not keep the clock
from being looked at.

**Strangers** cannot keep anybody from being heard: what those may cost that are at no member's
address is bounded (`services.connections`). A member may send a table as fast as it can.

**Keys.** Where they are used, the connections are CURVE's, and `admission` is asked with the name
that the peer's key stands for rather than with its address. A member with several keys is tried
with one after the other, since a connection on which nothing is heard is made anew.
"""

from __future__ import annotations

import errno
from collections.abc import Callable
from typing import Any

import structlog
import zmq

from bus import keys, tcp
from bus.keys import KeyDirectory, Pair
from bus.peer_protocol import PeerMessage, encode_peer
from bus.socket import monotonic_ms
from services.connections import Connections, Limits
from services.machine import all_addresses
from services.quorum.admission import Admission
from services.resolve import Resolver

LARGEST_FRAME = 32 << 20
"""The table of ten thousand nodes and a thousand services takes a sixth of it."""
MOST_PARTS = 2
MOST_AT_ONCE = 500
DISCARDED_AT_ONCE = 1_000
SETTLE_MS = 1_000
RENEW_MS = 3_000
STRANGER_LIMITS = Limits(of_address=16, burst_bytes=4 << 20, bytes_per_s=256 << 10)
"""Who knocks sends no more than its beats."""
FAREWELL_MS = 100
"""What was said last may take so long to leave when the process ends."""

_log = structlog.get_logger()


class Peers:
    """The other members, by their entries `host:port` of the list."""

    def __init__(
        self,
        context: zmq.Context[Any],
        cluster: str,
        name: str,
        boot: str,
        wake: Callable[[], None],
        known: KeyDirectory | None = None,
        source: Callable[[], str | None] = lambda: None,
    ) -> None:
        """`known`: where keys are used; then nobody else may be the context's `tcp.Door`.

        `source`: this LB's private address, which names are asked for from.
        """
        self._context, self._cluster, self._boot = context, cluster, boot
        self.admission = Admission(cluster, name)
        self.own = ""
        """This LB's entry, once it is known: the first of those that are this machine."""
        self.aliases: frozenset[str] = frozenset()
        """All entries that are this machine at this port: a file may write it otherwise."""
        self.waiting_for = ""
        self.node_health: dict[str, str] = {}
        """What this LB's file says in `[node_health]`; goes with every message."""
        self.dropped = 0
        """Messages that a peer's full queue, or its absence, has cost."""
        self._resolver = Resolver(wake, source, f"{name}.local")
        self._listed: dict[str, tuple[str, int]] = {}
        """By entry: host and port."""
        self._file: dict[str, tuple[str, int]] = {}
        self.meant: dict[str, str] = {}
        """By entry of the file, the one among the members for the same machine, itself if there is
        none, or empty as long as its address is not known."""
        self._bound: str | None = None
        self._number = 0
        self._links: dict[str, _Link] = {}
        self._settle_ms = 0
        self._ask_ms = 0
        self._discarding = False
        self._knock = b""
        """The first frame of the last stranger's message."""
        self._keys = known
        self._key_names: dict[str, str] = {}
        self._own_keys: Pair | None = None
        self._said_keys: tuple[str, ...] = ()
        self._door = tcp.Door(context, known, self.admission.refused) if known else None
        self.socket = tcp.accepting(context, LARGEST_FRAME)
        self._members: frozenset[str] = frozenset()
        """Their addresses, as far as they are known."""
        self._connections = Connections(
            context, self.socket, self.admission.refused, self._limits_of, monotonic_ms()
        )

    def _limits_of(self, address: str) -> Limits | None:
        return None if address in self._members else STRANGER_LIMITS

    @property
    def sockets(self) -> tuple[zmq.Socket[bytes], ...]:
        """What to poll."""
        return (self.socket,) if self._door is None else (self.socket, self._door.socket)

    # ------------------------------------------------------------------ who, and where

    def expect(
        self,
        listed: dict[str, tuple[str, int]],
        key_names: dict[str, str] | None = None,
        file: dict[str, tuple[str, int]] | None = None,
    ) -> None:
        """From now on these are the members, this LB among them.

        `key_names`: by entry, the name that its keys stand under. `file`: whom the file lists, to
        be known by their addresses (`meant`) and not to be spoken to.
        """
        self._key_names = key_names or {}
        file = file or {}
        if (listed, file) != (self._listed, self._file):
            self._listed, self._file = dict(listed), dict(file)
            if not listed:
                self._hear_nobody()
            hosts = dict.fromkeys(host for host, _ in (*listed.values(), *file.values()))
            self._resolver.want(tuple(hosts))
            self._settle_ms = 0

    def _hear_nobody(self) -> None:
        self.admission.expect({})
        for link in self._links.values():
            link.close()
        self._links.clear()

    def settle(self, now_ms: int) -> None:
        """Once a second: find this LB, be bound to its address, be connected to the others'."""
        self._connections.turn(now_ms)
        if now_ms < self._settle_ms:
            return
        self._settle_ms = now_ms + SETTLE_MS
        if self._connections.offender:
            _log.warning("a connection was shut down", offender=self._connections.offender)
            self._connections.offender = ""
        if self._keys is not None and not self._has_keys(self._keys):
            return
        resolved = {
            entry: self._resolver.address(host) for entry, (host, _) in self._listed.items()
        }
        places = self._distinct(resolved)
        self._members = frozenset(place for place in resolved.values() if place is not None)
        self.meant = self._find_meant(places)
        own = self._find_own(places)
        if own is None:
            self._ask_again(now_ms)
            return
        address, port = places[own] or "", self._listed[own][1]
        if not self._bind(f"tcp://{address}:{port}"):
            return
        if own != self.own:
            _log.info("this LB is a member of the quorum", entry=own, cluster=self._cluster)
        self.own, self.waiting_for = own, ""
        here = address, port
        self.aliases = frozenset(
            entry for entry, place in resolved.items() if (place, self._listed[entry][1]) == here
        )
        others = {entry: place for entry, place in places.items() if entry != own}
        if self._keys is not None:
            self.admission.expect({self._key_names[entry]: entry for entry in others})
        else:
            self.admission.expect({place: entry for entry, place in others.items() if place})
        self._connect(address, others, now_ms)

    def _ask_again(self, now_ms: int) -> None:
        """This LB is at none of the names' addresses, so some name has another by now."""
        if now_ms >= self._ask_ms:
            self._ask_ms = now_ms + RENEW_MS
            for host, _ in self._listed.values():
                self._resolver.ask_again(host)

    def _distinct(self, resolved: dict[str, str | None]) -> dict[str, str | None]:
        """Of entries that mean the same machine the first: two lists may write it otherwise."""
        first: dict[tuple[str, int], str] = {}
        for entry, place in resolved.items():
            if place is not None:
                first.setdefault((place, self._listed[entry][1]), entry)
        kept = set(first.values())
        return {entry: place for entry, place in resolved.items() if place is None or entry in kept}

    def _find_meant(self, places: dict[str, str | None]) -> dict[str, str]:
        known = {
            (place, self._listed[entry][1]): entry
            for entry, place in places.items()
            if place is not None
        }
        meant: dict[str, str] = {}
        for entry, (host, port) in self._file.items():
            place = self._resolver.address(host)
            same = entry if entry in places else known.get((place or "", port), entry)
            meant[entry] = same if place is not None or entry in places else ""
        return meant

    def _has_keys(self, known: KeyDirectory) -> bool:
        """Go by the keys as they are now; False: this LB has none of its own."""
        changed = known.refresh()
        if known.problems != self._said_keys:
            self._said_keys = known.problems
            for problem in known.problems:
                _log.error("a key cannot be used", problem=problem)
        if known.own is None:
            self.waiting_for = f"this load balancer's key ({'; '.join(known.problems)})"
            return False
        if known.own != self._own_keys:
            self._own_keys = known.own
            tcp.guard(self.socket, known.own, keys.LBS)
            if self._bound is not None:
                self.socket.unbind(self._bound)
                self._bound = None
        if changed:
            for entry in list(self._links):  # with the keys that are the right ones now
                self._links.pop(entry).close()
        return True

    def _credentials(self, entry: str, attempt: int) -> tcp.Credentials | None:
        """What to speak to a member with; None, where keys are used: it has no key here."""
        name = self._key_names.get(entry, "")
        known = self._keys.keys_of(keys.LBS, name) if self._keys is not None else ()
        if self._own_keys is None or not known:
            return None
        return tcp.Credentials(self._own_keys, known[attempt % len(known)])

    def soon(self) -> None:
        """Something about names or addresses is new: settle at the next turn."""
        self._settle_ms = 0

    def next_due_ms(self) -> int:
        return self._settle_ms

    def unresolved(self) -> str:
        """Why some member cannot be spoken to yet; empty: each has an address."""
        missing = [h for h, _ in self._listed.values() if self._resolver.address(h) is None]
        return self._resolver.failure(missing[0]) if missing else ""

    def _find_own(self, places: dict[str, str | None]) -> str | None:
        try:
            machine = {each.address for each in all_addresses()}
        except OSError as error:
            self.waiting_for = f"this machine's addresses: {error.strerror}"
            return None
        found = [entry for entry, place in places.items() if place in machine]
        if len(found) == 1:
            return found[0]
        if found:
            several = " and ".join(found)
            self.waiting_for = f"one entry of its own: {several} are both this machine"
        else:
            unknown = self.unresolved()
            why = f" ({unknown})" if unknown else ""
            self.waiting_for = (
                f"an address of this machine that load_balancer_quorum.addresses lists{why}"
            )
        return None

    def _bind(self, endpoint: str) -> bool:
        if endpoint == self._bound:
            return True
        try:
            self.socket.bind(endpoint)
        except zmq.ZMQError as error:
            if error.errno not in (errno.EADDRINUSE, errno.EADDRNOTAVAIL, errno.EACCES):
                raise
            self.waiting_for = f"{endpoint}: {error.strerror}"
            return False
        former, self._bound = self._bound, endpoint
        if former is not None:
            self.socket.unbind(former)
        return True

    def _connect(self, source: str, others: dict[str, str | None], now_ms: int) -> None:
        for entry in self._links.keys() - others.keys():
            self._links.pop(entry).close()
        for entry, place in others.items():
            if place is None:
                continue
            endpoint = f"tcp://{source}:0;{place}:{self._listed[entry][1]}"
            link = self._links.get(entry)
            if link is not None and link.endpoint == endpoint and now_ms < link.renew_ms:
                continue
            attempt = 0 if link is None else link.attempt + 1
            if attempt:
                self._resolver.ask_again(self._listed[entry][0])
            if link is not None:
                self._links.pop(entry).close()
            credentials = self._credentials(entry, attempt)
            if credentials is None and self._keys is not None:
                continue
            link = _Link(self._context, endpoint, now_ms + RENEW_MS, credentials)
            link.attempt = attempt
            self._links[entry] = link

    # ------------------------------------------------------------------ what is said

    def send(self, entry: str, message: PeerMessage) -> None:
        """Never waits."""
        link = self._links.get(entry)
        self._number += 1
        port = self._listed[self.own][1] if self.own in self._listed else 0
        head = self._cluster, self._boot, self._number, self.node_health, port
        frames = encode_peer(message, *head)
        if link is None or not link.send(frames):
            self.dropped += 1

    def receive(self, now_ms: int) -> tuple[list[tuple[str, PeerMessage]], bool]:
        """What members say, oldest first, and whether that was all."""
        heard: list[tuple[str, PeerMessage]] = []
        if self._door is not None:
            self._door.serve()
        for _ in range(MOST_AT_ONCE):
            try:
                address, frames = self._next()
            except zmq.Again:
                return heard, True
            if frames is None:
                self.admission.refuse_stranger(address, now_ms)
                if self._door is None:
                    self.admission.knock(address, self._knock, now_ms)
            elif frames and (admitted := self.admission.admit(address, frames, now_ms)):
                heard.append(admitted)
                if (link := self._links.get(admitted[0])) is not None:
                    link.renew_ms = now_ms + RENEW_MS
        return heard, False

    def _next(self) -> tuple[str, list[bytes] | None]:
        """The next message and where it came from; None of a stranger, nothing while a long one is
        thrown away. Raises `zmq.Again`.
        """
        if self._discarding:
            self._discard()
            return "", []
        self.socket.recv(zmq.NOBLOCK)
        # A message is here as a whole or not at all, so the rest of it needs no waiting.
        first = self.socket.recv(zmq.NOBLOCK, copy=False)
        address = self._sender(first)
        more = first.more
        if not self.admission.is_listed(address):
            self._discarding, self._knock = more, first.bytes
            return address, None
        frames = [first.bytes]
        while more and len(frames) <= MOST_PARTS:
            frames.append(self.socket.recv(zmq.NOBLOCK))
            more = bool(self.socket.getsockopt(zmq.RCVMORE))
        self._discarding = more
        return address, frames

    def _sender(self, frame: zmq.Frame) -> str:
        """What `admission` knows the sender by."""
        if self._door is None:
            return tcp.peer_address(frame)
        name = self._door.name_of(keys.LBS, frame)
        return tcp.peer_key(frame) if name is None else name

    def _discard(self) -> None:
        for _ in range(DISCARDED_AT_ONCE):
            self._discarding = self.socket.recv(zmq.NOBLOCK, copy=False).more
            if not self._discarding:
                return

    def close(self) -> None:
        """What was said last is still sent, if that takes no time."""
        for link in self._links.values():
            link.close(FAREWELL_MS)
        self._connections.close()
        self.socket.close(linger=0)
        if self._door is not None:
            self._door.close()


class _Link:
    """The connection to one other member."""

    def __init__(
        self,
        context: zmq.Context[Any],
        endpoint: str,
        renew_ms: int,
        credentials: tcp.Credentials | None,
    ) -> None:
        self.endpoint = endpoint
        self.renew_ms = renew_ms
        """When it is made anew, unless the member is heard before."""
        self.attempt = 0
        """How many connections to this member were made anew before, in a row."""
        self._socket = tcp.connecting(context, LARGEST_FRAME, credentials=credentials)
        self._socket.connect(endpoint)

    def send(self, frames: tuple[bytes, bytes]) -> bool:
        try:
            self._socket.send_multipart(frames, zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True

    def close(self, linger_ms: int = 0) -> None:
        self._socket.close(linger=linger_ms)
