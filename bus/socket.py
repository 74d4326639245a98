"""The bus's sockets: how a state or an event of one process reaches the others.

**Publisher** (XPUB). A *state* topic keeps its last value, an *event* is kept among the last
`KEPT_EVENTS`, as far as `KEPT_EVENT_BYTES` go; both are sent again to whoever subscribes, so
starting order does not matter and a restarted subscriber is right within milliseconds. The socket
runs in libzmq's manual mode: a subscription takes effect only when `serve` accepts it, and the
replay follows in the same breath, so no live message can overtake what belongs before it.

**Numbers.** `boot` is random per publisher and start; `seq` counts within it:

* events by one counter over all event topics: 1, 2, 3, ... without holes;
* states by one counter per topic: each `publish` or `repeat` of that topic counts, a replay does
  not. A state has a `version` beside it, which rises only when its content changed.

A replay repeats the very bytes, hence number, of what was sent before, and reaches *every*
subscriber of the topic (a PUB socket cannot speak to one).

**A repetition is a head without a body.** It says which version is the newest, so it costs nothing
to send, to queue for a paused reader, or to pass over. Whoever lacks that version (the message was
dropped at a high-water mark) subscribes to the topic once more and is sent the retained value.

**Subscriber** (SUB). Reads all that has come, by the heads, before it decodes anything; of a state
only the newest, and only if it is not the one that was read last. Events are handed out once each:
within one boot the numbers of one topic only rise (a topic's replay is in order), so anything not
above the last one is a repetition. A new boot starts over. Events that never came are counted in
`dropped`: that needs one counter to compare with, so they are counted only if everything the
publisher has is wanted. A subscription to everything is made by the empty prefix, which also keeps
the replay in order over all topics; with single topics it is in order only within each.

**Slow or paused subscriber.** The high-water marks are finite: beyond them libzmq drops what is
new. Events and states lost this way are counted; the next repetition of a state makes that one
right.

**Two copies.** libzmq binds over a living process's path without a word, so an flock on
`<path>.lock` comes first: a second copy waits there until the first is gone, and then takes over.
The wait blocks in the constructor. Build publishers before installing signal handlers that only
set a flag, or a waiting copy cannot be terminated.

**Failures.** Malformed messages are the sender's fault: counted in `rejected`, by reason, then
ignored; so are those of another version of the bus. A publisher that died: its subscribers keep
what they have and reconnect by themselves.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
from collections import Counter, deque
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import zmq

from bus import topics
from bus.codec import (
    Envelope,
    Head,
    MalformedMessage,
    decode_body,
    decode_head,
    encode,
    encode_head,
)
from bus.topics import Topic

KEPT_EVENTS = 1024
KEPT_EVENT_BYTES = 4 * 1024 * 1024
HIGH_WATER_MARK = 2 * KEPT_EVENTS
"""Room for a whole replay, with as much again for what happens meanwhile."""
LONGEST_SUBSCRIPTION = 256
"""Bytes that a subscriber may say at once. No topic is longer than 32."""
MOST_SUBSCRIPTIONS = 1_000
"""Accepted in one turn: who subscribes without an end does not hold the loop."""
RECONNECT_MS = 50
DIRECTORY_MODE = 0o1770
"""Several users' sockets in one directory: the group may add, nobody may remove another's."""
SOCKET_MODE = 0o660


_log = structlog.get_logger()


def monotonic_ms() -> int:
    """The clock of `Head.made_ms`: one for all processes of this machine."""
    return time.monotonic_ns() // 1_000_000


class LocalEndpoint:
    """One ipc path that one process at a time may own."""

    def __init__(self, socket: zmq.Socket[bytes], path: Path) -> None:
        self._socket = socket
        self._path = path
        path.parent.parent.mkdir(parents=True, exist_ok=True)
        if not path.parent.exists():
            path.parent.mkdir(exist_ok=True)
            path.parent.chmod(DIRECTORY_MODE)
        self._lock = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o660)
        self._wait_for_lock()
        socket.bind(f"ipc://{path}")
        path.chmod(SOCKET_MODE)

    def _wait_for_lock(self) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            _log.warning("another copy of this process runs: waiting for its end", path=self._path)
            fcntl.flock(self._lock, fcntl.LOCK_EX)
            _log.info("the other copy has ended: taking over", path=self._path)

    def close(self) -> None:
        """Remove the path while it is still ours, then let the next copy have it."""
        self._path.unlink(missing_ok=True)
        self._socket.close(linger=0)
        os.close(self._lock)


class PublisherSocket:
    """An XPUB that shows each new subscription before it takes effect.

    `subscriptions` accepts what has come; whatever is sent after it returns is the first thing the
    new subscribers see.
    """

    def __init__(self, context: zmq.Context[Any], path: Path) -> None:
        self.socket: zmq.Socket[bytes] = context.socket(zmq.XPUB)
        self.socket.setsockopt(zmq.XPUB_MANUAL, 1)
        self.socket.setsockopt(zmq.MAXMSGSIZE, LONGEST_SUBSCRIPTION)
        bounded(self.socket)
        self._endpoint = LocalEndpoint(self.socket, path)

    def subscriptions(self) -> list[bytes]:
        """Accept subscriptions that wait, `MOST_SUBSCRIPTIONS` at most; returns their prefixes."""
        prefixes: list[bytes] = []
        for _ in range(MOST_SUBSCRIPTIONS):
            try:
                message = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                break
            prefix = message[1:]
            if message[:1] == b"\x01":
                self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
                prefixes.append(prefix)
            elif message[:1] == b"\x00":
                self.socket.setsockopt(zmq.UNSUBSCRIBE, prefix)
        return prefixes

    def send(self, frames: list[bytes]) -> None:
        """Never blocks: a subscriber beyond its high-water mark misses the message."""
        self.socket.send_multipart(frames, zmq.NOBLOCK)

    def close(self) -> None:
        self._endpoint.close()


class Publisher:
    """The one publisher of a process: retained states, a log of events."""

    def __init__(self, context: zmq.Context[Any], path: Path, source: str, host: str) -> None:
        self.boot = secrets.token_hex(8)
        self._source = source
        self._host = host
        self._event_seq = 0
        self._retained: dict[Topic, tuple[Head, list[bytes]]] = {}
        self._events: deque[list[bytes]] = deque()
        self._event_bytes = 0
        self._publisher = PublisherSocket(context, path)

    @property
    def poll_socket(self) -> zmq.Socket[bytes]:
        """Readable when somebody subscribes: put it into the poller and call `serve`."""
        return self._publisher.socket

    def publish(self, topic: Topic, data: Any) -> Envelope:
        """Number, keep and send one message; `data` is what `PAYLOADS` says for the topic.

        A state whose version is the one sent last is only repeated.
        """
        if topic.is_state:
            return self._publish_state(topic, data)
        self._event_seq += 1
        envelope = Envelope(self._head(topic, self._event_seq, 0), data)
        frames = encode(envelope)
        self._keep(frames)
        self._publisher.send(frames)
        return envelope

    def _keep(self, frames: list[bytes]) -> None:
        self._events.append(frames)
        self._event_bytes += sum(map(len, frames))
        while len(self._events) > KEPT_EVENTS or self._event_bytes > KEPT_EVENT_BYTES:
            self._event_bytes -= sum(map(len, self._events.popleft()))

    def _publish_state(self, topic: Topic, data: Any) -> Envelope:
        last = self._retained.get(topic)
        if last is not None and last[0].version == data.version:
            self.repeat(topic)
            return Envelope(self._retained[topic][0], data)
        head = self._head(topic, 1 if last is None else last[0].seq + 1, data.version)
        envelope = Envelope(head, data)
        frames = encode(envelope)
        self._retained[topic] = head, frames
        self._publisher.send(frames)
        return envelope

    def repeat(self, topic: Topic) -> None:
        """Say that the last state of a topic still holds; nothing if there has been none."""
        if topic in self._retained:
            head, frames = self._retained[topic]
            head = replace(head, seq=head.seq + 1)
            named = encode_head(head)
            self._retained[topic] = head, [*named, frames[-1]]
            self._publisher.send(named)

    def serve(self) -> None:
        """Accept new subscriptions and replay to them: states first, then events in order."""
        prefixes = tuple(self._publisher.subscriptions())
        if not prefixes:
            return
        states = (frames for _, frames in self._retained.values())
        for frames in (*states, *self._events):
            if frames[0].startswith(prefixes):
                self._publisher.send(frames)

    def close(self) -> None:
        self._publisher.close()

    def _head(self, topic: Topic, seq: int, version: int) -> Head:
        return Head(
            topic=topic,
            source=self._source,
            host=self._host,
            boot=self.boot,
            seq=seq,
            version=version,
            time_ms=time.time_ns() // 1_000_000,
            made_ms=monotonic_ms(),
        )


class Subscriber:
    """What one process wants of the others, each message once."""

    def __init__(
        self,
        context: zmq.Context[Any],
        run_dir: Path,
        wanted: dict[str, tuple[Topic, ...]],
    ) -> None:
        self.rejected: Counter[str] = Counter()
        """Messages that were refused, by reason."""
        self.dropped: Counter[str] = Counter()
        """Messages that never came, by source."""
        self.repeated: list[Head] = []
        """Of the last `receive`: states that still hold. Their publishers live."""
        self._wanted = {source: frozenset(these) for source, these in wanted.items()}
        self._prefixes = self._wanted_prefixes()
        self._boots: dict[str, str] = {}
        self._last_by_topic: dict[tuple[str, Topic], int] = {}
        self._last_event: dict[str, int] = {}
        self._read: dict[tuple[str, Topic], tuple[str, int]] = {}
        """Boot and version of the state that was handed out last."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
        bounded(self.socket)
        for prefix in self._prefixes:
            self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
        for source in wanted:
            self.socket.connect(f"ipc://{topics.publisher_path(run_dir, source)}")

    def receive(self) -> list[Envelope]:
        """Every event and the newest of each state that has come, if it was not handed out before.

        Never blocks. What has only been repeated is in `repeated`.
        """
        kept: list[tuple[Head, bytes | None]] = []
        newest: dict[tuple[str, Topic], int] = {}
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                break
            head = self._accept(frames)
            if head is None:
                continue
            body = frames[2] if len(frames) == 3 else None
            if head.topic.is_state:
                key = head.source, head.topic
                body = self._body_of_repetition(head, body, kept, newest.get(key))
                newest[key] = len(kept)
            kept.append((head, body))
        self.repeated = []
        return [
            envelope
            for place, (head, body) in enumerate(kept)
            if newest.get((head.source, head.topic), place) == place
            and (envelope := self._hand_out(head, body)) is not None
        ]

    def close(self) -> None:
        self.socket.close(linger=0)

    def _accept(self, frames: list[bytes]) -> Head | None:
        try:
            head = decode_head(frames)
        except MalformedMessage as error:
            self.rejected[error.reason] += 1
            return None
        return head if self._is_wanted(head) and self._is_fresh(head) else None

    def _body_of_repetition(
        self,
        head: Head,
        body: bytes | None,
        kept: list[tuple[Head, bytes | None]],
        place: int | None,
    ) -> bytes | None:
        """The body that a head without one speaks of, if that has come by the same turn."""
        if body is not None or place is None:
            return body
        earlier, its_body = kept[place]
        same = (earlier.boot, earlier.version) == (head.boot, head.version)
        return its_body if same else None

    def _hand_out(self, head: Head, body: bytes | None) -> Envelope | None:
        key, version = (head.source, head.topic), (head.boot, head.version)
        if head.topic.is_state and self._read.get(key) == version:
            self.repeated.append(head)
            return None
        if body is None:
            self._ask_again(head.topic)
            return None
        try:
            envelope = decode_body(head, body)
        except MalformedMessage as error:
            self.rejected[error.reason] += 1
            return None
        if head.topic.is_state:
            self._read[key] = version
        return envelope

    def _ask_again(self, topic: Topic) -> None:
        """Have the retained state sent, by a subscription of its own or the same one anew."""
        prefix = topic.encode()
        first, then = zmq.SUBSCRIBE, zmq.UNSUBSCRIBE
        if prefix in self._prefixes:
            first, then = then, first
        self.socket.setsockopt(first, prefix)
        self.socket.setsockopt(then, prefix)

    def _wanted_prefixes(self) -> list[bytes]:
        """One empty prefix if all is wanted of all, else the topics."""
        if any(self._wants_everything(source) for source in self._wanted):
            return [b""]
        return sorted({topic.encode() for these in self._wanted.values() for topic in these})

    def _wants_everything(self, source: str) -> bool:
        return self._wanted[source] >= frozenset(topics.PUBLISHES.get(source, ()))

    def _is_wanted(self, head: Head) -> bool:
        wanted = self._wanted.get(head.source)
        if wanted is None:
            self.rejected["unexpected_source"] += 1
            return False
        # One socket, so one source's subscriptions hold for all: the surplus ends here.
        return head.topic in wanted

    def _is_fresh(self, head: Head) -> bool:
        source, topic, seq = head.source, head.topic, head.seq
        if self._boots.get(source) != head.boot:
            self._boots[source] = head.boot
            self._last_event.pop(source, None)
            for known in [key for key in self._last_by_topic if key[0] == source]:
                del self._last_by_topic[known]
        last = self._last_by_topic.get((source, topic))
        # A state that comes again is told from a new one by its version.
        if last is not None and (seq < last if topic.is_state else seq <= last):
            return False
        self._last_by_topic[source, topic] = seq
        if topic.is_state:
            self._count_dropped(source, last, seq)
        elif self._wants_everything(source):
            self._count_dropped(source, self._last_event.get(source), seq)
            # A replay to somebody else may bring what was dropped: late, and below the last one.
            self._last_event[source] = max(seq, self._last_event.get(source, 0))
        return True

    def _count_dropped(self, source: str, last: int | None, seq: int) -> None:
        # The first number may be any: what was before it is not missed, it is before our time.
        if last is not None and seq > last + 1:
            self.dropped[source] += seq - last - 1


def bounded(socket: zmq.Socket[bytes]) -> None:
    """What every socket of the bus has: finite queues, quick reconnecting, a close that ends."""
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
