"""The steps between the states of nodes, and one service of a node that goes its own way. Pure.

    hello ──► PROBATION ──checks_before_routing good checks──► UP ◄──serving again── DRAINING
                 │  ▲                                        │  └──shutting down──►    │
                 │  └──a good check──┐                       │                         │
                 └──────────────────► DOWN ◄──missed deadline, not serving─────────────┘
                                      │  ▲
         too many failures of UP nodes└──┴──the ban is over── BANNED

`TRANSITIONS` is the whole of what may happen; any other step raises, since it would be a mistake of
the registry's. Not in the picture is SUSPECT: a silent node that its services cannot do without
(`silence`) goes there from UP, back to UP when it is heard, and otherwise as from UP. What leads to
each step stands in `judge`.

A node as a whole is judged by its beats; each of its services stands as the node does unless the
agent says that this one is not served, or the service is new to the node. Then it has a `Standing`
of its own, which goes through the same states by the same table, with failures and bans of its own,
until it is UP and its failures are forgotten. While the node as a whole is not routed to, that
decides, whatever its services' standings are.
"""

from __future__ import annotations

from dataclasses import dataclass

from bus.topics import Topic
from bus.words import NodeState

PROBATION, UP, SUSPECT, DRAINING, DOWN, BANNED = (
    NodeState.PROBATION,
    NodeState.UP,
    NodeState.SUSPECT,
    NodeState.DRAINING,
    NodeState.DOWN,
    NodeState.BANNED,
)

TRANSITIONS: dict[tuple[NodeState, NodeState], Topic | None] = {
    (PROBATION, UP): Topic.NODE_UP,
    (PROBATION, DOWN): Topic.NODE_DOWN,
    (UP, DRAINING): Topic.NODE_DRAINING,
    (UP, DOWN): Topic.NODE_DOWN,
    (UP, SUSPECT): Topic.NODE_SUSPECT,
    (SUSPECT, UP): Topic.NODE_UP,
    (SUSPECT, DRAINING): Topic.NODE_DRAINING,
    (SUSPECT, DOWN): Topic.NODE_DOWN,
    (DRAINING, UP): Topic.NODE_UP,
    (DRAINING, DOWN): Topic.NODE_DOWN,
    (DOWN, PROBATION): None,
    (DOWN, BANNED): Topic.NODE_BANNED,
    (BANNED, DOWN): Topic.NODE_PARDONED,
}
"""Every step that a node, or one service of it, may take, and the event that tells of it."""

ROUTED = frozenset({UP, SUSPECT, DRAINING})
DEAD = frozenset({DOWN, BANNED})


class IllegalTransitionError(Exception):
    """A step that TRANSITIONS does not have: a mistake in the registry."""


def checked_step(who: str, state: NodeState, to: NodeState, reason: str) -> Topic | None:
    """The event that tells of the step; raises `IllegalTransitionError` if there is no such one."""
    if (state, to) not in TRANSITIONS:
        raise IllegalTransitionError(f"{who}: {state} to {to} ({reason})")
    return TRANSITIONS[state, to]


@dataclass(slots=True)
class Standing:
    """Of one service of a node."""

    state: NodeState
    reason: str
    since_ms: int
    """Of its state; UP: since when it has served towards the next failure's being forgotten."""
    fails: int = 0
    passed: int = 0
    counted_ms: int | None = None
    """When the last check that counted was sent."""
    ban_until_ms: int = 0

    def enter(self, who: str, state: NodeState, reason: str, now_ms: int) -> Topic | None:
        """Take a step; returns the event that tells of it."""
        topic = checked_step(who, self.state, state, reason)
        self.state, self.reason, self.since_ms = state, reason, now_ms
        return topic

    def fade(self, expiry_ms: int, now_ms: int) -> None:
        """Forget one failure for each expiry of a ban that the service has been UP."""
        if self.state is UP:
            faded = (now_ms - self.since_ms) // expiry_ms
            self.since_ms += faded * expiry_ms
            self.fails = max(0, self.fails - faded)

    def count(self, sent_ms: int, spacing_ms: int) -> None:
        """A good check, which counts if it is not too close to the last one that did."""
        if self.counted_ms is None or sent_ms - self.counted_ms >= spacing_ms:
            self.counted_ms = sent_ms
            self.passed += 1

    def start_anew(self) -> None:
        """Good checks in a row have ended."""
        self.passed, self.counted_ms = 0, None

    def banned_for_ms(self, now_ms: int) -> int:
        """How long its ban still lasts; 0: it is not banned."""
        return max(0, self.ban_until_ms - now_ms) if self.state is BANNED else 0

    @property
    def is_spent(self) -> bool:
        """Whether it says no more than that the service stands as its node does."""
        return self.state is UP and not self.fails
