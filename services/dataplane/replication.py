"""The shell of flow replication: sockets to the other LBs, the notes' ring, the table.

In: what has become of flows (`noting`), what the other LBs say. Out: records to those that follow
this LB; records of those that it follows, entered into the table. What is said when is decided in
`flows.replica`, which is pure; the words are `bus.replica_protocol`.

One ROUTER takes the followers, on the replication port of this LB's own entry among the members; a
DEALER goes to each other entry. Only these addresses are heard, or, where keys are used, only their
keys (`replica_keys`). The members are those of the agreed table, and those that
`load_balancer_quorum.addresses` lists until one says it (`go_by`).

**Turn.** Hear followers; tell what is due; hear tellers and enter what they tell; parts of the
table for who needs them; comparisons last. All of that takes no more than some milliseconds
at once, since this process masks dead nodes in between.

**Bounds.** The log (`replica.LOG_BYTES`) and what credits allow. A follower that does not read is
forgotten by the log, and begins with a snapshot when it comes back.

**Failure.** Who is of another cluster or speaks another version is refused and counted; a message
that makes no sense is counted, and its sender must say Hello again; a record that makes no sense is
counted, and the others of its batch are entered. Notes that found no room in the ring are counted,
and every follower gets a snapshot: what was lost is unknown.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from hashlib import blake2b
from secrets import token_hex
from typing import Any

import numpy as np
import structlog
import zmq
from numpy.typing import NDArray

from bus import tcp
from bus.codec import MalformedMessage
from bus.replica_protocol import (
    Credit,
    Digests,
    Hello,
    Refused,
    ReplicaMessage,
    Resume,
    decode_replica,
    encode_replica,
)
from bus.socket import monotonic_ms
from bus.states import ReplicaPeer
from conf import Endpoint, LbConfig
from services.connections import Connections, Limits
from services.dataplane.flows.records import RANGES, WIRE, Wire, add_digests
from services.dataplane.flows.replica import (
    HELLO_FIRST,
    Following,
    Log,
    Sync,
    Teller,
    Telling,
)
from services.dataplane.flows.told import Flows
from services.dataplane.replica_keys import ReplicaKeys
from services.machine import all_addresses, own_address
from services.process import Loop
from services.resolve import Resolver

LONGEST_FRAME = 1 << 20
MOST_RECORDS = 4_096
"""Of a message; a part of the table has no more."""
RENEW_MS = 3_000
"""Who has not been heard for so long gets a new socket: after an end that broke ZMTP's rules libzmq
does not connect again."""
MOST_AT_ONCE = 200
TURN_MS = 8
SETTLE_MS = 1_000
STRANGER_LIMITS = Limits(of_address=16, burst_bytes=1 << 20, bytes_per_s=64 << 10)
"""Who is at no member's address is not heard, and does not keep others from being heard."""
COMPARE_MS = 60_000
COMPARED_AGE_TICKS = 150
"""Ten seconds: what is younger may still be on its way."""

_log = structlog.get_logger()


@dataclass(slots=True)
class _Peer:
    """Another LB, as one that tells this one."""

    address: str
    number: int
    socket: zmq.Socket[bytes]
    following: Following
    offset: int | None = None
    """Ticks from its clock to ours, at the fastest message; None: nothing has come yet."""
    compare_ms: int = 0
    renew_ms: int = 0


def _endpoint(entry: str) -> Endpoint:
    """Of a member that the file does not list; what it is was checked when it was added."""
    host, _, port = entry.rpartition(":")
    return Endpoint.model_construct(ip=host, port=int(port))


def _number(address: str) -> int:
    return int.from_bytes(blake2b(address.encode(), digest_size=8).digest(), "little") or 1


class Replication:
    """Of an LB that has others in its list; one for each start of the process."""

    def __init__(
        self, context: zmq.Context[Any], config: LbConfig, loop: Loop, now_ms: int
    ) -> None:
        """`loop`: the process's, which wakes for these sockets."""
        self._context = context
        self._config = config
        self._loop = loop
        self._resolver = Resolver(
            loop.signals.wake,
            partial(own_address, config.local.net_interface_private),
            f"{config.local.name}.local",
        )
        self._listed = config.quorum.addresses
        self._resolver.want(tuple(peer.host for peer in self._listed))
        self._me = Teller(config.quorum.name, config.local.name, token_hex(8))
        self._log = Log(WIRE.itemsize)
        self._tellings: dict[bytes, Telling] = {}
        self._peers: dict[str, _Peer] = {}
        self._sync = Sync(now_ms, len(config.quorum.addresses) - 1)
        self._flows: Flows | None = None
        self._router = tcp.accepting(context, LONGEST_FRAME)
        self._router.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.counts: Counter[str] = Counter()
        """What became of records and messages, by name."""
        self._members: frozenset[str] = frozenset()
        """Their addresses, as far as they are known."""
        self._connections = Connections(context, self._router, self.counts, self._limits_of, now_ms)
        loop.watch(self._router)
        self._bound = ""
        self._settle_ms = self._ask_ms = now_ms
        self._work: list[Generator[None, None, None]] = []
        self._worst_ms = 0
        self.waiting_for = ""
        directory, peers = config.security.keys, config.quorum.addresses
        self._keys = ReplicaKeys(context, directory, peers, self.counts) if directory else None
        if self._keys is not None:
            loop.watch(self._keys.socket)
        self._hosts: dict[str, str] = {}
        """By address, the entry's host."""

    def _limits_of(self, address: str) -> Limits | None:
        return None if address in self._members else STRANGER_LIMITS

    # ------------------------------------------------------------------ who, and where

    def go_by(self, members: Iterable[str]) -> None:
        """These, by their entries, are the members that are agreed on; none: the file says it."""
        known = {str(peer): peer for peer in self._config.quorum.addresses}
        agreed = tuple(known.get(entry) or _endpoint(entry) for entry in members)
        listed = agreed or self._config.quorum.addresses
        if listed == self._listed:
            return
        self._listed = listed
        self._resolver.want(tuple(peer.host for peer in listed))
        if self._keys is not None:
            self._keys.expect(listed)
        self._settle_ms = 0

    def _settle(self, flows: Flows, now_ms: int) -> None:
        """Once a second: find this LB in its list, bind, connect."""
        if now_ms < self._settle_ms:
            return
        self._settle_ms = now_ms + SETTLE_MS
        if self._keys is not None and (lacking := self._keys.refresh()):
            self._wait_for(lacking)
            return
        quorum = self._config.quorum
        found = [(self._resolver.address(peer.host), peer) for peer in self._listed]
        places = {
            address: quorum.replication_port_of(peer)
            for address, peer in found
            if address is not None
        }
        self._hosts = {address: peer.host for address, peer in found if address is not None}
        self._members = frozenset(places)
        try:
            machine = {each.address for each in all_addresses()}
        except OSError:  # no descriptor left, say: asked again before long
            return
        own = next((address for address in places if address in machine), None)
        if own is None:
            if now_ms >= self._ask_ms:
                self._ask_ms = now_ms + RENEW_MS
                for peer in self._listed:
                    self._resolver.ask_again(peer.host)
            self._wait_for("an address of this machine that load_balancer_quorum.addresses lists")
        elif self._bind(f"tcp://{own}:{places[own]}"):
            self._connect(flows, own, places, now_ms)

    def _wait_for(self, what: str) -> None:
        if what != self.waiting_for:
            _log.warning("flows are not replicated", waiting_for=what)
        self.waiting_for = what

    def _bind(self, endpoint: str) -> bool:
        if self._keys is not None and self._keys.guard(self._router) and self._bound:
            self._router.unbind(self._bound)
            self._bound = ""
        if self._bound == endpoint:
            return True
        try:
            self._router.bind(endpoint)
        except zmq.ZMQError as error:
            self._wait_for(f"{endpoint}: {error.strerror}")
            return False
        if self._bound:
            self._router.unbind(self._bound)
        self._bound, self.waiting_for = endpoint, ""
        return True

    def _connect(self, flows: Flows, own: str, places: Mapping[str, int], now_ms: int) -> None:
        """To each other LB; an address that is in the list no more is forgotten."""
        rekeyed = self._keys is not None and self._keys.has_changed
        for address, peer in list(self._peers.items()):
            if address not in places or now_ms >= peer.renew_ms or rekeyed:
                if address in self._hosts:
                    self._resolver.ask_again(self._hosts[address])
                self._disconnect(self._peers.pop(address))
        for address, port in places.items():
            if address == own or address in self._peers:
                continue
            credentials = None
            if self._keys is not None:
                credentials = self._keys.credentials_for(self._hosts[address])
                if credentials is None:
                    continue
            socket = tcp.connecting(self._context, LONGEST_FRAME, credentials=credentials)
            socket.connect(f"tcp://{own}:0;{address}:{port}")
            self._loop.watch(socket)
            number = _number(address)
            known, me = flows.entering.progress_of(number), self._me
            following = Following(me.cluster, me.lb, WIRE.itemsize, now_ms, known)
            self._peers[address] = _Peer(
                address,
                number,
                socket,
                following,
                compare_ms=now_ms + COMPARE_MS,
                renew_ms=now_ms + RENEW_MS,
            )

    def _disconnect(self, peer: _Peer) -> None:
        self._loop.poller.unregister(peer.socket)
        peer.socket.close(0)

    def attached(self, flows: Flows) -> None:
        """Programs are attached, over these maps; until then, nothing is told or entered."""
        if self._flows is not None:
            for telling in self._tellings.values():
                telling.cut_short()
            self._work.clear()
        elif not self._sync.is_synced:
            self._sync.begin(monotonic_ms())
        self._flows = flows

    def detached(self) -> None:
        """What was handed over is about to be closed."""
        self._flows = None
        self._work.clear()

    def noted(self, records: Wire, since_ms: int) -> None:
        """Flows as they are by now; `since_ms`: when the oldest of them came to be told."""
        flows = self._flows
        if flows is None:
            return
        self.counts["told"] += len(records)
        # Where the process was stopped, many are due at once: no message is longer than these.
        for first in range(0, len(records), MOST_RECORDS):
            part = records[first : first + MOST_RECORDS]
            self._log.append(part.tobytes(), flows.tick, since_ms)

    def lost(self, notes: int) -> None:
        """What was lost is unknown: every follower gets a snapshot."""
        self.counts["notes_lost"] += notes
        self._log.lose()

    # ------------------------------------------------------------------ the turn

    def turn(self, now_ms: int) -> None:
        """Some milliseconds of work."""
        self._connections.turn(now_ms)
        flows = self._flows
        if flows is None:
            return
        end_s = time.monotonic() + TURN_MS / 1_000
        if self._keys is not None:
            self._keys.serve()
        self._settle(flows, now_ms)
        self._hear_followers(now_ms)
        self._tell(flows, now_ms)
        for peer in self._peers.values():
            self._hear_teller(flows, peer, now_ms, end_s)
        self._sync.look([peer.following for peer in self._peers.values()], now_ms)
        self._tell_parts(flows, end_s)
        while self._work and time.monotonic() < end_s:
            if next(self._work[0], self._work) is self._work:
                self._work.pop(0)

    @property
    def is_busy(self) -> bool:
        """There is work on the table left, which the next turn goes on with."""
        return bool(self._work) or self._has_parts

    def next_ms(self, now_ms: int) -> int:
        if self._flows is None:
            return now_ms + SETTLE_MS
        moments = [self._settle_ms]
        moments += [peer.following.next_ms for peer in self._peers.values()]
        if self.is_busy:
            moments.append(now_ms)
        return min(moments)

    # ------------------------------------------------------------------ as a teller

    def _hear_followers(self, now_ms: int) -> None:
        for _ in range(MOST_AT_ONCE):
            try:
                frames = self._router.recv_multipart(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            identity, rest = frames[0].bytes, [frame.bytes for frame in frames[1:]]
            if self._keys is not None:
                host = self._keys.host_of(frames[-1])
                sender = next((known for known, of in self._hosts.items() if of == host), "")
            else:
                sender = tcp.peer_address(frames[-1])
            if sender not in self._peers:
                self.counts["refused_stranger"] += 1
                self._tellings.pop(identity, None)
                continue
            try:
                message, payload = decode_replica(rest)
                self._hear_follower(identity, message, payload, now_ms)
            except (MalformedMessage, ValueError) as error:
                self.counts[f"refused_{getattr(error, 'reason', 'malformed')}"] += 1
                self._tellings.pop(identity, None)
                self._reply(identity, Refused(str(error)))

    def _hear_follower(
        self, identity: bytes, message: ReplicaMessage, payload: bytes, now_ms: int
    ) -> None:
        if isinstance(message, Hello):
            if message.cluster != self._me.cluster:
                self.counts["refused_cluster"] += 1
                self._reply(identity, Refused(f"this is the cluster {self._me.cluster!r}"))
            elif message.record_bytes != WIRE.itemsize:
                raise MalformedMessage(f"records of {message.record_bytes} bytes")
            else:
                self._forget(message.lb)
                self._tellings[identity] = Telling(self._log, message, self._me, now_ms)
            return
        telling = self._tellings.get(identity)
        if telling is None:
            self._reply(identity, Refused(HELLO_FIRST))
        elif isinstance(message, Credit | Resume):
            acked = telling.acked_seq
            lag_ms = telling.lag_ms(now_ms)
            telling.heard(message)
            if telling.acked_seq > acked:
                self._worst_ms = max(self._worst_ms, lag_ms)
        elif isinstance(message, Digests):
            self._compared(identity, telling, message, payload)
        else:
            raise MalformedMessage(f"a {type(message).__name__} from a follower")

    def _forget(self, lb: str) -> None:
        """Its conversation of before: an LB has one."""
        for identity in [known for known, telling in self._tellings.items() if telling.lb == lb]:
            del self._tellings[identity]

    def _reply(self, identity: bytes, message: ReplicaMessage, payload: bytes = b"") -> bool:
        frames = [identity, *encode_replica(message, payload)]
        try:
            self._router.send_multipart(frames, zmq.NOBLOCK)
        except zmq.ZMQError:
            # It is not there any more, or it reads nothing although it allows to be told.
            self._tellings.pop(identity, None)
            return False
        return True

    def _tell(self, flows: Flows, now_ms: int) -> None:
        for identity, telling in list(self._tellings.items()):
            for message, payload in telling.take_live(now_ms, flows.tick, synced=self.is_synced):
                if not self._reply(identity, message, payload):
                    break

    @property
    def _has_parts(self) -> bool:
        return any(telling.wants_part for telling in self._tellings.values())

    def _tell_parts(self, flows: Flows, end_s: float) -> None:
        while time.monotonic() < end_s:
            wanting = [each for each in self._tellings.items() if each[1].wants_part]
            if not wanting:
                return
            identity, telling = wanting[0]
            records, following = flows.part(telling.position)
            message, payload = telling.told_part(following, flows.tick, records.tobytes())
            self.counts["told_in_parts"] += len(records)
            self._reply(identity, message, payload)

    # ------------------------------------------------------------------ as a follower

    def _hear_teller(self, flows: Flows, peer: _Peer, now_ms: int, end_s: float) -> None:
        following = peer.following
        for _ in range(MOST_AT_ONCE):
            if time.monotonic() >= end_s:
                break
            try:
                frames = peer.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            peer.renew_ms = now_ms + RENEW_MS
            try:
                message, payload = decode_replica(frames)
                if len(payload) % WIRE.itemsize:
                    raise MalformedMessage(f"{len(payload)} bytes of records")
                entering = following.heard(message, payload, now_ms)
            except (MalformedMessage, ValueError) as error:
                self.counts[f"refused_{getattr(error, 'reason', 'malformed')}"] += 1
                following.cut(now_ms)
                continue
            if entering is not None:
                self._enter(flows, peer, entering.records, entering.tick)
                flows.entering.keep_progress(peer.number, following.progress)
        self._compare(flows, peer, now_ms)
        for message in following.take(now_ms, synced=self.is_synced):
            self._say(peer, message)

    def _say(self, peer: _Peer, message: ReplicaMessage, payload: bytes = b"") -> None:
        try:
            peer.socket.send_multipart(encode_replica(message, payload), zmq.NOBLOCK)
        except zmq.Again:
            self.counts["unsaid"] += 1  # it is not connected: Hello is said again

    def _enter(self, flows: Flows, peer: _Peer, records: bytes, tick: int) -> None:
        now = flows.tick
        offset = (now - tick) & 0xFFFF_FFFF
        if peer.offset is None or (offset - peer.offset) & 0xFFFF_FFFF > 1 << 31:
            peer.offset = offset
        begun = (tick + peer.offset) & 0xFFFF_FFFF
        wire = np.frombuffer(records, WIRE)
        self.counts.update(flows.enter(wire, begun))

    # ------------------------------------------------------------------ comparing

    def _compare(self, flows: Flows, peer: _Peer, now_ms: int) -> None:
        if now_ms < peer.compare_ms or peer.offset is None:
            return
        peer.compare_ms = now_ms + COMPARE_MS
        self._work.append(self._digest_for(flows, peer))

    def _digest_for(self, flows: Flows, peer: _Peer) -> Generator[None, None, None]:
        before = (flows.tick - COMPARED_AGE_TICKS) & 0xFFFF_FFFF
        digests = yield from _digests(flows, before)
        theirs = (before - (peer.offset or 0)) & 0xFFFF_FFFF
        self.counts["compared"] += 1
        self._say(peer, Digests(theirs), digests.tobytes())

    def _compared(
        self, identity: bytes, telling: Telling, message: Digests, payload: bytes
    ) -> None:
        if len(payload) != 8 * RANGES:
            raise MalformedMessage(f"{len(payload)} bytes of digests")
        flows = self._flows
        if flows is not None and len(self._work) < 2 * len(self._peers):
            theirs = np.frombuffer(payload, np.uint64)
            self._work.append(self._mend(flows, identity, telling, theirs, message.before_tick))

    def _mend(
        self,
        flows: Flows,
        identity: bytes,
        telling: Telling,
        theirs: NDArray[np.uint64],
        before: int,
    ) -> Generator[None, None, None]:
        """What this LB has of the ranges that differ, as far as credits go: the next comparison
        does the rest.
        """
        ours = yield from _digests(flows, before)
        differs = ours != theirs
        self.counts["ranges_differ"] += int(np.count_nonzero(differs))
        if not differs.any():
            return
        position = 0
        while position >= 0 and self._tellings.get(identity) is telling and telling.may_mend:
            records, position = flows.part(position, differs)
            if len(records):
                self.counts["mended"] += len(records)
                self._reply(identity, *telling.told_mended(flows.tick, records.tobytes()))
            yield

    # ------------------------------------------------------------------ what is said of it

    @property
    def is_synced(self) -> bool:
        return self._sync.is_synced

    def lag_ms(self, now_ms: int) -> int:
        """The longest time that something took to be entered by all followers, or has taken
        already, since this was asked last.
        """
        worst_ms, self._worst_ms = self._worst_ms, 0
        under_way = [telling.lag_ms(now_ms) for telling in self._tellings.values()]
        return max([worst_ms, *under_way])

    def peers(self) -> tuple[ReplicaPeer, ...]:
        """How this LB stands with each other one, in words."""
        followers = {telling.lb for telling in self._tellings.values()}
        return tuple(
            ReplicaPeer(
                address=peer.address,
                name=peer.following.teller,
                standing=peer.following.standing.value,
                reason=peer.following.refusal,
                follows=peer.following.teller in followers,
            )
            for peer in self._peers.values()
        )

    def close(self) -> None:
        self._connections.close()
        self._router.close(0)
        for peer in self._peers.values():
            peer.socket.close(0)
        if self._keys is not None:
            self._keys.close()


def _digests(flows: Flows, before: int) -> Generator[None, None, NDArray[np.uint64]]:
    digests = np.zeros(RANGES, np.uint64)
    for requests in flows.requests_begun_before(before):
        add_digests(digests, requests)
        yield
    return digests
