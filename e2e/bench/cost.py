"""What a packet costs: the programs run by BPF_PROG_TEST_RUN, no packet is sent.

Each row is a process of its own, with freshly compiled programs over maps of its own, filled for
100 nodes. A trial is a million runs of wrapper.c followed by the program under test (T), next to as
many of wrapper.c followed by a program that does nothing (F, the floor), in seconds of the thread's
CPU time: time that others take from this machine does not count.

The figure is the net, T − F: T/F depends on the wrapper, which is no part of a program. It is told
in nanoseconds and as a part of Y, the yardstick: the net cost of one look-up among a million flows
in a table of the kernel's own (yardstick.c), measured in the same round. Replies are run in TC,
behind a wrapper and a floor of TC's, and judged by the net of the request of the same flows.

Every few seconds a packet of an established flow also sees to it that its flow stays, which takes
the entry of its other direction. Among a million flows on one core that would be most packets or
none, as the machine is slower or faster than a few hundred thousand packets a second; so there is a
row for each. What is told of established flows is of those that are not due for it, by a deadline
that lies further ahead than a trial is long. In the other row all are due: another program that
makes them so, in place, runs ahead of the program under test, in turn with it, by so many flows
that their entries have left the caches again.

New flows are measured in a table with room for them, emptied after every few thousand packets
while the clock stands, and once more in one where half-open flows have all of their share, a flood.
There 131k flows are established besides, of which none may be missing afterwards.

After each trial the programs' own counters must tell of a million packets with exactly the expected
reason: nothing else would be a measurement of this row. One of a thousand may be an exception,
whose flow found its bucket full.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np

from bpf.loader import compile_program, compile_programs
from bpf.syscall import possible_cpus, read_entries
from bus.words import (
    Encapsulation,
    Mode,
)
from e2e.bench import crew, flows
from e2e.bench.flows import FlowTable
from e2e.bench.generator import ACK, ALL_FLOWS, SYN, Generator, tcp_frame
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_most, differences, pieces, ratios
from e2e.bench.tables import TCP, Clients, Seat, Service, Tables
from e2e.bench.wrapper import LOOPBACK, Hook, Wrapper
from services.dataplane.counters import Counters

NODES = 100
MILLION = 1 << 20
YARDSTICK = Path(__file__).with_name("yardstick.c")
CLIENTS = Clients("11.0.0.0", 10_000)
BYSTANDERS = Clients("200.0.0.0", 10_000)
"""Clients of flows that stand while others come; the latter never have such an address."""
_VIP, _PORT, _NODE_PORT = "10.80.0.100", 8080, 8080
_SNAT, _FIRST_SNAT_PORT, _SNAT_PORTS = "10.81.0.100", 20_000, 8192
_BYSTANDERS_FIRST_SNAT_PORT = 30_000
"""Of another load balancer's slice, so that they take no port from the new ones."""
_LB_MAC, _CLIENT_MAC = "02:00:00:00:00:0b", "02:00:00:00:00:0a"
_AHEAD, _STEP = 1 << 18, 1 << 16
"""Flows; in one cache line each direction these are 32 MB and 8 MB, and more with a bucket's."""


class Course(Enum):
    """What happens in a trial of a row."""

    PLAIN = auto()
    ESTABLISHED = auto()
    DUE_FOR_TOUCH = auto()
    REPLY = auto()
    NEW_FLOWS = auto()
    FULL_TABLE = auto()
    YARDSTICK = auto()


@dataclass(frozen=True, slots=True)
class Row:
    """One program, one kind of packet, so many flows."""

    name: str
    mode: Literal["l2", "l3", "l4"]
    flows: int
    course: Course = Course.PLAIN
    gue: bool = False
    goal: Goal | None = None
    peers: str = ""
    request: str = ""
    """The row by whose net this one is judged, instead of the yardstick."""
    services: int = 1

    @property
    def counted(self) -> str:
        """What the program must count for each packet."""
        match self.course:
            case Course.ESTABLISHED | Course.DUE_FOR_TOUCH:
                return "xdp_public.l4_established"
            case Course.REPLY:
                return "tc_private.l4_reply"
            case Course.NEW_FLOWS | Course.FULL_TABLE:
                return "xdp_public.l4_new_flow"
            case _:
                return f"xdp_public.{self.mode}_forwarded"

    @property
    def hook(self) -> Hook:
        return "tc" if self.course is Course.REPLY else "xdp"

    @property
    def syn(self) -> bool:
        return self.course in (Course.NEW_FLOWS, Course.FULL_TABLE)


_ONE, _131K, _1M = (
    f"L4 established, {how_many}" for how_many in ("1 flow", "131k flows", "1M flows")
)
_REPLY_GOAL = at_most(1.2, " × request")
_YARDSTICK = Row("Y: one look-up among 1M flows", "l4", MILLION, Course.YARDSTICK)


def _share(limit: float) -> Goal:
    return at_most(limit, " Y", 2)


_AS_WITH_ONE = at_most(1.05, " × one service", 2)
ROWS = (
    Row("L2, 1 flow", "l2", 1),
    Row("… of 1,000 services, L2", "l2", 1, goal=_AS_WITH_ONE, request="L2, 1 flow", services=1000),
    Row("L2, 1M flows", "l2", MILLION),
    Row("L3 IPIP, 1 flow", "l3", 1, peers="Katran 0.30"),
    Row(
        "… of 1,000 services, L3",
        "l3",
        1,
        goal=_AS_WITH_ONE,
        request="L3 IPIP, 1 flow",
        services=1000,
    ),
    Row("L3 IPIP, 1M flows", "l3", MILLION, peers="Katran 0.79"),
    Row("L3 GUE, 1 flow", "l3", 1, gue=True),
    Row("L3 GUE, 1M flows", "l3", MILLION, gue=True),
    Row(_ONE, "l4", 1, Course.ESTABLISHED, goal=_share(0.10), peers="Katran 0.30"),
    Row("… its reply in TC, 1 flow", "l4", 1, Course.REPLY, goal=_REPLY_GOAL, request=_ONE),
    Row(_131K, "l4", 1 << 17, Course.ESTABLISHED, goal=_share(0.45), peers="Katran 0.70"),
    _YARDSTICK,
    Row(_1M, "l4", MILLION, Course.ESTABLISHED, goal=_share(0.65), peers="Katran 0.79"),
    Row("… each due for a touch", "l4", MILLION, Course.DUE_FOR_TOUCH, goal=_share(0.75)),
    Row("… its reply in TC, 1M flows", "l4", MILLION, Course.REPLY, goal=_REPLY_GOAL, request=_1M),
    Row(
        "L4 new flow (SYN)",
        "l4",
        ALL_FLOWS,
        Course.NEW_FLOWS,
        goal=_share(1.9),
        peers="Katran 1.04",
    ),
    Row("… into a full table", "l4", ALL_FLOWS, Course.FULL_TABLE, goal=_share(2.0)),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Nanoseconds of CPU time per packet."""

    floor_ns: float
    program_ns: float
    evicted: int = 0
    """Established flows that stood before it and no longer do."""


Seen = Mapping[str, tuple[Trial, ...]]


def chosen(words: Sequence[str]) -> tuple[Row, ...]:
    """The rows with any of these words in their names, all of them without words, and those that
    they are judged by. Raises ValueError if there is none with some word.
    """
    found = {row for row in ROWS if not words}
    for word in words:
        having = {row for row in ROWS if word.casefold() in row.name.casefold()}
        if not having:
            raise ValueError(f"no row has {word!r} in its name")
        found |= having
    judges = {_YARDSTICK.name, *(row.request for row in found)}
    return tuple(row for row in ROWS if row in found or row.name in judges)


def run(
    trials: int, repeats: int, progress: Callable[[str], None], rows: Sequence[Row] = ROWS
) -> Result:
    """All rows, or these, taking turns."""
    with TemporaryDirectory(prefix="gale-bench-") as images:
        make = partial(bench, repeats=repeats, images=Path(images))
        seen = crew.run(rows, make, trials, progress)
    return result(seen, repeats)


def result(seen: Seen, repeats: int) -> Result:
    """What is made of the trials of these rows."""
    rows = tuple(row for row in ROWS if row.name in seen)
    evicted = max(trial.evicted for trials in seen.values() for trial in trials)
    return Result(
        key="cost",
        title="Cost of a packet",
        columns=("net, ns", "net/Y", "T/F"),
        lines=tuple(_line(row, seen) for row in rows),
        bar_label="net cost in look-ups among a million flows (Y)",
        remark=(
            f"Floor F: {_floors(rows, seen)}. "
            f"{NODES} nodes, a TCP packet of 60 bytes, {repeats:,} packets a trial, median of "
            f"{len(seen[_YARDSTICK.name])} trials (in brackets: the middle half of them), CPU time "
            f"of the thread. Of {flows.DEFAULT_FLOWS:,} flows that were established in the full "
            f"table, {evicted} were evicted. Others: in Y of the machine they were measured on."
        ),
    )


def _floors(rows: Sequence[Row], seen: Seen) -> str:
    """In each of the hooks."""
    words: dict[Hook, str] = {"xdp": "", "tc": "in TC "}
    said = []
    for hook, word in words.items():
        trials = tuple(t.floor_ns for row in rows if row.hook == hook for t in seen[row.name])
        if trials:
            said.append(word + Sample(trials).text(1, " ns"))
    return ", ".join(said)


def _line(row: Row, seen: Seen) -> Line:
    program, floor = _sample(seen[row.name], "program_ns"), _sample(seen[row.name], "floor_ns")
    net = _net(seen[row.name])
    share = ratios(net, _net(seen[_YARDSTICK.name]))
    judged = ratios(net, _net(seen[row.request])).median if row.request else share.median
    if any(trial.evicted for trial in seen[row.name]):
        # However fast: a new flow must not cost another its place.
        judged = math.inf
    cells = (net.text(0), share.text(2), ratios(program, floor).text(1))
    return Line(row.name, cells, bar=share, judged=judged, goal=row.goal, peers=row.peers)


def _net(trials: tuple[Trial, ...]) -> Sample:
    return differences(_sample(trials, "program_ns"), _sample(trials, "floor_ns"))


def _sample(trials: tuple[Trial, ...], field: Literal["program_ns", "floor_ns"]) -> Sample:
    return Sample(tuple(float(getattr(trial, field)) for trial in trials))


# --------------------------------------------------------------------------- one row


def bench(row: Row, *, repeats: int, images: Path) -> Bench | Yardstick:
    """What a row's process builds."""
    make = Yardstick if row.course is Course.YARDSTICK else Bench
    return make(row, repeats=repeats, images=images)


class Bench:
    """The programs and maps of one row, in this process. `images` keeps what was compiled."""

    def __init__(self, row: Row, *, repeats: int, images: Path) -> None:
        self._row, self._repeats = row, repeats
        self._wrapper = Wrapper(images)
        standing = flows.DEFAULT_FLOWS if row.syn else row.flows if row.mode == "l4" else 1
        xdp, tc, own = compile_programs(
            ["xdp.c", "tc.c", str(flows.SOURCE)],
            defines=flows.table_sizes(standing),
            cache_dir=images,
        )
        self._loaded = (xdp, tc, own, self._wrapper.loaded)
        self._floor = self._wrapper.floor(row.hook)
        self._program = (
            tc.function("gale_tc_private", "tc")
            if row.hook == "tc"
            else xdp.function("gale_xdp_public", "xdp")
        )
        self._counters = Counters(xdp.bpf, possible_cpus())
        service, seats = self._service(), _seats()
        tables = Tables(xdp)
        others = row.services - 1
        tables.fill([(service, seats)], LOOPBACK, LOOPBACK, _LB_MAC, _LB_MAC, others=others)
        clients = BYSTANDERS if row.syn else CLIENTS
        first_port = _BYSTANDERS_FIRST_SNAT_PORT if row.syn else _FIRST_SNAT_PORT
        self._flows = FlowTable(own, self._wrapper, service, seats, clients, standing, first_port)
        self._generator = self._made_generator()
        self._stood = 0
        self._prepare()

    def _service(self) -> Service:
        encap = Encapsulation.GUE if self._row.gue else Encapsulation.IPIP
        return Service(
            _VIP,
            _PORT,
            Mode(self._row.mode),
            encap,
            snat_address=_SNAT,
            snat_first_port=_FIRST_SNAT_PORT,
            snat_ports=_SNAT_PORTS,
            # A frame that became an answer would have another length than the wrapper's.
            no_reset=True,
        )

    def _made_generator(self) -> Generator:
        loaded, row = self._wrapper.loaded, self._row
        if row.course is Course.REPLY:
            frame = tcp_frame(ACK, _CLIENT_MAC, _LB_MAC, _SNAT, 0, _NODE_PORT)
            return Generator(loaded, frame, CLIENTS, row.flows, replies=self._flows.replies)
        frame = tcp_frame(SYN if row.syn else ACK, _CLIENT_MAC, _LB_MAC, _VIP, _PORT)
        return Generator(loaded, frame, CLIENTS, row.flows)

    def _prepare(self) -> None:
        """What has to be done once: flows that are there, and a table that is full."""
        if self._row.course in (Course.ESTABLISHED, Course.DUE_FOR_TOUCH, Course.REPLY):
            self._flows.fill()
            self._flows.mark("not due", self._row.flows)
        if self._row.course is Course.FULL_TABLE:
            self._stood = self._flows.fill()
            self._timed(self._program, flows.HALF_OPEN_FLOWS)

    def trial(self) -> Trial:
        repeats = self._repeats
        floor_ns = self._timed(self._floor, repeats)
        before = self._counters.verdicts()
        match self._row.course:
            case Course.DUE_FOR_TOUCH:
                program_ns = self._timed_when_due()
            case Course.NEW_FLOWS:
                program_ns = self._timed_with_room()
            case _:
                program_ns = self._timed(self._program, repeats)
        self._check(before, self._counters.verdicts())
        return Trial(floor_ns / repeats, program_ns / repeats, self._evicted())

    def _evicted(self) -> int:
        if self._row.course is not Course.FULL_TABLE:
            return 0
        return self._stood - self._flows.standing()

    def _timed_when_due(self) -> int:
        """The program under test, on flows each of which is made due ahead of it."""
        ahead = min(_AHEAD, self._row.flows)
        self._flows.requests.next_flow = self._generator.next_flow
        self._flows.mark("due", ahead)
        total = 0
        for step in pieces(self._repeats, min(_STEP, ahead)):
            self._flows.mark("due", step)
            total += self._timed(self._program, step)
        return total

    def _timed_with_room(self) -> int:
        total = 0
        for step in pieces(self._repeats, flows.NEW_FLOWS_AT_ONCE):
            self._flows.forget()
            total += self._timed(self._program, step)
        return total

    def _timed(self, program: int, packets: int) -> int:
        """Nanoseconds of CPU time for so many packets."""
        return self._wrapper.run(self._row.hook, program, self._generator, packets)

    def close(self) -> None:
        """Give back the programs and maps."""
        for loaded in self._loaded:
            loaded.close()

    def _check(self, before: dict[str, int], after: dict[str, int]) -> None:
        """Raise unless all packets of the trial went the way this row is about."""
        counted = {
            reason: count - before.get(reason, 0)
            for reason, count in after.items()
            if count != before.get(reason, 0)
        }
        expected = counted.get(self._row.counted, 0)
        least = self._repeats * (1 - flows.REFUSED_AT_MOST)
        if expected < least or sum(counted.values()) != self._repeats:
            raise RuntimeError(f"{self._row.name}: the packets went elsewhere: {counted}")


def _seats() -> list[Seat]:
    return [
        Seat(f"10.81.1.{number}", _NODE_PORT, LOOPBACK, f"02:00:00:00:01:{number:02x}", _LB_MAC)
        for number in range(NODES)
    ]


class Yardstick:
    """The look-up in the kernel's own table that all else is told in."""

    def __init__(self, row: Row, *, repeats: int, images: Path) -> None:
        self._repeats = repeats
        self._wrapper = Wrapper(images)
        loaded = compile_program(str(YARDSTICK), cache_dir=images)
        self._loaded = (loaded, self._wrapper.loaded)
        self._program = loaded.function("bench_lookup", "xdp")
        frame = tcp_frame(ACK, _CLIENT_MAC, _LB_MAC, _VIP, _PORT)
        self._generator = Generator(self._wrapper.loaded, frame, CLIENTS, row.flows)
        self._fill(Tables(loaded), row.flows)
        there = sum(len(keys) for keys, _ in read_entries(loaded.bpf[b"yardstick"].map_fd)) // 16
        if there != 2 * row.flows:
            raise RuntimeError(f"the yardstick has {there} entries instead of {2 * row.flows}")

    def _fill(self, tables: Tables, count: int) -> None:
        """All requests, then all replies: the order matters, and is part of what Y is.

        What is entered one after the other lies together in memory. With requests and replies in
        turn, as flows come about, the look-ups are spread over twice the memory and cost a third
        more.
        """
        keys, values = tables.keys("yardstick", count), tables.values("yardstick", count)
        addresses, ports = CLIENTS.columns(count)
        vip = np.frombuffer(bytes(map(int, _VIP.split("."))), np.uint32)[0]
        port = np.frombuffer(_PORT.to_bytes(2), np.uint16)[0]
        keys["protocol"], values["state"] = TCP, 1
        keys["saddr"], keys["daddr"] = addresses, vip
        keys["sport"], keys["dport"] = ports, port
        tables.write("yardstick", keys, values)
        keys["direction"] = 1
        tables.write("yardstick", keys, values)

    def trial(self) -> Trial:
        floor, run = self._wrapper.floor("xdp"), self._wrapper.run
        floor_ns = run("xdp", floor, self._generator, self._repeats)
        program_ns = run("xdp", self._program, self._generator, self._repeats)
        return Trial(floor_ns / self._repeats, program_ns / self._repeats)

    def close(self) -> None:
        """Give back the programs and maps."""
        for loaded in self._loaded:
            loaded.close()
