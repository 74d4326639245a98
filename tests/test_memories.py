"""The page that says what is remembered, and for how long, says what the code does."""

from __future__ import annotations

from pathlib import Path

import pytest

from bus import socket
from services.health import deadlines, door, main, peer_faults, roster
from services.quorum import admission, orders, table

PAGE = (Path(__file__).parents[1] / "docs" / "operating.md").read_text()
HOUR_MS = 3_600_000


@pytest.mark.parametrize(
    ("row", "says"),
    [
        ("a node that was ever up", f"{roster.MAX_NODES:,} in all"),
        ("a node that was ever up", f"{roster.MOST_NODES_OF_ADDRESS} of one address"),
        ("a node that was ever up", f"{deadlines.FORGET_MS // HOUR_MS} h after"),
        ("a name that was never up", f"{deadlines.STRANGER_MS // 1_000} s after"),
        ("connections of an agent", f"{door.MOST_SESSIONS} a node"),
        ("connections of an agent", f"{main.LIMITS.of_address} of one address"),
        ("who breaks the protocol", f"{peer_faults.REMEMBERED:,} connections"),
        ("who breaks the protocol", f"{peer_faults.CUT_OFF_MS // 1_000} s after"),
        ("places that the LB's own probe looks at", f"{main.MOST_PLACES:,} |"),
        ("orders that stand", f"{orders.MOST_ORDERS:,} |"),
        ("who spoke on the quorum's port", f"{admission.MOST_REMEMBERED} |"),
        ("events", f"{socket.KEPT_EVENTS:,} of each process"),
        ("events", f"{socket.KEPT_EVENT_BYTES >> 20} MiB"),
    ],
)
def test_a_row_of_what_is_remembered(row: str, says: str) -> None:
    (line,) = [line for line in PAGE.splitlines() if line.startswith(f"| {row}")]
    assert says in line


def test_hours_in_words() -> None:
    assert (orders.RECORD_MS, table.SLOT_REUSE_MS) == (HOUR_MS, 6 * HOUR_MS)
    assert "`enable` and `pardon` after an hour" in PAGE
    assert "after six hours, or the longest idle time" in PAGE
