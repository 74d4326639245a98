"""Who may speak, and for which node: the connections of agents, and what is not let in. Pure.

A connection says Hello, once at least, and speaks for the node that it named last. Then it beats. A
message that cannot be read, or is not for us to read, is its sender's fault (`peer_faults`), and is
counted, answered at most, and has no other effect.

* **Who a node is**: its name and the address that it comes from; or, where keys are used, whoever
  its key stands for, wherever it comes from (the registry looks at it anew where that changes). An
  agent that gives another name than its key's is refused. A key that is taken off the list
  (`keys_changed`) ends what it had opened.
* A heartbeat on a connection that never sent a Hello is answered with Refused(retry_ms=0), "say
  hello first". That is how an agent learns that this process was restarted.
* An agent may have several connections at once: when one was lost and nobody noticed here, or when
  its file names this LB twice. It is heard on each of the last `MOST_SESSIONS`, answered on each,
  and beats are numbered by connection: no number says anything about another connection's.
* A second agent of the same name and address is told so; the one that came first is not let back.
* A connection that goes on to name other nodes is at fault for each, and is so cut off before long:
  how many nodes there may be stands in `roster`.

Each agent has its own clock, which its beats are stamped by: `clock_offset`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from bus.codec import MalformedMessage
from bus.node_protocol import (
    NODE_VERSION,
    Heartbeat,
    Hello,
    NodeMessage,
    Refused,
    Sick,
    Welcome,
    decode_node,
)
from bus.words import one_line
from services.health.clock_offset import ClockOffset
from services.health.node import Node
from services.health.outbox import Outbox
from services.health.peer_faults import PeerFaults, heartbeat_problem, hello_problem
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import BANNED, PROBATION

MOST_SESSIONS = 4
"""Connections on which one agent is heard."""
SAME_NAME_RETRY_MS = 10_000
"""When whoever was refused is to try again."""
KEY_GONE = "its key is not admitted any more"


class _Refusal(NamedTuple):
    """Why somebody is not let in: by the name it is counted by, and in words."""

    reason: str
    text: str


class Guest(NamedTuple):
    """Who says hello, and may."""

    id: str
    node: Node | None
    """None: it is not known yet."""
    former: Node | None
    """The same node by the id that it had before keys were used, or when they were: it has gone."""


@dataclass(slots=True, eq=False)
class Speaker:
    """One start of an agent, which speaks for a node, and what must be remembered of its words."""

    node: Node
    clock: ClockOffset
    former_boot: str | None
    """Of the agent that spoke for the node before this one."""
    sessions: dict[bytes, int] = field(default_factory=dict)
    """By connection, the number of the last beat that came by it; the newest connection last."""
    keys: dict[bytes, str] = field(default_factory=dict)
    """By connection, the key that its other end has proved; empty where no keys are used."""
    beats: int = 0
    sent_ms: int = 0
    """When the beat that came last was sent, on our clock."""
    sick: dict[str, str] | None = None
    """By service that it does not serve, why; None: it does not say. Beats tell changes alone."""


class Doorkeeper:
    def __init__(
        self,
        policy: Policy,
        roster: Roster,
        outbox: Outbox,
        name_of: Callable[[str], str | None] | None,
    ) -> None:
        """`name_of`: whom a key stands for; None: not admitted. Without it no keys are used."""
        self.policy = policy
        self.faults = PeerFaults()
        self._roster = roster
        self._outbox = outbox
        self._name_of = name_of
        self._speakers: dict[str, Speaker] = {}
        """By the id of the node."""
        self._by_connection: dict[bytes, Speaker] = {}

    # ----------------------------------------------------------------- what comes in

    def read(self, connection: bytes, frames: list[bytes], now_ms: int) -> Hello | Heartbeat | None:
        """The message, if it is one that an agent may send; None: it is not to be listened to."""
        if self.faults.ignores(connection, now_ms):
            return None
        if not connection.startswith(b"\0"):
            # libzmq's own begin so; a name that a peer chose may be another's when it is gone.
            self._fault(connection, "own_routing_id", now_ms)
            return None
        try:
            message = decode_node(frames)
        except MalformedMessage:
            self._fault(connection, "malformed", now_ms)
            return None
        match message:
            case Heartbeat() | Hello():
                return message
            case _:
                self._fault(connection, "unexpected_kind", now_ms)
                return None

    def beat(self, connection: bytes, beat: Heartbeat, now_ms: int) -> Speaker | None:
        """Whose beat it is; None: it counts for nobody."""
        speaker = self._by_connection.get(connection)
        if speaker is None:
            self._fault(connection, "no_hello", now_ms)
            self._outbox.send(connection, Refused("say hello first", 0))
            return None
        if problem := heartbeat_problem(beat):
            self._fault(connection, problem, now_ms)
            return None
        if beat.seq <= speaker.sessions[connection]:
            self.faults.rejected["repeated"] += 1
            return None
        speaker.sessions[connection] = beat.seq
        if beat.sick is not None:
            speaker.sick = _by_service(beat.sick)
        speaker.beats += 1
        speaker.sent_ms = speaker.clock.sent_on_our_clock(beat.sent_ms, now_ms)
        return speaker

    def admit(
        self, connection: bytes, address: str, key: str, hello: Hello, now_ms: int
    ) -> Guest | None:
        """Who says hello; None: it may not speak here, and has been told why."""
        if wrong := self._wrong(hello, key):
            self._fault(connection, wrong.reason, now_ms)
            self._outbox.send(connection, Refused(wrong.text, SAME_NAME_RETRY_MS))
            return None
        node_id, other_id = f"{hello.name}@{address}", hello.name
        if self._name_of is not None:
            node_id, other_id = other_id, node_id
        node, former = self._roster.get(node_id), self._roster.get(other_id)
        spoken_for = self._by_connection.get(connection)
        if spoken_for is not None and spoken_for.node is not node:
            self._fault(connection, "another_name", now_ms)
        if unwelcome := self._unwelcome(node, address, hello):
            self.faults.rejected[unwelcome.reason] += 1
            self._outbox.send(connection, Refused(unwelcome.text, SAME_NAME_RETRY_MS))
            return None
        is_same = former is not None and former.address == address and not former.heard
        return Guest(node_id, node, former if is_same and node is None else None)

    def _wrong(self, hello: Hello, key: str) -> _Refusal | None:
        """What is wrong with a hello, which is the fault of whoever says it."""
        if hello.v != NODE_VERSION:
            text = f"node protocol {hello.v}, this load balancer speaks {NODE_VERSION}"
            return _Refusal("version", text)
        if problem := hello_problem(hello):
            return _Refusal("bad_hello", problem)
        if self._name_of is None or (owner := self._name_of(key)) == hello.name:
            return None
        if owner is None:
            return _Refusal("key_not_admitted", KEY_GONE)
        text = f"this is the key of {owner}, not {hello.name}"
        return _Refusal("name_of_another_key", text)

    def _unwelcome(self, node: Node | None, address: str, hello: Hello) -> _Refusal | None:
        """Why a node is not let in that has done nothing wrong."""
        if node is None:
            full = self._roster.why_full(address)
            return _Refusal("registry_full", full) if full else None
        speaker = self._speakers.get(node.id)
        if speaker is None or speaker.former_boot != hello.boot:
            return None
        text = f"another agent named {hello.name} has since started at {address}"
        return _Refusal("same_name", text)

    def _fault(self, connection: bytes, reason: str, now_ms: int) -> None:
        if refused := self.faults.fault(connection, reason, now_ms):
            self._outbox.send(connection, refused)

    # ----------------------------------------------------------------- who speaks

    def attach(self, node: Node, connection: bytes, boot: str, key: str) -> None:
        """From now on `connection` speaks for this node and no other; `key`: by its right."""
        former = self._by_connection.get(connection)
        if former is not None and former.node is not node:
            self._close(former, connection)
        speaker = self._speakers.get(node.id)
        if speaker is None or speaker.clock.boot != boot:
            self.forget(node)
            former_boot = speaker.clock.boot if speaker is not None else None
            speaker = self._speakers[node.id] = Speaker(node, ClockOffset(boot), former_boot)
        speaker.sessions[connection] = speaker.sessions.pop(connection, -1)
        self._by_connection[connection] = speaker
        if key:
            speaker.keys[connection] = key
        if len(speaker.sessions) > MOST_SESSIONS:
            self._close(speaker, next(iter(speaker.sessions)))

    def keys_changed(self) -> list[Node]:
        """Other keys are admitted from now on: what a key has opened that is not, is over.

        Returns the nodes that nobody speaks for any more because of that.
        """
        assert self._name_of is not None
        mute = []
        for speaker in self._speakers.values():
            gone = [c for c, key in speaker.keys.items() if self._name_of(key) != speaker.node.id]
            for connection in gone:
                self._close(speaker, connection)
                self._outbox.send(connection, Refused(KEY_GONE, SAME_NAME_RETRY_MS))
            if gone and not speaker.sessions:
                mute.append(speaker.node)
        return mute

    def forget(self, node: Node) -> None:
        """Nobody speaks for the node any more, and nothing is remembered of who did."""
        speaker = self._speakers.pop(node.id, None)
        for connection in list(speaker.sessions) if speaker is not None else ():
            del self._by_connection[connection]

    def _close(self, speaker: Speaker, connection: bytes) -> None:
        """The connection does not speak for the node any more."""
        del speaker.sessions[connection], self._by_connection[connection]
        speaker.keys.pop(connection, None)

    # ----------------------------------------------------------------- what goes out

    def answer(self, node: Node, now_ms: int) -> None:
        """Tell the node's agent where its node stands, and how often to beat."""
        speaker = self._speakers.get(node.id)
        for connection in speaker.sessions if speaker is not None else ():
            self._outbox.send(connection, self._answer_to(node, now_ms))

    def _answer_to(self, node: Node, now_ms: int) -> NodeMessage:
        if node.state is BANNED:
            return Refused(node.reason, node.banned_for_ms(now_ms))
        return Welcome(
            lb=self.policy.lb,
            node_id=node.id,
            checks_timeout_ms=self.policy.checks_timeout_ms,
            interval_ms=self.policy.interval_ms(PROBATION if node.is_watched else node.state),
            state=node.state,
            services=self.policy.services,
        )


def _by_service(sick: Iterable[Sick]) -> dict[str, str]:
    return {name: one_line(each.reason) for each in sick for name in each.services}
