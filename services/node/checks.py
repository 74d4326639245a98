"""The local checks, as sockets that never block, in the agent's own poll loop.

A check connects to the service's port on this machine, at the address that the load balancers reach
it by (a server that listens on loopback alone serves nobody). Where clients' packets come with the
VIP in them (modes L2 and L3) it asks there instead, once the VIP is an address of this machine:
before, a connection to it would leave the machine, and be answered by some other node. Of several
VIPs each one must be well. What makes it good:

* TCP: the connection is made. A closed port is refused at once; a server that is stuck but listens
  is not found out this way, since the kernel accepts for it.
* HTTP: `GET path` is answered with a status of 2xx or 3xx within the timeout.
* UDP: an empty datagram is not answered by "port unreachable". Silence is good.

Each check starts at its interval, whatever became of the one before; one that has not ended by its
timeout has failed. The same machinery asks, once, whether a load balancer's port refuses
connections, which libzmq does not tell.

A connect to a closed port in the range that the kernel takes source ports from may, once in many
thousand times, meet itself: source and destination are then the same, and the port is closed.
"""

from __future__ import annotations

import errno
import os
import socket
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

import zmq

from services.node.core import CheckKind, CheckPlan

LONGEST_STATUS_LINE = 1_024


class Result(NamedTuple):
    plan: CheckPlan
    good: bool
    reason: str


@dataclass(slots=True)
class _Attempt:
    plan: CheckPlan
    socket: socket.socket
    deadline_ms: int
    port: int
    where: str
    """In words."""
    others: tuple[tuple[str, int], ...] = ()
    """To be asked when this one is well."""
    connected: bool = False
    answer: bytearray = field(default_factory=bytearray)


class Prober:
    """Runs the checks of all plans; the shell polls its sockets and asks for results."""

    def __init__(self, poller: zmq.Poller) -> None:
        self._poller = poller
        self._address = "127.0.0.1"
        self._own: frozenset[str] = frozenset()
        self._next_ms: dict[CheckPlan, int] = {}
        self._attempts: dict[int, _Attempt] = {}
        self._results: list[Result] = []

    def plan(
        self,
        plans: Iterable[CheckPlan],
        address: str,
        now_ms: int,
        own: frozenset[str] = frozenset(),
    ) -> None:
        """From now on run these checks, and no others, against this address, or against those VIPs
        that are among this machine's `own` addresses.
        """
        self._address, self._own = address, own
        self._next_ms = {plan: self._next_ms.get(plan, now_ms) for plan in plans}

    def tick(self, now_ms: int) -> None:
        """Start what is due, end what takes too long."""
        for attempt in [a for a in self._attempts.values() if now_ms >= a.deadline_ms]:
            self._end(attempt, False, _timed_out(attempt))
        for plan, at_ms in self._next_ms.items():
            if now_ms >= at_ms:
                behind_ms = now_ms - at_ms
                self._next_ms[plan] = now_ms + plan.interval_ms - behind_ms % plan.interval_ms
                first, *others = self._places(plan)
                deadline_ms = now_ms + plan.timeout_ms
                self._begin(plan, first, tuple(others), deadline_ms)

    def probe(self, plan: CheckPlan, address: str, now_ms: int) -> None:
        """Start one check now, against any address; its result comes like all others."""
        self._begin(plan, (address, plan.port), (), now_ms + plan.timeout_ms)

    def _places(self, plan: CheckPlan) -> list[tuple[str, int]]:
        fronts = [(vip, port) for vip, port in plan.fronts if vip in self._own]
        return fronts or [(self._address, plan.port)]

    def _begin(
        self,
        plan: CheckPlan,
        place: tuple[str, int],
        others: tuple[tuple[str, int], ...],
        deadline_ms: int,
    ) -> None:
        address, port = place
        kind = socket.SOCK_DGRAM if plan.kind is CheckKind.UDP else socket.SOCK_STREAM
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        try:
            opened = socket.socket(family, kind | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._results.append(Result(plan, False, f"no socket: {error.strerror}"))
            return
        where = f"{address} port {port}" if place in plan.fronts else f"port {port}"
        attempt = _Attempt(plan, opened, deadline_ms, port, where, others)
        self._attempts[opened.fileno()] = attempt
        code = opened.connect_ex((address, port))
        if code not in (0, errno.EINPROGRESS):
            self._end(attempt, False, _refusal(where, code))
        elif plan.kind is CheckKind.UDP:
            self._ask_udp(attempt)
        else:
            self._poller.register(opened.fileno(), zmq.POLLOUT)

    def serve(self, ready: Iterable[int]) -> None:
        """Go on with the checks whose sockets are ready."""
        for descriptor in ready:
            attempt = self._attempts.get(descriptor)
            if attempt is not None:
                try:
                    self._go_on(attempt)
                except OSError as error:
                    self._end(attempt, False, _refusal(attempt.where, error.errno or 0))

    def take_results(self) -> list[Result]:
        results, self._results = self._results, []
        return results

    def next_due_ms(self) -> int | None:
        deadlines = [attempt.deadline_ms for attempt in self._attempts.values()]
        return min([*deadlines, *self._next_ms.values()], default=None)

    def close(self) -> None:
        for attempt in list(self._attempts.values()):
            self._release(attempt)

    def _go_on(self, attempt: _Attempt) -> None:
        opened, plan = attempt.socket, attempt.plan
        if not attempt.connected:
            code = opened.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
            if code or opened.getsockname() == opened.getpeername():
                self._end(attempt, False, _refusal(attempt.where, code or errno.ECONNREFUSED))
                return
            attempt.connected = True
            if plan.kind is CheckKind.TCP:
                self._end(attempt, True, f"{attempt.where} accepts connections")
                return
            opened.send(_request(plan, opened.getpeername()[0], attempt.port))
            self._poller.modify(opened.fileno(), zmq.POLLIN)
            return
        received = opened.recv(LONGEST_STATUS_LINE)
        attempt.answer += received
        line, end, _ = attempt.answer.partition(b"\n")
        if end or not received or len(line) > LONGEST_STATUS_LINE:
            self._end(attempt, *_verdict(attempt, bytes(line)))

    def _ask_udp(self, attempt: _Attempt) -> None:
        # This machine's own "port unreachable" is there when send returns.
        try:
            attempt.socket.send(b"")
            attempt.socket.recv(1)
        except BlockingIOError:
            self._end(attempt, True, f"{attempt.where} is open")
        except OSError as error:
            self._end(attempt, False, _refusal(attempt.where, error.errno or 0))
        else:
            self._end(attempt, True, f"{attempt.where} answers")

    def _end(self, attempt: _Attempt, good: bool, reason: str) -> None:
        self._release(attempt)
        if good and attempt.others:
            place, *others = attempt.others
            self._begin(attempt.plan, place, tuple(others), attempt.deadline_ms)
        else:
            self._results.append(Result(attempt.plan, good, reason))

    def _release(self, attempt: _Attempt) -> None:
        descriptor = attempt.socket.fileno()
        del self._attempts[descriptor]
        if descriptor in self._poller:
            self._poller.unregister(descriptor)
        attempt.socket.close()


def _request(plan: CheckPlan, host: str, port: int) -> bytes:
    lines = (
        f"GET {plan.path} HTTP/1.1",
        f"Host: {host}:{port}",
        "User-Agent: gale-agent",
        "Connection: close",
    )
    return "\r\n".join((*lines, "", "")).encode()


def _verdict(attempt: _Attempt, line: bytes) -> tuple[bool, str]:
    """Whether the first line of an answer is that of a healthy server."""
    asked = f"GET {attempt.plan.path}"
    words = line.split()
    if len(words) < 2 or not words[0].startswith(b"HTTP/") or not words[1].isdigit():
        return False, f"{attempt.where}: the answer to {asked} is not HTTP"
    code = int(words[1][:4])
    return 200 <= code < 400, f"{attempt.where}: {asked} says {code}"


def _refusal(where: str, code: int) -> str:
    return f"{where}: {os.strerror(code).lower()}"


def _timed_out(attempt: _Attempt) -> str:
    plan = attempt.plan
    what = f"no answer to GET {plan.path}" if attempt.connected else "no connection"
    return f"{attempt.where}: {what} within {plan.timeout_ms} ms"
