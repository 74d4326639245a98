"""What a node needs for direct return, and the way there, as tables."""

from __future__ import annotations

from dataclasses import replace

import pytest

from bus.node_protocol import (
    OfferedService,
    Prepared,
)
from bus.words import (
    Encapsulation,
    Mode,
    Protocol,
)
from services.node.direct import (
    LEAST_MSS,
    LINGER_MS,
    NOTHING_NEEDED,
    NOTHING_TAKEN,
    Found,
    Lingering,
    Need,
    Plan,
    Setting,
    Taken,
    advertised_mss,
    lacks,
    need_of,
    plan,
    prepared_for,
)

VIP, OTHER = "10.80.0.100", "10.80.0.101"
ARP = {"all/arp_ignore": 0, "all/arp_announce": 0}
EMPTY = Found(
    loopback=frozenset({"127.0.0.1"}),
    elsewhere={"10.81.0.20": "priv0"},
    settings={**ARP, "all/rp_filter": 0, "priv0/rp_filter": 0},
    facing=frozenset({"priv0"}),
    crossed=frozenset(),
)
PREPARED = replace(
    EMPTY,
    loopback=frozenset({"127.0.0.1", VIP}),
    settings={**EMPTY.settings, "all/arp_ignore": 1, "all/arp_announce": 2},
)
L2 = Need(frozenset({VIP}))
L3 = Need(frozenset({VIP}), frozenset({VIP}), 20)
NOWHERE: frozenset[tuple[str, str]] = frozenset()
ON_PRIV0 = frozenset({("priv0", "tc")})


def offer(
    name: str,
    mode: Mode,
    vip: str | None = VIP,
    encap: Encapsulation = Encapsulation.IPIP,
) -> OfferedService:
    return OfferedService(name, vip, 80, Protocol.TCP, mode, 8080, encap)


@pytest.mark.parametrize(
    ("offers", "served", "need"),
    [
        ([], set(), NOTHING_NEEDED),
        ([offer("a", Mode.L4)], set(), NOTHING_NEEDED),
        ([offer("a", Mode.L2)], set(), L2),
        ([offer("a", Mode.L2, None)], set(), NOTHING_NEEDED),
        ([offer("a", Mode.L3)], set(), L3),
        ([offer("a", Mode.L3), offer("a", Mode.L3)], set(), L3),
        ([offer("a", Mode.L2), offer("b", Mode.L3)], {"a"}, L2),
        ([offer("a", Mode.L2), offer("b", Mode.L3)], {"c"}, NOTHING_NEEDED),
        (
            [offer("a", Mode.L3), offer("b", Mode.L3, OTHER, Encapsulation.GUE)],
            set(),
            Need(frozenset({VIP, OTHER}), frozenset({VIP, OTHER}), 32),
        ),
        (
            [offer("a", Mode.L2, OTHER), offer("b", Mode.L3)],
            set(),
            Need(frozenset({VIP, OTHER}), frozenset({VIP}), 20),
        ),
    ],
)
def test_what_the_offers_need(offers: list[OfferedService], served: set[str], need: Need) -> None:
    assert need_of(offers, frozenset(served)) == need


BOTH = Need(frozenset({VIP, OTHER}), frozenset({OTHER}), 20)


@pytest.mark.parametrize(
    ("offers", "served", "done", "prepared"),
    [
        ([], set(), L3, ()),
        ([offer("a", Mode.L4)], set(), NOTHING_NEEDED, ()),
        ([offer("a", Mode.L3)], set(), NOTHING_NEEDED, ()),
        ([offer("a", Mode.L3)], set(), L2, (Prepared((Mode.L2,), ("a",)),)),
        ([offer("a", Mode.L2)], set(), L3, (Prepared((Mode.L2, Mode.L3), ("a",)),)),
        ([offer("a", Mode.L4)], set(), L3, (Prepared((Mode.L2, Mode.L3), ("a",)),)),
        ([offer("a", Mode.L3, None)], set(), L3, ()),
        ([offer("a", Mode.L3), offer("b", Mode.L3)], {"b"}, L2, (Prepared((Mode.L2,), ("b",)),)),
        (
            [offer("a", Mode.L2), offer("b", Mode.L3, OTHER), offer("c", Mode.L3, OTHER)],
            set(),
            BOTH,
            (Prepared((Mode.L2, Mode.L3), ("b", "c")), Prepared((Mode.L2,), ("a",))),
        ),
    ],
)
def test_for_which_modes_the_machine_is_prepared(
    offers: list[OfferedService], served: set[str], done: Need, prepared: tuple[Prepared, ...]
) -> None:
    assert prepared_for(offers, frozenset(served), done) == prepared


def test_what_two_needs_have_in_common() -> None:
    assert L3 & L2 == L2
    assert replace(L2, header_bytes=20) == BOTH & L3
    assert L3 & L3 == L3
    assert L3 & NOTHING_NEEDED == NOTHING_NEEDED


def test_what_is_no_longer_needed_lingers() -> None:
    lingering = Lingering()
    assert lingering.kept(L3, False, 0) == L3
    assert lingering.kept(L3, False, 50_000) == L3
    assert lingering.kept(L2, False, 60_000) == L3
    other = Need(frozenset({OTHER}))
    assert lingering.kept(other, False, 60_000 + LINGER_MS - 1) == L3 | other
    assert lingering.kept(other, False, 60_000 + LINGER_MS) == L2 | other
    assert lingering.kept(other, False, 60_000 + 2 * LINGER_MS - 2) == L2 | other
    assert lingering.kept(other, False, 60_000 + 2 * LINGER_MS - 1) == other


def test_what_cannot_be_had_does_not_linger() -> None:
    """Else a node would go on not serving for what nobody asks of it any more."""
    lingering = Lingering()
    lingering.kept(L2, False, 0)
    assert lingering.kept(L2, True, 1_000) == L2
    assert lingering.kept(NOTHING_NEEDED, True, 2_000) == NOTHING_NEEDED
    assert lingering.kept(NOTHING_NEEDED, False, 2_001) == NOTHING_NEEDED


def test_from_nothing_to_prepared_and_back() -> None:
    there = plan(L3, NOTHING_TAKEN, EMPTY, ON_PRIV0)
    assert there.change == {"all/arp_ignore": 1, "all/arp_announce": 2}
    assert there.add == {VIP}
    assert (there.remove, there.restore, there.missing) == (frozenset(), {}, ())
    assert there.after == Taken(
        need=L3,
        addresses=frozenset({VIP}),
        settings={"all/arp_ignore": Setting(0, 1), "all/arp_announce": Setting(0, 2)},
        hooks=ON_PRIV0,
    )
    assert nothing_to_do(plan(L3, there.after, PREPARED, ON_PRIV0))
    back = plan(NOTHING_NEEDED, there.after, PREPARED, NOWHERE)
    assert (back.add, back.change) == (frozenset(), {})
    assert back.remove == {VIP}
    assert back.restore == ARP
    assert back.during.addresses == {VIP}
    assert not back.after


def nothing_to_do(steps: Plan) -> bool:
    done = not (steps.change or steps.add or steps.remove or steps.restore or steps.missing)
    return done and steps.during == steps.after


def test_what_is_to_be_taken_is_recorded_before() -> None:
    steps = plan(L3, NOTHING_TAKEN, EMPTY, ON_PRIV0)
    assert steps.during == steps.after


def test_what_the_operator_has_is_not_taken() -> None:
    his = replace(PREPARED, settings={**PREPARED.settings, "all/arp_ignore": 2})
    steps = plan(L2, NOTHING_TAKEN, his, NOWHERE)
    assert nothing_to_do(steps)
    assert steps.after == Taken(need=L2)
    assert nothing_to_do(replace(plan(NOTHING_NEEDED, steps.after, his, NOWHERE), during=Taken()))


def test_a_setting_that_was_changed_after_us_stays() -> None:
    taken = plan(L2, NOTHING_TAKEN, EMPTY, NOWHERE).after
    changed = replace(PREPARED, settings={**PREPARED.settings, "all/arp_ignore": 8})
    assert plan(NOTHING_NEEDED, taken, changed, NOWHERE).restore == {"all/arp_announce": 0}


def test_a_setting_is_remembered_as_it_was_first() -> None:
    taken = plan(L2, NOTHING_TAKEN, EMPTY, NOWHERE).after
    lowered = replace(PREPARED, settings={**PREPARED.settings, "all/arp_announce": 1})
    steps = plan(L2, taken, lowered, NOWHERE)
    assert steps.change == {"all/arp_announce": 2}
    assert steps.after.settings["all/arp_announce"] == Setting(0, 2)


def test_an_address_that_somebody_took_away_comes_back() -> None:
    taken = plan(L2, NOTHING_TAKEN, EMPTY, NOWHERE).after
    assert plan(L2, taken, replace(PREPARED, loopback=EMPTY.loopback), NOWHERE).add == {VIP}


@pytest.mark.parametrize(
    ("everywhere", "own", "crossed", "loosened"),
    [
        (0, 0, True, False),
        (1, 0, True, True),
        (0, 1, True, True),
        (1, 1, False, False),
        (2, 1, True, False),
        (1, 2, True, False),
    ],
)
def test_strict_filtering_is_loosened_only_where_it_must_be(
    everywhere: int, own: int, crossed: bool, loosened: bool
) -> None:
    found = replace(
        PREPARED,
        settings={**PREPARED.settings, "all/rp_filter": everywhere, "priv0/rp_filter": own},
        crossed=frozenset({"priv0"} if crossed else ()),
    )
    steps = plan(L2, NOTHING_TAKEN, found, NOWHERE)
    assert steps.change == ({"priv0/rp_filter": 2} if loosened else {})
    if loosened:
        after = replace(found, settings={**found.settings, "priv0/rp_filter": 2})
        assert nothing_to_do(plan(L2, steps.after, after, NOWHERE))
        assert plan(NOTHING_NEEDED, steps.after, after, NOWHERE).restore == {"priv0/rp_filter": own}


def test_an_address_of_another_interface_cannot_be_prepared() -> None:
    found = replace(EMPTY, elsewhere={VIP: "eth0"})
    steps = plan(L2, NOTHING_TAKEN, found, NOWHERE)
    assert steps.add == frozenset()
    assert steps.missing == ("10.80.0.100 is an address of eth0, expected it on lo alone",)


OWN = (
    "10.80.0.100 is the address by which this machine reaches its load balancer: not taken onto lo,"
    ' expected a virtual IP of its own for that service, or mode "l4"'
)


def test_the_address_of_an_lb_is_never_taken() -> None:
    both = Need(frozenset({VIP, OTHER}), frozenset({VIP}), 20)
    steps = plan(both, NOTHING_TAKEN, replace(EMPTY, lbs=frozenset({VIP})), ON_PRIV0)
    assert steps.add == {OTHER}
    assert steps.missing == (OWN,)
    assert steps.during.addresses == steps.after.addresses == {OTHER}
    assert lacks(both, replace(PREPARED, lbs=frozenset({VIP}))) == (
        OWN,
        "10.80.0.101 is not on lo",
    )


def test_the_address_of_an_lb_that_was_taken_earlier_is_given_back() -> None:
    """The LB has moved there meanwhile, or an agent that did not know better had taken it."""
    taken = plan(L2, NOTHING_TAKEN, EMPTY, NOWHERE).after
    steps = plan(L2, taken, replace(PREPARED, lbs=frozenset({VIP})), NOWHERE)
    assert steps.add == frozenset()
    assert steps.remove == {VIP}
    assert steps.missing == (OWN,)
    assert VIP in steps.during.addresses
    assert VIP not in steps.after.addresses
    there_before = plan(L2, NOTHING_TAKEN, replace(PREPARED, lbs=frozenset({VIP})), NOWHERE)
    assert there_before.remove == frozenset()


def test_without_a_way_to_an_lb_nothing_can_be_unwrapped() -> None:
    alone = replace(PREPARED, facing=frozenset())
    assert "nowhere to unwrap" in plan(L3, NOTHING_TAKEN, alone, NOWHERE).missing[0]
    assert plan(L2, NOTHING_TAKEN, alone, NOWHERE).missing == ()


def test_one_of_two_addresses_goes() -> None:
    both = Need(frozenset({VIP, OTHER}))
    taken = plan(both, NOTHING_TAKEN, EMPTY, NOWHERE).after
    found = replace(PREPARED, loopback=PREPARED.loopback | {OTHER})
    steps = plan(L2, taken, found, NOWHERE)
    assert steps.remove == {OTHER}
    assert steps.restore == {}
    assert steps.during.addresses == {VIP, OTHER}
    assert steps.after.addresses == {VIP}


def test_what_an_operator_has_left_out_is_told() -> None:
    assert lacks(NOTHING_NEEDED, EMPTY) == ()
    assert lacks(L2, PREPARED) == ()
    assert lacks(L2, EMPTY) == (
        "10.80.0.100 is not on lo",
        "net.ipv4.conf.all.arp_ignore is 0, expected 1",
        "net.ipv4.conf.all.arp_announce is 0, expected 2",
    )


@pytest.mark.parametrize(
    ("mtu", "header_bytes", "given", "mss"),
    [
        (1500, 20, 0, 1440),
        (1500, 32, 0, 1428),
        (9000, 20, 0, 8940),
        (1500, 20, 1300, 1300),
        (1500, 20, 1460, 1440),
        (68, 32, 0, LEAST_MSS),
    ],
)
def test_the_mss_leaves_room_for_the_header(
    mtu: int, header_bytes: int, given: int, mss: int
) -> None:
    assert advertised_mss(mtu, header_bytes, given) == mss
