"""The LB's own look at its nodes: a TCP connect to each node's address and port.

What an agent says is what it sees on its own machine. Whether this LB can reach the server, only
this LB can find out: each place is connected to once in a round (a `checks_timeout`), and the
connection is closed at once. `Outcome` says what came of it:

* OPEN: connected.
* REFUSED: a RST. Nobody listens there, but the machine lives.
* UNANSWERED: nothing within the timeout, or nobody on the link: no machine, or a firewall.

**What it proves.** Of a TCP service in mode L4 any failure: clients' packets go that very way, so
an agent that says *fine* is not believed. In L2 and L3 the server may listen on the VIP alone, and
a UDP service on no TCP port; there a failure says nothing of the service, and only UNANSWERED says
something of the machine: it confirms the silence of a node that is not heard either.

When which place is looked at, and what is believed of what came of it, is for `places` to say. What
fails on this side (no descriptor, no route) is no outcome. Sockets never block; they stand in one
epoll, whose descriptor the loop polls. No more than `MOST_OPEN` are open.
"""

from __future__ import annotations

import errno
import select
import socket
from dataclasses import dataclass

from services.health.places import Outcome, Places, Spot

MOST_OPEN = 128
LONGEST_MS = 2_000
_UNANSWERED = frozenset({errno.ETIMEDOUT, errno.EHOSTUNREACH, errno.EHOSTDOWN})


@dataclass(slots=True)
class _Attempt:
    spot: Spot
    socket: socket.socket
    deadline_ms: int


class Prober:
    """The sockets. `turn` in every turn of the loop; `fileno` is readable when one is ready."""

    def __init__(self) -> None:
        self.places = Places()
        self._epoll = select.epoll()
        self._attempts: dict[int, _Attempt] = {}

    def fileno(self) -> int:
        return self._epoll.fileno()

    def next_due_ms(self) -> int | None:
        """When `turn` has something to do, unless `fileno` is readable before."""
        moments = [attempt.deadline_ms for attempt in self._attempts.values()]
        if len(moments) < MOST_OPEN and (due_ms := self.places.next_due_ms()) is not None:
            moments.append(due_ms)
        return min(moments, default=None)

    def turn(self, round_ms: int, now_ms: int) -> list[tuple[Spot, Outcome]]:
        """Begin what is due, end what is ready or late; returns what is news."""
        found: list[tuple[Spot, Outcome]] = []
        for descriptor, _ in self._epoll.poll(0):
            attempt = self._attempts[descriptor]
            code = attempt.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            self._end(descriptor, _outcome(code), found)
        for descriptor, attempt in list(self._attempts.items()):
            if now_ms >= attempt.deadline_ms:
                self._end(descriptor, Outcome.UNANSWERED, found)
        room = MOST_OPEN - len(self._attempts)
        for spot in self.places.take_due(room, round_ms, now_ms) if room else ():
            self._begin(spot, now_ms + min(round_ms, LONGEST_MS), found)
        return found

    def close(self) -> None:
        for attempt in self._attempts.values():
            attempt.socket.close()
        self._epoll.close()

    def _begin(self, spot: Spot, deadline_ms: int, found: list[tuple[Spot, Outcome]]) -> None:
        try:
            opened = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError:
            return  # no descriptor left: nobody's fault but ours
        descriptor = opened.fileno()
        self._attempts[descriptor] = _Attempt(spot, opened, deadline_ms)
        self._epoll.register(descriptor, select.EPOLLOUT | select.EPOLLERR | select.EPOLLHUP)
        code = opened.connect_ex(spot)
        if code != errno.EINPROGRESS:
            self._end(descriptor, _outcome(code), found)

    def _end(
        self, descriptor: int, outcome: Outcome | None, found: list[tuple[Spot, Outcome]]
    ) -> None:
        attempt = self._attempts.pop(descriptor)
        self._epoll.unregister(descriptor)
        attempt.socket.close()
        news = self.places.found(attempt.spot, outcome) if outcome is not None else None
        if news is not None:
            found.append((attempt.spot, news))


def _outcome(code: int) -> Outcome | None:
    """Of a connect that ended with this error; None: it says nothing of the other side."""
    if code == 0:
        return Outcome.OPEN
    if code == errno.ECONNREFUSED:
        return Outcome.REFUSED
    return Outcome.UNANSWERED if code in _UNANSWERED else None
