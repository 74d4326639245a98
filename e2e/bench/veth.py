"""How many packets fit through, on one core with everything that makes and takes them.

    bench_generate ══ gen0 ──── pub0 [ what is measured ] priv0 ──── sink0 ══ bench_sink
       the kernel's live frames        LB's namespace             counts and drops

A frame leaves the generator, crosses a veth pair into the LB's namespace, is forwarded there by
Gale, by nftables or by a bare `bpf_redirect`, crosses a second pair and is counted and dropped. The
kernel does all of it in one thread's turn, 64 frames at a time. The figure is packets for each
second of CPU time, of that thread and of the ksoftirqd of its core, so that other processes on the
machine take none of it away.

The bare redirect, the verb that every XDP load balancer ends with, is what there is to be had: a
row of L2, L3 or L4 is told as a part of that. nftables gets its interface as suits it best (a bare
XDP_PASS makes veth poll, at no more cost than GRO does), no checking of checksums, and a connection
table with room for everything.

Running out of SNAT ports is shown with every other packet opening a new flow, while the established
ones hold every port there is: what becomes of the speed, and of the established flows.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from pyroute2.netlink.nfnetlink.nfctsocket import NFCTSocket

from bpf.loader import compile_program, compile_programs
from bpf.syscall import send_frames, xdp_context
from bus.words import Mode
from e2e.bench import core, crew, flows, wire
from e2e.bench.flows import FlowTable
from e2e.bench.generator import ACK, ALL_FLOWS, SYN, Generator, tcp_frame
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_least, ratios
from e2e.bench.tables import Clients, Seat, Service, Tables
from e2e.bench.wrapper import Wrapper

NODES = 100
FLOWS_131K, FLOWS_262K = 1 << 17, 1 << 18
PORTS_HELD = 64
MIXED_NODES = 64
FLOWS_HOLDING = MIXED_NODES * PORTS_HELD
NFTABLES_ENTRIES = 1 << 20
CLIENTS = Clients("11.0.0.0", 10_000)
WIRE = Path(__file__).with_name("wire.c")
VIP, PORT = "10.90.0.100", 8080
SNAT_ADDRESS, FIRST_SNAT_PORT, SNAT_PORTS = "10.91.0.100", 20_000, 8192
_PUB, _PRIV, _GEN, _SINK = "pub0", "priv0", "gen0", "sink0"
_LOST_AT_MOST = 0.001
_FEWER = 5
"""nftables takes most of a minute for a million packets where it has no port left."""

Forwarder = Literal["redirect", "l2", "l3", "l4", "dnat+masquerade", "dnat"]
Traffic = Literal["established", "new", "mixed"]
WORDS: dict[Forwarder, str] = {
    "redirect": "bare redirect",
    "l2": "L2",
    "l3": "L3",
    "l4": "L4",
    "dnat+masquerade": "nftables DNAT + masquerade",
    "dnat": "nftables DNAT",
}


@dataclass(frozen=True, slots=True)
class Contestant:
    """Who forwards what."""

    forwarder: Forwarder
    traffic: Traffic
    flows: int
    no_port_left: bool = False

    @property
    def name(self) -> str:
        return f"{WORDS[self.forwarder]}, {self.load}"

    @property
    def load(self) -> str:
        if self.traffic == "new":
            return "new flows"
        if self.traffic == "mixed":
            return "half of them new flows" + (", no port left" if self.no_port_left else "")
        return "1 flow" if self.flows == 1 else f"{self.flows // 1000}k flows"


@dataclass(frozen=True, slots=True)
class Trial:
    """What came of one run."""

    sent: int
    seconds: float
    arrived: int
    syns_arrived: int

    @property
    def rate(self) -> float:
        return self.sent / self.seconds

    @property
    def established_share(self) -> float:
        """Of a mixed run: how many of the established flows' packets arrived."""
        return (self.arrived - self.syns_arrived) / (self.sent / 2)


REDIRECT = Contestant("redirect", "established", FLOWS_131K)
REDIRECT_ONE = Contestant("redirect", "established", 1)
L4_ONE = Contestant("l4", "established", 1)
L4_131K = Contestant("l4", "established", FLOWS_131K)
L4_262K = Contestant("l4", "established", FLOWS_262K)
L4_NEW = Contestant("l4", "new", ALL_FLOWS)
L4_MIXED = Contestant("l4", "mixed", FLOWS_HOLDING)
L4_NO_PORT = Contestant("l4", "mixed", FLOWS_HOLDING, no_port_left=True)
NFT_ONE = Contestant("dnat+masquerade", "established", 1)
NFT_131K = Contestant("dnat+masquerade", "established", FLOWS_131K)
NFT_262K = Contestant("dnat+masquerade", "established", FLOWS_262K)
NFT_NEW = Contestant("dnat+masquerade", "new", ALL_FLOWS)
NFT_NEW_DNAT = Contestant("dnat", "new", ALL_FLOWS)
NFT_MIXED = Contestant("dnat+masquerade", "mixed", FLOWS_HOLDING)
NFT_NO_PORT = Contestant("dnat+masquerade", "mixed", FLOWS_HOLDING, no_port_left=True)
L2 = Contestant("l2", "established", FLOWS_131K)
L3 = Contestant("l3", "established", FLOWS_131K)


@dataclass(frozen=True, slots=True)
class Comparison:
    """A line of the table: one contestant as a multiple of another."""

    who: Contestant
    against: Contestant
    goal: Goal | None = None
    seen: str = ""


COMPARISONS = (
    Comparison(L2, REDIRECT, at_least(0.65, digits=2), "0.70–0.74"),
    Comparison(L3, REDIRECT, at_least(0.60, digits=2), "0.65–0.69"),
    Comparison(L4_ONE, REDIRECT_ONE, at_least(0.85, digits=2), "0.81"),
    Comparison(L4_131K, REDIRECT, at_least(0.50, digits=2), "0.35–0.54"),
    Comparison(L4_ONE, NFT_ONE, at_least(5), "6.0"),
    Comparison(L4_131K, NFT_131K, at_least(4.5), "4–7"),
    Comparison(L4_262K, NFT_262K, at_least(4), "3.1"),
    Comparison(L4_NEW, NFT_NEW, at_least(4.5), "2.8"),
    Comparison(L4_NEW, NFT_NEW_DNAT, at_least(3), "1.9"),
    Comparison(L4_NO_PORT, L4_MIXED),
    Comparison(NFT_NO_PORT, NFT_MIXED),
)
# In the order of their turns: those that are compared run one after the other.
CAST = (
    REDIRECT,
    L2,
    L3,
    L4_131K,
    NFT_131K,
    REDIRECT_ONE,
    L4_ONE,
    NFT_ONE,
    L4_262K,
    NFT_262K,
    NFT_NEW,
    L4_NEW,
    NFT_NEW_DNAT,
    L4_MIXED,
    L4_NO_PORT,
    NFT_NO_PORT,
    NFT_MIXED,
)


def run(trials: int, packets: int, progress: Callable[[str], None]) -> Result:
    """All contestants, taking turns."""
    with (
        wire.alone(),
        wire.room_for_nftables(NFTABLES_ENTRIES),
        TemporaryDirectory(prefix="gale-bench-") as images,
    ):
        make = partial(Bench, packets=packets, images=Path(images))
        seen = crew.run(CAST, make, trials, progress)
    return Result(
        key="veth",
        title="Packets per second on veth",
        columns=("million packets/s", "times", "of"),
        lines=tuple(_line(one, seen) for one in COMPARISONS),
        bar_label="times the packets per second of what it is compared with",
        remark=(
            f"{packets:,} packets a trial (a fifth of that where nftables runs out of ports), "
            f"{trials} trials, packets per second of one core's CPU time, generator and sink "
            "included. With no port left, of the established flows' packets arrived: "
            f"{_arrived(seen[L4_NO_PORT.name])} with Gale, {_arrived(seen[NFT_NO_PORT.name])} "
            "with nftables. Others: what a feasibility program reached elsewhere."
        ),
    )


def _line(one: Comparison, seen: Mapping[str, tuple[Trial, ...]]) -> Line:
    mine = Sample(tuple(trial.rate / 1e6 for trial in seen[one.who.name]))
    theirs = Sample(tuple(trial.rate / 1e6 for trial in seen[one.against.name]))
    times = ratios(mine, theirs)
    against = WORDS[one.against.forwarder]
    if one.who.no_port_left:
        against = "ports enough"
    return Line(
        name=one.who.name,
        cells=(mine.text(2), times.text(2), f"{against}: {theirs.text(2)}"),
        bar=times,
        judged=times.median,
        goal=one.goal,
        peers=one.seen,
        against=against,
    )


def _arrived(trials: tuple[Trial, ...]) -> str:
    return f"{min(trial.established_share for trial in trials):.1%}"


# --------------------------------------------------------------------------- one contestant


class Bench:
    """A contestant's namespaces, programs and tables, and this process as its generator."""

    def __init__(self, who: Contestant, *, packets: int, images: Path) -> None:
        self._who = who
        self._packets = packets // (_FEWER if who in (NFT_MIXED, NFT_NO_PORT) else 1)
        self._nodes = MIXED_NODES if who.traffic == "mixed" else NODES
        cpu = core.pick()
        os.sched_setaffinity(0, {cpu})
        # ksoftirqd steps in when softirqs go on for long.
        self._at_work = (os.getpid(), core.ksoftirqd(cpu))
        self._lay_wire()
        self._images = images
        self._wire = compile_program(str(WIRE), cache_dir=images)
        wire.move_to(self._lb)
        if who.forwarder.startswith("dnat"):
            self._set_up_nftables()
        else:
            self._set_up_xdp()
        wire.move_to(self._far)
        self._set_up_sink()
        self._generator = self._made_generator()

    def _lay_wire(self) -> None:
        self._far, self._lb = (f"{wire.PREFIX}{end}-{os.getpid()}" for end in ("far", "lb"))
        wire.add_namespace(self._far)
        wire.add_namespace(
            self._lb,
            ipv4__ip_forward=1,
            ipv4__conf__all__rp_filter=0,
            ipv4__conf__default__rp_filter=0,
            netfilter__nf_conntrack_checksum=0,
        )
        wire.cable((self._lb, _PUB), (self._far, _GEN))
        wire.cable((self._lb, _PRIV), (self._far, _SINK))
        self._sink_mac = wire.mac_of(self._far, _SINK)
        lines = [
            f"address add 10.90.0.1/24 dev {_PUB}",
            f"address add 10.91.0.1/16 dev {_PRIV}",
            f"route add default via 10.90.0.2 dev {_PUB}",
        ]
        for node in range(self._nodes):
            lines.append(f"neigh add {_node(node)} lladdr {self._sink_mac} dev {_PRIV}")
        wire.batch(self._lb, lines)

    def _set_up_xdp(self) -> None:
        public, private = socket.if_nametoindex(_PUB), socket.if_nametoindex(_PRIV)
        if self._who.forwarder == "redirect":
            tables = Tables(self._wire)
            way = tables.values("ways", 1)
            way["ifindex"] = private
            tables.write("ways", np.zeros(1, np.int32), way)
            wire.attach_xdp(_PUB, self._wire.function("bench_redirect", "xdp"))
            return
        gale, table = compile_programs(
            ["xdp.c", str(flows.SOURCE)],
            defines=flows.table_sizes(self._established()),
            cache_dir=self._images,
        )
        tables = Tables(gale)
        ports = PORTS_HELD if self._who.no_port_left else SNAT_PORTS
        service = Service(
            VIP,
            PORT,
            Mode(self._who.forwarder),
            snat_address=SNAT_ADDRESS,
            snat_first_port=FIRST_SNAT_PORT,
            snat_ports=ports,
        )
        mac = wire.mac_of(self._lb, _PRIV)
        seats = [
            Seat(_node(number), PORT, private, self._sink_mac, mac) for number in range(self._nodes)
        ]
        tables.fill([(service, seats)], public, private, wire.mac_of(self._lb, _PUB), mac)
        if self._established():
            wrapper, count = Wrapper(self._images), self._established()
            FlowTable(table, wrapper, service, seats, CLIENTS, count, FIRST_SNAT_PORT).fill()
        wire.attach_xdp(_PUB, gale.function("gale_xdp_public", "xdp"))
        self._gale = gale

    def _established(self) -> int:
        """How many flows Gale's table is to hold before the first packet."""
        return self._who.flows if self._who.forwarder == "l4" and self._who.flows < ALL_FLOWS else 0

    def _set_up_nftables(self) -> None:
        wire.attach_xdp(_PUB, self._wire.function("bench_pass", "xdp"))
        wire.run_in(self._lb, "nft", "-f", "-", stdin=_ruleset(self._who, self._nodes))

    def _set_up_sink(self) -> None:
        wire.attach_xdp(_SINK, self._wire.function("bench_sink", "xdp"))
        self._entry = self._wire.function("bench_generate", "xdp")

    def _made_generator(self) -> Generator:
        flags = SYN if self._who.traffic == "new" else ACK
        macs = wire.mac_of(self._far, _GEN), wire.mac_of(self._lb, _PUB)
        frame = tcp_frame(flags, *macs, VIP, PORT)
        return Generator(self._wire, frame, CLIENTS, self._who.flows)

    def _warm_up(self) -> None:
        """One packet of each established flow.

        nftables learns of them by that. For Gale they would be long idle between two trials, which
        costs a packet more than those of flows that are in use.
        """
        if self._who.traffic != "new":
            self._send(self._who.flows, mixed=False)

    def _send(self, packets: int, *, mixed: bool) -> None:
        self._generator.advance(packets, mixed=mixed)
        frame = self._generator.frame
        context = xdp_context(frame, socket.if_nametoindex(_GEN))
        send_frames(self._entry, frame, context, packets)

    def trial(self) -> Trial:
        mixed = self._who.traffic == "mixed"
        self._warm_up()
        before, begin = self._arrivals(), core.run_time_ns(self._at_work)
        self._send(self._packets, mixed=mixed)
        seconds = (core.run_time_ns(self._at_work) - begin) / 1e9
        arrived, syns = (now - then for now, then in zip(self._arrivals(), before, strict=True))
        if self._who.forwarder.startswith("dnat") and self._who.traffic != "established":
            # One hash table serves all namespaces: what is left in it would slow the others.
            self._forget_connections()
        if not mixed and arrived < self._packets * (1 - _LOST_AT_MOST):
            raise RuntimeError(f"only {arrived} of {self._packets} packets arrived")
        return Trial(self._packets, seconds, arrived, syns)

    def _forget_connections(self) -> None:
        """Empty nftables' table of this namespace, and see that it is."""
        wire.move_to(self._lb)
        with NFCTSocket() as connections:
            connections.flush()
        wire.move_to(self._far)
        left = int(wire.run_in(self._lb, "sysctl", "-n", "net.netfilter.nf_conntrack_count"))
        if left:
            raise RuntimeError(f"{left} connections would not go")

    def _arrivals(self) -> tuple[int, int]:
        """Packets, and SYNs among them, over all CPUs."""
        table = self._wire.bpf[b"arrivals"]
        each = table[table.Key(0)]
        return sum(cpu.packets for cpu in each), sum(cpu.syns for cpu in each)

    def close(self) -> None:
        """The namespaces are taken away by who started the benchmark."""


def _node(number: int) -> str:
    return f"10.91.1.{number}"


def _ruleset(who: Contestant, nodes: int) -> str:
    """DNAT to a node, and masquerading unless it is DNAT alone."""
    # Where all ports are to be held, the flows are dealt out in turn.
    pick = "numgen inc" if who.traffic == "mixed" else "jhash ip saddr . tcp sport"
    choice = ", ".join(f"{number} : {_node(number)}" for number in range(nodes))
    last = FIRST_SNAT_PORT + PORTS_HELD - 1
    ports = f" to :{FIRST_SNAT_PORT}-{last}" if who.no_port_left else ""
    source = (
        f"oifname {_PRIV} meta l4proto tcp masquerade{ports}"
        if "masquerade" in who.forwarder
        else ""
    )
    return f"""
        table ip bench {{
            chain before {{
                type nat hook prerouting priority dstnat
                ip daddr {VIP} tcp dport {PORT} dnat to {pick} mod {nodes} map {{ {choice} }}
            }}
            chain after {{
                type nat hook postrouting priority srcnat
                {source}
            }}
        }}
    """
