"""The flow table of the programs under test, as the benchmarks need it: filled, emptied, counted.

With flows.c this is all in the benchmarks that knows what the table looks like. Whatever is done
to a single flow is done by a program there, run once for each flow behind wrapper.c: what a flow's
entry holds then follows from the same headers as in the programs under test.
"""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Literal

import numpy as np

from bpf.loader import LoadedObject
from bpf.syscall import write_entries
from conf.lb import Dataplane
from e2e.bench.generator import ACK, IN_TURN, Generator, Replies, tcp_frame
from e2e.bench.tables import FIRST_SEAT, Clients, Seat, Service, Tables
from e2e.bench.wrapper import Wrapper
from services.dataplane.programs import ProgramPlan
from services.dataplane.words import address_word

SOURCE = Path(__file__).with_name("flows.c")
DEFAULT_FLOWS = 1 << 17
"""What the table has room for, with as much again to spare, unless it is made larger."""
HALF_OPEN_FLOWS = 1 << 17
"""So many unanswered SYNs fill their share of a table that is no larger."""
NEW_FLOWS_AT_ONCE = HALF_OPEN_FLOWS // 8
"""So few that their share never gets near to full."""
REFUSED_AT_MOST = 0.001
"""The part of all flows that may find their bucket full."""
_BUCKETS_AT_ONCE = 1 << 12
_MACS = "02:00:00:00:00:0a", "02:00:00:00:00:0b"


def table_sizes(flows: int) -> dict[str, str | int]:
    """-D for the programs: two entries a flow and half as much again, or what users get."""
    return sized(max(3 * flows, Dataplane().conntrack_entries))


def sized(entries: int) -> dict[str, str | int]:
    """-D for the programs of a user with so many `conntrack_entries`."""
    share = Dataplane().conntrack_entries // Dataplane().half_open_entries
    plan = ProgramPlan(
        public="public",
        private="private",
        generic_xdp=False,
        xdp_replies=False,
        conntrack_entries=entries,
        half_open_entries=entries // share,
    )
    return plan.defines


class FlowTable:
    """The established flows of the first service, dealt to its nodes in turn.

    `loaded` is flows.c, over the maps of the programs under test. Flow i is the client's i, goes to
    node i % nodes and has SNAT port i / nodes from `first_snat_port` on. They are entered in this
    order, not in that of the packets: else neighbours in time could be neighbours in memory.
    """

    def __init__(
        self,
        loaded: LoadedObject,
        wrapper: Wrapper,
        service: Service,
        seats: list[Seat],
        clients: Clients,
        flows: int,
        first_snat_port: int,
    ) -> None:
        self._loaded, self._wrapper, self._flows = loaded, wrapper, flows
        self._tables = Tables(loaded)
        self.replies = Replies(seats[0].address, len(seats), first_snat_port)
        frame = tcp_frame(ACK, *_MACS, service.vip, service.port)
        self.requests = Generator(wrapper.loaded, frame, clients, flows)
        self._in_turn = Generator(wrapper.loaded, frame, clients, flows, stride=IN_TURN)
        record = self._tables.values("fillings", 1)
        record["first_client"] = int.from_bytes(socket.inet_aton(clients.first_client))
        record["first_port"] = clients.first_port
        record["snat_address"] = address_word(service.snat_address)
        record["first_snat_port"] = first_snat_port
        record["first_seat"] = FIRST_SEAT
        record["nodes"] = len(seats)
        self._tables.write("fillings", np.zeros(1, np.int32), record)

    def fill(self) -> int:
        """Enter all flows; how many stand then.

        Some may find no place, since their bucket is full of others. Raises RuntimeError if those
        are more than one of a thousand.
        """
        self._for_each("bench_fill", self._in_turn, self._flows)
        standing = self.standing()
        if standing < self._flows * (1 - REFUSED_AT_MOST):
            raise RuntimeError(f"only {standing} of {self._flows} flows could be entered")
        return standing

    def standing(self) -> int:
        """How many of them are established, with both directions."""
        before = self._counted()
        self._for_each("bench_count", self._in_turn, self._flows)
        return self._counted() - before

    def mark(self, touch: Literal["not due", "due"], flows: int) -> None:
        """Have the next so many flows due for a touch, or for an hour not."""
        program = "bench_refresh" if touch == "not due" else "bench_age"
        self._for_each(program, self.requests, flows)

    def forget(self) -> None:
        """Make it the empty table that it was at first."""
        table = self._loaded.bpf[b"flows"]
        for first in range(0, table.info.max_entries, _BUCKETS_AT_ONCE):
            numbers = np.arange(first, min(first + _BUCKETS_AT_ONCE, table.info.max_entries))
            empty = bytes(table.info.value_size * len(numbers))
            write_entries(table.map_fd, numbers.astype(np.uint32).tobytes(), empty)

    def _for_each(self, program: str, generator: Generator, flows: int) -> None:
        self._wrapper.run("xdp", self._loaded.function(program, "xdp"), generator, flows)

    def _counted(self) -> int:
        fillings = self._loaded.bpf[b"fillings"]
        return int(fillings[fillings.Key(0)].counted)
