"""Faults put into the cores of agents, health and quorum that the schedules of nodes must catch."""

from __future__ import annotations

from tests.sim.mutant import Mutant


def _of(service: str, module: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, module, old, new, package=f"services/{service}", lbs=0, first=0)


NODE_MUTANTS = (
    _of(
        "health",
        "door.py",
        "a queued beat revives a dead node",
        "        speaker.sent_ms = speaker.clock.sent_on_our_clock(beat.sent_ms, now_ms)\n",
        "        speaker.sent_ms = now_ms\n",
    ),
    _of(
        "health",
        "door.py",
        "a sick service is well when nothing is said of it",
        "        if beat.sick is not None:\n            speaker.sick = _by_service(beat.sick)\n",
        "        speaker.sick = _by_service(beat.sick or ())\n",
    ),
    _of(
        "health",
        "judge.py",
        "a node is UP a check too early",
        "        if node.passed >= self.policy.checks_before_routing:\n",
        "        if node.passed >= self.policy.checks_before_routing - 1:\n",
    ),
    _of(
        "health",
        "silence.py",
        "silence may empty a ring",
        "        if not needed:\n",
        "        if True:\n",
    ),
    _of(
        "health",
        "judge.py",
        "a view changes and nobody is told",
        '            node.reason = "heard again"\n            self._outbox.changed(keep=False)\n',
        '            node.reason = "heard again"\n',
    ),
    _of(
        "health",
        "deadlines.py",
        "who was paused accuses those it did not hear",
        "        self._lag_total_ms += lag_ms\n",
        "",
    ),
    _of(
        "health",
        "keeping.py",
        "a restart brings back whoever was ever up",
        "state=BANNED if is_banned else kept.state if routed else DOWN,",
        "state=BANNED if is_banned else kept.state if routed else UP if kept.was_up else DOWN,",
    ),
    _of(
        "health",
        "keeping.py",
        "with a restart a ban begins anew",
        "                self._adopt_node(_aged(node, elapsed_ms), now_ms)\n",
        "                self._adopt_node(node, now_ms)\n",
    ),
    _of(
        "node",
        "core.py",
        "an agent reports what it has not looked at",
        "        if self._said.status is None and (not checks or unknown or",
        "        if self._said.status is None and (not checks or",
    ),
    _of(
        "quorum",
        "table.py",
        "a report undoes orders",
        "    nodes, beneath = carried_out(seen, orders, previous)\n",
        "    nodes, beneath = carried_out(seen, () if reports else orders, previous)\n",
    ),
    _of(
        "quorum",
        "table.py",
        "the time of a drain stands still",
        "        else replace(order, remaining_ms=max(0, order.remaining_ms - elapsed_ms))\n",
        "        else order\n",
    ),
    _of(
        "quorum",
        "orders.py",
        "a drain spares whoever is suspect",
        "    (OrderKind.DRAIN, False): {_UP: _DRAINING, _SUSPECT: _DRAINING},\n",
        "    (OrderKind.DRAIN, False): {_UP: _DRAINING},\n",
    ),
    _of(
        "quorum",
        "orders.py",
        "a drain is forgotten when its time is over",
        "    return order.asked.kind is not OrderKind.DRAIN and is_over(order)\n",
        "    return is_over(order)\n",
    ),
    _of(
        "quorum",
        "orders.py",
        "a pardon does not end a ban by order",
        "    OrderKind.PARDON: Rule(Slot.PARDON, ends=frozenset({OrderKind.BAN})),\n",
        "    OrderKind.PARDON: Rule(Slot.PARDON),\n",
    ),
)
