"""What a change would do, said before it is made."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import pytest

from bus.states import NodeTable
from bus.words import Mode, NodeState, OnNodeDown, Protocol
from services.dataplane.flows.record import REPLY, REQUEST, TCP, UDP
from services.dataplane.foresight import (
    FlowCounts,
    WrongChangeError,
    count_flows,
    foresee,
    read_change,
)
from services.dataplane.maps import EMPTY, KernelState
from services.dataplane.plan import Plan, make_plan
from services.dataplane.ring import SLOTS
from tests.dataplane.test_plan import FACTS, HOP, node, service

NODES = [node(number) for number in range(4)]
HOPS = {each.address: HOP for each in NODES}
TABLE = NodeTable(
    term=1,
    epoch=4,
    hash_seed=77,
    services=(
        service("dns", 53, protocol=Protocol.UDP),
        service("kept", 81, on_node_down=OnNodeDown.KEEP),
        service("plain", 82, mode=Mode.L2),
        service("web"),
    ),
    nodes=tuple(NODES),
    bans=(),
    vip_owners=(),
    snat_slices=(),
)


def planned(held: KernelState, table: NodeTable) -> Plan:
    return make_plan(held, table, None, HOPS, FACTS, None, 0)


HELD = planned(EMPTY, TABLE).after


def foreseen(table: NodeTable = TABLE, flows: dict[int, int] | None = None, **change: Any) -> Any:
    """By service, what is said of it; and the whole answer. `flows`: of each seat's."""
    wanted = read_change(change).applied(table)
    counts = FlowCounts(np.zeros(1 << 16, np.int64), np.zeros(1 << 16, np.int64))
    for seat, number in (flows or {}).items():
        is_udp = HELD.seats[seat].service_id == HELD.ids["dns"]
        (counts.others if is_udp else counts.tcp)[seat] = number
    told = foresee(planned(HELD, table), planned(HELD, wanted), table, wanted, counts)
    return {each["service"]: each for each in told["services"]}, told


def seats_of(name: str, address: str) -> list[int]:
    number = HELD.ids[name]
    return [
        at
        for at, seat in HELD.seats.items()
        if (seat.service_id, seat.address) == (number, address)
    ]


def test_no_change_changes_nothing() -> None:
    services, told = foreseen(services=[asdict(each) for each in reversed(TABLE.services)])
    assert told["changes_nothing"]
    assert (told["slots_moved"], told["flows_hit"]) == (0, 0)
    assert {each["change"] for each in services.values()} == {""}


def test_a_node_that_goes_moves_its_own_slots_and_hits_its_own_flows() -> None:
    going = NODES[1]
    flows = {
        seat: number
        for name, number in (("web", 10), ("kept", 20), ("dns", 5))
        for seat in seats_of(name, going.address)
    }
    flows |= dict.fromkeys(seats_of("web", NODES[0].address), 100)
    services, told = foreseen(flows=flows, without=[going.id])
    for each in services.values():
        assert each["slots_moved"] == pytest.approx(SLOTS / 4, rel=0.03)
        assert each["share_moved"] == each["slots_moved"] / SLOTS
    hit = {
        name: (each["flows"], each["flows_reset"], each["flows_moved"], each["flows_left"])
        for name, each in services.items()
    }
    assert hit == {
        "web": (110, 10, 0, 0),
        "kept": (20, 0, 0, 20),
        "dns": (5, 0, 5, 0),
        "plain": (0, 0, 0, 0),
    }
    assert told["flows_hit"] == 15
    nodes = {each["node"]: each for each in told["nodes"]}
    assert nodes[going.id]["slots_after"] == 0
    assert sum(each["slots_after"] for each in told["nodes"]) == 4 * SLOTS


def test_who_was_dead_before_is_not_hit_again() -> None:
    nodes = (NODES[0], replace(NODES[1], state=NodeState.DOWN), *NODES[2:])
    flows = {seats_of("web", NODES[1].address)[0]: 10}
    services, told = foreseen(replace(TABLE, nodes=nodes), flows, without=[NODES[1].id])
    assert (services["web"]["slots_moved"], told["flows_hit"]) == (0, 0)


def test_a_weight_moves_slots_and_no_flow_of_l4() -> None:
    seat = seats_of("web", NODES[2].address)[0]
    services, told = foreseen(flows={seat: 9}, weights={NODES[2].id: 2})
    nodes = {each["node"]: each for each in told["nodes"]}
    assert nodes[NODES[2].id]["slots_after"] > 1.5 * nodes[NODES[2].id]["slots"]
    assert services["web"]["slots_moved"] > SLOTS / 10
    assert (services["web"]["flows"], told["flows_hit"]) == (9, 0)


def test_services_that_come_go_and_change_are_named() -> None:
    wanted = [
        asdict(service("new", 90)),
        asdict(service("kept", 81, mode=Mode.L2)),
        asdict(service("web", 8080)),
        asdict(TABLE.services[0]),
    ]
    services, told = foreseen(services=wanted)
    assert {name: each["change"] for name, each in services.items()} == {
        "dns": "",
        "kept": "from l4 to l2",
        "new": "new",
        "plain": "gone",
        "web": "changed",
    }
    assert told["flows_hit"] == 0
    assert not told["changes_nothing"]


def test_a_node_may_be_called_by_its_name_where_only_one_has_it() -> None:
    first = NODES[0]
    asked = {"without": [first.name], "weights": {NODES[1].name: 7}}
    changed = {node.id: node for node in read_change(asked).applied(TABLE).nodes}
    assert changed[first.id].state is NodeState.DOWN
    assert changed[NODES[1].id].weight == 7
    twice = replace(TABLE, nodes=(first, replace(NODES[1], name=first.name), *NODES[2:]))
    with pytest.raises(
        WrongChangeError, match=f"several nodes are named {first.name}: {first.id}, "
    ):
        read_change(asked).applied(twice)
    named_by_id = replace(TABLE, nodes=(first, replace(NODES[1], name=first.id)))
    changed = {
        node.id: node for node in read_change({"without": [first.id]}).applied(named_by_id).nodes
    }
    assert [node.state for node in changed.values()].count(NodeState.DOWN) == 1
    assert changed[first.id].state is NodeState.DOWN


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"without": ["nobody"]}, "no node is named nobody; there are n0@"),
        ({"without": "node-0"}, "expected a list"),
        ({"weights": {NODES[0].id: -1}}, "weights: expected numbers from 0"),
        ({"weights": {NODES[0].id: True}}, "weights: expected numbers from 0"),
        ({"services": [{"name": "x"}]}, "services: "),
        ({"services": [asdict(service("x")), asdict(service("x", 81))]}, "listed twice"),
    ],
)
def test_what_is_no_change_is_refused(change: dict[str, Any], expected: str) -> None:
    with pytest.raises(WrongChangeError, match=expected):
        read_change(change).applied(TABLE)


def test_flows_are_counted_once_by_seat_and_protocol() -> None:
    kind = np.dtype(
        [("key", [("direction", np.uint8), ("protocol", np.uint8)]), ("seat", np.uint16)]
    )
    rows = [((REQUEST, TCP), 3), ((REPLY, TCP), 3), ((REQUEST, UDP), 3), ((REQUEST, TCP), 65_535)]
    passing = count_flows([np.array(rows, kind), np.array(rows[:1], kind)])
    while True:
        try:
            next(passing)
        except StopIteration as end:
            counts = end.value
            break
    assert (counts.tcp[3], counts.others[3], counts.tcp[65_535]) == (2, 1, 1)
    assert counts.tcp.sum() + counts.others.sum() == 4
