"""Two CPUs at once in a few buckets: nothing torn, nothing lost, nothing doubled.

Two threads, each on a CPU of its own, send the same packets in different orders through all four
hooks: the SYNs, acknowledgements, ends and resets of more clients than there are places, and what
nodes answer to every port of the slice. So flows open, get established, close, expire, come back
and give up their places and ports, on both CPUs in the same instant; among them a few clients only
talk, whose flows stand in the same buckets.

What must hold of each packet, whatever the order was: it is dropped, answered, or goes to the one
node that the ring names for that client, from the address and the slice of its service, and a
node's to a client of that node and that service, checksums and all; and who only talks is served
by the same node and port every time. And after each round: no key stands twice among the living,
no two flows share a source towards one node, whatever is established has both its directions, each
leading to where the other comes from, and goes on. All keys have the same ports: what tells them
apart is their addresses.
"""

from __future__ import annotations

import os
import socket
import threading
from collections import Counter
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from services.dataplane.counters import reasons
from services.dataplane.flows.record import HALF_OPEN, FlowState
from tests.bpf.batch import Batch, Numbers, batch_of, ones_sums, run_batch
from tests.bpf.harness import SMALL_TABLES, Rig, TcVerdict, XdpVerdict, tcp
from tests.bpf.scene import (
    FIRST_PORT,
    NODE,
    NODE_MAC,
    PORT,
    REPLY_HOOKS,
    REQUEST_HOOKS,
    Connection,
    Scene,
    address,
    is_xdp,
    mac,
    node_of,
    now_ticks,
    to_client,
    to_node,
)

ROUNDS, STEPS, CHUNK = 8, 150, 48
VIPS = ("10.80.0.100", "10.80.0.101")
SNATS = ("10.81.0.10", "10.81.0.110")
PORTS, SEATS_EACH, CLIENTS_EACH = 6, 3, 20
TALKERS = 3
"""Of each service."""
SOON = {
    FlowState.TCP_OPENING: 6,
    FlowState.TCP_ANSWERED: 6,
    FlowState.TCP_CLOSING: 4,
    FlowState.TCP_TIME_WAIT: 1,
    FlowState.TCP_RESET: 1,
}
"""Ticks: so that all that happens in hours happens in a second."""
FROM_CLIENT = (("S", 100, 0), ("S", 100, 0), ("A", 101, 501), ("A", 101, 501), ("PA", 101, 501),
               ("FA", 101, 501), ("A", 102, 502), ("R", 101, 0))  # fmt: skip
FROM_NODE = (("SA", 500, 101), ("SA", 500, 101), ("PA", 501, 101), ("FA", 501, 102), ("R", 501, 0))
_NAMES = list(reasons())
Places = NDArray[np.int64]


def client(service: int, number: int) -> tuple[str, int]:
    return (f"192.0.{2 + service}.{number}", 4000)


def front(service: int) -> tuple[str, int]:
    return (VIPS[service], PORT)


def node(seat: int) -> tuple[str, int]:
    return (node_of(seat), NODE[1])


def seats(service: int) -> range:
    return range(1 + service * SEATS_EACH, 1 + (service + 1) * SEATS_EACH)


@pytest.fixture(scope="session")
def few_buckets() -> Scene:
    return Scene(Rig({**SMALL_TABLES, "FLOW_BUCKETS": 4}))


@pytest.fixture
def shared(few_buckets: Scene) -> Scene:
    """Two services, each with a VIP, an SNAT address and nodes of its own."""
    scene = few_buckets
    scene.forget()
    for service in range(2):
        scene.service(
            "l4",
            at=front(service),
            number=service,
            seats=[],
            snat_addresses=[SNATS[service]],
            snat_first_port=FIRST_PORT,
            snat_ports=PORTS,
        )
        for seat in seats(service):
            scene.seat(seat, at=node(seat))
        scene.ring(service, seats(service))
    return scene


def hurry(scene: Scene) -> None:
    table = scene.programs.table("settings")
    leaf = table[0]
    for state, ticks in SOON.items():
        leaf.timeout[state] = ticks
    table[0] = leaf


# --------------------------------------------------------------------------- packets


@dataclass(frozen=True)
class Pool:
    """Packets, and for each: whose service it is, and what is known of its other end."""

    batch: Batch
    service: Places
    seat: Places
    """The one that the ring names for the client; or the node that sent it."""
    wanted: list[bytes | None]
    """Of a talker's packet: exactly what comes out."""


@dataclass(frozen=True)
class Traffic:
    requests: Pool
    replies: Pool
    seat_of: dict[tuple[str, int], int]
    talkers: list[Connection]


def begin_to_talk(scene: Scene) -> list[Connection]:
    talkers = []
    for service, number in product(range(2), range(TALKERS)):
        who, there = client(service, 100 + number), front(service)
        opened = scene.expect("xdp_public", tcp(who, there, seq=100), "l4_new_flow")
        at = (opened.scapy[1].dst, opened.ports[1])
        connection = Connection(scene, client=who, service=there, node=at)
        connection.source = (SNATS[service], opened.ports[0])
        connection.syn_ack()
        connection.ack()
        talkers.append(connection)
    return talkers


def seats_by_client(scene: Scene) -> dict[tuple[str, int], int]:
    """What the ring says, asked of the programs one by one."""
    found = {}
    by_node = {node(seat): seat for service in range(2) for seat in seats(service)}
    for service, number in product(range(2), range(CLIENTS_EACH)):
        who = client(service, number)
        scene.age("flows", 1000)
        opened = scene.send("xdp_public", tcp(who, front(service), seq=100))
        found[who] = by_node[opened.scapy[1].dst, opened.ports[1]]
    scene.age("flows", 1000)
    return found


def traffic(scene: Scene) -> Traffic:
    seat_of = seats_by_client(scene)
    talkers = begin_to_talk(scene)
    told = [talker.request_out("PA", b"talk") for talker in talkers]
    asked: list[tuple[bytes, int, int, bytes | None]] = [
        (tcp(who, front(service), flags, seq=seq, ack=ack), service, seat, None)
        for who, seat in seat_of.items()
        for service in [seat > SEATS_EACH]
        for flags, seq, ack in FROM_CLIENT
    ]
    asked += [
        (talker.request("PA", b"talk"), SNATS.index(talker.source[0]), 0, out)
        for talker, out in zip(talkers, told, strict=True)
        for _ in range(8)
    ]
    held = {(talker.node, talker.source) for talker in talkers}
    answered: list[tuple[bytes, int, int, bytes | None]] = [
        (tcp(node(seat), (SNATS[service], port), flags, seq=seq, ack=ack), service, seat, None)
        for service in range(2)
        for seat, port in product(seats(service), range(FIRST_PORT, FIRST_PORT + PORTS))
        if (node(seat), (SNATS[service], port)) not in held
        for flags, seq, ack in FROM_NODE
    ]
    answered += [
        (
            talker.reply("PA", b"talk", ack=105),
            SNATS.index(talker.source[0]),
            0,
            to_client("", talker.reply_out("PA", b"talk", ack=105)),
        )
        for talker in talkers
        for _ in range(8)
    ]
    return Traffic(pool(asked), pool(answered), seat_of, talkers)


def pool(packets: list[tuple[bytes, int, int, bytes | None]]) -> Pool:
    frames, services, numbers, wanted = zip(*packets, strict=True)
    return Pool(
        batch_of(list(frames), 64),
        np.array(services, np.int64),
        np.array(numbers, np.int64),
        list(wanted),
    )


# --------------------------------------------------------------------------- two threads


@dataclass(frozen=True)
class Sent:
    """What one thread sent through one hook, and what came of it."""

    hook: str
    which: Places
    verdicts: Numbers
    out: Batch


def send_on(
    cpu: int, scene: Scene, plan: Traffic, seed: int, together: threading.Barrier, sent: list[Sent]
) -> None:
    """The body of a thread: bursts to and fro, each in an order of its own."""
    os.sched_setaffinity(0, {cpu})
    random = np.random.default_rng(seed)
    fds = {hook: scene.programs.function(hook) for hook in (*REQUEST_HOOKS, *REPLY_HOOKS)}
    bursts = []
    for step in range(STEPS):
        for hooks, packets in ((REQUEST_HOOKS, plan.requests), (REPLY_HOOKS, plan.replies)):
            which = random.integers(len(packets.batch), size=CHUNK)
            bursts.append((hooks[step % 2], which, packets.batch.only(which)))
    together.wait()
    for hook, which, batch in bursts:
        sent.append(Sent(hook, which, *run_batch(fds[hook], batch, xdp=is_xdp(hook))))


def send_on_both(scene: Scene, plan: Traffic, seed: int) -> list[Sent]:
    cpus = sorted(os.sched_getaffinity(0))
    assert len(cpus) > 1, "this needs two CPUs"
    together = threading.Barrier(2)
    results: list[list[Sent]] = [[], []]
    threads = [
        threading.Thread(
            target=send_on, args=(cpu, scene, plan, 2 * seed + side, together, results[side])
        )
        for side, cpu in enumerate(cpus[:2])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(result) for result in results] == [2 * STEPS, 2 * STEPS]
    return [*results[0], *results[1]]


# --------------------------------------------------------------------------- of packets


def forwarded(sent: Sent) -> NDArray[np.bool_]:
    redirected: NDArray[np.bool_] = sent.verdicts == (
        XdpVerdict.REDIRECT if is_xdp(sent.hook) else TcVerdict.REDIRECT
    )
    return redirected


def ends(batch: Batch) -> tuple[Numbers, Numbers, Numbers, Numbers]:
    """Addresses as the maps have them, ports as people do: source, port, destination, port."""
    rows = np.ascontiguousarray(batch.rows[:, 26:38])
    addresses = rows[:, :8].copy().view("<u4").astype(np.int64)
    ports = rows[:, 8:12].copy().view(">u2").astype(np.int64)
    return addresses[:, 0], ports[:, 0], addresses[:, 1], ports[:, 1]


def check_sums(batch: Batch) -> None:
    start = np.full(len(batch), 14)
    assert (ones_sums(batch, start, start + 20) == 0).all(), "a header's checksum"
    length = batch.sizes - 34
    sums = ones_sums(batch, start + 12, batch.sizes) + 6 + length
    assert (sums % 0xFFFF == 0).all(), "a segment's checksum"


def check_talkers(sent: Sent, packets: Pool) -> None:
    """Each of their packets arrives, and as it should, to the byte."""
    ok = forwarded(sent)
    for at, which in enumerate(sent.which.tolist()):
        wanted = packets.wanted[which]
        if wanted is None:
            continue
        assert ok[at], f"a talker's packet was dropped at {sent.hook}"
        if sent.hook in REQUEST_HOOKS:
            wanted = to_node(sent.hook, wanted)
        assert sent.out.frame(at) == wanted, sent.hook


def check_requests(sent: Sent, plan: Traffic) -> None:
    packets, ok = plan.requests, forwarded(sent)
    check_talkers(sent, packets)
    others = ok & np.array([packets.wanted[which] is None for which in sent.which.tolist()])
    out, which = sent.out.only(others), sent.which[others]
    check_sums(out)
    source, port, destination, to_port = ends(out)
    is_answer = np.isin(source, [address(vip) for vip in VIPS])
    asker, asker_port, asked, asked_port = ends(packets.batch.only(which))
    turned = (destination == asker) & (to_port == asker_port)
    turned &= (source == asked) & (port == asked_port)
    assert (turned | ~is_answer).all(), "a RST to somebody else"
    service, seat = packets.service[which], packets.seat[which]
    snat = np.array([address(text) for text in SNATS])[service]
    from_slice = (source == snat) & (port >= FIRST_PORT) & (port < FIRST_PORT + PORTS)
    assert (from_slice | is_answer).all(), "from a source of another service"
    hosts = np.array([0, *(address(node(seat)[0]) for seat in range(1, 2 * SEATS_EACH + 1))])
    right = (destination == hosts[seat]) & (to_port == NODE[1])
    assert (right | is_answer).all(), "to another node than the ring names"
    if is_xdp(sent.hook):
        target = np.frombuffer(mac(NODE_MAC), np.uint8)
        assert ((out.rows[:, :6] == target).all(axis=1) | is_answer).all()


def check_replies(sent: Sent, plan: Traffic) -> None:
    packets, ok = plan.replies, forwarded(sent)
    check_talkers(sent, packets)
    others = ok & np.array([packets.wanted[which] is None for which in sent.which.tolist()])
    out, which = sent.out.only(others), sent.which[others]
    check_sums(out)
    source, port, destination, to_port = ends(out)
    vips = np.array([address(vip) for vip in VIPS])
    assert (source == vips[packets.service[which]]).all(), "of another service"
    assert (port == PORT).all()
    seats_of = {(address(host), number): seat for (host, number), seat in plan.seat_of.items()}
    receivers = zip(destination.tolist(), to_port.tolist(), strict=True)
    found = np.array([seats_of.get(receiver, -1) for receiver in receivers])
    assert (found == packets.seat[which]).all(), "to a client of another node"


# --------------------------------------------------------------------------- of the table


def living(scene: Scene) -> list[Any]:
    now = now_ticks()
    return [
        flow
        for _, bucket in scene.programs.table("flows").items()
        for flow in bucket.flow
        if flow.state and 0 < (flow.deadline - now) % 2**32 < 2**31
    ]


def key_of(flow: Any) -> tuple[int, ...]:
    key = flow.key
    return key.direction, key.saddr, key.sport, key.daddr, key.dport


def other_key(flow: Any) -> tuple[int, ...]:
    """Under which the packets of the other direction come."""
    return 1 - flow.key.direction, flow.daddr, flow.dport, flow.saddr, flow.sport


def check_table(scene: Scene) -> list[Any]:
    """Returns the requests of established flows."""
    flows = living(scene)
    assert all(flow.key.version % 2 == 0 for flow in flows), "a version is odd at rest"
    doubled = [key for key, count in Counter(map(key_of, flows)).items() if count > 1]
    assert doubled == [], "two living entries of one key"
    by_key = {key_of(flow): flow for flow in flows}
    protected = [flow for flow in flows if flow.state not in HALF_OPEN]
    for flow in protected:
        other = by_key.get(other_key(flow))
        assert other is not None, "a flow has lost a direction"
        assert other_key(other) == key_of(flow), "its other direction is another's"
        assert other.state == flow.state
    requests = [flow for flow in protected if flow.key.direction == 0]
    sources = Counter((flow.saddr, flow.sport, flow.daddr, flow.dport) for flow in requests)
    assert set(sources.values()) <= {1}, "two flows have one source towards one node"
    return [flow for flow in requests if flow.state == FlowState.TCP_ESTABLISHED]


def check_they_go_on(scene: Scene, established: list[Any]) -> None:
    for flow in established:
        ends_of = [
            (socket.inet_ntoa(host.to_bytes(4, "little")), socket.ntohs(port))
            for host, port in (
                (flow.key.saddr, flow.key.sport),
                (flow.key.daddr, flow.key.dport),
                (flow.saddr, flow.sport),
                (flow.daddr, flow.dport),
            )
        ]
        who, there, source, at = ends_of
        wanted = to_node("xdp_public", tcp(source, at, "A", seq=101, ack=501, ttl=63))
        packet = tcp(who, there, "A", seq=101, ack=501)
        scene.expect("xdp_public", packet, "l4_established", wanted)
        wanted = to_client("", tcp(there, who, "A", seq=501, ack=101, ttl=63))
        scene.expect("tc_private", tcp(at, source, "A", seq=501, ack=101), "l4_reply", wanted)


def test_nothing_is_torn_lost_or_doubled(shared: Scene) -> None:
    plan = traffic(shared)
    hurry(shared)
    seen: Counter[str] = Counter()
    for number in range(ROUNDS):
        before = shared.counted()
        results = send_on_both(shared, plan, number)
        for name, count in zip(_NAMES, (shared.counted() - before).sum(axis=0), strict=False):
            seen[name] += int(count)
        for sent in results:
            (check_requests if sent.hook in REQUEST_HOOKS else check_replies)(sent, plan)
        shared.flood("xdp_public", [])
        check_they_go_on(shared, check_table(shared))
    assert sum(seen.values()) == ROUNDS * 2 * 2 * STEPS * CHUNK
    for name in ("l4_new_flow", "l4_promoted", "l4_reopened", "l4_closed", "drop_no_port"):
        assert seen[name] > 20, f"too little of {name} for a trial: {seen}"
