"""Partial connections of three LBs and of five: somebody leads, and every VIP has its holder.

What stops other protocols is that nobody can lead, or that those who cannot hear the leader depose
it again and again. So: while links are cut, no VIP changes its owner more than once, and soon after
the cut none of them is without one; and when all is mended, nothing moves.
"""

from __future__ import annotations

from itertools import groupby

import pytest

from tests.sim.partial import SCENARIOS, agreeing, leader_of, watch

SEEDS = 5
LIVE_MS = 1_000.0
"""Within this somebody leads, and holds each VIP."""
CUT_MS = 10_000.0
HEALED_MS = 5_000.0


@pytest.mark.parametrize("size", [3, 5])
@pytest.mark.parametrize("name", SCENARIOS)
def test_somebody_leads_and_goes_on_leading(name: str, size: int) -> None:
    for seed in range(SEEDS):
        world = agreeing(seed, size)
        before = leader_of(world)
        SCENARIOS[name](world)
        cut_ms = world.now_ms
        soon = watch(world, cut_ms + LIVE_MS)
        then = watch(world, cut_ms + CUT_MS)
        said = f"seed {seed}: {soon}, then {then}"
        assert set(then.without_ms.values()) == {0.0}, said
        leaders = [each for each, _ in groupby((before, *soon.leaders, *then.leaders))]
        assert len(leaders) <= 2, said
        for vip in then.holders:
            assert len(then.holders[vip]) == 1, said
            assert len(soon.holders[vip]) <= 2, said
        world.blocked.clear()
        healed = watch(world, world.now_ms + HEALED_MS)
        assert (healed.leaders, healed.holders) == (then.leaders, then.holders), f"{said}; {healed}"
        assert world.is_well()
