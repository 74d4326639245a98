"""Failures that come together are nobody's: who failed lately, and whether it is too many. Pure.

When more than half of the nodes of a service that were UP (and at least two) fail within one
`checks_timeout`, in whatever way, the cause is more likely what they share (a release, a database,
this load balancer's own network) than a fault of each. Then none of those failures counts, also not
those that were counted before it came out, nor the bans that followed from them.

How many were UP is found out at the first of several failures and kept for as long as others follow
closely: asking ten thousand nodes at each failure of ten thousand would take too long. So would
going through those that failed before: each is told of once, when it turns out not to count.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Failure:
    node: str
    service: str = ""
    """The one service of it that failed; empty: the node as a whole."""


@dataclass(slots=True)
class _AtService:
    """What has failed lately of the nodes of one service."""

    last_ms: dict[Failure, int] = field(default_factory=dict)
    nodes: Counter[str] = field(default_factory=Counter)
    """Of how many of those failures each node is."""
    counting: dict[Failure, None] = field(default_factory=dict)
    """Those of them that counted when they came, in that order."""


class RecentFailures:
    def __init__(self) -> None:
        self._recent: deque[tuple[int, Failure, tuple[str, ...]]] = deque()
        self._of_service: dict[str, _AtService] = {}
        self._counted_ms: dict[Failure, int] = {}
        """Those that count by all that is known until now, and when they came."""
        self._were_up: Counter[str] = Counter()
        self._asked_ms = 0

    def add(
        self,
        failure: Failure,
        services: Iterable[str],
        now_ms: int,
        window_ms: int,
        up_now: Callable[[], Counter[str]],
        *,
        doubt: bool = False,
    ) -> tuple[str, list[Failure]]:
        """A failure that concerns these services, the node being UP until now. `doubt`: it has not
        failed, for it is needed, but is silent like those that have.

        In words, with whom it came together, and which failures, that counted until now, do not
        count either; nothing, if it stands for itself. `up_now`: by service, the nodes that are UP.
        """
        self._forget(now_ms - window_ms)
        if not self._recent or now_ms >= self._asked_ms + window_ms:
            self._asked_ms = now_ms
            self._were_up = up_now()
            for name, at in self._of_service.items():
                self._were_up[name] += len(at.nodes)
        names = tuple(services)
        self._recent.append((now_ms, failure, names))
        self._counted_ms.pop(failure, None)
        said, together = "", dict[Failure, None]()
        for name in names:
            at = self._of_service.setdefault(name, _AtService())
            at.nodes[failure.node] += failure not in at.last_ms
            at.last_ms[failure] = now_ms
            count = len(at.nodes)
            if count >= 2 and 2 * count > self._were_up[name]:
                together |= at.counting
                at.counting.clear()
                said = f"{count} of {self._were_up[name]} nodes of {name} failed together"
        news = [each for each in together if self._counted_ms.pop(each, None) is not None]
        if not (said or doubt):
            self._counted_ms[failure] = now_ms
            for name in names:
                self._of_service[name].counting[failure] = None
        return said, news

    def _forget(self, until_ms: int) -> None:
        while self._recent and self._recent[0][0] <= until_ms:
            at_ms, failure, names = self._recent.popleft()
            if self._counted_ms.get(failure) == at_ms:
                del self._counted_ms[failure]
            for name in names:
                self._leave(name, failure, at_ms)

    def _leave(self, name: str, failure: Failure, at_ms: int) -> None:
        """The failure is no recent one of the service any more, unless it came again since."""
        at = self._of_service.get(name)
        if at is None or at.last_ms.get(failure) != at_ms:
            return
        del at.last_ms[failure]
        at.counting.pop(failure, None)
        at.nodes[failure.node] -= 1
        if not at.nodes[failure.node]:
            del at.nodes[failure.node]
        if not at.last_ms:
            del self._of_service[name]
