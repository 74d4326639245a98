"""Faults put into the cores of health and quorum that the schedules of nodes must catch."""

from __future__ import annotations

from tests.sim.mutant import Mutant


def _of(service: str, module: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, module, old, new, service=service, lbs=0)


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
        "quorum",
        "table.py",
        "a report undoes orders",
        "    nodes, beneath = carried_out(seen, orders, previous)\n",
        "    nodes, beneath = carried_out(seen, () if reports else orders, previous)\n",
    ),
)
