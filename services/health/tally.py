"""How many nodes serve each service: counted by lists of services first, as few are. Pure.

A death is judged by how many others serve each of the node's services. Ten thousand nodes at sixty
services are 600,000 entries, which is more than there is time for while a dead node is still routed
to; but mostly nodes serve the same ones. So equal lists of services are one object (`Alike`), nodes
are counted by that object, and only then the names in it: ten thousand steps and sixty.
"""

from __future__ import annotations

from collections import Counter

from bus.states import NodeService

MOST_LISTS = 4_096
"""Strangers may name any services; beyond so many lists, equal ones may be several objects."""

Services = tuple[NodeService, ...]


class Alike:
    """One object for each list of services, for all the nodes that have an equal one."""

    def __init__(self) -> None:
        self._lists: dict[Services, Services] = {}

    def one(self, services: Services) -> Services:
        if len(self._lists) >= MOST_LISTS:
            self._lists.clear()
        return self._lists.setdefault(services, services)


class Tally:
    """A count of nodes by what they serve."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}
        self._lists: dict[int, Services] = {}
        """By the identity of the object, which stays one while it is held here."""

    def add(self, services: Services) -> None:
        key = id(services)
        if key in self._counts:
            self._counts[key] += 1
        else:
            self._counts[key] = 1
            self._lists[key] = services

    def by_service(self) -> Counter[str]:
        found: Counter[str] = Counter()
        for key, services in self._lists.items():
            count = self._counts[key]
            for name in {service.name for service in services}:
                found[name] += count
        return found
