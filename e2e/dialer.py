"""A client that opens connections, thousands a second, and says what became of them.

It runs on the client machine by itself (`python3 -c <this text> HOST PORT ...`), so it needs
nothing but Python's library. On each connection it sends one HTTP request and reads until the
server closes, so that the server's side keeps the port in TIME_WAIT, as with any server that closes
first. At its end it prints one line of JSON:

    {"opened": 3700, "seconds": 1.0, "errors": {"reset": 1}, "slow": 3,
     "connect_ms": [0.2, 0.9, 1020.1], "total_ms": [0.4, 1.3, 1020.3], "lag_ms": [0.3, 1.0, 2.2],
     "worst": [{"sent_ms": 12.5, "connect_ms": 1020.1, "total_ms": 1020.3, "error": ""}]}

The triples are median, 99th percentile and largest. `slow` counts connections that ended well but
took longer than `--slow-ms` in all; `worst` has the longest of those and of the failed.

The schedule is open: a connection that is held up does not hold back the next. `lag_ms` is how
late the program itself was in opening each, so that a reader can tell a slow rig from a slow
service; up to a millisecond is the resolution of its timer. After more than a tenth of a second
it goes on from where it is, since to catch up would be to measure a burst.

One thread on epoll, edge-triggered, with nothing collected or printed meanwhile: a connection costs
it some 50 µs.
"""

from __future__ import annotations

import argparse
import errno
import gc
import json
import resource
import select
import socket
import time
from array import array
from collections import Counter, deque

LONG_LAG_S = 0.1
WORST = 20
EVENTS = select.EPOLLIN | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Connection:
    """One connection; times are monotonic seconds, 0 for what has not happened yet."""

    __slots__ = ("answered", "connected", "ended", "error", "sent", "socket")

    def __init__(self, sent: float, own_socket: socket.socket) -> None:
        self.sent = sent
        self.socket = own_socket
        self.connected = self.ended = 0.0
        self.answered = False
        self.error = ""


def describe(error: OSError) -> str:
    names = {
        errno.ECONNREFUSED: "refused",
        errno.ECONNRESET: "reset",
        errno.EPIPE: "reset",
        errno.ETIMEDOUT: "timeout",
        errno.EADDRNOTAVAIL: "no port left",
    }
    return names.get(error.errno or 0) or errno.errorcode.get(error.errno or 0, str(error))


class Dialer:
    """The connections under way, and what became of the others."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.address = (socket.gethostbyname(arguments.host), arguments.port)
        request = f"GET / HTTP/1.1\r\nHost: {arguments.host}\r\nConnection: close\r\n\r\n"
        self.request = request.encode()
        self.timeout, self.slow = arguments.timeout, arguments.slow_ms / 1e3
        self.poll = select.epoll()
        self.under_way: dict[int, Connection] = {}
        self.in_order: deque[Connection] = deque()
        self.start = time.monotonic()
        self.connects, self.totals, self.lags = array("d"), array("d"), array("d")
        self.errors: Counter[str] = Counter()
        self.remarkable: list[Connection] = []

    def open(self, due: float) -> None:
        now = time.monotonic()
        self.lags.append(now - due)
        try:
            own = socket.socket(socket.AF_INET, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self.errors[describe(error)] += 1
            return
        connection = Connection(now, own)
        self.under_way[own.fileno()] = connection
        self.in_order.append(connection)
        code = own.connect_ex(self.address)
        if code in (0, errno.EINPROGRESS):
            self.poll.register(own, EVENTS)
        else:
            self.end(connection, describe(OSError(code, "")))

    def end(self, connection: Connection, error: str = "") -> None:
        connection.ended = time.monotonic()
        connection.error = error
        del self.under_way[connection.socket.fileno()]
        connection.socket.close()
        took = connection.ended - connection.sent
        if error:
            self.errors[error] += 1
        else:
            self.connects.append(connection.connected - connection.sent)
            self.totals.append(took)
        if error or took > self.slow:
            self.remarkable.append(connection)

    def handle(self, connection: Connection, events: int) -> None:
        try:
            if not connection.connected and events & select.EPOLLOUT:
                connection.socket.send(self.request)
                connection.connected = time.monotonic()
            if events & (select.EPOLLIN | select.EPOLLERR | select.EPOLLHUP):
                while data := connection.socket.recv(4096):
                    if not connection.answered:
                        connection.answered = b" 200 " in data[:16]
                self.end(connection, "" if connection.answered else "no answer")
        except BlockingIOError:
            return
        except OSError as error:
            self.end(connection, describe(error))

    def turn(self, wait_s: float) -> None:
        """Whatever has happened, or will within that time."""
        for descriptor, events in self.poll.poll(max(wait_s, 0), 64):
            connection = self.under_way.get(descriptor)
            if connection is not None:
                self.handle(connection, events)
        given_up = time.monotonic() - self.timeout
        while self.in_order and (self.in_order[0].ended or self.in_order[0].sent < given_up):
            connection = self.in_order.popleft()
            if not connection.ended:
                self.end(connection, "timeout")

    def run(self, rate: float, seconds: float) -> None:
        due, number = self.start, 0
        while number < rate * seconds:
            now = time.monotonic()
            if now - due > LONG_LAG_S:
                self.lags.append(now - due)
                due = now
            while due <= now and number < rate * seconds:
                self.open(due)
                number += 1
                due += 1 / rate
            self.turn(due - time.monotonic())
        while self.under_way:
            self.turn(0.05)

    def outcome(self) -> dict[str, object]:
        worst = sorted(self.remarkable, key=lambda one: one.sent - one.ended)[:WORST]
        return {
            "opened": len(self.totals) + self.errors.total(),
            "seconds": round(time.monotonic() - self.start, 3),
            "errors": dict(self.errors),
            "slow": sum(not one.error for one in self.remarkable),
            "connect_ms": summary(self.connects),
            "total_ms": summary(self.totals),
            "lag_ms": summary(self.lags),
            "worst": [
                {
                    "sent_ms": milliseconds(one.sent - self.start),
                    "connect_ms": milliseconds(max(one.connected - one.sent, 0)),
                    "total_ms": milliseconds(one.ended - one.sent),
                    "error": one.error,
                }
                for one in worst
            ],
        }


def milliseconds(seconds: float) -> float:
    return round(seconds * 1e3, 2)


def summary(times: array[float]) -> list[float]:
    """Median, 99th percentile, largest, in milliseconds."""
    ordered = sorted(times) or [0.0]
    return [milliseconds(ordered[int(share * (len(ordered) - 1))]) for share in (0.5, 0.99, 1)]


def main() -> None:
    parser = argparse.ArgumentParser(description="new connections at a steady rate")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--rate", type=float, default=1000.0, help="a second")
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--slow-ms", type=float, default=200.0)
    parser.add_argument("--timeout", type=float, default=10.0, help="seconds")
    arguments = parser.parse_args()
    gc.disable()
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    dialer = Dialer(arguments)
    dialer.run(arguments.rate, arguments.seconds)
    print(json.dumps(dialer.outcome()), flush=True)


if __name__ == "__main__":
    main()
