"""Telling clients that their node is dead, before they ask. Pure.

When a node goes DOWN and its flows are to be reset, the programs answer every packet of them by a
RST. But a client that only waits for an answer sends nothing, and would wait for as long as its
patience lasts. So the dataplane goes through the table and sends a RST for each TCP flow of a dead
seat whose client takes itself for connected: from the VIP and port that the client knows, with
exactly the sequence number that the client waits for next, which is what makes it believe it
(RFC 5961, 3.2). The request's record has it, as the last acknowledgement that came; while none has
come yet, it has the number of the SYN-ACK, and the client waits for the one after it.

A flow that another LB has told of, and of which no packet has come here yet, is that LB's to reset:
it knows the numbers. But that one may be dead as well: a machine may be LB and node. So whoever
holds the VIP now asks such a client instead, by a segment that has been acknowledged long ago: the
client answers it by where it really is (RFC 9293, 3.10.7.4), and the programs answer that by a RST.

Each flow is told once for each death of its seat: told it was under a version of its record, in
the n-th death that this process has seen. Nothing is written into the table; the flow ends by its
deadline, or gives way to a SYN on the same ports.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from services.dataplane.flows.record import REQUEST, TCP, FlowState, Records, where
from services.dataplane.flows.records import FLOW_REPLICA

SEATS = 1 << 16
"""As many as a record's field can name."""
SEGMENT_BYTES = 40
"""An IPv4 header and a TCP header, without options."""

_TIME_TO_LIVE = 64
_DO_NOT_FRAGMENT = 0x4000
_RST_AND_OFFSET, _ACK_AND_OFFSET = 5 << 12 | 0x04, 5 << 12 | 0x10
"""Five words of header, and the flag."""
_WORDS = SEGMENT_BYTES // 2
_IP_WORDS = 10
_TCP_CHECKSUM, _IP_CHECKSUM = 18, 5
_SOURCE, _DESTINATION = 6, 8
_DEATHS = 0xFFFF

CONNECTED = (FlowState.TCP_ANSWERED, FlowState.TCP_ESTABLISHED, FlowState.TCP_CLOSING)
"""States in which the client may take itself for connected."""

NOBODY_S: NDArray[np.uint32] = np.zeros(0, np.uint32)

Segments = NDArray[np.uint8]
"""Shape (n, SEGMENT_BYTES): IPv4 packets, whole."""


class Resets:
    """Which seats are dead, and which of their flows' clients have been told."""

    def __init__(self) -> None:
        self._death_of: NDArray[np.uint32] = np.zeros(SEATS, np.uint32)
        """The number of a seat's death; 0 while it is not dead."""
        self._deaths = 0
        self._told: dict[int, NDArray[np.uint32]] = {}
        """By table, by place: the death (upper half) and the version (lower) that were told."""

    def bury(self, seats: frozenset[int]) -> bool:
        """The seats whose flows are to be reset, all of them; whether one has joined them."""
        wanted = np.array(sorted(seats), np.intp)
        fresh = wanted[self._death_of[wanted] == 0]
        kept = self._death_of[wanted]
        self._death_of[:] = 0
        self._death_of[wanted] = kept
        if len(fresh):
            self._deaths = self._deaths % _DEATHS + 1
            self._death_of[fresh] = self._deaths
        if not seats:
            self._told.clear()
        return len(fresh) > 0

    @property
    def is_needed(self) -> bool:
        return bool(self._death_of.any())

    def find(
        self,
        table: int,
        table_places: int,
        places: NDArray[np.intp],
        records: Records,
        held: NDArray[np.uint32] = NOBODY_S,
    ) -> Records:
        """Those of these living records whose clients are to be told now, and count as told.

        `table` numbers the tables; `places` are the records' within it. `held`: the VIPs that this
        LB holds, as they stand in packets.
        """
        deaths = self._death_of[records["seat"]]
        chosen = deaths > 0
        chosen &= np.isin(records["state"], CONNECTED)
        chosen &= records["key"]["direction"] == REQUEST
        chosen &= records["key"]["protocol"] == TCP
        chosen &= ~_is_replica(records) | np.isin(records["key"]["daddr"], held)
        if not chosen.any():
            return records[:0]
        told = self._told.setdefault(table, np.zeros(table_places, np.uint32))
        stamp = deaths << np.uint32(16) | records["key"]["version"]
        chosen &= told[places] != stamp
        told[places[chosen]] = stamp[chosen]
        return where(records, chosen)


def segments(requests: Records) -> Segments:
    """What tells each of these requests' clients; checksums by RFC 1071."""
    count = len(requests)
    key = requests["key"]
    packet = np.zeros((count, SEGMENT_BYTES), np.uint8)
    words = packet.view(">u2")
    words[:, 0] = 0x4500
    words[:, 1] = SEGMENT_BYTES
    words[:, 3] = _DO_NOT_FRAGMENT
    words[:, 4] = _TIME_TO_LIVE << 8 | TCP
    # Addresses and ports stand in the records as in packets, whatever this host's order is.
    packet[:, 12:16] = _octets(key["daddr"])
    packet[:, 16:20] = _octets(key["saddr"])
    packet[:, 20:22] = _octets(key["dport"])
    packet[:, 22:24] = _octets(key["sport"])
    is_unheard = (requests["state"] == FlowState.TCP_ANSWERED).astype(np.uint32)
    asks = _is_replica(requests)
    packet[:, 24:28] = _octets((requests["acked"] + is_unheard - asks).astype(">u4"))
    words[:, 16] = np.where(asks, _ACK_AND_OFFSET, _RST_AND_OFFSET)
    words[:, _IP_CHECKSUM] = _checksum(words[:, :_IP_WORDS].sum(axis=1, dtype=np.uint32))
    pseudo = words[:, _SOURCE : _DESTINATION + 2].sum(axis=1, dtype=np.uint32)
    pseudo += np.uint32(TCP + SEGMENT_BYTES - 2 * _IP_WORDS)
    segment = words[:, _IP_WORDS:_WORDS].sum(axis=1, dtype=np.uint32)
    words[:, _TCP_CHECKSUM] = _checksum(pseudo + segment)
    return packet


def _is_replica(records: Records) -> NDArray[np.bool_]:
    is_replica: NDArray[np.bool_] = records["flags"] & FLOW_REPLICA != 0
    return is_replica


def _octets(column: NDArray[np.generic]) -> NDArray[np.uint8]:
    """A column of numbers as the bytes they consist of, shape (n, size)."""
    whole = np.ascontiguousarray(column)
    return whole.view(np.uint8).reshape(len(whole), whole.dtype.itemsize)


def _checksum(sums: NDArray[np.uint32]) -> NDArray[np.uint16]:
    folded = (sums & 0xFFFF) + (sums >> 16)
    folded = (folded & 0xFFFF) + (folded >> 16)
    return (~folded & 0xFFFF).astype(np.uint16)
