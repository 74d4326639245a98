"""What this LB's own probe found at its nodes, and what that proves. Pure.

The sockets are those of `probe`; here is what is believed of each place that is not open. What an
outcome proves depends on the service:

* Of a TCP service in mode L4 the LB connects as it does for a client. If that fails in any way, the
  service counts as sick there, whatever the agent says.
* In L2 and L3 a node answers for the VIP, and with UDP nothing answers at all: a refused connection
  to the node's own address says nothing. But if not even a refusal comes, nobody is there: that
  bears out the silence of a node that beats no more.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

from services.health.node import Node
from services.health.places import Outcome, Spot, in_words
from services.health.policy import Policy
from services.health.roster import Roster
from services.health.standing import DEAD

_NOTHING: Mapping[str, str] = {}


class Findings:
    def __init__(self, policy: Policy, roster: Roster) -> None:
        self.policy = policy
        self._roster = roster
        self._unreached: dict[str, dict[int, Outcome]] = {}
        """By address and port: what could not be connected to."""

    def spots(self, most: int) -> dict[Spot, bool]:
        """What to probe, at most so much: one place of each node before the second of any. With
        each, whether a refused connection is a fault there.
        """
        offered, connected_to = self.policy.offered, self.policy.connected_to
        live = [node for node in self._roster if node.state not in DEAD or not node.silent]
        own = [[each for each in node.services if each.name in offered] for node in live]
        found: dict[Spot, bool] = {}
        for number in range(max(map(len, own), default=0)):
            for node, services in zip(live, own, strict=True):
                if number < len(services):
                    spot = Spot(node.address, services[number].port)
                    is_fault = services[number].name in connected_to
                    found[spot] = found.get(spot, False) or is_fault
            if len(found) >= most:
                break
        return dict(islice(found.items(), most))

    def note(self, spot: Spot, outcome: Outcome | None) -> bool:
        """What is believed of a place from now on; None: it is not looked at any more.

        Whether anything at that address cannot be reached.
        """
        found = self._unreached.setdefault(spot.address, {})
        found.pop(spot.port, None)
        if outcome is not None and outcome is not Outcome.OPEN:
            found[spot.port] = outcome
        if not found:
            del self._unreached[spot.address]
        return bool(found)

    def sick_of(self, node: Node, said: Mapping[str, str] | None) -> Mapping[str, str]:
        """By service, why it is not served there: as the agent has said, or as was found."""
        found = self._unreached.get(node.address)
        if not found:
            return said or _NOTHING
        connected_to = self.policy.connected_to
        unreached = {
            service.name: in_words(Spot(node.address, service.port), found[service.port])
            for service in node.services
            if service.port in found and service.name in connected_to
        }
        return unreached | dict(said or _NOTHING)

    def bear_out(self, node: Node, name: str) -> bool:
        """Whether they bear out that the silent node does not serve this."""
        found = self._unreached.get(node.address, {})
        port = next((each.port for each in node.services if each.name == name), 0)
        outcome = found.get(port)
        return outcome is Outcome.UNANSWERED or (
            outcome is Outcome.REFUSED and name in self.policy.connected_to
        )
