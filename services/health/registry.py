"""The registry: what this LB knows of its nodes, and what follows from it. Pure.

It ties together parts that each own one thing, and that a reader takes one at a time:

    door           who may speak, for which node, by which connections
    roster         which nodes are known, and how many there may be
    node           the record of one; `standing`: its states, and the steps between them
    judge          what becomes of it by what it says and how often it fails: checks, bans
    together       failures that come together are nobody's
    deadlines      when a node must have been heard; `silence`: what is believed if it was not
    node_services  what it serves, and the services that go their own way
    findings       what this LB's own probe says of it
    headcount      how many others there are, which most of that asks for
    keeping        what outlives this process, and what is made of it after a restart
    outbox         what the shell has to do about it all

Here is what concerns several of them: what a hello and a heartbeat lead to, one after the other; a
node's coming and going; another configuration; and what is shown of it all.

Inputs are methods, with the time; outputs collect in `take_output()`: messages to connections,
events for the bus, whether the view or what must be kept on disk has changed. A heartbeat that
changes nothing costs no more than a few field writes: it shows in `checks` alone.

**Orders** of operators stand in the node table, and are for the quorum to carry out: here nodes are
watched as ever. Two things are done here (`heed`): a pardon is carried out, once; and a node that
is drained or banned by order is none of those that a service has left.
"""

from __future__ import annotations

from collections.abc import Callable

from bus.node_protocol import Heartbeat, Hello
from bus.orders import OrderKind
from bus.states import LocalChecks, LocalView, NodeTable, NodeView
from bus.words import ServingStatus
from services.health.deadlines import Deadlines
from services.health.door import KEY_GONE, Doorkeeper, Guest, Speaker
from services.health.findings import Findings
from services.health.headcount import Headcount
from services.health.judge import Judge
from services.health.keeping import Keeping, KeptNode, kept_of
from services.health.node import Node
from services.health.node_services import NodeServices
from services.health.outbox import Outbox, Output
from services.health.places import Outcome, Spot
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.silence import Silence
from services.health.standing import BANNED, PROBATION, ROUTED, UP

TAKES_NONE = frozenset({OrderKind.DRAIN, OrderKind.BAN})
"""A node that has such an order takes no new flows."""


class Registry:
    def __init__(
        self, policy: Policy, now_ms: int, name_of: Callable[[str], str | None] | None = None
    ) -> None:
        """`name_of`: whom a key stands for; None: not admitted. Without it no keys are used."""
        self._outbox = outbox = Outbox()
        self._roster = roster = Roster()
        self._headcount = headcount = Headcount(roster)
        self._findings = findings = Findings(policy, roster)
        self._deadlines = deadlines = Deadlines(policy, roster, now_ms)
        self._door = door = Doorkeeper(policy, roster, outbox, name_of)
        self._judge = judge = Judge(policy, roster, headcount, deadlines, outbox, door.answer)
        self._services = services = NodeServices(policy, headcount, judge, outbox)
        self._silence = Silence(
            policy, roster, headcount, findings, deadlines, judge, outbox, self._forget
        )
        self._keeping = Keeping(policy, roster, services, judge, self._add, now_ms)
        self.policy = policy
        self.rejected = door.faults.rejected
        """What was not listened to, by reason; the shell counts here too."""
        self._table_epoch = 0
        self._version = self._checks_version = 0

    def _go_by(self, policy: Policy) -> None:
        self.policy = policy
        self._findings.policy = self._deadlines.policy = self._door.policy = policy
        self._judge.policy = self._services.policy = policy
        self._silence.policy = self._keeping.policy = policy

    # ----------------------------------------------------------------- from the agents

    def receive(
        self, connection: bytes, address: str, frames: list[bytes], now_ms: int, key: str = ""
    ) -> None:
        """Take one message of the node protocol from a connection whose peer is `address`.

        `key`: the peer's, where keys are used.
        """
        message = self._door.read(connection, frames, now_ms)
        if isinstance(message, Heartbeat):
            speaker = self._door.beat(connection, message, now_ms)
            if speaker is not None:
                self._heartbeat(speaker, message, now_ms)
        elif message is not None:
            guest = self._door.admit(connection, address, key, message, now_ms)
            if guest is not None:
                node = guest.node or self._join(guest, address, message, now_ms)
                self._door.attach(node, connection, message.boot, key)
                self._hello(node, address, message, now_ms)

    def _join(self, guest: Guest, address: str, hello: Hello, now_ms: int) -> Node:
        if guest.former is not None:
            self._forget(guest.former)
        node = Node(
            id=guest.id,
            name=hello.name,
            address=address,
            weight=hello.weight,
            state=PROBATION,
            reason="on probation",
            named=hello.services,
            services=self._services.served(hello.services, None),
            last_seen_ms=now_ms,
            pardoned_epoch=self._table_epoch,
        )
        self._add(node)
        self._judge.joined(node, now_ms)
        return node

    def _hello(self, node: Node, address: str, hello: Hello, now_ms: int) -> None:
        if node.address != address:
            # Whoever has its key is at another address, where nobody has checked it.
            reason = f"now at {address}, before at {node.address}"
            self._roster.move(node, address)
            self._judge.take_down(node, reason, now_ms, counts=False)
            self._outbox.changed()
        if (node.weight, node.backup) != (hello.weight, hello.backup):
            node.weight, node.backup = hello.weight, hello.backup
            self._outbox.changed()
        self._services.name(node, hello.services, now_ms)
        self._door.answer(node, now_ms)

    def _heartbeat(self, speaker: Speaker, beat: Heartbeat, now_ms: int) -> None:
        node, sent_ms = speaker.node, speaker.sent_ms
        # Nothing new on a new connection says nothing; on the first of a new agent it does.
        if beat.prepared is not None or speaker.beats == 1:
            self._services.prepare(node, beat.prepared, now_ms)
        node.load = beat.load
        self._silence.heard(node, sent_ms, now_ms)
        if node.state is BANNED:
            self._door.answer(node, now_ms)
            return
        sick = self._findings.sick_of(node, speaker.sick)
        leaves = beat.status is ServingStatus.SHUTTING_DOWN
        of_all = beat.status is ServingStatus.NOT_SERVING and not speaker.sick
        if of_all or (sick and not leaves and self._services.serves_nothing(node, sick)):
            why = next(iter(sick.values()), "")
            self._judge.not_serving(node, beat.reason or why, now_ms)
            return
        if sick or node.apart:
            self._services.judge(node, sick, sent_ms, now_ms)
        if leaves:
            self._judge.shutting_down(node, now_ms)
        else:
            self._judge.good_check(node, sent_ms, now_ms)

    def keys_changed(self, now_ms: int) -> None:
        """Other keys are admitted from now on; a node that nobody may speak for now is DOWN."""
        for node in self._door.keys_changed():
            self._judge.take_down(node, KEY_GONE, now_ms, counts=False)

    # ----------------------------------------------------------------- coming and going

    def _add(self, node: Node) -> None:
        self._roster.add(node)
        self._headcount.changed()
        self._deadlines.watch(node)
        self._outbox.changed()

    def _forget(self, node: Node) -> None:
        self._roster.remove(node)
        self._door.forget(node)
        self._headcount.changed()
        self._outbox.changed()

    def knows(self, address: str) -> bool:
        """Whether a node is known there."""
        return self._roster.has_any_at(address)

    # ----------------------------------------------------------------- time

    def tick(self, now_ms: int) -> None:
        """Act on every deadline that has passed. Call it when the input has been drained."""
        self._silence.tick(now_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never."""
        return self._silence.next_due_ms()

    def lagged(self, lag_ms: int, now_ms: int) -> None:
        """This loop was late by `lag_ms`: no node is to be blamed for that time."""
        self._deadlines.lagged(lag_ms, now_ms)

    # ----------------------------------------------------------------- this LB's own probe

    def spots(self, most: int) -> dict[Spot, bool]:
        """What to probe, at most so much; whether a refused connection is a fault there."""
        return self._findings.spots(most)

    def probed(self, spot: Spot, outcome: Outcome | None, now_ms: int) -> None:
        """What this LB's own connection to a place says; None: it is not looked at any more."""
        if self._findings.note(spot, outcome):
            self._silence.doubt_at(spot.address, now_ms)

    # ----------------------------------------------------------------- restart, table, settings

    def adopt(self, kept: tuple[KeptNode, ...], elapsed_ms: int, now_ms: int) -> int:
        """Take over what the last run kept `elapsed_ms` ago; says how many nodes are routed to."""
        self._keeping.adopt(kept, elapsed_ms, now_ms)
        return sum(node.state in ROUTED for node in self._roster)

    def adopt_table(self, table: NodeTable, now_ms: int, age_ms: int = 0) -> None:
        """Take over what the LBs had agreed on; only during the grace after a restart.

        `age_ms`: since the table was made; the bans in it have that much less time left.
        """
        self._keeping.adopt_table(table, age_ms, now_ms)

    def kept(self, now_ms: int) -> tuple[KeptNode, ...]:
        """What a restart must not forget."""
        for node in self._roster:
            self._judge.fade(node, now_ms)
        return tuple(kept_of(node, now_ms) for node in self._roster)

    def heed(self, table: NodeTable, now_ms: int) -> None:
        """Carry out what operators want, as far as it is done here."""
        self._table_epoch = max(self._table_epoch, table.epoch)
        self._headcount.leave_out(o.asked.node for o in table.orders if o.asked.kind in TAKES_NONE)
        for order in table.orders:
            node = self._roster.get(order.asked.node)
            if node is not None and order.asked.kind is OrderKind.PARDON:
                self._judge.pardon(node, order.epoch, f"pardoned by {order.asked.by}", now_ms)

    def configure(self, policy: Policy, now_ms: int) -> None:
        """Go by another configuration from now on; every agent is told."""
        if policy == self.policy:
            return
        if policy.checks_timeout_ms < self.policy.checks_timeout_ms:
            # Until they hear of it, agents beat at the interval they were told before.
            self._deadlines.lagged(self.policy.interval_ms(UP), now_ms)
        self._go_by(policy)
        self._headcount.changed()
        for node in self._roster:
            self._services.settle(node, now_ms)
            self._door.answer(node, now_ms)
        self._deadlines.rebuild()
        self._outbox.changed()

    # ----------------------------------------------------------------- what comes out

    def take_output(self) -> Output:
        """What has come up since the last call; the shell carries it out."""
        return self._outbox.take()

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
                    banned_for_ms=node.banned_for_ms(now_ms),
                    silent=node.silent,
                    apart=node.states_apart(now_ms),
                    backup=node.backup,
                )
                for node in self._roster
            ),
            waiting_for=waiting_for,
            late=late,
            deaf=self._silence.deaf,
        )

    def checks(self, now_ms: int) -> LocalChecks:
        """How the checks of all nodes stand. Failures that have faded by now change the view."""
        self._checks_version += 1
        nodes = list(self._roster)
        for node in nodes:
            self._judge.fade(node, now_ms)
        return LocalChecks(
            version=self._checks_version,
            required=self.policy.checks_before_routing,
            rejected=dict(self.rejected),
            id=tuple([node.id for node in nodes]),
            observed_ms=tuple([max(0, now_ms - node.last_seen_ms) for node in nodes]),
            passed=tuple([node.passed for node in nodes]),
            good_total=tuple([node.good_total for node in nodes]),
            bad_total=tuple([node.bad_total for node in nodes]),
            load=tuple([node.load for node in nodes]),
        )
