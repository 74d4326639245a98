"""The agent's process: the shell around `core`.

In: each LB's messages and the state of its connection, the results of the local checks, the HTTP
API, SIGHUP (read the file again), SIGTERM (drain, then end), the clock. Out: hellos and heartbeats,
and what this machine needs for direct return, as orders to the keeper.

One thread runs the loop and owns every socket and the core. Three kinds of helper never touch them:
the resolver turns names into addresses, the keeper prepares this machine, the API's threads put
questions into a queue; all then make the loop's wake socket readable.

The clock is CLOCK_BOOTTIME: it goes on while the machine sleeps, so the stamps in the beats keep
their distance to the LBs' clocks, and a node that wakes up is not taken for one of an hour ago.

Failure: killed, the node stays UP at its LBs for one checks_timeout, within which supervisord has
long restarted the agent; what the machine was prepared with stays, and is taken back when an agent
is stopped. An LB that cannot be reached or whose name is not yet known concerns only
its own session; the status says which, and what to look at. So does an LB whose key is not there.

Where keys are used, an LB is spoken to only if it has one of the keys that stand under its name; if
there are several, they are tried one after the other.
"""

from __future__ import annotations

import os
import secrets
import socket
import time
from collections import Counter
from functools import partial
from typing import Any

import structlog
import zmq

from bus import keys, tcp
from bus.keys import KeyDirectory
from bus.node_protocol import encode_node
from conf import ConfigError, Endpoint, NodeConfig, Paths, load_node
from services import logs, process
from services.machine import all_addresses
from services.node.api import Ask, NodeApi
from services.node.checks import Prober, Result
from services.node.core import (
    DRAIN_MS,
    USUAL_PORT,
    Activity,
    Agent,
    AgentConfig,
    CheckKind,
    CheckPlan,
)
from services.node.direct import NOTHING_NEEDED, NOTHING_TAKEN, Lingering, need_of
from services.node.host import Host, Order, open_flows
from services.node.keeper import Keeper
from services.node.link import (
    Address,
    Link,
    LinkEvent,
)
from services.process import Loop
from services.resolve import Resolver

SETTLE_MS = 1_000
SUSPECT_MS = 5_000
"""How often a port that cannot be reached is asked why."""
LONGEST_RENEWAL_MS = 1_000
"""The pause before a new connection doubles up to this while each ends before the LB speaks."""
LOOPBACK = "127.0.0.1"
PROGRAM_CACHE = "programs"

_log = structlog.get_logger()


def main() -> None:
    """Console script `gale-agent`."""
    what = "Gale's agent on a node."
    process.launch("gale-agent", what, load_node, lambda paths: paths.node_config, _run)


def _run(paths: Paths, config: NodeConfig) -> None:
    AgentProcess(paths, config).run()


class AgentProcess:
    """Sockets, threads and the clock, and the loop that hands them to the core."""

    def __init__(self, paths: Paths, config: NodeConfig) -> None:
        now_ms = _now_ms()
        self._path = paths.node_config
        self._config = config
        self._core = Agent(_core_config(config), secrets.token_hex(8), now_ms)
        self._context: zmq.Context[Any] = zmq.Context()
        self._loop = Loop()
        self._poller, self._signals = self._loop.poller, self._loop.signals
        self._resolver = Resolver(self._signals.wake)
        directories = paths.run_dir, paths.bpf_dir, paths.state_dir / PROGRAM_CACHE
        host = partial(Host, *directories, beside_lb=paths.lb_beside is not None)
        self._keeper = Keeper(host, self._signals.wake)
        self._order = Order()
        self._lingering = Lingering()
        self._prober = Prober(self._poller)
        self._api = NodeApi(self._signals.wake)
        self._endpoints: dict[str, Endpoint] = {}
        directory = config.security.keys
        self._keys = KeyDirectory(directory, (keys.LBS,)) if directory is not None else None
        self._keys_tried: Counter[str] = Counter()
        """By LB, how many of its keys have not led to a session since the last one."""
        self._said_keys: tuple[str, ...] = ()
        self._links: dict[str, Link] = {}
        self._link_from_ms: dict[str, int] = {}
        self._renewal_ms: dict[str, int] = {}
        self._suspected: dict[CheckPlan, tuple[str, int]] = {}
        """Whose port is being asked, and since when."""
        self._slow: set[str] = set()
        """Whose port has answered late since the last connection: once may be this loop's doing."""
        self._far: set[str] = set()
        self._suspect_from_ms: dict[str, int] = {}
        self._own_address = LOOPBACK
        self._addresses: frozenset[str] = frozenset()
        """All that this machine has, VIPs on `lo` among them."""
        self._api_problem = ""
        self._settle_ms = now_ms
        self._take_endpoints()

    def run(self) -> None:
        """Until SIGTERM and what it takes to leave in peace."""
        while self._core.activity is not Activity.ENDED:
            self._step(self._loop.wait(self._wait_ms(_now_ms())))
        self.close()
        _log.info("stopped", process="agent")

    def close(self) -> None:
        """Take back what was prepared, as far as it was ordered, and give back sockets."""
        report = self._keeper.finish()
        for missing in report.missing if report is not None else ():
            _log.error("not taken back", problem=missing)
        self._api.close()
        self._prober.close()
        for link in self._links.values():
            link.close()
        self._context.term()

    def _step(self, ready: dict[Any, int]) -> None:
        """Drain the input, then look at the clock, then do what the core says."""
        self._watch_threads()
        now_ms = _now_ms()
        self._heed_signals(now_ms)
        for lb, link in list(self._links.items()):
            self._serve_link(lb, link, now_ms)
        self._prober.serve(descriptor for descriptor in ready if isinstance(descriptor, int))
        self._prober.tick(now_ms)
        for result in self._prober.take_results():
            self._checked(result, now_ms)
        if now_ms >= self._settle_ms or self._signals.fileno() in ready:
            self._settle_ms = now_ms + SETTLE_MS
            self._settle(now_ms)
        self._keep_prepared(now_ms)
        self._core.tick(now_ms)
        self._work_off()
        self._prober.plan(self._core.plans(), self._own_address, now_ms, self._addresses)
        while not self._api.asks.empty():
            self._answer(self._api.asks.get(), now_ms)

    def _watch_threads(self) -> None:
        """A thread that has died is a fault of ours, and nothing to go on without."""
        if not self._keeper.alive:
            raise RuntimeError("the keeper has died")
        if self._api.dead:
            raise RuntimeError(f"the HTTP API has died at {self._api.dead}")

    def _wait_ms(self, now_ms: int) -> int:
        moments = [self._settle_ms, self._core.next_due_ms(), self._prober.next_due_ms()]
        return max(0, min(moment for moment in moments if moment is not None) - now_ms)

    # ----------------------------------------------------------------- load balancers

    def _take_endpoints(self) -> None:
        addresses = self._config.load_balancer.addresses
        self._endpoints = {str(endpoint): endpoint for endpoint in addresses}
        for lb in set(self._links) - set(self._endpoints):
            self._drop_link(lb)
        self._resolver.want(tuple(endpoint.host for endpoint in addresses))

    def _settle(self, now_ms: int) -> None:
        """Once a second, and when a name has been resolved: links, own address, HTTP API."""
        self._settle_keys()
        for lb, endpoint in self._endpoints.items():
            address = self._resolver.address(endpoint.host)
            if address is None:
                self._core.unreached(lb, self._resolver.failure(endpoint.host))
                continue
            place = Address(address, endpoint.port)
            link = self._links.get(lb)
            if link is not None and link.place != place:
                self._drop_link(lb)
                self._core.disconnected(lb, f"{endpoint.host} is now {address}")
                link = None
            if link is None:
                self._add_link(lb, place, now_ms)
        self._own_address = self._find_own_address()
        self._addresses = _all_addresses(self._addresses)
        self._core.load = round(os.getloadavg()[0] / (os.cpu_count() or 1), 3)
        wanted = {LOOPBACK, self._own_address}
        self._api.token_file = self._config.security.api_token_file
        problem = self._api.listen(wanted, self._config.local.api_port)
        if problem and problem != self._api_problem:
            _log.warning("waiting", waiting_for=problem)
        self._api_problem = problem

    def _add_link(self, lb: str, place: Address, now_ms: int) -> None:
        from_ms = self._link_from_ms.get(lb, now_ms)
        if now_ms < from_ms:
            self._settle_ms = min(self._settle_ms, from_ms)
            return
        credentials = self._credentials(lb)
        if isinstance(credentials, str):
            self._core.unreached(lb, credentials)
            return
        timeout_ms = tcp.FAR_CONNECT_TIMEOUT_MS if lb in self._far else tcp.CONNECT_TIMEOUT_MS
        link = self._links[lb] = Link(self._context, place, timeout_ms, credentials)
        self._poller.register(link.socket, zmq.POLLIN)
        self._poller.register(link.monitor, zmq.POLLIN)

    def _credentials(self, lb: str) -> tcp.Credentials | str | None:
        """What to speak to the LB with; in words, what is lacking for that; None: no keys."""
        if self._keys is None:
            return None
        if self._keys.own is None:
            return f"this node's own key: {'; '.join(self._keys.problems)}"
        name = self._endpoints[lb].key_name
        known = self._keys.keys_of(keys.LBS, name)
        if not known:
            path = self._keys.path / keys.LBS / f"{name}{keys.SUFFIX}"
            return f"no key of this load balancer: expected {path}"
        return tcp.Credentials(self._keys.own, known[self._keys_tried[lb] % len(known)])

    def _settle_keys(self) -> None:
        """Links whose keys are not what the directory says any more are made anew."""
        if self._keys is None:
            return
        if self._keys.refresh():
            _log.info("keys read", path=str(self._keys.path))
            for lb, link in list(self._links.items()):
                name = self._endpoints[lb].key_name
                known = self._keys.keys_of(keys.LBS, name)
                used = link.credentials
                if used is None or used.own != self._keys.own or used.server_key not in known:
                    self._drop_link(lb)
                    self._core.disconnected(lb, "the keys have changed")
        if self._keys.problems != self._said_keys:
            self._said_keys = self._keys.problems
            for problem in self._said_keys:
                _log.error("a key cannot be used", problem=problem)

    def _drop_link(self, lb: str) -> None:
        link = self._links.pop(lb, None)
        if link is not None:
            self._poller.unregister(link.socket)
            self._poller.unregister(link.monitor)
            link.close()

    def _serve_link(self, lb: str, link: Link, now_ms: int) -> None:
        for news in link.news():
            if news is LinkEvent.READY:
                self._slow.discard(lb)
                self._core.connected(lb, now_ms)
            elif news is LinkEvent.UNADMITTED:
                self._core.disconnected(lb, f"{link.place.endpoint} does not admit this node's key")
            elif news is LinkEvent.FOREIGN:
                self._keys_tried[lb] += 1
                self._core.disconnected(lb, _foreign(link))
            elif news is LinkEvent.UNREACHED:
                self._suspect(lb, link.place, now_ms)
            else:
                self._core.disconnected(lb, f"the connection to {link.place.endpoint} was lost")
        if link.spent:
            self._renew(lb, now_ms)
            return
        for frames in link.receive():
            self._renewal_ms.pop(lb, None)
            self._core.receive(lb, frames, now_ms)

    def _renew(self, lb: str, now_ms: int) -> None:
        """Have another connection made, after a pause: this one may never come back by itself."""
        self._drop_link(lb)
        pause_ms = self._renewal_ms.get(lb, tcp.RECONNECT_MS)
        self._renewal_ms[lb] = min(2 * pause_ms, LONGEST_RENEWAL_MS)
        self._link_from_ms[lb] = now_ms + pause_ms
        self._settle_ms = min(self._settle_ms, now_ms + pause_ms)

    def _suspect(self, lb: str, place: Address, now_ms: int) -> None:
        """The port cannot be reached: find out whether it refuses, as a wrong one does."""
        if now_ms < self._suspect_from_ms.get(lb, now_ms):
            return
        self._suspect_from_ms[lb] = now_ms + SUSPECT_MS
        self._resolver.ask_again(self._endpoints[lb].host)
        plan = CheckPlan(f"load balancer {lb}", place.port, CheckKind.TCP)
        self._suspected[plan] = lb, now_ms
        self._prober.probe(plan, place.address, now_ms)

    def _answered_late(self, lb: str, now_ms: int) -> None:
        """The port answers, later than a connection waits: if it does so again, wait longer."""
        if lb not in self._slow:
            self._slow.add(lb)
        elif lb not in self._far:
            self._far.add(lb)
            self._renew(lb, now_ms)

    def _find_own_address(self) -> str:
        """The address that the first reachable LB sees this machine at."""
        for link in self._links.values():
            family = socket.AF_INET6 if ":" in link.place.address else socket.AF_INET
            with socket.socket(family, socket.SOCK_DGRAM) as probe:
                try:
                    probe.connect(link.place)  # of UDP: sends nothing
                except OSError:
                    continue
                return str(probe.getsockname()[0])
        return self._own_address

    # ----------------------------------------------------------------- direct return

    def _keep_prepared(self, now_ms: int) -> None:
        """Order what the LBs' services need here; tell the core what has become of it."""
        config, activity = self._config, self._core.activity
        served = frozenset(service.name for service in config.services)
        need = need_of(self._core.offers(), served)
        report = self._keeper.report
        hindrance = report.hindrance if report is not None else ""
        if activity is Activity.STOPPED:
            self._order = Order()
        else:
            self._order = Order(
                need=self._lingering.kept(need, bool(hindrance), now_ms),
                complete=self._core.heard_all,
                lbs=frozenset(link.place.address for link in self._links.values()),
                managed=config.node.manage_network,
                hook=config.node.unwrap,
            )
        self._keeper.order(self._order)
        there = NOTHING_NEEDED
        if report is not None and not hindrance:
            there = report.order.need & need & self._order.need
        if report is not None and report.order.need == self._order.need:
            self._core.prepared(True, hindrance, now_ms, with_what=there)
        else:
            self._core.prepared(not self._order.need.addresses, "", now_ms, with_what=there)
        if activity is Activity.LEAVING:
            ours = report.taken.addresses if report is not None else frozenset()
            self._core.open_flows = open_flows(ours) if ours else 0

    def _network_status(self) -> dict[str, Any]:
        """For `GET /status`: what was prepared, and what is missing."""
        report, order = self._keeper.report, self._order
        if report is None or report.order.need != order.need:
            waiting_for = ["the preparation of this machine"] if order.need.addresses else []
        else:
            waiting_for = list(report.missing)
        return {
            "managed": order.managed,
            "needed": sorted(order.need.addresses),
            "tunnelled": sorted(order.need.tunnelled),
            "refused": sorted(order.need.addresses & order.lbs),
            "prepared": (report.taken if report is not None else NOTHING_TAKEN).as_plain(),
            "waiting_for": waiting_for,
        }

    # ----------------------------------------------------------------- checks and output

    def _checked(self, result: Result, now_ms: int) -> None:
        suspicion = self._suspected.pop(result.plan, None)
        if suspicion is None:
            self._core.checked(result.plan, result.good, result.reason, now_ms)
            return
        lb, asked_ms = suspicion
        link = self._links.get(lb)
        if link is None:
            return
        if result.good:
            if now_ms - asked_ms >= tcp.CONNECT_TIMEOUT_MS and not link.stands:
                self._answered_late(lb, now_ms)
        elif "refused" in result.reason:
            self._core.unreached(lb, _wrong_port(link.place, "refuses connections"))
        else:
            self._core.unreached(lb, f"{link.place.endpoint} cannot be reached: {result.reason}")

    def _work_off(self) -> None:
        output = self._core.take_output()
        for line in output.log:
            _log.info(line)
        for lb, message in output.messages:
            if lb in self._links and not self._links[lb].send(encode_node(message)):
                self._core.unsent(lb)
        for lb in output.reconnect:
            self._drop_link(lb)  # the next settling makes it anew
            self._settle_ms = 0

    def _answer(self, ask: Ask, now_ms: int) -> None:
        if ask.verb == "start":
            self._core.start(now_ms)
        elif ask.verb == "stop":
            self._core.stop(DRAIN_MS if ask.drain_ms is None else ask.drain_ms, now_ms)
        self._core.tick(now_ms)
        self._work_off()
        network = self._network_status()
        waiting_for = "; ".join(network["waiting_for"])
        status = self._core.status(now_ms)
        ask.answer.put({**status, "network": network, "waiting_for": waiting_for})

    # ----------------------------------------------------------------- signals and configuration

    def _heed_signals(self, now_ms: int) -> None:
        if self._signals.take_stop():
            self._core.leave(now_ms)
        if self._signals.take_reload():
            self._reload(now_ms)

    def _reload(self, now_ms: int) -> None:
        config = process.read_again(self._path, load_node)
        if isinstance(config, ConfigError):
            return
        self._config = config
        logs.set_up(config.log.format, config.log.level)
        self._core.configure(_core_config(config), now_ms)
        self._take_endpoints()
        self._settle_ms = now_ms
        _log.info("configuration applied", path=str(self._path))


def _core_config(config: NodeConfig) -> AgentConfig:
    return AgentConfig(
        name=config.node.name,
        weight=config.node.weight,
        backup=config.node.backup,
        lbs=tuple(str(endpoint) for endpoint in config.load_balancer.addresses),
        named=tuple(
            CheckPlan(
                service=service.name,
                port=service.port,
                kind=CheckKind(service.check.type),
                path=service.check.path,
                interval_ms=service.check.interval_ms,
                timeout_ms=service.check.timeout_ms,
            )
            for service in config.services
        ),
    )


def _foreign(link: Link) -> str:
    what = "does not speak Gale's node protocol"
    if link.credentials is None:
        return _wrong_port(link.place, f"{what}, or not without keys (security.keys)")
    key = link.credentials.server_key.decode()
    return _wrong_port(link.place, f"{what}, or not with the key {key} and this node's")


def _wrong_port(place: Address, what: str) -> str:
    """The commonest mistake: a port here that is not the LB's."""
    return (
        f"{place.endpoint} {what}: port must be the load balancer's local.node_port,"
        f" which is {USUAL_PORT} by default"
    )


def _all_addresses(before: frozenset[str]) -> frozenset[str]:
    """This machine's; as before, if it cannot say at the moment (no descriptor left, say)."""
    try:
        return frozenset(each.address for each in all_addresses())
    except OSError:
        return before


def _now_ms() -> int:
    return time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1_000_000


if __name__ == "__main__":
    main()
