"""The quorum process: the shell around `core`.

In: `state.view.` of health, the command `reload`, SIGHUP, SIGTERM, the clock. Out: `state.table.`
and `state.quorum.` on every change and every 500 ms (the latter before half of the lease it tells
of is over, so that a reader who subtracts its age finds one left), the events `quorum.leader.`,
`table.committed.` and `process.started.`, and the state file.

It starts by taking the publisher's lock (a second copy waits there), and only then reads the state
file, since the copy before may have written it until its last moment. A stored table is published
at once. Killed at any point, it loses nothing that it published; while it is gone, the dataplane
goes on forwarding by the last table, and masks by health's view what dies meanwhile.

An unreadable state directory or a full disk belongs to the machine, not to the file: said once in
the log and in `waiting_for`, tried again every second.

Several `addresses` in the configuration: the election among them is not part of this version, so
this LB decides alone, says so, and shows itself as the only member.
"""

from __future__ import annotations

import argparse
import os
import secrets
import signal
import socket
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import zmq

from bus import topics
from bus.commands import (
    CommandError,
    CommandServer,
)
from bus.events import ProcessEvent
from bus.socket import (
    Publisher,
    Subscriber,
)
from bus.states import (
    LocalView,
    QuorumState,
    TableService,
)
from bus.topics import Topic
from bus.words import (
    Affinity,
    Encapsulation,
    Mode,
    NoFlow,
    OnNodeDown,
    Protocol,
)
from conf import ConfigError, LbConfig, Paths, load_lb, taken
from conf.lb import Service
from services import logs
from services.machine import all_addresses
from services.quorum.core import HardState, Quorum, QuorumConfig, Ready
from services.quorum.storage import NewerFormatError, Storage
from services.quorum.table import SLOT_REUSE_MS, FloatingVip, TableConfig

REPUBLISH_MS = 500
RETRY_MS = 1_000
MACHINE_BOOT = Path("/proc/sys/kernel/random/boot_id")

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-quorum`."""
    argparse.ArgumentParser(prog="gale-quorum", description="Gale's quorum process.").parse_args()
    logs.set_up()
    paths = Paths.from_environment()
    try:
        config = load_lb(paths.lb_config)
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        sys.exit(2)
    try:
        QuorumProcess(paths, config).run()
    except NewerFormatError as error:
        print(error, file=sys.stderr)
        sys.exit(2)


class QuorumProcess:
    """Sockets, clock and disk, and the loop that hands them to the core."""

    def __init__(self, paths: Paths, config: LbConfig) -> None:
        self._config_path = paths.lb_config
        self._started_with = config
        self._name = config.local.name
        self._context: zmq.Context[Any] = zmq.Context()
        path = topics.publisher_path(paths.run_dir, topics.QUORUM)
        self._publisher = Publisher(self._context, path, topics.QUORUM, self._name)
        self._commands = CommandServer(
            self._context, topics.command_path(paths.run_dir, topics.QUORUM)
        )
        wanted = topics.SUBSCRIBES[topics.QUORUM]
        self._subscriber = Subscriber(self._context, paths.run_dir, wanted)
        self._storage = Storage(paths.state_dir, MACHINE_BOOT.read_text().strip())
        stored, adopted = _load(self._storage)
        seed, now_ms = secrets.randbits(64), _monotonic_ms()
        self._core = Quorum(core_config(config), stored, seed, now_ms)
        self._published: QuorumState | None = None
        self._state_due_ms = now_ms
        self._table_due_ms = now_ms
        self._retry_ms = now_ms
        self._stopping = False
        self._reload_wanted = False
        self._publisher.publish(
            Topic.PROCESS_STARTED,
            ProcessEvent(topics.QUORUM, os.getpid(), version("gale"), adopted),
        )
        _warn_if_not_alone(config)

    def run(self) -> None:
        """Until SIGTERM."""
        wake = self._install_signals()
        poller = zmq.Poller()
        sockets = (self._publisher.poll_socket, self._commands.socket, self._subscriber.socket)
        for polled in sockets:
            poller.register(polled, zmq.POLLIN)
        poller.register(wake.fileno(), zmq.POLLIN)
        while not self._stopping:
            self._step(_monotonic_ms())
            if wake.fileno() in dict(poller.poll(self._wait_ms(_monotonic_ms()))):
                wake.recv(4096)
        _log.info("stopped", process=topics.QUORUM)
        for owned in (self._publisher, self._commands, self._subscriber):
            owned.close()
        self._context.term()

    def _step(self, now_ms: int) -> None:
        """Drain the input, then look at the clock, then do what the core says."""
        self._publisher.serve()
        self._commands.serve(self._command)
        if self._reload_wanted:
            self._reload_wanted = False
            self._reload()
        for envelope in self._subscriber.receive():
            if isinstance(envelope.data, LocalView):
                age_ms = max(0, now_ms - envelope.head.made_ms)
                self._core.report(self._name, envelope.boot, envelope.data, now_ms, age_ms)
        self._core.tick(now_ms)
        self._work_off(now_ms)
        self._publish_states(now_ms)

    # ------------------------------------------------------------------ out

    def _work_off(self, now_ms: int) -> None:
        while (ready := self._core.ready(now_ms)) is not None:
            if ready.persist is not None and not self._persist(ready.persist, now_ms):
                return
            self._publish(ready)
            self._core.advance(ready, now_ms)

    def _persist(self, state: HardState, now_ms: int) -> bool:
        if now_ms < self._retry_ms:
            return False
        try:
            self._storage.save(state, now_ms)
        except OSError as error:
            reason = f"{self._storage.path}: {error.strerror}"
            if reason != self._core.state().waiting_for:
                _log.error("the table stands still: cannot write", path=reason)
            self._core.stall(reason)
            self._retry_ms = now_ms + RETRY_MS
            return False
        return True

    def _publish(self, ready: Ready) -> None:
        if ready.committed is not None:
            self._publisher.publish(Topic.STATE_TABLE, ready.committed)
        for topic, event in ready.events:
            self._publisher.publish(topic, event)
            _log.info(topic.value.rstrip("."), **_loggable(event))

    def _publish_states(self, now_ms: int) -> None:
        state = self._core.state()
        if now_ms >= self._state_due_ms or state != self._published:
            self._publisher.publish(Topic.STATE_QUORUM, state)
            self._published = state
            half_lease_ms = state.lease_remaining_ms // 2 or REPUBLISH_MS
            self._state_due_ms = now_ms + min(REPUBLISH_MS, half_lease_ms)
        if now_ms >= self._table_due_ms:
            self._table_due_ms = now_ms + REPUBLISH_MS
            self._publisher.repeat(Topic.STATE_TABLE)

    def _wait_ms(self, now_ms: int) -> int:
        due_ms = min(self._state_due_ms, self._table_due_ms)
        deadline_ms = self._core.deadline_ms()
        return max(0, (due_ms if deadline_ms is None else min(due_ms, deadline_ms)) - now_ms)

    # ------------------------------------------------------------------ commands and signals

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb != "reload":
            raise CommandError(f"unknown command: {verb}; quorum knows: reload")
        return self._reload()

    def _reload(self) -> dict[str, Any]:
        try:
            config = load_lb(self._config_path)
        except ConfigError as error:
            problems = [str(problem) for problem in error.problems]
            for problem in problems:
                _log.error("the configuration stays as it was", problem=problem)
            return {"applied": False, "problems": problems, "restart_needed": []}
        config, restart_needed = taken(self._started_with, config)
        self._core.reconfigure(core_config(config), _monotonic_ms())
        _warn_if_not_alone(config)
        _log.info("configuration applied", path=self._config_path, restart_needed=restart_needed)
        return {"applied": True, "problems": [], "restart_needed": restart_needed}

    def _install_signals(self) -> socket.socket:
        """TERM and HUP set a flag and make the returned socket readable."""
        wake, written = socket.socketpair()
        for end in (wake, written):
            end.setblocking(False)
        # Python closes a socket that nobody refers to; this one lives as long as the loop.
        self._wake = written
        signal.set_wakeup_fd(written.fileno(), warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._on_term)
        signal.signal(signal.SIGINT, self._on_term)
        signal.signal(signal.SIGHUP, self._on_hangup)
        return wake

    def _on_term(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _on_hangup(self, _signal: int, _frame: object) -> None:
        self._reload_wanted = True


def _load(storage: Storage) -> tuple[HardState, str]:
    """The stored state and what to say of it; waits for as long as it cannot be read."""
    said = ""
    while True:
        try:
            stored, complaint = storage.load(_monotonic_ms())
        except OSError as error:
            if str(error) != said:
                said = str(error)
                _log.error("waiting: cannot read the stored table", path=said)
            time.sleep(RETRY_MS / 1_000)
            continue
        if complaint:
            _log.error("the stored table is damaged", problem=complaint)
            return stored, complaint
        if stored.table is None:
            return stored, ""
        adopted = f"term {stored.term}, epoch {stored.table.epoch}, {len(stored.table.nodes)} nodes"
        _log.info("adopted", path=storage.path, table=adopted)
        return stored, adopted


def core_config(config: LbConfig) -> QuorumConfig:
    """The file as the core reads it."""
    vips = tuple(FloatingVip(vip.address, vip.snat_addresses) for vip in config.virtual_ips)
    services = tuple(_table_service(service) for service in config.services)
    flows = config.dataplane
    idle_ms = (flows.tcp_established_ms, flows.tcp_closing_ms, flows.tcp_time_wait_ms, flows.udp_ms)
    return QuorumConfig(
        name=config.local.name,
        address=_own_address(config),
        table=TableConfig(services, vips),
        lease_ms=config.quorum.lease_ms,
        checks_timeout_ms=config.node_health.checks_timeout_ms,
        slot_reuse_ms=max(SLOT_REUSE_MS, flows.udp_one_sided_ms, *idle_ms),
    )


def _table_service(service: Service) -> TableService:
    down = service.on_node_down
    return TableService(
        name=service.name,
        address=service.address,
        port=service.port,
        protocol=Protocol(service.protocol),
        mode=Mode(service.mode),
        node_port=service.node_port,
        affinity=Affinity(service.affinity),
        encap=Encapsulation(service.encap),
        snat=service.snat,
        snat_addresses=service.snat_addresses,
        on_node_down=OnNodeDown(down) if down is not None else None,
        no_flow=NoFlow(service.no_flow),
    )


def _own_address(config: LbConfig) -> str:
    """This LB's entry in the list: the one that is an address of this machine, or empty."""
    try:
        own = {each.address for each in all_addresses()} if config.quorum.addresses else set()
    except OSError:
        return ""
    for endpoint in config.quorum.addresses:
        if endpoint.host in own:
            return f"{endpoint.host}:{endpoint.port}"
    return ""


def _warn_if_not_alone(config: LbConfig) -> None:
    if len(config.quorum.addresses) > 1:
        _log.warning(
            "load_balancer_quorum.addresses names several LBs, and this version does not elect"
            " among them: this LB decides alone, as a quorum of one",
            addresses=len(config.quorum.addresses),
        )


def _loggable(event: Any) -> dict[str, Any]:
    return {name: getattr(event, name) for name in type(event).__slots__}


def _monotonic_ms() -> int:
    return time.monotonic_ns() // 1_000_000
