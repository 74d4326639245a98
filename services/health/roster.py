"""Which nodes are known, by id, and how many there may be. Pure.

Names are cheap for who makes them up, and cost all LBs: each is a row in a view, a table and a
state file. So of one address no more than `MOST_NODES_OF_ADDRESS` are known at a time, and of all
no more than `MAX_NODES`; who comes then is refused until one of them is forgotten (see
`deadlines`). Who is known is never refused for that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from services.health.node import Node

MAX_NODES = 20_000
"""Of all addresses."""
MOST_NODES_OF_ADDRESS = 64
"""Agents of one machine: one for each service, say."""


class Roster:
    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._of_address: Counter[str] = Counter()
        """How many nodes are known, by address."""

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[Node]:
        return iter(self._nodes.values())

    def __contains__(self, node_id: str) -> bool:
        return node_id in self._nodes

    def get(self, node_id: str) -> Node | None:
        return self._nodes.get(node_id)

    def has_any_at(self, address: str) -> bool:
        return address in self._of_address

    def why_full(self, address: str) -> str:
        """Why no other node of that address can join; empty: it can."""
        if self._of_address[address] >= MOST_NODES_OF_ADDRESS:
            return f"this load balancer already knows {MOST_NODES_OF_ADDRESS} nodes at {address}"
        if len(self._nodes) >= MAX_NODES:
            return f"this load balancer already knows {MAX_NODES} nodes"
        return ""

    def add(self, node: Node) -> None:
        self._nodes[node.id] = node
        self._of_address[node.address] += 1

    def remove(self, node: Node) -> None:
        del self._nodes[node.id]
        self._leave(node.address)

    def move(self, node: Node, address: str) -> None:
        """It is at another address from now on."""
        self._leave(node.address)
        self._of_address[address] += 1
        node.address = address

    def _leave(self, address: str) -> None:
        self._of_address[address] -= 1
        if not self._of_address[address]:
            del self._of_address[address]
