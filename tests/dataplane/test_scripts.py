"""When the operator's script is run for an address, and how often."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from services.dataplane.scripts import (
    DEADLINE_MS,
    FIRST_REST_MS,
    LONGEST_REST_MS,
    Kill,
    Scripts,
    Start,
    Word,
)

VIP, OTHER = "10.80.0.100", "10.80.0.101"
ACQUIRE, LOSE = Start(Word.ACQUIRE, VIP), Start(Word.LOSE, VIP)


def wanting(word: Word) -> Scripts:
    scripts = Scripts()
    scripts.want(word, [VIP], 0)
    return scripts


def test_it_is_run_once_for_each_word() -> None:
    scripts = wanting(Word.ACQUIRE)
    assert scripts.take() == [ACQUIRE]
    scripts.want(Word.ACQUIRE, [VIP], 10)
    scripts.ended(VIP, True, 20)
    scripts.want(Word.ACQUIRE, [VIP], 30)
    assert scripts.take() == []
    assert scripts.next_due_ms() is None
    scripts.want(Word.LOSE, [VIP], 40)
    assert scripts.take() == [LOSE]


def test_never_two_at_a_time_for_one_address() -> None:
    scripts = wanting(Word.ACQUIRE)
    assert scripts.take() == [ACQUIRE]
    scripts.want(Word.LOSE, [VIP], 10)
    assert scripts.take() == []
    scripts.want(Word.ACQUIRE, [OTHER], 10)
    assert scripts.take() == [Start(Word.ACQUIRE, OTHER)]
    scripts.ended(VIP, True, 20)
    assert scripts.take() == [LOSE]


def test_what_was_wanted_for_a_moment_only_is_passed_over() -> None:
    scripts = wanting(Word.ACQUIRE)
    scripts.take()
    scripts.want(Word.LOSE, [VIP], 10)
    scripts.want(Word.ACQUIRE, [VIP], 20)
    scripts.ended(VIP, True, 30)
    assert scripts.take() == []


def test_one_that_fails_is_run_again_ever_more_rarely() -> None:
    scripts, now_ms, pauses = wanting(Word.ACQUIRE), 0, []
    for _ in range(8):
        assert scripts.take() == [ACQUIRE]
        scripts.ended(VIP, False, now_ms)
        due_ms = scripts.next_due_ms()
        assert due_ms is not None
        pauses.append(due_ms - now_ms)
        scripts.tick(due_ms - 1)
        assert scripts.take() == []
        now_ms = due_ms
        scripts.tick(now_ms)
    assert pauses == [1_000, 2_000, 4_000, 8_000, 16_000, 30_000, 30_000, 30_000]
    assert (FIRST_REST_MS, LONGEST_REST_MS) == (1_000, 30_000)
    scripts.take()
    scripts.ended(VIP, True, now_ms)
    scripts.want(Word.LOSE, [VIP], now_ms)
    scripts.take()
    scripts.ended(VIP, False, now_ms)
    assert scripts.next_due_ms() == now_ms + FIRST_REST_MS


def test_a_failure_is_no_reason_to_be_late_with_the_other_word() -> None:
    scripts = wanting(Word.ACQUIRE)
    scripts.take()
    scripts.ended(VIP, False, 10)
    scripts.want(Word.LOSE, [VIP], 20)
    assert scripts.take() == [LOSE]


def test_after_a_failure_nobody_knows_what_was_done() -> None:
    """An address that was lost, failed to be acquired, and is lost again: the script is told."""
    scripts = wanting(Word.LOSE)
    scripts.take()
    scripts.ended(VIP, True, 10)
    scripts.want(Word.ACQUIRE, [VIP], 20)
    scripts.take()
    scripts.ended(VIP, False, 30)
    scripts.want(Word.LOSE, [VIP], 40)
    assert scripts.take() == [LOSE]


def test_one_that_takes_too_long_is_killed_once() -> None:
    scripts = wanting(Word.ACQUIRE)
    scripts.take()
    assert scripts.next_due_ms() == DEADLINE_MS
    scripts.tick(DEADLINE_MS - 1)
    assert scripts.take() == []
    scripts.tick(DEADLINE_MS)
    assert scripts.take() == [Kill(VIP)]
    scripts.tick(DEADLINE_MS + 1_000)
    assert scripts.take() == []
    scripts.ended(VIP, False, DEADLINE_MS + 1_001)
    assert scripts.next_due_ms() == DEADLINE_MS + 1_001 + FIRST_REST_MS


@given(
    steps=st.lists(
        st.tuples(
            st.integers(0, 40_000), st.sampled_from([*Word]), st.sampled_from([None, True, False])
        ),
        max_size=50,
    )
)
def test_in_the_end_the_last_word_has_been_carried_out(
    steps: list[tuple[int, Word, bool | None]],
) -> None:
    scripts, now_ms = Scripts(), 0
    running: Word | None = None
    done: Word | None = None

    def take() -> None:
        nonlocal running
        for each in scripts.take():
            if isinstance(each, Start):
                assert running is None
                running = each.word
            else:
                assert running is not None

    wanted = Word.LOSE
    for pause_ms, wanted, ends in steps:
        now_ms += pause_ms
        scripts.tick(now_ms)
        take()
        scripts.want(wanted, [VIP], now_ms)
        take()
        if running is not None and ends is not None:
            done, running = (running if ends else None), None
            scripts.ended(VIP, ends, now_ms)
            take()
    for _ in range(4):
        now_ms += LONGEST_REST_MS
        scripts.tick(now_ms)
        take()
        if running is not None:
            done, running = running, None
            scripts.ended(VIP, True, now_ms)
            take()
    assert not steps or done is wanted
