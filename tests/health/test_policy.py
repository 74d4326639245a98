"""The numbers that follow from the configuration."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.words import Mode, NodeState, Protocol
from tests.health.rig import POLICY, offered


@pytest.mark.parametrize(
    ("percent", "known", "needed"),
    [(0, 9, 0), (50, 0, 0), (50, 1, 1), (50, 2, 1), (50, 3, 2), (1, 3, 1), (100, 3, 3)],
)
def test_a_part_of_a_node_that_is_needed_is_one(percent: int, known: int, needed: int) -> None:
    assert replace(POLICY, min_healthy_percent=percent).needed("web", known) == needed
    own = replace(POLICY, min_healthy_percent=77, min_healthy=(("web", percent),))
    assert own.needed("web", known) == needed, "what a service says itself goes before"


@pytest.mark.parametrize(
    ("after", "fails", "bans"),
    [(3, 2, False), (3, 3, True), (3, 4, True), (-1, 100, False), (1, 0, False), (1, 1, True)],
)
def test_so_many_failures_ban(after: int, fails: int, bans: bool) -> None:
    assert replace(POLICY, black_list_after_fails=after).bans_after(fails) is bans


def test_a_node_on_probation_beats_ten_times_as_often() -> None:
    policy = replace(POLICY, checks_timeout_ms=1_000)
    assert policy.interval_ms(NodeState.UP) == policy.interval_ms(NodeState.DOWN) == 500
    assert policy.interval_ms(NodeState.PROBATION) == 50
    assert (policy.spacing_ms, policy.late_ms) == (25, 550)
    assert replace(POLICY, checks_timeout_ms=1).interval_ms(NodeState.PROBATION) == 1


def test_a_connection_says_all_of_tcp_in_l4_alone() -> None:
    services = (
        offered("tcp", 1),
        replace(offered("udp", 2), protocol=Protocol.UDP),
        replace(offered("direct", 3), mode=Mode.L3),
    )
    policy = replace(POLICY, services=services)
    assert policy.connected_to == {"tcp"}
    assert policy.offered == {"tcp", "udp", "direct"}
