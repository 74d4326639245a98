"""What is there once the machine is ready: programs on their hooks, the maps, and who reads them.

One `Forwarding` lives from one attachment of the programs to the next; the process makes another
when interfaces or hooks have changed, and when the flow table before the present one is empty
and so not needed any more. It owns everything that works on the flow table, since that belongs to
these programs' maps: the census and with it the RSTs to clients of dead nodes, the listings, what
traces a packet through them, and what shows packets as they go through.
"""

from __future__ import annotations

import errno
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pyroute2 import IPRoute

from bpf.syscall import possible_cpus
from bpf.table import Table
from bus.socket import monotonic_ms
from bus.states import HookState, OutputState
from services.dataplane import machine
from services.dataplane.capturing import Capturing
from services.dataplane.counters import Counters
from services.dataplane.entering import Entering
from services.dataplane.flows.census import Census, Counting, Watch
from services.dataplane.flows.raw import RawSender
from services.dataplane.flows.resets import NOBODY_S, Resets, segments
from services.dataplane.flows.table import Block, FlowTable, TablePair
from services.dataplane.flows.told import Flows
from services.dataplane.flows.turns import Questions, Rounds
from services.dataplane.fronts import SETTLE_MS
from services.dataplane.kernel import Kernel, Settings
from services.dataplane.programs import FRAGS_MTU, ProgramPlan, Programs
from services.dataplane.tracing import Tracing
from services.dataplane.words import address_word
from services.logs import words_of

CENSUS_MS = 5_000
"""The shortest time between two passes over the flow table."""
RESETS_WAITING = 10_000
"""The most segments that wait; clients beyond are found by the next pass."""
OF_THE_MACHINE = frozenset(
    (
        errno.EPERM,
        errno.EACCES,
        errno.EROFS,
        errno.ENOENT,
        errno.ENOTDIR,
        errno.ENODEV,
        errno.ENETDOWN,
        errno.EBUSY,
        errno.EAGAIN,
        errno.ENOMEM,
        errno.ENOSPC,
        errno.EDQUOT,
        errno.EMFILE,
        errno.ENFILE,
        errno.EIO,
        errno.EOPNOTSUPP,
        errno.EAFNOSUPPORT,
    )
)
"""What attaching the programs may say that is the machine's reason, which may go: no privilege, no
BPF file system, no memory, no packet sockets, ... Everything else is a fault of ours."""


class Forwarding:
    """Raises what `machine.look` and `Programs` raise: then nothing is left open.

    What the machine says by an `OSError` while the programs are being attached is a
    `machine.NotReadyError`. Any other `OSError` is a fault of ours.
    """

    def __init__(
        self,
        plan: ProgramPlan,
        bpf_dir: Path,
        cache_dir: Path,
        netlink: IPRoute,
        *,
        services: int = 0,
        old_table_is_empty: bool = False,
    ) -> None:
        self.machine = machine.look(netlink, plan.public, plan.private)
        self.addresses = machine.addresses()
        with ExitStack() as opened:
            with _reasons_of_the_machine():
                self.programs = Programs(
                    plan,
                    bpf_dir,
                    cache_dir,
                    netlink,
                    services=services,
                    old_table_is_empty=old_table_is_empty,
                )
                opened.callback(self.programs.close)
                self._sender = RawSender(plan.public)
                opened.callback(self._sender.close)
                self.hooks: tuple[HookState, ...] = self.programs.attach(self.machine)
                """As they were last seen."""
                self.outputs: tuple[OutputState, ...] = ()
                """Likewise."""
            self._open_maps(cache_dir, bpf_dir)
            opened.pop_all()

    def _open_maps(self, cache_dir: Path, bpf_dir: Path) -> None:
        """Whatever this raises is a fault of ours, not of the machine."""
        bpf_objects = self.programs.objects
        bpf = bpf_objects.bpf
        self.kernel = Kernel(bpf)
        self.settings = self.kernel.read_settings()
        self.counters = Counters(bpf, possible_cpus())
        self.tables = TablePair(_flow_table(bpf[b"flows"]), _flow_table(bpf[b"old_flows"]))
        self.attached_ms = monotonic_ms()
        self.watch = Watch()
        """What the next pass is to look out for."""
        self.rounds: Rounds[Census] = Rounds(self._pass, CENSUS_MS, self.attached_ms)
        self.counting: Iterator[None] | None = None
        """What is left of reading and telling the counters, a turn of the loop for each step."""
        self.questions = Questions()
        living = {name.decode(): table.map_fd for name, table in bpf.items()}
        self.tracing = Tracing(living, self.programs.compiled_with, cache_dir)
        living |= bpf_objects.rings
        self.capturing = Capturing(self.programs, living, cache_dir, bpf_dir / "capture")
        entering = self.programs.entering
        self.flows = (
            Flows(bpf_objects, self.tables, Entering(entering), self.settings.timeout)
            if entering is not None
            else None
        )
        """What replication and the NAT log need; None where there is neither."""
        self._resets = Resets()

    @property
    def xdp_in_pieces(self) -> bool:
        """Whether an XDP program of ours may meet a frame in pieces."""
        present, plan = self.machine, self.programs.plan
        mtus = [present.public.mtu, *([present.private.mtu] if plan.xdp_replies else [])]
        return max(mtus) > FRAGS_MTU

    def write_settings(self, settings: Settings) -> None:
        if settings != self.settings:
            self.kernel.write_settings(settings)
            self.settings = settings
            if self.flows is not None:
                self.flows.timeouts = settings.timeout

    # ------------------------------------------------------------------ the flow table

    @property
    def census(self) -> Census | None:
        return self.rounds.result

    @property
    def flow_capacity(self) -> int:
        """Flows that fit: half of the places are to be taken, and a flow takes two."""
        return self.tables.flows.places // 4

    @property
    def old_table_is_empty(self) -> bool:
        """No flow lives in the table before, since these programs were attached."""
        census = self.census
        return (
            self.programs.chained
            and census is not None
            and census.began_ms >= self.attached_ms + SETTLE_MS
            and census.old_records == 0
        )

    def bury(self, seats: frozenset[int], now_ms: int) -> None:
        """From now on, the flows of these seats and no others are dead: tell their clients."""
        if self._resets.bury(seats):
            self.rounds.urge(now_ms)

    def turn(self, now_ms: int) -> bool:
        """Some milliseconds of work on the flow table; whether a census has been finished."""
        is_counted = self.rounds.turn(now_ms)
        self._sender.turn(now_ms)
        self.capturing.turn(now_ms)
        return is_counted

    def next_ms(self, now_ms: int) -> int:
        """When there is more of it."""
        moments = [self.rounds.next_ms, now_ms if len(self.questions) else None]
        moments += [self._sender.next_ms(), self.tracing.next_ms(now_ms)]
        moments.append(self.capturing.next_ms(now_ms))
        return min(moment for moment in moments if moment is not None)

    def _pass(self) -> Generator[None, None, Census]:
        counting = Counting(monotonic_ms(), self.watch)
        held = self._held() if self._resets.is_needed else NOBODY_S
        for block in self.tables.blocks():
            is_old = block.table is self.tables.old_flows
            counting.add(block.records, old=is_old)
            if self._resets.is_needed and len(self._sender) < RESETS_WAITING:
                self._tell(block, is_old, held)
            yield
        return counting.result()

    def _held(self) -> NDArray[np.uint32]:
        """The VIPs that this LB holds now."""
        now_ns = monotonic_ms() * 1_000_000
        floating = self.kernel.floating().items()
        held = [text for text, each in floating if each.until_ns > now_ns and ":" not in text]
        return np.array([address_word(text) for text in held], np.uint32)

    def _tell(self, block: Block, is_old: bool, held: NDArray[np.uint32]) -> None:
        table, places = block.table.places, block.places
        found = self._resets.find(int(is_old), table, places, block.records, held)
        if len(found):
            self._sender.add(segments(found), found["last_hop"])

    def close(self) -> None:
        """Give back what is open. Programs and maps are the kernel's."""
        self.questions.give_up()
        self.tracing.close()
        self.capturing.close()
        if self.flows is not None:
            self.flows.close()
        self._sender.close()
        self.programs.close()


@contextmanager
def _reasons_of_the_machine() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        raise machine.NotReadyError(words_of(error)) from error


def _flow_table(table: Table) -> FlowTable:
    return FlowTable(table.map_fd, np.dtype(table.Leaf), table.info.max_entries)
