"""The log of the public event stream: one numbering, every message in it.

**Numbers.** `seq` counts all public messages of one boot of the API process, `topic_seq` those of
one topic; both start at 1. A message gets its numbers once, when it enters the log, and is sent
with them by every way there is: the ZeroMQ endpoint, server-sent events, a JSON page. A state
that is shown to somebody who has just subscribed is no exception: it enters the log as a *new*
message. That is why there are no holes: a subscriber's first message has some number n, the next
one n + 1, whoever else joins meanwhile sees a state repeated under a number of its own.

**Memory.** The last `KEPT_MESSAGES` stay. States are large and each one replaces the one before,
so together they may take `KEPT_STATE_BYTES`: beyond that, the oldest lose their data (`data` null,
`superseded` true) and keep their numbers. Events keep their data as long as they are in the log.

Pure: no clock, no socket.
"""

from __future__ import annotations

from collections import Counter, deque
from dataclasses import dataclass, replace
from itertools import islice

import orjson

from bus.codec import Envelope, Head
from bus.topics import Topic

STREAM_VERSION = 1
KEPT_MESSAGES = 8192
KEPT_STATE_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One public message. `data` None: a state too old to be worth its memory."""

    seq: int
    topic_seq: int
    boot: str
    head: Head
    """Of what it was made of."""
    topic: Topic
    data: bytes | None

    @property
    def body(self) -> bytes:
        """The second frame on the wire, and the JSON object of the HTTP stream."""
        origin = self.head
        message = {
            "v": STREAM_VERSION,
            "topic": self.topic,
            "seq": self.seq,
            "topic_seq": self.topic_seq,
            "boot": self.boot,
            "host": origin.host,
            "source": origin.source,
            "time_ms": origin.time_ms,
            "origin": {"boot": origin.boot, "seq": origin.seq},
        }
        if self.data is None:
            return orjson.dumps(message | {"data": None, "superseded": True})
        return orjson.dumps(message | {"data": orjson.Fragment(self.data)})


class EventLog:
    """Numbers what enters and keeps the newest."""

    def __init__(self, boot: str) -> None:
        self.boot = boot
        self.last_seq = 0
        self._topic_seqs: Counter[Topic] = Counter()
        self._entries: deque[Entry] = deque()
        self._state_seqs: deque[int] = deque()
        """The states that still have their data, oldest first."""
        self._state_bytes = 0

    @property
    def first_seq(self) -> int:
        """The oldest number that is kept; `last_seq + 1` while there is none."""
        return self.last_seq + 1 - len(self._entries)

    def append(self, topic: Topic, envelope: Envelope) -> Entry:
        """Number `envelope` as the next public message, under a public topic."""
        self.last_seq += 1
        self._topic_seqs[topic] += 1
        entry = Entry(
            seq=self.last_seq,
            topic_seq=self._topic_seqs[topic],
            boot=self.boot,
            head=envelope.head,
            topic=topic,
            data=orjson.dumps(envelope.data),
        )
        self._entries.append(entry)
        if topic.is_state:
            self._state_seqs.append(entry.seq)
            self._state_bytes += len(entry.data or b"")
        self._trim()
        return entry

    def after(self, seq: int, limit: int = KEPT_MESSAGES) -> list[Entry]:
        """What is kept of the messages that follow number `seq`, oldest first."""
        skipped = min(max(0, seq + 1 - self.first_seq), len(self._entries))
        return list(islice(self._entries, skipped, skipped + limit))

    def _trim(self) -> None:
        while self._state_bytes > KEPT_STATE_BYTES and len(self._state_seqs) > 1:
            self._empty(self._state_seqs[0])
        while len(self._entries) > KEPT_MESSAGES:
            if self._state_seqs and self._state_seqs[0] == self._entries[0].seq:
                self._empty(self._state_seqs[0])
            self._entries.popleft()

    def _empty(self, seq: int) -> None:
        index = seq - self.first_seq
        entry = self._entries[index]
        self._state_bytes -= len(entry.data or b"")
        self._entries[index] = replace(entry, data=None)
        self._state_seqs.popleft()
