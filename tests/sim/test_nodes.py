"""Schedules of nodes, one LB and its operator: see nodes.py for what must hold.

CI plays these; `python -m tests.sim --lbs 0 --seeds 2000` plays as many as one likes.
"""

from __future__ import annotations

import pytest

from tests.sim.nodes import NodeSchedule

CHUNK = 10


@pytest.mark.parametrize("first", range(0, 60, CHUNK))
def test_nodes_and_their_operator(first: int) -> None:
    for seed in range(first, first + CHUNK):
        NodeSchedule(seed).play()
