"""A peer that speaks ZMTP 3.0 byte by byte, and so can do what libzmq's own sockets never would."""

from __future__ import annotations

import socket
import struct

_GREETING = b"\xff" + bytes(8) + b"\x7f\x03\x00" + b"NULL".ljust(20, b"\0") + bytes(32)
_MORE, _LONG = 1, 2


def _ready() -> bytes:
    body = b"\x05READY"
    for name, value in ((b"Socket-Type", b"DEALER"), (b"Identity", b"")):
        body += bytes([len(name)]) + name + struct.pack(">I", len(value)) + value
    return b"\x04" + bytes([len(body)]) + body


def part(body: bytes, *, more: bool) -> bytes:
    """One part of a message, as it goes over the wire."""
    flags = _MORE if more else 0
    if len(body) < 256:
        return bytes([flags, len(body)]) + body
    return bytes([flags | _LONG]) + struct.pack(">Q", len(body)) + body


def message(frames: list[bytes]) -> bytes:
    *first, last = frames
    return b"".join(part(frame, more=True) for frame in first) + part(last, more=False)


class Stranger:
    """A connection from an address of its own; any of loopback will do."""

    def __init__(self, port: int, address: str = "127.0.0.2") -> None:
        self.socket = socket.socket()
        self.socket.settimeout(30)
        self.socket.bind((address, 0))
        self.socket.connect(("127.0.0.1", port))
        self.socket.sendall(_GREETING)
        self._read(len(_GREETING))
        self.socket.sendall(_ready())
        self._read(self._read(2)[1])

    def _read(self, count: int) -> bytes:
        raw = b""
        while len(raw) < count:
            some = self.socket.recv(count - len(raw))
            if not some:
                raise ConnectionResetError("hung up in the handshake")
            raw += some
        return raw

    def send(self, raw: bytes) -> bool:
        """False: the other end has hung up. Raises TimeoutError if it only reads no more."""
        try:
            self.socket.sendall(raw)
        except ConnectionError:
            return False
        return True

    def hung_up(self) -> bool:
        """Whether the other end has; waits for it, or for the timeout."""
        try:
            while self.socket.recv(65_536):
                continue
        except TimeoutError:
            return False
        except OSError:
            return True
        return True

    def reset(self) -> None:
        """Close at once, with a RST."""
        self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.socket.close()

    def close(self) -> None:
        self.socket.close()
