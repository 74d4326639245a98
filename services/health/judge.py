"""What becomes of a node, or of one service of it, by what it says and how often it fails. Pure.

The steps are those of `standing`; each is taken here, for whatever reason, and here it is told: to
the bus, to the node's agent, to the view.

* A **good check** is a heartbeat that says SERVING and was sent within the last `checks_timeout`.
  Checks are counted at most once per half of the probation interval, so that haste earns nothing.
  NOT_SERVING, or silence, sets the count to 0; SHUTTING_DOWN leaves it alone, for it is no failure:
  an agent that is restarted, with or without saying goodbye, finds its node UP.
* A **failure** is a step from UP to DOWN, for silence or for NOT_SERVING. What goes DOWN from
  DRAINING or PROBATION has not failed, nor has a node that was adopted after a restart and never
  heard. At `black_list_after_fails` failures it is BANNED: its beats are ignored, and answered with
  the time that is left. The end of the ban sets the count to 0.
* **Failures fade**: for each `black_list_expiry` that a node is UP without a break, one is
  forgotten; so a restart of its server now and then adds up to no ban.
* **Of the nodes of one service no more than half are banned at a time** (`headcount`): what
  restarts them one after the other, over and over, is more likely an operator than a fault of each.
* **What fails together has not failed** (`together`): then no failure counts, and those that had
  counted are taken back, with their bans.
* A **pardon**, which an operator asks for, ends the bans of a node and of its services, and their
  failures.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

from bus.events import NodeEvent
from bus.topics import Topic
from bus.words import NodeState, one_line
from services.health.deadlines import Deadlines
from services.health.headcount import Headcount
from services.health.node import Node
from services.health.outbox import Outbox
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import (
    BANNED,
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


class _Verdict(NamedTuple):
    """What becomes of a failure."""

    counts: bool
    bans: bool
    remark: str
    """Why it does not count, or why it bans nobody; empty: there is nothing to say."""


_NO_FAILURE = _Verdict(counts=False, bans=False, remark="")


class Judge:
    def __init__(
        self,
        policy: Policy,
        roster: Roster,
        headcount: Headcount,
        deadlines: Deadlines,
        outbox: Outbox,
        answer: Callable[[Node, int], None],
    ) -> None:
        """`answer`: tells a node's agent where the node stands now."""
        self.policy = policy
        self._roster = roster
        self._headcount = headcount
        self._deadlines = deadlines
        self._outbox = outbox
        self._answer = answer
        self._failures = RecentFailures()

    # ----------------------------------------------------------------- what a node says

    def joined(self, node: Node, now_ms: int) -> None:
        """A node is here that was not known."""
        self._tell(Topic.NODE_JOINED, node, None, now_ms)

    def good_check(self, node: Node, sent_ms: int, now_ms: int) -> None:
        """A beat says that the node serves."""
        if sent_ms + self.policy.checks_timeout_ms <= now_ms:
            return  # it was in time when it was sent, which says nothing of the node now
        node.good_total += 1
        if node.held:
            node.held = False
            node.reason = "heard again"
            self._outbox.changed(keep=False)
        if node.state is SUSPECT:
            self.enter(node, UP, "heard again", now_ms)
        if node.state is UP:
            node.passed += 1
            return
        if node.counted_ms is None or sent_ms - node.counted_ms >= self.policy.spacing_ms:
            node.counted_ms = sent_ms
            node.passed += 1
        if node.state is DOWN and node.passed > 0:
            self.enter(node, PROBATION, "on probation", now_ms)
        if node.passed >= self.policy.checks_before_routing:
            self.enter(node, UP, f"{node.passed} checks passed", now_ms)

    def not_serving(self, node: Node, reason: str, now_ms: int) -> None:
        """A beat says that the node does not serve."""
        node.bad_total += 1
        why = one_line(reason)
        self.take_down(node, f"not serving: {why}" if why else "not serving", now_ms)

    def shutting_down(self, node: Node, now_ms: int) -> None:
        """A beat says that the node's agent ends, for now or for good."""
        if node.state in (UP, SUSPECT):
            self.enter(node, DRAINING, "its agent is shutting down", now_ms)
        elif node.state is PROBATION:
            self.take_down(node, "its agent is shutting down", now_ms)

    # ----------------------------------------------------------------- what silence says of it

    def missed(self, node: Node, now_ms: int, *, counts: bool) -> None:
        """It has missed its deadline, and that is believed."""
        node.bad_total += 1
        self.take_down(node, node.silence(now_ms), now_ms, counts=counts)

    def hold(self, node: Node, reason: str, now_ms: int) -> None:
        """It has missed its deadline, and stays UP for now, for that reason."""
        if not node.held:
            node.held = True
            self._doubt(node, now_ms)
            self.reword(node, reason)

    def suspect(self, node: Node, reason: str, now_ms: int) -> None:
        """It has missed its deadline, and is needed; one that is SUSPECT remains so."""
        if node.state is UP:
            node.bad_total += 1
            if not node.held:
                self._doubt(node, now_ms)
            why = one_line(f"{node.silence(now_ms)}; {reason}")
            self.enter(node, SUSPECT, why, now_ms)

    def _doubt(self, node: Node, now_ms: int) -> None:
        """That it is silent and routed to all the same is no failure of its own; but those of
        others that fell silent with it are none either.
        """
        names = [service.name for service in node.services]
        self._failed_together(Failure(node.id), names, now_ms, doubt=True)

    def spare_service(self, node: Node, name: str, now_ms: int) -> None:
        """It is SUSPECT, and can be done without at this service."""
        node.apart.setdefault(name, Standing(UP, "", now_ms)).start_anew()
        self.step(node, name, DOWN, node.silence(now_ms), now_ms)

    def reword(self, node: Node, reason: str) -> None:
        """It stands as it did, for another reason."""
        if node.reason != reason:
            node.reason = reason
            self._outbox.changed(keep=False)

    # ----------------------------------------------------------------- failures

    def take_down(self, node: Node, reason: str, now_ms: int, *, counts: bool = True) -> None:
        """To DOWN from wherever it is; from UP, and heard, that is a failure, if it `counts`."""
        node.passed, node.counted_ms = 0, None
        for standing in node.apart.values():
            standing.start_anew()
        if node.state is DOWN:
            self.reword(node, reason)
            return
        failed = node.state is UP and node.heard and counts
        self.fade(node, now_ms)
        names = [service.name for service in node.services]
        verdict = _NO_FAILURE
        if failed:
            verdict = self._weigh(node, Failure(node.id), names, node.fails, now_ms)
        node.fails += verdict.counts
        self.enter(node, DOWN, _remarked(reason, verdict.remark), now_ms)
        if verdict.bans:
            node.ban_until_ms = now_ms + self.policy.black_list_expiry_ms
            self.enter(node, BANNED, f"banned after {node.fails} failures", now_ms)

    def take_service_down(self, node: Node, name: str, reason: str, now_ms: int) -> None:
        """The same of one service of the node that stands apart, and is not DOWN yet."""
        standing = node.apart[name]
        failed = standing.state is UP and node.state is UP and node.heard
        standing.fade(self.policy.black_list_expiry_ms, now_ms)
        verdict = _NO_FAILURE
        if failed:
            verdict = self._weigh(node, Failure(node.id, name), [name], standing.fails, now_ms)
        standing.fails += verdict.counts
        self.step(node, name, DOWN, _remarked(reason, verdict.remark), now_ms)
        if verdict.bans:
            standing.ban_until_ms = now_ms + self.policy.black_list_expiry_ms
            self.step(node, name, BANNED, f"banned after {standing.fails} failures", now_ms)

    def _weigh(
        self, node: Node, failure: Failure, names: Sequence[str], fails: int, now_ms: int
    ) -> _Verdict:
        """What becomes of a failure that concerns these services, after so many others."""
        said = self._failed_together(failure, names, now_ms)
        if said:
            return _Verdict(counts=False, bans=False, remark=f"not counted: {said}")
        if not self.policy.bans_after(fails + 1):
            return _Verdict(counts=True, bans=False, remark="")
        spared = self._headcount.why_spared(node, names, fails + 1)
        return _Verdict(counts=True, bans=not spared, remark=spared)

    def _failed_together(
        self, failure: Failure, names: Sequence[str], now_ms: int, *, doubt: bool = False
    ) -> str:
        """With whom a node fails, or is in doubt, in words, whose failures are none then either."""
        said, together = self._failures.add(
            failure,
            names,
            now_ms,
            self.policy.checks_timeout_ms,
            self._headcount.up,
            doubt=doubt,
        )
        for each in together:
            self._forgive(each, said, now_ms)
        return said

    def _forgive(self, failure: Failure, why: str, now_ms: int) -> None:
        """A failure that had counted was none, nor is the ban that it made."""
        node = self._roster.get(failure.node)
        if node is None:
            return
        name = failure.service
        about: Node | Standing | None = node.apart.get(name) if name else node
        if about is None:
            return
        about.fails = max(0, about.fails - 1)
        if about.state is BANNED and name:
            self.step(node, name, DOWN, f"pardoned: {why}", now_ms)
        elif about.state is BANNED:
            self.enter(node, DOWN, f"pardoned: {why}", now_ms)
        self._outbox.changed()

    def fade(self, node: Node, now_ms: int) -> None:
        """Forget the failures of the node that have faded by now."""
        if node.fade(self.policy.black_list_expiry_ms, now_ms):
            self._outbox.changed(keep=False)

    # ----------------------------------------------------------------- bans

    def end_ban(self, node: Node, now_ms: int) -> None:
        """The ban of the node as a whole is over."""
        node.fails = 0
        self.enter(node, DOWN, "the ban is over", now_ms)

    def end_service_ban(self, node: Node, name: str, now_ms: int) -> None:
        node.apart[name].fails = 0
        self.step(node, name, DOWN, "the ban is over", now_ms)

    def pardon(self, node: Node, epoch: int, reason: str, now_ms: int) -> None:
        """End the bans of the node and of its services, and forget their failures: once.

        `epoch`: of the node table in which the pardon first stood.
        """
        if node.pardoned_epoch >= epoch:
            return
        node.pardoned_epoch = epoch
        node.fails = 0
        for name, standing in node.apart.items():
            standing.fails = 0
            if standing.state is BANNED:
                self.step(node, name, DOWN, reason, now_ms)
        if node.state is BANNED:
            self.enter(node, DOWN, reason, now_ms)
        self._outbox.changed()

    def impose_ban(self, node: Node, fails: int, ban_until_ms: int, now_ms: int) -> None:
        """The others have banned the node: no step of its own, so there is no event of it here."""
        self._headcount.changed()
        node.state = BANNED
        node.reason = f"banned after {fails} failures"
        node.fails, node.passed, node.counted_ms = fails, 0, None
        node.ban_until_ms = ban_until_ms
        self._deadlines.schedule(node)
        self._outbox.changed()
        self._answer(node, now_ms)

    # ----------------------------------------------------------------- steps

    def enter(self, node: Node, state: NodeState, reason: str, now_ms: int) -> None:
        """The node takes a step; raises `IllegalTransitionError` if there is no such one."""
        previous = node.state
        topic = checked_step(node.id, previous, state, reason)
        self.fade(node, now_ms)
        node.state = state
        node.was_up |= state is UP
        node.fading_from_ms = now_ms
        if previous is BANNED:
            self._headcount.changed()
        elif state is BANNED:
            self._headcount.banned(node)
        node.reason = reason
        node.held = False
        self._deadlines.schedule(node)
        if topic is not None:
            self._tell(topic, node, previous, now_ms)
        self._outbox.changed()
        self._answer(node, now_ms)

    def step(self, node: Node, name: str, state: NodeState, reason: str, now_ms: int) -> None:
        """One service of the node that stands apart takes a step."""
        standing = node.apart[name]
        previous, haste = standing.state, node.is_watched
        topic = standing.enter(f"{name} of {node.id}", state, reason, now_ms)
        if BANNED in (previous, state):
            self._headcount.changed()
        self._outbox.changed()
        if topic is not None and node.state in ROUTED:
            self._tell(topic, node, previous, now_ms, name)
        if node.is_watched is not haste:
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
            banned_for_ms=about.banned_for_ms(now_ms),
            service=service,
        )
        self._outbox.happened(topic, event)


def _remarked(reason: str, remark: str) -> str:
    return f"{reason}; {remark}" if remark else reason
