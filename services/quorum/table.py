"""The node table: how what the LBs see becomes what all of them route by. Pure.

Each LB reports its `LocalView`; `merge` folds the reports, the configuration and the table as it
stands into the next one. The same input gives the same output on every LB and in every order of
arrival, so a new leader goes on exactly where the old one stopped.

**Nodes.** Every LB that has an opinion of a node is an elector for it:

    ======================================  =========================================
    of a node's electors, a majority says   the table says
    ======================================  =========================================
    UP                                      UP
    UP or SUSPECT                           SUSPECT
    UP, SUSPECT or DRAINING                 DRAINING
    BANNED                                  BANNED, and there is a `Ban`
    anything else                           DOWN, if it has ever been in the table
    nothing: none of them knows it          it is no longer listed
    ======================================  =========================================

**Doubt changes nothing.** A node that was UP or SUSPECT and is UP for one of its electors stays UP
in a draw: of two LBs the one that was cut off from the nodes, or has just come back, does not speak
for both, and masks for itself what it cannot reach. An elector for whom it is on probation, since
that LB has only just begun to hear it, goes along with the others.

A node that is not listed and has only been on probation stays unlisted. DOWN and BANNED nodes stay
listed, routed to by nobody, so that a health process that restarts adopts who they are. Such a node
is `silent` if most of the LBs that call it DOWN or BANNED hear nothing of it: then its flows are
better reset than kept (`on_node_down`).

**A service that begins** has no nodes before enough of them are there: see `opening`.

**Services.** Where an LB sees one service of a node otherwise than the node as a whole, all LBs
that list the service are asked about it, by the same majority. What comes of it stands in `apart`,
of nodes that are routed to. A node with no service left that is routed to is as its best one is.

**Silence is not an opinion** until the report is `settled`. A health process that has just started
knows no node for some milliseconds; taking that for "all gone" would empty every ring. Until its
report settles, an LB is an elector only for the nodes it names, and a node without electors stays
as it is. No reports at all change no node: the LB goes on forwarding with what it knew.

**Slow start**: what part of its weight a node has that has just come, see `parts`.

**Orders** of operators come last: see `orders`. How the nodes stand without them is kept beside
them, so that the next table can be made of that.

**SNAT slices.** Nobody shares an LB's own private address: there it takes 1536-32767 whole, clear
of the ports below 1024 (and some air) and of the kernel's default `ip_local_port_range`. The SNAT
addresses of VIPs and of single services are shared by all, so there each LB takes one of eight
slots of 7,808 ports, starting at 1536; slots 0-3 end where the default `ip_local_port_range`
starts, and are given first. An LB keeps its slot from epoch to epoch, on every shared address the
same. When it leaves, its slices stay in the table until the leader names it in `released`, which it
does after `SLOT_REUSE_MS` or the longest idle time of a flow: no flow that still holds a port of
the slot may meet a new owner of that port.

Below 1024 a slice has its share of 600-1023, whole on the LB's own address, in slots of 53 ports on
shared ones: clients that come from a reserved port (rresvport goes down from 1023) keep to one.

**Epoch.** It rises by one when the content changes and never otherwise. The time left of a ban, or
of a slow start, is no content: it passes by itself.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from bus.orders import Order
from bus.states import (
    Ban,
    LocalView,
    Member,
    NodeService,
    NodeTable,
    NodeView,
    ServiceState,
    SnatSlice,
    TableNode,
    TableService,
    VipOwner,
    states_apart,
    without_orders,
)
from bus.words import Mode, NodeState
from services.quorum.orders import carried_out, new_orders
from services.quorum.ownership import Standing, assign
from services.quorum.parts import next_parts

SLOTS = 8
SLOT_PORTS = 7_808
FIRST_PORT = 1_536
SLOT_STARTS = range(FIRST_PORT, FIRST_PORT + SLOTS * SLOT_PORTS, SLOT_PORTS)
OWN_ADDRESS_PORTS = 4 * SLOT_PORTS
LOW_FIRST_PORT = 600
LOW_SLOT_PORTS = 53
OWN_ADDRESS_LOW_PORTS = 1_024 - LOW_FIRST_PORT

SLOT_REUSE_MS = 6 * 3_600_000
"""How long a departed LB's slot rests at least: longer, if a flow may be idle for longer."""

ROUTED = frozenset({NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING})
"""States in which a node is given flows: the others are listed, but no ring names them."""

STANDING = frozenset({NodeState.UP, NodeState.SUSPECT})
"""States that an LB which does not know a node yet goes along with."""

DEAD = frozenset({NodeState.DOWN, NodeState.BANNED})


@dataclass(frozen=True, slots=True)
class FloatingVip:
    """A VIP of the configuration with the SNAT addresses that move with it."""

    address: str
    snat_addresses: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TableConfig:
    """What the configuration has to say about the table."""

    services: tuple[TableService, ...]
    vips: tuple[FloatingVip, ...]


@dataclass(frozen=True, slots=True)
class Report:
    """One LB's newest view, `age_ms` after it was made."""

    view: LocalView
    settled: bool
    """Whether a node that the view does not name is unknown there, rather than not yet adopted."""
    age_ms: int


def bootstrap(term: int, hash_seed: int) -> NodeTable:
    """The table before the first: epoch 0, never committed, only merged upon."""
    return NodeTable(term, 0, hash_seed, (), (), (), (), ())


def merge(
    previous: NodeTable,
    reports: Mapping[str, Report],
    config: TableConfig,
    members: Iterable[str],
    *,
    term: int,
    owners: Mapping[str, str | None] | None = None,
    released: frozenset[str] = frozenset(),
    renew: bool = False,
    orders: tuple[Order, ...] | None = None,
    voters: tuple[Member, ...] | None = None,
    listed: str | None = None,
    step: bool = False,
    held_back: Callable[[tuple[TableNode, ...]], frozenset[str]] = lambda _: frozenset(),
) -> NodeTable:
    """The table after `previous`; `previous` with its bans brought up to date if all is the same.

    `members` are the LBs that have slots, `owners` who is to hold each VIP (None: the members, in
    turn); `released` those whose slots may be reused. `renew`: another term makes another table.
    `orders`: what operators want from now on; `voters`: who agrees; `listed`: the digest of the
    list of LBs that all files agree on. None: as before. `step`: it is time for the nodes in slow
    start to be given more. `held_back`: of the nodes as the LBs see them, which are not to be
    listed yet, by their ids.
    """
    present = sorted(set(members))
    if owners is None:
        alive = {lb: Standing(eligible=True, fitness=0) for lb in present}
        held = {vip.address: vip.owner for vip in previous.vip_owners if vip.owner in present}
        owners = assign(held, (vip.address for vip in config.vips), alive, lambda _: True)
    orders = previous.orders if orders is None else orders
    seen, bans = _merge_nodes(without_orders(previous), previous.bans, reports)
    if back := held_back(seen):
        seen = tuple(node for node in seen if node.id not in back)
        bans = tuple(ban for ban in bans if ban.node not in back)
    nodes, beneath = carried_out(seen, orders, previous)
    merged = replace(
        previous,
        services=tuple(sorted(config.services, key=lambda service: service.name)),
        nodes=nodes,
        bans=bans,
        orders=orders,
        beneath=beneath,
        parts=next_parts(previous, nodes, config.services, step=step),
        vip_owners=_vip_owners(config.vips, owners),
        snat_slices=_assign_slices(previous.snat_slices, _shared(config), present, released),
        members=previous.members if voters is None else voters,
        listed=previous.listed if listed is None else listed,
    )
    same_term = previous.term == term or not renew
    if same_content(previous, merged) and previous.epoch > 0 and same_term:
        return merged
    return replace(merged, term=term, epoch=previous.epoch + 1)


def same_content(one: NodeTable, other: NodeTable) -> bool:
    """Whether both say the same: all but term, epoch and the time left of bans, orders, starts."""
    return _content(one) == _content(other)


def _content(table: NodeTable) -> NodeTable:
    bans = tuple(replace(ban, remaining_ms=0) for ban in table.bans)
    orders = tuple(_without_time(order) for order in table.orders)
    parts = tuple(replace(p, level=0, remaining_ms=0) for p in table.parts if p.percent < 100)
    return replace(table, term=0, epoch=0, bans=bans, orders=orders, parts=parts)


def _without_time(order: Order) -> Order:
    return order if order.remaining_ms is None else replace(order, remaining_ms=0)


def aged(table: NodeTable, elapsed_ms: int) -> NodeTable:
    """The same table `elapsed_ms` later: its bans, orders, slow starts have less time left."""
    timed = any(order.remaining_ms is not None for order in table.orders)
    if elapsed_ms <= 0 or not (table.bans or table.parts or timed):
        return table
    bans = tuple(
        replace(ban, remaining_ms=max(0, ban.remaining_ms - elapsed_ms)) for ban in table.bans
    )
    orders = tuple(
        order
        if order.remaining_ms is None
        else replace(order, remaining_ms=max(0, order.remaining_ms - elapsed_ms))
        for order in table.orders
    )
    parts = tuple(
        replace(part, remaining_ms=max(0, part.remaining_ms - elapsed_ms)) for part in table.parts
    )
    return replace(table, bans=bans, orders=orders, parts=parts)


# --------------------------------------------------------------------------- nodes


def _merge_nodes(
    previous: tuple[TableNode, ...], bans_before: tuple[Ban, ...], reports: Mapping[str, Report]
) -> tuple[tuple[TableNode, ...], tuple[Ban, ...]]:
    observed: dict[str, list[tuple[NodeView, int]]] = {}
    for lb in sorted(reports):
        for observation in reports[lb].view.nodes:
            observed.setdefault(observation.id, []).append((observation, reports[lb].age_ms))
    settled = sum(report.settled for report in reports.values())
    named_by_settled = Counter(
        observation.id
        for report in reports.values()
        if report.settled
        for observation in report.view.nodes
    )
    known = {node.id: node for node in previous}
    banned = {ban.node: ban for ban in bans_before}
    nodes: list[TableNode] = []
    bans: list[Ban] = []
    for node_id in sorted(known.keys() | observed.keys()):
        opinions = observed.get(node_id, [])
        before = known.get(node_id)
        silent = settled - named_by_settled[node_id]
        if not opinions:
            if before is not None and not silent:
                nodes.append(before)
                bans.extend(ban for ban in (banned.get(node_id),) if ban is not None)
            continue
        electors = len(opinions) + silent
        was = before.state if before is not None else None
        state = _elect([seen.state for seen, _ in opinions], electors, was)
        if before is None and state is NodeState.DOWN:
            continue
        node = _describe(state, opinions, before, silent)
        nodes.append(node)
        banning = [each for each in opinions if each[0].state is NodeState.BANNED]
        if node.state is NodeState.BANNED and banning:  # else each of its services is, by itself
            bans.append(_ban(node_id, banning))
    return tuple(nodes), tuple(bans)


def _elect(votes: list[NodeState], electors: int, before: NodeState | None) -> NodeState:
    majority = electors // 2 + 1
    up = votes.count(NodeState.UP)
    if up >= majority:
        return NodeState.UP
    standing = up + votes.count(NodeState.SUSPECT)
    if standing >= majority:
        return NodeState.SUSPECT
    if up and before in STANDING and 2 * (up + votes.count(NodeState.PROBATION)) >= electors:
        return NodeState.UP
    if standing + votes.count(NodeState.DRAINING) >= majority:
        return NodeState.DRAINING
    if votes.count(NodeState.BANNED) >= majority:
        return NodeState.BANNED
    return NodeState.DOWN


def _describe(
    state: NodeState,
    opinions: list[tuple[NodeView, int]],
    before: TableNode | None,
    unheard: int,
) -> TableNode:
    """Name, address, weight and services as the first LB says that routes to the node.

    While nobody does, they stay as they were: a node half way through its return changes nothing.
    Prepared it is for what it tells all of the LBs that route to it.
    """
    routing = [seen for seen, _ in opinions if seen.state in ROUTED]
    silent = state in DEAD and _is_silent(opinions)
    if not routing and before is not None:
        node = replace(before, state=state, silent=silent, apart=())
    else:
        said = routing[0] if routing else opinions[0][0]
        services = _prepared_for_all(said.services, routing)
        node = TableNode(
            id=said.id,
            name=said.name,
            address=said.address,
            state=state,
            weight=said.weight,
            services=services,
            silent=silent,
            backup=said.backup,
        )
        if any(seen.apart for seen in routing):
            node = _with_services_apart(node, [seen for seen, _ in opinions], unheard, before)
    # The same object where nothing changed: then comparing ten thousand nodes costs nothing.
    return before if node == before else node


def _with_services_apart(
    node: TableNode, seen: list[NodeView], unheard: int, before: TableNode | None
) -> TableNode:
    """The node with what is agreed on its services one by one; `unheard` electors do not know it.

    An LB that does not list a service has no say in it: its file may be an older one.
    """
    if node.state not in ROUTED:
        return node
    listed = [({each.name for each in one.services}, states_apart(one), one.state) for one in seen]
    apart: dict[str, NodeState] = {}
    for name in sorted({name for _, states, _ in listed for name in states}):
        votes = [states.get(name, state) for names, states, state in listed if name in names]
        was = states_apart(before).get(name, before.state) if before is not None else None
        elected = _elect(votes, len(votes) + unheard, was)
        if elected is not node.state and any(name == own.name for own in node.services):
            apart[name] = elected
    if apart and len(apart) == len(node.services) and not ROUTED & set(apart.values()):
        best = NodeState.DOWN if NodeState.DOWN in apart.values() else NodeState.BANNED
        return replace(node, state=best)
    return replace(node, apart=tuple(ServiceState(*each) for each in apart.items()))


def _prepared_for_all(
    services: tuple[NodeService, ...], routing: list[NodeView]
) -> tuple[NodeService, ...]:
    """The modes that all LBs have heard of, if any has heard of modes."""
    if all(seen.services == services for seen in routing):
        return services
    heard: dict[str, list[frozenset[Mode]]] = {}
    for seen in routing:
        for service in seen.services:
            if service.modes:
                heard.setdefault(service.name, []).append(frozenset(service.modes))
    return tuple(
        replace(each, modes=_common(heard[each.name])) if each.name in heard else each
        for each in services
    )


def _common(modes: list[frozenset[Mode]]) -> tuple[Mode, ...]:
    """L4 asks nothing of a node, so it is always one: no modes would mean that nothing is known."""
    return tuple(sorted({Mode.L4, *frozenset.intersection(*modes)}))


def _is_silent(opinions: list[tuple[NodeView, int]]) -> bool:
    """Whether most of those that call it dead hear nothing of it; one on probation is heard."""
    silences = [seen.silent for seen, _ in opinions if seen.state in DEAD]
    return 2 * sum(silences) > len(silences)


def _ban(node_id: str, banning: list[tuple[NodeView, int]]) -> Ban:
    """The longest of the electors' bans."""
    remaining_ms = max(max(0, seen.banned_for_ms - age_ms) for seen, age_ms in banning)
    return Ban(node_id, remaining_ms, max(seen.fails for seen, _ in banning))


# --------------------------------------------------------------------------- VIPs and SNAT slices


def _vip_owners(
    vips: tuple[FloatingVip, ...], owners: Mapping[str, str | None]
) -> tuple[VipOwner, ...]:
    return tuple(
        VipOwner(
            address=vip.address,
            snat_address=next(iter(vip.snat_addresses), None),
            owner=owners[vip.address],
            snat_addresses=vip.snat_addresses,
        )
        for vip in sorted(vips, key=lambda vip: vip.address)
    )


def _shared(config: TableConfig) -> list[str]:
    """The SNAT addresses that all LBs take ports of, by one order."""
    of_vips = {address for vip in config.vips for address in vip.snat_addresses}
    of_services = {address for service in config.services for address in service.snat_addresses}
    return sorted(of_vips | of_services)


def _assign_slices(
    previous: tuple[SnatSlice, ...],
    shared: list[str],
    members: list[str],
    released: frozenset[str],
) -> tuple[SnatSlice, ...]:
    slots = _slots(previous, members if shared else [], released)
    slices = [
        SnatSlice(
            owner=lb,
            address=None,
            first_port=FIRST_PORT,
            ports=OWN_ADDRESS_PORTS,
            low_first_port=LOW_FIRST_PORT,
            low_ports=OWN_ADDRESS_LOW_PORTS,
        )
        for lb in members
    ]
    slices += [
        _slot_slice(lb, address, slot) for address in shared for lb, slot in sorted(slots.items())
    ]
    return tuple(slices)


def _slot_slice(lb: str, address: str, slot: int) -> SnatSlice:
    return SnatSlice(
        owner=lb,
        address=address,
        first_port=FIRST_PORT + slot * SLOT_PORTS,
        ports=SLOT_PORTS,
        low_first_port=LOW_FIRST_PORT + slot * LOW_SLOT_PORTS,
        low_ports=LOW_SLOT_PORTS,
    )


def _slots(
    previous: tuple[SnatSlice, ...], members: list[str], released: frozenset[str]
) -> dict[str, int]:
    """Each LB's slot: the one it has, else the lowest that nobody holds; a ninth LB gets none.

    A slice that is none of these slots, as in a table of another layout, says nothing.
    """
    slots = {
        held.owner: (held.first_port - FIRST_PORT) // SLOT_PORTS
        for held in previous
        if held.address is not None and (held.owner in members or held.owner not in released)
        if held.first_port in SLOT_STARTS
    }
    for lb in members:
        free = sorted(set(range(SLOTS)) - set(slots.values()))
        if lb not in slots and free:
            slots[lb] = free[0]
    return slots


# --------------------------------------------------------------------------- what changed


def changes(before: NodeTable | None, after: NodeTable) -> tuple[str, ...]:
    """One line per difference, for the log and the `table.committed.` event."""
    old = before or bootstrap(after.term, after.hash_seed)
    lines = [*_node_changes(old, after)]
    lines += _set_changes(
        "service", {s.name: s for s in old.services}, {s.name: s for s in after.services}
    )
    lines += _set_changes(
        "vip", {v.address: v for v in old.vip_owners}, {v.address: v for v in after.vip_owners}
    )
    lines += _set_changes(
        "member", {m.address: m for m in old.members}, {m.address: m for m in after.members}
    )
    if old.listed != after.listed:
        lines.append("all files list the same load balancers")
    if old.snat_slices != after.snat_slices:
        lines.append(f"snat slices {len(old.snat_slices)} -> {len(after.snat_slices)}")
    return tuple(lines)


def _node_changes(old: NodeTable, new: NodeTable) -> Iterable[str]:
    was = {node.id: node for node in old.nodes}
    now = {node.id: node for node in new.nodes}
    for node_id in sorted(was.keys() | now.keys()):
        before, after = was.get(node_id), now.get(node_id)
        label = (after or before or was[node_id]).name
        from_state = before.state.value if before else "new"
        to_state = after.state.value if after else "forgotten"
        if from_state != to_state:
            yield f"{label} {from_state} -> {to_state}"
        elif before and after and before.weight != after.weight:
            yield f"{label} weight {before.weight} -> {after.weight}"
        elif before and after and before.apart != after.apart:
            yield from _service_changes(before, after)
        elif before and after and before.silent != after.silent:
            yield f"{label} {'fell silent' if after.silent else 'is heard again'}"
        elif before != after:
            yield f"{label} described anew"
    yield from _part_changes(old, new)
    yield from _order_changes(old, new)


def _part_changes(old: NodeTable, new: NodeTable) -> Iterable[str]:
    was = {(part.node, part.service): part.percent for part in old.parts}
    now = {(part.node, part.service): part.percent for part in new.parts}
    names = {node.id: node.name for node in new.nodes}
    for key in sorted(was.keys() | now.keys()):
        before, after = was.get(key, 100), now.get(key, 100)
        if before != after and key[0] in names:
            yield f"{key[1]} at {names[key[0]]}: {after} % of its weight"


def _order_changes(old: NodeTable, new: NodeTable) -> Iterable[str]:
    names = {node.id: node.name for node in new.nodes}
    for order in new_orders(old, new):
        asked = order.asked
        yield f"order: {asked.kind} {names.get(asked.node, asked.node)}, by {asked.by}"


def _service_changes(before: TableNode, after: TableNode) -> Iterable[str]:
    was, now = states_apart(before), states_apart(after)
    for name in sorted(was.keys() | now.keys()):
        from_state, to_state = was.get(name, before.state), now.get(name, after.state)
        if from_state != to_state:
            yield f"{name} at {after.name} {from_state.value} -> {to_state.value}"


def _set_changes(kind: str, was: Mapping[str, object], now: Mapping[str, object]) -> list[str]:
    lines = [f"{kind} {name} gone" for name in sorted(was.keys() - now.keys())]
    lines += [f"{kind} {name} new" for name in sorted(now.keys() - was.keys())]
    lines += [
        f"{kind} {name} changed"
        for name in sorted(was.keys() & now.keys())
        if was[name] != now[name]
    ]
    return lines
