"""The health process: the shell around `registry`.

In: agents on `node_port`, this LB's own probes of the nodes, `state.table.` of quorum, the command
`reload`, SIGHUP, SIGTERM, the clock. Out: `state.view.` on change and every 500 ms, the `node.*`
events, `process.started.`, answers to agents, and the state file.

**One turn of the loop:** drain what has come, from agents first; only then look at deadlines; then
keep, publish, send. If the input does not end within `DRAIN_MS`, deadlines wait for the next turn,
since what would extend them may be in the part not yet read; but a flood delays them by no more
than `MOST_UNDRAINED` turns. A turn that comes later than it was meant to is told to the registry as
lag: this process was stopped or starved, and the nodes are not to blame.

With very many agents their beats come one by one, all the time; then the loop lets them gather for
up to `MOST_GATHERED_MS` before a turn, since most of what a turn costs is the turn.

**Publishing** costs in proportion to the number of nodes, so changes within `GAP_MS` (or ten times
what the last publishing took, with very many nodes) go out together; the first one goes at once.
What is published has been kept before: a reader who saw a ban finds it after a restart. Answers to
agents do not wait.

**Restart:** the publisher's lock comes first (a second copy waits there), then the state file; so
the view is right from the first message on. The committed table, which comes moments later, fills
in nodes that the file does not have.

**Failure.** Killed, it costs nobody a packet: the dataplane keeps what it has and agents come back
by themselves. A disk that cannot be written, a private interface without an address, a key that is
not there: said in `waiting_for` and once in the log, tried again every second; the nodes are
watched meanwhile.
"""

from __future__ import annotations

import itertools
import resource
import time
from typing import Any

import structlog
import zmq

from bus import keys, topics
from bus.commands import (
    CommandError,
)
from bus.keys import KeyDirectory
from bus.node_protocol import (
    OfferedService,
    encode_node,
)
from bus.socket import monotonic_ms
from bus.states import CommittedTable
from bus.tcp import Door
from bus.topics import Topic
from bus.words import (
    Encapsulation,
    Mode,
    Protocol,
)
from conf import LbConfig, Paths, load_lb
from services import process
from services.connections import Connections, Limits
from services.health.listener import Listener
from services.health.outbox import Happened, Send
from services.health.policy import Policy
from services.health.probe import Prober
from services.health.registry import Registry
from services.health.statefile import NOTHING, Kept, StateFile
from services.machine import boot_id, own_address
from services.process import Bus, Loop

REPUBLISH_MS = 500
SETTLE_MS = 1_000
GAP_MS = 50
POLL_MS = 100
LAG_MS = 100
"""A turn later than this was late; less is the ordinary business of a machine."""
LATE_PART = 4
"""Held up for this part of `checks_timeout`, this LB says so to the others, as `late`, until it has
had a whole `checks_timeout` to see how its nodes are."""
CHECKS_SHARE = 200
LAG_SAID_MS = 10_000
OFFENDER_SAID_MS = 10_000
DRAIN_MS = 200
LOOK_AFTER_MESSAGES = 200
MOST_UNDRAINED = 5
LIMITS = Limits(of_address=128, burst_bytes=512 << 10, bytes_per_s=64 << 10)
"""An agent says a few kilobytes a second, and its longest hello is 90 kB."""
CONNECTIONS_PER_MS = 50
MOST_GATHERED_MS = 20
MOST_PLACES = 20_000
"""That the LB itself looks at."""

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-health`."""
    what = "Gale's health process."
    process.launch("gale-health", what, load_lb, lambda paths: paths.lb_config, _run)


def _run(paths: Paths, config: LbConfig) -> None:
    _allow_many_connections()
    HealthProcess(paths, config).run()


class HealthProcess:
    """Sockets, clock and disk, and the loop that hands them to the registry."""

    def __init__(self, paths: Paths, config: LbConfig) -> None:
        self._config_path = paths.lb_config
        self._config = config
        self._bus = Bus(paths.run_dir, topics.HEALTH, config.local.name)
        self._publisher, self._commands = self._bus.publisher, self._bus.commands
        self._subscriber = self._bus.subscriber
        directory = config.security.keys
        self._keys = KeyDirectory(directory, (keys.NODES,)) if directory is not None else None
        now_ms = monotonic_ms()
        self._registry = Registry(_policy(config), now_ms, self._name_of if self._keys else None)
        rejected = self._registry.rejected
        self._door = Door(self._bus.context, self._keys, rejected) if self._keys else None
        self._listener = Listener(self._bus.context, self._keys)
        self._said_keys: tuple[str, ...] = ()
        self._connections = Connections(
            self._bus.context,
            self._listener.socket,
            rejected,
            lambda _: LIMITS,
            now_ms,
            is_known=self._registry.knows,
        )
        self._prober = Prober()
        self._places_changed = True
        self._file = StateFile(paths.state_dir, boot_id())
        self._disk_trouble = ""
        self._said_waiting = ""
        self._view_changed = self._keep = True
        self._events: list[Happened] = []
        self._publish_from_ms = self._republish_ms = self._settle_ms = self._checks_ms = now_ms
        self._undrained = 0
        self._lag_said_ms, self._unsaid_lag_ms = now_ms - LAG_SAID_MS, 0
        self._late, self._late_until_ms = False, now_ms
        self._offender_said_ms = now_ms - OFFENDER_SAID_MS
        self._loop = Loop()
        adopted = self._adopt(now_ms)
        self._bus.started(adopted)

    def run(self) -> None:
        """Until SIGTERM."""
        if self._door is not None:
            self._loop.watch(self._door.socket)
        else:
            _log.warning("no keys: whoever reaches the private interface may be a node")
        self._loop.watch(self._listener.socket, *self._bus.sockets, self._prober.fileno())
        while not self._loop.signals.stopping:
            drained_ms = self._step(monotonic_ms())
            # Nobody listens from the end of the drain to the next turn: what is not waiting is lag.
            self._loop.wait(self._wait_ms(monotonic_ms()), listened_ms=drained_ms)
            time.sleep(self._gather_ms / 1_000)
        self._stop()

    @property
    def _gather_ms(self) -> int:
        """How long to let beats come together: a turn costs as much as several of them do."""
        return min(MOST_GATHERED_MS, len(self._connections) // CONNECTIONS_PER_MS)

    def _step(self, begun_ms: int) -> int:
        """One turn; returns when its drain ended."""
        self._connections.turn(begun_ms, hasty=self._undrained > 0)
        if self._door is not None:
            self._door.serve()
        drained = self._drain()
        now_ms = monotonic_ms()
        lag_ms = self._loop.late_ms(begun_ms) + max(0, now_ms - begun_ms - DRAIN_MS)
        if lag_ms > LAG_MS:
            self._registry.lagged(lag_ms, now_ms)
            self._say_lag(lag_ms, now_ms)
        self._note_lateness(lag_ms, now_ms)
        self._publisher.serve()
        self._commands.serve(self._command)
        if self._loop.signals.take_reload():
            self._reload()
        for envelope in self._subscriber.receive():
            if isinstance(envelope.data, CommittedTable):
                age_ms = max(0, now_ms - envelope.head.made_ms)
                self._registry.adopt_table(envelope.data.table, now_ms, age_ms)
                self._registry.heed(envelope.data.table, now_ms)
        if now_ms >= self._settle_ms:
            self._settle_ms = now_ms + SETTLE_MS
            self._settle(now_ms)
            self._choose_places(now_ms)
        for spot, outcome in self._prober.turn(self._config.node_health.checks_timeout_ms, now_ms):
            self._registry.probed(spot, outcome, now_ms)
        self._undrained = 0 if drained else self._undrained + 1
        if drained or self._undrained > MOST_UNDRAINED:
            self._registry.tick(now_ms)
        self._work_off(now_ms)
        return now_ms

    def _choose_places(self, now_ms: int) -> None:
        """What the LB itself looks at; anew when a node or the configuration has changed."""
        health = self._config.node_health
        if not self._places_changed:
            return
        self._places_changed = False
        spots = self._registry.spots(MOST_PLACES) if health.probe == "tcp" else {}
        for gone in self._prober.places.want(spots, health.checks_timeout_ms, now_ms):
            self._registry.probed(gone, None, now_ms)

    def _say_lag(self, lag_ms: int, now_ms: int) -> None:
        self._unsaid_lag_ms += lag_ms
        if now_ms >= self._lag_said_ms + LAG_SAID_MS:
            _log.warning("was late, so deadlines are extended", lag_ms=self._unsaid_lag_ms)
            self._lag_said_ms, self._unsaid_lag_ms = now_ms, 0

    def _note_lateness(self, lag_ms: int, now_ms: int) -> None:
        timeout_ms = self._config.node_health.checks_timeout_ms
        if lag_ms >= timeout_ms // LATE_PART:
            self._late_until_ms = now_ms + timeout_ms
        self._view_changed |= self._late != (now_ms < self._late_until_ms)
        self._late = now_ms < self._late_until_ms

    def _drain(self) -> bool:
        """Read all that agents have sent; False if that would take too long for one turn."""
        end_ms = monotonic_ms() + DRAIN_MS
        for number in itertools.count(1):
            now_ms = monotonic_ms()
            if now_ms >= end_ms:
                break
            if number % LOOK_AFTER_MESSAGES == 0:  # it may be a flood
                self._connections.turn(now_ms, hasty=True)
            received = self._listener.receive()
            if received is None:
                return True
            if received.connection:
                connection, address, frames, key = received
                self._registry.receive(connection, address, frames, now_ms, key)
        return False

    def _wait_ms(self, now_ms: int) -> int:
        if self._undrained:
            return 0
        moments = [now_ms + POLL_MS, self._republish_ms, self._settle_ms, self._checks_ms]
        if self._view_changed or self._keep or self._events:
            moments.append(self._publish_from_ms)
        for due_ms in (self._registry.next_due_ms(), self._prober.next_due_ms()):
            if due_ms is not None:
                moments.append(due_ms)
        return max(0, min(moments) - now_ms)

    # ------------------------------------------------------------------ out

    def _work_off(self, now_ms: int) -> None:
        output = self._registry.take_output()
        self._view_changed |= output.view_changed
        self._places_changed |= output.view_changed
        self._keep |= output.keep
        self._events += output.events
        wanted = self._view_changed or self._keep or self._events
        if now_ms >= self._republish_ms or (wanted and now_ms >= self._publish_from_ms):
            self._publish(now_ms)
        for send in output.messages:
            self._send(send)
        if now_ms >= self._checks_ms:
            self._publish_checks()

    def _publish_checks(self) -> None:
        """Read by people alone: so it may cost half a hundredth of this process's time, no more."""
        now_ms, begun_s = monotonic_ms(), time.thread_time()
        self._publisher.publish(Topic.STATE_CHECKS, self._registry.checks(now_ms))
        cost_ms = int(1_000 * (time.thread_time() - begun_s))
        self._checks_ms = now_ms + max(REPUBLISH_MS, CHECKS_SHARE * cost_ms)

    def _publish(self, now_ms: int) -> None:
        if self._keep:
            self._save(now_ms)
        for topic, event in self._events:
            self._publisher.publish(topic, event)
            what = {"node": event.id, "state": event.state.value, "fails": event.fails}
            _log.info(topic.value.rstrip("."), reason=event.reason, **what)
        self._events.clear()
        if self._view_changed:
            waiting_for = self._disk_trouble or self._listener.waiting_for
            view = self._registry.view(now_ms, waiting_for, late=self._late)
            self._publisher.publish(Topic.STATE_VIEW, view)
            self._view_changed = False
        else:
            self._publisher.repeat(Topic.STATE_VIEW)
        done_ms = monotonic_ms()
        self._republish_ms = now_ms + REPUBLISH_MS
        self._publish_from_ms = done_ms + min(max(GAP_MS, 10 * (done_ms - now_ms)), REPUBLISH_MS)

    def _save(self, now_ms: int) -> None:
        try:
            self._file.save(self._registry.kept(now_ms), now_ms, time.time_ns() // 1_000_000)
        except OSError as error:
            trouble = f"a disk to write {self._file.path} to: {error.strerror}"
            if trouble != self._disk_trouble:
                _log.error("bans and failures are not kept", path=self._file.path, problem=trouble)
            self._disk_trouble = trouble
        else:
            self._disk_trouble = ""
        self._keep = False

    def _send(self, send: Send) -> None:
        # A peer that is gone, or does not read, is passed over: ROUTER never blocks for it.
        self._listener.socket.send_multipart(
            [send.connection, *encode_node(send.message)], zmq.NOBLOCK
        )

    # ------------------------------------------------------------------ start, and the machine

    def _adopt(self, now_ms: int) -> str:
        """Take over what the last run kept; says so in words."""
        try:
            kept = self._file.load(now_ms, time.time_ns() // 1_000_000)
        except OSError as error:
            kept = Kept((), 0, f"{self._file.path}: {error.strerror}")
        if kept.complaint:
            _log.error("what the last run kept is lost", problem=kept.complaint)
        if kept.nodes == NOTHING.nodes:
            return ""
        routed = self._registry.adopt(kept.nodes, kept.elapsed_ms, now_ms)
        adopted = f"{len(kept.nodes)} nodes, {routed} of them routed to"
        _log.info("adopted", path=self._file.path, nodes=adopted)
        return adopted

    def _settle(self, now_ms: int) -> None:
        """Once a second: what of the machine may have changed, and what it still lacks."""
        local = self._config.local
        if self._keys is not None:
            self._settle_keys(self._keys, now_ms)
        before = self._listener.endpoint
        self._listener.settle(local.net_interface_private, local.node_port)
        self._registry.configure(_policy(self._config), now_ms)
        if self._disk_trouble:
            self._keep = True
        if self._connections.offender and now_ms >= self._offender_said_ms + OFFENDER_SAID_MS:
            _log.warning("a connection was shut down", offender=self._connections.offender)
            self._offender_said_ms, self._connections.offender = now_ms, ""
        if self._listener.endpoint != before:
            _log.info("listening for nodes", endpoint=self._listener.endpoint)
        waiting_for = self._listener.waiting_for
        if waiting_for != self._said_waiting:
            self._said_waiting = waiting_for
            self._view_changed = True
            if waiting_for:
                _log.warning("waiting", waiting_for=waiting_for)

    def _name_of(self, key: str) -> str | None:
        assert self._keys is not None
        return self._keys.name_of(keys.NODES, key.encode())

    def _settle_keys(self, known: KeyDirectory, now_ms: int) -> None:
        if known.refresh():
            self._registry.keys_changed(now_ms)
            _log.info("keys read", path=known.path)
        if known.problems != self._said_keys:
            self._said_keys = known.problems
            for problem in known.problems:
                _log.error("a key cannot be used", problem=problem)
        if self._door is not None and self._door.refused:
            self._connections.offender = f"{self._door.refused} is not admitted"
            self._door.refused = ""

    # ------------------------------------------------------------------ commands and signals

    def _command(self, verb: str, arguments: dict[str, Any]) -> dict[str, Any]:
        if verb != "reload":
            raise CommandError(f"unknown command: {verb}; health knows: reload")
        return self._reload()

    def _reload(self) -> dict[str, Any]:
        config, answer = process.reload_lb(self._config_path, self._config)
        if config is not None:
            self._config = config
            self._settle(monotonic_ms())
        return answer

    def _stop(self) -> None:
        self._save(monotonic_ms())
        _log.info("stopped", process=topics.HEALTH)
        self._prober.close()
        self._connections.close()
        self._listener.close()
        if self._door is not None:
            self._door.close()
        self._bus.close()


def _policy(config: LbConfig) -> Policy:
    """What the registry goes by; a service without an address has this LB's own, as it is now."""
    public_address = own_address(config.local.net_interface_public)
    health = config.node_health
    return Policy(
        lb=config.local.name,
        checks_before_routing=health.checks_before_routing,
        checks_timeout_ms=health.checks_timeout_ms,
        black_list_after_fails=health.black_list_after_fails,
        black_list_expiry_ms=health.black_list_expiry_ms,
        min_healthy_percent=health.min_healthy,
        min_healthy=tuple(
            (service.name, service.min_healthy)
            for service in config.services
            if service.min_healthy is not None
        ),
        services=tuple(
            OfferedService(
                name=service.name,
                vip=service.address or public_address,
                port=service.port,
                protocol=Protocol(service.protocol),
                mode=Mode(service.mode),
                node_port=service.node_port,
                encap=Encapsulation(service.encap),
            )
            for service in config.services
        ),
    )


def _allow_many_connections() -> None:
    """Each agent's connection is a file descriptor: allow as many as the machine does."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


if __name__ == "__main__":
    main()
