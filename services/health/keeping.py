"""What outlives this process, and what is made of it after a restart. Pure.

**Kept** is, of each node, who it is, where it stood, its failures and what was left of its ban; not
how far its probation had come. The shell writes it to the state file (`statefile`).

**After a restart** the caller hands in what the last run kept (`adopt`) and, while the first
`checks_timeout` lasts, the committed table (`adopt_table`), which fills in what the file does not
have: what the file says goes before what the table says, but for bans, which stand unless the node
was heard here meanwhile. Adopted nodes count as seen at that moment: that is their grace. Those
that were routed to are again; all others are DOWN, until their agents come. Bans go on with the
time that is left of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from bus.states import Ban, NodeService, NodeTable, TableNode, without_orders
from bus.words import Duration, IPv4, NodeState, Stored, Weight, is_ipv4
from services.health.judge import Judge
from services.health.node import Node
from services.health.node_services import NodeServices
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import BANNED, DOWN, ROUTED, UP, Standing


@dataclass(frozen=True, slots=True)
class KeptService:
    """What survives of a service of a node that stands apart."""

    service: str
    state: NodeState
    reason: str
    fails: Stored
    ban_remaining_ms: Duration


@dataclass(frozen=True, slots=True)
class KeptNode:
    """What survives a restart of this process, by way of the state file."""

    id: str
    name: str
    address: IPv4
    state: NodeState
    weight: Weight
    services: tuple[NodeService, ...]
    fails: Stored
    ban_remaining_ms: Duration
    silent: bool = False
    was_up: bool = True
    apart: tuple[KeptService, ...] = ()
    pardoned_epoch: Stored = 0
    backup: bool = False


class Keeping:
    def __init__(
        self,
        policy: Policy,
        roster: Roster,
        services: NodeServices,
        judge: Judge,
        add: Callable[[Node], None],
        now_ms: int,
    ) -> None:
        """`add`: makes a node known, and its deadline run."""
        self.policy = policy
        self._roster = roster
        self._services = services
        self._judge = judge
        self._add = add
        self._grace_ends_ms = now_ms + policy.checks_timeout_ms

    def adopt(self, kept: tuple[KeptNode, ...], elapsed_ms: int, now_ms: int) -> None:
        """Take over what the last run kept `elapsed_ms` ago."""
        for node in kept:
            if node.id not in self._roster:
                self._adopt_node(_aged(node, elapsed_ms), now_ms)

    def adopt_table(self, table: NodeTable, age_ms: int, now_ms: int) -> None:
        """Take over what the LBs had agreed on, `age_ms` ago; nothing once the grace is over."""
        if now_ms >= self._grace_ends_ms:
            return
        for node in without_orders(table):
            if node.id not in self._roster:
                self._adopt_node(_kept_of_row(node), now_ms)
        for ban in table.bans:
            known = self._roster.get(ban.node)
            remaining_ms = ban.remaining_ms - age_ms
            if remaining_ms <= 0:
                continue
            if known is None:
                self._adopt_banned(replace(ban, remaining_ms=remaining_ms), now_ms)
            elif not (known.heard or known.state is BANNED):
                # The record stays the one it is: its agent may have said hello already.
                self._judge.impose_ban(known, ban.fails, now_ms + remaining_ms, now_ms)

    def _adopt_banned(self, ban: Ban, now_ms: int) -> None:
        """A node of which no more is known than that it is banned."""
        name, _, address = ban.node.rpartition("@")
        if is_ipv4(address):
            services = self._services.served((), None)
            banned = KeptNode(
                ban.node, name, address, BANNED, 1, services, ban.fails, ban.remaining_ms
            )
            self._adopt_node(banned, now_ms)

    def _adopt_node(self, kept: KeptNode, now_ms: int) -> None:
        """Put an unknown node in the state that a restart leaves it in; its deadline starts now."""
        is_banned = kept.ban_remaining_ms > 0
        routed = kept.state in ROUTED
        reason = "adopted after a restart of the health process"
        prepared = {service.name: service.modes for service in kept.services if service.modes}
        self._add(
            Node(
                id=kept.id,
                name=kept.name,
                address=kept.address,
                weight=kept.weight,
                backup=kept.backup,
                named=kept.services,
                services=self._services.served(kept.services, prepared or None),
                prepared=prepared or None,
                apart={each.service: _standing_of(each, now_ms) for each in kept.apart},
                state=BANNED if is_banned else kept.state if routed else DOWN,
                reason=f"banned after {kept.fails} failures" if is_banned else reason,
                was_up=kept.was_up,
                passed=self.policy.checks_before_routing if routed else 0,
                fails=0 if kept.state is BANNED and not is_banned else kept.fails,
                fading_from_ms=now_ms,
                ban_until_ms=now_ms + kept.ban_remaining_ms,
                pardoned_epoch=kept.pardoned_epoch,
                heard=False,
                silent=kept.silent and not routed,
                suspect_until_ms=now_ms + self.policy.checks_timeout_ms,
                last_seen_ms=now_ms,
            )
        )


def kept_of(node: Node, now_ms: int) -> KeptNode:
    """What a restart must not forget of the node."""
    return KeptNode(
        id=node.id,
        name=node.name,
        address=node.address,
        state=node.state,
        weight=node.weight,
        services=node.services,
        fails=node.fails,
        ban_remaining_ms=node.banned_for_ms(now_ms),
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
                ban_remaining_ms=standing.banned_for_ms(now_ms),
            )
            for name, standing in node.apart.items()
        ),
    )


def _aged(kept: KeptNode, elapsed_ms: int) -> KeptNode:
    """The same, so much later: its bans have less time left."""
    return replace(
        kept,
        ban_remaining_ms=max(0, kept.ban_remaining_ms - elapsed_ms),
        apart=tuple(
            replace(each, ban_remaining_ms=max(0, each.ban_remaining_ms - elapsed_ms))
            for each in kept.apart
        ),
    )


def _kept_of_row(node: TableNode) -> KeptNode:
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


def _standing_of(kept: KeptService, now_ms: int) -> Standing:
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
