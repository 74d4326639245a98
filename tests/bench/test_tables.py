"""A benchmark's tables and packets must be what the programs take them for, or it measures nothing.

Flows that were made by arithmetic on columns go through the real programs in both directions, and
what comes out is judged by the packet tests' own reading of the RFCs.
"""

from __future__ import annotations

import dataclasses

import pytest
from scapy.layers.inet import IP, TCP
from scapy.layers.l2 import Ether

from bpf.loader import compile_program
from bpf.syscall import run_program, xdp_context
from bus.messages import Mode
from e2e.bench.cost import CLIENTS, LOOPBACK, ROWS, Bench, Course, Row
from e2e.bench.generator import ACK, Generator, tcp_frame
from e2e.bench.tables import PORT_BITS, Clients, Seat, Service, Tables, established
from e2e.bench.veth import WIRE
from tests.bpf.harness import (
    IMAGES,
    LB_MAC,
    PEER_MAC,
    Rig,
    TcVerdict,
    XdpVerdict,
    problems,
    rig,
    tcp,
)

VIP = ("10.80.0.100", 8080)
SNAT = "10.81.0.100"
SEATS = [
    Seat(f"10.81.1.{number}", 9000, LOOPBACK, f"02:00:00:00:01:{number:02x}", LB_MAC)
    for number in range(7)
]
SERVICE = Service(*VIP, Mode.L4, snat_address=SNAT, snat_first_port=20_000)
FLOWS = 300


def fill(bpf: Rig) -> None:
    tables = Tables(bpf.xdp_object)
    tables.fill([(SERVICE, SEATS)], LOOPBACK, LOOPBACK, LB_MAC)
    flows = established(tables, SERVICE, SEATS, CLIENTS, FLOWS)
    tables.write("est", flows.keys, flows.values)


@pytest.mark.parametrize("number", [0, 1, 6, 7, 150, FLOWS - 1])
def test_a_flow_is_rewritten_both_ways_with_right_checksums(number: int) -> None:
    client = (CLIENTS.first_client, CLIENTS.first_port + number)
    seat, snat = SEATS[number % 7], (SNAT, 20_000 + number // 7)
    with rig() as bpf:
        fill(bpf)
        request = bpf.xdp_public(tcp(client, VIP, "A"))
        reply = bpf.tc_private(tcp((seat.address, seat.port), snat, "A", b"odd"))
        assert bpf.counted() == {"xdp_public.l4_established": 1, "tc_private.l4_reply": 1}
    assert request.verdict is XdpVerdict.REDIRECT
    assert reply.verdict is TcVerdict.REDIRECT
    assert problems(request.packet) == problems(reply.packet) == []
    assert endpoints(request.packet) == (snat, (seat.address, seat.port))
    assert endpoints(reply.packet) == (VIP, client)
    assert request.scapy.dst == seat.destination_mac


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


def test_half_of_mixed_packets_open_flows_that_never_were() -> None:
    made = [Ether(frame) for frame in generated(4, 64, mixed=True)]
    old, new = made[::2], made[1::2]
    assert all(packet[TCP].flags == "A" for packet in old)
    assert all(packet[TCP].flags == "S" for packet in new)
    assert len({(packet[IP].src, packet[TCP].sport) for packet in old}) <= 4
    fresh = {(packet[IP].src, packet[TCP].sport) for packet in new}
    assert len(fresh) == len(new)
    assert all(not source.startswith("11.0.0.") for source, _ in fresh)


def generated(flows: int, count: int, *, mixed: bool = False) -> list[bytes]:
    """What the generator on the wire makes, one after the other."""
    loaded = compile_program(str(WIRE), cache_dir=IMAGES)
    frame = tcp_frame(ACK, PEER_MAC, LB_MAC, *VIP)
    generator = Generator(loaded, frame, CLIENTS, flows, mixed=mixed)
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
    bench = Bench(row, repeats=5_000, images=IMAGES)
    trial = bench.trial()
    assert trial.floor_ns > 0
    assert trial.program_ns > 0


def test_a_row_whose_packets_go_elsewhere_is_refused() -> None:
    row = Row("wrong", "l4", 1, Course.PLAIN)
    with pytest.raises(RuntimeError, match="l4_established"):
        Bench(row, repeats=100, images=IMAGES).trial()
