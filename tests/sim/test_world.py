"""The clocks of machines that do not exist."""

from __future__ import annotations

import pytest

from tests.sim.world import Clock


@pytest.mark.parametrize("rate", [0.98, 1.0, 1.02])
def test_a_clock_that_stood_still_goes_on_where_it_was(rate: float) -> None:
    clock = Clock(5_000.0, rate)
    before = clock.exactly(100.0)
    assert before == 5_000.0 + 100.0 * rate
    assert clock.true(before) == pytest.approx(100.0)
    clock.stopped_ms = 100.0
    assert clock.exactly(700.0) == before
    clock.go_on(700.0)
    assert clock.exactly(700.0) == pytest.approx(before)
    assert clock.exactly(750.0) == pytest.approx(before + 50.0 * rate)
    assert clock.true(before + 50.0 * rate) == pytest.approx(750.0)
    clock.go_on(900.0)
    assert clock.exactly(750.0) == pytest.approx(before + 50.0 * rate), "it goes already"
