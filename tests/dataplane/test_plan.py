"""Plans executed on a model of the kernel's maps: what they end in, and every step on the way."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from bus.states import (
    LocalView,
    NodeService,
    NodeTable,
    NodeView,
    Part,
    ServiceState,
    SnatSlice,
    TableNode,
    TableService,
    VipOwner,
    states_apart,
)
from bus.words import (
    Affinity,
    Mode,
    NodeState,
    NoFlow,
    OnNodeDown,
    Protocol,
)
from services.dataplane import ring
from services.dataplane.flows.census import Census
from services.dataplane.fronts import SETTLE_MS, service_identity
from services.dataplane.maps import (
    EMPTY,
    ENTRIES,
    LANES,
    NO_PORTS,
    NO_SEAT,
    AddressInfo,
    AddressRemoval,
    AddressWrite,
    EndpointRemoval,
    EndpointWrite,
    KernelState,
    LocalFacts,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceRemoval,
    ServiceWrite,
    Slice,
    SlotsWrite,
    Write,
    snat_ports,
)
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import Plan, make_plan
from services.dataplane.seats import seat_identity
from services.dataplane.words import ServiceKey

OWN = frozenset({"127.0.0.1", "10.80.0.10", "10.81.0.10"})
FACTS = LocalFacts(
    "lb-0",
    "10.80.0.10",
    "10.81.0.10",
    OWN,
    max_seats=64,
    max_services=32,
    max_rings=16,
    max_fronts=64,
    max_endpoints=64,
)
HOP = NextHop(7, "02:00:00:00:00:01", "02:00:00:00:00:02", 1500, None, "10.81.0.10")
UP, DRAINING, DOWN, BANNED = NodeState.UP, NodeState.DRAINING, NodeState.DOWN, NodeState.BANNED


def service(name: str, port: int = 80, **fields: object) -> TableService:
    plain = TableService(name, None, port, Protocol.TCP, Mode.L4, port)
    return replace(plain, **fields)  # type: ignore[arg-type]


def node(number: int, state: NodeState = UP, weight: int = 1, *names: str) -> TableNode:
    address = f"10.81.0.{20 + number}"
    own = tuple(NodeService(name, 8000 + number) for name in names)
    return TableNode(f"n{number}@{address}", f"n{number}", address, state, weight, own)


def table(
    nodes: Iterable[TableNode], services: Iterable[TableService] = (service("web"),), seed: int = 1
) -> NodeTable:
    return NodeTable(1, 1, seed, tuple(services), tuple(nodes), (), (), ())


def view(*dead: int, state: NodeState = DOWN) -> LocalView:
    def observed(number: int) -> NodeView:
        known = node(number)
        return NodeView(
            id=known.id,
            name=known.name,
            address=known.address,
            state=state,
            reason="",
            weight=1,
            services=(),
            fails=0,
            banned_for_ms=0,
        )

    return LocalView(1, tuple(observed(number) for number in dead))


@dataclass(frozen=True)
class Flow:
    """What a flow needs of the maps for as long as it lives."""

    front: ServiceKey
    seat: int
    identity: int
    snat_addresses: frozenset[str]


@dataclass
class Kernel:
    """The maps, and what must hold of them after every write."""

    seats: dict[int, Seat] = field(default_factory=dict)
    services: dict[ServiceKey, Service] = field(default_factory=dict)
    addresses: dict[str, AddressInfo] = field(default_factory=dict)
    endpoints: dict[ServiceKey, int] = field(default_factory=dict)
    ring: np.ndarray = field(
        default_factory=lambda: np.zeros((FACTS.max_rings * ENTRIES, LANES), np.uint16)
    )
    flows: list[Flow] = field(default_factory=list)

    def apply(self, write: Write) -> None:
        match write:
            case SeatWrite(seat, value, fresh):
                assert 0 < seat < FACTS.max_seats
                assert fresh == (seat not in self.seats)
                assert self.seats.get(seat) != value
                self.seats[seat] = value
            case SeatRemoval(seat):
                del self.seats[seat]
            case SlotsWrite():
                assert (np.diff(write.indices.astype(int)) > 0).all()
                self.ring[write.indices] = write.values
            case ServiceWrite(key, service_value):
                assert self.services.get(key) != service_value
                self.services[key] = service_value
            case ServiceRemoval(key):
                del self.services[key]
            case AddressWrite(address, info):
                assert self.addresses.get(address) != info
                self.addresses[address] = info
            case AddressRemoval(address):
                del self.addresses[address]
            case EndpointWrite(key, seat):
                assert self.endpoints.get(key) != seat
                self.endpoints[key] = seat
            case EndpointRemoval(key):
                del self.endpoints[key]
        self.check()

    def check(self) -> None:
        for key, value in self.services.items():
            assert key.address in self.addresses
            assert value.has_flows or value.mode is not Mode.L4
            if value.retired:
                continue
            for seat in np.unique(self.seats_of(value)).tolist():
                assert seat == NO_SEAT or self.seats[seat].service_id == value.service_id
        assert (self.ring.reshape(-1, ENTRIES * LANES)[:, ring.SLOTS :] == 0).all()
        for flow in self.flows:
            assert self.seats[flow.seat].identity == flow.identity
            assert self.services[flow.front].has_flows
            assert all(self.addresses[each].snat_slice for each in flow.snat_addresses)

    def region(self, number: int) -> np.ndarray:
        return self.ring[number * ENTRIES : (number + 1) * ENTRIES]

    def seats_of(self, value: Service) -> np.ndarray:
        """Whose seat stands in each slot of a service's ring."""
        offsets = self.region(value.ring).ravel().astype(int)
        return np.where(offsets == 0, NO_SEAT, offsets + value.service_id)

    def open(self, front: ServiceKey, slot: int) -> Flow | None:
        """What a SYN to that front does, if anything."""
        value = self.services.get(front)
        if value is None or value.mode is not Mode.L4 or value.retired:
            return None
        seat = int(self.seats_of(value)[slot])
        if seat == NO_SEAT or not self.seats[seat].up:
            return None
        snat = frozenset(value.snat_addresses) if value.snat_slice != NO_PORTS else frozenset()
        flow = Flow(front, seat, self.seats[seat].identity, snat)
        self.flows.append(flow)
        return flow

    def census(self, plan: Plan, began_ms: int) -> Census:
        """What a pass would meet now that began then."""
        watch = plan.watch
        fronts = {key: sum(flow.front == key for flow in self.flows) for key in watch.fronts}
        snat = {
            each: sum(each in flow.snat_addresses for flow in self.flows)
            for each in watch.snat_addresses
        }
        seats = frozenset(flow.seat for flow in self.flows)
        return Census(began_ms, len(self.flows), 0, 0, 0, seats, fronts, snat)

    def adopt(self, *, read_all: bool = False) -> KernelState:
        """What a restarted process reads out of the maps."""
        used = {value.ring for value in self.services.values()}
        wanted = range(FACTS.max_rings) if read_all else used
        rings = {number: self.region(number).copy() for number in wanted}
        return KernelState(
            dict(self.seats),
            dict(self.services),
            rings,
            dict(self.addresses),
            dict(self.endpoints),
        )

    def slots(self, name: str) -> list[int]:
        """The identities of the nodes in a service's slots, 0 for nobody."""
        found = next(
            value
            for value in self.services.values()
            if value.identity == service_identity(name) and not value.retired
        )
        identity = np.zeros(FACTS.max_seats, np.uint64)
        for seat, value in self.seats.items():
            identity[seat] = value.identity
        flat: list[int] = identity[self.seats_of(found)[: ring.SLOTS]].tolist()
        return flat


def run(
    kernel: Kernel,
    state: KernelState,
    wanted: NodeTable,
    local: LocalView | None = None,
    now_ms: int = 0,
    facts: LocalFacts = FACTS,
    census: Census | None = None,
) -> Plan:
    hops = {member.address: HOP for member in wanted.nodes}
    plan = make_plan(state, wanted, local, hops, facts, census, now_ms)
    for write in plan.writes:
        kernel.apply(write)
    return plan


def expected_slots(wanted: NodeTable, local: LocalView | None, name: str) -> list[int]:
    """Straight from ring: who of the nodes that the table lists has each slot."""
    serving = [
        member
        for member in wanted.nodes
        if member.weight and (not member.services or name in {s.name for s in member.services})
    ]
    seen = local.nodes if local else ()
    dead = {each.id for each in seen if states_apart(each).get(name, each.state) in (DOWN, BANNED)}
    resting = {
        index
        for index, member in enumerate(serving)
        if states_apart(member).get(name, member.state) is not UP or member.id in dead
    }
    members = [ring.Member(member.id, member.weight) for member in serving]
    percent = {part.node: part.percent for part in wanted.parts if part.service == name}
    rising = {i: percent[each.id] for i, each in enumerate(serving) if each.id in percent}
    parts = {i: own for i, own in rising.items() if i not in resting and own < 100}
    resting |= {i for i, own in rising.items() if own == 0}
    slots = ring.masked(ring.build(members, wanted.hash_seed, ""), resting, parts)
    identities = [seat_identity(name, member.id) for member in serving]
    return [0 if index == ring.NOBODY else identities[index] for index in slots.tolist()]


# --------------------------------------------------------------------------- any sequence

names_of = st.sets(st.sampled_from(["web", "dns", "api"]))
some_sick = st.sets(st.sampled_from(["web", "dns"]), max_size=1)
SLICES = (
    SnatSlice("lb-0", None, 1_536, 31_232, 600, 424),
    SnatSlice("lb-0", "10.81.0.101", 1_536, 7_808, 600, 53),
    SnatSlice("lb-0", "10.81.0.102", 1_536, 7_808, 600, 53),
)


@st.composite
def tables(draw: st.DrawFn) -> NodeTable:
    states = st.sampled_from([UP, UP, UP, DRAINING, DOWN, BANNED])
    chosen = draw(st.sets(st.integers(0, 5), max_size=5))
    nodes = [
        replace(
            node(number, draw(states), draw(st.integers(0, 3)), *sorted(draw(names_of))),
            silent=draw(st.booleans()),
            apart=tuple(ServiceState(name, DOWN) for name in sorted(draw(some_sick))),
        )
        for number in sorted(chosen)
    ]
    # Few fronts, so that services take each other's.
    fronts = draw(st.permutations([80, 81, 82, 83]))
    modes = st.sampled_from([Mode.L4, Mode.L4, Mode.L4, Mode.L3, Mode.L2])
    snat = st.sampled_from([(), ("10.81.0.101",), ("10.81.0.101", "10.81.0.102")])
    offered = [
        service(name, port, node_port=8080, mode=draw(modes), snat_addresses=draw(snat))
        for name, port in zip(sorted(draw(names_of)), fronts, strict=False)
    ]
    percents = st.sampled_from([None, None, 0, 30, 100])
    drawn = {(each.id, own): draw(percents) for each in nodes for own in ("web", "dns")}
    parts = tuple(
        Part(number, name, part, part, 0)
        for (number, name), part in drawn.items()
        if part is not None
    )
    wanted = table(nodes, offered, seed=draw(st.integers(1, 2)))
    return replace(wanted, snat_slices=SLICES, parts=parts)


SICK_HERE = replace(
    view(1), nodes=(replace(view(1, state=UP).nodes[0], apart=(ServiceState("web", DOWN),)),)
)
ALL_VIEWS = (None, view(), view(0), view(0, 1, 2), view(3, state=BANNED), SICK_HERE)
views = st.sampled_from(ALL_VIEWS)
steps = st.tuples(
    tables(),
    views,
    st.integers(0, 2 * SETTLE_MS),
    st.sampled_from(["go on", "go on", "die", "restart"]),
    st.lists(st.tuples(st.integers(80, 83), st.integers(0, ring.SLOTS - 1)), max_size=4),
    st.integers(0, 8),
)
Step = tuple[NodeTable, LocalView | None, int, str, list[tuple[int, int]], int]


def cursors_are_shared(kernel: Kernel) -> None:
    by_place: dict[tuple[str, int], set[int]] = {}
    for value in kernel.seats.values():
        by_place.setdefault((value.address, value.port), set()).add(value.cursor)
    assert all(len(found) == 1 for found in by_place.values())
    assert len({number for found in by_place.values() for number in found}) == len(by_place)


# Histories are short: to make one shorter yet would take minutes, and is not done.
@settings(max_examples=40, deadline=None, phases=[Phase.explicit, Phase.reuse, Phase.generate])
@given(st.lists(steps, min_size=1, max_size=7), st.data())
def test_the_maps_follow_the_table_through_deaths_and_restarts(
    history: list[Step], data: st.DataObject
) -> None:
    """Flows begin and end all the while; `Kernel.check` sees that none misses what it needs."""
    kernel, state, now_ms = Kernel(), EMPTY, 0
    census: Census | None = None
    for wanted, local, passed_ms, fate, opened, ended in history:
        now_ms += passed_ms
        hops = {member.address: HOP for member in wanted.nodes}
        plan = make_plan(state, wanted, local, hops, FACTS, census, now_ms)
        done = len(plan.writes)
        if fate == "die":
            done = data.draw(st.integers(0, len(plan.writes)))
        for write in plan.writes[:done]:
            kernel.apply(write)
        for port, slot in opened:
            kernel.open(ServiceKey("10.80.0.10", port, Protocol.TCP), slot)
        if fate == "die":
            state, census = kernel.adopt(read_all=data.draw(st.booleans())), None
            continue
        follows(kernel, plan, wanted, local)
        state = kernel.adopt() if fate == "restart" else plan.after
        again = make_plan(state, wanted, local, hops, FACTS, census, now_ms)
        assert again.writes == ()
        assert again.moved_slots == 0
        del kernel.flows[: min(ended, len(kernel.flows))]
        # A pass that took no time; it began before what the next plan will retire.
        census = kernel.census(again, now_ms)
        state = again.after
    ends_clean(kernel, state, history[-1][0], now_ms)


OTHER_HOP = replace(HOP, destination_mac="02:00:00:00:00:03")
BEHIND_A_ROUTER = replace(HOP, gateway="10.81.0.254")
some_hops = st.lists(
    st.sampled_from([HOP, HOP, HOP, OTHER_HOP, None, BEHIND_A_ROUTER]), min_size=6, max_size=6
)
news = st.tuples(st.integers(0, 3).map(lambda number: number // 3), views, some_hops)


@settings(max_examples=100, deadline=None)
@given(st.lists(tables(), min_size=2, max_size=2), st.lists(news, min_size=2, max_size=8))
def test_a_plan_that_remembers_the_last_one_is_no_other(
    known: list[NodeTable], history: list[tuple[int, LocalView | None, list[NextHop | None]]]
) -> None:
    """Mostly the table stays the same, and only what is seen of the nodes changes."""
    state = EMPTY
    for which, local, ways in history:
        hops = {node(number).address: hop for number, hop in enumerate(ways)}
        plan, other = (
            make_plan(each, known[which], local, hops, FACTS, None, 0)
            for each in (state, forgetful(state))
        )
        assert in_turn(plan) == in_turn(other)
        assert (plan.states(), plan.refused) == (other.states(), other.refused)
        assert (plan.addresses, plan.reset_seats) == (other.addresses, other.reset_seats)
        assert plan.moved_slots == other.moved_slots
        state = plan.after


@pytest.mark.parametrize("before", ALL_VIEWS)
@pytest.mark.parametrize("after", ALL_VIEWS)
def test_whatever_is_seen_after_whatever_was_seen(
    before: LocalView | None, after: LocalView | None
) -> None:
    wanted = table(map(node, range(5)), (service("web"), service("dns", 53)))
    hops = dict.fromkeys((each.address for each in wanted.nodes), HOP)
    first = make_plan(EMPTY, wanted, None, hops, FACTS, None, 0)
    remembered = make_plan(first.after, wanted, before, hops, FACTS, None, 0).after
    plan, other = (
        make_plan(each, wanted, after, hops, FACTS, None, 0)
        for each in (remembered, forgetful(remembered))
    )
    assert in_turn(plan) == in_turn(other)
    assert plan.states() == other.states()


@pytest.mark.parametrize("hop", [OTHER_HOP, None, BEHIND_A_ROUTER])
@pytest.mark.parametrize("mode", [Mode.L4, Mode.L2])
def test_a_way_that_changes_is_written_for_each_service_of_the_node(
    hop: NextHop | None, mode: Mode
) -> None:
    wanted = table(map(node, range(3)), (service("web", mode=mode), service("dns", 53)))
    hops: dict[str, NextHop | None] = {each.address: HOP for each in wanted.nodes}
    state = make_plan(EMPTY, wanted, None, hops, FACTS, None, 0).after
    for way in (hop, HOP):  # and back again
        hops = {**hops, node(1).address: way}
        plan = make_plan(state, wanted, None, hops, FACTS, None, 0)
        other = make_plan(forgetful(state), wanted, None, hops, FACTS, None, 0)
        assert in_turn(plan) == in_turn(other) != []
        assert plan.states() == other.states()
        state = plan.after


@pytest.mark.parametrize("change", [{"hash_seed": 2}, {"nodes": (node(0, weight=3), node(1))}])
def test_a_ring_that_is_built_anew_is_written_anew(change: dict[str, Any]) -> None:
    wanted = table([node(0), node(1)])
    first = make_plan(EMPTY, wanted, None, {}, FACTS, None, 0).after
    plan, other = (
        make_plan(each, replace(wanted, **change), None, {}, FACTS, None, 0)
        for each in (first, forgetful(first))
    )
    assert in_turn(plan) == in_turn(other) != []


def forgetful(state: KernelState) -> KernelState:
    """The same maps, for a plan that looks at everything."""
    return replace(state, seated=None, ring_keys={}, ring_contents={})


def in_turn(plan: Plan) -> list[tuple[type[Write], list[str]]]:
    """What is written, kind after kind; in which order those of a kind are is the same to all."""

    def plain(write: Write) -> str:
        if isinstance(write, SlotsWrite):
            return repr((write.ring, write.indices.tolist(), write.values.tolist()))
        return repr(write)

    return [(kind, sorted(map(plain, own))) for kind, own in groupby(plan.writes, key=type)]


def follows(kernel: Kernel, plan: Plan, wanted: NodeTable, local: LocalView | None) -> None:
    """The maps are as the plan says, and as the table does."""
    assert dict(plan.after.seats) == kernel.seats
    assert dict(plan.after.services) == kernel.services
    assert dict(plan.after.addresses) == kernel.addresses
    assert dict(plan.after.endpoints) == kernel.endpoints
    for number, held in plan.after.rings.items():
        assert (held == kernel.region(number)).all()
    for offered in wanted.services:
        assert kernel.slots(offered.name) == expected_slots(wanted, local, offered.name)
    cursors_are_shared(kernel)


def ends_clean(kernel: Kernel, state: KernelState, wanted: NodeTable, now_ms: int) -> None:
    """Once no flow is left, nothing is there that the table does not name."""
    kernel.flows.clear()
    settled = run(kernel, state, wanted, None, now_ms)
    census = kernel.census(settled, now_ms + SETTLE_MS)
    last = run(kernel, settled.after, wanted, None, now_ms + SETTLE_MS, census=census)
    named = {
        seat_identity(offered.name, member.id)
        for offered in wanted.services
        for member in wanted.nodes
    }
    assert {value.identity for value in kernel.seats.values()} <= named
    assert not any(value.retired for value in kernel.services.values())
    assert all(v.has_flows == (v.mode is Mode.L4) for v in kernel.services.values())
    assert len(kernel.services) == len(wanted.services)
    used = {each for value in kernel.services.values() for each in value.snat_addresses}
    assert {each for each, info in kernel.addresses.items() if info.snat_slice} == used
    assert {key.address for key in kernel.endpoints} == {s.address for s in kernel.seats.values()}
    assert not last.can_free(census)


# --------------------------------------------------------------------------- rings


def test_a_death_writes_only_entries_with_slots_of_the_dead() -> None:
    kernel = Kernel()
    wanted = table(node(i) for i in range(4))
    first = run(kernel, EMPTY, wanted)
    before = kernel.region(0).copy()
    seat = next(s.seat for s in first.states() if s.node == node(2).id)
    after = run(kernel, first.after, wanted, view(2))
    slots, flag = after.writes
    assert isinstance(slots, SlotsWrite)
    assert slots.indices.tolist() == np.flatnonzero((before == seat).any(axis=1)).tolist()
    assert (kernel.region(0)[before != seat] == before[before != seat]).all()
    assert after.moved_slots == (before == seat).sum()
    assert isinstance(flag, SeatWrite)
    assert (flag.seat, flag.value.up) == (seat, False)


def test_committing_what_was_masked_here_moves_nothing_more() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table(node(i) for i in range(4)))
    masked = run(kernel, first.after, table(node(i) for i in range(4)), view(2))
    committed = table(node(i, DOWN if i == 2 else UP) for i in range(4))
    assert run(kernel, masked.after, committed, view(2)).writes == ()


@pytest.mark.parametrize("state", [DRAINING, DOWN, BANNED, NodeState.PROBATION])
def test_whoever_is_not_up_takes_nothing_and_returns_to_the_very_slots(state: NodeState) -> None:
    kernel = Kernel()
    everyone = table(node(i) for i in range(3))
    first = run(kernel, EMPTY, everyone)
    slots = kernel.slots("web")
    resting = run(kernel, first.after, table(node(i, state if i == 1 else UP) for i in range(3)))
    gone = seat_identity("web", node(1).id)
    assert gone not in kernel.slots("web")
    assert gone in {value.identity for value in kernel.seats.values()}
    run(kernel, resting.after, everyone)
    assert kernel.slots("web") == slots


def test_a_node_in_slow_start_has_more_of_its_own_slots_with_each_step() -> None:
    kernel = Kernel()
    everyone = table([node(i) for i in range(4)], [service("web"), service("dns", 53)])
    rising = seat_identity("web", node(1).id)
    gone = table([node(i, DOWN if i == 1 else UP) for i in range(4)], everyone.services)
    state, before, shares = run(kernel, EMPTY, gone).after, kernel.slots("web"), []
    for percent in (10, 50, 100):
        parts = (Part(node(1).id, "web", percent, percent, 0),)
        state = run(kernel, state, replace(everyone, parts=parts)).after
        after = kernel.slots("web")
        assert {new for old, new in zip(before, after, strict=True) if old != new} == {rising}
        before = after
        shares.append(after.count(rising) / ring.SLOTS)
    assert shares == pytest.approx([0.1 / 3.1, 0.5 / 3.5, 0.25], rel=0.06)
    whole = kernel.slots("dns").count(seat_identity("dns", node(1).id))
    assert whole == pytest.approx(ring.SLOTS / 4, rel=0.02)


def test_a_backup_that_is_not_needed_takes_nothing_and_keeps_its_seat() -> None:
    kernel = Kernel()
    wanted = table(node(i) for i in range(3))
    idle = replace(wanted, parts=(Part(node(1).id, "web", 0, 100, 0),))
    first = run(kernel, EMPTY, idle)
    spare = seat_identity("web", node(1).id)
    assert spare not in kernel.slots("web")
    assert {value.identity: value.up for value in kernel.seats.values()}[spare] is False
    run(kernel, first.after, wanted)
    assert spare in kernel.slots("web")
    assert {value.identity: value.up for value in kernel.seats.values()}[spare] is True


def test_local_opinions_that_mask_and_those_that_do_not() -> None:
    wanted = table([node(0), node(1)])
    for state in NodeState:
        kernel = Kernel()
        run(kernel, EMPTY, wanted, view(1, state=state))
        assert (seat_identity("web", node(1).id) in kernel.slots("web")) == (
            state not in (DOWN, BANNED)
        )


def test_all_dead_leaves_every_slot_to_nobody() -> None:
    kernel = Kernel()
    wanted = table([node(0), node(1)])
    first = run(kernel, EMPTY, wanted)
    second = run(kernel, first.after, wanted, view(0, 1))
    assert not kernel.region(0).any()
    assert second.moved_slots == ring.SLOTS


def test_shares_are_told() -> None:
    plan = run(Kernel(), EMPTY, table([node(0), node(1, UP, 3), node(2, DRAINING)]))
    shares = {told.node: (told.slots, told.share, told.resolved) for told in plan.states()}
    light, heavy = shares[node(0).id], shares[node(1).id]
    assert light[0] + heavy[0] == ring.SLOTS
    assert heavy[1] == pytest.approx(0.75, abs=0.01)
    assert shares[node(2).id] == (0, 0.0, True)


def test_the_first_filling_moves_nothing() -> None:
    assert run(Kernel(), EMPTY, table([node(0)])).moved_slots == 0


def test_a_kept_ring_is_not_built_again(monkeypatch: pytest.MonkeyPatch) -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table(node(i) for i in range(3)))
    monkeypatch.setattr(ring, "build", lambda *_: pytest.fail("built"))
    run(kernel, first.after, table(node(i, DOWN if i == 1 else UP) for i in range(3)), view(2))


# --------------------------------------------------------------------------- seats


def test_a_seat_is_the_lowest_free_number_and_stays() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(1), node(2)]))
    second = run(kernel, first.after, table([node(0), node(1), node(2)]))
    seats = {told.node: told.seat for told in second.states()}
    assert seats == {node(1).id: 1, node(2).id: 2, node(0).id: 3}


def met(began_ms: int, *seats: int, plan: Plan | None = None, flows: int = 0) -> Census:
    """A census that has met flows of these seats, and `flows` of all that `plan` is in doubt of."""
    fronts = dict.fromkeys(plan.watch.fronts, flows) if plan else {}
    addresses = dict.fromkeys(plan.watch.snat_addresses, flows) if plan else {}
    return Census(began_ms, len(seats), 0, 0, 0, frozenset(seats), fronts, addresses)


def test_a_vanished_node_s_seat_is_kept_until_a_later_census_met_no_flow_of_it() -> None:
    kernel = Kernel()
    both = run(kernel, EMPTY, table([node(0), node(1)]))
    left = table([node(1), node(2)])
    gone = run(kernel, both.after, left, now_ms=100, census=met(99, 2))
    assert kernel.seats[1].address == node(0).address
    assert node(0).address in gone.addresses
    assert {told.node: told.seat for told in gone.states()}[node(2).id] == 3
    state = gone.after
    for useless in (None, met(100 + SETTLE_MS - 1), met(100 + SETTLE_MS, 1, 2), met(99_999, 1)):
        assert not gone.can_free(useless)
        held = run(kernel, state, left, now_ms=50_000, census=useless)
        assert held.writes == ()
        state = held.after
    free = met(100 + SETTLE_MS, 2)
    assert gone.can_free(free)
    freed = run(kernel, state, left, now_ms=50_000, census=free)
    assert 1 not in kernel.seats
    assert not freed.can_free(free)
    reused = run(kernel, freed.after, table(node(i) for i in (1, 2, 3)))
    assert {told.node: told.seat for told in reused.states()}[node(3).id] == 1
    assert any(isinstance(w, SeatWrite) and w.seat == 1 and w.fresh for w in reused.writes)


def test_a_node_that_returns_before_its_seat_is_given_away_has_it_again() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    gone = run(kernel, first.after, table([node(1)]), now_ms=100)
    back = run(kernel, gone.after, table([node(0), node(1)]), now_ms=500)
    assert {told.node: told.seat for told in back.states()}[node(0).id] == 1
    assert kernel.seats[1].up
    later = run(kernel, back.after, table([node(0), node(1)]), census=met(100_000))
    assert later.writes == ()


def test_after_a_restart_a_census_from_before_it_counts_for_nothing() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    run(kernel, first.after, table([node(1)]), now_ms=100)
    adopted = run(kernel, kernel.adopt(), table([node(1)]), now_ms=5_000, census=met(5_000))
    assert adopted.writes == ()
    assert run(kernel, adopted.after, table([node(1)]), census=met(5_000 + SETTLE_MS)).writes


def test_only_up_and_draining_nodes_are_given_a_seat() -> None:
    kernel = Kernel()
    nodes = [node(0, DOWN), node(1, DRAINING), node(2, BANNED), node(3)]
    plan = run(kernel, EMPTY, table(nodes))
    assert {told.node for told in plan.states()} == {node(1).id, node(3).id}


def test_without_a_free_seat_a_node_is_left_out_by_name() -> None:
    kernel = Kernel()
    few = replace(FACTS, max_seats=3)
    plan = run(kernel, EMPTY, table(node(i) for i in range(3)), facts=few)
    assert plan.refused == (f"node {node(2).id} at web: all 2 seats are taken",)
    assert NO_SEAT not in kernel.region(0).ravel()[: ring.SLOTS]
    told = {state.node: (state.seat, state.slots > 0, state.reason) for state in plan.states()}
    assert told[node(2).id] == (NO_SEAT, False, "all 2 seats are taken")
    assert [told[node(i).id][1:] for i in range(2)] == [(True, "")] * 2


def test_weight_zero_keeps_its_seat_for_old_flows_alone() -> None:
    kernel = Kernel()
    run(kernel, EMPTY, table([node(0), node(1, UP, 0)]))
    assert {value.address: value.up for value in kernel.seats.values()} == {
        node(0).address: True,
        node(1).address: False,
    }
    assert seat_identity("web", node(1).id) not in kernel.slots("web")


def test_a_changed_address_is_written_to_the_same_seat() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)]))
    moved = replace(node(0), address="10.81.0.99", services=(NodeService("web", 1234),))
    plan = run(kernel, first.after, table([moved]))
    (write,) = (each for each in plan.writes if isinstance(each, SeatWrite))
    assert (write.seat, write.value.address, write.value.port) == (1, "10.81.0.99", 1234)
    assert not write.fresh
    assert write.fresh_cursor
    assert kernel.endpoints == {ServiceKey("10.81.0.99", 1234, Protocol.TCP): 1}


def test_a_node_serves_what_it_names() -> None:
    kernel = Kernel()
    both = [service("web"), service("dns", 53)]
    run(kernel, EMPTY, table([node(0, UP, 1, "web"), node(1, UP, 1, "dns"), node(2)], both))
    places = {(v.address, v.port) for v in kernel.seats.values()}
    assert places == {
        (node(0).address, 8000),
        (node(1).address, 8001),
        (node(2).address, 80),
        (node(2).address, 53),
    }


# --------------------------------------------------------------------------- standing


def silent(number: int, state: NodeState = DOWN) -> TableNode:
    return replace(node(number, state), silent=True)


def standing(kernel: Kernel, number: int) -> tuple[bool, bool, bool]:
    """Up, dead, reset."""
    own = [v for v in kernel.seats.values() if v.address == node(number).address]
    assert len(own) == 1
    return own[0].up, own[0].dead, own[0].reset


STANDING = [
    (node(1), (True, False, False)),
    (node(1, NodeState.SUSPECT), (True, False, False)),
    (node(1, DRAINING), (False, False, False)),
    (node(1, NodeState.PROBATION), (False, False, False)),
    (node(1, UP, 0), (False, False, False)),
    (node(1, DOWN), (False, True, False)),
    (node(1, BANNED), (False, True, False)),
    (silent(1), (False, True, True)),
    (silent(1, BANNED), (False, True, True)),
    (silent(1, UP), (True, False, False)),
]


@pytest.mark.parametrize(("agreed", "expected"), STANDING)
def test_down_is_told_apart_from_taking_no_new_flows(
    agreed: TableNode, expected: tuple[bool, bool, bool]
) -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    run(kernel, first.after, table([node(0), agreed]))
    assert standing(kernel, 1) == expected
    assert standing(kernel, 0) == (True, False, False)


@pytest.mark.parametrize(
    ("policy", "told", "heard"),
    [(None, True, False), (OnNodeDown.RESET, True, True), (OnNodeDown.KEEP, False, False)],
)
def test_what_becomes_of_a_dead_node_s_flows(
    policy: OnNodeDown | None, told: bool, heard: bool
) -> None:
    """`told`: with a silent node; `heard`: with one that says that it does not serve."""
    services = [service("web", on_node_down=policy)]
    for agreed, expected in ((silent(1), told), (node(1, DOWN), heard)):
        kernel = Kernel()
        first = run(kernel, EMPTY, table([node(0), node(1)], services))
        plan = run(kernel, first.after, table([node(0), agreed], services))
        assert standing(kernel, 1) == (False, True, expected)
        assert plan.reset_seats == (frozenset({2}) if expected else frozenset())


SICK = replace(node(1), apart=(ServiceState("web", DOWN),))


@pytest.mark.parametrize(("agreed", "local"), [(SICK, None), (node(1), SICK_HERE)])
def test_a_sick_service_loses_its_slots_at_that_node_and_no_other_slot_moves(
    agreed: TableNode, local: LocalView | None
) -> None:
    services = [service("dns", 53), service("web")]
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)], services))
    before = {name: kernel.slots(name) for name in ("dns", "web")}
    plan = run(kernel, first.after, table([node(0), agreed], services), local)
    assert kernel.slots("dns") == before["dns"]
    healthy, sick = (seat_identity("web", node(number).id) for number in (0, 1))
    assert before["web"].count(sick) == plan.moved_slots > ring.SLOTS // 3
    assert set(kernel.slots("web")) == {healthy}
    found = {v.identity: (v.up, v.dead, v.reset) for v in kernel.seats.values()}
    assert found[sick] == (False, True, False), "its server may yet finish what it began"
    assert found[seat_identity("dns", node(1).id)] == (True, False, False)
    back = run(kernel, plan.after, table([node(0), node(1)], services))
    assert {name: kernel.slots(name) for name in ("dns", "web")} == before
    assert back.moved_slots == plan.moved_slots


def test_a_service_that_was_never_well_at_a_node_has_no_seat_there() -> None:
    kernel = Kernel()
    run(kernel, EMPTY, table([node(0), SICK], [service("dns", 53), service("web")]))
    identities = {value.identity for value in kernel.seats.values()}
    assert seat_identity("web", node(1).id) not in identities
    assert seat_identity("dns", node(1).id) in identities


def test_what_is_dead_from_here_is_dead_whatever_is_agreed() -> None:
    kernel = Kernel()
    wanted = table([node(0), node(1)])
    first = run(kernel, EMPTY, wanted)
    here = view(1)
    second = run(kernel, first.after, wanted, here)
    assert standing(kernel, 1) == (False, True, False)
    here = replace(here, nodes=tuple(replace(seen, silent=True) for seen in here.nodes))
    third = run(kernel, second.after, wanted, here)
    assert standing(kernel, 1) == (False, True, True)
    # The order: slots first, then what is dead; and the other way round when it lives again.
    assert isinstance(second.writes[0], SlotsWrite)
    back = run(kernel, third.after, wanted, view())
    assert isinstance(back.writes[0], SeatWrite)
    assert standing(kernel, 1) == (True, False, False)


def test_a_forgotten_node_is_dead_and_stays_reset_if_it_was() -> None:
    for before in (node(1, DOWN), silent(1)):
        kernel = Kernel()
        first = run(kernel, EMPTY, table([node(0), node(1)]))
        down = run(kernel, first.after, table([node(0), before]))
        run(kernel, down.after, table([node(0)]))
        assert standing(kernel, 1) == (False, True, before.silent)


def test_a_seat_of_a_service_that_went_stands_as_its_node_does() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    second = run(kernel, first.after, table([node(0), node(1)], []))
    assert standing(kernel, 0) == standing(kernel, 1) == (False, False, False)
    third = run(kernel, second.after, table([node(0), silent(1)], []))
    assert standing(kernel, 0) == (False, False, False)
    assert standing(kernel, 1) == (False, True, True)
    assert third.reset_seats == {2}


def test_a_node_under_a_new_name_at_the_old_address_is_not_dead() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)]))
    renamed = replace(node(0), id="other@10.81.0.20", name="other")
    second = run(kernel, first.after, table([renamed]))
    assert [(v.up, v.dead) for v in kernel.seats.values()] == [(False, False), (True, False)]
    # The old name may be listed for a while, as silent.
    run(kernel, second.after, table([silent(0), renamed], []))
    assert [v.dead for v in kernel.seats.values()] == [False, False]


# --------------------------------------------------------------------------- cursors, endpoints


def test_seats_of_one_address_and_port_share_a_cursor_as_long_as_one_is_there() -> None:
    both = [service("web", node_port=80), service("api", 81, node_port=80), service("dns", 53)]
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)], both))
    cursors = {number: value.cursor for number, value in kernel.seats.items()}
    assert cursors == {1: 1, 2: 1, 3: 3}
    fresh = {w.value.cursor for w in first.writes if isinstance(w, SeatWrite) and w.fresh_cursor}
    assert fresh == {1, 3}
    # The seat that gave its number goes; its number is given away; the cursor is kept.
    gone = run(kernel, first.after, table([node(0)], both[1:]))
    census = met(SETTLE_MS, 2, 3, plan=gone)
    freed = run(kernel, gone.after, table([node(0)], both[1:]), census=census)
    assert sorted(kernel.seats) == [2, 3]
    reused = run(kernel, freed.after, table([node(0), node(1)], both[1:]))
    cursors = {number: value.cursor for number, value in kernel.seats.items()}
    assert cursors[2] == 1
    assert len(set(cursors.values())) == 4
    assert run(kernel, reused.after, table([node(0), node(1)], both[1:])).writes == ()


def test_who_dies_while_a_cursor_is_parted_leaves_no_two_places_with_one() -> None:
    def served_at(web: int, api: int) -> NodeTable:
        both = [service("web", node_port=web), service("api", 81, node_port=api)]
        return table([node(0)], both)

    kernel = Kernel()
    first = run(kernel, EMPTY, served_at(80, 80))
    parting = make_plan(first.after, served_at(8080, 8081), None, {}, FACTS, None, 0)
    kernel.apply(next(write for write in parting.writes if isinstance(write, SeatWrite)))
    assert [value.cursor for value in kernel.seats.values()] == [1, 1]
    run(kernel, kernel.adopt(), served_at(8080, 80))
    assert len({value.cursor for value in kernel.seats.values()}) == 2


def test_endpoints_are_every_seat_s_place_once() -> None:
    services = [
        service("web", node_port=80),
        service("api", 81, node_port=80),
        service("dns", 53, protocol=Protocol.UDP, node_port=80),
    ]
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)], services))
    places = {node(number).address: number for number in (0, 1)}
    assert {(key.address, key.protocol) for key in kernel.endpoints} == {
        (address, protocol) for address in places for protocol in Protocol
    }
    tcp = kernel.endpoints[ServiceKey(node(0).address, 80, Protocol.TCP)]
    assert (kernel.seats[tcp].address, tcp) == (node(0).address, min(kernel.seats))
    # As long as the seats are there the endpoints are; whatever became of the services.
    gone = run(kernel, first.after, table([node(0)], []))
    assert len(kernel.endpoints) == 4
    census = met(SETTLE_MS, plan=gone)
    run(kernel, gone.after, table([node(0)], []), census=census)
    assert kernel.endpoints == {}


def test_the_protocol_of_a_seat_whose_service_was_replaced_is_still_known() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)], [service("old")]))
    run(kernel, first.after, table([node(0)], [service("new", node_port=81)]))
    assert set(kernel.endpoints) == {
        ServiceKey(node(0).address, port, Protocol.TCP) for port in (80, 81)
    }


# --------------------------------------------------------------------------- next hops


def hops_plan(kernel: Kernel, state: KernelState, hops: dict[str, NextHop | None]) -> Plan:
    plan = make_plan(state, table([node(0)]), None, hops, FACTS, None, 0)
    for write in plan.writes:
        kernel.apply(write)
    return plan


def test_next_hops_are_kept_changed_and_unset() -> None:
    kernel = Kernel()
    address = node(0).address
    first = hops_plan(kernel, EMPTY, {address: HOP})
    assert first.states()[0].resolved
    assert hops_plan(kernel, first.after, {}).writes == ()
    unresolved = hops_plan(kernel, first.after, {address: replace(HOP, destination_mac=None)})
    assert len(unresolved.writes) == 1
    assert not unresolved.states()[0].resolved
    lost = hops_plan(kernel, unresolved.after, {address: None})
    assert kernel.seats[1].next_hop is None
    assert not lost.states()[0].resolved


OWN_HOP = replace(HOP, destination_mac=HOP.source_mac, by_tc=True, own=True)
SHARED_SNAT = {"snat_addresses": ("10.81.0.100",)}


def itself(fields: dict[str, Any], facts: LocalFacts = FACTS) -> Plan:
    """A service of two nodes, the first of which is this machine."""
    nodes = [node(0), node(1)]
    hops = {nodes[0].address: OWN_HOP, nodes[1].address: HOP}
    return make_plan(EMPTY, table(nodes, [service("web", **fields)]), None, hops, facts, None, 0)


@pytest.mark.parametrize(
    "fields", [SHARED_SNAT, {"mode": Mode.L2}, {"mode": Mode.L3}], ids=["l4", "l2", "l3"]
)
def test_this_machine_serves_where_it_can(fields: dict[str, Any]) -> None:
    plan = itself(fields)
    assert [seat.share > 0 for seat in plan.states()] == [True, True]
    assert plan.refused == ()


@pytest.mark.parametrize(
    ("fields", "facts", "why"),
    [
        ({}, FACTS, "give the virtual IP a snat_address"),
        ({"snat_addresses": (FACTS.private_address,)}, FACTS, "an address of its own"),
        ({"snat": False}, FACTS, "snat = false"),
        (SHARED_SNAT, replace(FACTS, no_way_to_itself="no hook"), "no hook"),
    ],
)
def test_where_its_answers_would_not_come_back_this_machine_takes_nothing_and_says_why(
    fields: dict[str, Any], facts: LocalFacts, why: str
) -> None:
    plan = itself(fields, facts)
    first, second = plan.states()
    assert (first.share, second.share) == (0.0, 1.0)
    assert why in first.reason
    assert why in plan.refused[0]


def test_only_in_l2_what_other_lbs_send_is_the_host_s() -> None:
    for mode, expected in ((Mode.L2, True), (Mode.L3, False), (Mode.L4, False)):
        (value,) = itself({"mode": mode}).after.services.values()
        assert value.of_this_node is expected
    plan = make_plan(
        EMPTY, table([node(1)], [service("web", mode=Mode.L2)]), None, {}, FACTS, None, 0
    )
    assert not any(value.of_this_node for value in plan.after.services.values())


def test_a_retired_seat_s_next_hop_is_kept_current() -> None:
    kernel = Kernel()
    first = hops_plan(kernel, EMPTY, {node(0).address: HOP})
    gone = run(kernel, first.after, table([]))
    other = replace(HOP, destination_mac="02:00:00:00:00:99")
    plan = make_plan(gone.after, table([]), None, {node(0).address: other}, FACTS, None, 1)
    (write,) = plan.writes
    assert isinstance(write, SeatWrite)
    assert write.value.next_hop == other
    assert make_plan(gone.after, table([]), None, {}, FACTS, None, 1).writes == ()


# --------------------------------------------------------------------------- services


def kinds(plan: Plan) -> list[type]:
    return [type(write) for write in plan.writes]


FILLED = [SlotsWrite, ServiceWrite]
WEB, OTHER = (ServiceKey("10.80.0.10", port, Protocol.TCP) for port in (80, 81))


def with_slices(nodes: Iterable[TableNode], *services: TableService) -> NodeTable:
    return replace(table(nodes, services), snat_slices=SLICES)


def test_services_come_after_their_rings_and_go_before_their_seats() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("web")))
    assert kinds(first) == [SeatWrite, EndpointWrite, AddressWrite, AddressWrite, *FILLED]
    gone = run(kernel, first.after, with_slices([node(0)]))
    # It is retired, and its seat is not up any more: all that is there stays.
    assert kinds(gone) == [ServiceWrite, SeatWrite]
    last = run(kernel, gone.after, with_slices([node(0)]), census=met(SETTLE_MS, plan=gone))
    removals = [ServiceRemoval, AddressRemoval, AddressRemoval, EndpointRemoval, SeatRemoval]
    assert kinds(last) == removals


def test_a_removed_service_keeps_its_flows_and_takes_none() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("web")))
    flow = kernel.open(WEB, 7)
    gone = run(kernel, first.after, with_slices([node(0)]))
    assert kernel.open(WEB, 7) is None
    value = kernel.services[WEB]
    assert (value.retired, value.has_flows, value.mode) == (True, True, Mode.L4)
    assert gone.watch.fronts == {WEB}
    assert gone.watch.snat_addresses == {"10.81.0.10"}
    for census in (None, kernel.census(gone, SETTLE_MS - 1), kernel.census(gone, SETTLE_MS)):
        assert not gone.can_free(census)
        assert run(kernel, gone.after, with_slices([node(0)]), census=census).writes == ()
    assert flow is not None
    kernel.flows.clear()
    # A SYN may have been under way while the service was being retired.
    early = kernel.census(gone, SETTLE_MS - 1)
    assert not gone.can_free(early)
    assert run(kernel, gone.after, with_slices([node(0)]), census=early).writes == ()
    census = kernel.census(gone, SETTLE_MS)
    assert gone.can_free(census)
    run(kernel, gone.after, with_slices([node(0)]), census=census)
    assert (kernel.services, kernel.seats, kernel.addresses) == ({}, {}, {})


def test_a_census_that_did_not_look_for_a_front_says_nothing_of_it() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("web")))
    gone = run(kernel, first.after, with_slices([node(0)]))
    run(kernel, gone.after, with_slices([node(0)]), census=met(SETTLE_MS))
    assert kernel.services[WEB].retired
    assert set(kernel.addresses) == {"10.80.0.10", "10.81.0.10"}
    assert kernel.seats == {}


def test_what_became_stateless_and_then_went_refuses_what_is_of_no_flow() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("web")))
    kernel.open(WEB, 7)
    second = run(kernel, first.after, with_slices([node(0)], service("web", mode=Mode.L3)))
    run(kernel, second.after, with_slices([node(0)]))
    value = kernel.services[WEB]
    assert (value.mode, value.retired, value.has_flows) == (Mode.L4, True, True)


def test_a_removed_service_that_comes_back_is_itself_again() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("web")))
    before = kernel.services[WEB], kernel.seats[1]
    gone = run(kernel, first.after, with_slices([node(0)]))
    back = run(kernel, gone.after, with_slices([node(0)], service("web")))
    assert (kernel.services[WEB], kernel.seats[1]) == before
    assert back.watch.fronts == frozenset()


def test_a_renamed_service_has_the_front_at_once_and_looks_for_the_old_one_s_flows() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("old")))
    kernel.open(WEB, 7)
    renamed = with_slices([node(0)], service("new", mode=Mode.L3))
    second = run(kernel, first.after, renamed)
    value = kernel.services[WEB]
    assert value.identity == service_identity("new")
    assert (value.retired, value.has_flows, value.mode) == (False, True, Mode.L3)
    assert kernel.slots("new") == expected_slots(renamed, None, "new")
    kernel.flows.clear()
    census = kernel.census(second, SETTLE_MS)
    third = run(kernel, second.after, renamed, census=census)
    assert not kernel.services[WEB].has_flows
    assert {v.identity for v in kernel.seats.values()} == {seat_identity("new", node(0).id)}
    assert run(kernel, third.after, renamed, census=census).writes == ()


def test_another_port_leaves_the_old_front_retired_with_the_same_seats() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, with_slices([node(0)], service("web", 80, node_port=8080)))
    kernel.open(WEB, 7)
    wanted = with_slices([node(0)], service("web", 81, node_port=8080))
    second = run(kernel, first.after, wanted)
    # The new front is there before the old one takes no more.
    assert [(w.key, w.value.retired) for w in second.writes if isinstance(w, ServiceWrite)] == [
        (OTHER, False),
        (WEB, True),
    ]
    assert {value.service_id for value in kernel.services.values()} == {0}
    assert list(kernel.seats) == [1]
    assert kernel.slots("web") == expected_slots(wanted, None, "web")
    kernel.open(OTHER, 7)
    kernel.flows = [flow for flow in kernel.flows if flow.front == OTHER]
    run(kernel, second.after, wanted, census=kernel.census(second, SETTLE_MS))
    assert list(kernel.services) == [OTHER]


def test_a_stateless_service_goes_at_once() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)], [service("web", mode=Mode.L2)]))
    run(kernel, first.after, table([node(0)], []))
    assert kernel.services == {}


def test_a_service_id_is_not_given_away_while_a_retired_seat_refers_to_it() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)]))
    other = run(kernel, first.after, table([node(0)], [service("dns", 53)]))
    assert kernel.services[ServiceKey("10.80.0.10", 53, Protocol.TCP)].service_id == 1
    third = run(kernel, other.after, table([node(0)], [service("ssh", 22)]))
    assert kernel.services[ServiceKey("10.80.0.10", 22, Protocol.TCP)].service_id == 2
    census = met(SETTLE_MS, plan=third)
    over = run(kernel, third.after, table([node(0)], [service("ssh", 22)]), census=census)
    run(kernel, over.after, table([node(0)], [service("dns", 53)]))
    assert kernel.services[ServiceKey("10.80.0.10", 53, Protocol.TCP)].service_id == 0


def test_a_service_that_found_no_place_keeps_its_id() -> None:
    kernel = Kernel()
    many = [service("a"), service("b", 81)]
    plan = run(kernel, EMPTY, table([node(0)], many))
    state = replace(plan.after, services={WEB: plan.after.services[WEB]})
    (again,) = make_plan(state, table([node(0)], many), None, {}, FACTS, None, 0).writes
    assert again == ServiceWrite(OTHER, plan.after.services[OTHER])


def test_too_many_services_are_refused_by_name() -> None:
    kernel = Kernel()
    many = [service(f"s{i}", 80 + i) for i in range(5)]
    plan = run(kernel, EMPTY, table([node(0)], many), facts=replace(FACTS, max_services=4))
    assert plan.refused == ("service s4: all 4 ids are in use",)
    assert len(kernel.services) == 4


def test_of_two_services_at_one_front_the_second_is_refused_by_name() -> None:
    kernel = Kernel()
    both = [service("web"), service("api", address="10.80.0.10")]
    plan = run(kernel, EMPTY, table([node(0)], both))
    assert plan.refused == ("service api: tcp 10.80.0.10:80 is web's already",)
    assert [told.service for told in plan.states()] == ["web"]
    assert [value.identity for value in kernel.services.values()] == [service_identity("web")]


def test_what_a_service_says_of_unknown_packets() -> None:
    for said, expected in ((NoFlow.RESET, False), (NoFlow.DROP, True)):
        kernel = Kernel()
        run(kernel, EMPTY, table([node(0)], [service("web", no_flow=said)]))
        assert kernel.services[WEB].no_reset is expected


# --------------------------------------------------------------------------- SNAT, addresses


def test_own_address_own_slice() -> None:
    kernel = Kernel()
    slices = (SnatSlice("lb-1", None, 1, 2), SnatSlice("lb-0", None, 20_000, 8_000, 700, 9))
    run(kernel, EMPTY, replace(table([node(0)]), snat_slices=slices))
    value = kernel.services[WEB]
    assert value.snat_addresses == ("10.81.0.10",)
    assert value.snat_slice == Slice(20_000, 8_000, 700, 9)
    own = Slice(20_000, 8_000, 700, 9)
    assert kernel.addresses == {
        "10.80.0.10": AddressInfo(of_service=True, floating=False, snat_slice=None),
        "10.81.0.10": AddressInfo(of_service=False, floating=False, snat_slice=own),
    }


VIPS = (VipOwner("10.80.0.100", None, "lb-1", ("10.81.0.100", "10.81.0.101")),)
VIP_SLICES = tuple(
    SnatSlice(owner, address, first, 4)
    for owner, first in (("lb-0", 2_000), ("lb-1", 3_000))
    for address in (None, "10.81.0.100", "10.81.0.101", "10.81.0.102")
)


def floating(**fields: Any) -> NodeTable:
    web = service("web", address="10.80.0.100", affinity=Affinity.CLIENT, **fields)
    return replace(table([node(0)], [web]), vip_owners=VIPS, snat_slices=VIP_SLICES)


def test_a_floating_address_and_the_addresses_that_move_with_it() -> None:
    kernel = Kernel()
    run(kernel, EMPTY, floating())
    value = kernel.services[ServiceKey("10.80.0.100", 80, Protocol.TCP)]
    assert value.affinity is Affinity.CLIENT
    assert value.snat_addresses == ("10.81.0.100", "10.81.0.101")
    own = Slice(2_000, 4, 0, 0)
    assert value.snat_slice == own
    assert kernel.addresses == {
        "10.80.0.100": AddressInfo(of_service=True, floating=True, snat_slice=None),
        "10.81.0.100": AddressInfo(of_service=False, floating=True, snat_slice=own),
        "10.81.0.101": AddressInfo(of_service=False, floating=True, snat_slice=own),
    }


def test_a_vip_without_a_service_floats_as_well() -> None:
    """What comes there is dropped, and never the host's to answer."""
    kernel = Kernel()
    run(kernel, EMPTY, replace(table([node(0)], []), vip_owners=VIPS))
    assert kernel.addresses == {
        "10.80.0.100": AddressInfo(of_service=True, floating=True, snat_slice=None)
    }


def test_a_vip_that_this_host_has_as_its_own_does_not_float() -> None:
    kernel = Kernel()
    facts = replace(FACTS, own_addresses=OWN | {"10.80.0.100"})
    run(kernel, EMPTY, floating(), facts=facts)
    assert not kernel.addresses["10.80.0.100"].floating


def test_a_network_s_broadcast_address_is_no_client_s() -> None:
    kernel = Kernel()
    facts = replace(FACTS, broadcasts=frozenset({"10.80.0.255", "10.80.0.100"}))
    state = run(kernel, EMPTY, floating(), facts=facts).after
    assert kernel.addresses["10.80.0.255"] == AddressInfo(False, False, None)
    assert kernel.addresses["10.80.0.100"].of_service
    run(kernel, state, floating())
    assert "10.80.0.255" not in kernel.addresses


def test_a_service_s_own_addresses_go_before_the_vip_s() -> None:
    kernel = Kernel()
    run(kernel, EMPTY, floating(snat_addresses=("10.81.0.102",)))
    (value,) = kernel.services.values()
    assert value.snat_addresses == ("10.81.0.102",)
    assert set(kernel.addresses) == {"10.80.0.100", "10.81.0.102"}


def test_an_address_without_the_slice_of_the_others_is_left_alone() -> None:
    kernel = Kernel()
    odd = tuple(
        replace(own, first_port=9_000) if own.address == "10.81.0.101" else own
        for own in VIP_SLICES
    )
    run(kernel, EMPTY, replace(floating(), snat_slices=odd))
    (value,) = kernel.services.values()
    assert value.snat_addresses == ("10.81.0.100",)


@pytest.mark.parametrize("fields", [{"snat": False}, {"mode": Mode.L3}])
def test_who_takes_no_ports_has_no_snat_address(fields: dict[str, Any]) -> None:
    kernel = Kernel()
    run(kernel, EMPTY, floating(**fields))
    (value,) = kernel.services.values()
    assert (value.snat_addresses, value.snat_slice) == ((), NO_PORTS)
    assert set(kernel.addresses) == {"10.80.0.100"}


def test_an_address_that_one_service_gave_up_stays_while_flows_have_its_ports() -> None:
    kernel = Kernel()
    front = ServiceKey("10.80.0.100", 80, Protocol.TCP)
    first = run(kernel, EMPTY, floating())
    kernel.open(front, 7)
    wanted = floating(snat_addresses=("10.81.0.102",))
    second = run(kernel, first.after, wanted)
    assert kernel.addresses["10.81.0.100"].snat_slice == Slice(2_000, 4, 0, 0)
    assert second.watch.snat_addresses == {"10.81.0.100", "10.81.0.101"}
    kernel.flows.clear()
    kernel.open(front, 7)
    run(kernel, second.after, wanted, census=kernel.census(second, SETTLE_MS))
    assert set(kernel.addresses) == {"10.80.0.100", "10.81.0.102"}


def test_ports_are_counted_once_for_each_address_towards_each_place() -> None:
    kernel = Kernel()
    both = [service("web", node_port=80), service("api", 81, node_port=80)]
    dns = service("dns", 53, snat_addresses=("10.81.0.101", "10.81.0.102"))
    plan = run(kernel, EMPTY, with_slices([node(0), node(1)], *both, dns))
    own, shared = 31_232 + 424, 7_808 + 53
    assert snat_ports(plan.after) == 2 * own + 2 * 2 * shared
    watched = plan.watch.own_ports or {}
    assert {each: sum(map(len, ranges)) for each, ranges in watched.items()} == {
        "10.81.0.10": own,
        "10.81.0.101": shared,
        "10.81.0.102": shared,
    }


def test_without_a_slice_there_are_no_ports() -> None:
    kernel = Kernel()
    run(kernel, EMPTY, table([node(0)]))
    (value,) = kernel.services.values()
    assert value.snat_slice == NO_PORTS
    assert kernel.addresses["10.80.0.10"].snat_slice is None


# --------------------------------------------------------------------------- many services


def rings_of(plan: Plan) -> dict[str, int]:
    """The ring that each service goes by."""
    named = {number: name for name, number in plan.after.ids.items()}
    return {named[v.service_id]: v.ring for v in plan.after.services.values() if not v.retired}


def test_services_of_the_same_nodes_share_a_ring_and_a_death_is_one_write() -> None:
    kernel = Kernel()
    three = [service(name, port) for name, port in (("web", 80), ("dns", 81), ("api", 82))]
    first = run(kernel, EMPTY, table([node(i) for i in range(4)], three))
    assert set(rings_of(first).values()) == {0}
    death = run(kernel, first.after, table([node(i) for i in range(4)], three), view(2))
    assert sum(isinstance(write, SlotsWrite) for write in death.writes) == 1
    gone = {seat_identity(each.name, node(2).id) for each in three}
    for each in three:
        assert not gone & set(kernel.slots(each.name))


def test_a_service_that_parts_from_the_others_gets_a_ring_of_its_own() -> None:
    kernel = Kernel()
    services = [service("web", 80), service("dns", 81)]
    everywhere = [node(i, UP, 1, "dns", "web") for i in range(3)]
    first = run(kernel, EMPTY, table(everywhere, services))
    parted = [everywhere[0], everywhere[1], node(2, UP, 1, "dns")]
    second = run(kernel, first.after, table(parted, services))
    rings = rings_of(second)
    assert rings["web"] != rings["dns"]
    # And together again: the ring of the one is the other's once more.
    third = run(kernel, second.after, table(everywhere, services))
    assert len(set(rings_of(third).values())) == 1
    assert kernel.slots("web") == expected_slots(table(everywhere, services), None, "web")


def test_too_few_rings_leave_a_service_out_by_name() -> None:
    services = [service("web", 80), service("dns", 81)]
    nodes = [node(0, UP, 1, "web"), node(1, UP, 1, "dns")]
    plan = run(Kernel(), EMPTY, table(nodes, services), facts=replace(FACTS, max_rings=1))
    assert plan.refused == ("service dns: all 1 rings are in use",)
    assert {key.port for key in plan.after.services} == {80}


def test_one_group_sends_a_client_to_one_node_and_another_elsewhere() -> None:
    kernel = Kernel()
    shop = [
        service(f"s{port}", port, affinity=Affinity.CLIENT, affinity_group=group)
        for port, group in ((80, "shop"), (81, "shop"), (82, ""), (83, "other"))
    ]
    run(kernel, EMPTY, table([node(i) for i in range(3)], shop))
    nodes = {
        each.name: [
            next((i for i in range(3) if seat_identity(each.name, node(i).id) == identity), None)
            for identity in kernel.slots(each.name)[:2000]
        ]
        for each in shop
    }
    assert nodes["s80"] == nodes["s81"]
    assert nodes["s80"] != nodes["s82"] != nodes["s83"] != nodes["s80"]


def test_a_range_has_a_front_and_an_endpoint_for_each_port() -> None:
    kernel = Kernel()
    ranged = service("web", 9000, ports=10, keeps_port=True)
    plan = run(kernel, EMPTY, table([node(0)], [ranged, service("one", 80)]))
    ports = {key.port for key, value in kernel.services.items() if value.keeps_port}
    assert ports == set(range(9000, 9010))
    seats = {plan.after.seats[seat].port for seat in kernel.endpoints.values()}
    assert seats == {0, 80}
    assert {key.port for key in kernel.endpoints} == {80, *range(9000, 9010)}
    fewer = replace(ranged, ports=4)
    less = run(kernel, plan.after, table([node(0)], [fewer, service("one", 80)]))
    retired = {key.port for key, value in kernel.services.items() if value.retired}
    assert retired == set(range(9004, 9010))
    assert {key.port for key in less.watch.fronts} == retired


def test_of_two_ranges_that_overlap_the_later_is_left_out_where_they_do() -> None:
    kernel = Kernel()
    services = [service("web", 9000, ports=10), service("dns", 9009, ports=2)]
    plan = run(kernel, EMPTY, table([node(0)], services))
    assert plan.refused == ("service dns: tcp 10.80.0.10:9009 is web's already",)
    numbers = {key.port: value.service_id for key, value in kernel.services.items()}
    assert numbers[9009] == numbers[9000] != numbers[9010]


def test_ports_beyond_what_there_is_room_for_are_left_out_by_name() -> None:
    services = [service("web", 9000, ports=4), service("dns", 53)]
    plan = run(Kernel(), EMPTY, table([], services), facts=replace(FACTS, max_fronts=4))
    assert plan.refused == ("service dns: all 4 places for ports are in use",)
    assert {key.port for key in plan.after.services} == {9000, 9001, 9002, 9003}


def test_many_services_of_one_node_lie_behind_each_other() -> None:
    """More than the lowest free seats are looked for; and where there is no room, anywhere."""
    kernel = Kernel()
    services = [service(f"s{port}", port) for port in range(1, 21)]
    nodes = [node(i) for i in range(3)]
    plan = run(kernel, EMPTY, table(nodes, services))
    assert plan.refused == ()
    assert sorted(kernel.seats) == list(range(1, 61))
    assert set(rings_of(plan).values()) == {0}
    full = run(kernel, plan.after, table([*nodes, node(3)], services))
    assert len(kernel.seats) == FACTS.max_seats - 1
    (said,) = full.refused
    reason = "all 63 seats are taken"
    assert said == f"node {node(3).id} at s4, s5, s6 and 14 more services: {reason}"
    without = [each for each in full.states() if each.seat == NO_SEAT]
    assert [each.service for each in without] == [f"s{port}" for port in range(4, 21)]
    assert {(each.node, each.reason) for each in without} == {(node(3).id, reason)}


def test_more_nodes_at_services_than_seats_are_left_out_by_name_and_soon() -> None:
    """The first plan is the largest: each service has a port of its own on each node."""
    services = [service(f"s{port}", port) for port in range(1, 701)]
    nodes = [replace(node(0), id=f"n{i}@10.81.1.{i}", address=f"10.81.1.{i}") for i in range(100)]
    facts = replace(
        FACTS,
        max_seats=65_536,
        max_services=1_024,
        max_rings=1_024,
        max_fronts=1_024,
        max_endpoints=262_144,
    )
    began_s = time.thread_time()
    plan = make_plan(EMPTY, table(nodes, services), None, {}, facts, None, 0)
    assert time.thread_time() - began_s < 20
    assert len(plan.after.seats) == 65_535
    assert {len(nodes_served) for nodes_served in served(plan)} == {93, 94}
    assert len(plan.refused) == 7
    why = "all 65,535 seats are taken"
    assert f"node n94@10.81.1.94 at s1, s2, s3 and 697 more services: {why}" in plan.refused
    assert f"node n93@10.81.1.93 at s436, s437, s438 and 262 more services: {why}" in plan.refused


def served(plan: Plan) -> list[set[str]]:
    """Which nodes have slots of each service."""
    found: dict[str, set[str]] = {}
    for told in plan.states():
        nodes = found.setdefault(told.service, set())
        if told.slots:
            nodes.add(told.node)
    return list(found.values())


def test_in_mode_l2_a_node_behind_a_router_is_not_routed_to_and_says_why() -> None:
    kernel = Kernel()
    services = [service("web", 80, mode=Mode.L2), service("dns", 81, mode=Mode.L3)]
    wanted = table([node(0), node(1)], services)
    routed = {node(0).address: HOP, node(1).address: replace(HOP, gateway="10.81.0.254")}
    plan = make_plan(EMPTY, wanted, None, routed, FACTS, None, 0)
    for write in plan.writes:
        kernel.apply(write)
    far = seat_identity("web", node(1).id)
    assert far not in kernel.slots("web")
    assert seat_identity("dns", node(1).id) in kernel.slots("dns")
    assert [why for why in plan.refused if "behind the router 10.81.0.254" in why]
    reasons = {(each.service, each.node): each.reason for each in plan.states()}
    assert "behind the router" in reasons["web", node(1).id]
    assert not reasons["web", node(0).id]
    assert not reasons["dns", node(1).id]
