"""What is made of trials: medians, spreads, ratios, goals, turns."""

from __future__ import annotations

import pytest

from e2e.bench.samples import Sample, at_least, at_most, pieces, ratios, turns


def test_the_median_and_the_middle_half() -> None:
    sample = Sample((5.0, 1.0, 4.0, 2.0, 3.0))
    assert sample.median == 3
    assert sample.quartiles == (2, 4)
    assert sample.text(1, " ns") == "3.0 ns (2.0–4.0)"


def test_a_single_trial_has_no_spread() -> None:
    assert Sample((7.0,)).quartiles == (7, 7)


def test_one_wild_trial_moves_neither_median_nor_spread() -> None:
    calm, wild = (1.0, 2.0, 3.0, 4.0, 5.0), (1.0, 2.0, 3.0, 4.0, 5000.0)
    assert Sample(wild).median == Sample(calm).median
    assert Sample(wild).quartiles == Sample(calm).quartiles


def test_ratios_are_made_round_by_round() -> None:
    # The second round was slow for both, which says nothing about either.
    assert ratios(Sample((2.0, 20.0)), Sample((1.0, 10.0))).trials == (2, 2)


def test_trials_without_their_counterpart_are_a_mistake() -> None:
    with pytest.raises(ValueError, match="argument 2 is shorter"):
        ratios(Sample((1.0, 2.0)), Sample((1.0,)))


def test_goals() -> None:
    assert at_most(3).is_met(3)
    assert not at_most(3).is_met(3.01)
    assert at_least(0.65).is_met(0.65)
    assert not at_least(0.65).is_met(0.64)
    assert at_least(0.65, digits=2).text == "≥ 0.65"
    assert at_most(472, " ns", 0).text == "≤ 472 ns"


def test_every_other_round_goes_backwards() -> None:
    assert list(turns("abc", 3)) == [
        *((0, one) for one in "abc"),
        *((1, one) for one in "cba"),
        *((2, one) for one in "abc"),
    ]


@pytest.mark.parametrize(("total", "parts"), [(10, [4, 4, 2]), (8, [4, 4]), (3, [3]), (0, [])])
def test_pieces(total: int, parts: list[int]) -> None:
    assert list(pieces(total, 4)) == parts
