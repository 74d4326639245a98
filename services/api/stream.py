"""The log of the public event stream: one numbering, every message in it.

**Numbers.** `seq` counts all public messages of one boot of the API process, `topic_seq` those of
one topic; both start at 1. A message gets its numbers once, when it enters the log, and is sent
with them by every way there is: the ZeroMQ endpoint, server-sent events, a JSON page. A state
that is shown to somebody who has just subscribed is no exception: it enters the log as a *new*
message. That is why there are no holes: a subscriber's first message has some number n, the next
one n + 1, whoever else joins meanwhile sees a state repeated under a number of its own.

**Lives.** A restarted API process has a new boot and begins at 1 again. What its earlier lives said
is handed in (`journal.py`) and comes first, under its own boots and numbers: whoever asks for what
followed `(boot, seq)` of any life that is kept gets the rest of that one and then the later ones,
without a hole. A place in the log is counted over all lives (`at`).

**Memory.** The last `KEPT_MESSAGES` stay. States are large and each one replaces the one before;
the NAT log's events (`flow.*`) are large too, and its readers write down what they want to keep. So
together these may take `KEPT_BULKY_BYTES`: beyond that, the oldest lose their data (`data` null,
`superseded` true) and keep their numbers. All others keep their data as long as they are in the
log.

Pure: no clock, no socket.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice

import msgspec
import orjson

from bus.codec import Envelope, Head
from bus.topics import Topic

STREAM_VERSION = 1
KEPT_MESSAGES = 8192
KEPT_BULKY_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Entry:
    """One public message. `data` None: a bulky one, too old to be worth its memory."""

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


@dataclass(frozen=True, slots=True)
class Place:
    """Where in the log something is."""

    at: int
    complete: bool
    """Whether all that followed what was asked for is kept from there on."""


@dataclass(slots=True)
class _Life:
    begins: int
    """The place of its number 1, whether or not that is kept."""
    last_seq: int


class EventLog:
    """Numbers what enters and keeps the newest; `earlier` is what is kept of earlier lives."""

    def __init__(self, boot: str, earlier: Iterable[Entry] = ()) -> None:
        self.boot = boot
        self._topic_seqs: Counter[Topic] = Counter()
        self._entries: deque[Entry] = deque(earlier, KEPT_MESSAGES)
        self._forgotten = 0
        self._lives: dict[str, _Life] = {}
        for at, entry in enumerate(self._entries):
            life = self._lives.setdefault(entry.boot, _Life(at + 1 - entry.seq, 0))
            life.last_seq = entry.seq
        self._own = self._lives[boot] = _Life(len(self._entries), 0)
        self._entries = deque(self._entries)
        self._bulky_places: deque[int] = deque()
        """The bulky ones that still have their data, oldest first."""
        self._bulky_bytes = 0

    @property
    def last_seq(self) -> int:
        return self._own.last_seq

    @property
    def first_seq(self) -> int:
        """The oldest number of this life that is kept; `last_seq + 1` while there is none."""
        return max(1, self._forgotten - self._own.begins + 1)

    @property
    def end(self) -> int:
        """The place of what comes next."""
        return self._forgotten + len(self._entries)

    def append(self, topic: Topic, envelope: Envelope) -> Entry:
        """Number `envelope` as the next public message, under a public topic."""
        self._own.last_seq += 1
        self._topic_seqs[topic] += 1
        entry = Entry(
            seq=self._own.last_seq,
            topic_seq=self._topic_seqs[topic],
            boot=self.boot,
            head=envelope.head,
            topic=topic,
            data=msgspec.json.encode(envelope.data),
        )
        if topic.is_bulky:
            self._bulky_places.append(self.end)
            self._bulky_bytes += len(entry.data or b"")
        self._entries.append(entry)
        self._trim()
        return entry

    def find(self, boot: str, seq: int) -> Place:
        """The place behind number `seq` of a life; of one that is unknown, the oldest there is."""
        life = self._lives.get(boot)
        if life is None:
            return Place(self._forgotten, complete=False)
        at = life.begins + min(seq, life.last_seq)
        kept = at >= self._forgotten and seq <= life.last_seq
        return Place(max(at, self._forgotten), complete=kept)

    def behind(self, entry: Entry) -> int:
        """The place behind a message that was in the log a moment ago."""
        return self.find(entry.boot, entry.seq).at

    def after(self, at: int, limit: int = KEPT_MESSAGES) -> list[Entry]:
        """What is kept from a place on, oldest first."""
        left = min(max(0, self.end - at), len(self._entries))
        # From the end: who asks has mostly read all but the last few of thousands.
        newest_first = list(islice(reversed(self._entries), left))
        return newest_first[::-1][:limit]

    def _trim(self) -> None:
        while self._bulky_bytes > KEPT_BULKY_BYTES and len(self._bulky_places) > 1:
            self._empty(self._bulky_places[0])
        while len(self._entries) > KEPT_MESSAGES:
            if self._bulky_places and self._bulky_places[0] == self._forgotten:
                self._empty(self._forgotten)
            left = self._entries.popleft()
            self._forgotten += 1
            if self._entries[0].boot != left.boot and left.boot != self.boot:
                del self._lives[left.boot]

    def _empty(self, at: int) -> None:
        index = at - self._forgotten
        entry = self._entries[index]
        self._bulky_bytes -= len(entry.data or b"")
        self._entries[index] = replace(entry, data=None)
        self._bulky_places.popleft()
