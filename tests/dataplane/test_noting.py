"""Who reads the notes is told whose flows they are."""

from __future__ import annotations

from services.dataplane.flows.listing import Seated
from services.dataplane.nat_log import NatLog
from services.dataplane.noting import Noting
from services.process import Loop


def test_a_name_whose_seat_the_maps_do_not_have_is_passed_over() -> None:
    """Other maps may have been attached since the names were given."""
    noting = Noting(Loop(), None, NatLog(lambda topic, event: None), 0)
    noting.name({}, {1: Seated("node-0@10.81.0.20", "web")})
