"""Ticks in Python are those of the programs."""

from __future__ import annotations

import re

from bpf.clock import TICK_SHIFT, ticks, ticks_of_ms
from bpf.loader import SOURCE_DIR


def test_the_shift_is_the_headers() -> None:
    defined = re.search(r"#define TICK_SHIFT (\d+)", (SOURCE_DIR / "types.h").read_text())
    assert defined is not None
    assert int(defined[1]) == TICK_SHIFT


def test_ticks_are_67_ms_and_wrap() -> None:
    assert ticks(0) == ticks((1 << 26) - 1) == 0
    assert ticks(1 << 26) == 1
    assert ticks((1 << 26) * ((1 << 32) + 9)) == 9
    assert (ticks_of_ms(0), ticks_of_ms(1), ticks_of_ms(67), ticks_of_ms(68)) == (0, 1, 1, 2)
    assert ticks_of_ms(7 * 86_400_000) < 1 << 31
