"""Notes of the programs, kept until they are due. Pure.

A note says that something has become of the flow at a place of the table (bpf/kernel/notes.h). That
a flow is established is told only `HOLD_MS` later: most connections of a busy service are over by
then, and need not be told at all. That it is over, or renewed, is told at once.

What is told is read from the table when it is due, so it is the newest there is; and a flow that is
over by then is told as such, by its own note.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

HOLD_MS = 50
OPENED, CLOSED, RENEWED = 1, 2, 3

_KIND_SHIFT, _OLD_SHIFT = np.uint64(32), np.uint64(40)
_BYTE, _PLACE = np.uint64(0xFF), np.uint64(0xFFFF_FFFF)


@dataclass(frozen=True, slots=True, eq=False)
class Due:
    """Places whose flows are to be told now; all arrays have one element for each."""

    places: NDArray[np.intp]
    is_old: NDArray[np.bool_]
    """In the table before this one."""
    kinds: NDArray[np.uint8]
    """`OPENED`, `CLOSED` or `RENEWED`."""
    since_ms: int
    """When the oldest of them came to be told."""

    @property
    def closes(self) -> NDArray[np.bool_]:
        """What is told is an end; otherwise, a life."""
        closes: NDArray[np.bool_] = self.kinds == CLOSED
        return closes

    @property
    def only_opened(self) -> Due:
        return self._only(self.kinds == OPENED)

    @property
    def only_closed(self) -> Due:
        return self._only(self.closes)

    def _only(self, chosen: NDArray[np.bool_]) -> Due:
        return Due(self.places[chosen], self.is_old[chosen], self.kinds[chosen], self.since_ms)


class Held:
    """What is not due yet, in the order it came."""

    def __init__(self) -> None:
        self._opened: deque[tuple[int, NDArray[np.uint64]]] = deque()
        self._urgent: deque[tuple[int, NDArray[np.uint64]]] = deque()

    def add(self, words: NDArray[np.uint64], now_ms: int) -> None:
        """Notes as the ring has them."""
        if not len(words):
            return
        is_opened = (words >> _KIND_SHIFT) & _BYTE == OPENED
        for held, chosen, due_ms in (
            (self._opened, is_opened, now_ms + HOLD_MS),
            (self._urgent, ~is_opened, now_ms),
        ):
            some = words[chosen]
            if len(some):
                held.append((due_ms, some))

    def take(self, now_ms: int) -> Due | None:
        """What is due; of one flow, what was noted last comes last."""
        taken = []
        for held in (self._opened, self._urgent):
            while held and held[0][0] <= now_ms:
                taken.append(held.popleft())
        if not taken:
            return None
        words = np.concatenate([words for _, words in taken])
        return Due(
            places=(words & _PLACE).astype(np.intp),
            is_old=(words >> _OLD_SHIFT) & _BYTE != 0,
            kinds=((words >> _KIND_SHIFT) & _BYTE).astype(np.uint8),
            since_ms=min(due_ms for due_ms, _ in taken),
        )

    @property
    def next_ms(self) -> int | None:
        """When something is due; None: nothing is held."""
        moments = [held[0][0] for held in (self._opened, self._urgent) if held]
        return min(moments, default=None)
