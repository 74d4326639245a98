"""Plans executed on a model of the kernel's maps: what they end in, and every step on the way."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bus.messages import (
    Affinity,
    LocalView,
    Mode,
    NodeObservation,
    NodeService,
    NodeState,
    NodeTable,
    Protocol,
    SnatSlice,
    TableNode,
    TableService,
    VipOwner,
)
from services.dataplane import ring
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import (
    EMPTY,
    ENTRIES,
    LANES,
    NO_SEAT,
    Facts,
    KernelState,
    Plan,
    Seat,
    SeatRemoval,
    SeatWrite,
    Service,
    ServiceKey,
    ServiceRemoval,
    ServiceWrite,
    SlotsWrite,
    Write,
    make_plan,
    seat_identity,
    service_identity,
)

FACTS = Facts("lb-0", "10.80.0.10", "10.81.0.10", quarantine_ms=1000, max_seats=64, max_services=32)
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
    def observed(number: int) -> NodeObservation:
        known = node(number)
        return NodeObservation(
            id=known.id,
            name=known.name,
            address=known.address,
            state=state,
            reason="",
            weight=1,
            services=(),
            fails=0,
            banned_for_ms=0,
            observed_ms=0,
            checks_passed=0,
            checks_required=3,
            checks_good_total=0,
            checks_bad_total=0,
            load=0.0,
        )

    return LocalView(1, tuple(observed(number) for number in dead), {})


@dataclass
class Kernel:
    """The three maps, and what must hold of them after every write."""

    seats: dict[int, Seat] = field(default_factory=dict)
    services: dict[ServiceKey, Service] = field(default_factory=dict)
    ring: np.ndarray = field(
        default_factory=lambda: np.zeros((FACTS.max_services * ENTRIES, LANES), np.uint16)
    )

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
        self.check()

    def check(self) -> None:
        for service_id in {value.service_id for value in self.services.values()}:
            for seat in np.unique(self.region(service_id)).tolist():
                assert seat == NO_SEAT or self.seats[seat].service_id == service_id
        assert (self.ring.reshape(-1, ENTRIES * LANES)[:, ring.SLOTS :] == 0).all()

    def region(self, service_id: int) -> np.ndarray:
        return self.ring[service_id * ENTRIES : (service_id + 1) * ENTRIES]

    def adopt(self, *, read_all: bool = False) -> KernelState:
        """What a restarted process reads out of the maps."""
        ids = {value.service_id for value in self.services.values()}
        wanted = range(FACTS.max_services) if read_all else ids
        rings = {number: self.region(number).copy() for number in wanted}
        return KernelState(dict(self.seats), dict(self.services), rings)

    def slots(self, name: str) -> list[int]:
        """The identities of the nodes in a service's slots, 0 for nobody."""
        number = next(
            v.service_id for v in self.services.values() if v.identity == service_identity(name)
        )
        identity = np.zeros(FACTS.max_seats, np.uint64)
        for seat, value in self.seats.items():
            identity[seat] = value.identity
        flat: list[int] = identity[self.region(number).ravel()[: ring.SLOTS]].tolist()
        return flat


def run(
    kernel: Kernel,
    state: KernelState,
    wanted: NodeTable,
    local: LocalView | None = None,
    now_ms: int = 0,
    facts: Facts = FACTS,
) -> Plan:
    hops = {member.address: HOP for member in wanted.nodes}
    plan = make_plan(state, wanted, local, hops, facts, now_ms)
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
    dead = {seen.id for seen in local.nodes if seen.state in (DOWN, BANNED)} if local else set()
    resting = {
        index for index, member in enumerate(serving) if member.state is not UP or member.id in dead
    }
    members = [ring.Member(member.id, member.weight) for member in serving]
    slots = ring.masked(ring.build(members, wanted.hash_seed, name), resting)
    identities = [seat_identity(name, member.id) for member in serving]
    return [0 if index == ring.NOBODY else identities[index] for index in slots.tolist()]


# --------------------------------------------------------------------------- any sequence

names_of = st.sets(st.sampled_from(["web", "dns"]))


@st.composite
def tables(draw: st.DrawFn) -> NodeTable:
    states = st.sampled_from([UP, UP, UP, DRAINING, DOWN, BANNED])
    chosen = draw(st.sets(st.integers(0, 5), max_size=5))
    nodes = [
        node(number, draw(states), draw(st.integers(0, 3)), *sorted(draw(names_of)))
        for number in sorted(chosen)
    ]
    offered = [
        service(name, draw(st.integers(80, 82)) + 10 * index, mode=draw(st.sampled_from(Mode)))
        for index, name in enumerate(sorted(draw(names_of)))
    ]
    return table(nodes, offered, seed=draw(st.integers(1, 2)))


views = st.sampled_from([None, view(), view(0), view(0, 1, 2), view(3, state=BANNED)])
steps = st.tuples(
    tables(), views, st.integers(0, 700), st.sampled_from(["go on", "die", "restart"])
)


@settings(max_examples=25, deadline=None)
@given(st.lists(steps, min_size=1, max_size=6), st.data())
def test_the_maps_follow_the_table_through_deaths_and_restarts(
    history: list[tuple[NodeTable, LocalView | None, int, str]], data: st.DataObject
) -> None:
    kernel, state, now_ms = Kernel(), EMPTY, 0
    for wanted, local, passed_ms, fate in history:
        now_ms += passed_ms
        hops = {member.address: HOP for member in wanted.nodes}
        plan = make_plan(state, wanted, local, hops, FACTS, now_ms)
        if fate == "die":
            done = data.draw(st.integers(0, len(plan.writes)))
            for write in plan.writes[:done]:
                kernel.apply(write)
            state = kernel.adopt(read_all=data.draw(st.booleans()))
            continue
        for write in plan.writes:
            kernel.apply(write)
        assert dict(plan.after.seats) == kernel.seats
        assert dict(plan.after.services) == kernel.services
        for number, held in plan.after.rings.items():
            assert (held == kernel.region(number)).all()
        for offered in wanted.services:
            assert kernel.slots(offered.name) == expected_slots(wanted, local, offered.name)
        state = kernel.adopt() if fate == "restart" else plan.after
        again = make_plan(state, wanted, local, hops, FACTS, now_ms)
        assert again.writes == ()
        assert again.moved_slots == 0


# --------------------------------------------------------------------------- rings


def test_a_death_writes_only_entries_with_slots_of_the_dead() -> None:
    kernel = Kernel()
    wanted = table(node(i) for i in range(4))
    first = run(kernel, EMPTY, wanted)
    before = kernel.region(0).copy()
    seat = next(s.seat for s in first.seats if s.node == node(2).id)
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
    shares = {told.node: (told.slots, told.share, told.resolved) for told in plan.seats}
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
    seats = {told.node: told.seat for told in second.seats}
    assert seats == {node(1).id: 1, node(2).id: 2, node(0).id: 3}


def test_a_vanished_node_s_seat_is_quarantined_before_its_number_is_given_away() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    gone = run(kernel, first.after, table([node(1)]), now_ms=100)
    assert kernel.seats[1].address == node(0).address
    assert gone.next_ms == 1100
    assert node(0).address in gone.addresses
    held = run(kernel, gone.after, table([node(1), node(2)]), now_ms=1099)
    assert {told.node: told.seat for told in held.seats}[node(2).id] == 3
    freed = run(kernel, held.after, table([node(1), node(2)]), now_ms=1100)
    assert 1 not in kernel.seats
    assert freed.next_ms is None
    reused = run(kernel, freed.after, table(node(i) for i in (1, 2, 3)), now_ms=1100)
    assert {told.node: told.seat for told in reused.seats}[node(3).id] == 1
    assert any(isinstance(w, SeatWrite) and w.seat == 1 and w.fresh for w in reused.writes)


def test_a_node_that_returns_from_quarantine_has_its_old_seat() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    gone = run(kernel, first.after, table([node(1)]), now_ms=100)
    back = run(kernel, gone.after, table([node(0), node(1)]), now_ms=500)
    assert {told.node: told.seat for told in back.seats}[node(0).id] == 1
    assert kernel.seats[1].up
    assert back.next_ms is None


def test_after_a_restart_quarantine_begins_anew() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0), node(1)]))
    run(kernel, first.after, table([node(1)]), now_ms=100)
    adopted = run(kernel, kernel.adopt(), table([node(1)]), now_ms=5_000)
    assert adopted.writes == ()
    assert adopted.next_ms == 6_000


def test_only_up_and_draining_nodes_are_given_a_seat() -> None:
    kernel = Kernel()
    nodes = [node(0, DOWN), node(1, DRAINING), node(2, BANNED), node(3)]
    plan = run(kernel, EMPTY, table(nodes))
    assert {told.node for told in plan.seats} == {node(1).id, node(3).id}


def test_without_a_free_seat_a_node_is_left_out_by_name() -> None:
    kernel = Kernel()
    few = replace(FACTS, max_seats=3)
    plan = run(kernel, EMPTY, table(node(i) for i in range(3)), facts=few)
    assert plan.refused == (f"node {node(2).id} at web: no free seat",)
    assert NO_SEAT not in kernel.region(0).ravel()[: ring.SLOTS]


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
    (write,) = plan.writes
    assert isinstance(write, SeatWrite)
    assert (write.seat, write.value.address, write.value.port) == (1, "10.81.0.99", 1234)
    assert not write.fresh


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


# --------------------------------------------------------------------------- next hops


def hops_plan(kernel: Kernel, state: KernelState, hops: dict[str, NextHop | None]) -> Plan:
    plan = make_plan(state, table([node(0)]), None, hops, FACTS, 0)
    for write in plan.writes:
        kernel.apply(write)
    return plan


def test_next_hops_are_kept_changed_and_unset() -> None:
    kernel = Kernel()
    address = node(0).address
    first = hops_plan(kernel, EMPTY, {address: HOP})
    assert first.seats[0].resolved
    assert hops_plan(kernel, first.after, {}).writes == ()
    unresolved = hops_plan(kernel, first.after, {address: replace(HOP, destination_mac=None)})
    assert len(unresolved.writes) == 1
    assert not unresolved.seats[0].resolved
    lost = hops_plan(kernel, unresolved.after, {address: None})
    assert kernel.seats[1].next_hop is None
    assert not lost.seats[0].resolved


def test_a_quarantined_seat_s_next_hop_is_kept_current() -> None:
    kernel = Kernel()
    first = hops_plan(kernel, EMPTY, {node(0).address: HOP})
    gone = run(kernel, first.after, table([]))
    other = replace(HOP, destination_mac="02:00:00:00:00:99")
    plan = make_plan(gone.after, table([]), None, {node(0).address: other}, FACTS, 1)
    (write,) = plan.writes
    assert isinstance(write, SeatWrite)
    assert write.value.next_hop == other
    assert make_plan(gone.after, table([]), None, {}, FACTS, 1).writes == ()


# --------------------------------------------------------------------------- services


def test_services_come_after_their_rings_and_go_before_their_seats() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)]))
    assert [type(write) for write in first.writes] == [SeatWrite, SlotsWrite, ServiceWrite]
    last = run(kernel, first.after, table([node(0)], []))
    assert [type(write) for write in last.writes] == [ServiceRemoval, SeatWrite]


def test_a_service_id_is_not_given_away_while_a_quarantined_seat_refers_to_it() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)]))
    other = run(kernel, first.after, table([node(0)], [service("dns", 53)]))
    assert kernel.services[ServiceKey("10.80.0.10", 53, Protocol.TCP)].service_id == 1
    third = run(kernel, other.after, table([node(0)], [service("ssh", 22)]))
    assert kernel.services[ServiceKey("10.80.0.10", 22, Protocol.TCP)].service_id == 2
    over = run(kernel, third.after, table([node(0)], [service("ssh", 22)]), now_ms=1000)
    run(kernel, over.after, table([node(0)], [service("dns", 53)]), now_ms=1000)
    assert kernel.services[ServiceKey("10.80.0.10", 53, Protocol.TCP)].service_id == 0


def test_a_service_keeps_its_id_when_its_port_changes() -> None:
    kernel = Kernel()
    first = run(kernel, EMPTY, table([node(0)], [service("web", 80, node_port=8080)]))
    plan = run(kernel, first.after, table([node(0)], [service("web", 81, node_port=8080)]))
    assert [type(write) for write in plan.writes] == [ServiceWrite, ServiceRemoval]
    assert [value.service_id for value in kernel.services.values()] == [0]


def test_too_many_services_are_refused_by_name() -> None:
    kernel = Kernel()
    many = [service(f"s{i}", 80 + i) for i in range(5)]
    plan = run(kernel, EMPTY, table([node(0)], many), facts=replace(FACTS, max_services=4))
    assert plan.refused == ("service s4: all 4 ids are in use",)
    assert len(kernel.services) == 4


def test_own_address_own_slice() -> None:
    kernel = Kernel()
    slices = (SnatSlice("lb-1", None, 1, 2), SnatSlice("lb-0", None, 20_000, 8_000))
    run(kernel, EMPTY, replace(table([node(0)]), snat_slices=slices))
    ((key, value),) = kernel.services.items()
    assert key == ServiceKey("10.80.0.10", 80, Protocol.TCP)
    assert (value.snat_address, value.snat_first_port, value.snat_ports) == (
        "10.81.0.10",
        20_000,
        8_000,
    )


def test_floating_address_and_the_slice_of_its_snat_address() -> None:
    kernel = Kernel()
    floating = service("web", address="10.80.0.100", affinity=Affinity.CLIENT)
    wanted = replace(
        table([node(0)], [floating]),
        vip_owners=(VipOwner("10.80.0.100", "10.81.0.100", "lb-1"),),
        snat_slices=(
            SnatSlice("lb-0", None, 1, 2),
            SnatSlice("lb-1", "10.81.0.100", 3, 4),
            SnatSlice("lb-0", "10.81.0.100", 5, 6),
        ),
    )
    run(kernel, EMPTY, wanted)
    ((key, value),) = kernel.services.items()
    assert key.address == "10.80.0.100"
    assert value.affinity is Affinity.CLIENT
    assert (value.snat_address, value.snat_first_port, value.snat_ports) == ("10.81.0.100", 5, 6)


def test_without_a_slice_there_are_no_ports() -> None:
    kernel = Kernel()
    run(kernel, EMPTY, table([node(0)]))
    (value,) = kernel.services.values()
    assert (value.snat_first_port, value.snat_ports) == (0, 0)
