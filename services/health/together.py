"""Failures that come together are nobody's: who failed lately, and whether it is too many. Pure.

When more than half of the nodes of a service that were UP (and at least two) fail within one
`checks_timeout`, in whatever way, the cause is more likely what they share (a release, a database,
this load balancer's own network) than a fault of each. Then none of those failures counts, also not
those that were counted before it came out, nor the bans that followed from them.

How many were UP is found out at the first of several failures and kept for as long as others follow
closely: asking ten thousand nodes at each failure of ten thousand would take too long.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Failure:
    node: str
    service: str = ""
    """The one service of it that failed; empty: the node as a whole."""


class RecentFailures:
    def __init__(self) -> None:
        self._recent: deque[tuple[int, Failure, tuple[str, ...]]] = deque()
        self._of_service: dict[str, dict[Failure, int]] = {}
        """By service, and when."""
        self._were_up: Counter[str] = Counter()
        self._asked_ms = 0
        self._taken_back: set[Failure] = set()
        """Of those that do not count, what `add` has told before."""
        self._doubts: set[Failure] = set()
        """Those that never counted: the node is only in doubt."""

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
            for name, found in self._of_service.items():
                self._were_up[name] += len({each.node for each in found})
        names = tuple(services)
        self._recent.append((now_ms, failure, names))
        said, together = "", dict[Failure, None]()
        for name in names:
            found = self._of_service.setdefault(name, {})
            found[failure] = now_ms
            count = len({each.node for each in found})
            if count >= 2 and 2 * count > self._were_up[name]:
                together |= dict.fromkeys(found)
                said = f"{count} of {self._were_up[name]} nodes of {name} failed together"
        if doubt:
            self._doubts.add(failure)
        before = self._taken_back | self._doubts
        news = [each for each in together if each != failure and each not in before]
        self._taken_back = set(together)
        return said, news

    def _forget(self, until_ms: int) -> None:
        while self._recent and self._recent[0][0] <= until_ms:
            at_ms, failure, names = self._recent.popleft()
            self._doubts.discard(failure)
            for name in names:
                found = self._of_service.get(name, {})
                if found.get(failure) == at_ms:
                    del found[failure]
                if not found:
                    self._of_service.pop(name, None)
