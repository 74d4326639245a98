"""Leases of VIPs: which grants and releases count, and for how long."""

from __future__ import annotations

from dataclasses import replace

from bus.peer_protocol import Ack, Release, Version
from services.quorum.leases import Granted, Held
from tests.quorum.cluster import VIP


def ack(boot: str, asked: int) -> Ack:
    return Ack("lb-1", 1, 1, Version(1, 1), boot, asked, (), 0)


def test_a_release_of_an_earlier_start_ends_nothing() -> None:
    granted = Granted()
    granted.grant(VIP, ack("first", 50), 1_000)
    granted.grant(VIP, ack("second", 3), 1_100)
    granted.release(Release("lb-1", "first", 60, VIP))
    assert not granted.is_free(VIP, 1_000)
    granted.release(Release("lb-1", "second", 2, VIP))
    assert not granted.is_free(VIP, 1_000)
    granted.release(Release("lb-1", "second", 3, VIP))
    assert granted.is_free(VIP, 1_000)


def test_answers_that_come_in_another_order_let_an_old_release_end_nothing() -> None:
    granted = Granted()
    for boot, asked in (("second", 7), ("second", 5), ("first", 9)):
        granted.grant(VIP, ack(boot, asked), 1_100)
    granted.release(Release("lb-1", "second", 6, VIP))
    granted.release(Release("lb-1", "first", 9, VIP))
    assert not granted.is_free(VIP, 1_000)
    granted.release(Release("lb-1", "second", 7, VIP))
    assert granted.is_free(VIP, 1_000)


def test_a_lease_that_ends_sooner_than_the_one_before_frees_nothing_sooner() -> None:
    """As where one whose promise counted is no member any more: the holder goes by what it has."""
    granted = Granted()
    granted.grant(VIP, ack("b", 1), 1_100)
    granted.grant(VIP, ack("b", 2), 1_050)
    assert not granted.is_free(VIP, 1_099)
    assert granted.left_ms(1_000) == 100
    assert granted.is_free(VIP, 1_100)
    granted.grant(VIP, replace(ack("c", 1), sender="lb-2"), 1_050)
    assert granted.is_free(VIP, 1_050), "the one before is over"


def test_what_was_given_up_is_told_until_all_leases_are_over() -> None:
    held = Held("b")
    asked = held.ask(0)
    held.until_ms[VIP] = 100
    held.give_up(10)
    assert held.releases(10) == {VIP: asked}
    assert held.releases(2_009) == {VIP: asked}
    assert held.releases(2_010) == {}
