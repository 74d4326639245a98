"""What a packet costs: the programs run by BPF_PROG_TEST_RUN, no packet is sent.

Each row is a process of its own, with freshly compiled programs over maps of its own, filled for
100 nodes. A trial is a million runs of wrapper.c followed by the program under test (T), next to as
many of wrapper.c followed by `return XDP_TX` (F, the floor), in seconds of the thread's CPU time:
time that others take from this machine does not count. The figure is T/F, with net = T − F in
nanoseconds beside it.

Every few seconds a packet of an established flow also looks at the flow's other entry. Among a
million flows on one core that would be most packets or none, as the machine is slower or faster
than a few hundred thousand packets a second; so there is a row for each: flows that were all
touched lately and flows that were not. Another program that marks flows as the one or the other, in
place, runs ahead of the program under test, in turn with it, by so many flows that their entries
have left the caches again. What of the cost is memory's doing a yardstick tells: a program that
looks a flow up in the same table and does nothing else.

New flows are measured in a table with room for them, emptied after every few thousand packets
while the clock stands, and once more in a full one, where each evicts another: a flood.

After each trial the programs' own counters must tell of a million packets with exactly the expected
reason: nothing else would be a measurement of this row.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum, auto
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

from bpf.loader import compile_program, compile_programs
from bpf.pins import PinnedMaps
from bpf.syscall import (
    delete_entries,
    possible_cpus,
    read_entries,
    run_program,
    xdp_context,
)
from bus.messages import Encapsulation, Mode
from e2e.bench import crew
from e2e.bench.generator import ACK, ALL_FLOWS, SYN, Generator, tcp_frame
from e2e.bench.report import Line, Result
from e2e.bench.samples import Goal, Sample, at_most, pieces, ratios
from e2e.bench.tables import Clients, Seat, Service, Tables, established
from services.dataplane.counters import Counters

NODES = 100
MILLION = 1 << 20
LOOPBACK = 1
KATRAN_SYN_FLOORS = 262 / 11.85
"""Its net 262 ns, in floors of the machine that was measured on (net 52 ns there was T/F 5.4)."""
SYN_LIMIT = 1 + 1.8 * KATRAN_SYN_FLOORS
WRAPPER = Path(__file__).with_name("wrapper.c")
YARDSTICK = Path(__file__).with_name("yardstick.c")
CLIENTS = Clients("11.0.0.0", 10_000)
_VIP, _PORT = "10.80.0.100", 8080
_LB_MAC, _CLIENT_MAC = "02:00:00:00:00:0b", "02:00:00:00:00:0a"
_NEW_FLOWS_AT_ONCE = 1 << 14
"""Half of what the table of half-open flows has room for, two entries each."""
_AHEAD, _STEP = 1 << 18, 1 << 16
"""Flows; an entry and its bucket are three cache lines, so these are 50 MB and 12 MB."""


class Course(Enum):
    """What happens in a trial of a row."""

    PLAIN = auto()
    TOUCHED_LATELY = auto()
    TOUCHED_LONG_AGO = auto()
    LOOKUP_ALONE = auto()
    NEW_FLOWS = auto()
    FLOOD = auto()


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

    @property
    def reason(self) -> str:
        """What the program must count for each packet; nothing where another one stands for it."""
        match self.course:
            case Course.PLAIN:
                return f"{self.mode}_forwarded"
            case Course.TOUCHED_LATELY | Course.TOUCHED_LONG_AGO:
                return "l4_established"
            case Course.NEW_FLOWS | Course.FLOOD:
                return "l4_new_flow"
            case Course.LOOKUP_ALONE:
                return ""

    @property
    def syn(self) -> bool:
        return self.course in (Course.NEW_FLOWS, Course.FLOOD)


ROWS = (
    Row("L2, 1 flow", "l2", 1, goal=at_most(3), peers="xvs 12.5"),
    Row("L2, 1M flows", "l2", MILLION, goal=at_most(3), peers="xvs 26"),
    Row("L3 IPIP, 1 flow", "l3", 1, goal=at_most(4), peers="Katran 5.4"),
    Row("L3 IPIP, 1M flows", "l3", MILLION, goal=at_most(4), peers="Katran 17.9"),
    Row("L3 GUE, 1 flow", "l3", 1, gue=True, goal=at_most(4), peers="GLB 4.7"),
    Row("L3 GUE, 1M flows", "l3", MILLION, gue=True, goal=at_most(4), peers="GLB 5.0"),
    Row("L4 established, 1 flow", "l4", 1, Course.TOUCHED_LATELY, goal=at_most(4)),
    Row("L4 established, 1M flows", "l4", MILLION, Course.TOUCHED_LATELY, goal=at_most(18)),
    Row("… each due for a touch", "l4", MILLION, Course.TOUCHED_LONG_AGO),
    Row("… one look-up, nothing else", "l4", MILLION, Course.LOOKUP_ALONE),
    Row(
        "L4 new flow (SYN)",
        "l4",
        ALL_FLOWS,
        Course.NEW_FLOWS,
        goal=at_most(SYN_LIMIT),
        peers=f"Katran {1 + KATRAN_SYN_FLOORS:.1f}",
    ),
    Row(
        "… into a full table (flood)",
        "l4",
        ALL_FLOWS,
        Course.FLOOD,
        goal=at_most(SYN_LIMIT),
        peers=f"Katran {1 + KATRAN_SYN_FLOORS:.1f}",
    ),
)


@dataclass(frozen=True, slots=True)
class Trial:
    """Nanoseconds of CPU time per packet."""

    floor_ns: float
    program_ns: float


def run(trials: int, repeats: int, progress: Callable[[str], None]) -> Result:
    """All rows, taking turns."""
    with TemporaryDirectory(prefix="gale-bench-") as images:
        make = partial(Bench, repeats=repeats, images=Path(images))
        seen = crew.run(ROWS, make, trials, progress)
    return _result([(row, seen[row.name]) for row in ROWS], repeats)


def _result(seen: Sequence[tuple[Row, tuple[Trial, ...]]], repeats: int) -> Result:
    floor = Sample(tuple(trial.floor_ns for _, trials in seen for trial in trials))
    lines = [_line(row, trials) for row, trials in seen]
    return Result(
        key="cost",
        title="Cost of a packet",
        columns=("T/F", "net, ns"),
        lines=tuple(lines),
        bar_label="T/F: times the cost of a program that does nothing",
        remark=(
            f"Floor F: {floor.text(1, ' ns')}. {NODES} nodes, a TCP packet of 60 bytes, "
            f"{repeats:,} packets a trial, median of {len(seen[0][1])} trials (in brackets: the "
            "middle half of them), CPU time of the thread. Peers: as measured elsewhere on a "
            "machine of this kind, in the same way."
        ),
    )


def _line(row: Row, trials: tuple[Trial, ...]) -> Line:
    program = Sample(tuple(trial.program_ns for trial in trials))
    floor = Sample(tuple(trial.floor_ns for trial in trials))
    factor = ratios(program, floor)
    net = Sample(tuple(trial.program_ns - trial.floor_ns for trial in trials))
    return Line(
        name=row.name,
        cells=(factor.text(1), net.text(0)),
        bar=factor,
        judged=factor.median,
        goal=row.goal,
        peers=row.peers,
    )


# --------------------------------------------------------------------------- one row


class Bench:
    """The programs and maps of one row, in this process. `images` keeps what was compiled."""

    def __init__(self, row: Row, *, repeats: int, images: Path) -> None:
        self._row, self._repeats = row, repeats
        self._wrapper = compile_program(str(WRAPPER), cache_dir=images)
        # Maps that are never committed, and so pinned nowhere; both sources share them.
        self._gale, self._yardstick = compile_programs(
            ["xdp.c", str(YARDSTICK)],
            maps=PinnedMaps(None),
            defines=_table_sizes(row),
            cache_dir=images,
        )
        self._entry = self._wrapper.function("bench_wrapper", "xdp")
        self._floor = self._wrapper.function("bench_floor", "xdp")
        self._program = self._program_under_test()
        self._tables = Tables(self._gale)
        self._counters = Counters(self._gale.bpf, possible_cpus())
        self._fill()
        frame = tcp_frame(SYN if row.syn else ACK, _CLIENT_MAC, _LB_MAC, _VIP, _PORT)
        self._generator = Generator(self._wrapper, frame, CLIENTS, row.flows)

    def _program_under_test(self) -> int:
        if self._row.course is Course.LOOKUP_ALONE:
            return self._yardstick.function("bench_lookup", "xdp")
        return self._gale.function("gale_xdp_public", "xdp")

    def _fill(self) -> None:
        row = self._row
        encap = Encapsulation.GUE if row.gue else Encapsulation.IPIP
        service = Service(_VIP, _PORT, Mode(row.mode), encap, "10.81.0.100", 20_000, 8192)
        seats = [
            Seat(f"10.81.1.{number}", 8080, LOOPBACK, f"02:00:00:00:01:{number:02x}", _LB_MAC)
            for number in range(NODES)
        ]
        self._tables.fill([(service, seats)], LOOPBACK, LOOPBACK)
        if row.mode == "l4" and not row.syn:
            flows = established(self._tables, service, seats, CLIENTS, row.flows)
            self._tables.write("est", flows.keys, flows.values)

    def trial(self) -> Trial:
        repeats = self._repeats
        floor_ns = self._timed(self._floor, repeats)
        before = self._counters.verdicts()
        match self._row.course:
            case Course.TOUCHED_LATELY:
                program_ns = self._timed_behind("bench_refresh")
            case Course.TOUCHED_LONG_AGO:
                program_ns = self._timed_behind("bench_age")
            case Course.NEW_FLOWS:
                program_ns = self._timed_with_room()
            case _:
                program_ns = self._timed(self._program, repeats)
        self._check(before, self._counters.verdicts())
        return Trial(floor_ns / repeats, program_ns / repeats)

    def _timed_behind(self, other: str) -> int:
        """The program under test, with another that prepares the flows running ahead of it."""
        generator, prepare = self._generator, self._yardstick.function(other, "xdp")
        total, behind = 0, generator.next_flow
        self._timed(prepare, _AHEAD)
        for step in pieces(self._repeats, _STEP):
            self._timed(prepare, step)
            ahead, generator.next_flow = generator.next_flow, behind
            total += self._timed(self._program, step)
            behind, generator.next_flow = generator.next_flow, ahead
        return total

    def _timed_with_room(self) -> int:
        half = self._gale.bpf[b"half"].map_fd
        total = 0
        for step in pieces(self._repeats, _NEW_FLOWS_AT_ONCE):
            for keys, _ in list(read_entries(half)):
                delete_entries(half, keys)
            total += self._timed(self._program, step)
        return total

    def _timed(self, program: int, repeats: int) -> int:
        """Nanoseconds of CPU time for so many packets."""
        slot = self._wrapper.bpf[b"under_test"]
        slot[slot.Key(0)] = slot.Leaf(program)
        self._generator.advance(repeats)
        frame = self._generator.frame
        context = xdp_context(frame, LOOPBACK)
        begin = time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID)
        run_program(self._entry, frame, context, repeats)
        return time.clock_gettime_ns(time.CLOCK_THREAD_CPUTIME_ID) - begin

    def close(self) -> None:
        """Nothing of this outlives its process."""

    def _check(self, before: dict[str, int], after: dict[str, int]) -> None:
        """Raise unless all packets of the trial went the way this row is about."""
        counted = {
            reason: count - before.get(reason, 0)
            for reason, count in after.items()
            if count != before.get(reason, 0)
        }
        wanted = {f"xdp_public.{self._row.reason}": self._repeats} if self._row.reason else {}
        if counted != wanted:
            raise RuntimeError(f"{self._row.name}: the packets went elsewhere: {counted}")


def _table_sizes(row: Row) -> dict[str, str | int]:
    # Two entries a flow, and half as much room again: a full LRU table would evict.
    return {"CONNTRACK_ENTRIES": 3 * row.flows} if row.flows == MILLION else {}
