"""Very many agents in few processes: real sockets, hellos and beats, and nothing behind them.

    python -m e2e.bench.agents LB:PORT FIRST COUNT INTERVAL_MS [KEYS]

Agent number i calls itself `node-i` and comes from an address of its own, 10.90.0.0/16 being this
machine's. Its first beat follows its hello; those after it are spread evenly over the interval.
Of what the LB says, only a refusal is heeded, by another hello. The sockets have an agent's own
options. KEYS is what `make_keys` has written: the LB's key, and then each agent's own two.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import Any

import zmq

from bus import keys, tcp
from bus.node_protocol import NODE_VERSION, Heartbeat, Hello, encode_node
from bus.states import NodeService
from bus.words import ServingStatus

NETWORK = "10.90.0.0/16"
HELLOS_A_SECOND = 500
LARGEST_FRAME = 1 << 20


def address_of(number: int) -> str:
    """The source address of an agent: all differ, and none ends in 0 or 255."""
    return f"10.90.{number // 200}.{1 + number % 200}"


def make_keys(directory: Path, count: int) -> Path:
    """Keys of an LB in `directory`, that admit so many agents; returns the file for these."""
    lb = keys.make_own(directory)
    if lb is None:
        raise FileExistsError(directory)
    lines = [lb.public]
    for number in range(count):
        public, secret = zmq.curve_keypair()
        (directory / keys.NODES / f"node-{number}{keys.SUFFIX}").write_bytes(public)
        lines.append(public + b" " + secret)
    path = directory / "agents"
    path.write_bytes(b"\n".join(lines))
    return path


def _credentials(path: str, first: int, count: int) -> list[tcp.Credentials | None]:
    if not path:
        return [None] * count
    lb, *lines = Path(path).read_bytes().split(b"\n")
    pairs = (keys.Pair(*line.split()) for line in lines[first : first + count])
    return [tcp.Credentials(pair, lb) for pair in pairs]


def main() -> None:
    endpoint, first, count, interval_ms = sys.argv[1], *map(int, sys.argv[2:5])
    known = _credentials("".join(sys.argv[5:6]), first, count)
    context: zmq.Context[Any] = zmq.Context()
    context.set(zmq.MAX_SOCKETS, 2 * count + 64)
    agents = [
        _connected(context, endpoint, first + index, credentials)
        for index, credentials in enumerate(known)
    ]
    begin_s = time.monotonic()
    sent = 0
    while True:
        seq, turn = divmod(sent, count)
        due_s = begin_s + (seq * count + turn) * interval_ms / 1000 / count
        if (early_s := due_s - time.monotonic()) > 0:
            time.sleep(early_s)
        if _is_refused(agents[turn]):
            agents[turn].send_multipart(_hello(first + turn))
        agents[turn].send_multipart(_beat(seq + 2))
        sent += 1


def _is_refused(agent: zmq.Socket[bytes]) -> bool:
    """Whether the LB knows nothing of it, as on a connection that was made anew."""
    refused = False
    while agent.poll(0):
        refused = agent.recv_multipart()[0] == b"refused"
    return refused


def _hello(number: int) -> list[bytes]:
    services = (NodeService("default", 8080),)
    return encode_node(Hello(NODE_VERSION, f"node-{number}", "boot", 1, services))


def _beat(seq: int) -> list[bytes]:
    now_ms = int(time.monotonic() * 1000)
    return encode_node(Heartbeat(seq, now_ms, ServingStatus.SERVING, 0.1, ""))


def _connected(
    context: zmq.Context[Any], endpoint: str, number: int, credentials: tcp.Credentials | None
) -> zmq.Socket[bytes]:
    timeout_ms = tcp.FAR_CONNECT_TIMEOUT_MS
    socket = tcp.connecting(context, LARGEST_FRAME, timeout_ms, credentials=credentials)
    socket.setsockopt(zmq.IMMEDIATE, 0)  # the hello waits for the connection
    socket.setsockopt(zmq.RCVHWM, 4)
    socket.connect(f"tcp://{address_of(number)}:0;{endpoint}")
    socket.send_multipart(_hello(number))
    socket.send_multipart(_beat(1))
    time.sleep(1 / HELLOS_A_SECOND)
    return socket


if __name__ == "__main__":
    main()
