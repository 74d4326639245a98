"""Orders: what operators want of nodes, beside what the LBs see of them. Pure.

An order stands in the node table, so it is agreed, stored and repeated as all of the table is: no
beat of a node, no restart and no reload undoes it, only another order does. Each kind has a slot;
of one node there is one order in each slot, and a new one takes the place of the old one.

    ========  =======  ===============================  ======================================
    kind      slot     what it does                     it stands
    ========  =======  ===============================  ======================================
    drain     routing  UP, SUSPECT -> DRAINING;         until another takes its place
                       once its deadline is over: DOWN
    ban       routing  any state -> BANNED              until another, or a pardon
    enable    routing  nothing: drain and ban are over  for the record, `RECORD_MS`
    pardon    pardon   ends a ban; tells health to end  for the record, so that an LB that was
                       its own, and to forget failures  away hears of it: `RECORD_MS`
    weight    weight   replaces the agent's own         until another; without a number: as enable
    ========  =======  ===============================  ======================================

`RULES` and `EFFECTS` below are this table. What an order does is done last, when the LBs' views
have been merged: so a node that is down stays DOWN under a drain, and comes back DRAINING. At a
drain's deadline the node is DOWN and `silent`: its UDP flows choose another node, its TCP flows are
reset, unless the service has `on_node_down = "keep"`. It stays so until it is enabled.

An order outlives its node: one that is drained and then switched off for a week comes back drained.

**The desk** keeps the orders that wait to be agreed (`waiting`). The leader writes them into the
next table. Each is known by the id of its command, which the table keeps too, so that none is
carried out twice.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum

from bus.orders import Asked, Order, OrderKind
from bus.states import NodeTable, ServiceState, TableNode
from bus.words import NodeState
from services.quorum.waiting import Answer, Queue

RECORD_MS = 3_600_000
MOST_ORDERS = 4_096


class Slot(StrEnum):
    ROUTING = "routing"
    WEIGHT = "weight"
    PARDON = "pardon"


@dataclass(frozen=True, slots=True)
class Rule:
    slot: Slot
    ends: frozenset[OrderKind] = frozenset()
    """Orders in other slots that it ends."""


RULES: dict[OrderKind, Rule] = {
    OrderKind.DRAIN: Rule(Slot.ROUTING),
    OrderKind.BAN: Rule(Slot.ROUTING, ends=frozenset({OrderKind.PARDON})),
    OrderKind.ENABLE: Rule(Slot.ROUTING),
    OrderKind.PARDON: Rule(Slot.PARDON, ends=frozenset({OrderKind.BAN})),
    OrderKind.WEIGHT: Rule(Slot.WEIGHT),
}

_UP, _SUSPECT, _DRAINING = NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING
EFFECTS: dict[tuple[OrderKind, bool], dict[NodeState, NodeState]] = {
    (OrderKind.DRAIN, False): {_UP: _DRAINING, _SUSPECT: _DRAINING},
    (OrderKind.DRAIN, True): dict.fromkeys((_UP, _SUSPECT, _DRAINING), NodeState.DOWN),
    (OrderKind.BAN, False): dict.fromkeys(NodeState, NodeState.BANNED),
}
"""By kind, and whether its deadline is over: the state of a node or service -> what it becomes."""


# --------------------------------------------------------------------------- what they do


def carried_out(
    seen: tuple[TableNode, ...], orders: Iterable[Order], previous: NodeTable
) -> tuple[tuple[TableNode, ...], tuple[TableNode, ...]]:
    """The nodes as the orders say, and those of them that differ as they are without."""
    of_node: dict[str, list[Order]] = {}
    for order in orders:
        of_node.setdefault(order.asked.node, []).append(order)
    if not of_node:
        return seen, ()
    before = {node.id: node for node in previous.nodes if node.id in of_node}
    nodes: list[TableNode] = []
    beneath: list[TableNode] = []
    for node in seen:
        ordered = node
        for order in of_node.get(node.id, ()):
            ordered = _obeying(ordered, order)
        if ordered != node:
            beneath.append(node)
        known = before.get(node.id)
        nodes.append(known if known == ordered and known is not None else ordered)
    return tuple(nodes), tuple(beneath)


def _obeying(node: TableNode, order: Order) -> TableNode:
    asked = order.asked
    if asked.kind is OrderKind.WEIGHT:
        return node if asked.weight is None else replace(node, weight=asked.weight)
    is_over = order.remaining_ms == 0
    effect = EFFECTS.get((asked.kind, is_over), {})
    state = effect.get(node.state, node.state)
    if state is node.state:
        return node
    if state in (NodeState.DOWN, NodeState.BANNED):
        silent = node.silent or asked.kind is OrderKind.DRAIN
        return replace(node, state=state, silent=silent, apart=())
    apart = [ServiceState(a.service, effect.get(a.state, a.state), a.reason) for a in node.apart]
    return replace(node, state=state, apart=tuple(a for a in apart if a.state is not state))


def is_over(order: Order) -> bool:
    """Whether its deadline, or the time for which its record is kept, has passed."""
    return order.remaining_ms == 0


def new_orders(before: NodeTable, after: NodeTable) -> list[Order]:
    """Those that were given since, in the order of the table."""
    known = {order.id for order in before.orders}
    return [order for order in after.orders if order.id not in known]


def following(orders: tuple[Order, ...], given: Order) -> tuple[Order, ...]:
    """The orders that stand once this one has been given."""
    rule = RULES[given.asked.kind]
    kept = [
        order
        for order in orders
        if order.asked.node != given.asked.node
        or (RULES[order.asked.kind].slot is not rule.slot and order.asked.kind not in rule.ends)
    ]
    return tuple(sorted([*kept, given], key=lambda each: (each.asked.node, each.epoch, each.id)))


def _stands_for_ms(asked: Asked) -> int | None:
    return RECORD_MS if asked.is_record else asked.within_ms


# --------------------------------------------------------------------------- the desk


class Desk:
    """The orders that wait to be agreed on."""

    def __init__(self) -> None:
        self.waiting: Queue[Asked] = Queue()
        self.answers: list[Answer] = []
        """To commands that were given to this LB: for the shell."""
        self.over: frozenset[str] = frozenset()
        """The orders of the agreed table whose time is over, as the last table was made."""

    def next_orders(self, table: NodeTable, known: Iterable[str]) -> tuple[Order, ...]:
        """For the leader: the orders of the table after this one. `known`: the nodes there are."""
        orders = tuple(order for order in table.orders if not _is_spent(order))
        waiting = self.waiting.unwritten
        there = {order.id for order in orders}
        nodes = frozenset(known) if waiting else frozenset()
        for number, each in waiting:
            if number not in there and (refusal := _why_not(each.asked, orders, nodes)):
                self.waiting.answer(number, refusal)
                continue
            each.epoch = table.epoch + 1
            if number not in there:
                order = Order(number, each.asked, each.epoch, _stands_for_ms(each.asked))
                orders = following(orders, order)
        return orders

    def committed(self, table: NodeTable) -> None:
        """All LBs go by this table."""
        there = {order.id for order in table.orders}
        for number, each in self.waiting.items():
            if number in there or (each.epoch is not None and each.epoch <= table.epoch):
                self.waiting.answer(number, "")


def _is_spent(order: Order) -> bool:
    """Whether a record has been kept for long enough; a drain stands beyond its deadline."""
    return order.asked.kind is not OrderKind.DRAIN and is_over(order)


def _why_not(asked: Asked, orders: tuple[Order, ...], known: frozenset[str]) -> str:
    ordered = any(order.asked.node == asked.node for order in orders)
    if asked.node not in known and not ordered:
        return f"no node has the id {asked.node}"
    if len(orders) >= MOST_ORDERS and not ordered:
        return f"there are {MOST_ORDERS} orders already"
    return ""
