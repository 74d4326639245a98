"""A client that holds flows to the lab's echo or udp service, and says what becomes of each.

It runs on the client machine by itself (`python3 -c <this text> HOST PORT ...`), so it needs
nothing but Python's library. It opens `--count` connections (`--udp`: connected sockets), asks each
who serves it, and prints lines of JSON from then on:

    {"event": "open", "nodes": ["node-0", ...], "ports": [40112, ...]}      all are open
    {"event": "ended", "number": 3, "how": "reset", "at_ms": 1700000000000.1}
    {"event": "moved", "number": 0, "node": "node-1", "at_ms": ...}         UDP: another one answers
    {"event": "refused", "number": 0, "at_ms": ...}                         UDP: port unreachable
    {"event": "asked", "echoed": 12, "silent": [4]}                         the answer to `ask`
    {"event": "done", "lag_ms": 3.1}                                        its input has ended

Without `--every-ms` it only waits, as a client does that has asked something long ago. The line
`ask` on its input makes it send something on each flow that has not ended, and wait for the echoes.
With `--every-ms` each flow sends all the time.

`at_ms` is the time of day, in milliseconds since 1970, so that it can be compared with what an LB
says of its own events. `lag_ms` is the longest time by which the program itself was late.
"""

from __future__ import annotations

import argparse
import errno
import json
import select
import socket
import sys
import time

TURN_S = 0.005
CONNECT_S = 10.0
ANSWER_S = 10.0
ASK_AGAIN_S = 0.5
"""A datagram may be lost, and nobody but us sends it again."""


class Flow:
    """One connection, or one socket that datagrams go out by."""

    def __init__(self, number: int, own_socket: socket.socket) -> None:
        self.number = number
        self.socket = own_socket
        self.node = ""
        self.rest = b""
        self.heard = b""
        self.ended = False

    def send(self, text: bytes) -> None:
        self.socket.send(text + b"\n")


def say(event: str, **facts: object) -> None:
    print(json.dumps({"event": event, **facts}), flush=True)


def now_ms() -> float:
    return round(time.time() * 1e3, 1)


def describe(error: OSError) -> str:
    names = {errno.ECONNRESET: "reset", errno.EPIPE: "reset", errno.ETIMEDOUT: "timeout"}
    return names.get(error.errno or 0) or errno.errorcode.get(error.errno or 0, str(error))


class Holder:
    """All flows, and what is said of them."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self.udp: bool = arguments.udp
        self.every_s: float = arguments.every_ms / 1e3
        self.poll = select.poll()
        self.flows: dict[int, Flow] = {}
        self.asks = 0
        self.sent = 0
        self.lag_s = 0.0

    # ------------------------------------------------------------------ opening

    def open(self, host: str, port: int, count: int, source_port: int, spare: int) -> None:
        kind = socket.SOCK_DGRAM if self.udp else socket.SOCK_STREAM
        while (number := len(self.flows)) < count:
            own = socket.socket(socket.AF_INET, kind)
            own.settimeout(CONNECT_S)
            if source_port:
                own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                own.bind(("", source_port + number))
            try:
                own.connect((host, port))
            except TimeoutError:
                own.close()
                if not spare:
                    raise
                spare -= 1
                continue
            flow = Flow(number, own)
            if self.udp:
                flow.send(b"who")
            flow.node = own.recv(4096).split()[0].decode()
            own.setblocking(False)
            self.flows[own.fileno()] = flow
            self.poll.register(own, select.POLLIN)
        flows = self.flows.values()
        ports = [flow.socket.getsockname()[1] for flow in flows]
        say("open", nodes=[flow.node for flow in flows], ports=ports)

    @property
    def living(self) -> list[Flow]:
        return [flow for flow in self.flows.values() if not flow.ended]

    # ------------------------------------------------------------------ what comes

    def take(self, flow: Flow) -> None:
        try:
            while True:
                data = flow.socket.recv(65536)
                if self.udp:
                    self.take_datagram(flow, data)
                elif data:
                    *lines, flow.rest = (flow.rest + data).split(b"\n")
                    flow.heard = lines[-1] if lines else flow.heard
                else:
                    self.end(flow, "closed")
                    return
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(flow, error)

    def take_datagram(self, flow: Flow, data: bytes) -> None:
        name, _, flow.heard = data.strip().partition(b" ")
        if name.decode() != flow.node:
            flow.node = name.decode()
            say("moved", number=flow.number, node=flow.node, at_ms=now_ms())

    def fail(self, flow: Flow, error: OSError) -> None:
        if self.udp:
            say("refused", number=flow.number, at_ms=now_ms())
        else:
            self.end(flow, describe(error))

    def end(self, flow: Flow, how: str) -> None:
        flow.ended = True
        say("ended", number=flow.number, how=how, at_ms=now_ms())
        self.poll.unregister(flow.socket)
        flow.socket.close()

    # ------------------------------------------------------------------ what goes

    def send(self, flow: Flow, text: bytes) -> None:
        try:
            flow.send(text)
        except BlockingIOError:
            return
        except OSError as error:
            self.fail(flow, error)

    def ask(self) -> None:
        """Once more for all; UDP once more for whoever is silent."""
        self.asks += 1
        text = b"ask %d" % self.asks
        asked = self.living
        for flow in asked:
            self.send(flow, text)
        deadline = time.monotonic() + ANSWER_S
        again = time.monotonic() + ASK_AGAIN_S
        silent = asked
        while silent and time.monotonic() < deadline:
            self.turn(TURN_S)
            silent = [flow for flow in silent if not flow.ended and flow.heard != text]
            if self.udp and time.monotonic() > again:
                again += ASK_AGAIN_S
                for flow in silent:
                    self.send(flow, text)
        echoed = sum(flow.heard == text for flow in asked)
        say("asked", echoed=echoed, silent=[flow.number for flow in silent])

    def turn(self, wait_s: float) -> list[int]:
        """Whatever has come; the descriptors that are no flow's."""
        others = []
        for descriptor, _ in self.poll.poll(wait_s * 1e3):
            flow = self.flows.get(descriptor)
            if flow is None:
                others.append(descriptor)
            elif not flow.ended:
                self.take(flow)
        return others

    def run(self) -> None:
        self.poll.register(sys.stdin, select.POLLIN)
        turn_due = send_due = time.monotonic()
        while True:
            if self.turn(max(turn_due - time.monotonic(), 0)):
                words = sys.stdin.readline()
                if not words:
                    break
                self.ask()
                turn_due = time.monotonic()
            now = time.monotonic()
            if now >= turn_due:
                self.lag_s = max(self.lag_s, now - turn_due)
                turn_due = now + TURN_S
            if self.every_s and now >= send_due:
                send_due = now + self.every_s
                self.sent += 1
                for flow in self.living:
                    self.send(flow, b"%d" % self.sent)
        say("done", lag_ms=round(self.lag_s * 1e3, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description="flows that stay")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--udp", action="store_true")
    parser.add_argument("--every-ms", type=float, default=0.0)
    parser.add_argument("--source-port", type=int, default=0, help="the first flow's own port")
    parser.add_argument("--spare", type=int, default=0, help="so many may find no place")
    arguments = parser.parse_args()
    holder = Holder(arguments)
    own_port, spare = arguments.source_port, arguments.spare
    holder.open(arguments.host, arguments.port, arguments.count, own_port, spare)
    holder.run()


if __name__ == "__main__":
    main()
