"""A client that sends datagrams to the lab's `udp` service, each from a port of its own.

It runs on the client machine by itself (`python3 -c <this text> HOST PORT ...`), so it needs
nothing but Python's library. At its end it prints how many were answered by whom, and how many were
not, or not with what was sent:

    {"answers": {"node-0": 99, "node-1": 101}, "lost": 0}

With `--raw-fragments` it cuts one datagram in two by itself and sends the parts in the order asked
for. The kernel would never send the second one first, but networks do.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import struct
from collections import Counter

FIRST_PART_BYTES = 1024
MORE_FRAGMENTS = 0x2000


def fragments(source: str, host: str, datagram: bytes) -> list[bytes]:
    """Two IPv4 packets; the kernel fills in their checksums."""
    identification = struct.unpack("=H", os.urandom(2))[0] or 1
    parts = []
    for offset in (0, FIRST_PART_BYTES):
        part = datagram[offset : offset + FIRST_PART_BYTES]
        flags = (MORE_FRAGMENTS if offset == 0 else 0) | offset // 8
        addresses = socket.inet_aton(source) + socket.inet_aton(host)
        length = 20 + len(part)
        header = struct.pack(
            "!BBHHHBBH", 0x45, 0, length, identification, flags, 64, socket.IPPROTO_UDP, 0
        )
        parts.append(header + addresses + part)
    return parts


def send_fragments(opened: socket.socket, payload: bytes, order: str) -> None:
    source, port = opened.getsockname()
    host, service_port = opened.getpeername()
    header = struct.pack("!HHHH", port, service_port, 8 + len(payload), 0)
    parts = fragments(source, host, header + payload)
    if order == "second-first":
        parts.reverse()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for part in parts:
            raw.sendto(part, (host, 0))


def ask(arguments: argparse.Namespace, payload: bytes) -> str:
    """The name of whoever answered; empty if nobody did, or not as asked."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as opened:
        opened.settimeout(arguments.timeout)
        opened.connect((arguments.host, arguments.port))
        if arguments.raw_fragments:
            send_fragments(opened, payload, arguments.raw_fragments)
        else:
            opened.send(payload)
        try:
            name, _, answered = opened.recv(65535).partition(b" ")
        except OSError:
            return ""
        return name.decode() if answered == payload else ""


def main() -> None:
    parser = argparse.ArgumentParser(description="datagrams that want to be answered")
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--count", type=int, default=1)
    parser.add_argument("--bytes", type=int, default=FIRST_PART_BYTES + 200)
    parser.add_argument("--timeout", type=float, default=2.0)
    parser.add_argument("--raw-fragments", choices=("first-first", "second-first"))
    arguments = parser.parse_args()
    answers = Counter(ask(arguments, os.urandom(arguments.bytes)) for _ in range(arguments.count))
    lost = answers.pop("", 0)
    print(json.dumps({"answers": answers, "lost": lost}))


if __name__ == "__main__":
    main()
