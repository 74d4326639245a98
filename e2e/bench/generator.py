"""The packets of the benchmarks: Python's side of generator.h."""

from __future__ import annotations

import socket
import sys
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bpf.loader import LoadedObject
from e2e.bench.tables import Clients, Tables
from services.dataplane.words import mac_bytes

ACK, SYN = 0x10, 0x02
ALL_FLOWS = 1 << 32
"""So many that none comes a second time."""
IN_TURN, SCATTERED = 1, 2654435761
"""Strides."""


@dataclass(frozen=True, slots=True)
class Replies:
    """What tells a node's packets apart: nodes with consecutive addresses, and their SNAT ports."""

    first_node: str
    nodes: int
    first_snat_port: int


class Generator:
    """What `generators` holds, and which flow's turn it is. Several may take turns."""

    def __init__(
        self,
        loaded: LoadedObject,
        frame: bytes,
        clients: Clients,
        flows: int,
        *,
        stride: int = SCATTERED,
        mixed: bool = False,
        replies: Replies | None = None,
    ) -> None:
        self.frame = frame
        self.next_flow = 0
        self._tables = Tables(loaded)
        self._record: NDArray[Any] = self._tables.values("generators", 1)
        self._record["mask"] = flows - 1
        self._record["turn_bits"] = flows.bit_length() - 1
        self._record["stride"] = stride
        self._record["first_client"] = _host_order(clients.first_client)
        self._record["first_port"] = clients.first_port
        self._record["words"] = np.frombuffer(frame[:56], np.uint64)
        self._record["rest"] = int.from_bytes(frame[56:], sys.byteorder)
        self._record["header_sum"] = int(np.frombuffer(frame[14:34], np.uint16).sum())
        self._record["mixed"] = mixed
        if replies is not None:
            self._record["nodes"] = replies.nodes
            self._record["first_node"] = _host_order(replies.first_node)
            self._record["first_snat_port"] = replies.first_snat_port

    def advance(self, packets: int, *, mixed: bool | None = None) -> None:
        """Have the next run begin where the last has ended; it will be of so many packets."""
        self._record["counter"] = self.next_flow & 0xFFFFFFFF
        if mixed is not None:
            self._record["mixed"] = mixed
        self.next_flow += packets
        self._tables.write("generators", np.zeros(1, np.int32), self._record)


def _host_order(address: str) -> int:
    return int.from_bytes(socket.inet_aton(address))


def tcp_frame(
    flags: int,
    source_mac: str,
    destination_mac: str,
    destination: str,
    port: int,
    source_port: int = 0,
) -> bytes:
    """A TCP segment without data, padded to 60 bytes; the generator fills in what differs.

    The generator makes the IP header's checksum; TCP's is wrong, which nobody on the way looks at.
    """
    ethernet = mac_bytes(destination_mac) + mac_bytes(source_mac) + b"\x08\x00"
    ip = bytes([0x45, 0, 0, 40, 0, 1, 0x40, 0, 64, 6, 0, 0, 0, 0, 0, 0])
    ports = source_port.to_bytes(2) + port.to_bytes(2)
    tcp = ports + bytes([0, 0, 0, 1, 0, 0, 0, 1, 0x50, flags, 0xFF, 0xFF, 0, 0, 0, 0])
    return (ethernet + ip + socket.inet_aton(destination) + tcp).ljust(60, b"\0")
