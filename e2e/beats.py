"""Listens to the dataplane's beat, on the LB: whether its loop stands still.

It runs by itself (`python3 -c <this text>`) with the LB's environment and pyzmq. Every half second
at the latest the dataplane publishes its state. At the end of its input it prints how many states
came, the longest time between two, and how late this program itself was:

    {"beats": 12, "longest_gap_ms": 501.3, "lag_ms": 0.4}
"""

from __future__ import annotations

import json
import os
import sys
import time

import zmq

TURN_S = 0.01


def main() -> None:
    subscriber = zmq.Context().socket(zmq.SUB)
    subscriber.subscribe("state.dataplane.")
    subscriber.connect(f"ipc://{os.environ['GALE_RUN_DIR']}/bus/dataplane.ipc")
    poller = zmq.Poller()
    poller.register(subscriber, zmq.POLLIN)
    poller.register(sys.stdin, zmq.POLLIN)
    beats, longest, lag, last = 0, 0.0, 0.0, 0.0
    turn_due = time.monotonic()
    while True:
        wait_ms = int(max(turn_due - time.monotonic(), 0) * 1000)
        ready = dict(poller.poll(wait_ms))
        now = time.monotonic()
        if subscriber in ready:
            subscriber.recv_multipart()
            longest = max(longest, now - last) if beats else 0.0
            beats, last = beats + 1, now
            if beats == 1:
                print("listening", flush=True)
        if sys.stdin.fileno() in ready:
            break
        if now >= turn_due:
            lag = max(lag, now - turn_due)
            turn_due = now + TURN_S
    longest = max(longest, time.monotonic() - last)
    figures = {"longest_gap_ms": round(longest * 1e3, 1), "lag_ms": round(lag * 1e3, 1)}
    print(json.dumps({"beats": beats, **figures}), flush=True)


if __name__ == "__main__":
    main()
