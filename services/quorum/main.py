"""The quorum process: the shell around `core`.

In: `state.view.` of health, the commands `reload` and `order`, SIGHUP, SIGTERM, the clock. Out:
`state.table.` and `state.quorum.` on every change and every 500 ms (the latter before half of the
lease it tells of is over, so that a reader who subtracts its age finds one left), the events
`quorum.leader.`, `table.committed.`, `order.given.` and `process.started.`, and the state file.

An order is answered when the table that has it is committed. Its sender may repeat it, by the same
id, to this process or to the one after it: the table knows the ids of its orders.

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

import secrets
import sys
import time
from typing import Any

import structlog

from bus import topics
from bus.codec import MalformedMessage, from_json, to_json
from bus.commands import CommandError, Later
from bus.orders import LONGEST_TEXT, Asked
from bus.socket import monotonic_ms
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
from conf import LbConfig, Paths, load_lb
from conf.lb import Service
from services import process
from services.machine import all_addresses, boot_id
from services.process import Bus, Loop
from services.quorum.core import HardState, Persist, Quorum, QuorumConfig, Ready
from services.quorum.orders import Answer
from services.quorum.storage import NewerFormatError, Storage
from services.quorum.table import SLOT_REUSE_MS, FloatingVip, TableConfig
from services.quorum.timing import Timing

REPUBLISH_MS = 500
RETRY_MS = 1_000

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-quorum`."""
    what = "Gale's quorum process."
    process.launch("gale-quorum", what, load_lb, lambda paths: paths.lb_config, _run)


def _run(paths: Paths, config: LbConfig) -> None:
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
        self._bus = Bus(paths.run_dir, topics.QUORUM, config.local.name)
        self._publisher, self._commands = self._bus.publisher, self._bus.commands
        self._subscriber = self._bus.subscriber
        self._storage = Storage(paths.state_dir, boot_id())
        stored, adopted = _load(self._storage)
        seed, now_ms = secrets.randbits(64), monotonic_ms()
        self._core = Quorum(core_config(config), stored, seed, now_ms)
        self._unwritten: Persist | None = None
        """What the core wants on the disk and is not there yet."""
        self._published: QuorumState | None = None
        self._state_due_ms = now_ms
        self._table_due_ms = now_ms
        self._retry_ms = now_ms
        self._orders: dict[str, Later] = {}
        """By command, the answers to orders that are not agreed on yet."""
        self._bus.started(adopted)
        _warn_if_not_alone(config)
        self._loop = Loop()

    def run(self) -> None:
        """Until SIGTERM."""
        self._loop.watch(*self._bus.sockets)
        while not self._loop.signals.stopping:
            self._step(monotonic_ms())
            self._loop.wait(self._wait_ms(monotonic_ms()))
        _log.info("stopped", process=topics.QUORUM)
        self._bus.close()

    def _step(self, now_ms: int) -> None:
        """Drain the input, then look at the clock, then do what the core says."""
        self._publisher.serve()
        self._commands.serve(self._command)
        if self._loop.signals.take_reload():
            self._reload()
        for envelope in self._subscriber.receive():
            if isinstance(envelope.data, LocalView):
                age_ms = max(0, now_ms - envelope.head.made_ms)
                self._core.report(envelope.boot, envelope.data, now_ms, age_ms)
        self._core.tick(now_ms)
        self._work_off(now_ms)
        self._publish_states(now_ms)

    # ------------------------------------------------------------------ out

    def _work_off(self, now_ms: int) -> None:
        if self._unwritten is not None:
            self._write(now_ms)
        while (ready := self._core.take(now_ms)) is not None:
            self._publish(ready)
            if ready.persist is not None:
                self._unwritten = ready.persist
                self._write(now_ms)
            for answer in ready.answers:
                self._answer(answer)

    def _answer(self, answer: Answer) -> None:
        later = self._orders.pop(answer.id, None)
        if later is None:
            return
        if answer.refusal:
            later.error = answer.refusal
        else:
            later.result = {"agreed": True}
        self._commands.serve(self._command)

    def _write(self, now_ms: int) -> None:
        unwritten = self._unwritten
        if unwritten is None or now_ms < self._retry_ms:
            return
        try:
            self._storage.save(unwritten.state, now_ms)
        except OSError as error:
            reason = f"{self._storage.path}: {error.strerror}"
            if reason != self._core.state(now_ms).waiting_for:
                _log.error("the table stands still: cannot write", path=reason)
            self._core.stall(reason)
            self._retry_ms = now_ms + RETRY_MS
            return
        self._unwritten = None
        self._core.stored(unwritten.mark, now_ms)

    def _publish(self, ready: Ready) -> None:
        if ready.committed is not None:
            self._publisher.publish(Topic.STATE_TABLE, ready.committed)
        for topic, event in ready.events:
            self._publisher.publish(topic, event)
            _log.info(topic.value.rstrip("."), **_loggable(event))

    def _publish_states(self, now_ms: int) -> None:
        state = self._core.state(now_ms)
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
        next_ms = self._core.next_due_ms()
        if next_ms is not None:
            due_ms = min(due_ms, next_ms)
        if self._unwritten is not None:
            due_ms = min(due_ms, self._retry_ms)
        return max(0, due_ms - now_ms)

    # ------------------------------------------------------------------ commands and signals

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any] | Later:
        if verb == "order":
            return self._order(arguments)
        if verb != "reload":
            raise CommandError(f"unknown command: {verb}; quorum knows: reload, order")
        return self._reload()

    def _order(self, arguments: dict[str, Any]) -> Later:
        number = arguments.get("id")
        try:
            asked = from_json(Asked, to_json(arguments))
        except MalformedMessage as error:
            raise CommandError(f"not an order: {error}") from None
        if not isinstance(number, str) or not 0 < len(number) <= LONGEST_TEXT:
            raise CommandError("not an order: it has no id")
        later = self._orders.setdefault(number, Later())
        self._core.order(number, asked, monotonic_ms())
        return later

    def _reload(self) -> dict[str, Any]:
        config, answer = process.reload_lb(self._config_path, self._started_with)
        if config is not None:
            self._core.reconfigure(core_config(config), monotonic_ms())
            _warn_if_not_alone(config)
        return answer


def _load(storage: Storage) -> tuple[HardState, str]:
    """The stored state and what to say of it; waits for as long as it cannot be read."""
    said = ""
    while True:
        try:
            stored, complaint = storage.load(monotonic_ms())
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
        timing=_timing(config),
        checks_timeout_ms=config.node_health.checks_timeout_ms,
        slot_reuse_ms=max(SLOT_REUSE_MS, flows.udp_one_sided_ms, *idle_ms),
    )


def _timing(config: LbConfig) -> Timing:
    quorum = config.quorum
    return Timing(
        quorum.heartbeat_ms, quorum.lease_ms, quorum.promise_ms, quorum.election_jitter_ms
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
        ports=service.ports.size,
        keeps_port=service.keeps_port,
        affinity_group=service.affinity_group or "",
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
