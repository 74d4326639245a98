"""The part of `make demo` about nodes: what an operator does to them by `gale`, and a sick service.

1. A node is drained: no new request goes there, the connections that a client holds to it go on.
2. It is enabled, and answers again. Another one is banned, and pardoned.
3. A node's UDP server dies. Its other services go on, and their rings do not move by a slot.

No request fails in any of it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from e2e.held import hold
from e2e.hosts import Hosts, wait_for
from e2e.traffic import Traffic

CONNECTIONS = 60
ANSWERS = 60
"""In a row without one of a node: it gets none. By chance once in 10^10 times."""


@dataclass(frozen=True)
class Seen:
    drained_open: str
    drained: bool
    banned: bool
    sick: bool


class Nodes:
    """The orders of the show, given at an LB under requests."""

    def __init__(self, hosts: Hosts, requests: Traffic, note: Callable[[str], None]) -> None:
        self._hosts, self._requests, self._note = hosts, requests, note
        self._lb = hosts.lbs[0]

    def show(self) -> Seen:
        wait_for(lambda: self._requests.results, "the first answer")
        drained, still_open = self._drain(self._hosts.nodes[0])
        banned = self._ban(self._hosts.nodes[2])
        return Seen(still_open, drained, banned, self._sicken(self._hosts.nodes[1]))

    def _gale(self, *words: str) -> None:
        done = self._hosts.run(self._lb, "gale", "node", *words)
        assert done.returncode == 0, done.stderr
        self._note(f"$ gale node {' '.join(words)}")
        self._note(f"  {done.stdout.strip()}")

    def _drain(self, node: str) -> tuple[bool, str]:
        with hold(self._hosts, count=CONNECTIONS) as held:
            its = len(held.of_node(node))
            self._gale("drain", node, "--within", "5m", "--why", "new-disks")
            spared = self._is_spared(node)
            echoed = held.ask()
            self._note(f"{echoed} of {CONNECTIONS} open connections go on, {its} of them on {node}")
            self._gale("enable", node)
            back = self._answers(node)
        return spared and back and echoed == CONNECTIONS, f"{echoed} of {CONNECTIONS}"

    def _ban(self, node: str) -> bool:
        self._gale("ban", node)
        spared = self._is_spared(node)
        self._gale("pardon", node)
        return spared and self._answers(node)

    def _sicken(self, node: str) -> bool:
        before = self._rings()
        self._hosts.supervisorctl(node, "stop", "server:udp")
        wait_for(lambda: 0 in self._rings()["udp"], f"udp to leave {node}")
        during = self._rings()
        unmoved = all(during[name] == before[name] for name in before if name != "udp")
        self._note(f"{node} serves udp no more; default and echo {'stay' if unmoved else 'moved'}")
        answers = self._answers(node)
        self._hosts.supervisorctl(node, "start", "server:udp")
        wait_for(lambda: self._rings() == before, f"udp to be back on {node}")
        return unmoved and answers

    def _rings(self) -> dict[str, list[int]]:
        services = self._hosts.api(self._lb, "/v1/services")["services"]
        return {each["name"]: [seat["slots"] for seat in each["nodes"]] for each in services}

    def _is_spared(self, node: str) -> bool:
        """Whether soon none of many requests in a row is answered by the node."""
        deadline = time.monotonic() + 5
        while time.monotonic() < deadline:
            if node not in self._next_answers():
                self._note(f"{node} gets no new requests")
                return True
        return False

    def _answers(self, node: str) -> bool:
        wait_for(lambda: node in self._next_answers(), f"an answer of {node}")
        self._note(f"{node} answers")
        return True

    def _next_answers(self) -> set[str]:
        before = len(self._requests.results)
        wait_for(lambda: len(self._requests.results) >= before + ANSWERS, "answers")
        return set(self._requests.since(before).answers)
