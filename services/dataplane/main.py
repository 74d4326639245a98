"""The dataplane process: it tells the kernel where packets go, and then is not needed.

In: `state.table.` of quorum, `state.view.` of health (to mask at once what is dead from here),
netlink's notifications, the commands `flows` and `reload`, SIGHUP, SIGTERM, the clock. Out: map
writes; `state.dataplane.` on change and every 500 ms, `state.counters.` every second, the events
`dataplane.attached.`, `dataplane.degraded.` and `process.started.`.

**Start.** The publisher's lock comes first (a second copy waits there). Then the interfaces: if
one is missing the process waits and says so. Then the programs (`programs` keeps the old ones
forwarding until the new ones are attached), and what the maps hold is adopted. Only a table changes
maps: until the quorum process has published one, the kernel goes on with what it has.

**Turn.** Drain all input, then plan once (`plan`, pure), then write. Planning is cheap when nothing
has changed, and its result is empty.

**Failure.** Killed at any point: programs and maps stay, packets go on, and the next start adopts.
A map whose pin does not fit, a foreign program on an interface, a kernel or compiler that refuses:
said by name in `waiting_for` and in the log, and tried again, while what was attached before goes
on. Any other exception is a fault of ours: it ends the process and supervisord starts it again.
"""

from __future__ import annotations

import argparse
import errno
import os
import signal
import socket
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from typing import Any

import structlog
import zmq
from pyroute2 import IPRoute
from pyroute2.netlink.exceptions import NetlinkError

from bpf.attach import ForeignProgram, InterfaceMissing
from bpf.compiler import CompileError
from bpf.pins import PinMismatch
from bpf.syscall import VerifierError, possible_cpus
from bus import topology
from bus.messages import (
    CommittedTable,
    Counters,
    DataplaneEvent,
    DataplaneState,
    HookState,
    LocalView,
    Mode,
    NodeTable,
    ProcessEvent,
    SeatCounters,
    SeatState,
    Topic,
)
from bus.socket import CommandError, CommandServer, Publisher, Subscriber
from conf import ConfigError, LbConfig, Paths, load_lb
from services import logs
from services.dataplane import conntrack, counters, machine
from services.dataplane.kernel import Kernel, NoPlaceError, Settings, address_word
from services.dataplane.netlink import NextHopMonitor
from services.dataplane.nexthop import LONGEST_PACKET_BYTES, NextHop
from services.dataplane.plan import EMPTY, Facts, KernelState, Plan, make_plan
from services.dataplane.programs import ProgramPlan, Programs

REPUBLISH_MS = 500
COUNT_MS = 1_000
RETRY_MS = 1_000
COMPILE_RETRY_MS = 10_000
SETTLE_MS = 1_000
FLOWS_LISTED, MOST_FLOWS_LISTED = 100, 10_000
PROGRAM_CACHE = "programs"
CONFIG_NEEDING_RESTART = (
    "local.name",
    "local.net_interface_public",
    "local.net_interface_private",
    "dataplane.reply_hook",
    "dataplane.xdp",
    "dataplane.conntrack_entries",
    "dataplane.half_open_entries",
)
"""What decides how the programs are built and where they go; all else is applied at once."""
NOT_READY = (
    machine.NotReadyError,
    InterfaceMissing,
    ForeignProgram,
    PinMismatch,
    NetlinkError,
)
"""Reasons of the machine, which may go."""
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
    )
)
"""Likewise, of what attaching the programs may say: no privilege, no BPF file system, no memory,
... Everything else, and everything after attaching, is a fault of ours: it ends the process."""
REFUSED = (CompileError, VerifierError)
"""Likewise, but trying costs a second of CPU time."""

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-dataplane`."""
    description = "Gale's dataplane process."
    argparse.ArgumentParser(prog="gale-dataplane", description=description).parse_args()
    logs.set_up()
    paths = Paths.from_environment()
    try:
        config = load_lb(paths.lb_config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(2)
    DataplaneProcess(paths, config).run()


class Forwarding:
    """The programs on their hooks and the maps behind them: there once the machine is ready."""

    def __init__(self, plan: ProgramPlan, paths: Paths, netlink: IPRoute) -> None:
        self.machine = machine.look(netlink, plan.public, plan.private)
        self.programs, self.hooks = _attached(plan, paths, netlink, self.machine)
        """The programs, and their hooks as they were last seen."""
        try:
            self._open()
        except BaseException:
            self.programs.close()
            raise

    def _open(self) -> None:
        bpf = self.programs.objects.bpf
        self.kernel = Kernel(bpf)
        self.settings = self.kernel.read_settings()
        self.counters = counters.Counters(bpf, possible_cpus())
        self.established = conntrack.Table(bpf[b"est"])
        self.half_open = conntrack.Table(bpf[b"half"])
        now_ms = _monotonic_ms()
        self.half_open_sweeper = conntrack.Sweeper(
            partial(conntrack.sweep_half, self.half_open), conntrack.SWEEP_HALF_MS, now_ms
        )
        self.established_sweeper = conntrack.Sweeper(
            partial(conntrack.sweep_established, self.established),
            conntrack.SWEEP_ESTABLISHED_MS,
            now_ms,
        )

    def write_settings(self, settings: Settings) -> None:
        if settings != self.settings:
            self.kernel.write_settings(settings)
            self.settings = settings


def _attached(
    plan: ProgramPlan, paths: Paths, netlink: IPRoute, present: machine.Machine
) -> tuple[Programs, tuple[HookState, ...]]:
    """The programs on their hooks; raises one of `NOT_READY` or `REFUSED`, or a fault of ours."""
    try:
        programs = Programs(plan, paths.bpf_dir, paths.state_dir / PROGRAM_CACHE, netlink)
        try:
            return programs, programs.attach(present)
        except BaseException:
            programs.close()
            raise
    except OSError as error:
        if error.errno not in OF_THE_MACHINE:
            raise
        raise machine.NotReadyError(str(error)) from error


class DataplaneProcess:
    """Sockets, clock, netlink and maps, and the loop that hands them to the plan."""

    def __init__(self, paths: Paths, config: LbConfig) -> None:
        self._paths = paths
        self._config = config
        self._started_with = config
        self._context: zmq.Context[Any] = zmq.Context()
        path = topology.publisher_path(paths.run_dir, topology.DATAPLANE)
        self._publisher = Publisher(self._context, path, topology.DATAPLANE, config.local.name)
        self._commands = CommandServer(
            self._context, topology.command_path(paths.run_dir, topology.DATAPLANE)
        )
        wanted = topology.SUBSCRIBES[topology.DATAPLANE]
        self._subscriber = Subscriber(self._context, paths.run_dir, wanted)
        self._netlink = IPRoute()
        self._monitor = NextHopMonitor()
        self._next_hops: Mapping[str, NextHop | None] = {}
        self._watched: frozenset[str] = frozenset()
        self._forwarding: Forwarding | None = None
        self._waiting_for = ""
        self._table: NodeTable | None = None
        self._view: LocalView | None = None
        self._held: KernelState = EMPTY
        self._planned: Plan | None = None
        self._planned_epoch = 0
        self._published: DataplaneState | None = None
        self._moved_slots = self._version = self._counts_version = 0
        self._stale = True
        now_ms = _monotonic_ms()
        self._retry_ms = self._republish_ms = self._count_ms = self._settle_ms = now_ms
        self._stopping = self._reload_wanted = False

    # ------------------------------------------------------------------ the loop

    def run(self) -> None:
        """Until SIGTERM."""
        wake = self._install_signals()
        poller = zmq.Poller()
        for polled in (self._publisher.poll_socket, self._commands.socket, self._subscriber.socket):
            poller.register(polled, zmq.POLLIN)
        for descriptor in (wake.fileno(), self._monitor.fileno()):
            poller.register(descriptor, zmq.POLLIN)
        self._start(_monotonic_ms())
        adopted = f"{len(self._held.seats)} seats" if self._held.seats else ""
        started = ProcessEvent(topology.DATAPLANE, os.getpid(), version("gale"), adopted)
        self._publisher.publish(Topic.PROCESS_STARTED, started)
        while not self._stopping:
            self._step(_monotonic_ms())
            if wake.fileno() in dict(poller.poll(self._wait_ms(_monotonic_ms()))):
                wake.recv(4096)
        _log.info("stopped, the programs go on", process=topology.DATAPLANE)
        self.close()

    def close(self) -> None:
        """Give back sockets and fds. Programs and maps are the kernel's."""
        if self._forwarding is not None:
            self._forwarding.programs.close()
        for owned in (self._publisher, self._commands, self._subscriber, self._netlink):
            owned.close()
        self._context.term()

    def _step(self, now_ms: int) -> None:
        self._publisher.serve()
        self._commands.serve(self._command)
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload()
        self._receive(now_ms)
        if self._forwarding is not None:
            self._settle(self._forwarding, now_ms)
        if self._forwarding is None and now_ms >= self._retry_ms:
            self._start(now_ms)
        if self._forwarding is not None:
            self._plan(self._forwarding, now_ms)
            self._sweep(self._forwarding, now_ms)
            self._count(self._forwarding, now_ms)
        self._publish_state(now_ms)

    def _wait_ms(self, now_ms: int) -> int:
        moments = [self._republish_ms]
        if (due_ms := self._monitor.next_ms(now_ms)) is not None:
            moments.append(due_ms)
        forwarding = self._forwarding
        if forwarding is None:
            moments.append(self._retry_ms)
        else:
            sweepers = (forwarding.half_open_sweeper, forwarding.established_sweeper)
            moments += [self._count_ms, self._settle_ms, *(each.next_ms for each in sweepers)]
            if (due_ms := self._quarantine_ends_ms) is not None:
                moments.append(due_ms)
            if self._stale and self._table is not None:
                moments.append(now_ms)
        return max(0, min(moments) - now_ms)

    def _install_signals(self) -> socket.socket:
        reading, writing = socket.socketpair()
        reading.setblocking(False)
        writing.setblocking(False)
        signal.set_wakeup_fd(writing.fileno(), warn_on_full_buffer=False)
        self._waker = writing
        signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_stopping", True))
        signal.signal(signal.SIGINT, lambda *_: setattr(self, "_stopping", True))
        signal.signal(signal.SIGHUP, lambda *_: setattr(self, "_reload_wanted", True))
        return reading

    # ------------------------------------------------------------------ in

    def _receive(self, now_ms: int) -> None:
        for envelope in self._subscriber.receive():
            if isinstance(envelope.data, CommittedTable):
                self._stale |= envelope.data.table != self._table
                self._table = envelope.data.table
            elif isinstance(envelope.data, LocalView):
                self._stale |= _states(envelope.data) != _states(self._view)
                self._view = envelope.data
        next_hops = self._monitor.serve(now_ms)
        self._stale |= next_hops != self._next_hops
        self._next_hops = next_hops

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        match verb:
            case "flows":
                return self._list_flows(arguments)
            case "reload":
                return self._reload()
            case _:
                raise CommandError(f"the dataplane knows no command {verb!r}")

    def _list_flows(self, arguments: dict[str, Any]) -> dict[str, Any]:
        if self._forwarding is None:
            raise CommandError(f"not forwarding yet: waiting for {self._waiting_for}")
        node, service = arguments.get("node"), arguments.get("service")
        limit = arguments.get("limit") or FLOWS_LISTED
        if not isinstance(limit, int) or limit < 1:
            raise CommandError(f"limit: {limit!r} is not a number of flows")
        limit = min(limit, MOST_FLOWS_LISTED)
        names = {seat.seat: seat for seat in self._seat_states}
        wanted = None
        if node or service:
            wanted = frozenset(
                number
                for number, seat in names.items()
                if node in (None, "", seat.node) and service in (None, "", seat.service)
            )
        flows, total = conntrack.list_flows(
            self._forwarding.established, time.monotonic_ns(), wanted, limit
        )
        rows = [conntrack.as_row(flow, names.get(flow.seat)) for flow in flows]
        return {"flows": rows, "total": total}

    def _reload(self) -> dict[str, Any]:
        """Take the file's new content as a whole, or keep the old one as a whole."""
        try:
            config = load_lb(self._paths.lb_config)
        except ConfigError as error:
            problems = [str(problem) for problem in error.problems]
            for problem in problems:
                _log.error("configuration refused, the old one stays", problem=problem)
            return {"applied": False, "problems": problems, "restart_needed": []}
        needed = _restart_needed(self._started_with, config)
        self._config = config
        self._stale = True
        _log.info("configuration applied", restart_needed=needed)
        return {"applied": True, "problems": [], "restart_needed": needed}

    # ------------------------------------------------------------------ the kernel

    def _start(self, now_ms: int) -> None:
        """Attach if the machine is ready; otherwise say what is missing and try again later."""
        self._retry_ms = now_ms + RETRY_MS
        try:
            plan = ProgramPlan.from_config(self._started_with)
            forwarding = Forwarding(plan, self._paths, self._netlink)
        except NOT_READY as reason:
            self._wait_for(str(reason))
            return
        except REFUSED as reason:
            self._wait_for(str(reason))
            self._retry_ms = _monotonic_ms() + COMPILE_RETRY_MS
            return
        self._forwarding = forwarding
        self._waiting_for = ""
        self._held = forwarding.kernel.adopt()
        if forwarding.settings.public_ifindex:
            # What was set up goes on, with interfaces that may have other numbers by now.
            there = _interfaces(forwarding.machine)
            forwarding.write_settings(replace(forwarding.settings, **there))
        self._watch(frozenset(seat.address for seat in self._held.seats.values()), now_ms)
        for hook in forwarding.hooks:
            self._announce(hook)
        if forwarding.programs.migrated:
            _log.info("maps migrated to a new size", maps=forwarding.programs.migrated)

    def _wait_for(self, what: str) -> None:
        if what != self._waiting_for:
            _log.warning("waiting; what was attached before goes on", waiting_for=what)
            event = DataplaneEvent("", "", "", what)
            self._publisher.publish(Topic.DATAPLANE_DEGRADED, event)
        self._waiting_for = what

    def _announce(self, hook: HookState) -> None:
        topic = Topic.DATAPLANE_ATTACHED if hook.attached else Topic.DATAPLANE_DEGRADED
        event = DataplaneEvent(hook.program, hook.interface, hook.flavour, hook.detail)
        self._publisher.publish(topic, event)
        _log.info(topic.value.rstrip("."), program=hook.program, interface=hook.interface)

    def _settle(self, forwarding: Forwarding, now_ms: int) -> None:
        """Once a second: whether interfaces and hooks are still as they were."""
        if now_ms < self._settle_ms:
            return
        self._settle_ms = now_ms + SETTLE_MS
        plan = forwarding.programs.plan
        try:
            forwarding.hooks = forwarding.programs.hooks()
            present = machine.look(self._netlink, plan.public, plan.private)
        except (machine.NotReadyError, NetlinkError) as reason:
            self._wait_for(str(reason))
            return
        lost = forwarding.programs.lost(forwarding.hooks)
        if present != forwarding.machine or lost:
            _log.warning("interfaces or hooks have changed, attaching again", lost=lost)
            forwarding.programs.close()
            self._forwarding = None
            self._stale = True
            self._retry_ms = now_ms
            return
        self._waiting_for = ""

    def _plan(self, forwarding: Forwarding, now_ms: int) -> None:
        """Bring the maps to what the table says; nothing to do if nothing has changed."""
        due_ms = self._quarantine_ends_ms
        self._stale |= due_ms is not None and now_ms >= due_ms
        if self._table is None or not self._stale:
            return
        # A new node's way is known before its seat is written.
        self._watch(self._watched | {node.address for node in self._table.nodes}, now_ms)
        hops, facts = self._next_hops, self._facts(forwarding)
        plan = make_plan(self._held, self._table, self._view, hops, facts, now_ms)
        for write in plan.writes:
            try:
                forwarding.kernel.apply(write)
            except NoPlaceError as reason:
                _log.error("left out", what=str(reason))
        self._held = plan.after
        forwarding.write_settings(self._wanted_settings(forwarding.machine, self._table))
        self._watch(plan.addresses, now_ms)
        for refused in plan.refused:
            _log.error("left out", what=refused)
        self._moved_slots += plan.moved_slots
        self._planned, self._planned_epoch = plan, self._table.epoch
        # Watching may have brought news of a next hop that the plan did not know.
        self._stale = any(hops.get(address) != hop for address, hop in self._next_hops.items())

    def _watch(self, addresses: frozenset[str], now_ms: int) -> None:
        if addresses != self._watched:
            self._watched = addresses
            self._monitor.watch(addresses)
            self._next_hops = self._monitor.serve(now_ms)

    @property
    def _quarantine_ends_ms(self) -> int | None:
        return None if self._planned is None else self._planned.next_ms

    def _facts(self, forwarding: Forwarding) -> Facts:
        return Facts(
            lb=self._started_with.local.name,
            public_address=forwarding.machine.public.address,
            private_address=forwarding.machine.private.address,
            quarantine_ms=conntrack.LONGEST_TIMEOUT_MS,
            max_seats=forwarding.kernel.max_seats,
            max_services=forwarding.kernel.max_services,
        )

    def _wanted_settings(self, present: machine.Machine, table: NodeTable) -> Settings:
        """Written last, so that the programs' first packet finds services and rings complete."""
        limits = self._config.dataplane
        return Settings(
            hash_seed=table.hash_seed,
            l4_services=sum(service.mode is Mode.L4 for service in table.services),
            cpus=possible_cpus(),
            outer_prefix=address_word((limits.outer_source_prefix or "").removesuffix("/16")),
            new_flows_per_second=limits.new_flows_per_second,
            new_flows_per_second_per_source=limits.new_flows_per_second_per_source,
            **_interfaces(present),
        )

    # ------------------------------------------------------------------ housekeeping

    def _sweep(self, forwarding: Forwarding, now_ms: int) -> None:
        forwarding.half_open_sweeper.turn(now_ms)
        forwarding.established_sweeper.turn(now_ms)

    def _count(self, forwarding: Forwarding, now_ms: int) -> None:
        if now_ms < self._count_ms:
            return
        self._count_ms = now_ms + COUNT_MS
        self._counts_version += 1
        # Seats are given from the lowest number on.
        sums = forwarding.counters.seats(max((s.seat for s in self._seat_states), default=0) + 1)
        fields = ("packets_in", "bytes_in", "packets_out", "bytes_out", "flows")
        seats = tuple(
            SeatCounters(seat.service, seat.node, *(int(sums[name][seat.seat]) for name in fields))
            for seat in self._seat_states
        )
        services = self._held.services.values()
        established = forwarding.established_sweeper.result.entries
        half_open = forwarding.half_open_sweeper.result.entries
        slices = {(s.snat_address, s.snat_first_port): s.snat_ports for s in services}
        self._publisher.publish(
            Topic.STATE_COUNTERS,
            Counters(
                version=self._counts_version,
                seats=seats,
                verdicts=forwarding.counters.verdicts(),
                conntrack_established=established,
                conntrack_half_open=half_open,
                # A flow has two entries.
                conntrack_capacity=forwarding.established.capacity // 2,
                snat_ports_used=established + half_open,
                snat_ports_capacity=sum(slices.values()) * max(1, len(self._seat_states)),
                sweep_ms=forwarding.established_sweeper.cpu_ms,
            ),
        )

    @property
    def _seat_states(self) -> tuple[SeatState, ...]:
        return self._planned.seats if self._planned is not None else ()

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
        )
        if state == self._published and now_ms < self._republish_ms:
            return
        self._version += 1
        self._published = replace(state, version=self._version)
        self._republish_ms = now_ms + REPUBLISH_MS
        self._publisher.publish(Topic.STATE_DATAPLANE, self._published)


def _interfaces(present: machine.Machine) -> dict[str, Any]:
    """What of the settings is the machine's."""
    return {
        "public_ifindex": present.public.ifindex,
        "private_ifindex": present.private.ifindex,
        "public_mac": present.public.mac,
        "public_mtu": min(present.public.mtu, LONGEST_PACKET_BYTES),
    }


def _states(view: LocalView | None) -> dict[str, Any]:
    """What of a view the plan depends on: beats that change nothing must cost nothing."""
    return {} if view is None else {node.id: node.state for node in view.nodes}


def _restart_needed(old: LbConfig, new: LbConfig) -> list[str]:
    def value(config: LbConfig, key: str) -> Any:
        found: Any = config
        for part in key.split("."):
            found = getattr(found, part)
        return found

    return [key for key in CONFIG_NEEDING_RESTART if value(old, key) != value(new, key)]


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000


if __name__ == "__main__":
    main()
