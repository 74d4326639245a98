"""One node as this LB knows it: a record, of which each part of the registry writes its own. Pure.

All parts read it; the headings below say who writes what. What it takes to speak for a node (who
its agent is, its connections and its clock) is not here but with the `door`.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from bus.states import NodeService, ServiceState
from bus.words import Mode, NodeState
from services.health.standing import BANNED, ROUTED, UP, Standing


@dataclass(slots=True, eq=False, kw_only=True)
class Node:
    # Who it is, by its own word: registry; where: roster.
    id: str
    name: str
    address: str
    weight: int
    backup: bool = False
    """It is to serve only where too few others do, which the quorum sees to."""
    load: float = 0.0
    """As its last beat says."""

    # Where it stands, and its services that stand apart do: judge.
    state: NodeState
    reason: str
    held: bool = False
    """Still UP though it is silent, since too many others fell silent with it."""
    was_up: bool = False
    """Whether it has ever been UP, here or before a restart."""
    passed: int = 0
    counted_ms: int | None = None
    """When the last check that counted was sent."""
    good_total: int = 0
    bad_total: int = 0
    fails: int = 0
    fading_from_ms: int = 0
    """UP: since when it has served towards the next failure's being forgotten."""
    ban_until_ms: int = 0
    pardoned_epoch: int = 0
    """Pardons of this epoch of the node table, and of any before, have been carried out."""

    # What it serves, and which of that stands apart: node_services.
    named: tuple[NodeService, ...]
    """The services that the agent's file names; empty: all of this LB's."""
    services: tuple[NodeService, ...]
    """Those, with the modes that the node is prepared for."""
    prepared: dict[str, tuple[Mode, ...]] | None = None
    """By service, where that is more than L4; None: its agent does not say."""
    apart: dict[str, Standing] = field(default_factory=dict)
    """By service that does not stand as the node does, or that has failures of its own."""

    # When it was heard: silence.
    heard: bool = True
    """False from adoption until its own agent has spoken."""
    silent: bool = False
    """DOWN or BANNED, and not heard."""
    suspect_until_ms: int = 0
    """SUSPECT: when it is looked at again."""

    # When it must be heard: deadlines.
    last_seen_ms: int
    lag_mark_ms: int = 0
    """This process's total lag then; what has come since extends the node's deadline."""
    scheduled_ms: int | None = None
    """The time of this node's live entry in the heap."""

    @property
    def is_watched(self) -> bool:
        """Whether one of its services is on probation while the node is routed to."""
        return self.state in ROUTED and any(
            standing.state is NodeState.PROBATION for standing in self.apart.values()
        )

    def taken(self) -> list[str]:
        """Of a node that is UP or SUSPECT: the services whose new flows it takes."""
        apart = {name for name, each in self.apart.items() if each.state is not UP}
        return [service.name for service in self.services if service.name not in apart]

    def banned_alone(self) -> set[str]:
        """The services of it that are banned for themselves."""
        return {name for name, standing in self.apart.items() if standing.state is BANNED}

    def states_apart(self, now_ms: int) -> tuple[ServiceState, ...]:
        """The services that are not in its state, if it is routed to."""
        if not self.apart or self.state not in ROUTED:
            return ()
        return tuple(
            ServiceState(name, each.state, each.reason, each.banned_for_ms(now_ms))
            for name, each in sorted(self.apart.items())
            if each.state is not UP
        )

    def banned_for_ms(self, now_ms: int) -> int:
        """How long its ban still lasts; 0: it is not banned."""
        return max(0, self.ban_until_ms - now_ms) if self.state is BANNED else 0

    def silence(self, now_ms: int) -> str:
        """How long it was not heard, in words."""
        if not self.heard:
            return "not heard since this load balancer's health process restarted"
        return f"no heartbeat for {now_ms - self.last_seen_ms} ms"

    def fade(self, expiry_ms: int, now_ms: int) -> bool:
        """Forget one failure for each expiry of a ban that it has been UP; whether there was one.

        Work towards the next one is kept; what is beyond the last failure is not saved up.
        """
        if self.state is not UP:
            return False
        faded = (now_ms - self.fading_from_ms) // expiry_ms
        self.fading_from_ms += faded * expiry_ms
        if not faded or not self.fails:
            return False
        self.fails = max(0, self.fails - faded)
        return True
