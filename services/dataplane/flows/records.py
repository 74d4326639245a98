"""A flow as LBs tell one another of it, and as it stands in the table. Pure.

A record is 88 bytes: addresses and ports as they stand in packets, the node by the hash of the
service's name and the node's id (`seats.seat_identity`), which is the same on every LB, what TCP
needs to be followed further, how long ago the flow began and for how long it has been idle. Nothing
in it is this machine's own: no MAC address, no interface, no place in an array, no clock. All
numbers are little-endian but what a packet carries.

    to_wire       requests and replies of the table → records
    from_wire     records → what `replica.c` enters, for this machine's clock and seats

A flow whose idle time is longer than its timeout here, one of a state that is not told, and one to
a node that has no seat here is not entered, and counted by that name.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from services.dataplane.flows.record import (
    ESTABLISHED,
    REQUEST,
    TCP,
    TOUCH_TICKS,
    UDP,
    FlowState,
    Records,
    ticks_left,
)

FLOW_REPLICA = 8
"""`flags` of the table: no packet of that direction came to this LB yet."""
_FLAGS_TOLD = 7
CARRIED = 1
LARGEST_SCALE, LARGEST_REACH = 14, 30

WIRE = np.dtype(
    [
        ("client_address", "<u4"),
        ("vip", "<u4"),
        ("snat_address", "<u4"),
        ("node_address", "<u4"),
        ("client_port", "<u2"),
        ("vip_port", "<u2"),
        ("snat_port", "<u2"),
        ("node_port", "<u2"),
        ("node", "<u8"),
        ("protocol", "u1"),
        ("state", "u1"),
        ("flags", "u1"),
        ("reach", "u1"),
        ("request_scale", "u1"),
        ("reply_scale", "u1"),
        ("request_flags", "u1"),
        ("reply_flags", "u1"),
        ("age_ticks", "<u4"),
        ("idle_ticks", "<u4"),
        ("request_end", "<u4"),
        ("request_acked", "<u4"),
        ("request_edge", "<u4"),
        ("reply_end", "<u4"),
        ("reply_acked", "<u4"),
        ("reply_edge", "<u4"),
        ("padding", "V16"),
    ]
)
"""One record. The padding is zero, for what later versions add."""

Wire = NDArray[Any]
"""Shape (n,), of `WIRE`."""

LIVING = (
    FlowState.TCP_ESTABLISHED,
    FlowState.TCP_CLOSING,
    FlowState.UDP_ASKED,
    FlowState.UDP_ANSWERED,
    FlowState.UDP_ESTABLISHED,
    FlowState.UDP_FRESH,
)
"""States in which a flow is told of. Half-open TCP is nobody's loss."""
CLOSED = (FlowState.TCP_TIME_WAIT, FlowState.TCP_RESET)

_STATES_OF = {
    TCP: (FlowState.TCP_ESTABLISHED, FlowState.TCP_CLOSING, *CLOSED),
    UDP: (
        FlowState.UDP_ASKED,
        FlowState.UDP_ANSWERED,
        FlowState.UDP_FRESH,
        FlowState.UDP_ESTABLISHED,
    ),
}


def _is_sensible() -> NDArray[np.bool_]:
    """By protocol and state: whether there is such a thing."""
    table = np.zeros((256, 256), np.bool_)
    for protocol, states in _STATES_OF.items():
        table[protocol, list(states)] = True
    # What a dead node's flow ends in is a reset, whatever its protocol.
    table[UDP, FlowState.TCP_RESET] = True
    return table


_SENSIBLE = _is_sensible()


def _given(states: NDArray[Any], timeouts: Sequence[int]) -> NDArray[np.int64]:
    """Ticks that an entry of each state gets when it is renewed."""
    given: NDArray[np.int64] = np.array(timeouts, np.int64)[states]
    renewed_seldom: NDArray[np.bool_] = np.isin(states, ESTABLISHED)
    given += TOUCH_TICKS * renewed_seldom
    return given


# --------------------------------------------------------------------------- out


def is_pair(requests: Records, replies: Records) -> NDArray[np.bool_]:
    """Whether the second is the other direction of the first."""
    one, other = requests["key"], replies["key"]
    same: NDArray[np.bool_] = one["direction"] == REQUEST
    same &= other["direction"] != REQUEST
    same &= one["protocol"] == other["protocol"]
    ways = (("saddr", "daddr"), ("daddr", "saddr"), ("sport", "dport"), ("dport", "sport"))
    for mine, theirs in ways:
        same &= requests[mine] == other[theirs]
        same &= replies[mine] == one[theirs]
    return same


def to_wire(
    requests: Records,
    replies: Records,
    now: int,
    identities: NDArray[np.uint64],
    timeouts: Sequence[int],
) -> Wire:
    """Records of these pairs at tick `now`; `identities` by seat, 0 where there is none.

    A place that has been freed is told as closed by a reset.
    """
    key = requests["key"]
    wire = np.zeros(len(requests), WIRE)
    for name, column in (
        ("client_address", key["saddr"]),
        ("vip", key["daddr"]),
        ("snat_address", requests["saddr"]),
        ("node_address", requests["daddr"]),
        ("client_port", key["sport"]),
        ("vip_port", key["dport"]),
        ("snat_port", requests["sport"]),
        ("node_port", requests["dport"]),
        ("node", identities[requests["seat"]]),
        ("protocol", key["protocol"]),
        ("reach", requests["reach"]),
        ("request_scale", requests["scale"]),
        ("reply_scale", replies["scale"]),
        ("request_flags", requests["flags"] & _FLAGS_TOLD),
        ("reply_flags", replies["flags"] & _FLAGS_TOLD),
    ):
        wire[name] = column
    for name in ("end", "acked", "edge"):
        wire[f"request_{name}"] = requests[name]
        wire[f"reply_{name}"] = replies[name]
    states = requests["state"]
    wire["state"] = np.where(states == FlowState.FREE, FlowState.TCP_RESET, states)
    is_strange = (requests["flags"] & replies["flags"] & FLOW_REPLICA) != 0
    wire["flags"] = np.where(is_strange, 0, CARRIED)
    # The younger of both deadlines: a direction renews its own.
    left = np.maximum(ticks_left(requests, now), ticks_left(replies, now))
    wire["idle_ticks"] = np.maximum(_given(wire["state"], timeouts) - left, 0)
    wire["age_ticks"] = np.uint32(now) - requests["begin"]
    return wire


# --------------------------------------------------------------------------- in


@dataclass(frozen=True, slots=True)
class SeatIndex:
    """Which seat a record's node has here."""

    identities: NDArray[np.uint64]
    """In rising order."""
    seats: NDArray[np.uint16]
    addresses: NDArray[np.uint32]

    @classmethod
    def of(cls, seats: Mapping[int, tuple[int, int]]) -> SeatIndex:
        """`seats`: number → identity, and address as the maps have it."""
        rows = sorted((identity, seat, address) for seat, (identity, address) in seats.items())
        columns = list(zip(*rows, strict=True)) or [(), (), ()]
        return cls(
            np.array(columns[0], np.uint64),
            np.array(columns[1], np.uint16),
            np.array(columns[2], np.uint32),
        )

    def find(self, nodes: NDArray[np.uint64], addresses: NDArray[np.uint32]) -> NDArray[np.uint16]:
        """The seat of each; 0 where there is none."""
        if not len(self.identities):
            return np.zeros(len(nodes), np.uint16)
        at = np.minimum(np.searchsorted(self.identities, nodes), len(self.identities) - 1)
        known = (self.identities[at] == nodes) & (self.addresses[at] == addresses)
        return np.where(known, self.seats[at], 0).astype(np.uint16)


def from_wire(
    wire: Wire,
    now: int,
    begun: int,
    index: SeatIndex,
    timeouts: Sequence[int],
    replica: np.dtype[Any],
) -> tuple[NDArray[Any], dict[str, int]]:
    """What is to be entered, and how many were not, by reason.

    `now`: this machine's tick; `begun`: its tick at which the records were made. `replica`: the
    struct of replica.c.
    """
    seats = index.find(wire["node"], wire["node_address"])
    idle = wire["idle_ticks"].astype(np.int64) + ((now - begun) & 0xFFFF_FFFF)
    left = _given(wire["state"] & 15, timeouts) - idle
    is_bad = ~_SENSIBLE[wire["protocol"], wire["state"]]
    is_bad |= np.maximum(wire["request_scale"], wire["reply_scale"]) > LARGEST_SCALE
    is_bad |= wire["reach"] > LARGEST_REACH
    is_bad |= (wire["client_port"] == 0) | (wire["vip_port"] == 0) | (wire["node_port"] == 0)
    is_homeless = ~is_bad & (seats == 0)
    is_over = ~is_bad & ~is_homeless & (left <= 0)
    counts = {
        "bad_record": int(np.count_nonzero(is_bad)),
        "no_node": int(np.count_nonzero(is_homeless)),
        "expired": int(np.count_nonzero(is_over)),
    }
    good = ~(is_bad | is_homeless | is_over)
    entries = _entries(wire[good], seats[good], (now + left[good]), begun, replica)
    return entries, {reason: count for reason, count in counts.items() if count}


def _entries(
    wire: Wire,
    seats: NDArray[np.uint16],
    deadlines: NDArray[np.int64],
    begun: int,
    replica: np.dtype[Any],
) -> NDArray[Any]:
    entries = np.zeros(len(wire), replica)
    request = entries["request"]
    key = request["key"]
    for name, column in (("saddr", "client_address"), ("daddr", "vip"), ("sport", "client_port")):
        key[name] = wire[column]
    key["dport"], key["protocol"], key["direction"] = wire["vip_port"], wire["protocol"], REQUEST
    for name, column in (
        ("saddr", "snat_address"),
        ("daddr", "node_address"),
        ("sport", "snat_port"),
        ("dport", "node_port"),
        ("state", "state"),
        ("end", "request_end"),
        ("acked", "request_acked"),
        ("edge", "request_edge"),
        ("scale", "request_scale"),
        ("reach", "reach"),
    ):
        request[name] = wire[column]
    request["flags"] = wire["request_flags"] & _FLAGS_TOLD
    request["seat"] = seats
    request["deadline"] = (deadlines & 0xFFFF_FFFF).astype(np.uint32)
    request["begin"] = np.uint32(begun) - wire["age_ticks"]
    for name in ("end", "acked", "edge", "scale"):
        entries[f"reply_{name}"] = wire[f"reply_{name}"]
    entries["reply_flags"] = wire["reply_flags"] & _FLAGS_TOLD
    entries["carried"] = wire["flags"] & CARRIED
    return entries


# --------------------------------------------------------------------------- comparing

RANGES = 1_024
"""Parts of all keys that are compared each by one number."""
_MIX = (np.uint64(0xBF58476D1CE4E5B9), np.uint64(0x94D049BB133111EB))


def _hashes(requests: Records) -> NDArray[np.uint64]:
    """Of a flow's eight addresses and ports, the same on every LB (after SplitMix64)."""
    key = requests["key"]
    words = np.zeros((len(requests), 3), np.uint64)
    words[:, 0] = key["saddr"].astype(np.uint64) << np.uint64(32) | key["daddr"]
    words[:, 1] = requests["saddr"].astype(np.uint64) << np.uint64(32) | requests["daddr"]
    for name in ("sport", "dport"):
        for side in (key, requests):
            words[:, 2] = words[:, 2] << np.uint64(16) | side[name]
    value = key["protocol"].astype(np.uint64)
    for column in range(3):
        value ^= words[:, column]
        value = (value ^ value >> np.uint64(30)) * _MIX[0]
        value = (value ^ value >> np.uint64(27)) * _MIX[1]
        value ^= value >> np.uint64(31)
    return value


def ranges_of(requests: Records) -> NDArray[np.intp]:
    """In which range each of these flows is."""
    return (_hashes(requests) >> np.uint64(54)).astype(np.intp)


def add_digests(digests: NDArray[np.uint64], requests: Records) -> None:
    """Adds these flows, in any order, to the numbers of their ranges."""
    hashes = _hashes(requests)
    np.add.at(digests, (hashes >> np.uint64(54)).astype(np.intp), hashes)
