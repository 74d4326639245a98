"""LBs that go by one table and see the same nodes dead send a flow to the same node, each of them.

What an LB's maps hold depends on what it has been through: which services and nodes were there
before, and came in which order, decides ids and seats; its flow table has a seed of its own. None
of that may decide who takes a new flow, or a client that comes through another LB meets another
node. So here are three LBs with three histories, each the real programs over maps of its own that
plans alone have filled, and ten thousand random flows for each service.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from socket import inet_aton

import numpy as np
import pytest

from bus.states import LocalView, NodeTable, Part, ServiceState, SnatSlice
from bus.words import Affinity, Encapsulation, Mode, Protocol
from services.dataplane.front_table import MOST_FRONTS
from services.dataplane.kernel import MAX_SERVICES, Kernel
from services.dataplane.maps import EMPTY, LocalFacts
from services.dataplane.plan import make_plan
from services.dataplane.words import address_word, mac_bytes
from tests.bpf.batch import Batch, Numbers, ones_sums, run_batch
from tests.bpf.harness import (
    LB_MAC,
    LOOPBACK,
    SMALL_TABLES,
    Rig,
    XdpVerdict,
    clear_map,
    tcp,
    udp,
)
from tests.dataplane.test_plan import DOWN, DRAINING, HOP, UP, node, service, view

FLOWS, AT_ONCE = 10_000, 500
"""So few at once that no bucket of the flow table is full of questions."""
VIP = "10.80.0.100"
PRIVATE = 77
FIRST_CLIENT = "198.18.0.0"
CLIENTS = 1 << 17
MEMBERS = ("lb-0", "lb-1", "lb-2")
SERVICES = (
    service("web", 80, address=VIP),
    service("dns", 53, address=VIP, protocol=Protocol.UDP, affinity=Affinity.CLIENT),
    service("wrapped", 81, address=VIP, mode=Mode.L3),
    service("gue", 82, address=VIP, mode=Mode.L3, encap=Encapsulation.GUE),
    service("bridged", 83, address=VIP, protocol=Protocol.UDP, mode=Mode.L2),
)
SICK = replace(node(4, UP, 2), apart=(ServiceState("web", DOWN, "not serving"),))
NODES = (
    *(node(number, UP, 1 + number % 3) for number in range(4)),
    SICK,
    node(5, DOWN),
    node(6, DRAINING, 3),
    *(node(number) for number in range(7, 12)),
)
TABLE = NodeTable(
    term=3,
    epoch=40,
    hash_seed=0x0123_4567_89AB_CDEF,
    services=SERVICES,
    nodes=NODES,
    bans=(),
    vip_owners=(),
    snat_slices=tuple(SnatSlice(each, None, 1_536, 31_232) for each in MEMBERS),
    parts=(Part(node(7).id, "web", 30, 30, 60_000),),
)
TAKING = {"web": {0, 1, 2, 3, 7, 8, 9, 10, 11}}
TAKE_ALL = TAKING["web"] | {4}


class Lb:
    """The programs, their maps, and what the last plan has left there."""

    def __init__(self, name: str, number: int) -> None:
        self.rig = Rig(dict(SMALL_TABLES))
        self.kernel = Kernel(self.rig.xdp_object.bpf)
        self.held = EMPTY
        self._now_ms = 0
        self._facts = LocalFacts(
            lb=name,
            public_address=f"10.80.0.{10 + number}",
            private_address=f"10.81.0.{10 + number}",
            own_addresses=frozenset({f"10.80.0.{10 + number}", f"10.81.0.{10 + number}"}),
            max_seats=self.kernel.max_seats,
            max_services=MAX_SERVICES,
            max_rings=self.kernel.max_rings,
            max_fronts=MOST_FRONTS,
            max_endpoints=self.kernel.max_endpoints,
        )
        plain = self.kernel.read_settings()
        self.kernel.write_settings(
            replace(
                plain,
                hash_seed=TABLE.hash_seed,
                flow_seed=number + 1,
                public_ifindex=LOOPBACK,
                private_ifindex=PRIVATE,
                public_mac=mac_bytes(LB_MAC),
                public_mtu=1_500,
                public_address=address_word(self._facts.public_address),
                private_address=address_word(self._facts.private_address),
                timeout=(1_000,) * len(plain.timeout),
            )
        )

    def go_by(self, table: NodeTable, seen: LocalView | None = None) -> None:
        self._now_ms += 1_000
        hops = {
            each.address: replace(HOP, ifindex=PRIVATE, destination_mac=mac_of(each.address))
            for each in table.nodes
        }
        plan = make_plan(self.held, table, seen, hops, self._facts, None, self._now_ms)
        self.held, left_out = self.kernel.carry_out(plan)
        assert (plan.refused, left_out) == ((), ())

    def restart(self) -> None:
        """The process dies; the next one finds the maps."""
        self.kernel = Kernel(self.rig.xdp_object.bpf)
        self.held = self.kernel.adopt()

    def choose(self, flows: Batch) -> list[int]:
        """The number of the node that each flow is sent to."""
        program, chosen = self.rig.function("xdp_public"), []
        for start in range(0, len(flows), AT_ONCE):
            clear_map(self.rig.table("flows").map_fd)
            some = flows.only(np.arange(start, min(start + AT_ONCE, len(flows))))
            verdicts, out = run_batch(program, some, xdp=True)
            assert (verdicts == XdpVerdict.REDIRECT).all(), self.rig.counted()
            chosen += out.rows[:, 5].tolist()
        return chosen

    @property
    def seats(self) -> dict[int, int]:
        """The numbers of the seats, by what they stand for."""
        return {each.identity: number for number, each in self.held.seats.items() if each.up}


def mac_of(address: str) -> str:
    """Each node has one of its own, which ends with its number."""
    return f"02:00:00:00:20:{int(address.rpartition('.')[2]) - 20:02x}"


# --------------------------------------------------------------------------- three histories


def straight(lb: Lb) -> None:
    """It starts when all is as it is."""


def crooked(lb: Lb) -> None:
    """Other services and nodes were there before; of those that stay, most came later."""
    other = [service(f"old-{number}", 1_000 + number, address=VIP) for number in range(3)]
    strangers = [node(number) for number in range(30, 36)]
    lb.go_by(replace(TABLE, epoch=5, services=tuple(other), nodes=tuple(strangers), parts=()))
    some = (*strangers[3:], *reversed(NODES[6:]))
    lb.go_by(replace(TABLE, epoch=12, services=(*other[1:], *SERVICES[3:]), nodes=some, parts=()))
    lb.go_by(replace(TABLE, epoch=20, services=(*other[2:], *reversed(SERVICES))), view(0, 9))


def restarted(lb: Lb) -> None:
    """Nodes went and came, in other states and with other weights; then its process died."""
    lb.go_by(replace(TABLE, epoch=30, nodes=tuple(reversed(NODES)), parts=()), view(3))
    weighty = tuple(replace(each, weight=5, state=UP, apart=()) for each in NODES[::2])
    lb.go_by(replace(TABLE, epoch=35, nodes=weighty, hash_seed=7))
    lb.restart()


HISTORIES: tuple[Callable[[Lb], None], ...] = (straight, crooked, restarted)


@pytest.fixture(scope="module")
def lbs() -> list[Lb]:
    made = [Lb(name, number) for number, name in enumerate(MEMBERS)]
    for lb, history in zip(made, HISTORIES, strict=True):
        history(lb)
    return made


# --------------------------------------------------------------------------- ten thousand flows


def flows_of(port: int, protocol: Protocol) -> Batch:
    """First packets of as many flows, from any client's any port."""
    random = np.random.default_rng(port)
    make = tcp if protocol is Protocol.TCP else udp
    one = np.frombuffer(make((FIRST_CLIENT, 1_024), (VIP, port)), np.uint8)
    clients = int.from_bytes(inet_aton(FIRST_CLIENT)) + random.integers(CLIENTS, size=FLOWS)
    rows = np.tile(one, (FLOWS, 1))
    rows[:, 26:30] = clients.astype(">u4").view(np.uint8).reshape(-1, 4)
    ports = random.integers(1_024, 1 << 16, size=FLOWS)
    rows[:, 34:36] = ports.astype(">u2").view(np.uint8).reshape(-1, 2)
    rows[:, 24:26] = 0
    sizes: Numbers = np.full(FLOWS, len(one), np.int64)
    sums = 0xFFFF - ones_sums(Batch(rows, sizes), np.full(FLOWS, 14), np.full(FLOWS, 34))
    rows[:, 24:26] = sums.astype(">u2").view(np.uint8).reshape(-1, 2)
    if protocol is Protocol.UDP:
        rows[:, 40:42] = 0  # no checksum
    return Batch(rows, sizes)


@pytest.mark.parametrize("dead", [(), (1, 8, 10)], ids=["all seen alive", "three seen dead"])
def test_a_flow_goes_to_the_same_node_through_each_lb(lbs: list[Lb], dead: tuple[int, ...]) -> None:
    for lb, start in zip(lbs, (0, 3, 7), strict=True):  # each is told of the nodes in its own order
        nodes = (*NODES[start:], *NODES[:start])
        lb.go_by(replace(TABLE, nodes=nodes), view(*dead))
    assert len({frozenset(lb.seats) for lb in lbs}) == 1
    assert len({frozenset(lb.seats.items()) for lb in lbs}) == len(lbs), "by other numbers"
    for each in SERVICES:
        flows = flows_of(each.port, each.protocol)
        first, *others = (lb.choose(flows) for lb in lbs)
        assert set(first) == TAKING.get(each.name, TAKE_ALL) - set(dead)
        for chosen in others:
            assert chosen == first, each.name
