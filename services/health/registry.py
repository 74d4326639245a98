"""The registry: what this LB knows of its nodes, and what follows from it. Pure.

Each node stands in one of six states. `standing.TRANSITIONS` is the whole of what may happen; any
other step raises, since it would be a mistake of this file.

    hello ──► PROBATION ──checks_before_routing good checks──► UP ◄──serving again── DRAINING
                 │  ▲                                        │  └──shutting down──►    │
                 │  └──a good check──┐                       │                         │
                 └──────────────────► DOWN ◄──missed deadline, not serving─────────────┘
                                      │  ▲
         too many failures of UP nodes└──┴──the ban is over── BANNED

Rules that are not seen in the picture:

* A **good check** is a heartbeat that says SERVING and was sent within the last `checks_timeout`.
  Checks are counted at most once per half of the probation interval, so that haste earns nothing.
  NOT_SERVING, or silence, sets the count to 0; SHUTTING_DOWN leaves it alone, for it is no failure:
  an agent that is restarted, with or without saying goodbye, finds its node UP.
* A **failure** is a step from UP to DOWN, for silence or for NOT_SERVING. What goes DOWN from
  DRAINING or PROBATION has not failed, nor has a node that was adopted after a restart and never
  heard. At `black_list_after_fails` failures the node is BANNED; its beats are ignored and answered
  with the time left. The end of the ban sets the count to 0. -1 never bans.
* **Failures fade**: for each `black_list_expiry` that a node is UP without a break, one is
  forgotten; so a restart of its server now and then adds up to no ban. And of the nodes of one
  service no more than half are banned at a time (a lone node may be): what restarts them one after
  the other, over and over, is more likely an operator than a fault of each.
* **What fails together has not failed**: see `together`. The failures of more than half of a
  service's UP nodes within one `checks_timeout` count for none of them.
* **A service of a node** that its agent says it does not serve, or that is new to the node, stands
  apart (`standing.Standing`): it goes through the same states, by checks, failures and bans of its
  own, and the node's other services do not hear of it. A node of which all services are sick is
  itself NOT_SERVING. A ban of a service ends with the first beat after it.
* **Time** is the caller's monotonic clock. When a node was last seen is worked out from the agent's
  own stamps (clock_offset.py). If this process was stopped or starved
  for N ms, `lagged` moves every deadline N ms later, until the node's next heartbeat: the missing
  beats may be ours, not the node's.
* **Mass silence.** When more than half of a service's UP nodes (and at least two) are silent
  together, the fault is more likely here than there. They stay UP for at most one more
  `checks_timeout`, then it is believed; those that are heard meanwhile end the hold for the rest.
  NOT_SERVING is a node's own word and is never held. What fell silent together has not failed.
* **Silence alone does not empty a ring.** A silent node of which a service cannot do without
  (`min_healthy` of the nodes known for it would not be routed to) becomes SUSPECT instead of DOWN:
  it is routed to as before, and said so, until it is heard, or says NOT_SERVING, or this LB's own
  probe (probe.py) gets no answer from it either. Its services that can do without it are DOWN.
* **Orders** of operators stand in the node table, and are for the quorum to carry out: here nodes
  are watched as ever. Two things are done here (`heed`): a pardon ends the bans of a node and of
  its services, and its failures, once; and a node that is drained or banned by order is none of
  those that a service has left.
* **The probe.** A TCP service in mode L4 that this LB cannot connect to counts as sick, whatever
  the agent says.
* **After a restart** the caller hands in the state file (`adopt`) and, while the first
  `checks_timeout` lasts, the committed table (`adopt_table`). Adopted nodes count as seen at that
  moment: that is their grace. What the state file says goes before what the table says.
* **Silent** is a DOWN or BANNED node of which nothing was heard for a `checks_timeout`: one that
  missed its deadline, and also one that said NOT_SERVING and was not heard since. It is what tells
  a dead machine, whose flows nobody serves, from one that only wants no more.
* **Prepared**: an agent says for which modes its machine is prepared, service by service, when that
  changes. It goes out with the services of the view; an agent that never says so is taken for one
  that is prepared for all. After a restart of the agent its first beat decides.
* A heartbeat on a connection that never sent a Hello is answered with Refused(retry_ms=0), "say
  hello first". That is how an agent learns that this process was restarted.
* An agent may have several connections at once: when one was lost and nobody noticed here, or when
  its file names this LB twice. It is heard on each of the last `MOST_SESSIONS`, answered on each,
  and beats are numbered by connection: no number says anything about another connection's.
* A second agent of the same name and address is told so; the one that came first is not let back.
* **Who a node is**: its name and the address that it comes from; or, where keys are used, whoever
  its key stands for, wherever it comes from. An agent that gives another name than its key's is
  refused. A node with a key that comes from another address is looked at anew. A key that is taken
  off the list (`keys_changed`) ends what it had opened, and takes its node down.
* A DOWN node that was not heard for `FORGET_MS` is forgotten, with its failures; one that has never
  been UP after `STRANGER_MS`. Of one address no more than `MOST_NODES_OF_ADDRESS` are known at a
  time, and of all no more than `MAX_NODES`. A connection that goes on to name other nodes is at
  fault for each, and is so cut off before long: names are what costs all LBs, and they are cheap.

Inputs are methods, with the time; outputs collect in `take_output()`: messages to connections,
events for the bus, whether the view or what must be kept on disk has changed. A heartbeat that
changes nothing costs no more than a few field writes: it shows in `checks` alone, and deadlines are
looked up when they are due, in a heap that holds one live entry per node.
"""

from __future__ import annotations

import heapq
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from bus.codec import MalformedMessage
from bus.events import NodeEvent
from bus.node_protocol import (
    NODE_VERSION,
    Heartbeat,
    Hello,
    NodeMessage,
    Prepared,
    Refused,
    Sick,
    Welcome,
    decode_node,
)
from bus.orders import OrderKind
from bus.states import (
    Ban,
    LocalChecks,
    LocalView,
    NodeService,
    NodeTable,
    NodeView,
    ServiceState,
    TableNode,
    without_orders,
)
from bus.topics import Topic
from bus.words import (
    Mode,
    NodeState,
    Protocol,
    ServingStatus,
    is_ipv4,
    one_line,
)
from services.health.clock_offset import ClockOffset
from services.health.model import Happened, KeptNode, KeptService, Node, Output, Policy, Send
from services.health.peer_faults import PeerFaults, heartbeat_problem, hello_problem
from services.health.places import Outcome, Spot, in_words
from services.health.standing import (
    BANNED,
    DEAD,
    DOWN,
    DRAINING,
    PROBATION,
    ROUTED,
    SUSPECT,
    UP,
    Standing,
    checked_step,
)
from services.health.together import Failure, RecentFailures

L4_ALONE = (Mode.L4,)

FORGET_MS = 24 * 3_600_000
STRANGER_MS = 10_000
MAX_NODES = 20_000
MOST_NODES_OF_ADDRESS = 64
"""Agents of one machine: one for each service, say."""
MOST_SESSIONS = 4
SAME_NAME_RETRY_MS = 10_000
KEY_GONE = "its key is not admitted any more"
TICK_SPACING_MS = 5
"""Deadlines closer together than this, and 1 ms more for each 250 nodes, are judged together."""


class Registry:
    def __init__(
        self, policy: Policy, now_ms: int, name_of: Callable[[str], str | None] | None = None
    ) -> None:
        """`name_of`: whom a key stands for; None: not admitted. Without it no keys are used."""
        self.policy = policy
        self._name_of = name_of
        self.faults = PeerFaults()
        self._nodes: dict[str, Node] = {}
        self._by_connection: dict[bytes, Node] = {}
        self._deadlines: list[tuple[int, str]] = []
        self._lag_total_ms = 0
        self._lags: deque[tuple[int, int]] = deque(maxlen=64)
        self._grace_ends_ms = now_ms + policy.checks_timeout_ms
        self._ticked_ms = now_ms - TICK_SPACING_MS
        self._of_address: Counter[str] = Counter()
        """How many nodes are known, by address."""
        self._census: tuple[Counter[str], Counter[str]] | None = None
        """By service: how many nodes are known, and how many are banned. None: to be counted."""
        self._unreached: dict[str, dict[int, Outcome]] = {}
        """By address and port: what this LB's own probe could not connect to."""
        self._failures = RecentFailures()
        self._forgiven: set[Failure] = set()
        self._table_epoch = 0
        self._ordered_out: frozenset[str] = frozenset()
        """The nodes that take no new flows because an operator wants that."""
        self._version = self._checks_version = 0
        self._output = Output()

    # ----------------------------------------------------------------- from the agents

    def receive(
        self, connection: bytes, address: str, frames: list[bytes], now_ms: int, key: str = ""
    ) -> None:
        """Take one message of the node protocol from a connection whose peer is `address`.

        `key`: the peer's, where keys are used.
        """
        if self.faults.ignores(connection, now_ms):
            return
        if not connection.startswith(b"\0"):
            # libzmq's own begin so; a name that a peer chose may be another's when it is gone.
            self._fault(connection, "own_routing_id", now_ms)
            return
        try:
            message = decode_node(frames)
        except MalformedMessage:
            self._fault(connection, "malformed", now_ms)
            return
        match message:
            case Heartbeat():
                self._heartbeat(connection, message, now_ms)
            case Hello():
                self._hello(connection, address, key, message, now_ms)
            case _:
                self._fault(connection, "unexpected_kind", now_ms)

    def _hello(self, connection: bytes, address: str, key: str, hello: Hello, now_ms: int) -> None:
        if hello.v != NODE_VERSION:
            self._fault(connection, "version", now_ms)
            text = f"node protocol {hello.v}, this load balancer speaks {NODE_VERSION}"
            self._send(connection, Refused(text, SAME_NAME_RETRY_MS))
            return
        if problem := hello_problem(hello):
            self._fault(connection, "bad_hello", now_ms)
            self._send(connection, Refused(problem, SAME_NAME_RETRY_MS))
            return
        if self._name_of is not None and not self._is_its_key(connection, key, hello, now_ms):
            return
        node_id, other_id = f"{hello.name}@{address}", hello.name
        if self._name_of is not None:
            node_id, other_id = other_id, node_id
        node = self._nodes.get(node_id)
        spoken_for = self._by_connection.get(connection)
        if spoken_for is not None and spoken_for is not node:
            self._fault(connection, "another_name", now_ms)
        if node is None:
            if full := self._why_full(address):
                self.faults.rejected["registry_full"] += 1
                self._send(connection, Refused(full, SAME_NAME_RETRY_MS))
                return
            former = self._nodes.get(other_id)
            if former is not None and former.address == address and not former.heard:
                self._forget(former)  # the same, from before keys were used, or no longer were
            node = self._join(node_id, address, hello, now_ms)
        elif node.former_boot == hello.boot:
            self.faults.rejected["same_name"] += 1
            text = f"another agent named {hello.name} has since started at {address}"
            self._send(connection, Refused(text, SAME_NAME_RETRY_MS))
            return
        self._attach(node, connection, hello.boot)
        if key:
            node.keys[connection] = key
        if node.address != address:
            self._move(node, address, now_ms)
        self._describe(node, hello, now_ms)
        self._answer(node, now_ms)

    def _is_its_key(self, connection: bytes, key: str, hello: Hello, now_ms: int) -> bool:
        """Whether a peer's key is admitted under the name that it gives; if not, it is told so."""
        assert self._name_of is not None
        owner = self._name_of(key)
        if owner == hello.name:
            return True
        if owner is None:
            reason, text = "key_not_admitted", KEY_GONE
        else:
            reason, text = "name_of_another_key", f"this is the key of {owner}, not {hello.name}"
        self._fault(connection, reason, now_ms)
        self._send(connection, Refused(text, SAME_NAME_RETRY_MS))
        return False

    def _move(self, node: Node, address: str, now_ms: int) -> None:
        """The machine with the node's key is at another address, where nobody has checked it."""
        self._of_address[node.address] -= 1
        if not self._of_address[node.address]:
            del self._of_address[node.address]
        self._of_address[address] += 1
        reason = f"now at {address}, before at {node.address}"
        node.address = address
        self._take_down(node, reason, now_ms, counts=False)
        self._output.view_changed = self._output.keep = True

    def keys_changed(self, now_ms: int) -> None:
        """Other keys are admitted from now on: what a key has opened that is not, is over."""
        assert self._name_of is not None
        for node in list(self._nodes.values()):
            for connection, key in list(node.keys.items()):
                if self._name_of(key) != node.id:
                    self._close(node, connection)
                    self._send(connection, Refused(KEY_GONE, SAME_NAME_RETRY_MS))
                    if not node.sessions:
                        self._take_down(node, KEY_GONE, now_ms, counts=False)

    def _why_full(self, address: str) -> str:
        """Why no other node of that address can join; empty: it can."""
        if self._of_address[address] >= MOST_NODES_OF_ADDRESS:
            return f"this load balancer already knows {MOST_NODES_OF_ADDRESS} nodes at {address}"
        if len(self._nodes) >= MAX_NODES:
            return f"this load balancer already knows {MAX_NODES} nodes"
        return ""

    def _join(self, node_id: str, address: str, hello: Hello, now_ms: int) -> Node:
        node = Node(
            id=node_id,
            name=hello.name,
            address=address,
            weight=hello.weight,
            named=hello.services,
            services=self._served(hello.services, None),
            state=PROBATION,
            reason="on probation",
            last_seen_ms=now_ms,
            lag_mark_ms=self._lag_total_ms,
            pardoned_epoch=self._table_epoch,
        )
        self._add(node)
        self._schedule(node, self._due_ms(node))
        self._tell(Topic.NODE_JOINED, node, None, now_ms)
        return node

    def _add(self, node: Node) -> None:
        self._nodes[node.id] = node
        self._of_address[node.address] += 1
        self._census = None

    def _attach(self, node: Node, connection: bytes, boot: str) -> None:
        """From now on `connection` speaks for this node and no other."""
        former = self._by_connection.get(connection)
        if former is not None and former is not node:
            self._close(former, connection)
        if node.clock is None or node.clock.boot != boot:
            self._detach(node)
            node.former_boot = node.clock.boot if node.clock is not None else None
            node.clock = ClockOffset(boot)
            node.has_beaten = False
            node.sick = None
        node.sessions[connection] = node.sessions.pop(connection, -1)
        self._by_connection[connection] = node
        if len(node.sessions) > MOST_SESSIONS:
            self._close(node, next(iter(node.sessions)))

    def _close(self, node: Node, connection: bytes) -> None:
        """The connection does not speak for the node any more."""
        del node.sessions[connection], self._by_connection[connection]
        node.keys.pop(connection, None)

    def _detach(self, node: Node) -> None:
        """No connection speaks for the node any more."""
        for connection in list(node.sessions):
            self._close(node, connection)

    def _describe(self, node: Node, hello: Hello, now_ms: int) -> None:
        if (node.weight, node.backup) != (hello.weight, hello.backup):
            self._output.view_changed = self._output.keep = True
        node.weight, node.backup = hello.weight, hello.backup
        node.named = hello.services
        self._serve(node, self._served(hello.services, node.prepared), now_ms)

    def _heartbeat(self, connection: bytes, beat: Heartbeat, now_ms: int) -> None:
        node = self._by_connection.get(connection)
        if node is None or node.clock is None:
            self._fault(connection, "no_hello", now_ms)
            self._send(connection, Refused("say hello first", 0))
            return
        if problem := heartbeat_problem(beat):
            self._fault(connection, problem, now_ms)
            return
        if beat.seq <= node.sessions[connection]:
            self.faults.rejected["repeated"] += 1
            return
        node.sessions[connection] = beat.seq
        # Nothing new on a new connection says nothing; on the first of a new agent it does.
        if beat.prepared is not None or not node.has_beaten:
            self._prepared(node, beat.prepared, now_ms)
        if beat.sick is not None:
            node.sick = _by_service(beat.sick)
        node.has_beaten = True
        sent_ms = node.clock.sent_on_our_clock(beat.sent_ms, now_ms)
        self._heard(node, beat, sent_ms, now_ms)
        if node.state is BANNED:
            self._answer(node, now_ms)
            return
        sick = self._sick_of(node)
        leaves = beat.status is ServingStatus.SHUTTING_DOWN
        if not leaves and self._serves_nothing(node, beat, sick):
            why = next(iter(sick.values()), "")
            self._not_serving(node, beat.reason or why, now_ms)
        else:
            if sick or node.apart:
                self._judge_services(node, sick, sent_ms, now_ms)
            if leaves:
                self._shutting_down(node, now_ms)
            else:
                self._good_check(node, sent_ms, now_ms)

    def _heard(self, node: Node, beat: Heartbeat, sent_ms: int, now_ms: int) -> None:
        """What a beat shows, whatever it says."""
        node.heard = True
        node.load = beat.load
        if sent_ms >= node.last_seen_ms:
            node.last_seen_ms = sent_ms
            node.lag_mark_ms = self._lag_before_ms(sent_ms)
        if node.silent and sent_ms + self.policy.checks_timeout_ms > now_ms:
            node.silent = False
            self._schedule(node, self._due_ms(node))
            self._output.view_changed = self._output.keep = True

    def _prepared(self, node: Node, prepared: tuple[Prepared, ...] | None, now_ms: int) -> None:
        """For which modes its machine is prepared, the agent says, or that it does not know."""
        if prepared is None:
            node.prepared = None
        else:
            node.prepared = {
                name: tuple(sorted({*each.modes, Mode.L4}))
                for each in prepared
                for name in each.services
            }
        self._serve(node, self._served(node.named, node.prepared), now_ms)

    def _good_check(self, node: Node, sent_ms: int, now_ms: int) -> None:
        if sent_ms + self.policy.checks_timeout_ms <= now_ms:
            return  # it was in time when it was sent, which says nothing of the node now
        node.good_total += 1
        if node.held:
            node.held = False
            node.reason = "heard again"
            self._output.view_changed = True
        if node.state is SUSPECT:
            self._enter(node, UP, "heard again", now_ms)
        if node.state is UP:
            node.passed += 1
            return
        spacing_ms = self.policy.interval_ms(PROBATION) // 2
        if node.counted_ms is None or sent_ms - node.counted_ms >= spacing_ms:
            node.counted_ms = sent_ms
            node.passed += 1
        if node.state is DOWN and node.passed > 0:
            self._enter(node, PROBATION, "on probation", now_ms)
        if node.passed >= self.policy.checks_before_routing:
            self._enter(node, UP, f"{node.passed} checks passed", now_ms)

    def _not_serving(self, node: Node, reason: str, now_ms: int) -> None:
        node.bad_total += 1
        why = one_line(reason)
        self._take_down(node, f"not serving: {why}" if why else "not serving", now_ms)

    def _shutting_down(self, node: Node, now_ms: int) -> None:
        if node.state in (UP, SUSPECT):
            self._enter(node, DRAINING, "its agent is shutting down", now_ms)
        elif node.state is PROBATION:
            self._take_down(node, "its agent is shutting down", now_ms)

    # ----------------------------------------------------------------- time

    def tick(self, now_ms: int) -> None:
        """Act on every deadline that has passed. Call it when the input has been drained."""
        self._ticked_ms = now_ms
        silent: list[Node] = []
        while self._deadlines and self._deadlines[0][0] <= now_ms:
            at_ms, node_id = heapq.heappop(self._deadlines)
            node = self._nodes.get(node_id)
            if node is None or node.scheduled_ms != at_ms:
                continue
            node.scheduled_ms = None
            due_ms = self._due_ms(node)
            if due_ms > now_ms:
                self._schedule(node, due_ms)
            elif node.state in (UP, SUSPECT):
                silent.append(node)
            else:
                self._overdue(node, now_ms)
        if silent:
            self._judge_silence(silent, now_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never."""
        if not self._deadlines:
            return None
        spacing_ms = TICK_SPACING_MS + len(self._nodes) // 250
        return max(self._deadlines[0][0], self._ticked_ms + spacing_ms)

    def lagged(self, lag_ms: int, now_ms: int) -> None:
        """This loop was late by `lag_ms`: no node is to be blamed for that time."""
        self._lags.append((now_ms, self._lag_total_ms))
        self._lag_total_ms += lag_ms

    def _lag_before_ms(self, moment_ms: int) -> int:
        """The total lag before the first one that was noticed after `moment_ms`."""
        if not self._lags or self._lags[-1][0] <= moment_ms:
            return self._lag_total_ms
        return next(before_ms for noticed_ms, before_ms in self._lags if noticed_ms > moment_ms)

    def _overdue(self, node: Node, now_ms: int) -> None:
        if node.state is BANNED and now_ms >= node.ban_until_ms:
            node.fails = 0
            self._enter(node, DOWN, "the ban is over", now_ms)
        elif node.state in DEAD and not node.silent:
            self._fall_silent(node, now_ms)
        elif node.state is DOWN:
            self._forget(node)
        else:
            self._miss(node, now_ms)

    def _fall_silent(self, node: Node, now_ms: int) -> None:
        """A node that is dead already is not heard any more either."""
        node.silent = True
        if node.state is DOWN:
            node.reason = self._silence(node, now_ms)
        self._schedule(node, self._due_ms(node))
        self._output.view_changed = self._output.keep = True

    def _miss(self, node: Node, now_ms: int, *, together: bool = False) -> None:
        """A node has missed its deadline; `together`: with too many others for a failure of its
        own.
        """
        node.bad_total += 1
        node.silent = True
        self._take_down(node, self._silence(node, now_ms), now_ms, counts=not together)

    def _judge_silence(self, silent: list[Node], now_ms: int) -> None:
        """Take UP nodes that missed their deadline down, unless too many did so together."""
        together = self._silent_together(now_ms)
        known, routed = self._routed()
        for node in silent:
            why = next((together[s.name] for s in node.services if s.name in together), None)
            limit_ms = self._due_ms(node) + self.policy.checks_timeout_ms
            if why is None or now_ms >= limit_ms or node.state is SUSPECT:
                self._doubt(node, known, routed, now_ms, together=why is not None or node.held)
                continue
            if not node.held:
                node.held = True
                node.reason = f"held for now: {why}"
                self._output.view_changed = True
            look_again_ms = max(20, self.policy.checks_timeout_ms // 100)
            self._schedule(node, min(limit_ms, now_ms + look_again_ms))

    def _silent_together(self, now_ms: int) -> dict[str, str]:
        """The services of which more than half of the UP nodes have missed a beat, in words."""
        routed: Counter[str] = Counter()
        silent: Counter[str] = Counter()
        early_ms = self.policy.checks_timeout_ms - self.policy.late_ms
        for node in self._nodes.values():
            if node.state is not UP:
                continue
            late = now_ms >= self._due_ms(node) - early_ms
            for service in node.services:
                routed[service.name] += 1
                silent[service.name] += late
        return {
            name: f"{silent[name]} of {routed[name]} nodes of {name} fell silent together"
            for name in routed
            if silent[name] >= 2 and 2 * silent[name] > routed[name]
        }

    def _routed(self) -> tuple[Counter[str], Counter[str]]:
        """By service, how many nodes have ever been UP, and how many take its new flows."""
        known: Counter[str] = Counter()
        routed: Counter[str] = Counter()
        for node in self._nodes.values():
            if node.id in self._ordered_out:
                continue
            if node.was_up:
                known.update([service.name for service in node.services])
            if node.state in (UP, SUSPECT):
                routed.update(self._taken_by(node))
        return known, routed

    @staticmethod
    def _taken_by(node: Node) -> list[str]:
        """The services of a node that is UP or SUSPECT whose new flows it takes."""
        apart = {name for name, each in node.apart.items() if each.state is not UP}
        return [service.name for service in node.services if service.name not in apart]

    def _doubt(
        self, node: Node, known: Counter[str], routed: Counter[str], now_ms: int, *, together: bool
    ) -> None:
        """A node is silent, for longer than is forgiven: DOWN, or SUSPECT where it is needed."""
        taken = self._taken_by(node)
        needed = [
            name
            for name in taken
            if routed[name] - 1 < self.policy.needed(name, known[name])
            and not self._is_gone(node, name)
        ]
        routed.subtract(name for name in taken if name not in needed)
        if not needed:
            self._miss(node, now_ms, together=together or node.state is SUSPECT)
            return
        node.suspect_until_ms = now_ms + self.policy.checks_timeout_ms
        if node.state is UP:
            node.bad_total += 1
            few = f"too few others serve {', '.join(needed)}"
            self._enter(node, SUSPECT, one_line(f"{self._silence(node, now_ms)}; {few}"), now_ms)
        for name in taken:
            if name not in needed:
                node.apart.setdefault(name, Standing(UP, "", now_ms)).start_anew()
                self._step(node, name, DOWN, self._silence(node, now_ms), now_ms)
        self._schedule(node, node.suspect_until_ms)

    def _silence(self, node: Node, now_ms: int) -> str:
        if not node.heard:
            return "not heard since this load balancer's health process restarted"
        return f"no heartbeat for {now_ms - node.last_seen_ms} ms"

    def _due_ms(self, node: Node) -> int:
        """When something becomes of the node if it is not heard."""
        extension_ms = self._lag_total_ms - node.lag_mark_ms
        silent_ms = node.last_seen_ms + self.policy.checks_timeout_ms + extension_ms
        if node.state is SUSPECT:
            return node.suspect_until_ms
        if node.state is BANNED:
            return node.ban_until_ms if node.silent else min(node.ban_until_ms, silent_ms)
        if node.state is DOWN and node.silent:
            return node.last_seen_ms + (FORGET_MS if node.was_up else STRANGER_MS)
        return silent_ms

    def _schedule(self, node: Node, at_ms: int) -> None:
        """Have `tick` look at the node at `at_ms`, or sooner if it will do so anyway."""
        if node.scheduled_ms is not None and node.scheduled_ms <= at_ms:
            return
        node.scheduled_ms = at_ms
        heapq.heappush(self._deadlines, (at_ms, node.id))
        if len(self._deadlines) > 4 * len(self._nodes) + 64:
            self._reschedule()

    def _reschedule(self) -> None:
        """Build the heap anew, from the nodes as they are."""
        for node in self._nodes.values():
            node.scheduled_ms = self._due_ms(node)
        self._deadlines = [(self._due_ms(node), node.id) for node in self._nodes.values()]
        heapq.heapify(self._deadlines)

    def _forget(self, node: Node) -> None:
        del self._nodes[node.id]
        self._of_address[node.address] -= 1
        if not self._of_address[node.address]:
            del self._of_address[node.address]
        self._detach(node)
        self._census = None
        self._output.view_changed = self._output.keep = True

    # ----------------------------------------------------------------- transitions

    def _take_down(self, node: Node, reason: str, now_ms: int, *, counts: bool = True) -> None:
        """To DOWN from wherever it is; from UP, and heard, that is a failure, if it `counts`."""
        node.passed = 0
        node.counted_ms = None
        for standing in node.apart.values():
            standing.start_anew()
        if node.state is DOWN:
            if node.reason != reason:
                node.reason = reason
                self._output.view_changed = True
            return
        failed = node.state is UP and node.heard and counts
        self._fade(node, now_ms)
        names = [service.name for service in node.services]
        shared = self._failed_with_others(Failure(node.id), names, now_ms) if failed else ""
        counted = failed and not shared
        node.fails += counted
        due = counted and self._has_failed_enough(node.fails)
        spared = self._why_spared(names, node.fails) if due else shared
        self._enter(node, DOWN, f"{reason}; {spared}" if spared else reason, now_ms)
        if due and not spared:
            node.ban_until_ms = now_ms + self.policy.black_list_expiry_ms
            self._enter(node, BANNED, f"banned after {node.fails} failures", now_ms)

    def _failed_with_others(self, failure: Failure, names: list[str], now_ms: int) -> str:
        """With whom the failure came together, in words; then those of the others do not count
        either. Empty: it stands for itself.
        """
        window_ms = self.policy.checks_timeout_ms
        said, together = self._failures.add(failure, names, now_ms, window_ms, self._up_now)
        for each in together:
            node = self._nodes.get(each.node)
            if each != failure and each not in self._forgiven and node is not None:
                self._forgive(node, each.service, said, now_ms)
        self._forgiven = (self._forgiven & set(together)) | set(together)
        return f"not counted: {said}" if said else ""

    def _up_now(self) -> Counter[str]:
        """By service, the nodes that are UP, as those are that are not: mostly they are few."""
        up = Counter(self._counted()[0])
        for node in self._nodes.values():
            if node.state is not UP:
                up.subtract([service.name for service in node.services])
        return up

    def _forgive(self, node: Node, name: str, why: str, now_ms: int) -> None:
        """One failure of the node, or of a service of it, was none, nor is the ban that it made."""
        about: Node | Standing | None = node.apart.get(name) if name else node
        if about is None:
            return
        about.fails = max(0, about.fails - 1)
        if about.state is BANNED and name:
            self._step(node, name, DOWN, f"pardoned: {why}", now_ms)
        elif about.state is BANNED:
            self._enter(node, DOWN, f"pardoned: {why}", now_ms)
        self._output.view_changed = self._output.keep = True

    def _fade(self, node: Node, now_ms: int) -> None:
        """Forget one failure for each expiry of a ban that the node has been UP."""
        if node.state is UP:
            expiry_ms = self.policy.black_list_expiry_ms
            faded = (now_ms - node.fading_from_ms) // expiry_ms
            node.fading_from_ms += faded * expiry_ms
            if faded and node.fails:
                node.fails = max(0, node.fails - faded)
                self._output.view_changed = True

    def _has_failed_enough(self, fails: int) -> bool:
        return 0 < self.policy.black_list_after_fails <= fails

    def _why_spared(self, names: Iterable[str], fails: int) -> str:
        """Why a node, or one service of it, is not banned after so many failures; empty: it is."""
        known, banned = self._counted()
        for name in names:
            if banned[name] >= max(1, known[name] // 2):
                count = f"{banned[name]} of {known[name]}"
                return f"not banned after {fails} failures: {count} nodes of {name} are"
        return ""

    def _counted(self) -> tuple[Counter[str], Counter[str]]:
        if self._census is None:
            known: Counter[str] = Counter()
            banned: Counter[str] = Counter()
            for node in self._nodes.values():
                names = {service.name for service in node.services}
                known.update(names)
                banned.update(names if node.state is BANNED else _banned_alone(node))
            self._census = known, banned
        return self._census

    def _enter(self, node: Node, state: NodeState, reason: str, now_ms: int) -> None:
        previous = node.state
        topic = checked_step(node.id, previous, state, reason)
        self._fade(node, now_ms)
        node.state = state
        node.was_up |= state is UP
        node.fading_from_ms = now_ms
        if previous is BANNED:
            self._census = None
        elif state is BANNED and self._census is not None:
            # Counting all anew for each of very many bans would take too long.
            names = {service.name for service in node.services}
            self._census[1].update(names - _banned_alone(node))
        node.reason = reason
        node.held = False
        self._schedule(node, self._due_ms(node))
        if topic is not None:
            self._tell(topic, node, previous, now_ms)
        self._output.view_changed = self._output.keep = True
        self._answer(node, now_ms)

    def _tell(
        self,
        topic: Topic,
        node: Node,
        previous: NodeState | None,
        now_ms: int,
        service: str = "",
    ) -> None:
        about: Node | Standing = node.apart[service] if service else node
        event = NodeEvent(
            id=node.id,
            name=node.name,
            address=node.address,
            state=about.state,
            previous=previous,
            reason=about.reason,
            fails=about.fails,
            banned_for_ms=self._banned_for_ms(about, now_ms),
            service=service,
        )
        self._output.events.append(Happened(topic, event))
        self._output.view_changed = self._output.keep = True

    # ----------------------------------------------------------------- services apart

    def _serve(self, node: Node, services: tuple[NodeService, ...], now_ms: int) -> None:
        """The node serves these from now on: those that are new to it after their own checks."""
        if services == node.services:
            return
        former = {service.name for service in node.services}
        names = [service.name for service in services]
        if node.state in ROUTED:
            for name in names:
                if name not in former:
                    node.apart[name] = Standing(PROBATION, "on probation", now_ms)
        for name in former.difference(names):
            node.apart.pop(name, None)
        node.services = services
        self._census = None
        self._output.view_changed = self._output.keep = True

    def _sick_of(self, node: Node) -> Mapping[str, str]:
        """By service, why it is not served there: as the agent says, or as the probe found."""
        said = node.sick or {}
        found = self._unreached.get(node.address)
        if not found:
            return said
        connected = self._connected_to()
        unreached = {
            service.name: in_words(Spot(node.address, service.port), found[service.port])
            for service in node.services
            if service.port in found and service.name in connected
        }
        return unreached | said

    def _connected_to(self) -> set[str]:
        """The services of which a connection to a node that fails says all."""
        tcp_in_l4 = (Protocol.TCP, Mode.L4)
        return {s.name for s in self.policy.services if (s.protocol, s.mode) == tcp_in_l4}

    def _is_gone(self, node: Node, name: str) -> bool:
        """Whether the probe bears out that the silent node does not serve this."""
        found = self._unreached.get(node.address, {})
        port = next((each.port for each in node.services if each.name == name), 0)
        outcome = found.get(port)
        return outcome is Outcome.UNANSWERED or (
            outcome is Outcome.REFUSED and name in self._connected_to()
        )

    def spots(self, most: int) -> list[Spot]:
        """What to probe, at most so much: one place of each node before the second of any."""
        offered = {service.name for service in self.policy.services}
        live = [node for node in self._nodes.values() if node.state not in DEAD or not node.silent]
        own = [[s.port for s in node.services if s.name in offered] for node in live]
        found: dict[Spot, None] = {}
        for number in range(max(map(len, own), default=0)):
            for node, ports in zip(live, own, strict=True):
                if number < len(ports):
                    found[Spot(node.address, ports[number])] = None
            if len(found) >= most:
                break
        return list(found)[:most]

    def probed(self, spot: Spot, outcome: Outcome | None, now_ms: int) -> None:
        """What this LB's own connection to a place says; None: it is not looked at any more."""
        found = self._unreached.setdefault(spot.address, {})
        found.pop(spot.port, None)
        if outcome not in (None, Outcome.OPEN):
            found[spot.port] = outcome
        if not found:
            del self._unreached[spot.address]
            return
        suspects = [n for n in self._nodes.values() if n.state is SUSPECT]
        here = [node for node in suspects if node.address == spot.address]
        if here:
            self._judge_silence(here, now_ms)

    def _serves_nothing(self, node: Node, beat: Heartbeat, sick: Mapping[str, str]) -> bool:
        """Whether none of this LB's services is served there."""
        if beat.status is ServingStatus.NOT_SERVING and not node.sick:
            return True
        if not sick:
            return False
        offered = {service.name for service in self.policy.services}
        names = {service.name for service in node.services}
        return sick.keys() >= ((names & offered) or names)

    def _judge_services(
        self, node: Node, sick: Mapping[str, str], sent_ms: int, now_ms: int
    ) -> None:
        """What a beat says of the services one by one. That comes first: a node that comes up now
        comes up without those that are sick.
        """
        for service in node.services:
            if service.name in sick:
                self._service_sick(node, service.name, sick[service.name], now_ms)
        if sent_ms + self.policy.checks_timeout_ms <= now_ms:
            return
        for name, standing in list(node.apart.items()):
            if name not in sick:
                self._service_well(node, name, standing, sent_ms, now_ms)

    def _service_sick(self, node: Node, name: str, why: str, now_ms: int) -> None:
        reason = f"not serving: {why}" if why else "not serving"
        standing = node.apart.get(name)
        if standing is None:
            routed = node.state in ROUTED
            standing = node.apart[name] = Standing(UP if routed else DOWN, reason, now_ms)
            self._output.view_changed = self._output.keep = True
        standing.start_anew()
        self._end_ban(node, name, standing, now_ms)
        if standing.state in DEAD:
            if standing.state is DOWN and standing.reason != reason:
                standing.reason = reason
                self._output.view_changed = True
            return
        failed = standing.state is UP and node.state is UP and node.heard
        standing.fade(self.policy.black_list_expiry_ms, now_ms)
        shared = self._failed_with_others(Failure(node.id, name), [name], now_ms) if failed else ""
        counted = failed and not shared
        standing.fails += counted
        due = counted and self._has_failed_enough(standing.fails)
        spared = self._why_spared([name], standing.fails) if due else shared
        self._step(node, name, DOWN, f"{reason}; {spared}" if spared else reason, now_ms)
        if due and not spared:
            standing.ban_until_ms = now_ms + self.policy.black_list_expiry_ms
            self._step(node, name, BANNED, f"banned after {standing.fails} failures", now_ms)

    def _service_well(
        self, node: Node, name: str, standing: Standing, sent_ms: int, now_ms: int
    ) -> None:
        self._end_ban(node, name, standing, now_ms)
        if standing.state is UP:
            standing.fade(self.policy.black_list_expiry_ms, now_ms)
        elif standing.state is not BANNED:
            standing.count(sent_ms, self.policy.interval_ms(PROBATION) // 2)
            if standing.state is DOWN and standing.passed:
                self._step(node, name, PROBATION, "on probation", now_ms)
            if standing.passed >= self.policy.checks_before_routing:
                self._step(node, name, UP, f"{standing.passed} checks passed", now_ms)
        if standing.is_spent:
            del node.apart[name]

    def _end_ban(self, node: Node, name: str, standing: Standing, now_ms: int) -> None:
        if standing.state is BANNED and now_ms >= standing.ban_until_ms:
            standing.fails = 0
            self._step(node, name, DOWN, "the ban is over", now_ms)

    def _step(self, node: Node, name: str, state: NodeState, reason: str, now_ms: int) -> None:
        """One service of the node takes a step."""
        standing = node.apart[name]
        previous, haste = standing.state, node.is_watched
        topic = standing.enter(f"{name} of {node.id}", state, reason, now_ms)
        if BANNED in (previous, state):
            self._census = None
        self._output.view_changed = self._output.keep = True
        if topic is not None and node.state in ROUTED:
            self._tell(topic, node, previous, now_ms, name)
        if node.is_watched is not haste:
            self._answer(node, now_ms)

    # ----------------------------------------------------------------- to the agents

    def _answer(self, node: Node, now_ms: int) -> None:
        """Tell the node's agent where its node stands, and how often to beat."""
        for connection in node.sessions:
            self._send(connection, self._answer_to(node, now_ms))

    def _answer_to(self, node: Node, now_ms: int) -> NodeMessage:
        if node.state is BANNED:
            return Refused(node.reason, self._banned_for_ms(node, now_ms))
        return Welcome(
            lb=self.policy.lb,
            node_id=node.id,
            checks_timeout_ms=self.policy.checks_timeout_ms,
            interval_ms=self.policy.interval_ms(PROBATION if node.is_watched else node.state),
            state=node.state,
            services=self.policy.services,
        )

    def _fault(self, connection: bytes, reason: str, now_ms: int) -> None:
        if refused := self.faults.fault(connection, reason, now_ms):
            self._send(connection, refused)

    def _send(self, connection: bytes, message: NodeMessage) -> None:
        self._output.messages.append(Send(connection, message))

    def _banned_for_ms(self, about: Node | Standing, now_ms: int) -> int:
        return max(0, about.ban_until_ms - now_ms) if about.state is BANNED else 0

    def _served(
        self, named: tuple[NodeService, ...], prepared: Mapping[str, tuple[Mode, ...]] | None
    ) -> tuple[NodeService, ...]:
        ports = [(s.name, s.port) for s in named]
        ports = ports or [(s.name, s.node_port) for s in self.policy.services]
        if prepared is None:
            return tuple(NodeService(name, port) for name, port in ports)
        return tuple(NodeService(name, port, prepared.get(name, L4_ALONE)) for name, port in ports)

    # ----------------------------------------------------------------- restart and configuration

    def adopt(self, kept: tuple[KeptNode, ...], elapsed_ms: int, now_ms: int) -> int:
        """Take over what the last run kept `elapsed_ms` ago; says how many nodes were routed to."""
        for node in kept:
            if node.id in self._nodes:
                continue
            remaining_ms = max(0, node.ban_remaining_ms - elapsed_ms)
            apart = tuple(
                replace(each, ban_remaining_ms=max(0, each.ban_remaining_ms - elapsed_ms))
                for each in node.apart
            )
            self._adopt_node(replace(node, ban_remaining_ms=remaining_ms, apart=apart), now_ms)
        return sum(node.state in ROUTED for node in self._nodes.values())

    def adopt_table(self, table: NodeTable, now_ms: int, age_ms: int = 0) -> None:
        """Take over what the LBs had agreed on; only during the grace after a restart.

        `age_ms`: since the table was made; the bans in it have that much less time left.
        """
        if now_ms >= self._grace_ends_ms:
            return
        for node in without_orders(table):
            if node.id not in self._nodes:
                self._adopt_node(_kept_of(node), now_ms)
        for ban in table.bans:
            known = self._nodes.get(ban.node)
            if known is None or not (known.heard or known.state is BANNED):
                remaining_ms = max(0, ban.remaining_ms - age_ms)
                self._adopt_ban(replace(ban, remaining_ms=remaining_ms), known, now_ms)

    def heed(self, table: NodeTable, now_ms: int) -> None:
        """Carry out what operators want, as far as it is done here."""
        self._table_epoch = max(self._table_epoch, table.epoch)
        out = (OrderKind.DRAIN, OrderKind.BAN)
        self._ordered_out = frozenset(o.asked.node for o in table.orders if o.asked.kind in out)
        for order in table.orders:
            node = self._nodes.get(order.asked.node)
            is_pardon = order.asked.kind is OrderKind.PARDON
            if is_pardon and node is not None and node.pardoned_epoch < order.epoch:
                node.pardoned_epoch = order.epoch
                self._pardon(node, f"pardoned by {order.asked.by}", now_ms)

    def _pardon(self, node: Node, reason: str, now_ms: int) -> None:
        node.fails = 0
        for name, standing in node.apart.items():
            standing.fails = 0
            if standing.state is BANNED:
                self._step(node, name, DOWN, reason, now_ms)
        if node.state is BANNED:
            self._enter(node, DOWN, reason, now_ms)
        self._output.view_changed = self._output.keep = True

    def _adopt_ban(self, ban: Ban, known: Node | None, now_ms: int) -> None:
        if ban.remaining_ms <= 0:
            return
        if known is None:
            name, _, address = ban.node.rpartition("@")
            if not is_ipv4(address):
                return
            services = self._served((), None)
            banned = KeptNode(
                ban.node, name, address, BANNED, 1, services, ban.fails, ban.remaining_ms
            )
            self._adopt_node(banned, now_ms)
            return
        # The record stays the one it is: its agent may have said hello already.
        self._census = None
        known.state = BANNED
        known.reason = f"banned after {ban.fails} failures"
        known.fails, known.passed, known.counted_ms = ban.fails, 0, None
        known.ban_until_ms = now_ms + ban.remaining_ms
        self._schedule(known, self._due_ms(known))
        self._output.view_changed = self._output.keep = True
        self._answer(known, now_ms)

    def _adopt_node(self, kept: KeptNode, now_ms: int) -> None:
        """Put an unknown node in the state that a restart leaves it in; its deadline starts now."""
        assert kept.id not in self._nodes, kept.id
        banned_ms = kept.ban_remaining_ms
        routed = kept.state in ROUTED
        reason = "adopted after a restart of the health process"
        prepared = {service.name: service.modes for service in kept.services if service.modes}
        node = Node(
            id=kept.id,
            name=kept.name,
            address=kept.address,
            weight=kept.weight,
            named=kept.services,
            services=self._served(kept.services, prepared or None),
            prepared=prepared or None,
            state=BANNED if banned_ms > 0 else kept.state if routed else DOWN,
            reason=f"banned after {kept.fails} failures" if banned_ms > 0 else reason,
            last_seen_ms=now_ms,
            lag_mark_ms=self._lag_total_ms,
            backup=kept.backup,
            fails=0 if kept.state is BANNED and banned_ms <= 0 else kept.fails,
            passed=self.policy.checks_before_routing if routed else 0,
            was_up=kept.was_up,
            heard=False,
            silent=kept.silent and not routed,
            ban_until_ms=now_ms + banned_ms,
            pardoned_epoch=kept.pardoned_epoch,
            fading_from_ms=now_ms,
            suspect_until_ms=now_ms + self.policy.checks_timeout_ms,
            apart={each.service: _adopted(each, now_ms) for each in kept.apart},
        )
        self._add(node)
        self._schedule(node, self._due_ms(node))
        self._output.view_changed = self._output.keep = True

    def kept(self, now_ms: int) -> tuple[KeptNode, ...]:
        """What a restart must not forget."""
        for node in self._nodes.values():
            self._fade(node, now_ms)
        return tuple(
            KeptNode(
                id=node.id,
                name=node.name,
                address=node.address,
                state=node.state,
                weight=node.weight,
                services=node.services,
                fails=node.fails,
                ban_remaining_ms=self._banned_for_ms(node, now_ms),
                silent=node.silent,
                was_up=node.was_up,
                pardoned_epoch=node.pardoned_epoch,
                backup=node.backup,
                apart=tuple(
                    KeptService(
                        service=name,
                        state=standing.state,
                        reason=standing.reason,
                        fails=standing.fails,
                        ban_remaining_ms=self._banned_for_ms(standing, now_ms),
                    )
                    for name, standing in node.apart.items()
                ),
            )
            for node in self._nodes.values()
        )

    def configure(self, policy: Policy, now_ms: int) -> None:
        """Go by another configuration from now on; every agent is told."""
        if policy == self.policy:
            return
        if policy.checks_timeout_ms < self.policy.checks_timeout_ms:
            # Until they hear of it, agents beat at the interval they were told before.
            self.lagged(self.policy.interval_ms(UP), now_ms)
        self.policy = policy
        self._census = None
        for node in self._nodes.values():
            self._serve(node, self._served(node.named, node.prepared), now_ms)
            self._answer(node, now_ms)
        self._reschedule()
        self._output.view_changed = self._output.keep = True

    # ----------------------------------------------------------------- what comes out

    def take_output(self) -> Output:
        """What has come up since the last call; the shell carries it out."""
        output, self._output = self._output, Output()
        return output

    def view(self, now_ms: int, waiting_for: str = "", *, late: bool = False) -> LocalView:
        """What this LB has decided of its nodes, as a new version: for when that has changed."""
        self._version += 1
        return LocalView(
            version=self._version,
            nodes=tuple(
                NodeView(
                    id=node.id,
                    name=node.name,
                    address=node.address,
                    state=node.state,
                    reason=node.reason,
                    weight=node.weight,
                    services=node.services,
                    fails=node.fails,
                    banned_for_ms=self._banned_for_ms(node, now_ms),
                    silent=node.silent,
                    apart=self._apart(node, now_ms),
                    backup=node.backup,
                )
                for node in self._nodes.values()
            ),
            waiting_for=waiting_for,
            late=late,
        )

    def _apart(self, node: Node, now_ms: int) -> tuple[ServiceState, ...]:
        """The services of a node that is routed to which are not in its state."""
        if not node.apart or node.state not in ROUTED:
            return ()
        return tuple(
            ServiceState(name, each.state, each.reason, self._banned_for_ms(each, now_ms))
            for name, each in sorted(node.apart.items())
            if each.state is not UP
        )

    def checks(self, now_ms: int) -> LocalChecks:
        """How the checks of all nodes stand. Failures that have faded by now change the view."""
        self._checks_version += 1
        nodes = self._nodes.values()
        for node in nodes:
            self._fade(node, now_ms)
        return LocalChecks(
            version=self._checks_version,
            required=self.policy.checks_before_routing,
            rejected=dict(self.faults.rejected),
            id=tuple(self._nodes),
            observed_ms=tuple([max(0, now_ms - node.last_seen_ms) for node in nodes]),
            passed=tuple([node.passed for node in nodes]),
            good_total=tuple([node.good_total for node in nodes]),
            bad_total=tuple([node.bad_total for node in nodes]),
            load=tuple([node.load for node in nodes]),
        )


def _kept_of(node: TableNode) -> KeptNode:
    """A node that only the table knows, as if this process had kept it."""
    return KeptNode(
        id=node.id,
        name=node.name,
        address=node.address,
        state=node.state,
        weight=node.weight,
        services=node.services,
        fails=0,
        ban_remaining_ms=0,
        silent=node.silent,
        backup=node.backup,
        apart=tuple(KeptService(each.service, DOWN, "", 0, 0) for each in node.apart),
    )


def _adopted(kept: KeptService, now_ms: int) -> Standing:
    """One service of a node as a restart leaves it: it may have to be checked anew."""
    banned = kept.ban_remaining_ms > 0
    served = kept.state is UP
    return Standing(
        state=BANNED if banned else UP if served else DOWN,
        reason=kept.reason,
        since_ms=now_ms,
        fails=0 if kept.state is BANNED and not banned else kept.fails,
        ban_until_ms=now_ms + kept.ban_remaining_ms,
    )


def _banned_alone(node: Node) -> set[str]:
    """The services of the node that are banned for themselves."""
    return {name for name, standing in node.apart.items() if standing.state is BANNED}


def _by_service(sick: Iterable[Sick]) -> dict[str, str]:
    return {name: one_line(each.reason) for each in sick for name in each.services}
