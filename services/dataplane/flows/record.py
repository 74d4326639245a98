"""What one record of the flow table says: the words of `struct flow` (bpf/kernel/types.h). Pure.

A flow has two records, one for each direction; the request's is the flow where flows are counted.
A record is alive from when it was written until its deadline, both in ticks (`bpf.clock`). From
then on its place is free: nobody needs to take it away.

Records come as numpy arrays with the C struct's fields, as the compiler describes it. Addresses and
ports stand in network order.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import numpy as np
from numpy.typing import NDArray

Records = NDArray[Any]
"""Shape (n,), with the fields of `struct flow`."""

REQUEST, REPLY = 0, 1
TCP, UDP = 6, 17
PROTOCOL_NAMES = {TCP: "tcp", UDP: "udp"}

TOUCH_TICKS = 64
"""How seldom a packet of an established flow renews its deadline, so much more it is given."""


class FlowState(IntEnum):
    """`enum flow_state`, number by number."""

    FREE = 0
    TCP_OPENING = 1
    TCP_ANSWERED = 2
    TCP_ESTABLISHED = 3
    TCP_CLOSING = 4
    TCP_TIME_WAIT = 5
    TCP_RESET = 6
    UDP_ASKED = 7
    UDP_ANSWERED = 8
    UDP_ESTABLISHED = 9
    UDP_FRESH = 10

    @property
    def word(self) -> str:
        """For people: the name without its protocol, which stands beside it."""
        if self is FlowState.UDP_FRESH:
            return FlowState.UDP_ESTABLISHED.word
        return self.name.lower().removeprefix("tcp_").removeprefix("udp_")


ESTABLISHED = (FlowState.TCP_ESTABLISHED, FlowState.UDP_ESTABLISHED)

HALF_OPEN = (
    FlowState.TCP_OPENING,
    FlowState.TCP_ANSWERED,
    FlowState.UDP_ASKED,
    FlowState.UDP_ANSWERED,
)
"""States that have but a share of the table: whoever floods fills no more than that."""


def is_living(records: Records, now: int) -> NDArray[np.bool_]:
    """Which of these are somebody's flow at tick `now`."""
    living: NDArray[np.bool_] = ticks_left(records, now) > 0
    living &= records["state"] != FlowState.FREE
    return living


def ticks_left(records: Records, now: int) -> NDArray[np.int32]:
    """Until the deadline; negative after it. The clock may wrap in between."""
    return (records["deadline"] - np.uint32(now)).view(np.int32)


def ticks_since(moments: NDArray[np.uint32], now: int) -> NDArray[np.int32]:
    """How long ago; a moment in the future, by a clock that lags, is now."""
    return np.maximum((np.uint32(now) - moments).view(np.int32), 0)


def take(records: Records, indices: NDArray[np.intp]) -> Records:
    """`records[indices]`: by whole records; field by field costs fifty times as much."""
    whole: NDArray[Any] = records.view(f"V{records.itemsize}")
    return whole.take(indices).view(records.dtype)


def where(records: Records, chosen: NDArray[np.bool_]) -> Records:
    """`records[chosen]`, likewise."""
    return take(records, np.flatnonzero(chosen))
