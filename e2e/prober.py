"""A client that asks every 5 ms whether a VIP answers, and says for how long it did not.

It runs on the client machine by itself (`python3 -c <this text> HOST PORT ...`), so it needs
nothing but Python's library. `--kind udp` sends a numbered datagram and waits for an answer with
that number in it; `--kind syn` begins a TCP connection, each from a port of its own, and ends it at
once. The schedule is open: nothing waits for an answer. At the first answer it prints `answered`.
When its standard input is closed, or after `--seconds`, it waits for what is still under way and
prints one line of JSON:

    {"sent": 2000, "answered": 1991, "lag_ms": 0.8, "longest_gap_ms": 50.1,
     "gaps": [{"from_ms": 12345.6, "ms": 50.1, "lost": 9}], "answers": {"node-1": 1991}}

A gap is where probes were lost: the time between the moments at which the last one before it and
the first one after it that were answered were *sent*. So what an answer takes on its way counts for
nothing, nor does a program that was held up itself (`lag_ms`: by how much at worst). `from_ms` is
of the machine's monotonic clock. What was lost before the first answer or after the last one is no
gap: it has no end.
"""

from __future__ import annotations

import argparse
import json
import os
import select
import socket
import struct
import sys
import time
from collections import Counter
from itertools import pairwise

PATIENCE_S = 1.0
"""For how long an answer is waited for: less than a SYN's first repetition takes."""
RESET_ON_CLOSE = struct.pack("ii", 1, 0)


class Udp:
    """Datagrams of one socket, so all of one flow."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self._socket.setblocking(False)
        self._address = address
        self._poll = select.poll()
        self._poll.register(self._socket, select.POLLIN)

    def send(self, number: int) -> None:
        try:
            self._socket.sendto(f"probe-{number}".encode(), self._address)
        except OSError:
            return  # no neighbour, no buffer: this probe is lost like any other

    def wait(self, seconds: float) -> list[tuple[int, str]]:
        """Numbers that were answered, and by whom."""
        if not self._poll.poll(max(0.0, seconds) * 1000):
            return []
        found: list[tuple[int, str]] = []
        while True:
            try:
                words = self._socket.recv(2048).decode(errors="replace").split()
            except BlockingIOError:
                return found
            except OSError:
                continue  # an ICMP error about an earlier probe
            if len(words) >= 2 and words[-1].startswith("probe-"):
                found.append((int(words[-1][len("probe-") :]), words[0]))

    def forget(self, number: int) -> None:
        """It is not waited for any more."""


class Syn:
    """TCP connections that are given up as soon as they stand, by RST."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._poll = select.epoll()
        self._open: dict[int, tuple[int, socket.socket]] = {}
        self._by_number: dict[int, int] = {}

    def send(self, number: int) -> None:
        one = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        one.setblocking(False)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET_ON_CLOSE)
        try:
            one.connect_ex(self._address)
        except OSError:
            one.close()
            return
        self._open[one.fileno()] = (number, one)
        self._by_number[number] = one.fileno()
        self._poll.register(one.fileno(), select.EPOLLOUT)

    def wait(self, seconds: float) -> list[tuple[int, str]]:
        found: list[tuple[int, str]] = []
        for fd, _ in self._poll.poll(max(0.0, seconds)):
            number, one = self._open[fd]
            if one.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) == 0:
                found.append((number, "connected"))
            self.forget(number)
        return found

    def forget(self, number: int) -> None:
        fd = self._by_number.pop(number, None)
        if fd is not None:
            _, one = self._open.pop(fd)
            self._poll.unregister(fd)
            one.close()


class Record:
    """When each probe went, and which were answered."""

    def __init__(self) -> None:
        self.sent_s: list[float] = []
        self.answered: set[int] = set()
        self.answers: Counter[str] = Counter()
        self.lag_s = 0.0
        self._given_up = 0

    def take(self, found: list[tuple[int, str]]) -> None:
        now = time.monotonic()
        for number, who in found:
            if number < len(self.sent_s) and now - self.sent_s[number] <= PATIENCE_S:
                if not self.answered:
                    print("answered", flush=True)
                self.answered.add(number)
                self.answers[who] += 1

    def overdue(self) -> list[int]:
        """Probes that are waited for no longer, each given out once."""
        now, begin = time.monotonic(), self._given_up
        while self._given_up < len(self.sent_s):
            if now - self.sent_s[self._given_up] <= PATIENCE_S:
                break
            self._given_up += 1
        return list(range(begin, self._given_up))

    def result(self) -> dict[str, object]:
        gaps = [
            {
                "from_ms": round(self.sent_s[before] * 1000, 1),
                "ms": round((self.sent_s[after] - self.sent_s[before]) * 1000, 1),
                "lost": after - before - 1,
            }
            for before, after in pairwise(sorted(self.answered))
            if after > before + 1
        ]
        return {
            "sent": len(self.sent_s),
            "answered": len(self.answered),
            "lag_ms": round(self.lag_s * 1000, 1),
            "longest_gap_ms": max((gap["ms"] for gap in gaps), default=0.0),
            "gaps": gaps,
            "answers": dict(self.answers),
        }


def input_has_ended() -> bool:
    ready, _, _ = select.select([sys.stdin], [], [], 0)
    return bool(ready) and not os.read(sys.stdin.fileno(), 1)


def run(arguments: argparse.Namespace) -> Record:
    address = (arguments.host, arguments.port)
    probes = Udp(address) if arguments.kind == "udp" else Syn(address)
    record, interval_s = Record(), arguments.interval_ms / 1000
    due = begin = time.monotonic()
    while due - begin < arguments.seconds:
        while (left := due - time.monotonic()) > 0:
            record.take(probes.wait(left))
        now = time.monotonic()
        record.lag_s = max(record.lag_s, now - due)
        record.sent_s.append(now)
        probes.send(len(record.sent_s) - 1)
        for number in record.overdue():
            probes.forget(number)
        due = max(due + interval_s, now)
        if arguments.until_input_ends and input_has_ended():
            break
    end = time.monotonic() + PATIENCE_S
    while (left := end - time.monotonic()) > 0:
        record.take(probes.wait(left))
    return record


def main() -> None:
    parser = argparse.ArgumentParser(description="probes a VIP every few milliseconds")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--kind", choices=("udp", "syn"), default="udp")
    parser.add_argument("--interval-ms", type=float, default=5.0)
    parser.add_argument("--seconds", type=float, default=3600.0)
    parser.add_argument("--until-input-ends", action="store_true")
    arguments = parser.parse_args()
    print(json.dumps(run(arguments).result()), flush=True)


if __name__ == "__main__":
    main()
