"""When a node was last alive, by two clocks that nobody has set to the same time.

A heartbeat carries `sent_ms`, a point of the agent's monotonic clock; it is read here at some
`received_ms` of ours, later than it arrived if this process was paused or busy. What is wanted is
the moment it was *sent*, on our clock. `received - sent` is the difference of the clocks plus the
delay of that one beat, so its minimum over many beats is the difference plus the smallest delay:

    offset = min(received - sent)          last seen = min(now, sent + offset)

A beat that lay in a queue for ten seconds thus counts as ten seconds old: it cannot revive a dead
node; and the newest of the beats that queued up during a pause proves that the node lived through
it.

The clocks drift apart (by 500 parts per million while a machine is being steered by NTP), so a
minimum taken for ever would age: each day would move it by up to 43 s. The minimum is taken over
the current window and the one before, between one and two `WINDOW_MS`, which bounds the error to
60 ms. One window passes at a time, however long this process was paused: the minimum from before
the pause is still there when the queue is read.

An agent that starts anew has a new clock (`boot`), hence a new offset.
"""

from __future__ import annotations

from dataclasses import dataclass

WINDOW_MS = 60_000


@dataclass(slots=True)
class ClockOffset:
    """The agent's clock against ours, for one node and one boot of its agent."""

    boot: str
    _current_ms: int | None = None
    _previous_ms: int | None = None
    _window_start_ms: int = 0

    def sent_on_our_clock(self, sent_ms: int, received_ms: int) -> int:
        """When the beat was sent, in our milliseconds; never later than it was received."""
        sample = received_ms - sent_ms
        if self._current_ms is None or received_ms - self._window_start_ms >= WINDOW_MS:
            self._previous_ms = self._current_ms
            self._current_ms = sample
            self._window_start_ms = received_ms
        elif sample < self._current_ms:
            self._current_ms = sample
        offset = self._current_ms
        if self._previous_ms is not None and self._previous_ms < offset:
            offset = self._previous_ms
        return min(received_ms, sent_ms + offset)
