"""What is believed of a node that is not heard, and what it leaves of a service's ring. Pure.

A node that misses its deadline (`deadlines`) is DOWN, with two reservations, since what is silent
may also be this LB's own network:

* **Mass silence.** When more than half of a service's UP nodes (and at least two) are silent
  together, the fault is more likely here than there. They stay UP (`held`) for at most one more
  `checks_timeout`, then it is believed; those that are heard meanwhile end the hold for the rest.
  NOT_SERVING is a node's own word and is never held. What fell silent together has not failed,
  also who was DOWN a moment before the others could be seen to be late.
* **Silence alone does not empty a ring.** A silent node of which a service cannot do without
  (`min_healthy` of the nodes known for it would not be routed to) becomes SUSPECT instead of DOWN:
  it is routed to as before, and said so, until it is heard, or says NOT_SERVING, or this LB's own
  probe (`findings`) gets no answer from it either. Its services that can do without it are DOWN.

**Deaf** is this LB once none of the nodes that it routes to, of two or more, has been heard for as
long as it takes to miss a beat (`late_ms`). That is well before any of them is judged, and says
nothing of the nodes: it is for the quorum, which gives the VIPs to an LB that hears them. One node
may have failed by itself; and of nodes that have not spoken since this process started nobody knows
when they would have.

**Silent** is a DOWN or BANNED node of which nothing was heard for a `checks_timeout`: one that
missed its deadline, and also one that said NOT_SERVING and was not heard since. It is what tells a
dead machine, whose flows nobody serves, from one that only wants no more.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable

from services.health.deadlines import Deadlines
from services.health.findings import Findings
from services.health.headcount import Headcount
from services.health.judge import Judge
from services.health.node import Node
from services.health.outbox import Outbox
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import BANNED, DEAD, DOWN, SUSPECT, UP
from services.health.tally import Tally

LOOK_AGAIN_MS = 20
"""When a node that is held, or everybody, is looked at again; a hundredth of `checks_timeout` if
that is more."""


class Silence:
    def __init__(
        self,
        policy: Policy,
        roster: Roster,
        headcount: Headcount,
        findings: Findings,
        deadlines: Deadlines,
        judge: Judge,
        outbox: Outbox,
        forget: Callable[[Node], None],
    ) -> None:
        """`forget`: of a node that has been gone for long enough."""
        self.policy = policy
        self._roster = roster
        self._headcount = headcount
        self._findings = findings
        self._deadlines = deadlines
        self._judge = judge
        self._outbox = outbox
        self._forget = forget
        self.deaf = False
        """Whether none of the nodes that are routed to is heard any more."""
        self._listen_until_ms = 0
        """When to look whether that is so, if nobody is heard before."""

    def heard(self, node: Node, sent_ms: int, now_ms: int) -> None:
        """A beat of it has come, whatever that says."""
        node.heard = True
        self._deadlines.heard(node, sent_ms)
        self._listen_until_ms = max(self._listen_until_ms, sent_ms + self.policy.late_ms)
        if self.deaf and sent_ms + self.policy.late_ms > now_ms:
            self._set_deaf(deaf=False)
        if node.silent and sent_ms + self.policy.checks_timeout_ms > now_ms:
            node.silent = False
            self._deadlines.schedule(node)
            self._outbox.changed()

    def tick(self, now_ms: int) -> None:
        """Act on every deadline that has passed."""
        silent: list[Node] = []
        for node in self._deadlines.take_due(now_ms):
            if node.state in (UP, SUSPECT):
                silent.append(node)
            else:
                self._overdue(node, now_ms)
        if silent:
            self._judge_together(silent, now_ms)
        if not self.deaf and now_ms >= self._listen_until_ms:
            self._listen(now_ms)

    def next_due_ms(self) -> int | None:
        """When `tick` has something to do; None: never."""
        due_ms = self._deadlines.next_due_ms()
        if due_ms is None or self.deaf:
            return due_ms
        return min(due_ms, self._listen_until_ms)

    def doubt_at(self, address: str, now_ms: int) -> None:
        """Something at the address does not answer: do the suspects there stay so?"""
        suspects = [n for n in self._roster if n.state is SUSPECT and n.address == address]
        if suspects:
            self._judge_together(suspects, now_ms)

    def _listen(self, now_ms: int) -> None:
        """Nobody was heard for a while: is any of those that should have been not late yet?"""
        routed = [node for node in self._roster if node.heard and node.state in (UP, SUSPECT)]
        if len(routed) < 2:
            self._listen_until_ms = now_ms + self.policy.late_ms
        elif len(self._deadlines.late(routed, now_ms)) == len(routed):
            self._set_deaf(deaf=True)
        else:  # who was late itself has moved their deadlines
            self._listen_until_ms = now_ms + self._look_again_ms

    def _set_deaf(self, *, deaf: bool) -> None:
        self.deaf = deaf
        self._outbox.changed(keep=False)

    @property
    def _look_again_ms(self) -> int:
        return max(LOOK_AGAIN_MS, self.policy.checks_timeout_ms // 100)

    def _overdue(self, node: Node, now_ms: int) -> None:
        if node.state is BANNED and now_ms >= node.ban_until_ms:
            self._judge.end_ban(node, now_ms)
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
            self._judge.reword(node, node.silence(now_ms))
        self._deadlines.schedule(node)
        self._outbox.changed()

    def _miss(self, node: Node, now_ms: int, *, together: bool = False) -> None:
        """A node has missed its deadline; `together`: with too many others for a failure of its
        own.
        """
        node.silent = True
        self._judge.missed(node, now_ms, counts=not together)

    def _judge_together(self, silent: list[Node], now_ms: int) -> None:
        """Take UP nodes that missed their deadline down, unless too many did so together."""
        together = self._fell_together(now_ms)
        known, routed = self._headcount.taking()
        for node in silent:
            why = next((together[s.name] for s in node.services if s.name in together), None)
            limit_ms = self._deadlines.due_ms(node) + self.policy.checks_timeout_ms
            if why is None or now_ms >= limit_ms or node.state is SUSPECT:
                self._doubt(node, known, routed, now_ms, together=why is not None or node.held)
                continue
            self._judge.hold(node, f"held for now: {why}", now_ms)
            self._deadlines.schedule(node, min(limit_ms, now_ms + self._look_again_ms))

    def _fell_together(self, now_ms: int) -> dict[str, str]:
        """The services of which more than half of the UP nodes have missed a beat, in words."""
        up, late = Tally(), Tally()
        nodes = [node for node in self._roster if node.state is UP]
        for node in nodes:
            up.add(node.services)
        for node in self._deadlines.late(nodes, now_ms):
            late.add(node.services)
        routed, silent = up.by_service(), late.by_service()
        return {
            name: f"{silent[name]} of {routed[name]} nodes of {name} fell silent together"
            for name in routed
            if silent[name] >= 2 and 2 * silent[name] > routed[name]
        }

    def _doubt(
        self, node: Node, known: Counter[str], routed: Counter[str], now_ms: int, *, together: bool
    ) -> None:
        """A node is silent, for longer than is forgiven: DOWN, or SUSPECT where it is needed."""
        taken = node.taken()
        needed = [
            name
            for name in taken
            if routed[name] - 1 < self.policy.needed(name, known[name])
            and not self._findings.bear_out(node, name)
        ]
        routed.subtract(name for name in taken if name not in needed)
        if not needed:
            self._miss(node, now_ms, together=together)
            return
        node.suspect_until_ms = now_ms + self.policy.checks_timeout_ms
        few = f"too few others serve {', '.join(needed)}"
        self._judge.suspect(node, few, now_ms)
        for name in taken:
            if name not in needed:
                self._judge.spare_service(node, name, now_ms)
        self._deadlines.schedule(node, node.suspect_until_ms)
