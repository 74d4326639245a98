"""What trace says of a packet is what the packet then does, and asking changes nothing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bpf.syscall import read_entries
from bpf.trace import Run, TracePrograms
from services.dataplane.counters import reasons
from services.dataplane.flows.record import FlowState
from services.dataplane.words import port_number
from tests.bpf.batch import batch_of
from tests.bpf.harness import IMAGES, LOOPBACK, SMALL_TABLES, tcp, udp
from tests.bpf.scene import (
    CLIENT,
    CLIENT_ADDRESS,
    NODE,
    REPLY_HOOKS,
    SERVICE,
    SNAT,
    VIP,
    Connection,
    Scene,
    least_bytes,
)
from tests.bpf.test_fuzz import WIDTH, replies, requests, set_up, spoil

PACKETS = 1_000
SEED = 20_261_126
HOOK_OF = {"xdp_reply": "xdp_private"}
NAMES = list(reasons())
CURSORS = 16
UDP_PORT = 5300

Trace = Callable[[str, bytes], Run]

# The first test may have to wait for a compiler.
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def programs(two_arms: Scene) -> Iterator[TracePrograms]:
    living = {
        name.decode(): table.map_fd for name, table in two_arms.programs.xdp_object.bpf.items()
    }
    with TracePrograms(living, SMALL_TABLES, IMAGES) as loaded:
        yield loaded


@pytest.fixture
def trace(scene: Scene, programs: TracePrograms) -> Trace:
    def ask(hook: str, packet: bytes) -> Run:
        is_reply = hook in REPLY_HOOKS
        programs.begin(packet, cursors=CURSORS, is_reply=is_reply)
        return programs.run(HOOK_OF.get(hook, hook), packet, LOOPBACK)

    return ask


def compare(scene: Scene, trace: Trace, hook: str, packet: bytes) -> str:
    """Ask, send, and see that both are the same; the reason."""
    told = trace(hook, packet)
    seats_before = scene.counted_at_seats()
    outcome = scene.send(hook, packet)
    assert (NAMES[told.reason], told.packet) == (outcome.reason, outcome.packet), packet.hex()
    raised = scene.counted_at_seats() - seats_before
    assert told.seat == next(iter(raised), 0), packet.hex()
    return outcome.reason


def test_random_packets_do_what_was_said(scene: Scene, trace: Trace) -> None:
    flows = set_up(scene)
    dice = np.random.default_rng(SEED)
    met: Counter[str] = Counter()
    for hooks, good in (
        (("xdp_public", "tc_public"), requests()),
        (("tc_private", "xdp_reply"), replies(flows)),
    ):
        packets = spoil(batch_of(good, WIDTH), PACKETS // 2, dice)
        for at in range(len(packets)):
            packet, hook = packets.frame(at), hooks[at % 2]
            if len(packet) >= least_bytes(hook, packet):
                met[compare(scene, trace, hook, packet)] += 1
    assert met.total() > PACKETS * 0.9
    assert len(met) >= 20, met


def test_packets_of_known_flows_in_every_state_do_what_was_said(
    scene: Scene, trace: Trace, programs: TracePrograms
) -> None:
    scene.service("l4")
    scene.service("l4", at=(VIP, UDP_PORT), protocol="udp", number=1, seats=[6])
    scene.snat_slice()
    scene.endpoint((node_address(6), NODE[1]))
    dice = random.Random(SEED)
    met: Counter[FlowState] = Counter()
    for _ in range(PACKETS):
        client = (CLIENT_ADDRESS, 40_000 + dice.randrange(12))
        hook, packet, record = a_packet(scene, dice, client)
        state = FlowState(int(record["state"])) if record is not None else FlowState.FREE
        met[state] += 1
        compare(scene, trace, hook, packet)
        key = key_of(packet, is_reply=hook in REPLY_HOOKS)
        told, there = after(programs, key), record_of(scene, key)
        assert (told is None) == (there is None)
        if there is not None:
            names = ("saddr", "daddr", "sport", "dport", "seat", "state", "flags", "end", "acked")
            assert [told[name] for name in names] == [there[name] for name in names]
        if dice.random() < 0.01:
            scene.age_flow(client[1], dice.choice([5, 100, 300]))
    assert set(FlowState) == set(met), met


def test_asking_changes_no_byte_of_any_map(scene: Scene, trace: Trace) -> None:
    flows = set_up(scene)
    scene.settings(new_flows_per_second=1_000, new_flows_per_second_per_source=100)
    scene.send("xdp_public", tcp((CLIENT_ADDRESS, 41_000), SERVICE))
    dice = np.random.default_rng(SEED)
    before = every_byte(scene)
    for hooks, good in (
        (("xdp_public", "tc_public"), requests()),
        (("tc_private", "xdp_reply"), replies(flows)),
    ):
        packets = spoil(batch_of(good, WIDTH), PACKETS // 4, dice)
        whole = [*good, *(packets.frame(at) for at in range(len(packets)))]
        for hook in hooks:
            for packet in whole:
                if len(packet) >= least_bytes(hook, packet):
                    trace(hook, packet)
    after = every_byte(scene)
    assert [name for name in before if before[name] != after[name]] == []
    # Had they been sent, they would have changed these.
    for packet in requests():
        scene.flood("xdp_public", [packet])
    sent = every_byte(scene)
    changed = {name for name in before if before[name] != sent[name]}
    assert changed >= {"flows", "drafts", "seat_counters", "verdicts", "port_cursors", "sources"}


def test_the_port_that_is_told_is_the_next_one(scene: Scene, trace: Trace) -> None:
    scene.service("l4")
    packets = [tcp((CLIENT_ADDRESS, 40_000 + number), SERVICE) for number in range(5)]
    for packet in packets:
        told = [trace("xdp_public", packet).packet for _ in range(3)]
        assert told == [scene.send("xdp_public", packet).packet] * 3


def test_a_limit_that_is_reached_is_told(scene: Scene, trace: Trace) -> None:
    scene.service("l4")
    scene.settings(new_flows_per_second_per_source=1)
    scene.send("xdp_public", tcp(CLIENT, SERVICE))
    scene.refresh("sources")
    told = trace("xdp_public", tcp((CLIENT_ADDRESS, 41_001), SERVICE))
    assert NAMES[told.reason] == "drop_source_rate"
    other = trace("xdp_public", tcp(("192.0.2.99", 41_001), SERVICE))
    assert NAMES[other.reason] == "l4_new_flow"


def test_one_interface_for_both_sides_is_traced_as_such(one_arm: Scene) -> None:
    defines = {**SMALL_TABLES, "GALE_ONE_ARM": 1}
    living = {
        name.decode(): table.map_fd for name, table in one_arm.programs.xdp_object.bpf.items()
    }
    one_arm.service("l4")
    one_arm.snat_slice()
    connection = Connection(one_arm)
    connection.syn()
    with TracePrograms(living, defines, IMAGES) as loaded:
        packet = connection.reply("SA", seq=500, ack=101)
        loaded.begin(packet, cursors=CURSORS, is_reply=True)
        told = loaded.run("tc_public", packet, LOOPBACK)
    assert NAMES[told.reason] == "l4_reply"
    assert told.packet == one_arm.send("tc_public", packet).packet


def test_maps_of_another_shape_are_refused(scene: Scene) -> None:
    living = {name.decode(): table.map_fd for name, table in scene.programs.xdp_object.bpf.items()}
    with pytest.raises(ValueError, match="seats"):
        TracePrograms(living | {"seats": living["seat_counters"]}, SMALL_TABLES, IMAGES)


# --------------------------------------------------------------------------- packets


FLAGS = ("S", "A", "A", "A", "PA", "FA", "FA", "R", "RA", "F")


def node_address(seat: int) -> str:
    return f"10.81.0.{15 + seat}"


def a_packet(scene: Scene, dice: random.Random, client: tuple[str, int]) -> tuple[str, bytes, Any]:
    """A packet that fits a flow of the client's, nearly always; and the record that it meets."""
    is_tcp = dice.random() < 0.8
    service = SERVICE if is_tcp else (VIP, UDP_PORT)
    first = tcp(client, service) if is_tcp else udp(client, service)
    request = record_of(scene, key_of(first, is_reply=False))
    is_reply = request is not None and dice.random() < 0.5
    if not is_reply:
        hook = dice.choice(("xdp_public", "tc_public"))
        if not is_tcp:
            return hook, udp(client, service, b"question"), request
        theirs = other_of(scene, request)
        flags = dice.choice(FLAGS)
        seq = number(dice, request, "end")
        ack = number(dice, theirs, "end")
        if flags.startswith("R") and theirs is not None:
            seq = int(theirs["acked"])
        return hook, tcp(client, service, flags, seq=seq, ack=ack), request
    hook = dice.choice(("tc_private", "xdp_reply"))
    source = (SNAT, port_number(request["sport"]))
    reply = other_of(scene, request)
    node = NODE if is_tcp else (node_address(6), NODE[1])
    if not is_tcp:
        return hook, udp(node, source, b"answer"), reply
    flags = "SA" if request["state"] == FlowState.TCP_OPENING else dice.choice((*FLAGS[1:], "SA"))
    seq = number(dice, reply, "end")
    if flags.startswith("R"):
        seq = int(request["acked"])
    return hook, tcp(node, source, flags, seq=seq, ack=number(dice, request, "end")), reply


def number(dice: random.Random, record: Any, field: str) -> int:
    off = dice.choice((0, 0, 0, 0, 0, 1, -1, 1_000_000))
    return (0 if record is None else int(record[field]) + off) % 2**32


def key_of(packet: bytes, *, is_reply: bool) -> bytes:
    """The first 14 bytes of its flow's key."""
    return packet[26:38] + bytes([packet[23], is_reply])


def record_of(scene: Scene, key: bytes) -> Any:
    """The entry of that key, living or not; None: there is none."""
    table = scene.programs.table("flows")
    raw = b"".join(values for _, values in read_entries(table.map_fd))
    records = np.frombuffer(raw, np.dtype(table.Leaf))["flow"].ravel()
    words = np.frombuffer(raw, np.uint64).reshape(len(records), -1)
    wanted = np.frombuffer(key + bytes(2), np.uint64)
    same = (words[:, 0] == wanted[0]) & ((words[:, 1] ^ wanted[1]) << np.uint64(16) == 0)
    found = np.flatnonzero(same & (records["state"] != 0))
    return records[found[0]] if len(found) else None


def after(programs: TracePrograms, key: bytes) -> Any:
    """The same, as the packet that was asked about would leave it."""
    for bucket in programs.buckets():
        for record in bucket.after:
            if record["key"].tobytes()[:14] == key and record["state"]:
                return record
    return None


def other_of(scene: Scene, record: Any) -> Any:
    if record is None:
        return None
    place, way = divmod(int(record["other"]), 16)
    table = scene.programs.table("flows")
    if place >= table.info.max_entries:
        return None
    return np.frombuffer(bytes(table[place]), np.dtype(table.Leaf))["flow"][0][way]


def every_byte(scene: Scene) -> dict[str, list[bytes]]:
    """All maps: of hashes the entries in order, of arrays the values."""
    return {
        name.decode(): sorted(map(bytes, (each for pair in table.items() for each in pair)))
        if name in HASHES
        else [values for _, values in read_entries(table.map_fd)]
        for name, table in scene.programs.xdp_object.bpf.items()
    }


HASHES = (b"addresses", b"endpoints", b"sources", b"fragments", b"vlan_clients")
