"""What the LB's configuration asks of nodes, as the numbers that the registry goes by. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from bus.node_protocol import OfferedService
from bus.words import Mode, NodeState, Protocol

PROBATION_HASTE = 10
"""How many times as often a node on probation beats."""


@dataclass(frozen=True, slots=True)
class Policy:
    """What the LB's configuration asks of nodes, and offers them."""

    lb: str
    checks_before_routing: int
    checks_timeout_ms: int
    black_list_after_fails: int
    """-1: never."""
    black_list_expiry_ms: int
    services: tuple[OfferedService, ...]
    min_healthy_percent: int = 0
    """Of a service's known nodes: silence alone leaves as many routed to; 0: it may take all."""
    min_healthy: tuple[tuple[str, int], ...] = ()
    """The same, of services that have a percentage of their own."""

    def needed(self, service: str, known: int) -> int:
        """How many of so many nodes of a service silence does not take."""
        percent = dict(self.min_healthy).get(service, self.min_healthy_percent)
        return -(-known * percent // 100)

    def bans_after(self, fails: int) -> bool:
        """Whether so many failures are too many."""
        return 0 < self.black_list_after_fails <= fails

    def interval_ms(self, state: NodeState) -> int:
        """How often a node in `state` is to beat."""
        beats = 2 * PROBATION_HASTE if state is NodeState.PROBATION else 2
        return max(1, self.checks_timeout_ms // beats)

    @property
    def late_ms(self) -> int:
        """The silence of a node that has missed a beat: an interval and a tenth."""
        return self.interval_ms(NodeState.UP) * 11 // 10

    @property
    def spacing_ms(self) -> int:
        """Good checks that were sent closer together than this count as one."""
        return self.interval_ms(NodeState.PROBATION) // 2

    @property
    def offered(self) -> set[str]:
        """The names of this LB's services."""
        return {service.name for service in self.services}

    @property
    def connected_to(self) -> set[str]:
        """The services of which a connection to a node that fails says all."""
        tcp_in_l4 = (Protocol.TCP, Mode.L4)
        return {s.name for s in self.services if (s.protocol, s.mode) == tcp_in_l4}
