"""What the API knows: the states and events of the other processes, folded into one picture.

In: every message of the bus (`receive`), who subscribed to the public stream (`subscribed`), time
(`tick`). Out: the public messages to send, already numbered and in the log (`stream.py`); and the
picture itself, `latest` and `processes`, from which `snapshot.py` and `metrics.py` read.

**Which states become public.** The newest value of each state topic is kept. It goes out when there
is a new version of it, when somebody subscribes, and every `STATE_REPEAT_MS`, so that a subscriber
that lost it is right again soon. Ages, remainders and running totals change by themselves all the
time and raise no version: an idle cluster is quiet. A state whose process has been silent since is
not repeated. `state.nodes.` is put together from `state.view.` and `state.checks.` (`observed.py`),
and only the former is news.

**Which events become public.** All, once each. A restarted API is sent the kept events of all
processes again, and most of them went out under its previous boot. `published` says how far that
had come, per process: the shell stores it after sending and hands it in after a restart. What it
covers is not sent again (`catch_up`); `since` finds it in the log, which the restarted process has
from its journal. Not stored in time means sent twice: `origin` in the message tells a subscriber
that cares.

**Failures.** A process that is silent leaves its last state standing with a growing age; nobody
infers anything from silence here except `snapshot.readiness`. A process that restarts has a new
boot: its numbers start over and its pid is unknown until its `process.started.` comes.

Pure: time comes in as monotonic `now_ms`, ages are of receipt and never of wall clocks.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable
from dataclasses import dataclass, replace

from bus.codec import Envelope, Head
from bus.events import ProcessEvent
from bus.states import LocalView, NodesState
from bus.topics import Topic
from bus.words import Whole
from services.api.observed import nodes_state
from services.api.stream import Entry, EventLog

STATE_REPEAT_MS = 5000

PUBLIC_STATES: dict[Topic, Topic] = {
    Topic.STATE_VIEW: Topic.STATE_NODES,
    Topic.STATE_QUORUM: Topic.STATE_QUORUM,
    Topic.STATE_TABLE: Topic.STATE_TABLE,
    Topic.STATE_DATAPLANE: Topic.STATE_DATAPLANE,
}
"""Bus topic to public topic, in the order in which a subscriber is shown them."""


@dataclass(frozen=True, slots=True)
class Received:
    """A state with the moment when it came, or was last said to hold still."""

    envelope: Envelope
    at_ms: int

    def age_ms(self, now_ms: int) -> int:
        """How long nothing has been heard of it."""
        return max(0, now_ms - self.at_ms)

    def content_age_ms(self, now_ms: int) -> int:
        """How long ago its content was right as it stands."""
        return max(0, now_ms - self.envelope.head.made_ms)


@dataclass(frozen=True, slots=True)
class Process:
    """What is known of one of the processes; `pid` 0 and no version until it has said so."""

    boot: str
    heard_ms: int
    pid: int = 0
    version: str = ""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a process's events have gone out: `seq` within `boot`."""

    boot: str
    seq: Whole


@dataclass(slots=True)
class _Shown:
    """The last public message of one state topic."""

    at_ms: int
    head: Head


class Fold:
    """The picture and the stream. `boot` names this life of the API process."""

    def __init__(
        self, boot: str, published: dict[str, Position], earlier: Iterable[Entry] = ()
    ) -> None:
        kept = list(earlier)
        self.log = EventLog(boot, kept)
        self._kept = {_origin(entry.head) for entry in kept}
        self.latest: dict[Topic, Received] = {}
        self.processes: dict[str, Process] = {}
        self.published = dict(published)
        self._shown: dict[Topic, _Shown] = {}

    def catch_up(self, envelopes: Iterable[Envelope], now_ms: int) -> list[Entry]:
        """Fold what the bus re-sent at the start; returns what the previous life had not sent.

        What it had sent is in the log already, from the journal; what is not comes first, so that
        nobody who subscribes from now on sees numbers of messages that are not sent to him. Then
        states, then events.
        """
        fresh: list[Envelope] = []
        for envelope in _merged(envelopes):
            if self._was_published(envelope):
                self._note_process(envelope, now_ms)
                if _origin(envelope.head) not in self._kept:
                    self.log.append(envelope.topic, envelope)
            else:
                fresh.append(envelope)
        fresh.sort(key=lambda envelope: not envelope.topic.is_state)
        return [entry for envelope in fresh for entry in self.receive(envelope, now_ms)]

    def receive(self, envelope: Envelope, now_ms: int) -> list[Entry]:
        """Fold one message of the bus; returns what is to be sent because of it."""
        if self._was_published(envelope):
            return []
        self._note_process(envelope, now_ms)
        if envelope.topic.is_state:
            self.latest[envelope.topic] = Received(envelope, now_ms)
            return [self._show(envelope.topic, now_ms)] if envelope.topic in PUBLIC_STATES else []
        self.published[envelope.source] = Position(envelope.boot, envelope.seq)
        return [self.log.append(envelope.topic, envelope)]

    def repeated(self, heads: Iterable[Head], now_ms: int) -> None:
        """States whose publishers have said that they still hold."""
        for head in heads:
            self._note_heard(head, now_ms)
            known = self.latest.get(head.topic)
            if known is not None and known.envelope.boot == head.boot:
                self.latest[head.topic] = Received(known.envelope, now_ms)

    def subscribed(self, prefixes: Iterable[bytes], now_ms: int) -> list[Entry]:
        """The present state, for whoever has just asked for topics with these prefixes."""
        wanted = tuple(prefixes)
        return [
            self._show(topic, now_ms)
            for topic, public in PUBLIC_STATES.items()
            if topic in self.latest and public.encode().startswith(wanted)
        ]

    def tick(self, now_ms: int) -> list[Entry]:
        """Repeat the states whose last showing is long ago and whose process still speaks."""
        return [
            self._show(topic, now_ms)
            for topic, shown in self._shown.items()
            if now_ms - shown.at_ms >= STATE_REPEAT_MS and self.latest[topic].at_ms > shown.at_ms
        ]

    def _was_published(self, envelope: Envelope) -> bool:
        position = self.published.get(envelope.source)
        return (
            not envelope.topic.is_state
            and position is not None
            and position.boot == envelope.boot
            and envelope.seq <= position.seq
        )

    def _note_process(self, envelope: Envelope, now_ms: int) -> None:
        known = self._note_heard(envelope.head, now_ms)
        if isinstance(envelope.data, ProcessEvent):
            self.processes[envelope.source] = replace(
                known, pid=envelope.data.pid, version=envelope.data.version
            )

    def _note_heard(self, head: Head, now_ms: int) -> Process:
        known = self.processes.get(head.source)
        if known is None or known.boot != head.boot:
            known = Process(head.boot, now_ms)
        self.processes[head.source] = known = replace(known, heard_ms=now_ms)
        return known

    def _show(self, topic: Topic, now_ms: int) -> Entry:
        received = self.latest[topic]
        head, data = received.envelope.head, received.envelope.data
        self._shown[topic] = _Shown(now_ms, head)
        if isinstance(data, LocalView):
            age_ms = received.content_age_ms(now_ms)
            data = self.nodes_state(now_ms)
            # Put together now: so this is when its ages are right.
            head = replace(head, time_ms=head.time_ms + age_ms)
        return self.log.append(PUBLIC_STATES[topic], Envelope(head, data))

    def nodes_state(self, now_ms: int) -> NodesState | None:
        """All that this LB sees of its nodes, as it is now; None: health has not spoken yet."""
        view, checks = self.latest.get(Topic.STATE_VIEW), self.latest.get(Topic.STATE_CHECKS)
        if view is None:
            return None
        return nodes_state(
            view.envelope.data,
            checks.envelope.data if checks is not None else None,
            view.content_age_ms(now_ms),
            checks.content_age_ms(now_ms) if checks is not None else 0,
        )


def _origin(head: Head) -> tuple[str, str, int]:
    return head.source, head.boot, head.seq


def _merged(envelopes: Iterable[Envelope]) -> Iterable[Envelope]:
    """By wall clock for the reader's sake, but each process's messages in their own order."""
    by_source: dict[str, list[Envelope]] = {}
    for envelope in envelopes:
        by_source.setdefault(envelope.source, []).append(envelope)
    return heapq.merge(*by_source.values(), key=lambda envelope: envelope.head.time_ms)
