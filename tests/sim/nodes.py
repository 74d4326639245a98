"""Nodes, one LB and its operator, on virtual time: the real cores of agents, health and quorum.

A seed draws how many nodes there are, what the network does to their beats (loss, delay, doubling,
holding back), and what happens when: agents and health are paused and killed, health loses its disk
or not, servers stop and start, services sicken, cables are cut, an operator drains, bans, pardons,
enables. After `TROUBLE_MS` all of it is mended, and within `LIVE_MS` everything must be well.

What must hold, by the names that violations have:

    living-down       silence takes a node down only if it was silent while health could hear
    dead-revived      nothing brings a node up but beats that are younger than checks_timeout
    restart-revived   health's restart brings no node up
    own-look          an agent says what its last checks have found, and nothing before them
    own-word          "not serving" is said of a node only if its agent has said it, of all services
    sick-served       a service that its agent calls sick is not routed to there
    not-serving-up    whoever has said that it does not serve is routed to no more
    checks-before     UP comes after checks_before_routing good beats since it was down; how old a
                      beat is, is known as exactly as the quickest of this agent's so far tells
    ring-emptied      silence alone leaves min_healthy of a service's nodes
    ban-broken        a banned node is not routed to before its time is up, or it was pardoned; and
                      then it is banned no more, whatever was restarted meanwhile
    pardon-lost       a node that was pardoned is not banned any more
    order-broken      no table shows a drained or banned node UP, and none forgets an agreed order
    deadline-missed   a drain that is over ends the node's flows, and not before
    unanswered        each order is answered, by yes or by no
    table-changed     epochs rise, and two tables of one epoch are the same
    version-kept      a view that is other has another version
    not-well          in the end every node is UP, or as its orders say

Anything that a core raises is a violation too.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from random import Random

from bus.events import NodeEvent
from bus.node_protocol import (
    Heartbeat,
    Hello,
    NodeMessage,
    OfferedService,
    decode_node,
    encode_node,
)
from bus.orders import Asked, OrderKind
from bus.states import LocalView, NodeTable, TableService, states_apart
from bus.topics import Topic
from bus.words import Encapsulation, Mode, NodeState, Protocol, ServingStatus
from services.health.keeping import KeptNode
from services.health.policy import Policy
from services.health.registry import Registry
from services.node.core import Agent, AgentConfig
from services.quorum.composition import QuorumConfig
from services.quorum.core import Quorum
from services.quorum.durable import BLANK, HardState
from services.quorum.table import TableConfig, aged
from services.quorum.timing import Timing
from services.quorum.waiting import WAIT_MS
from tests.sim.world import ViolationError

TIMEOUT_MS = 1_000
EXPIRY_MS = 3_000
LEAST = 50
TROUBLE_MS = 12_000
LIVE_MS = 2 * EXPIRY_MS + 6_000
EVENT_MS = 400
CHECK_MS = 100
LONG_MS = 60_000
UP, SUSPECT, DRAINING = NodeState.UP, NodeState.SUSPECT, NodeState.DRAINING
DOWN, BANNED = NodeState.DOWN, NodeState.BANNED
TAKES = frozenset({UP, SUSPECT})
NAMES = ("web", "dns")
POLICY = Policy(
    lb="lb-0",
    checks_before_routing=3,
    checks_timeout_ms=TIMEOUT_MS,
    black_list_after_fails=3,
    black_list_expiry_ms=EXPIRY_MS,
    services=tuple(
        OfferedService(name, None, port, Protocol.TCP, Mode.L4, port, Encapsulation.IPIP)
        for port, name in enumerate(NAMES, 8_080)
    ),
    min_healthy_percent=LEAST,
)
SERVICES = tuple(
    TableService(each.name, None, each.port, Protocol.TCP, Mode.L4, each.port)
    for each in POLICY.services
)
CONFIG = QuorumConfig("lb-0", "", TableConfig(SERVICES, ()), Timing(50, 225, 250, 150), TIMEOUT_MS)


@dataclass(frozen=True)
class Network:
    """What it does to each message."""

    loss: float
    doubling: float
    longest_ms: int


@dataclass(eq=False)
class Node:
    """A machine with an agent, as it truly is, and what health has read of it."""

    name: str
    address: str
    agent: Agent
    is_alive: bool = True
    is_paused: bool = False
    is_cut: bool = False
    sick: set[str] = field(default_factory=set)
    connection: bytes | None = None
    boots: int = 0
    inbox: list[list[bytes]] = field(default_factory=list)
    is_new: bool = True
    """Whether its agent has heard of something."""
    boot: str = ""
    """Of the agent that has said hello to this health process."""
    quickest_ms: int = LONG_MS
    """The least time from a beat's sending to its reading, since that hello."""
    newest_ms: int = -LONG_MS
    """When the newest beat that health has read was sent."""
    said: ServingStatus = ServingStatus.SERVING
    found_sick: frozenset[str] | None = None
    """By the last checks of this agent; None: it has not looked yet."""
    named: set[str] = field(default_factory=set)
    """The services that it has called sick by name, as far as health has read it since that hello.
    """
    has_said: set[str] = field(default_factory=set)
    """What it does not serve, by what it has said."""
    last_seq: dict[bytes, int] = field(default_factory=dict)
    """By connection, the largest number of a beat that health has read."""
    bad_ms: int = -LONG_MS
    """When health has last read that it serves nothing."""
    good_run: int = 0
    """Good beats that health has read one after the other."""
    best_run: int = 0
    """The most of them since it last told what happened."""
    fresh_run: int = 0
    """Those of them that it has read since it last told what happened."""
    banned_until_ms: int = -1
    pardoned: bool = False

    @property
    def id(self) -> str:
        return f"{self.name}@{self.address}"


@dataclass
class Ordered:
    """What the operator has been told is agreed, of one node."""

    kind: OrderKind
    until_ms: int | None


class World:
    def __init__(self, seed: int) -> None:
        self.random = Random(seed)
        self.now_ms = 1_000_000
        self.steps = 0
        self.network = self._draw_network()
        # With three failures to a ban there are hardly any within so short a time.
        self.policy = replace(POLICY, black_list_after_fails=self.random.choice((1, 3)))
        self._numbers = itertools.count()
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        count = self.random.randint(2, 5)
        self.nodes = [self._node(number) for number in range(count)]
        self.by_id = {node.id: node for node in self.nodes}
        self.owners: dict[bytes, Node] = {}
        """By connection, old ones too: what came by one may be read when it has gone."""
        self.registry: Registry | None = None
        self.health_disk: tuple[tuple[KeptNode, ...], int] = ((), self.now_ms)
        self.health_boot = 0
        self.health_paused_ms: int | None = None
        self.deaf_ms: list[tuple[int, int]] = []
        """From when to when health was paused."""
        self.is_health_new = True
        """Whether something has come that is neither a message nor time."""
        self.health_inbox: list[tuple[bytes, str, list[bytes]]] = []
        self.view: LocalView | None = None
        self.view_ms = self.now_ms
        """When it was made."""
        self.quorum: Quorum | None = None
        self.quorum_disk: tuple[HardState, int] = (BLANK, self.now_ms)
        self.table: NodeTable | None = None
        self.table_ms = self.now_ms
        """When it was made."""
        self.asked: dict[str, tuple[Asked, int]] = {}
        self.agreed: dict[str, Ordered] = {}
        self.start_quorum()
        self.start_health()
        for node in self.nodes:
            self.connect(node)
            self.after(self.random.randint(0, CHECK_MS), partial(self._check, node))

    def _draw_network(self) -> Network:
        bad = self.random.random() < 0.5
        return Network(
            loss=self.random.choice((0.02, 0.1, 0.3)) if bad else 0.0,
            doubling=self.random.choice((0.0, 0.1)),
            longest_ms=self.random.choice((1, 20, 200)),
        )

    def _node(self, number: int) -> Node:
        agent = Agent(AgentConfig(f"n{number}", 1, ("lb",), ()), f"boot-{number}", self.now_ms)
        return Node(f"n{number}", f"10.81.0.{20 + number}", agent)

    # ------------------------------------------------------------------ time

    def after(self, delay_ms: int, what: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now_ms + delay_ms, next(self._numbers), what))

    def run(self, until_ms: int) -> None:
        while True:
            self._settle()
            at_ms = min([until_ms, *self._due()])
            if at_ms >= until_ms:
                self.now_ms = until_ms
                return
            self.now_ms = max(self.now_ms, at_ms)
            while self._events and self._events[0][0] <= self.now_ms:
                heapq.heappop(self._events)[2]()

    def _due(self) -> list[int]:
        due = [self._events[0][0]] if self._events else []
        for node in self.nodes:
            if node.is_alive and not node.is_paused:
                due.append(node.agent.next_due_ms() or self.now_ms + LONG_MS)
        if self.registry is not None and self.health_paused_ms is None:
            due.append(self.registry.next_due_ms() or self.now_ms + LONG_MS)
        if self.quorum is not None:
            due.append(self.quorum.next_due_ms() or self.now_ms + LONG_MS)
        # Whoever is late is looked at a millisecond later, not again and again at this one.
        return [max(each, self.now_ms + 1) for each in due]

    def _settle(self) -> None:
        """All that has to be done at this moment."""
        self.steps += 1
        for node in self.nodes:
            self._turn_agent(node)
        self._turn_health()
        self._turn_quorum()

    # ------------------------------------------------------------------ agents

    def connect(self, node: Node) -> None:
        if node.is_alive and self.registry is not None and node.connection is None:
            node.connection = b"\0%d" % next(self._numbers)
            self.owners[node.connection] = node
            node.agent.connected("lb", self.now_ms)
            node.is_new = True

    def disconnect(self, node: Node, *, again_ms: int | None = None) -> None:
        node.connection = None
        node.inbox.clear()
        if node.is_alive:
            node.agent.disconnected("lb", "closed")
        self.after(again_ms or self.random.randint(1, 200), partial(self.connect, node))

    def _turn_agent(self, node: Node) -> None:
        if not node.is_alive or node.is_paused:
            return
        due_ms = node.agent.next_due_ms()
        if not (node.inbox or node.is_new) and (due_ms is None or due_ms > self.now_ms):
            return
        node.is_new = False
        inbox, node.inbox = node.inbox, []
        for frames in inbox:
            node.agent.receive("lb", frames, self.now_ms)
        node.agent.tick(self.now_ms)
        output = node.agent.take_output()
        for _, message in output.messages:
            self._check_word(node, message)
            if node.connection is not None:
                send = partial(self._to_health, node, node.connection, encode_node(message))
                self._carry(node, send)
        if output.reconnect:
            self.disconnect(node)

    def _check(self, node: Node) -> None:
        if node.is_alive and not node.is_paused:
            for plan in node.agent.plans():
                good = plan.service not in node.sick
                node.agent.checked(plan, good, "as it is", self.now_ms)
                node.found_sick = frozenset(node.sick)
            node.is_new = True
        self.after(CHECK_MS, partial(self._check, node))

    def _carry(self, node: Node, arrive: Callable[[], None]) -> None:
        """A message on its way; what is sent over a cut cable may come when that is mended."""
        if node.is_cut:
            if self.random.random() < 0.3:
                self.after(self.random.randint(TIMEOUT_MS // 2, 4 * TIMEOUT_MS), arrive)
            return
        if self.random.random() < self.network.loss:
            return
        copies = 2 if self.random.random() < self.network.doubling else 1
        for _ in range(copies):
            self.after(self.random.randint(0, self.network.longest_ms), arrive)

    # ------------------------------------------------------------------ health

    def start_health(self, *, blank: bool = False) -> None:
        if self.registry is not None:
            return
        self.registry = Registry(self.policy, self.now_ms)
        self.health_boot += 1
        self.view = None
        if blank:
            self.health_disk = ((), self.now_ms)
            for node in self.nodes:
                node.banned_until_ms = -1
        kept, saved_ms = self.health_disk
        self.registry.adopt(kept, self.now_ms - saved_ms, self.now_ms)
        self._check_adopted(kept, self.registry.view(self.now_ms))
        if self.table is not None:
            self._tell_table()
        for node in self.nodes:
            node.good_run, node.boot, node.has_said = 0, "", set()
            self.after(self.random.randint(1, 200), partial(self.connect, node))

    def kill_health(self) -> None:
        self._end_pause()
        self.registry = None
        self.health_inbox.clear()
        for node in self.nodes:
            if node.connection is not None:
                self.disconnect(node)

    def _to_health(self, node: Node, connection: bytes, frames: list[bytes]) -> None:
        if self.registry is not None and node.connection == connection:
            self.health_inbox.append((connection, node.address, frames))

    def _turn_health(self) -> None:
        """One turn of the process, in the order of its shell: drain, tick, keep, publish, send."""
        registry = self.registry
        if registry is None or self.health_paused_ms is not None:
            return
        due_ms = registry.next_due_ms()
        if not (self.health_inbox or self.is_health_new or (due_ms or LONG_MS**2) <= self.now_ms):
            return
        self.is_health_new = False
        inbox, self.health_inbox = self.health_inbox, []
        for connection, address, frames in inbox:
            self._note_read(connection, frames)
            registry.receive(connection, address, frames, self.now_ms)
        registry.tick(self.now_ms)
        before, output = self.view, registry.take_output()
        if output.keep:
            self.health_disk = (registry.kept(self.now_ms), self.now_ms)
        view = registry.view(self.now_ms)
        self._check_version(view, changed=output.view_changed)
        for topic, event in output.events:
            self._check_event(topic, event, view, before)
        for node in self.nodes:
            node.fresh_run, node.best_run = 0, node.good_run
        if output.view_changed and self.quorum is not None:
            self.quorum.report(f"boot-{self.health_boot}", view, self.now_ms)
        for connection, message in output.messages:
            self._to_agent(connection, encode_node(message))
        self._check_view(view)

    def _to_agent(self, connection: bytes, frames: list[bytes]) -> None:
        for node in self.nodes:
            if node.connection == connection:
                self._carry(node, partial(self._arrive, node, connection, frames))

    def _arrive(self, node: Node, connection: bytes, frames: list[bytes]) -> None:
        if node.is_alive and node.connection == connection:
            node.inbox.append(frames)

    def _tell_table(self) -> None:
        if self.registry is not None and self.table is not None:
            self.registry.adopt_table(self.table, self.now_ms, self.now_ms - self.table_ms)
            self.registry.heed(self.table, self.now_ms)
            self.is_health_new = True

    def pause_health(self) -> None:
        if self.registry is not None and self.health_paused_ms is None:
            self.health_paused_ms = self.now_ms

    def resume_health(self) -> None:
        if self.registry is not None and self.health_paused_ms is not None:
            late_ms = self._end_pause()
            inbox, self.health_inbox = self.health_inbox, []
            for connection, address, frames in inbox:
                self._note_read(connection, frames)
                self.registry.receive(connection, address, frames, self.now_ms)
            self.registry.lagged(late_ms, self.now_ms)
            self.is_health_new = True
            self._tell_table()

    def _end_pause(self) -> int:
        """Health is paused no longer; how long it was."""
        since_ms, self.health_paused_ms = self.health_paused_ms, None
        if since_ms is None:
            return 0
        self.deaf_ms.append((since_ms, self.now_ms))
        return self.now_ms - since_ms

    # ------------------------------------------------------------------ quorum

    def start_quorum(self) -> None:
        if self.quorum is None:
            stored, saved_ms = self.quorum_disk
            if stored.table is not None:
                stored = replace(stored, table=aged(stored.table, self.now_ms - saved_ms))
            self.quorum = Quorum(CONFIG, stored, 7, self.now_ms)
            if self.view is not None:
                age_ms = self.now_ms - self.view_ms
                self.quorum.report(f"boot-{self.health_boot}", self.view, self.now_ms, age_ms)

    def kill_quorum(self) -> None:
        self.quorum = None
        self.asked.clear()

    def _turn_quorum(self) -> None:
        quorum = self.quorum
        if quorum is None:
            return
        quorum.tick(self.now_ms)
        while (ready := quorum.take(self.now_ms)) is not None:
            if ready.persist is not None:
                self.quorum_disk = (ready.persist.state, self.now_ms)
                quorum.stored(ready.persist.mark, self.now_ms)
            if ready.committed is not None:
                self._publish(ready.committed.table)
            for answer in ready.answers:
                self._answered(answer.id, answer.refusal)
        self._check_orders()

    def _publish(self, table: NodeTable) -> None:
        before = self.table
        if before is not None:
            self._must(table.epoch >= before.epoch, "table-changed", "an older epoch")
            same = _timeless(table) == _timeless(before)
            self._must(table.epoch > before.epoch or same, "table-changed", "one epoch, two tables")
        self.table, self.table_ms = table, self.now_ms
        if self.health_paused_ms is None:
            self._tell_table()

    def ask(self, asked: Asked) -> None:
        if self.quorum is not None:
            number = f"order-{next(self._numbers)}"
            self.asked[number] = (asked, self.now_ms)
            self.quorum.order(number, asked, self.now_ms)

    def _answered(self, number: str, refusal: str) -> None:
        asked, _ = self.asked.pop(number)
        if refusal:
            return
        node = self.by_id[asked.node]
        if asked.kind is OrderKind.PARDON:
            node.pardoned = True
            if asked.node in self.agreed and self.agreed[asked.node].kind is OrderKind.BAN:
                del self.agreed[asked.node]
        else:
            until = None if asked.within_ms is None else self.now_ms + asked.within_ms
            self.agreed[asked.node] = Ordered(asked.kind, until)
            node.pardoned &= asked.kind is not OrderKind.BAN

    # ------------------------------------------------------------------ what must hold

    def _must(self, holds: bool, name: str, what: str) -> None:
        if not holds:
            raise ViolationError(f"{name}: {what}")

    def _note_read(self, connection: bytes, frames: list[bytes]) -> None:
        node, message = self.owners[connection], decode_node(frames)
        if isinstance(message, Hello) and message.boot != node.boot:
            node.boot, node.quickest_ms = message.boot, LONG_MS
            node.named, node.has_said = set(), set()
        if not isinstance(message, Heartbeat) or message.seq <= node.last_seq.get(connection, 0):
            return
        node.last_seq[connection] = message.seq
        node.quickest_ms = min(node.quickest_ms, self.now_ms - message.sent_ms)
        node.newest_ms = max(node.newest_ms, message.sent_ms)
        node.said = message.status
        if message.sick is not None:
            node.named = {name for each in message.sick for name in each.services}
        of_all = message.status is ServingStatus.NOT_SERVING and not node.named
        node.has_said = set(NAMES) if of_all else node.named
        if node.has_said == set(NAMES):
            node.bad_ms = self.now_ms
        is_young = message.sent_ms + node.quickest_ms > self.now_ms - TIMEOUT_MS
        good = message.status is ServingStatus.SERVING or node.has_said != set(NAMES)
        node.good_run = node.good_run + is_young if good else 0
        node.best_run = max(node.best_run, node.good_run)
        node.fresh_run = node.fresh_run + is_young if good else 0

    def _check_word(self, node: Node, message: NodeMessage) -> None:
        """What an agent says is what it has found."""
        if not isinstance(message, Heartbeat):
            return
        found = node.found_sick
        self._must(found is not None, "own-look", f"{node.id} has not looked yet")
        same = (message.status is ServingStatus.NOT_SERVING) is bool(found)
        named = frozenset(name for each in message.sick or () for name in each.services)
        # That it serves nothing, it says without names.
        to_name = found if found != frozenset(NAMES) else frozenset()
        same &= message.sick is None or named == to_name
        self._must(same, "own-look", f"{node.id} found {found} and says {message.status}, {named}")

    def _check_adopted(self, kept: tuple[KeptNode, ...], view: LocalView) -> None:
        routed = {each.id for each in kept if each.state in TAKES}
        for seen in view.nodes:
            is_new = seen.state in TAKES and seen.id not in routed
            self._must(not is_new, "restart-revived", f"{seen.id} is {seen.state}")

    def _listened_ms(self, since_ms: int) -> int:
        """How much of the time since then health could hear."""
        deaf_ms = sum(max(0, end - max(begin, since_ms)) for begin, end in self.deaf_ms)
        return self.now_ms - since_ms - deaf_ms

    def _check_event(
        self, topic: Topic, event: NodeEvent, view: LocalView, before: LocalView | None
    ) -> None:
        node = self.by_id[event.id]
        if event.service:
            return
        age_ms = self.now_ms - node.newest_ms
        if topic is Topic.NODE_UP:
            known_ms = age_ms - node.quickest_ms
            self._must(known_ms < TIMEOUT_MS, "dead-revived", f"{event.id} after {age_ms} ms")
            if event.previous is NodeState.PROBATION:
                self._must(node.best_run >= 3, "checks-before", f"{event.id}: {node.best_run}")
        elif topic is Topic.NODE_DOWN:
            own = event.reason.startswith("not serving")
            said = node.bad_ms == self.now_ms
            self._must(said or not own, "own-word", f"{event.id}: {event.reason}")
            if not own and event.previous in (UP, SUSPECT):
                # A suspect has been silent for that before; an old beat since then says nothing.
                was_up = event.previous is UP
                silent_ms = self._listened_ms(node.newest_ms) if was_up else age_ms
                self._must(
                    silent_ms >= TIMEOUT_MS, "living-down", f"{event.id} after {silent_ms} ms"
                )
                if _has_taken(event.id, before):
                    self._check_who_is_left(event, view)
            if not own:
                node.good_run = node.best_run = 0
        elif topic is Topic.NODE_BANNED:
            node.banned_until_ms, node.pardoned = self.now_ms + EXPIRY_MS, False
        elif topic is Topic.NODE_PARDONED:
            early = event.reason.startswith("pardoned")
            over = self.now_ms >= node.banned_until_ms
            self._must(early or over, "ban-broken", f"{event.id}: {event.reason}")
            # Beats may have been read in the same turn, after the pardon; those of before are void.
            node.banned_until_ms, node.good_run = -1, node.fresh_run
            node.best_run = node.fresh_run

    def _check_who_is_left(self, gone: NodeEvent, view: LocalView) -> None:
        out = {
            node for node, ordered in self.agreed.items() if ordered.kind is not OrderKind.ENABLE
        }
        known = [each for each in view.nodes if each.id not in out]
        kept = {each.id: each.was_up for each in self.health_disk[0]}
        ever_up = [each for each in known if kept.get(each.id)]
        left = sum(each.state in TAKES for each in known if each.id != gone.id)
        enough = 100 * left >= LEAST * len(ever_up) or gone.id in out
        self._must(enough, "ring-emptied", f"{left} of {len(ever_up)} without {gone.id}")

    def _check_view(self, view: LocalView) -> None:
        for seen in view.nodes:
            node = self.by_id[seen.id]
            banned = self.now_ms < node.banned_until_ms
            broken = seen.state in TAKES if banned else seen.state is BANNED
            known = node.banned_until_ms >= 0
            self._must(not (known and broken), "ban-broken", f"{seen.id} is {seen.state}")
            states = states_apart(seen)
            served = [name for name in node.has_said if states.get(name, seen.state) in TAKES]
            self._must(not served, "sick-served", f"{served} at {seen.id}")
            pardoned = node.pardoned and seen.state is BANNED
            self._must(not pardoned, "pardon-lost", f"{seen.id} is banned yet")
            nothing = node.said is ServingStatus.NOT_SERVING and node.has_said == set(NAMES)
            self._must(
                not (nothing and seen.state in TAKES and node.good_run == 0),
                "not-serving-up",
                f"{seen.id} is {seen.state}",
            )

    def _check_version(self, view: LocalView, *, changed: bool) -> None:
        if self.view is not None and not changed:
            same = _untimed(view) == _untimed(self.view)
            self._must(same, "version-kept", "a view that nobody was told of")
        self.view, self.view_ms = view, self.now_ms

    def _check_orders(self) -> None:
        for number, (asked, since_ms) in self.asked.items():
            late = self.now_ms > since_ms + WAIT_MS + 1
            self._must(not late, "unanswered", f"{number}: {asked.kind}")
        if self.table is None:
            return
        states = {node.id: node.state for node in self.table.nodes}
        for node_id, ordered in self.agreed.items():
            state = states.get(node_id)
            if ordered.kind is OrderKind.BAN:
                self._must(state in (None, BANNED), "order-broken", f"{node_id} is {state}")
            elif ordered.kind is OrderKind.DRAIN:
                self._must(state not in TAKES, "order-broken", f"{node_id} is {state}")
                self._check_deadline(node_id, ordered, state)

    def _check_deadline(self, node_id: str, ordered: Ordered, state: NodeState | None) -> None:
        if ordered.until_ms is None or self.quorum is None:
            return
        over_ms = self.now_ms - ordered.until_ms
        self._must(
            over_ms <= 2 or state is not DRAINING, "deadline-missed", f"{node_id}: {over_ms} ms"
        )

    # ------------------------------------------------------------------ the end

    def is_well(self) -> list[str]:
        """What is not well yet."""
        if self.table is None:
            return ["there is no table"]
        said = []
        states = {node.id: (node.state, node.apart) for node in self.table.nodes}
        for node in self.nodes:
            ordered = self.agreed.get(node.id)
            kind = ordered.kind if ordered is not None else OrderKind.ENABLE
            wanted: tuple[NodeState, ...] = (UP,)
            if kind is OrderKind.BAN:
                wanted = (BANNED,)
            elif kind is OrderKind.DRAIN and ordered is not None:
                wanted = (DRAINING,) if ordered.until_ms is None else (DRAINING, DOWN)
            state, apart = states.get(node.id, (None, ()))
            if state not in wanted or apart:
                said.append(f"{node.id} is {state} {apart}, not {wanted}")
        return said


def _has_taken(node_id: str, view: LocalView | None) -> bool:
    """Whether the node was routed to for any service; one that was sick at all leaves no gap."""
    seen = [node for node in view.nodes if node.id == node_id] if view is not None else []
    return any(len(node.apart) < len(node.services) for node in seen)


def _timeless(table: NodeTable) -> NodeTable:
    orders = tuple(replace(order, remaining_ms=None) for order in table.orders)
    bans = tuple(replace(ban, remaining_ms=0) for ban in table.bans)
    return replace(table, orders=orders, bans=bans)


def _untimed(view: LocalView) -> tuple[object, ...]:
    return tuple(
        replace(
            node,
            banned_for_ms=0,
            apart=tuple(replace(each, banned_for_ms=0) for each in node.apart),
        )
        for node in view.nodes
    )


# --------------------------------------------------------------------------- schedules


class NodeSchedule:
    """The trouble of one seed."""

    def __init__(self, seed: int) -> None:
        self.world = World(seed)
        self.random = self.world.random
        kinds: tuple[Callable[[Node], None], ...] = (
            *(self._pause, self._crash, self._cut, self._sicken, self._sicken),
            *(self._kill_health, self._pause_health, self._kill_quorum),
            *(self._drain, self._order, self._order, self._all_sick, self._all_silent),
        )
        self.kinds = self.random.sample(kinds, self.random.randint(3, len(kinds)))

    def words(self) -> str:
        """What was drawn."""
        network = self.world.network
        drawn = sorted({kind.__name__.strip("_") for kind in self.kinds})
        return ", ".join([*drawn, *(["loss"] if network.loss else [])])

    def play(self) -> int:
        world = self.world
        began_ms = world.now_ms
        at_ms = 0.0
        while (at_ms := at_ms + self.random.expovariate(1 / EVENT_MS)) < TROUBLE_MS:
            kind, node = self.random.choice(self.kinds), self.random.choice(world.nodes)
            world.after(int(at_ms), partial(kind, node))
        try:
            world.run(began_ms + TROUBLE_MS)
            self._heal()
            world.run(began_ms + TROUBLE_MS + LIVE_MS)
            if said := world.is_well():
                raise ViolationError(f"not-well: {'; '.join(said)}")
        except ViolationError:
            raise
        except Exception as error:
            raise ViolationError(f"{type(error).__name__}: {error}") from error
        return world.steps

    def _for_a_while(self, end: Callable[[], None], longest_ms: int = 3_000) -> None:
        self.world.after(self.random.randint(10, longest_ms), end)

    # ------------------------------------------------------------------ nodes

    def _pause(self, node: Node) -> None:
        node.is_paused = True
        self._for_a_while(partial(setattr, node, "is_paused", False))

    def _cut(self, node: Node) -> None:
        node.is_cut = True
        self._for_a_while(partial(self._mend, node))

    def _mend(self, node: Node) -> None:
        node.is_cut = False
        if node.is_alive and node.connection is not None:  # libzmq gave the old one up
            self.world.disconnect(node)

    def _crash(self, node: Node) -> None:
        if node.is_alive:
            node.is_alive = False
            node.connection = None
            node.inbox.clear()
            self._for_a_while(partial(self._boot, node))

    def _boot(self, node: Node) -> None:
        if not node.is_alive:
            node.is_alive, node.boots, node.found_sick = True, node.boots + 1, None
            boot = f"{node.name}-{node.boots}"
            node.agent = Agent(AgentConfig(node.name, 1, ("lb",), ()), boot, self.world.now_ms)
            self.world.connect(node)
            self.world.after(50, partial(self.world.connect, node))

    def _sicken(self, node: Node) -> None:
        services = self.random.choice((NAMES, NAMES[:1], NAMES[1:]))
        node.sick.update(services)
        self._for_a_while(node.sick.clear)

    def _all_sick(self, _node: Node) -> None:
        for each in self.world.nodes:
            self._sicken(each)

    def _all_silent(self, _node: Node) -> None:
        for each in self.world.nodes:
            each.is_paused = True
        for each in self.world.nodes:
            self._for_a_while(partial(setattr, each, "is_paused", False), 6_000)

    # ------------------------------------------------------------------ the LB and its operator

    def _kill_health(self, _node: Node) -> None:
        self.world.kill_health()
        blank = self.random.random() < 0.2
        self._for_a_while(partial(self.world.start_health, blank=blank), 1_500)

    def _pause_health(self, _node: Node) -> None:
        self.world.pause_health()
        self._for_a_while(self.world.resume_health)

    def _kill_quorum(self, _node: Node) -> None:
        self.world.kill_quorum()
        self._for_a_while(self.world.start_quorum, 1_500)

    def _drain(self, node: Node) -> None:
        within_ms = self.random.choice((None, 200, 2_000))
        self.world.ask(Asked(node.id, OrderKind.DRAIN, "ada", within_ms=within_ms))

    def _order(self, node: Node) -> None:
        kinds = (OrderKind.BAN, OrderKind.PARDON, OrderKind.ENABLE)
        self.world.ask(Asked(node.id, self.random.choice(kinds), "ada"))

    def _heal(self) -> None:
        world = self.world
        world.network = Network(0.0, 0.0, 1)
        world.resume_health()
        world.start_health()
        world.start_quorum()
        for node in world.nodes:
            node.is_paused = False
            node.sick.clear()
            if node.is_cut:
                self._mend(node)
            self._boot(node)
            world.after(250, partial(world.connect, node))
