"""Which services a node serves, and those of them that stand for themselves. Pure.

An agent's file names the services of its node, with their ports; or none, then it serves all that
this LB has.

* **Apart.** A service that the agent says it does not serve (or that the LB's own probe does not
  reach), or that is new to the node, stands apart (`standing.Standing`): it goes through the same
  states, by checks, failures and bans of its own, and the node's other services do not hear of it.
  A node of which all services are sick is itself NOT_SERVING. A ban of a service ends with the
  first beat after it.
* **Prepared.** An agent says for which modes its machine is prepared, service by service, when that
  changes. It goes out with the services of the view; an agent that never says so is taken for one
  that is prepared for all. After a restart of the agent its first beat decides.

Nodes that serve the same have one list of it, which `tally` counts by.
"""

from __future__ import annotations

from collections.abc import Mapping

from bus.node_protocol import Prepared
from bus.states import NodeService
from bus.words import Mode
from services.health.headcount import Headcount
from services.health.judge import Judge
from services.health.node import Node
from services.health.outbox import Outbox
from services.health.policy import Policy
from services.health.standing import BANNED, DEAD, DOWN, PROBATION, ROUTED, UP, Standing
from services.health.tally import Alike

L4_ALONE = (Mode.L4,)


class NodeServices:
    def __init__(self, policy: Policy, headcount: Headcount, judge: Judge, outbox: Outbox) -> None:
        self.policy = policy
        self._headcount = headcount
        self._judge = judge
        self._outbox = outbox
        self._alike = Alike()

    # ----------------------------------------------------------------- which there are

    def served(
        self, named: tuple[NodeService, ...], prepared: Mapping[str, tuple[Mode, ...]] | None
    ) -> tuple[NodeService, ...]:
        """The services of a node whose file names these, on a machine that is so prepared."""
        ports = [(s.name, s.port) for s in named]
        ports = ports or [(s.name, s.node_port) for s in self.policy.services]
        if prepared is None:
            return self._alike.one(tuple([NodeService(name, port) for name, port in ports]))
        return self._alike.one(
            tuple([NodeService(name, port, prepared.get(name, L4_ALONE)) for name, port in ports])
        )

    def name(self, node: Node, named: tuple[NodeService, ...], now_ms: int) -> None:
        """Its agent's file names these now."""
        node.named = named
        self.settle(node, now_ms)

    def prepare(self, node: Node, prepared: tuple[Prepared, ...] | None, now_ms: int) -> None:
        """For which modes its machine is prepared, the agent says, or that it does not know."""
        if prepared is None:
            node.prepared = None
        else:
            node.prepared = {
                name: tuple(sorted({*each.modes, Mode.L4}))
                for each in prepared
                for name in each.services
            }
        self.settle(node, now_ms)

    def settle(self, node: Node, now_ms: int) -> None:
        """What it serves follows from what has changed: those that are new to it stand apart."""
        services = self.served(node.named, node.prepared)
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
        self._headcount.changed()
        self._outbox.changed()

    # ----------------------------------------------------------------- how they stand

    def serves_nothing(self, node: Node, sick: Mapping[str, str]) -> bool:
        """Whether none of this LB's services is served there, if these are sick."""
        names = {service.name for service in node.services}
        return sick.keys() >= ((names & self.policy.offered) or names)

    def judge(self, node: Node, sick: Mapping[str, str], sent_ms: int, now_ms: int) -> None:
        """What a beat says of the services one by one, of those that are sick by a reason.

        That comes before what it says of the node: one that comes up now comes up without them.
        """
        for service in node.services:
            if service.name in sick:
                self._sick(node, service.name, sick[service.name], now_ms)
        if sent_ms + self.policy.checks_timeout_ms <= now_ms:
            return
        for name, standing in list(node.apart.items()):
            if name not in sick:
                self._well(node, name, standing, sent_ms, now_ms)

    def _sick(self, node: Node, name: str, why: str, now_ms: int) -> None:
        reason = f"not serving: {why}" if why else "not serving"
        standing = node.apart.get(name)
        if standing is None:
            routed = node.state in ROUTED
            standing = node.apart[name] = Standing(UP if routed else DOWN, reason, now_ms)
            self._outbox.changed()
        standing.start_anew()
        self._end_ban(node, name, standing, now_ms)
        if standing.state not in DEAD:
            self._judge.take_service_down(node, name, reason, now_ms)
        elif standing.state is DOWN and standing.reason != reason:
            standing.reason = reason
            self._outbox.changed(keep=False)

    def _well(self, node: Node, name: str, standing: Standing, sent_ms: int, now_ms: int) -> None:
        self._end_ban(node, name, standing, now_ms)
        if standing.state is UP:
            standing.fade(self.policy.black_list_expiry_ms, now_ms)
        elif standing.state is not BANNED:
            standing.count(sent_ms, self.policy.spacing_ms)
            if standing.state is DOWN and standing.passed:
                self._judge.step(node, name, PROBATION, "on probation", now_ms)
            if standing.passed >= self.policy.checks_before_routing:
                self._judge.step(node, name, UP, f"{standing.passed} checks passed", now_ms)
        if standing.is_spent:
            del node.apart[name]

    def _end_ban(self, node: Node, name: str, standing: Standing, now_ms: int) -> None:
        if standing.state is BANNED and now_ms >= standing.ban_until_ms:
            self._judge.end_service_ban(node, name, now_ms)
