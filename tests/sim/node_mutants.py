"""Faults put into the cores of health and quorum that the schedules of nodes must catch."""

from __future__ import annotations

from tests.sim.mutant import Mutant


def _of(service: str, module: str, name: str, old: str, new: str) -> Mutant:
    return Mutant(name, module, old, new, service=service, lbs=0)


NODE_MUTANTS = (
    _of(
        "health",
        "registry.py",
        "a queued beat revives a dead node",
        "        sent_ms = node.clock.sent_on_our_clock(beat.sent_ms, now_ms)\n",
        "        sent_ms = now_ms\n",
    ),
    _of(
        "health",
        "registry.py",
        "a node is UP a check too early",
        "        if node.passed >= self.policy.checks_before_routing:\n",
        "        if node.passed >= self.policy.checks_before_routing - 1:\n",
    ),
    _of(
        "health",
        "registry.py",
        "silence may empty a ring",
        "        if not needed:\n",
        "        if True:\n",
    ),
    _of(
        "health",
        "registry.py",
        "a restart forgets bans",
        "ban_remaining_ms=self._banned_for_ms(node, now_ms),",
        "ban_remaining_ms=0,",
    ),
    _of(
        "health",
        "registry.py",
        "a pardon is not heeded",
        "            is_pardon = order.asked.kind is OrderKind.PARDON\n",
        "            is_pardon = False\n",
    ),
    _of(
        "health",
        "registry.py",
        "whoever says that it does not serve is kept",
        "        if beat.status is ServingStatus.NOT_SERVING and not node.sick:\n",
        "        if False:\n",
    ),
    _of(
        "health",
        "registry.py",
        "a ban is over at once",
        "            node.ban_until_ms = now_ms + self.policy.black_list_expiry_ms\n",
        "            node.ban_until_ms = now_ms\n",
    ),
    _of(
        "health",
        "registry.py",
        "silence ends a ban",
        "        if node.state is BANNED and now_ms >= node.ban_until_ms:\n",
        "        if node.state is BANNED:\n",
    ),
    _of(
        "health",
        "registry.py",
        "a view changes and nobody is told",
        '            node.reason = "heard again"\n            self._output.view_changed = True\n',
        '            node.reason = "heard again"\n',
    ),
    _of(
        "health",
        "registry.py",
        "checks of before count after a failure",
        "        node.passed = 0\n        node.counted_ms = None\n        for standing",
        "        for standing",
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
        "orders.py",
        "a suspect is not drained",
        "{_UP: _DRAINING, _SUSPECT: _DRAINING}",
        "{_UP: _DRAINING}",
    ),
    _of(
        "quorum",
        "orders.py",
        "an order ends those of other nodes",
        "        if order.asked.node != given.asked.node\n        or (",
        "        if (",
    ),
    _of(
        "quorum",
        "core.py",
        "a deadline wakes nobody",
        "            due += self._deadlines()\n",
        "",
    ),
    _of(
        "quorum",
        "core.py",
        "orders are not stored",
        "        table = accepted.at(now_ms) if accepted is not None else None\n",
        "        table = accepted and replace(accepted.at(now_ms), orders=())\n",
    ),
    _of(
        "quorum",
        "table.py",
        "the epoch stands still",
        "epoch=previous.epoch + 1)",
        "epoch=max(1, previous.epoch))",
    ),
)
