"""The lab's `udp` server: it answers every datagram with the node's name, a space and its payload.

Started as `udp.py NAME PORT...` in the node's namespace. Where the node returns directly (L2, L3) a
client waits for an answer from the VIP, which is only one of this node's addresses; so each answer
leaves from the address that its question came to, as any real server of UDP must see to.
"""

from __future__ import annotations

import select
import socket
import struct
import sys
from collections.abc import Sequence

IP_PKTINFO = 8
PACKET_INFO = struct.Struct("=I4s4s")
"""Interface, the address to answer from, the address that was asked."""
LARGEST_DATAGRAM = 65_535


def answer_from(asked: bytes) -> bytes:
    return PACKET_INFO.pack(0, asked, asked)


def answer(opened: socket.socket, name: bytes) -> None:
    payload, ancillary, _, client = opened.recvmsg(LARGEST_DATAGRAM, socket.CMSG_SPACE(64))
    infos = [data for _, kind, data in ancillary if kind == IP_PKTINFO]
    _, _, asked = PACKET_INFO.unpack(infos[0][: PACKET_INFO.size])
    source = (socket.IPPROTO_IP, IP_PKTINFO, answer_from(asked))
    try:
        opened.sendmsg([name, b" ", payload], [source], 0, client)
    except OSError as error:  # a route or a client that has gone: the next one is served
        print(f"no answer to {client}: {error}", flush=True)


def serve(name: str, ports: Sequence[int]) -> None:
    poller = select.poll()
    by_descriptor = {}
    for port in ports:
        opened = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        opened.setsockopt(socket.IPPROTO_IP, IP_PKTINFO, 1)
        opened.bind(("0.0.0.0", port))
        by_descriptor[opened.fileno()] = opened
        poller.register(opened, select.POLLIN)
    while True:
        for descriptor, _ in poller.poll():
            answer(by_descriptor[descriptor], name.encode())


if __name__ == "__main__":
    serve(sys.argv[1], [int(port) for port in sys.argv[2:]])
