"""A thousand services on 256 addresses and a hundred nodes: how long the dataplane takes over them.

The maps are real, and the plan and its writes are the dataplane process's own, from the moment that
it holds a table to the moment that the last write is made:

* *start*: programs loaded (they are compiled already), maps made, everything planned and written;
* *reload*: fifty services go and fifty others come, of which ten are ranges of ports;
* *death*: a node is seen to be dead from here; until no ring names it any more;
* *nothing*: a plan that changes nothing, as after a beat that says something new.

Each service is served by ten nodes, or by fifty: 10,000 and 50,000 places of a node at a service.
A third scale is sixty services on ten thousand nodes, of which each serves three: 30,000 places,
and rings of five hundred nodes. Wall-clock milliseconds, since that is what a client waits for.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from bpf.loader import compile_programs
from bus.states import (
    LocalView,
    NodeService,
    NodeTable,
    NodeView,
    SnatSlice,
    TableNode,
    TableService,
)
from bus.words import Mode, NodeState, Protocol
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_most
from services.dataplane.front_table import MOST_FRONTS
from services.dataplane.kernel import MAX_SERVICES, Kernel
from services.dataplane.maps import EMPTY, ENTRIES, KernelState, LocalFacts
from services.dataplane.nexthop import NextHop
from services.dataplane.plan import Plan, make_plan
from services.dataplane.programs import rings_for

SERVICES, ADDRESSES, NODES = 1_000, 256, 100
_RANGES, _RANGE_PORTS = 10, 100
_HOP = NextHop(7, "02:00:00:00:00:01", "02:00:00:00:00:02", 1500, None, "10.81.0.10")
_OWN = frozenset({"10.79.0.10", "10.81.0.10"})
_DEAD = 3
_DEATH = at_most(100, " ms", 0)
_GOALS: dict[str, Goal] = {
    "start": at_most(1_000, " ms", 0),
    "reload": at_most(1_000, " ms", 0),
    "death": _DEATH,
}


@dataclass(frozen=True, slots=True)
class Scale:
    """How many nodes serve each service, of how many, and how many services there are."""

    nodes: int
    of: int = NODES
    services: int = SERVICES
    goals: Mapping[str, Goal] = field(default_factory=_GOALS.copy)

    @property
    def name(self) -> str:
        if self == Scale(self.nodes):
            return f"each on {self.nodes} nodes"
        return f"{self.services} services on {self.of:,} nodes, each on {self.nodes:,}"

    @property
    def pools(self) -> int:
        return self.of // self.nodes

    @property
    def changed(self) -> int:
        """How many services a reload replaces: one in twenty."""
        return self.services // 20

    def table(self, services: tuple[TableService, ...]) -> NodeTable:
        nodes = tuple(self._node(number, services) for number in range(self.of))
        slices = (SnatSlice("lb-0", None, 1_536, 31_232, 600, 424),)
        return NodeTable(1, 1, 1, services, nodes, (), (), slices)

    def _node(self, number: int, services: tuple[TableService, ...]) -> TableNode:
        names = tuple(
            NodeService(service.name, service.node_port)
            for index, service in enumerate(services)
            if index % self.pools == number % self.pools
        )
        name, address = f"node-{number}", f"10.90.{number // 200}.{number % 200 + 1}"
        return TableNode(f"{name}@{address}", name, address, NodeState.UP, 1, names)


SCALES = (Scale(10), Scale(50), Scale(500, 10_000, 60, {"death": _DEATH}))


def run(trials: int, progress: Callable[[str], None]) -> Result:
    """All courses in turn, so many times."""
    lines: list[Line] = []
    with TemporaryDirectory(prefix="gale-bench-") as images:
        _loaded(Path(images))
        for scale in SCALES:
            seen: dict[str, list[float]] = {}
            for trial in range(trials):
                progress(f"{scale.name}, trial {trial + 1} of {trials}")
                for course, ms in _trial(scale, Path(images)).items():
                    seen.setdefault(course, []).append(ms)
            lines += [_line(scale, course, values) for course, values in seen.items()]
    return Result(
        key="services",
        title=f"{SERVICES:,} services on {ADDRESSES} addresses, {NODES} nodes",
        columns=("wall clock",),
        lines=tuple(lines),
        bar_label="milliseconds",
        remark=(
            f"Median of {trials} trials (in brackets: the middle half of them). A reload replaces"
            f" one service in twenty, with {_RANGE_PORTS} ports each for {_RANGES} of the new ones"
            " at most."
        ),
    )


def _line(scale: Scale, course: str, values: list[float]) -> Line:
    sample = Sample(tuple(values))
    name = f"{course}, {scale.name}"
    return Line(name, (sample.text(0, " ms"),), sample, sample.median, scale.goals.get(course))


def _services(first: int, count: int, ranges: int = 0) -> tuple[TableService, ...]:
    return tuple(
        TableService(
            name=f"service-{number}",
            address=f"10.80.{number % ADDRESSES // 128}.{number % ADDRESSES % 128 + 1}",
            port=8_000 + number // ADDRESSES * _RANGE_PORTS,
            protocol=Protocol.TCP,
            mode=Mode.L4,
            node_port=8_000 + number // ADDRESSES * _RANGE_PORTS,
            ports=_RANGE_PORTS if number < first + ranges else 1,
            keeps_port=number < first + ranges,
        )
        for number in range(first, first + count)
    )


def _loaded(images: Path) -> Kernel:
    sizes = {"RING_MAP_ENTRIES": rings_for(SERVICES) * ENTRIES, "FLOW_BUCKETS": 16}
    xdp, tc = compile_programs(["xdp.c", "tc.c"], defines=sizes, cache_dir=images)
    xdp.function("gale_xdp_public", "xdp")
    tc.function("gale_tc_public", "tc")
    tc.function("gale_tc_private", "tc")
    return Kernel(xdp.bpf)


def _trial(scale: Scale, images: Path) -> dict[str, float]:
    seen: dict[str, float] = {}
    before = _services(0, scale.services)
    table = scale.table(before)
    began = time.monotonic()
    kernel = _loaded(images)
    plan = _bring(kernel, EMPTY, table, None)
    seen["start"] = (time.monotonic() - began) * 1_000
    new = _services(SERVICES, scale.changed, _RANGES)
    changed = scale.table((*before[scale.changed :], *new))
    courses: tuple[tuple[str, NodeTable, LocalView | None], ...] = (
        ("reload", changed, None),
        ("death", changed, _view(changed)),
        ("nothing", changed, _view(changed)),
    )
    for course, wanted, view in courses:
        began = time.monotonic()
        plan = _bring(kernel, plan.after, wanted, view)
        seen[course] = (time.monotonic() - began) * 1_000
        if plan.refused:
            raise RuntimeError(f"{course}: {plan.refused[0]}")
    _check(kernel, changed)
    return seen


def _bring(kernel: Kernel, held: KernelState, table: NodeTable, view: LocalView | None) -> Plan:
    hops = {node.address: _HOP for node in table.nodes}
    facts = LocalFacts(
        lb="lb-0",
        public_address="10.79.0.10",
        private_address="10.81.0.10",
        own_addresses=_OWN,
        max_seats=kernel.max_seats,
        max_services=MAX_SERVICES,
        max_rings=kernel.max_rings,
        max_fronts=MOST_FRONTS,
        max_endpoints=kernel.max_endpoints,
    )
    plan = make_plan(held, table, view, hops, facts, None, 0)
    after, left_out = kernel.carry_out(plan)
    if left_out:
        raise RuntimeError(left_out[0])
    return replace(plan, after=after)


def _check(kernel: Kernel, table: NodeTable) -> None:
    """The dead node is in no ring, and all that serve anything else are."""
    adopted = kernel.adopt()
    dead = table.nodes[_DEAD].address
    named: set[str] = set()
    for service in adopted.services.values():
        if not service.retired:
            offsets = np.unique(adopted.rings[service.ring]).astype(int)
            seats = (offsets[offsets > 0] + service.service_id).tolist()
            named |= {adopted.seats[seat].address for seat in seats}
    if dead in named or len(named) != len(table.nodes) - 1:
        raise RuntimeError(f"{len(named)} nodes are in the rings, the dead one among them or not")


def _view(table: NodeTable) -> LocalView:
    dead = table.nodes[_DEAD]
    seen = NodeView(
        id=dead.id,
        name=dead.name,
        address=dead.address,
        state=NodeState.DOWN,
        reason="",
        weight=1,
        services=(),
        fails=1,
        banned_for_ms=0,
        silent=True,
    )
    return LocalView(1, (seen,))
