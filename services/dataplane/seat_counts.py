"""The counters of all seats, read in two turns of the loop and put into columns in another.

With ten thousand seats each step takes milliseconds, and while a loop is busy it hears nothing.
A `Reading` stands for the seats that were held when it was made: the next plan may have others.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from bus.states import SeatColumns, SeatState
from services.dataplane.counters import Counters


@dataclass(frozen=True, slots=True)
class Reading:
    """What the maps held of some seats: one row for each seat, in the order of `seats`."""

    seats: Sequence[SeatState]
    counts: dict[str, NDArray[np.uint64]]
    """Field of the C record → a sum for each seat."""
    rested: NDArray[np.float64]
    """Seconds that the SNAT port taken last had rested; NaN: none was taken again."""


def read(
    counters: Counters, seats: Sequence[SeatState], cursors: Sequence[int]
) -> Generator[None, None, Reading]:
    """`cursors`: of each seat, the number of the port cursor that it shares. Yields after each map
    but the last.
    """
    numbers = [seat.seat for seat in seats]
    # Seats are given from the lowest number on, and so are cursors.
    sums = counters.seats(max(numbers, default=0) + 1)
    counts = {name: column[numbers] for name, column in sums.items()}
    yield
    rests = counters.port_rests(max(cursors, default=0) + 1)
    return Reading(seats, counts, rests[list(cursors)])


def columns(reading: Reading, flows_of: Mapping[int, int]) -> SeatColumns:
    """What is published; `flows_of`: the flows of each seat that has some, by the last census."""
    counts = {name: tuple(column.tolist()) for name, column in reading.counts.items()}
    rested = reading.rested.astype(object)
    rested[np.isnan(reading.rested)] = None
    return SeatColumns(
        service=tuple(seat.service for seat in reading.seats),
        node=tuple(seat.node for seat in reading.seats),
        packets_in=counts["packets_in"],
        bytes_in=counts["bytes_in"],
        packets_out=counts["packets_out"],
        bytes_out=counts["bytes_out"],
        flows=counts["flows"],
        snat_port_rest_seconds=tuple(rested.tolist()),
        flows_now=tuple(flows_of.get(seat.seat, 0) for seat in reading.seats),
    )
