"""A scene for packets: services, seats, rings and settings, written into the maps in few words.

    scene.service("l4")                        # one TCP service at VIP:PORT with one node
    outcome = scene.send("xdp_public", tcp(CLIENT, SERVICE))
    assert outcome.reason == "l4_new_flow"

`send` is also the judge that every packet of every test meets:

- exactly one reason is counted, and at that hook;
- the verdict is the one that this kind of reason stands for;
- a packet that is passed is byte for byte the one that came;
- a packet that was right when it came (`harness.problems`) is right when it goes.

What a forwarded packet should look like is never calculated from what came in: tests build it anew
with scapy, checksums and all, and compare every byte. XDP writes the MAC addresses itself; TC
leaves them to the kernel's neighbour table, which BPF_PROG_TEST_RUN does not reach.
"""

from __future__ import annotations

import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scapy.layers.inet import IP, UDP
from scapy.layers.l2 import Ether

from bpf.syscall import possible_cpus, read_entries, write_entries
from services.dataplane.counters import Counters, hooks, reasons
from services.dataplane.flows.record import HALF_OPEN, FlowState
from services.dataplane.front_table import service_places
from tests.bpf.harness import (
    LB_MAC,
    LOOPBACK,
    PEER_MAC,
    Result,
    Rig,
    TcVerdict,
    XdpVerdict,
    clear_map,
    problems,
    tcp,
    udp,
)

PUBLIC = LOOPBACK
PRIVATE = 77
"""Redirects are not carried out, so it need not exist."""
CLIENT_ADDRESS, VIP, SNAT, ROUTER = "192.0.2.33", "10.80.0.100", "10.81.0.10", "10.80.0.254"
CLIENT = (CLIENT_ADDRESS, 40000)
PORT = 8080
SERVICE = (VIP, PORT)
NODE = ("10.81.0.20", 80)
NODE_MAC, PRIVATE_MAC = "02:00:00:00:20:01", "02:00:00:00:0b:02"
PUBLIC_MAC = LB_MAC
OWN_PUBLIC, OWN_PRIVATE = "10.80.0.2", "10.81.0.2"
SEAT = 5
FIRST_PORT, PORTS = 20000, 1000
MTU = 1500
SEED = 0x0123_4567_89AB_CDEF

RESOLVED, UP = 1, 2
SEAT_DEAD, SEAT_RESET, SEAT_BY_TC, SEAT_OWN = 4, 8, 16, 32
AFFINITY_CLIENT, NO_SNAT, GUE, NO_RESET, HAS_FLOWS, RETIRED, KEEPS_PORT = 1, 2, 4, 8, 16, 32, 64
OF_THIS_NODE = 128
OF_SERVICE, FLOATING, OF_SNAT = 1, 2, 4
PUBLIC_SIDE, PRIVATE_SIDE = 1, 2
RING_ENTRIES, LANES = 16385, 4
PROTOCOLS = {"tcp": 6, "udp": 17}
SECOND_NS = 1_000_000_000
TICK_NS = 1 << 26
TIMEOUTS_S = {
    FlowState.TCP_OPENING: 240,
    FlowState.TCP_ANSWERED: 240,
    FlowState.TCP_ESTABLISHED: 7440,
    FlowState.TCP_CLOSING: 240,
    FlowState.TCP_TIME_WAIT: 60,
    FlowState.TCP_RESET: 10,
    FlowState.UDP_ASKED: 30,
    FlowState.UDP_ANSWERED: 30,
    FlowState.UDP_ESTABLISHED: 120,
    FlowState.UDP_FRESH: 120,
}
"""The defaults of the configuration."""
FLOW_SEED = 0xFEDC_BA98_7654_3210
ANSWERS_PER_SECOND = 1_000_000
CLOCK_MONOTONIC_COARSE = 6

REQUEST_HOOKS = ("xdp_public", "tc_public")
REPLY_HOOKS = ("tc_private", "xdp_reply")
_COUNTED_AS = {"xdp_reply": "xdp_private", "tc_own": "tc_private"}

_HOOKS, _NAMES = hooks(), list(reasons())
_FORWARDS, _DROPS = _NAMES.index("forward_first"), _NAMES.index("drop_first")
_VERDICTS = {
    "pass": (XdpVerdict.PASS, TcVerdict.UNSPEC),
    "forward": (XdpVerdict.REDIRECT, TcVerdict.REDIRECT),
    "drop": (XdpVerdict.DROP, TcVerdict.SHOT),
}


def kind_of(reason: str) -> str:
    """pass, forward or drop: what the place of the reason in reasons.h means."""
    place = _NAMES.index(reason)
    return "pass" if place < _FORWARDS else "forward" if place < _DROPS else "drop"


def address(text: str) -> int:
    """As it stands in the maps: network order."""
    return int.from_bytes(socket.inet_aton(text), "little")


def floating(table: Any, text: str) -> Any:
    """The key of a floating address: IPv6, or IPv4 as IPv6 writes it."""
    wide = text if ":" in text else f"::ffff:{text}"
    return table.Key.from_buffer_copy(socket.inet_pton(socket.AF_INET6, wide))


def mac(text: str) -> bytes:
    return bytes.fromhex(text.replace(":", ""))


def is_xdp(hook: str) -> bool:
    return hook.startswith("xdp")


def least_bytes(hook: str, frame: bytes) -> int:
    """The shortest cut of a frame that BPF_PROG_TEST_RUN takes. For TC the kernel insists on whole
    IP headers; behind a VLAN tag it does not look.
    """
    if is_xdp(hook):
        return 14
    return {b"\x08\x00": 34, b"\x86\xdd": 54}.get(frame[12:14], 15)


@dataclass(frozen=True, slots=True)
class Outcome:
    reason: str
    packet: bytes

    @property
    def scapy(self) -> Any:
        return Ether(self.packet)

    @property
    def ports(self) -> tuple[int, int]:
        layer = self.scapy.getlayer(2)
        return layer.sport, layer.dport


class Scene:
    """The maps of one rig, emptied, with settings that are ready to forward."""

    def __init__(self, programs: Rig) -> None:
        self.programs = programs
        self._counters = Counters(programs.xdp_object.bpf, possible_cpus())
        self._runs = {
            "xdp_public": programs.xdp_public,
            "tc_public": programs.tc_public,
            "tc_private": programs.tc_private,
            "xdp_reply": programs.xdp_reply,
            "tc_own": programs.tc_own,
        }
        self._rings: dict[int, tuple[int, ...]] = {}
        self._seats: set[int] = set()
        self.forget()

    def forget(self) -> None:
        """Empty what was filled, but for the rings: a service brings its own."""
        for name in (
            "services",
            "flows",
            "vlan_clients",
            "fragments",
            "sources",
            "flow_rate",
            "answer_rate",
            "addresses",
            "endpoints",
            "port_cursors",
            "claims",
            "rivals",
        ):
            clear_map(self.programs.table(name).map_fd)
        for name in ("seats", "seat_counters"):
            table = self.programs.table(name)
            for number in self._seats:
                table[number] = table.Leaf()
        self._seats.clear()
        self.settings()
        self._seen = self.counted()

    # ------------------------------------------------------------------- filling the maps

    def settings(self, **fields: Any) -> None:
        table = self.programs.table("settings")
        values = {
            "hash_seed": SEED,
            "public_ifindex": PUBLIC,
            "private_ifindex": PRIVATE,
            "flow_seed": FLOW_SEED,
            "public_mtu": MTU,
            "answers_per_second": ANSWERS_PER_SECOND,
            "public_address": address(OWN_PUBLIC),
            "private_address": address(OWN_PRIVATE),
            **fields,
        }
        leaf = table.Leaf(**values)
        for state, seconds in TIMEOUTS_S.items():
            leaf.timeout[state] = ticks(seconds)
        leaf.public_mac[:] = leaf.private_mac[:] = mac(LB_MAC)
        table[0] = leaf

    def service(
        self,
        mode: str,
        *,
        flags: int = 0,
        at: tuple[str, int] = SERVICE,
        protocol: str = "tcp",
        number: int = 0,
        seats: Sequence[int] = (SEAT,),
        snat_addresses: Sequence[str] = (SNAT,),
        **fields: Any,
    ) -> None:
        """A service whose ring has `seats` in turn; those that do not exist yet are made."""
        table = self.programs.table("services")
        values = {
            "id": number,
            "ring": number,
            "mode": int(mode[1]),
            "flags": flags | (HAS_FLOWS if mode == "l4" else 0),
            "snat_first_port": FIRST_PORT,
            "snat_ports": PORTS,
            "snat_count": len(snat_addresses),
            **fields,
        }
        key = {
            "address": address(at[0]),
            "port": socket.htons(at[1]),
            "protocol": PROTOCOLS[protocol],
        }
        leaf = table.Leaf(**key, **values)
        for place, snat in enumerate(snat_addresses):
            leaf.snat_address[place] = address(snat)
        table[self._place(**key)] = leaf
        for seat in seats:
            if seat and seat not in self._seats:
                self.seat(seat, service=number)
        self.ring(number, seats)

    def _place(self, **key: int) -> int:
        """Where a service stands, or the first of its places that is free."""
        table = self.programs.table("services")
        for place in service_places(**key):
            leaf = table[place]
            if leaf.port == 0 or all(getattr(leaf, name) == value for name, value in key.items()):
                return place
        raise AssertionError("a scene of a handful of services always has a free place")

    def ring(self, number: int, seats: Iterable[int]) -> None:
        wanted = tuple(seat and seat - number for seat in seats)
        if self._rings.get(number) == wanted:
            return
        self._rings[number] = wanted
        slots = np.resize(np.array(wanted, np.uint16), RING_ENTRIES * LANES)
        keys = np.arange(RING_ENTRIES, dtype=np.uint32) + number * RING_ENTRIES
        write_entries(self.programs.table("ring").map_fd, keys.tobytes(), slots.tobytes())

    def seat(self, number: int = SEAT, at: tuple[str, int] | None = None, **fields: Any) -> None:
        """A node's place; by default NODE at SEAT, and other numbers each another address."""
        host, port = at or (node_of(number), NODE[1])
        values = {
            "address": address(host),
            "next_hop": address(host),
            "port": socket.htons(port),
            "ifindex": PRIVATE,
            "mtu": MTU,
            "flags": RESOLVED | UP,
            "outer_source": address(SNAT),
            "cursor": number,
            **fields,
        }
        self._seats.add(number)
        table = self.programs.table("seats")
        leaf = table.Leaf(**values)
        leaf.destination_mac[:] = mac(NODE_MAC)
        leaf.source_mac[:] = mac(PRIVATE_MAC)
        table[number] = leaf

    def address(self, text: str, flags: int, **fields: int) -> None:
        """What is known of an address that packets come to."""
        table = self.programs.table("addresses")
        table[address(text)] = table.Leaf(flags=flags, **fields)

    def claim(
        self, text: str, until_ns: int, sides: int = PUBLIC_SIDE, moved_ticks: int = 0
    ) -> None:
        """A floating address, until when this LB answers for it, and when that last changed."""
        table = self.programs.table("claims")
        table[floating(table, text)] = table.Leaf(
            until=until_ns, sides=sides, moved=moved_ticks & 0xFFFFFFFF
        )

    def rival(self, text: str) -> Any:
        """Who else was heard to claim it; None: nobody."""
        table = self.programs.table("rivals")
        return table.get(floating(table, text))

    def snat_slice(self, first: int = FIRST_PORT, ports: int = PORTS) -> None:
        """This LB's slice of SNAT, and NODE as an endpoint whose answers come there."""
        self.address(SNAT, OF_SNAT, snat_first_port=first, snat_ports=ports)
        self.endpoint(NODE)

    def endpoint(self, node: tuple[str, int]) -> None:
        """A node's address and port: what comes from there to an SNAT port is an answer."""
        table = self.programs.table("endpoints")
        for protocol in PROTOCOLS.values():
            table[table.Key(address(node[0]), socket.htons(node[1]), protocol)] = SEAT

    # ------------------------------------------------------------------- packets

    def send(self, hook: str, packet: bytes) -> Outcome:
        """Run one packet through one hook, and judge what must hold of every packet."""
        result: Result = self._runs[hook](packet)
        seen = self.counted()
        counted, self._seen = seen - self._seen, seen
        places = np.argwhere(counted).tolist()
        assert counted.sum() == 1, f"one reason is counted: {places}"
        number, place = places[0]
        assert _HOOKS[number] == _COUNTED_AS.get(hook, hook)
        reason = _NAMES[place]
        judge(hook, packet, result, reason)
        return Outcome(reason, result.packet)

    def counted(self) -> NDArray[np.int64]:
        """Packets by hook (rows) and reason (columns), of all CPUs."""
        cpus = possible_cpus()
        batches = read_entries(self.programs.table("verdicts").map_fd)
        counts = [np.frombuffer(raw, np.int64).reshape(-1, cpus) for _, raw in batches]
        summed: NDArray[np.int64] = np.concatenate(counts).sum(axis=1)
        return summed.reshape(len(_HOOKS), -1)

    def flood(self, hook: str, packets: Iterable[bytes]) -> None:
        """Many packets, unjudged."""
        for packet in packets:
            self._runs[hook](packet)
        self._seen = self.counted()

    def expect(self, hook: str, packet: bytes, reason: str, out: bytes | None = None) -> Outcome:
        """`send`, for this reason, and with exactly this packet coming out."""
        outcome = self.send(hook, packet)
        assert outcome.reason == reason, f"{outcome.reason}, not {reason}: {outcome.scapy!r}"
        if out is not None:
            assert outcome.packet == out, different(outcome.packet, out)
        return outcome

    # ------------------------------------------------------------------- what stands in the maps

    def flows(self, kind: str = "") -> list[tuple[Any, Any]]:
        """Living entries, key and all: every one, or those that are `half` open, or `est`."""
        found = []
        now = now_ticks()
        for _, bucket in self.programs.table("flows").items():
            for flow in bucket.flow:
                is_living = flow.state and 0 < (flow.deadline - now) % 2**32 < 2**31
                is_half = flow.state in HALF_OPEN
                if is_living and kind in ("", "half" if is_half else "est"):
                    found.append((flow.key, flow))
        return found

    def states(self, kind: str = "") -> dict[int, FlowState]:
        """Direction → state, of one flow."""
        return {key.direction: FlowState(flow.state) for key, flow in self.flows(kind)}

    def change(self, direction: int, **fields: Any) -> None:
        """Alter the living entries of that direction."""

        def alter(flow: Any) -> None:
            for name, value in fields.items():
                setattr(flow, name, value)

        self._edit(lambda flow: flow.key.direction == direction, alter)

    def lose(self, direction: int) -> None:
        """As if the places of that direction's entries had been given to others."""
        self.change(direction, state=0, deadline=0)

    def give_away(self, direction: int) -> None:
        """The places of that direction's entries now belong to flows of others, which live."""
        self._edit(lambda flow: flow.key.direction == direction, _give_away)

    def entry(self, direction: int) -> Any:
        """The living entry of that direction, where there is one flow."""
        (found,) = [flow for key, flow in self.flows() if key.direction == direction]
        return found

    def _edit(self, chosen: Callable[[Any], bool], edit: Callable[[Any], object]) -> None:
        table = self.programs.table("flows")
        for index, bucket in list(table.items()):
            some = [flow for flow in bucket.flow if flow.state and chosen(flow)]
            for flow in some:
                edit(flow)
            if some:
                table[index] = bucket

    def age(self, table: str, seconds: float) -> None:
        """Let that much time go by for every entry of a table."""
        if table == "flows":
            self._edit(lambda flow: True, lambda flow: _age(flow, ticks(seconds)))
            return
        entries = self.programs.table(table)
        for key, leaf in list(entries.items()):
            if table == "fragments":
                leaf.since = (leaf.since - ticks(seconds)) % 2**32
            else:
                leaf.since = max(0, leaf.since - int(seconds * SECOND_NS))
            entries[key] = leaf

    def refresh(self, table: str) -> None:
        """The second that a rate counts in has just begun, with what was counted in it."""
        entries = self.programs.table(table)
        for key, leaf in list(entries.items()):
            leaf.since = time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE)
            entries[key] = leaf

    def age_flow(self, client_port: int, seconds: float) -> None:
        """Let that much time go by for one client's flow alone."""
        port = socket.htons(client_port)
        self._edit(
            lambda flow: (flow.dport if flow.key.direction else flow.key.sport) == port,
            lambda flow: _age(flow, ticks(seconds)),
        )

    def counted_at_seats(self) -> Counter[int]:
        """How many packets each seat has had, in either direction."""
        columns = self._counters.seats(max(self._seats, default=0) + 1)
        sums = columns["packets_in"] + columns["packets_out"]
        return Counter({int(at): int(sums[at]) for at in np.flatnonzero(sums)})

    def counted_at_seat(self, number: int = SEAT) -> dict[str, int]:
        return {
            name: int(column[number])
            for name, column in self._counters.seats().items()
            if column[number]
        }


def ticks(seconds: float) -> int:
    return -(-int(seconds * SECOND_NS) // TICK_NS)


def now_ticks() -> int:
    return (time.clock_gettime_ns(CLOCK_MONOTONIC_COARSE) // TICK_NS) % 2**32


def _age(flow: Any, by: int) -> None:
    flow.deadline = (flow.deadline - by) % 2**32
    if flow.key.direction == 0:
        flow.begin = (flow.begin - by) % 2**32


def _give_away(flow: Any) -> None:
    for name in ("saddr", "daddr"):
        setattr(flow.key, name, getattr(flow.key, name) ^ 0x00F0_0000)
        setattr(flow, name, getattr(flow, name) ^ 0x00F0_0000)
    flow.key.version = (flow.key.version + 2) % 2**16


def judge(hook: str, packet: bytes, result: Result, reason: str) -> None:
    """What must hold of any packet at any hook."""
    kind = kind_of(reason)
    assert result.verdict is _VERDICTS[kind][0 if is_xdp(hook) else 1], f"{reason}: {result}"
    if kind == "pass":
        assert result.packet == packet, f"{reason}: " + different(result.packet, packet)
    if kind == "forward" and not problems(packet):
        assert problems(result.packet) == [], f"{reason}: {result.scapy!r}"


def different(seen: bytes, wanted: bytes) -> str:
    pair = {"seen": seen, "wanted": wanted}
    return "".join(f"\n{name} {Ether(frame)!r}\n  {frame.hex()}" for name, frame in pair.items())


def node_of(seat: int) -> str:
    return f"10.81.0.{15 + seat}"


# --------------------------------------------------------------------------- frames expected


def with_macs(frame: bytes, destination: str, source: str) -> bytes:
    return mac(destination) + mac(source) + frame[12:]


def to_node(hook: str, frame: bytes) -> bytes:
    """The frame as it leaves that hook for a node."""
    return with_macs(frame, NODE_MAC, PRIVATE_MAC) if is_xdp(hook) else frame


def to_client(hook: str, frame: bytes) -> bytes:
    """The frame as it leaves either hook for the client, whose packets came from PEER_MAC."""
    return with_macs(frame, PEER_MAC, PUBLIC_MAC)


def routed(frame: bytes) -> bytes:
    """The frame after a router's hop: one less to live, in a header summed up anew by scapy."""
    end = 14 + (frame[14] & 0x0F) * 4
    header = IP(frame[14:end])
    header.ttl -= 1
    header.chksum = None
    return frame[:14] + bytes(header) + frame[end:]


def wrapped(
    frame: bytes, *, gue_port: int | None = None, source: str = SNAT, node: str = NODE[0]
) -> bytes:
    """The frame with an outer header around its IP packet, built by scapy; no VLAN tags."""
    inner = frame[14:]
    size = int.from_bytes(inner[2:4])
    outer = IP(src=source, dst=node, ttl=64, id=0, flags="DF", tos=inner[1])
    if gue_port is None:
        outer.proto, outer.len = 4, 20 + size
        return frame[:14] + bytes(outer) + inner
    outer.proto, outer.len = 17, 32 + size
    datagram = UDP(sport=gue_port, dport=6080, chksum=0, len=12 + size)
    return frame[:14] + bytes(outer) + bytes(datagram) + b"\x00\x04\x00\x00" + inner


def segment(protocol: str, *arguments: Any, **fields: Any) -> bytes:
    """`tcp` or `udp` by name, for tables over both."""
    if protocol == "udp":
        fields = {k: v for k, v in fields.items() if k not in ("seq", "ack", "options")}
        payload = [a for a in arguments[2:] if isinstance(a, bytes)]
        return udp(arguments[0], arguments[1], *payload, **fields)
    return tcp(*arguments, **fields)


# --------------------------------------------------------------------------- a connection


class Connection:
    """A client's connection through an L4 service: what each side sends, and what should arrive."""

    def __init__(
        self,
        scene: Scene,
        *,
        client: tuple[str, int] = CLIENT,
        service: tuple[str, int] = SERVICE,
        node: tuple[str, int] = NODE,
        snat: bool = True,
    ) -> None:
        self.scene = scene
        self.client, self.service, self.node = client, service, node
        self.source = client
        self.snat = snat

    def request(self, flags: str = "A", payload: bytes = b"", **fields: Any) -> bytes:
        return tcp(self.client, self.service, flags, payload, **{"seq": 101, "ack": 501, **fields})

    def request_out(self, flags: str = "A", payload: bytes = b"", **fields: Any) -> bytes:
        fields = {"seq": 101, "ack": 501, "ttl": 63, **fields}
        return tcp(self.source, self.node, flags, payload, **fields)

    def reply(self, flags: str = "A", payload: bytes = b"", **fields: Any) -> bytes:
        return tcp(self.node, self.source, flags, payload, **{"seq": 501, "ack": 102, **fields})

    def reply_out(self, flags: str = "A", payload: bytes = b"", **fields: Any) -> bytes:
        fields = {"seq": 501, "ack": 102, "ttl": 63, **fields}
        return tcp(self.service, self.client, flags, payload, **fields)

    def syn(self, hook: str = "xdp_public", **fields: Any) -> Outcome:
        """The first SYN; learns the source that the node sees."""
        packet = tcp(self.client, self.service, "S", seq=100, **fields)
        outcome = self.scene.expect(hook, packet, "l4_new_flow")
        self.source = (SNAT if self.snat else self.client[0], outcome.ports[0])
        wanted = tcp(self.source, self.node, "S", seq=100, **{"ttl": 63, **fields})
        assert outcome.packet == to_node(hook, wanted), different(outcome.packet, wanted)
        return outcome

    def syn_ack(self, hook: str = "tc_private") -> Outcome:
        return self.scene.expect(
            hook,
            self.reply("SA", seq=500, ack=101),
            "l4_reply",
            to_client(hook, self.reply_out("SA", seq=500, ack=101)),
        )

    def ack(self, hook: str = "xdp_public") -> Outcome:
        return self.scene.expect(
            hook, self.request("A"), "l4_promoted", to_node(hook, self.request_out("A"))
        )

    def establish(self) -> Connection:
        self.syn()
        self.syn_ack()
        self.ack()
        return self
