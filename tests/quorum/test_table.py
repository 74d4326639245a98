"""The merge of views into the node table: its rules as tables, its promises as properties."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bus.states import (
    LocalView,
    NodeService,
    NodeTable,
    ServiceState,
    SnatSlice,
    states_apart,
)
from bus.words import (
    Mode,
    NodeState,
)
from conf.lb import Dataplane
from services.quorum.table import (
    FIRST_PORT,
    OWN_ADDRESS_PORTS,
    SLOT_PORTS,
    SLOT_REUSE_MS,
    SLOTS,
    FloatingVip,
    Report,
    TableConfig,
    aged,
    bootstrap,
    changes,
    merge,
    same_content,
)
from tests.quorum.views import ECHO, WEB, seen, table_config, view

UP, DRAINING, DOWN = NodeState.UP, NodeState.DRAINING, NodeState.DOWN
BANNED, PROBATION = NodeState.BANNED, NodeState.PROBATION
SUSPECT = NodeState.SUSPECT
L2, L3, L4 = Mode.L2, Mode.L3, Mode.L4
SEED = 0xFEED_FACE_CAFE_BEEF


def report(observed: LocalView, *, settled: bool = True, age_ms: int = 0) -> Report:
    return Report(observed, settled, age_ms)


def table_of(*nodes: tuple[str, NodeState]) -> NodeTable:
    """A committed table with these nodes in these states."""
    reports = {"lb-0": report(view(*(seen(name, UP) for name, _ in nodes)))}
    table = merge(bootstrap(1, SEED), reports, table_config(), ["lb-0"], term=1)
    wanted = dict(nodes)
    return replace(
        table, nodes=tuple(replace(node, state=wanted[node.name]) for node in table.nodes)
    )


def states(table: NodeTable) -> dict[str, NodeState]:
    return {node.name: node.state for node in table.nodes}


@pytest.mark.parametrize(
    ("before", "observed", "after"),
    [
        (None, [UP], UP),
        (None, [PROBATION], None),
        (None, [DOWN], None),
        (None, [DRAINING], DRAINING),
        (None, [BANNED], BANNED),
        (UP, [UP], UP),
        (UP, [DRAINING], DRAINING),
        (UP, [DOWN], DOWN),
        (UP, [PROBATION], DOWN),
        (UP, [UP, DOWN], UP),
        (SUSPECT, [UP, DOWN], UP),
        (UP, [UP, PROBATION, PROBATION], UP),
        (UP, [UP, PROBATION, DOWN], UP),
        (UP, [PROBATION, PROBATION, DOWN], DOWN),
        (UP, [UP, DOWN, DOWN], DOWN),
        (DOWN, [UP, DOWN], DOWN),
        (DOWN, [UP, PROBATION, PROBATION], DOWN),
        (UP, [BANNED], BANNED),
        (UP, [None], None),
        (DOWN, [PROBATION], DOWN),
        (DOWN, [UP], UP),
        (BANNED, [PROBATION], DOWN),
        (BANNED, [BANNED], BANNED),
        (None, [SUSPECT], SUSPECT),
        (UP, [UP, UP, SUSPECT], UP),
        (UP, [UP, SUSPECT, SUSPECT], SUSPECT),
        (UP, [UP, SUSPECT, DOWN], SUSPECT),
        (UP, [DRAINING, SUSPECT, DOWN], DRAINING),
        (UP, [SUSPECT, DOWN, DOWN], DOWN),
        (None, [UP, DOWN], None),
        (UP, [UP, UP, DOWN], UP),
        (UP, [UP, DRAINING, DOWN], DRAINING),
        (UP, [UP, DRAINING, DRAINING], DRAINING),
        (UP, [BANNED, BANNED, UP], BANNED),
        (UP, [BANNED, UP, UP], UP),
        (UP, [BANNED, DOWN, UP], DOWN),
        (None, [UP, None, None], None),
        (None, [UP, UP, None], UP),
        (UP, [UP, None, None], DOWN),
        (UP, [None, None, None], None),
    ],
)
def test_majority(
    before: NodeState | None, observed: list[NodeState | None], after: NodeState | None
) -> None:
    previous = table_of() if before is None else table_of(("n", before))
    reports = {
        f"lb-{i}": report(view() if state is None else view(seen("n", state)))
        for i, state in enumerate(observed)
    }
    merged = merge(previous, reports, table_config(), ["lb-0"], term=1)
    assert states(merged) == ({} if after is None else {"n": after})
    assert [ban.node for ban in merged.bans] == (["n@10.81.0.20"] if after is BANNED else [])


def serving(state: NodeState, *names: str, **apart: NodeState) -> LocalView:
    """One node with these services, of which some are in states of their own."""
    services = tuple(NodeService(name, 8080) for name in names)
    own = tuple(ServiceState(name, each, "as it is") for name, each in apart.items())
    return view(replace(seen("n", state), services=services, apart=own))


@pytest.mark.parametrize(
    ("observed", "state", "apart"),
    [
        ([serving(UP, "a", "b", b=DOWN)], UP, {"b": DOWN}),
        ([serving(UP, "a", "b", b=PROBATION)], UP, {"b": DOWN}),
        ([serving(UP, "a", "b", b=BANNED)], UP, {"b": BANNED}),
        ([serving(DRAINING, "a", "b", b=DOWN)], DRAINING, {"b": DOWN}),
        ([serving(UP, "a", "b", b=DOWN)] * 2 + [serving(UP, "a", "b")], UP, {"b": DOWN}),
        ([serving(UP, "a", "b", b=DOWN)] + [serving(UP, "a", "b")] * 2, UP, {}),
        ([serving(UP, "a", "b", b=DOWN), serving(UP, "a", "b")], UP, {}),
        ([serving(UP, "a", "b", b=DOWN), serving(UP, "a"), serving(UP, "a")], UP, {"b": DOWN}),
        ([serving(UP, "a", "b"), serving(UP, "a")], UP, {}),
        ([serving(UP, "a", "b", a=DOWN), serving(UP, "a", "b", b=DOWN)], UP, {}),
        (
            [serving(UP, "a", "b", a=BANNED), serving(UP, "a", "b", b=BANNED, a=DOWN)],
            UP,
            {"a": DOWN},
        ),
        ([serving(UP, "a", "b", b=DOWN), serving(DOWN, "a", "b")], UP, {"b": DOWN}),
        ([serving(UP, "a", "b", b=DOWN)] * 2 + [serving(DOWN, "a", "b")], UP, {"b": DOWN}),
        ([serving(UP, "a", "b", b=DOWN)] * 2 + [view()], UP, {"b": DOWN}),
    ],
)
def test_a_service_of_a_node_has_a_majority_of_its_own(
    observed: list[LocalView], state: NodeState, apart: dict[str, NodeState]
) -> None:
    reports = {f"lb-{i}": report(each) for i, each in enumerate(observed)}
    before = merge(
        bootstrap(1, SEED), {"lb-0": report(serving(UP, "a", "b"))}, table_config(), [], term=1
    )
    merged = merge(before, reports, table_config(), [], term=1)
    (node,) = merged.nodes
    assert (node.state, states_apart(node)) == (state, apart)
    assert merge(merged, reports, table_config(), [], term=1).epoch == merged.epoch


def test_why_a_service_is_down_is_no_content_and_its_state_is_told() -> None:
    def reports(reason: str) -> dict[str, Report]:
        seen_here = serving(UP, "a", "b", b=DOWN)
        (only,) = seen_here.nodes
        apart = (ServiceState("b", DOWN, reason),)
        return {"lb-0": report(replace(seen_here, nodes=(replace(only, apart=apart),)))}

    well = merge(
        bootstrap(1, SEED), {"lb-0": report(serving(UP, "a", "b"))}, table_config(), [], term=1
    )
    sick = merge(well, reports("refused"), table_config(), [], term=1)
    assert changes(well, sick) == ("b at n up -> down",)
    assert merge(sick, reports("timed out"), table_config(), [], term=1).epoch == sick.epoch
    again = merge(sick, {"lb-0": report(serving(UP, "a", "b"))}, table_config(), [], term=1)
    assert changes(sick, again) == ("b at n down -> up",)
    down = merge(sick, {"lb-0": report(serving(DOWN, "a", "b"))}, table_config(), [], term=1)
    assert down.nodes[0].apart == ()


@pytest.mark.parametrize("state", list(NodeState))
def test_silence_of_an_unsettled_report_says_nothing(state: NodeState) -> None:
    previous = table_of(("n", state))
    for reports in ({}, {"lb-0": report(view(), settled=False)}):
        merged = merge(previous, reports, table_config(), ["lb-0"], term=1)
        assert states(merged) == {"n": state}
        assert merged.epoch == previous.epoch


def test_an_unsettled_report_is_believed_where_it_speaks() -> None:
    previous = table_of(("kept", UP), ("lost", UP))
    reports = {"lb-0": report(view(seen("lost", DOWN)), settled=False)}
    merged = merge(previous, reports, table_config(), ["lb-0"], term=1)
    assert states(merged) == {"kept": UP, "lost": DOWN}


@pytest.mark.parametrize(
    ("before", "observed", "after"),
    [
        (UP, [(DOWN, True)], True),
        (UP, [(DOWN, False)], False),
        (UP, [(BANNED, True)], True),
        (DOWN, [(DOWN, True)], True),
        (UP, [(DOWN, True), (DOWN, False)], False),
        (UP, [(DOWN, True), (DOWN, True), (DOWN, False)], True),
        (UP, [(BANNED, True), (DOWN, True), (DOWN, False)], True),
        (UP, [(DOWN, True), (DOWN, False), (DOWN, False)], False),
        (UP, [(DOWN, True), (PROBATION, False), (PROBATION, False)], True),
        (UP, [(UP, False), (DOWN, True), (DOWN, True)], True),
        (UP, [(UP, False), (UP, False), (DOWN, True)], False),
        (UP, [(DRAINING, False), (DRAINING, False), (DOWN, True)], False),
        (DOWN, [(PROBATION, False)], False),
        (None, [(BANNED, True)], True),
    ],
)
def test_a_dead_node_is_silent_if_most_who_call_it_dead_hear_nothing(
    before: NodeState | None, observed: list[tuple[NodeState, bool]], after: bool
) -> None:
    previous = table_of() if before is None else table_of(("n", before))
    reports = {
        f"lb-{i}": report(view(replace(seen("n", state), silent=silent)))
        for i, (state, silent) in enumerate(observed)
    }
    merged = merge(previous, reports, table_config(), ["lb-0"], term=1)
    assert [node.silent for node in merged.nodes] == [after]
    heard_no_more = merge(merged, {}, table_config(), ["lb-0"], term=1)
    assert heard_no_more.nodes == merged.nodes


def test_a_dead_node_that_falls_silent_is_a_new_epoch_and_said() -> None:
    spoke = merge(
        table_of(("n", UP)), {"lb-0": report(view(seen("n", DOWN)))}, table_config(), [], term=1
    )
    quiet = {"lb-0": report(view(replace(seen("n", DOWN), silent=True)))}
    fell_silent = merge(spoke, quiet, table_config(), [], term=1)
    assert fell_silent.epoch == spoke.epoch + 1
    assert changes(spoke, fell_silent) == ("n fell silent",)
    assert changes(fell_silent, spoke) == ("n is heard again",)
    assert merge(fell_silent, quiet, table_config(), [], term=1) == fell_silent


@pytest.mark.parametrize(
    ("said", "agreed"),
    [
        ([()], ()),
        ([(L4,)], (L4,)),
        ([(), (L3, L4)], (L3, L4)),
        ([(L3, L4), ()], (L3, L4)),
        ([(L3, L4), (L4,)], (L4,)),
        ([(L2, L3, L4), (L3, L4), (L2, L3, L4)], (L3, L4)),
        ([(L2,), (L3,)], (L4,)),
    ],
)
def test_a_node_is_prepared_for_what_all_lbs_have_heard(
    said: list[tuple[Mode, ...]], agreed: tuple[Mode, ...]
) -> None:
    def prepared(state: NodeState, modes: tuple[Mode, ...]) -> Report:
        services = (NodeService("default", 8080, modes), NodeService("echo", 9000))
        return report(view(replace(seen("n", state), services=services)))

    reports = {f"lb-{i}": prepared(UP, modes) for i, modes in enumerate(said)}
    reports["lb-9"] = prepared(DOWN, (L2, L4))
    merged = merge(table_of(("n", UP)), reports, table_config(), ["lb-0"], term=1)
    expected = (NodeService("default", 8080, agreed), NodeService("echo", 9000))
    assert merged.nodes[0].services == expected
    assert merge(merged, reports, table_config(), ["lb-0"], term=1) == merged


def test_a_ban_is_the_longest_of_its_electors_and_ages() -> None:
    reports = {
        "lb-0": report(view(seen("n", BANNED, ban_ms=60_000, fails=5)), age_ms=10_000),
        "lb-1": report(view(seen("n", BANNED, ban_ms=55_000, fails=4)), age_ms=0),
    }
    merged = merge(table_of(("n", UP)), reports, table_config(), ["lb-0"], term=1)
    assert [(ban.remaining_ms, ban.fails) for ban in merged.bans] == [(55_000, 5)]
    assert aged(merged, 54_000).bans[0].remaining_ms == 1_000
    assert aged(merged, 99_000).bans[0].remaining_ms == 0


def test_a_ban_that_passes_is_no_new_epoch() -> None:
    first = merge(
        table_of(("n", UP)),
        {"lb-0": report(view(seen("n", BANNED, ban_ms=60_000, fails=5)))},
        table_config(),
        ["lb-0"],
        term=1,
    )
    later = merge(
        first,
        {"lb-0": report(view(seen("n", BANNED, ban_ms=30_000, fails=5)))},
        table_config(),
        ["lb-0"],
        term=7,
    )
    assert (later.term, later.epoch) == (first.term, first.epoch)
    assert later.bans[0].remaining_ms == 30_000


def test_a_node_on_its_way_back_keeps_what_is_known_of_it() -> None:
    previous = table_of(("n", DOWN))
    back = {"lb-0": report(view(seen("n", PROBATION, weight=9)))}
    assert merge(previous, back, table_config(), ["lb-0"], term=1).nodes[0].weight == 1
    up = {"lb-0": report(view(seen("n", UP, weight=9)))}
    assert merge(previous, up, table_config(), ["lb-0"], term=1).nodes[0].weight == 9


def test_services_come_from_the_configuration_in_one_order() -> None:
    one = merge(bootstrap(1, SEED), {}, TableConfig((ECHO, WEB), ()), ["lb-0"], term=1)
    other = merge(one, {}, TableConfig((WEB, ECHO), ()), ["lb-0"], term=1)
    assert [service.name for service in one.services] == ["default", "echo"]
    assert other.epoch == one.epoch
    fewer = merge(one, {}, TableConfig((WEB,), ()), ["lb-0"], term=2)
    assert (fewer.term, fewer.epoch, len(fewer.services)) == (2, one.epoch + 1, 1)


# --------------------------------------------------------------------------- VIPs and slices

VIPS = (
    FloatingVip("10.80.0.100", ("10.81.0.100",)),
    FloatingVip("10.80.0.101", ("10.81.0.101", "10.81.0.102")),
    FloatingVip("10.80.0.102"),
)


def shared_slots(table: NodeTable) -> dict[str, set[int]]:
    slots: dict[str, set[int]] = {}
    for piece in table.snat_slices:
        if piece.address is not None:
            slots.setdefault(piece.owner, set()).add(piece.first_port)
    return slots


def test_without_floating_addresses_each_lb_has_its_own_address_whole() -> None:
    table = merge(bootstrap(1, SEED), {}, table_config(), ["lb-1", "lb-0"], term=1)
    assert [
        (piece.owner, piece.address, piece.first_port, piece.ports) for piece in table.snat_slices
    ] == [
        ("lb-0", None, 1_536, 31_232),
        ("lb-1", None, 1_536, 31_232),
    ]
    assert {(piece.low_first_port, piece.low_ports) for piece in table.snat_slices} == {(600, 424)}
    assert table.vip_owners == ()


def test_the_layout_of_the_slots() -> None:
    assert FIRST_PORT + OWN_ADDRESS_PORTS == 32_768
    assert FIRST_PORT + SLOTS * SLOT_PORTS <= 65_536
    lbs = [f"lb-{i}" for i in range(9)]
    table = merge(bootstrap(1, SEED), {}, table_config(vips=VIPS), lbs, term=1)
    for address in ("10.81.0.100", "10.81.0.101", "10.81.0.102"):
        pieces = [piece for piece in table.snat_slices if piece.address == address]
        pieces.sort(key=lambda piece: piece.first_port)
        held = [(piece.first_port, piece.first_port + piece.ports) for piece in pieces]
        assert len(held) == SLOTS
        assert held[3][1] == 32_768
        assert all(end <= start for (_, end), (start, _) in pairwise(held))
        low = [(piece.low_first_port, piece.low_first_port + piece.low_ports) for piece in pieces]
        assert (low[0], low[-1]) == ((600, 653), (971, 1_024))
        assert all(end == start for (_, end), (start, _) in pairwise(low))
    assert "lb-8" not in shared_slots(table)


def test_the_addresses_of_a_service_are_sliced_as_those_of_a_vip() -> None:
    alone = replace(WEB, snat_addresses=("10.81.0.111", "10.81.0.110"))
    along = replace(ECHO, snat_addresses=("10.81.0.100", "10.81.0.110"))
    config = TableConfig((alone, along), VIPS[:1])
    table = merge(bootstrap(1, SEED), {}, config, ["lb-0", "lb-1"], term=1)
    assert [
        (piece.address, piece.owner, piece.first_port, piece.low_first_port)
        for piece in table.snat_slices
        if piece.address is not None
    ] == [
        (address, owner, first_port, low_first_port)
        for address in ("10.81.0.100", "10.81.0.110", "10.81.0.111")
        for owner, first_port, low_first_port in (("lb-0", 1_536, 600), ("lb-1", 9_344, 653))
    ]
    without_vips = TableConfig((alone,), ())
    own = merge(table, {}, without_vips, ["lb-1"], term=1, released=frozenset({"lb-0"}))
    assert {(p.address, p.owner, p.first_port) for p in own.snat_slices} == {
        (None, "lb-1", 1_536),
        ("10.81.0.110", "lb-1", 9_344),
        ("10.81.0.111", "lb-1", 9_344),
    }


def test_a_vip_has_all_its_addresses_and_the_first_by_itself() -> None:
    table = merge(bootstrap(1, SEED), {}, table_config(vips=VIPS), ["lb-0"], term=1)
    assert [(vip.snat_address, vip.snat_addresses) for vip in table.vip_owners] == [
        ("10.81.0.100", ("10.81.0.100",)),
        ("10.81.0.101", ("10.81.0.101", "10.81.0.102")),
        (None, ()),
    ]


def test_a_slot_rests_longer_than_any_flow_without_packets() -> None:
    fields = Dataplane.model_fields.items()
    longest_ms = max(field.default for name, field in fields if name.endswith("_ms"))
    assert SLOT_REUSE_MS >= longest_ms >= 7_440_000


def test_a_slot_stays_with_its_lb_and_rests_after_it_left() -> None:
    config = table_config(vips=VIPS[:1])
    three = merge(bootstrap(1, SEED), {}, config, ["lb-a", "lb-b", "lb-c"], term=1)
    slots = shared_slots(three)
    left = merge(three, {}, config, ["lb-a", "lb-c", "lb-0"], term=1)
    assert shared_slots(left)["lb-c"] == slots["lb-c"]
    assert shared_slots(left)["lb-b"] == slots["lb-b"]
    assert shared_slots(left)["lb-0"] not in slots.values()
    reused = merge(
        left, {}, config, ["lb-a", "lb-c", "lb-0", "lb-d"], term=1, released=frozenset({"lb-b"})
    )
    assert "lb-b" not in shared_slots(reused)
    assert shared_slots(reused)["lb-d"] == slots["lb-b"]


def test_an_owner_keeps_its_vip_and_an_orphan_goes_to_who_has_fewest() -> None:
    config = table_config(vips=VIPS)
    one = merge(bootstrap(1, SEED), {}, config, ["lb-1"], term=1)
    assert {vip.owner for vip in one.vip_owners} == {"lb-1"}
    two = merge(one, {}, config, ["lb-0", "lb-1"], term=1)
    assert two.vip_owners == one.vip_owners
    gone = merge(two, {}, config, ["lb-0", "lb-2"], term=1)
    assert [vip.owner for vip in gone.vip_owners] == ["lb-0", "lb-2", "lb-0"]
    assert {vip.owner for vip in merge(two, {}, config, [], term=1).vip_owners} == {None}


# --------------------------------------------------------------------------- properties

lb_views = st.dictionaries(
    st.sampled_from(["lb-0", "lb-1", "lb-2"]),
    st.builds(
        Report,
        view=st.dictionaries(
            st.sampled_from(["a", "b", "c", "d"]),
            st.tuples(
                st.sampled_from(NodeState), st.integers(1, 3), st.integers(0, 90_000), st.booleans()
            ),
        ).map(
            lambda nodes: view(
                *(
                    replace(seen(n, state, weight=w, ban_ms=ms), silent=silent)
                    for n, (state, w, ms, silent) in nodes.items()
                )
            )
        ),
        settled=st.booleans(),
        age_ms=st.integers(0, 2_000),
    ),
)
histories = st.lists(
    st.tuples(
        lb_views,
        st.lists(st.sampled_from(VIPS), unique=True).map(tuple),
        st.lists(st.sampled_from(["lb-0", "lb-1", "lb-2"]), min_size=1, unique=True),
    ),
    max_size=6,
)


@given(histories)
def test_the_epoch_rises_with_the_content_and_only_then(
    history: list[tuple[dict[str, Report], tuple[FloatingVip, ...], list[str]]],
) -> None:
    table = merge(bootstrap(1, SEED), {}, table_config(), ["lb-0"], term=1)
    for reports, vips, members in history:
        following = merge(table, reports, table_config(vips=vips), members, term=1)
        assert following.epoch == table.epoch + (not same_content(table, following))
        assert following.hash_seed == SEED
        again = merge(following, reports, table_config(vips=vips), members, term=1)
        assert again == following
        table = following


@given(histories)
def test_the_order_of_arrival_does_not_matter(
    history: list[tuple[dict[str, Report], tuple[FloatingVip, ...], list[str]]],
) -> None:
    table = other = merge(bootstrap(1, SEED), {}, table_config(), ["lb-0"], term=1)
    for reports, vips, members in history:
        table = merge(table, reports, table_config(vips=vips), members, term=1)
        backwards = {
            lb: replace(each, view=view(*reversed(each.view.nodes)))
            for lb, each in reversed(reports.items())
        }
        other = merge(
            other, backwards, table_config(vips=vips[::-1]), list(reversed(members)), term=1
        )
        assert other == table


@given(histories)
def test_bans_and_slices_are_sound(
    history: list[tuple[dict[str, Report], tuple[FloatingVip, ...], list[str]]],
) -> None:
    table = merge(bootstrap(1, SEED), {}, table_config(), ["lb-0"], term=1)
    for reports, vips, members in history:
        table = merge(table, reports, table_config(vips=vips), members, term=1)
        banned = {node.id for node in table.nodes if node.state is BANNED}
        assert {ban.node for ban in table.bans} == banned
        silent = {node.state for node in table.nodes if node.silent}
        assert silent <= {DOWN, BANNED}
        held = [(piece.address, piece.first_port) for piece in table.snat_slices if piece.address]
        assert len(set(held)) == len(held)
        low = [(piece.address, piece.low_first_port) for piece in table.snat_slices]
        assert len({place for place in low if place[0]}) == len(held)
        assert all(len(slot) == 1 for slot in shared_slots(table).values())
        assert {vip.owner for vip in table.vip_owners} <= set(members)


# --------------------------------------------------------------------------- what changed


def test_changes_are_said_by_name() -> None:
    before = table_of(("a", UP), ("b", UP), ("c", UP), ("d", UP))
    reports = {"lb-0": report(view(seen("a", DOWN), seen("b", UP, weight=4), seen("e", UP)))}
    after = merge(before, reports, TableConfig((ECHO,), VIPS[:1]), ["lb-0"], term=1)
    assert changes(before, after) == (
        "a up -> down",
        "b weight 1 -> 4",
        "c up -> forgotten",
        "d up -> forgotten",
        "e new -> up",
        "service default gone",
        "service echo new",
        "vip 10.80.0.100 new",
        "snat slices 1 -> 2",
    )
    assert changes(after, after) == ()


@pytest.mark.parametrize("first_port", [1, 1_535, 1_537, 64_001, 65_535])
def test_a_slice_of_another_layout_is_nobodys_slot(first_port: int) -> None:
    config = TableConfig((), (FloatingVip("10.0.0.100", ("10.0.0.200",)),))
    stray = SnatSlice("lb-9", "10.0.0.200", first_port, 1)
    base = replace(bootstrap(1, 7), snat_slices=(stray,))
    merged = merge(base, {}, config, ["lb-0"], term=1)
    shared = [held for held in merged.snat_slices if held.address is not None]
    assert [(held.owner, held.first_port) for held in shared] == [("lb-0", 1_536)]


def test_a_node_all_of_whose_services_are_banned_for_themselves_has_no_ban_of_its_own() -> None:
    apart = (ServiceState("default", BANNED),)
    sick = replace(seen("n", UP), apart=apart)
    table = merge(
        bootstrap(1, 7),
        {"lb-0": Report(view(sick), settled=True, age_ms=0)},
        table_config(),
        ["lb-0"],
        term=1,
    )
    assert [node.state for node in table.nodes] == [BANNED]
    assert table.bans == ()
