"""The words of a record: the same as the programs have, and times that wrap."""

from __future__ import annotations

import re

import numpy as np
import pytest

from bpf.loader import SOURCE_DIR
from services.dataplane.flows import record
from services.dataplane.flows.record import (
    FlowState,
    is_living,
    take,
    ticks_left,
    ticks_since,
    where,
)

KIND = np.dtype([("state", "u1"), ("deadline", "<u4"), ("more", "<u8", (3,))])


def records(*deadlines: int, state: int = FlowState.TCP_ESTABLISHED) -> np.ndarray:
    made = np.zeros(len(deadlines), KIND)
    made["deadline"] = np.array(deadlines, np.int64).astype(np.uint32)
    made["state"] = state
    return made


def test_states_are_those_of_the_header() -> None:
    header = (SOURCE_DIR / "types.h").read_text()
    body = re.search(r"enum flow_state \{(.*?)\};", header, re.DOTALL)
    assert body is not None
    names = re.findall(r"\b(FLOW_\w+),", body[1])
    assert names == [f"FLOW_{state.name}" for state in FlowState] + ["FLOW_STATES"]
    assert [state.value for state in FlowState] == list(range(len(FlowState)))


def test_numbers_are_those_of_the_headers() -> None:
    text = "".join((SOURCE_DIR / name).read_text() for name in ("types.h", "flow_table.h"))
    defined = dict(re.findall(r"#define (\w+) (\d+)", text))
    assert int(defined["TOUCH_TICKS"]) == record.TOUCH_TICKS
    assert re.search(r"enum direction \{ DIRECTION_REQUEST, DIRECTION_REPLY \}", text)


def test_half_open_are_what_the_programs_call_so() -> None:
    text = (SOURCE_DIR / "flow_table.h").read_text()
    body = re.search(r"int is_half_open\(__u8 state\)\s*\{(.*?)\}", text, re.DOTALL)
    assert body is not None
    names = set(re.findall(r"FLOW_(\w+)", body[1]))
    assert names == {state.name for state in record.HALF_OPEN}


def test_words_for_people_leave_out_the_protocol() -> None:
    assert [state.word for state in FlowState][1:] == [
        *("opening", "answered", "established", "closing", "time_wait", "reset"),
        *("asked", "answered", "established", "established"),
    ]


@pytest.mark.parametrize("now", [5, 1 << 31, (1 << 32) - 1, 0])
def test_a_record_lives_until_its_deadline_also_where_the_clock_wraps(now: int) -> None:
    told = is_living(records(now - 1, now, now + 1, now + (1 << 30)), now)
    assert told.tolist() == [False, False, True, True]
    assert ticks_left(records(now - 7, now + 7), now).tolist() == [-7, 7]
    free = records(now + 1, state=FlowState.FREE)
    assert not is_living(free, now).any()


def test_how_long_ago() -> None:
    moments = np.array([3, 5, 6, (1 << 32) - 1], np.uint32)
    assert ticks_since(moments, 5).tolist() == [2, 0, 0, 6]


def test_taking_is_indexing() -> None:
    some = records(*range(10))
    some["more"] = np.arange(30).reshape(10, 3)
    chosen = np.array([7, 0, 7])
    assert (take(some, chosen) == some[chosen]).all()
    assert (where(some, some["deadline"] % 3 == 0) == some[[0, 3, 6, 9]]).all()
    assert take(some, chosen[:0]).shape == (0,)
