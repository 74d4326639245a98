"""The bus's sockets: how a state or an event of one process reaches the others.

**Publisher** (XPUB). A *state* topic keeps its last value, an *event* is kept among the last
`KEPT_EVENTS`; both are sent again to whoever subscribes, so starting order does not matter and a
restarted subscriber is right within milliseconds. The socket runs in libzmq's manual mode: a
subscription takes effect only when `serve` accepts it, and the replay follows in the same breath,
so no live message can overtake what belongs before it.

**Numbers.** `boot` is random per publisher and start; `seq` counts within it:

* events by one counter over all event topics: 1, 2, 3, ... without holes;
* states by one counter per topic: each `publish` of that topic counts, a replay does not.

A replay repeats the very bytes, hence number, of what was sent before, and reaches *every*
subscriber of the topic (a PUB socket cannot speak to one).

**Subscriber** (SUB). Hands out each message once: within one boot the numbers of one topic only
rise (a topic's replay is in order), so anything not above the last one is a repetition. A new boot
starts over. What never came is counted in `dropped`: that needs one counter to compare with, so
events are counted only if everything the publisher has is wanted. A subscription to everything is
made by the empty prefix, which also keeps the replay in order over all topics; with single topics
it is in order only within each.

**Slow or paused subscriber.** The high-water marks are finite: beyond them libzmq drops what is
new. Events lost this way are counted; the next repetition of a state makes that one right.

**Commands** (ROUTER, DEALER). `{id, verb, arguments}` → `{id, result | error}`. The server keeps
the replies of the last ids, so that a caller may repeat an id after a timeout and nothing happens
twice. A command nobody answers ends in `TimeoutError` on the caller's side.

**Two copies.** libzmq binds over a living process's path without a word, so an flock on
`<path>.lock` comes first: a second copy waits there until the first is gone, and then takes over.
The wait blocks in the constructor. Build publishers before installing signal handlers that only
set a flag, or a waiting copy cannot be terminated.

**Failures.** Malformed messages are the sender's fault: counted in `rejected`, then ignored. A
publisher that died: its subscribers keep what they have and reconnect by themselves.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import time
import uuid
from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import structlog
import zmq

from bus import topology
from bus.messages import (
    Command,
    Envelope,
    MalformedMessage,
    Reply,
    Topic,
    decode,
    encode,
    from_json,
    to_json,
)

KEPT_EVENTS = 1024
KEPT_REPLIES = 256
HIGH_WATER_MARK = 2 * KEPT_EVENTS
"""Room for a whole replay, with as much again for what happens meanwhile."""
COMMAND_TIMEOUT_MS = 2000
LONGEST_SUBSCRIPTION = 256
"""Bytes that a subscriber may say at once. No topic is longer than 32."""
RECONNECT_MS = 50
DIRECTORY_MODE = 0o1770
"""Several users' sockets in one directory: the group may add, nobody may remove another's."""
SOCKET_MODE = 0o660


_log = structlog.get_logger()


class CommandError(Exception):
    """The owner understood the command and refuses it; the message is for the operator."""


class Later:
    """The answer to a command that is still being worked out."""

    def __init__(self) -> None:
        self.result: dict[str, Any] | None = None
        """Set by the owner when it is there; the next `serve` sends it."""
        self.error: str | None = None
        """Or this: why there will be none."""


Handler = Callable[[str, dict[str, Any]], dict[str, Any] | Later]


class _Endpoint:
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
        _bound(self.socket)
        self._endpoint = _Endpoint(self.socket, path)

    def subscriptions(self) -> list[bytes]:
        """Accept all waiting subscriptions; returns their prefixes."""
        prefixes: list[bytes] = []
        while True:
            try:
                message = self.socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return prefixes
            prefix = message[1:]
            if message[:1] == b"\x01":
                self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
                prefixes.append(prefix)
            elif message[:1] == b"\x00":
                self.socket.setsockopt(zmq.UNSUBSCRIBE, prefix)

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
        self._state_seqs: Counter[Topic] = Counter()
        self._retained: dict[Topic, list[bytes]] = {}
        self._events: deque[list[bytes]] = deque(maxlen=KEPT_EVENTS)
        self._publisher = PublisherSocket(context, path)

    @property
    def poll_socket(self) -> zmq.Socket[bytes]:
        """Readable when somebody subscribes: put it into the poller and call `serve`."""
        return self._publisher.socket

    def publish(self, topic: Topic, data: Any) -> Envelope:
        """Number, keep and send one message; `data` is what `PAYLOADS` says for the topic."""
        envelope = Envelope(
            topic=topic,
            source=self._source,
            host=self._host,
            boot=self.boot,
            seq=self._next_seq(topic),
            time_ms=time.time_ns() // 1_000_000,
            data=data,
        )
        frames = encode(envelope)
        if topic.is_state:
            self._retained[topic] = frames
        else:
            self._events.append(frames)
        self._publisher.send(frames)
        return envelope

    def serve(self) -> None:
        """Accept new subscriptions and replay to them: states first, then events in order."""
        prefixes = tuple(self._publisher.subscriptions())
        if not prefixes:
            return
        for frames in (*self._retained.values(), *self._events):
            if frames[0].startswith(prefixes):
                self._publisher.send(frames)

    def close(self) -> None:
        self._publisher.close()

    def _next_seq(self, topic: Topic) -> int:
        if topic.is_state:
            self._state_seqs[topic] += 1
            return self._state_seqs[topic]
        self._event_seq += 1
        return self._event_seq


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
        self._wanted = {source: frozenset(topics) for source, topics in wanted.items()}
        self._boots: dict[str, str] = {}
        self._last_by_topic: dict[tuple[str, Topic], int] = {}
        self._last_event: dict[str, int] = {}
        self.socket: zmq.Socket[bytes] = context.socket(zmq.SUB)
        _bound(self.socket)
        for prefix in self._prefixes():
            self.socket.setsockopt(zmq.SUBSCRIBE, prefix)
        for source in wanted:
            self.socket.connect(f"ipc://{topology.publisher_path(run_dir, source)}")

    def receive(self) -> list[Envelope]:
        """Everything that has come and was not seen before; never blocks."""
        fresh: list[Envelope] = []
        while True:
            try:
                frames = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return fresh
            try:
                envelope = decode(frames)
            except MalformedMessage:
                self.rejected["malformed"] += 1
                continue
            if self._is_wanted(envelope) and self._is_fresh(envelope):
                fresh.append(envelope)

    def close(self) -> None:
        self.socket.close(linger=0)

    def _prefixes(self) -> list[bytes]:
        if any(self._wants_everything(source) for source in self._wanted):
            return [b""]
        return sorted({topic.encode() for topics in self._wanted.values() for topic in topics})

    def _wants_everything(self, source: str) -> bool:
        return self._wanted[source] >= frozenset(topology.PUBLISHES.get(source, ()))

    def _is_wanted(self, envelope: Envelope) -> bool:
        topics = self._wanted.get(envelope.source)
        if topics is None:
            self.rejected["unexpected_source"] += 1
            return False
        # One socket, so one source's subscriptions hold for all: the surplus ends here.
        return envelope.topic in topics

    def _is_fresh(self, envelope: Envelope) -> bool:
        source, topic, seq = envelope.source, envelope.topic, envelope.seq
        if self._boots.get(source) != envelope.boot:
            self._boots[source] = envelope.boot
            self._last_event.pop(source, None)
            for known in [key for key in self._last_by_topic if key[0] == source]:
                del self._last_by_topic[known]
        last = self._last_by_topic.get((source, topic))
        if last is not None and seq <= last:
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


class CommandServer:
    """The ROUTER of the process that owns what the commands change."""

    def __init__(self, context: zmq.Context[Any], path: Path) -> None:
        self.rejected: Counter[str] = Counter()
        self._replies: OrderedDict[str, bytes] = OrderedDict()
        self._working: dict[str, tuple[Later, list[bytes]]] = {}
        """By the command's id: its answer to be, and who wait for it."""
        self.socket: zmq.Socket[bytes] = context.socket(zmq.ROUTER)
        _bound(self.socket)
        self._endpoint = _Endpoint(self.socket, path)

    def serve(self, handler: Handler) -> None:
        """Answer all waiting requests by `handler(verb, arguments)`, and those whose answers have
        come since.

        `CommandError` becomes the error of the reply; any other exception is a fault of ours and
        goes up.
        """
        self._send_finished()
        while True:
            try:
                identity, *body = self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return
            try:
                command = from_json(Command, b"".join(body))
            except MalformedMessage:
                self.rejected["malformed"] += 1
                continue
            self._serve_one(identity, command, handler)

    def _serve_one(self, identity: bytes, command: Command, handler: Handler) -> None:
        if command.id in self._working:
            self._working[command.id][1].append(identity)
            return
        reply = self._replies.get(command.id)
        if reply is None:
            answer = _answer(command, handler)
            if isinstance(answer, Later):
                self._working[command.id] = answer, [identity]
                return
            reply = self._remember(command.id, answer)
        self.socket.send_multipart([identity, reply], zmq.NOBLOCK)

    def _send_finished(self) -> None:
        finished = [
            number
            for number, (later, _) in self._working.items()
            if later.result is not None or later.error is not None
        ]
        for number in finished:
            later, identities = self._working.pop(number)
            reply = self._remember(number, Reply(number, later.result, later.error))
            for identity in identities:
                self.socket.send_multipart([identity, reply], zmq.NOBLOCK)

    def close(self) -> None:
        self._endpoint.close()

    def _remember(self, command_id: str, reply: Reply) -> bytes:
        raw = to_json(reply)
        self._replies[command_id] = raw
        if len(self._replies) > KEPT_REPLIES:
            self._replies.popitem(last=False)
        return raw


def _answer(command: Command, handler: Handler) -> Reply | Later:
    try:
        answer = handler(command.verb, command.arguments)
    except CommandError as error:
        return Reply(command.id, None, str(error))
    return answer if isinstance(answer, Later) else Reply(command.id, answer, None)


def request(
    context: zmq.Context[Any],
    path: Path,
    verb: str,
    arguments: dict[str, Any],
    timeout_ms: int = COMMAND_TIMEOUT_MS,
    *,
    command_id: str | None = None,
) -> dict[str, Any]:
    """Have the owner of `path` execute a command; blocks until the reply or the timeout.

    Raises `CommandError` with the owner's words, or `TimeoutError` if nothing came. To repeat a
    command after a timeout without its being done twice, give both tries the same `command_id`.
    """
    command = Command(command_id or uuid.uuid4().hex, verb, arguments)
    deadline = time.monotonic() + timeout_ms / 1000
    socket: zmq.Socket[bytes] = context.socket(zmq.DEALER)
    _bound(socket)
    try:
        socket.connect(f"ipc://{path}")
        socket.send(to_json(command))
        while (left_ms := int((deadline - time.monotonic()) * 1000)) > 0:
            if not socket.poll(left_ms):
                continue
            reply = from_json(Reply, socket.recv())
            if reply.id != command.id:
                continue
            if reply.error is not None:
                raise CommandError(reply.error)
            return reply.result or {}
    finally:
        socket.close(linger=0)
    raise TimeoutError(f"{verb}: no answer from {path.name} within {timeout_ms} ms")


def _bound(socket: zmq.Socket[bytes]) -> None:
    """What every socket of the bus has: finite queues, quick reconnecting, a close that ends."""
    socket.setsockopt(zmq.SNDHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.RCVHWM, HIGH_WATER_MARK)
    socket.setsockopt(zmq.LINGER, 0)
    socket.setsockopt(zmq.RECONNECT_IVL, RECONNECT_MS)
