"""Without a majority the last holder goes on, and ceases as soon as anything speaks against it."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.quorum.holding import CLAIM_MS, LEADERLESS_MS, RENEW_MS, Circumstances, Holding

VIP, OTHER = "10.80.0.100", "10.80.0.101"
LED = Circumstances(enabled=True, has_leader=True, able=True, owned=frozenset({VIP}))
LOST = replace(LED, has_leader=False)
LOST_MS = 1_000
BEGINS_MS = LOST_MS + LEADERLESS_MS


def lost(vips: tuple[str, ...] = (VIP,)) -> Holding:
    """It held these by a lease, and hears no leader from `LOST_MS` on."""
    made = Holding()
    made.leased(vips)
    assert not made.look(LED, 0)
    assert not made.look(LOST, LOST_MS)
    return made


def test_it_begins_when_a_majority_would_have_elected_a_leader() -> None:
    made = lost()
    assert made.next_due_ms() == BEGINS_MS
    assert not made.look(LOST, BEGINS_MS - 1)
    assert made.held == {}
    assert made.look(LOST, BEGINS_MS)
    assert made.held == {VIP: BEGINS_MS + CLAIM_MS}


def test_it_is_renewed_long_before_it_ends() -> None:
    made = lost()
    made.look(LOST, BEGINS_MS)
    assert made.next_due_ms() == BEGINS_MS + RENEW_MS
    assert not made.look(LOST, BEGINS_MS + RENEW_MS - 1)
    assert made.look(LOST, BEGINS_MS + RENEW_MS)
    assert made.held == {VIP: BEGINS_MS + RENEW_MS + CLAIM_MS}


@pytest.mark.parametrize(
    "change",
    [
        {"has_leader": True},
        {"able": False},
        {"owned": frozenset({OTHER})},
        {"enabled": False},
    ],
)
def test_it_ends_at_once_when_something_speaks_against_it(change: dict[str, object]) -> None:
    made = lost()
    made.look(LOST, BEGINS_MS)
    assert made.look(replace(LOST, **change), BEGINS_MS + 1)  # type: ignore[arg-type]
    assert made.held == {}


def test_another_claimant_ends_it_until_there_has_been_a_leader() -> None:
    made = lost()
    made.look(LOST, BEGINS_MS)
    made.contested(VIP)
    assert made.look(LOST, BEGINS_MS + 1)
    assert made.held == {}
    assert not made.look(LOST, BEGINS_MS + 10_000)
    made.look(LED, BEGINS_MS + 11_000)
    made.look(LOST, BEGINS_MS + 12_000)
    assert made.look(LOST, BEGINS_MS + 12_000 + LEADERLESS_MS)
    assert VIP in made.held


def test_a_claimant_under_a_leader_is_the_leaders_business() -> None:
    made = Holding()
    made.leased((VIP,))
    made.look(LED, 0)
    made.contested(VIP)
    made.look(LOST, LOST_MS)
    assert made.look(LOST, BEGINS_MS)
    assert VIP in made.held


def test_only_what_it_held_and_still_owns() -> None:
    made = lost((VIP, OTHER))
    made.look(LOST, BEGINS_MS)
    assert set(made.held) == {VIP}
    started = Holding()
    started.look(LOST, LOST_MS)
    assert not started.look(LOST, BEGINS_MS)
    assert started.next_due_ms() is None, "it has held nothing, so there is nothing to wait for"


def test_who_hears_a_leader_in_time_never_begins() -> None:
    made = lost()
    made.look(LED, BEGINS_MS - 1)
    assert made.next_due_ms() is None
    made.look(LOST, BEGINS_MS)
    assert not made.look(LOST, BEGINS_MS + LEADERLESS_MS - 1)
    assert made.held == {}


@pytest.mark.parametrize(
    "change", [{}, {"enabled": False}, {"able": False}, {"owned": frozenset[str]()}]
)
def test_it_never_waits_for_a_moment_that_has_passed(change: dict[str, object]) -> None:
    """The process has real-time priority: one that turns without an end stops the machine."""
    made = lost()
    now = replace(LOST, **change)  # type: ignore[arg-type]
    for now_ms in range(LOST_MS, BEGINS_MS + 3 * RENEW_MS, 7):
        if now_ms > BEGINS_MS + RENEW_MS:
            made.contested(VIP)
        made.look(now, now_ms)
        due_ms = made.next_due_ms()
        assert due_ms is None or due_ms > now_ms
