"""A benchmark's tables and packets must be what the programs take them for, or it measures nothing.

Flows that a program has entered go through the real programs in both directions, and what comes out
is judged by the packet tests' own reading of the RFCs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import closing, contextmanager

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bpf.loader import LoadedObject, compile_program, compile_programs
from bpf.syscall import possible_cpus, run_program, xdp_context
from bus.words import Mode
from e2e.bench import flows
from e2e.bench.cost import CLIENTS, ROWS, Bench, Course, Row, Trial, bench, result
from e2e.bench.flows import FlowTable
from e2e.bench.generator import ACK, IN_TURN, SCATTERED, Generator, tcp_frame
from e2e.bench.report import Line
from e2e.bench.tables import PORT_BITS, Clients, Seat, Service, Tables
from e2e.bench.veth import WIRE
from e2e.bench.wrapper import LOOPBACK, Wrapper
from services.dataplane.counters import Counters
from tests.bpf.harness import (
    IMAGES,
    LB_MAC,
    PEER_MAC,
    TcVerdict,
    XdpVerdict,
    problems,
    run_tc,
    run_xdp,
    tcp,
)

VIP = ("10.80.0.100", 8080)
SNAT = "10.81.0.100"
FIRST_SNAT_PORT = 20_000
SEATS = [
    Seat(f"10.81.1.{number}", 9000, LOOPBACK, f"02:00:00:00:01:{number:02x}", LB_MAC)
    for number in range(7)
]
SERVICE = Service(*VIP, Mode.L4, snat_address=SNAT, snat_first_port=FIRST_SNAT_PORT)
FLOWS = 256
FLOODED = next(row for row in ROWS if row.course is Course.FULL_TABLE)


@dataclasses.dataclass(frozen=True)
class Scene:
    """The real programs over a table of established flows."""

    xdp: LoadedObject
    tc: LoadedObject
    own: LoadedObject
    table: FlowTable
    wrapper: Wrapper

    def counted(self) -> dict[str, int]:
        return Counters(self.xdp.bpf, possible_cpus()).verdicts()


@contextmanager
def scenery(entries: int) -> Iterator[Scene]:
    """Nothing entered yet, and room for so many entries, of which a flow takes two."""
    xdp, tc, own = compile_programs(
        ["xdp.c", "tc.c", str(flows.SOURCE)],
        defines=flows.sized(entries),
        cache_dir=IMAGES,
    )
    Tables(xdp).fill([(SERVICE, SEATS)], LOOPBACK, LOOPBACK, LB_MAC, LB_MAC)
    wrapper = Wrapper(IMAGES)
    table = FlowTable(own, wrapper, SERVICE, SEATS, CLIENTS, FLOWS, FIRST_SNAT_PORT)
    yield Scene(xdp, tc, own, table, wrapper)
    for loaded in (xdp, tc, own, wrapper.loaded):
        loaded.close()


@pytest.fixture
def scene() -> Iterator[Scene]:
    with scenery(16 * FLOWS) as scene:
        yield scene


@pytest.mark.parametrize("number", [0, 1, 6, 7, 150, FLOWS - 1])
def test_a_flow_is_rewritten_both_ways_with_right_checksums(scene: Scene, number: int) -> None:
    client = (CLIENTS.first_client, CLIENTS.first_port + number)
    seat, snat = SEATS[number % 7], (SNAT, FIRST_SNAT_PORT + number // 7)
    scene.table.fill()
    request = run_xdp(scene.xdp.function("gale_xdp_public", "xdp"), tcp(client, VIP, "A"))
    answer = tcp((seat.address, seat.port), snat, "A", b"odd")
    reply = run_tc(scene.tc.function("gale_tc_private", "tc"), answer)
    assert scene.counted() == {"xdp_public.l4_established": 1, "tc_private.l4_reply": 1}
    assert request.verdict is XdpVerdict.REDIRECT
    assert reply.verdict is TcVerdict.REDIRECT
    assert problems(request.packet) == problems(reply.packet) == []
    assert endpoints(request.packet) == (snat, (seat.address, seat.port))
    assert endpoints(reply.packet) == (VIP, client)
    assert request.scapy.dst == seat.destination_mac


def test_what_stands_is_counted(scene: Scene) -> None:
    assert scene.table.standing() == 0
    scene.table.fill()
    assert scene.table.standing() == FLOWS


def test_flows_that_were_never_entered_do_not_stand(scene: Scene) -> None:
    scene.table.fill()
    more = FlowTable(scene.own, scene.wrapper, SERVICE, SEATS, CLIENTS, 4 * FLOWS, FIRST_SNAT_PORT)
    assert more.standing() == FLOWS


def test_a_table_that_cannot_hold_them_all_is_refused() -> None:
    with scenery(FLOWS) as small, pytest.raises(RuntimeError, match="could be entered"):
        small.table.fill()


def endpoints(frame: bytes) -> tuple[tuple[str, int], tuple[str, int]]:
    packet = Ether(frame)
    return (packet[IP].src, packet[TCP].sport), (packet[IP].dst, packet[TCP].dport)


def test_clients_go_on_at_the_next_address() -> None:
    addresses, ports = Clients("11.0.0.255", 10_000).columns((1 << PORT_BITS) + 2)
    assert bytes(addresses[[0, -1]]) == bytes([11, 0, 0, 255, 11, 0, 1, 0])
    assert bytes(ports[[0, -3, -2, -1]]) == b"".join(
        port.to_bytes(2) for port in (10_000, 10_000 + (1 << PORT_BITS) - 1, 10_000, 10_001)
    )


def test_the_generator_makes_every_flow_once_as_python_counts_them() -> None:
    flows = 64
    made = generated(flows, flows)
    addresses, ports = CLIENTS.columns(flows)
    counted = {
        (".".join(map(str, bytes(address))), int.from_bytes(bytes(port)))
        for address, port in zip(addresses[:, None], ports[:, None], strict=True)
    }
    assert {endpoints(frame)[0] for frame in made} == counted
    assert all(endpoints(frame)[1] == VIP for frame in made)
    # TCP's checksum is nobody's business here, but a kernel on the way would drop a bad IP header.
    assert all(problems(frame) == ["tcp: checksum"] for frame in made)


def test_flows_that_come_in_turn_are_counted_up() -> None:
    ports = [endpoints(frame)[0][1] for frame in generated(4, 6, stride=IN_TURN)]
    assert [port - CLIENTS.first_port for port in ports] == [0, 1, 2, 3, 0, 1]


def test_half_of_mixed_packets_open_flows_that_never_were() -> None:
    made = [Ether(frame) for frame in generated(4, 64, mixed=True)]
    old, new = made[::2], made[1::2]
    assert all(packet[TCP].flags == "A" for packet in old)
    assert all(packet[TCP].flags == "S" for packet in new)
    assert len({(packet[IP].src, packet[TCP].sport) for packet in old}) <= 4
    fresh = {(packet[IP].src, packet[TCP].sport) for packet in new}
    assert len(fresh) == len(new)
    assert all(not source.startswith("11.0.0.") for source, _ in fresh)


def generated(
    flows: int, count: int, *, stride: int = SCATTERED, mixed: bool = False
) -> list[bytes]:
    """What the generator on the wire makes, one after the other."""
    loaded = compile_program(str(WIRE), cache_dir=IMAGES)
    frame = tcp_frame(ACK, PEER_MAC, LB_MAC, *VIP)
    generator = Generator(loaded, frame, CLIENTS, flows, stride=stride, mixed=mixed)
    program = loaded.function("bench_generate", "xdp")
    made = []
    for _ in range(count):
        generator.advance(1)
        made.append(run_program(program, frame, xdp_context(frame, LOOPBACK)).packet)
    loaded.close()
    return made


def few(row: Row) -> Row:
    return row if row.syn else dataclasses.replace(row, flows=min(row.flows, 1 << 10))


@pytest.mark.parametrize("row", [few(row) for row in ROWS], ids=lambda row: row.name)
def test_every_row_measures_what_it_says(row: Row) -> None:
    # A trial raises if a single packet goes another way than its row is about.
    with closing(bench(row, repeats=5_000, images=IMAGES)) as made:
        trial = made.trial()
    assert trial.floor_ns > 0
    assert trial.program_ns > 0
    assert trial.evicted == 0


def test_a_row_whose_packets_go_elsewhere_is_refused() -> None:
    row = Row("wrong", "l2", 1, Course.ESTABLISHED)
    with (
        closing(Bench(row, repeats=100, images=IMAGES)) as made,
        pytest.raises(RuntimeError, match="l2_forwarded"),
    ):
        made.trial()


def test_a_flood_that_costs_an_established_flow_has_missed_its_goal() -> None:
    seen = {row.name: (Trial(10.0, 20.0),) for row in ROWS}
    assert {line.name for line in result(seen, 1).lines if reached(line)} >= {FLOODED.name}
    seen[FLOODED.name] = (Trial(10.0, 20.0, evicted=1),)
    told = result(seen, 1)
    assert not reached(next(line for line in told.lines if line.name == FLOODED.name))
    assert "1 were evicted" in told.remark


def test_a_reply_is_judged_by_its_request_and_all_else_by_the_yardstick() -> None:
    # Net: a look-up 100 ns, a request 10, its reply 30.
    seen = {row.name: (Trial(10.0, 20.0),) for row in ROWS}
    yardstick = next(row for row in ROWS if row.course is Course.YARDSTICK)
    reply = next(row for row in ROWS if row.course is Course.REPLY)
    seen |= {yardstick.name: (Trial(10.0, 110.0),), reply.name: (Trial(10.0, 40.0),)}
    judged = {line.name: line.judged for line in result(seen, 1).lines}
    assert judged[reply.name] == pytest.approx(3.0)
    assert judged[reply.request] == pytest.approx(0.1)


def reached(line: Line) -> bool:
    return line.goal is not None and line.goal.is_met(line.judged)
