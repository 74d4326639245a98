"""The dataplane process: it tells the kernel where packets go, and then is not needed.

In: `state.table.`, `state.quorum.` and `vip.*` of quorum, `state.view.` of health (to mask at once
what is dead from here), netlink's notifications, the commands `flows`, `trace`, `plan`, `capture`
and `reload`, SIGHUP, SIGTERM, the clock. Out: map writes; `state.dataplane.` on change and every
500 ms, `state.counters.` every second, the events `dataplane.attached.`, `dataplane.degraded.`,
`vip.contested.`, `flow.*` and `process.started.`.

**Start.** The publisher's lock comes first (a second copy waits there). Then the interfaces: if
one is missing the process waits and says so. Then the programs (`programs` keeps the old ones
forwarding until the new ones are attached), and what the maps hold is adopted. Only a table changes
maps: until the quorum process has published one, the kernel goes on with what it has.

**Turn.** Drain all input, then plan once (`plan`, pure), then write. Planning is cheap when nothing
has changed, and its result is empty. What goes through the flow table, a census or a listing, does
a few milliseconds of it in each turn (`flows.turns`).

A service whose mode changes has its old one until its nodes are prepared (`mode_change`).

**Flows** are the kernel's own: it opens, follows and expires them by itself. This process only
reads their table, to count them, to show them, to see what of the past is still needed, and to tell
clients of dead nodes by a RST.

**Floating addresses** are claimed by the quorum process alone, in a map of the kernel's; this
process tells the neighbours of them (`announcing`).

**Failure.** Killed at any point: programs and maps stay, packets go on, and the next start adopts.
A map whose pin does not fit, a foreign program on an interface, a kernel or compiler that refuses:
said by name in `waiting_for` and in the log, and tried again, while what was attached before goes
on. Any other exception is a fault of ours: it ends the process and supervisord starts it again.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from secrets import randbits
from typing import Any

import structlog
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.attach import ForeignProgram, InterfaceMissing
from bpf.compiler import CompileError
from bpf.pins import PinMismatch
from bpf.syscall import VerifierError
from bus import topics
from bus.commands import (
    CommandError,
    Later,
)
from bus.events import (
    DataplaneEvent,
    VipEvent,
)
from bus.socket import monotonic_ms
from bus.states import (
    CommittedTable,
    Counters,
    DataplaneState,
    HookState,
    LocalView,
    NodeTable,
    QuorumState,
    SeatColumns,
    SeatState,
    states_apart,
)
from bus.topics import Topic
from bus.words import Mode
from conf import LbConfig, Paths, load_lb
from services import process
from services.dataplane import machine, outputs, seat_counts
from services.dataplane.announcing import Announcing
from services.dataplane.answering import Answering, Present, scene
from services.dataplane.flows.census import Census
from services.dataplane.flows.listing import Seated
from services.dataplane.forwarding import Forwarding
from services.dataplane.front_table import MOST_FRONTS
from services.dataplane.fronts import service_identity
from services.dataplane.kernel import MAX_SERVICES, Settings
from services.dataplane.maps import (
    EMPTY,
    NO_SEAT,
    KernelState,
    LocalFacts,
    ServiceRemoval,
    snat_ports,
)
from services.dataplane.mode_change import Waits, modes_in_force, modes_of_nodes
from services.dataplane.nat_log import NatLog
from services.dataplane.noting import Noting
from services.dataplane.plan import Plan, make_plan
from services.dataplane.programs import Compiling, ProgramPlan, rings_for
from services.dataplane.replication import Replication
from services.dataplane.settings import of_machine, settings
from services.dataplane.ways import Ways
from services.logs import words_of
from services.process import Bus, Loop

REPUBLISH_MS = 500
COUNT_MS = 1_000
COUNTED = object()
"""No step of counting is left."""
COUNTING_SHARE = 200
"""Counters are read by people alone: counting may cost half a hundredth of this process's time."""
RETRY_MS = 1_000
COMPILE_RETRY_MS = 10_000
SETTLE_MS = 1_000
UNCHAIN_RETRY_MS = 60_000
MOST_LEFT_OUT = 50
"""Lines of a state: whoever reads it wants to know what is wrong, not all of it."""
PROGRAM_CACHE = "programs"
NOT_READY = (
    machine.NotReadyError,
    InterfaceMissing,
    ForeignProgram,
    PinMismatch,
    NetlinkError,
)
"""Reasons of the machine, which may go."""
REFUSED = (CompileError, VerifierError)
"""Likewise, but trying costs a second of CPU time."""

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-dataplane`."""
    what = "Gale's dataplane process."
    process.launch("gale-dataplane", what, load_lb, lambda paths: paths.lb_config, _run)


def _run(paths: Paths, config: LbConfig) -> None:
    DataplaneProcess(paths, config).run()


class DataplaneProcess:
    """Sockets, clock, netlink and maps, and the loop that hands them to the plan."""

    def __init__(self, paths: Paths, config: LbConfig) -> None:
        self._paths = paths
        self._config = config
        self._started_with = config
        self._bus = Bus(paths.run_dir, topics.DATAPLANE, config.local.name)
        self._publisher, self._commands = self._bus.publisher, self._bus.commands
        self._subscriber = self._bus.subscriber
        self._netlink = IPRoute()
        self._ways = Ways(generic=config.dataplane.xdp == "generic")
        self._no_way_to_itself = ""
        self._forwarding: Forwarding | None = None
        self._waiting_for = ""
        self._table: NodeTable | None = None
        self._view: LocalView | None = None
        self._held: KernelState = EMPTY
        self._planned: Plan | None = None
        self._seat_states: tuple[SeatState, ...] = ()
        self._planned_epoch = self._snat_ports = 0
        self._names: dict[int, Seated] = {}
        """Whose seats are or were, as long as flows may name them."""
        self._left_out: frozenset[str] = frozenset()
        self._left_out_lines: tuple[str, ...] = ()
        self._mode_waits: Waits = {}
        self._modes_due_ms: int | None = None
        self._published: DataplaneState | None = None
        self._moved_slots = self._version = self._counts_version = 0
        self._stale = True
        now_ms = monotonic_ms()
        self._retry_ms = self._republish_ms = self._count_ms = self._settle_ms = now_ms
        self._counting_s = 0.0
        """CPU time that the counters took which are to be told next."""
        self._unchain_ms = self._grow_ms = now_ms
        self._compiling: Compiling | None = None
        self._compiling_for = 0
        """Rings that there will be room for, once it is done."""
        self._announcing = Announcing(config.local.name, now_ms)
        self._answering = Answering(self._present)
        self._loop = Loop()
        plan = ProgramPlan.from_config(config)
        self._replication = (
            Replication(self._bus.context, config, self._loop, now_ms) if plan.replicates else None
        )
        nat_log = NatLog(self._publisher.publish) if plan.logs_nat else None
        self._noting = (
            Noting(self._loop, self._replication, nat_log, now_ms) if plan.notes_flows else None
        )

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until SIGTERM."""
        self._loop.watch(*self._bus.sockets)
        self._ways.join(self._loop)
        self._start(monotonic_ms())
        self._bus.started(f"{len(self._held.seats)} seats" if self._held.seats else "")
        while not self._loop.signals.stopping:
            self._step(monotonic_ms())
            self._loop.wait(self._wait_ms(monotonic_ms()))
        _log.info("stopped, the programs go on", process=topics.DATAPLANE)
        self.close()

    def close(self) -> None:
        """Give back sockets and fds. Programs and maps are the kernel's."""
        if self._forwarding is not None:
            self._forwarding.close()
        self._announcing.close()
        if self._replication is not None:
            self._replication.close()
        self._netlink.close()
        self._ways.close()
        self._bus.close()

    def _step(self, now_ms: int) -> None:
        self._publisher.serve()
        self._commands.serve(self._command)
        if self._loop.signals.take_reload():
            self._reload()
        self._receive(now_ms)
        has_settled = self._forwarding is not None and self._settle(self._forwarding, now_ms)
        if self._forwarding is None and now_ms >= self._retry_ms:
            self._start(now_ms)
        if self._forwarding is not None and self._announcing.is_due(now_ms):
            self._announce(self._forwarding, now_ms)
        if self._forwarding is not None:
            self._plan(self._forwarding, now_ms)
            self._work(self._forwarding, now_ms)
        if self._noting is not None:
            self._noting.turn(now_ms)
        if self._forwarding is not None and not has_settled:  # milliseconds, each of them
            self._count(self._forwarding, now_ms)
        self._publish_state(now_ms)

    def _wait_ms(self, now_ms: int) -> int:
        moments = [self._republish_ms]
        if (due_ms := self._ways.next_ms(now_ms)) is not None:
            moments.append(due_ms)
        forwarding = self._forwarding
        if forwarding is None:
            moments.append(self._retry_ms)
        else:
            moments += [self._count_ms, self._settle_ms, forwarding.next_ms(now_ms)]
            moments.append(self._announcing.next_ms())
            if self._modes_due_ms is not None:
                moments.append(self._modes_due_ms)
            if self._stale and self._table is not None:
                moments.append(now_ms)
            if self._noting is not None:
                moments.append(self._noting.next_ms(now_ms))
        return max(0, min(moments) - now_ms)

    # ------------------------------------------------------------------ in

    def _receive(self, now_ms: int) -> None:
        for envelope in self._subscriber.receive():
            if isinstance(envelope.data, CommittedTable):
                self._stale |= envelope.data.table != self._table
                self._table = envelope.data.table
                if self._replication is not None:
                    self._replication.go_by(each.address for each in self._table.members)
            elif isinstance(envelope.data, LocalView):
                self._stale |= _states(envelope.data) != _states(self._view)
                self._view = envelope.data
            elif isinstance(envelope.data, QuorumState | VipEvent):
                self._announcing.heard(envelope.data, now_ms)
        self._stale |= self._ways.look(self._forwarding, now_ms)

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any] | Later:
        if verb == "reload":
            return self._reload()
        return self._answering.command(verb, arguments)

    def _present(self) -> Present:
        forwarding = self._forwarding
        if forwarding is None:
            raise CommandError(f"not forwarding yet: waiting for {self._waiting_for}")
        return Present(
            lb=self._started_with.local.name,
            forwarding=forwarding,
            table=self._table,
            view=self._view,
            held=self._held,
            names=self._names,
            next_hops=self._ways.hops,
            facts=self._facts(forwarding),
        )

    def _reload(self) -> dict[str, Any]:
        """Take the file's new content as a whole, or keep the old one as a whole."""
        config, answer = process.reload_lb(self._paths.lb_config, self._config)
        if config is not None:
            self._config = config
            self._stale = True
        return answer

    # ------------------------------------------------------------------ the kernel

    def _start(self, now_ms: int) -> None:
        """Attach if the machine is ready; otherwise say what is missing and try again later."""
        self._retry_ms = now_ms + RETRY_MS
        try:
            forwarding = self._attach()
        except NOT_READY as reason:
            self._wait_for(words_of(reason))
            return
        except REFUSED as reason:
            self._wait_for(str(reason))
            self._retry_ms = monotonic_ms() + COMPILE_RETRY_MS
            return
        self._forwarding = forwarding
        self._stale |= self._ways.look(forwarding, now_ms)
        self._describe_outputs(forwarding)
        self._waiting_for = ""
        self._held = forwarding.kernel.adopt()
        self._hand_over_flows(forwarding)
        self._write_machine(forwarding)
        addresses = frozenset(seat.address for seat in self._held.seats.values())
        self._ways.watch(addresses, forwarding, now_ms)
        for hook in forwarding.hooks:
            self._tell_of(hook)
        if forwarding.programs.taken_off:
            _log.info("taken off, wanted no longer", programs=forwarding.programs.taken_off)
        if forwarding.programs.migrated:
            _log.info("maps migrated to a new size", maps=forwarding.programs.migrated)
        if forwarding.programs.resize_waits:
            _log.warning("a new size waits", why=forwarding.programs.resize_waits)

    def _write_machine(self, forwarding: Forwarding) -> None:
        """What was set up goes on, with interfaces that may be others by now."""
        if forwarding.settings.public_ifindex:
            there = of_machine(forwarding.machine, self._ways.is_by_tc)
            forwarding.write_settings(replace(forwarding.settings, **there))

    @property
    def _most_services(self) -> int:
        return max(len(self._config.services), len(self._table.services) if self._table else 0)

    def _attach(self, *, old_table_is_empty: bool = False) -> Forwarding:
        """Raises one of NOT_READY or REFUSED; anything else is a fault of ours."""
        return Forwarding(
            ProgramPlan.from_config(self._started_with),
            self._paths.bpf_dir,
            self._paths.state_dir / PROGRAM_CACHE,
            self._netlink,
            services=self._most_services,
            old_table_is_empty=old_table_is_empty,
        )

    def _unchain(self, forwarding: Forwarding, now_ms: int) -> None:
        """The flow table before this one is empty: attach programs that know nothing of it."""
        self._unchain_ms = now_ms + UNCHAIN_RETRY_MS
        if self._succeed(forwarding, old_table_is_empty=True):
            _log.info("the flow table before this one was empty, and is gone")

    def _make_room(self, forwarding: Forwarding, table: NodeTable, now_ms: int) -> Forwarding:
        """More services than there is room for: attach programs over a larger map of rings, once
        they are compiled. Until then those that find no ring are left out.
        """
        rings = rings_for(len(table.services))
        if rings <= forwarding.kernel.max_rings:
            self._compiling = None
            return forwarding
        if now_ms < self._grow_ms:
            return forwarding
        if self._compiling_for != rings:
            self._compiling = forwarding.programs.compile_for(self._most_services)
            self._compiling_for = rings
        if self._compiling is not None and not self._compiling.is_done:
            return forwarding
        self._compiling = None
        self._grow_ms = now_ms + COMPILE_RETRY_MS
        if self._succeed(forwarding):
            _log.info("the map of rings has grown", services=len(table.services), rings=rings)
        return self._forwarding or forwarding

    def _succeed(self, forwarding: Forwarding, *, old_table_is_empty: bool = False) -> bool:
        """Attach programs of another size over the present ones, which go on until then."""
        forwarding.capturing.close()
        try:
            successor = self._attach(old_table_is_empty=old_table_is_empty)
        except (*NOT_READY, *REFUSED) as reason:
            _log.warning("programs of another size cannot be attached", why=reason)
            return False
        # What the maps hold is what it was; where services stand must be read.
        successor.kernel.adopt()
        self._hand_over_flows(successor)
        self._forwarding = successor
        self._stale = True
        forwarding.close()
        return True

    def _wait_for(self, what: str) -> None:
        if what != self._waiting_for:
            _log.warning("waiting; what was attached before goes on", waiting_for=what)
            event = DataplaneEvent("", "", "", what)
            self._publisher.publish(Topic.DATAPLANE_DEGRADED, event)
        self._waiting_for = what

    def _announce(self, forwarding: Forwarding, now_ms: int) -> None:
        """Floating addresses: what is due to be told of them, by frames and as events."""
        floating, keys = forwarding.kernel.floating(), self._config.quorum
        for topic, event in self._announcing.serve(floating, forwarding.machine, keys, now_ms):
            self._publisher.publish(topic, event)

    def _tell_of(self, hook: HookState) -> None:
        topic = Topic.DATAPLANE_ATTACHED if hook.attached else Topic.DATAPLANE_DEGRADED
        event = DataplaneEvent(hook.program, hook.interface, hook.flavour, hook.detail)
        self._publisher.publish(topic, event)
        _log.info(topic.value.rstrip("."), program=hook.program, interface=hook.interface)

    def _settle(self, forwarding: Forwarding, now_ms: int) -> bool:
        """Once a second: whether interfaces and hooks are still as they were. Whether it looked."""
        if now_ms < self._settle_ms:
            return False
        self._settle_ms = now_ms + SETTLE_MS
        held = forwarding.machine
        plan = forwarding.programs.plan
        try:
            forwarding.hooks = forwarding.programs.hooks()
            self._describe_outputs(forwarding)
            present = machine.look(self._netlink, plan.public, plan.private)
            addresses = machine.addresses()
        except (machine.NotReadyError, NetlinkError) as reason:
            self._wait_for(words_of(reason))
            return True
        lost = forwarding.programs.lost(forwarding.hooks)
        in_pieces, forwarding.machine = forwarding.xdp_in_pieces, present
        is_other = present.ifindexes != held.ifindexes or forwarding.xdp_in_pieces != in_pieces
        if is_other or lost:
            _log.warning("interfaces or hooks have changed, attaching again", lost=lost)
            if self._noting is not None:
                self._noting.detached()
            forwarding.close()
            self._forwarding = None
            self._stale = True
            self._retry_ms = now_ms
            return True
        if present != held:
            # Until now XDP took packets to a new MAC address for a stranger's: TC forwarded them.
            self._write_machine(forwarding)
            _log.info("interfaces have changed", public=present.public, private=present.private)
        self._stale |= present != held or addresses != forwarding.addresses
        forwarding.addresses = addresses
        self._waiting_for = ""
        return True

    def _describe_outputs(self, forwarding: Forwarding) -> None:
        present = forwarding.machine
        hops = outputs.devices_of(self._ways.hops)
        forwarding.outputs = outputs.states(
            forwarding.hooks,
            present.public.ifindex,
            hops or {present.private.ifindex},
            lambda ifindex: machine.device(self._netlink, ifindex),
            self._ways.features,
            self._ways.senders,
        )

    def _plan(self, forwarding: Forwarding, now_ms: int) -> None:
        """Bring the maps to what the table says; nothing to do if nothing has changed."""
        self._stale |= self._modes_due_ms is not None and now_ms >= self._modes_due_ms
        self._stale |= self._compiling is not None and self._compiling.is_done
        if self._table is None or not self._stale:
            return
        forwarding = self._make_room(forwarding, self._table, now_ms)
        table = self._in_force(self._table, now_ms)
        # A new node's way is known before its seat is written.
        addresses = frozenset(node.address for node in table.nodes)
        self._ways.watch_more(addresses, forwarding, now_ms)
        self._serve_itself(forwarding)
        hops, facts = self._ways.hops, self._facts(forwarding)
        plan = make_plan(self._held, table, self._view, hops, facts, forwarding.census, now_ms)
        self._held, without_place = forwarding.kernel.carry_out(plan)
        forwarding.write_settings(self._wanted_settings(forwarding, table))
        forwarding.watch = plan.watch
        forwarding.bury(plan.reset_seats, now_ms)
        self._ways.watch(plan.addresses, forwarding, now_ms)
        self._seat_states = plan.states()
        self._name_seats(plan)
        if self._noting is not None:
            self._noting.name(plan.after.seats, self._names)
        self._tell_left_out(frozenset((*plan.refused, *without_place)))
        self._moved_slots += plan.moved_slots
        self._snat_ports = snat_ports(self._held)
        self._planned, self._planned_epoch = plan, table.epoch
        # Watching may have brought news of a next hop that the plan did not know; and what found no
        # place finds one where another service went.
        self._stale = any(hops.get(address) != hop for address, hop in self._ways.hops.items())
        if without_place:
            self._stale |= any(isinstance(write, ServiceRemoval) for write in plan.writes)

    def _serve_itself(self, forwarding: Forwarding) -> None:
        """Before this machine has a seat as a node, what takes its answers is on its hook."""
        is_node = any(hop is not None and hop.own for hop in self._ways.hops.values())
        try:
            forwarding.programs.serve_itself(is_node)
        except NOT_READY as reason:
            self._no_way_to_itself = (
                f"this machine is the node, and cannot answer: {words_of(reason)}"
            )
        else:
            self._no_way_to_itself = ""

    def _in_force(self, table: NodeTable, now_ms: int) -> NodeTable:
        """The table with the modes that its services are to have now (`mode_change`)."""
        wanted = {service.name: service.mode for service in table.services}
        held = {
            value.identity: value.mode
            for value in self._held.services.values()
            if not value.retired
        }
        identities = {name: service_identity(name) for name in wanted}
        in_force = {name: held[number] for name, number in identities.items() if number in held}
        prepared = modes_of_nodes(table, self._view)
        chosen = modes_in_force(wanted, in_force, prepared, self._mode_waits, now_ms)
        self._mode_waits, self._modes_due_ms = chosen.since_ms, chosen.next_ms
        if chosen.modes == wanted:
            return table
        services = (replace(each, mode=chosen.modes[each.name]) for each in table.services)
        return replace(table, services=tuple(services))

    def _name_seats(self, plan: Plan) -> None:
        kept = {seat: name for seat, name in self._names.items() if seat in plan.after.seats}
        self._names = kept | {seat.seat: Seated(seat.node, seat.service) for seat in self._seated}

    @property
    def _seated(self) -> list[SeatState]:
        return [seat for seat in self._seat_states if seat.seat != NO_SEAT]

    def _tell_left_out(self, left_out: frozenset[str]) -> None:
        for what in sorted(left_out - self._left_out):
            _log.error("left out", what=what)
        if left_out != self._left_out:
            lines, more = sorted(left_out), len(left_out) - MOST_LEFT_OUT
            rest = [f"and {more} more, which the log names"] if more > 0 else []
            self._left_out_lines = (*lines[:MOST_LEFT_OUT], *rest)
        self._left_out = left_out

    def _facts(self, forwarding: Forwarding) -> LocalFacts:
        return LocalFacts(
            lb=self._started_with.local.name,
            public_address=forwarding.machine.public.address,
            private_address=forwarding.machine.private.address,
            own_addresses=forwarding.addresses.own,
            broadcasts=forwarding.addresses.broadcasts,
            no_way_to_itself=self._no_way_to_itself,
            max_seats=forwarding.kernel.max_seats,
            max_services=MAX_SERVICES,
            max_rings=forwarding.kernel.max_rings,
            max_fronts=MOST_FRONTS,
            max_endpoints=forwarding.kernel.max_endpoints,
        )

    def _wanted_settings(self, forwarding: Forwarding, table: NodeTable) -> Settings:
        """Written last, so that the programs' first packet finds services and rings complete."""
        return settings(
            self._config,
            forwarding.machine,
            table.hash_seed,
            forwarding.settings.flow_seed or randbits(64) or 1,
            chained=forwarding.programs.chained,
            states=len(forwarding.settings.timeout),
            by_tc=self._ways.is_by_tc,
            notes=self._noting is not None,
        )

    # ------------------------------------------------------------------ who reads the notes

    def _hand_over_flows(self, forwarding: Forwarding) -> None:
        """Other programs may be attached by now, over other maps."""
        if self._noting is not None and forwarding.flows is not None:
            self._noting.attached(forwarding.flows)
            self._noting.name(self._held.seats, self._names)

    # ------------------------------------------------------------------ housekeeping

    def _work(self, forwarding: Forwarding, now_ms: int) -> None:
        """A few milliseconds' work on the flow table, for whoever waits for some."""
        if forwarding.turn(now_ms):
            self._stale |= self._planned is not None and self._planned.can_free(forwarding.census)
        answered = forwarding.questions.turn()
        if forwarding.tracing.is_asked:
            answered |= forwarding.tracing.turn(scene(self._present()))
        if answered:
            self._commands.serve(self._command)
        if forwarding.old_table_is_empty and now_ms >= self._unchain_ms:
            self._unchain(forwarding, now_ms)

    def _count(self, forwarding: Forwarding, now_ms: int) -> None:
        """Once a second, from the first census on, a step a turn."""
        if now_ms < self._count_ms or forwarding.census is None:
            return
        begun_s = time.thread_time()
        if forwarding.counting is None:
            forwarding.counting = self._counted(forwarding, forwarding.census)
        is_over = next(forwarding.counting, COUNTED) is COUNTED
        self._counting_s += time.thread_time() - begun_s
        if is_over:
            forwarding.counting = None
            cost_ms, self._counting_s = int(1_000 * self._counting_s), 0.0
            self._count_ms = now_ms + max(COUNT_MS, COUNTING_SHARE * cost_ms)

    def _counted(self, forwarding: Forwarding, census: Census) -> Iterator[None]:
        """Where there are ten thousand seats each of these steps takes milliseconds."""
        seats = self._seated
        cursors = [self._held.seats[seat.seat].cursor for seat in seats]
        reading = yield from seat_counts.read(forwarding.counters, seats, cursors)
        yield
        columns = seat_counts.columns(reading, census.flows_of)
        yield
        self._tell_counts(forwarding, census, columns)

    def _tell_counts(self, forwarding: Forwarding, census: Census, columns: SeatColumns) -> None:
        self._counts_version += 1
        self._publisher.publish(
            Topic.STATE_COUNTERS,
            Counters(
                version=self._counts_version,
                seats=columns,
                verdicts=forwarding.counters.verdicts(),
                conntrack_established=census.established,
                conntrack_half_open=census.half_open,
                conntrack_capacity=forwarding.flow_capacity,
                snat_ports_used=census.snat_ports,
                snat_ports_capacity=self._snat_ports,
                census_ms=forwarding.rounds.cpu_ms,
                **self._replication_counters(monotonic_ms()),
            ),
        )

    def _replication_counters(self, now_ms: int) -> dict[str, Any]:
        replication = self._replication
        if replication is None:
            return {}
        return {
            "replication_lag_seconds": replication.lag_ms(now_ms) / 1_000,
            "replication": dict(replication.counts),
        }

    def _publish_state(self, now_ms: int) -> None:
        forwarding, table = self._forwarding, self._table
        ready = forwarding is not None and self._planned is not None and not self._waiting_for
        state = DataplaneState(
            version=self._version,
            ready=ready,
            epoch=self._planned_epoch,
            mode=Mode(self._config.local.mode),
            hooks=forwarding.hooks if forwarding is not None else (),
            seats=self._seat_states,
            services=tuple(service.name for service in table.services) if table else (),
            moved_slots_total=self._moved_slots,
            waiting_for=self._waiting_for,
            outputs=forwarding.outputs if forwarding is not None else (),
            left_out=self._left_out_lines,
            claims=self._announcing.states,
            synced=self._replication is None or self._replication.is_synced,
            replicas=self._replication.peers() if self._replication is not None else (),
        )
        if state != self._published:
            self._version += 1
            self._published = replace(state, version=self._version)
            self._publisher.publish(Topic.STATE_DATAPLANE, self._published)
        elif now_ms >= self._republish_ms:
            self._publisher.repeat(Topic.STATE_DATAPLANE)
        else:
            return
        self._republish_ms = now_ms + REPUBLISH_MS


def _states(view: LocalView | None) -> dict[str, Any]:
    """What of a view the plan depends on: beats that change nothing must cost nothing."""
    nodes = () if view is None else view.nodes
    return {node.id: (node.state, node.silent, node.services, states_apart(node)) for node in nodes}


if __name__ == "__main__":
    main()
