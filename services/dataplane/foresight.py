"""What a change of the table would do here, before it is one: `gale plan`. Pure.

The same plan that would carry it out is made of a table that is not agreed on, and compared with
the one of the table that is. So what it says of slots is what would be written. Of flows it says:

* L4 keeps them where they are, whatever the slots say. They are hit only where their seat is dead
  afterwards and was not before: TCP is reset or (`on_node_down = "keep"`) stays with the dead node,
  UDP chooses anew;
* L2 and L3 remember none: each client whose slot moves changes its node in the middle of its
  connection. Nobody counts those, so they are said by their share.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bus.codec import MalformedMessage, from_json, to_json
from bus.states import NodeTable, TableService
from bus.words import LARGEST_WEIGHT, Mode, NodeState
from services.dataplane.flows.record import REQUEST, TCP, Records
from services.dataplane.maps import NO_SEAT
from services.dataplane.plan import Plan
from services.dataplane.ring import SLOTS

MOST_SEATS = 1 << 16


class WrongChangeError(ValueError):
    """The change is none; the message says what was expected."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is to be other than it is."""

    without: frozenset[str]
    """Nodes that are gone: by their ids, or names that only one has."""
    weights: Mapping[str, int]
    """Likewise."""
    services: tuple[TableService, ...] | None
    """None: as they are."""

    def applied(self, table: NodeTable) -> NodeTable:
        """The table after it; raises `WrongChangeError` for a node that is not in it."""
        without = {_id_of(node, table) for node in self.without}
        weights = {_id_of(node, table): weight for node, weight in self.weights.items()}
        nodes = tuple(
            replace(
                node,
                weight=weights.get(node.id, node.weight),
                state=NodeState.DOWN if node.id in without else node.state,
                silent=node.silent or node.id in without,
            )
            for node in table.nodes
        )
        services = table.services if self.services is None else self.services
        return replace(table, nodes=nodes, services=services)


def _id_of(node: str, table: NodeTable) -> str:
    """By its id, or by its name where only one node has it."""
    ids = {each.id for each in table.nodes}
    named = [each.id for each in table.nodes if each.name == node]
    if node in ids:
        return node
    if len(named) == 1:
        return named[0]
    if named:
        raise WrongChangeError(f"several nodes are named {node}: {', '.join(sorted(named))}")
    raise WrongChangeError(f"no node is named {node}; there are {', '.join(sorted(ids)) or 'none'}")


def read_change(arguments: Mapping[str, Any]) -> Change:
    """What the command `plan` was given; raises `WrongChangeError`."""
    without, weights = arguments.get("without") or [], arguments.get("weights") or {}
    if not isinstance(without, list) or not all(isinstance(node, str) for node in without):
        raise WrongChangeError("without: expected a list of nodes' ids")
    if not isinstance(weights, dict) or not all(map(_is_weight, weights.values())):
        raise WrongChangeError(f"weights: expected numbers from 0 to {LARGEST_WEIGHT}, by node")
    services = arguments.get("services")
    if services is None:
        return Change(frozenset(without), weights, None)
    try:
        read = from_json(tuple[TableService, ...], to_json(services))
    except MalformedMessage as error:
        raise WrongChangeError(f"services: {error}") from None
    if len({service.name for service in read}) != len(read):
        raise WrongChangeError("services: one is listed twice")
    in_order = tuple(sorted(read, key=lambda service: service.name))
    return Change(frozenset(without), weights, in_order)


def _is_weight(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= LARGEST_WEIGHT


@dataclass(frozen=True, slots=True)
class FlowCounts:
    """Living flows, by seat."""

    tcp: NDArray[np.int64]
    others: NDArray[np.int64]


def count_flows(blocks: Iterable[Records]) -> Generator[None, None, FlowCounts]:
    """A pass over the living records, in steps."""
    tcp, others = np.zeros(MOST_SEATS, np.int64), np.zeros(MOST_SEATS, np.int64)
    for records in blocks:
        is_request = records["key"]["direction"] == REQUEST
        is_tcp = records["key"]["protocol"] == TCP
        tcp += np.bincount(records["seat"][is_request & is_tcp], minlength=MOST_SEATS)
        others += np.bincount(records["seat"][is_request & ~is_tcp], minlength=MOST_SEATS)
        yield
    return FlowCounts(tcp, others)


@dataclass(frozen=True, slots=True)
class ServiceForesight:
    service: str
    mode: str
    change: str
    """new, gone, or from which mode to which; empty: neither."""
    slots_moved: int
    """That have a node now and would have another, or none."""
    share_moved: float
    """Of all its slots, 0 to 1."""
    flows: int
    """Living ones (L4)."""
    flows_reset: int
    """Whose clients would be told by RST."""
    flows_moved: int
    """Without a connection: they would choose anew."""
    flows_left: int
    """That would stay with a node that is dead."""


@dataclass(frozen=True, slots=True)
class NodeForesight:
    node: str
    slots: int
    """Of all services, as it is."""
    slots_after: int


def foresee(
    before: Plan, after: Plan, table: NodeTable, wanted: NodeTable, flows: FlowCounts
) -> dict[str, Any]:
    """What the command `plan` gives. Both plans are made of the same maps."""
    now = {service.name: service for service in table.services}
    then = {service.name: service for service in wanted.services}
    services = [
        _foresee_service(name, now.get(name), then.get(name), before, after, flows)
        for name in sorted(now | then)
    ]
    return {
        "services": [asdict(each) for each in services],
        "nodes": [asdict(each) for each in _foresee_nodes(before, after)],
        "refused": list(after.refused),
        "slots_moved": sum(each.slots_moved for each in services),
        "flows_hit": sum(each.flows_reset + each.flows_moved for each in services),
        "changes_nothing": table == wanted,
    }


def _foresee_service(
    name: str,
    now: TableService | None,
    then: TableService | None,
    before: Plan,
    after: Plan,
    flows: FlowCounts,
) -> ServiceForesight:
    held, wanted = _slots(before, name), _slots(after, name)
    moved = int(((held != wanted) & (held != NO_SEAT)).sum()) if then is not None else 0
    number = before.after.ids.get(name)
    seats = [at for at, seat in before.after.seats.items() if seat.service_id == number]
    reset = moved_flows = left = 0
    for seat in seats:
        old, new = before.after.seats[seat], after.after.seats.get(seat)
        if new is None or not new.dead or old.dead:
            continue
        tcp, others = int(flows.tcp[seat]), int(flows.others[seat])
        moved_flows += others
        reset, left = (reset + tcp, left) if new.reset else (reset, left + tcp)
    service = then or now
    assert service is not None, "it is in one of both"
    return ServiceForesight(
        service=name,
        mode=service.mode,
        change=_change(now, then),
        slots_moved=moved,
        share_moved=moved / SLOTS,
        flows=int(flows.tcp[seats].sum() + flows.others[seats].sum()),
        flows_reset=reset,
        flows_moved=moved_flows,
        flows_left=left,
    )


def _change(now: TableService | None, then: TableService | None) -> str:
    if now is None:
        return "new"
    if then is None:
        return "gone: its flows go on, new ones are not taken" if now.mode is Mode.L4 else "gone"
    if now.mode is not then.mode:
        return f"from {now.mode} to {then.mode}"
    return "" if now == then else "changed"


def _slots(plan: Plan, name: str) -> NDArray[np.int64]:
    """The seat of each slot; nobody's where the service has no ring."""
    _, ids, _, rings = plan.described
    number = ids.get(name)
    if number is None or number not in rings.of_service:
        return np.zeros(SLOTS, np.int64)
    content = rings.contents[rings.of_service[number]].ravel()[:SLOTS].astype(np.int64)
    return np.where(content != NO_SEAT, content + number, NO_SEAT)


def _foresee_nodes(before: Plan, after: Plan) -> list[NodeForesight]:
    held, wanted = _by_node(before), _by_node(after)
    return [
        NodeForesight(node, held.get(node, 0), wanted.get(node, 0))
        for node in sorted(held | wanted)
    ]


def _by_node(plan: Plan) -> dict[str, int]:
    counts: dict[str, int] = {}
    for state in plan.states():
        counts[state.node] = counts.get(state.node, 0) + state.slots
    return counts
