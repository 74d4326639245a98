"""When each node must have been heard, by a clock that this process may miss parts of. Pure.

Time is the caller's monotonic clock, and a node was last seen when its beat was *sent*, as
`clock_offset` works out. `due_ms` says when something becomes of a node that is not heard; what
becomes of it is for `silence` to say.

**Our own lag.** If this process was stopped or starved for N ms, `lagged` moves every deadline N ms
later, until the node's next heartbeat: the missing beats may be ours, not the node's. It costs two
numbers: each node remembers the total lag there was when it was last seen (`lag_mark_ms`), and what
has come since is its extension. A beat that was sent before a lag was noticed, and read after it,
has the mark from before, for which the last lags are remembered with their times. When a suspect
is looked at again is a moment of its own, which `lagged` moves as well.

**The heap.** A beat moves a deadline at almost no cost: it writes the node's fields and leaves the
heap alone. An entry that comes up looks the deadline up anew, and goes back if it has moved. There
is one live entry per node (`scheduled_ms`); others are passed over, and swept out when there are
too many. Deadlines close together come up together, since judging one silence among very many nodes
costs as much as judging several.

**Forgetting** is a deadline too: a DOWN node that was not heard for `FORGET_MS` is due to be
forgotten, with its failures; one that has never been UP after `STRANGER_MS`.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterable, Iterator

from services.health.node import Node
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import BANNED, DOWN, SUSPECT

FORGET_MS = 24 * 3_600_000
"""A DOWN node that was ever UP is forgotten so long after it was last heard."""
STRANGER_MS = 10_000
"""One that has never been UP, so long."""
TICK_SPACING_MS = 5
"""Deadlines closer together than this, and 1 ms more for each 250 nodes, are judged together."""
LAGS_REMEMBERED = 64
"""A beat that was sent before even these were noticed has the mark of the oldest of them."""


class Deadlines:
    def __init__(self, policy: Policy, roster: Roster, now_ms: int) -> None:
        self.policy = policy
        self._roster = roster
        self._heap: list[tuple[int, str]] = []
        self._lag_total_ms = 0
        self._lags: deque[tuple[int, int]] = deque(maxlen=LAGS_REMEMBERED)
        """When each lag was noticed, and the total before it."""
        self._ticked_ms = now_ms - TICK_SPACING_MS

    def __len__(self) -> int:
        """How many entries the heap has, live ones and others."""
        return len(self._heap)

    def lagged(self, lag_ms: int, now_ms: int) -> None:
        """This loop was late by `lag_ms`: no node is to be blamed for that time."""
        self._lags.append((now_ms, self._lag_total_ms))
        self._lag_total_ms += lag_ms
        for node in self._roster:
            if node.state is SUSPECT:
                node.suspect_until_ms += lag_ms

    def watch(self, node: Node) -> None:
        """A node that is new here: its time runs from when it was last seen."""
        node.lag_mark_ms = self._lag_total_ms
        self.schedule(node)

    def heard(self, node: Node, sent_ms: int) -> None:
        """A beat of it was sent at `sent_ms`; it may have waited here for long."""
        if sent_ms < node.last_seen_ms:
            return
        node.last_seen_ms = sent_ms
        if not self._lags or self._lags[-1][0] <= sent_ms:
            node.lag_mark_ms = self._lag_total_ms
        else:
            # The total before the first lag that was noticed after it was sent.
            node.lag_mark_ms = next(
                before_ms for noticed_ms, before_ms in self._lags if noticed_ms > sent_ms
            )

    def due_ms(self, node: Node) -> int:
        """When something becomes of the node if it is not heard."""
        extension_ms = self._lag_total_ms - node.lag_mark_ms
        silent_ms = node.last_seen_ms + self.policy.checks_timeout_ms + extension_ms
        if node.state is SUSPECT:
            return node.suspect_until_ms
        if node.state is BANNED:
            return node.ban_until_ms if node.silent else min(node.ban_until_ms, silent_ms)
        if node.state is DOWN and node.silent:
            return node.last_seen_ms + (FORGET_MS if node.was_up else STRANGER_MS)
        return silent_ms

    def late(self, nodes: Iterable[Node], now_ms: int) -> list[Node]:
        """Those of the nodes that have missed a beat, which is well before their deadline."""
        late_ms = now_ms - self.policy.late_ms - self._lag_total_ms
        return [node for node in nodes if node.last_seen_ms - node.lag_mark_ms <= late_ms]

    def schedule(self, node: Node, at_ms: int | None = None) -> None:
        """Have the node come up at `at_ms` (None: when it is due), or sooner if it does anyway."""
        if at_ms is None:
            at_ms = self.due_ms(node)
        if node.scheduled_ms is not None and node.scheduled_ms <= at_ms:
            return
        node.scheduled_ms = at_ms
        heapq.heappush(self._heap, (at_ms, node.id))
        if len(self._heap) > 4 * len(self._roster) + 64:
            self.rebuild()

    def take_due(self, now_ms: int) -> Iterator[Node]:
        """The nodes that are due, one by one; what is scheduled meanwhile may be among them."""
        self._ticked_ms = now_ms
        while self._heap and self._heap[0][0] <= now_ms:
            at_ms, node_id = self._heap[0]
            node = self._roster.get(node_id)
            if node is None or node.scheduled_ms != at_ms:
                heapq.heappop(self._heap)
                continue
            due_ms = self.due_ms(node)
            if due_ms > now_ms:
                node.scheduled_ms = due_ms
                heapq.heapreplace(self._heap, (due_ms, node_id))
            else:
                node.scheduled_ms = None
                heapq.heappop(self._heap)
                yield node

    def next_due_ms(self) -> int | None:
        """When `take_due` may have something; None: never."""
        if not self._heap:
            return None
        spacing_ms = TICK_SPACING_MS + len(self._roster) // 250
        return max(self._heap[0][0], self._ticked_ms + spacing_ms)

    def rebuild(self) -> None:
        """Build the heap anew, from the nodes as they are."""
        for node in self._roster:
            node.scheduled_ms = self.due_ms(node)
        self._heap = [(self.due_ms(node), node.id) for node in self._roster]
        heapq.heapify(self._heap)
