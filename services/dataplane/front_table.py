"""Where each front stands in the map `services`: cuckoo hashing. Pure.

`find_service` of service.h looks in the two places of one bucket, then in the two of another; the
buckets are named by two hashes of address, port and protocol. A new front takes a free one of its
four places. If none is free, one that stands there moves to its own other bucket, and if that is
full, another one moves on from there: with half of all places taken, somebody finds room after very
few moves (Pagh and Rodler 2004; Dietzfelbinger and Weidling 2007 for two ways).

A move is made from its end: what moves is written to its new place first and stands in both until
the next one overwrites the old one. Whoever looks for it meanwhile finds the same in either.
"""

from __future__ import annotations

import struct
import sys
from collections import deque

from bus.words import Protocol
from services.dataplane.words import ServiceKey, address_word, port_word

SERVICE_PLACES = 32_768
MOST_FRONTS = SERVICE_PLACES // 2
"""Beyond it moves become long."""
SERVICE_HASH_FACTOR, SERVICE_SECOND_FACTOR = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9
SERVICE_PLACE_SHIFT = 49
PROTOCOLS = {Protocol.TCP: 6, Protocol.UDP: 17}
_MOST_SEEN = 4_096
_WORD = 2**64 - 1


class NoPlaceError(Exception):
    """No place can be made free for a front: far more fronts than there should be."""


def service_places(address: int, port: int, protocol: int) -> tuple[int, ...]:
    """Where a front may stand, in the order of `find_service`.

    Address and port as the maps hold them, in network order.
    """
    key = struct.pack("=IHBx", address, port, protocol)
    first = int.from_bytes(key, sys.byteorder) * SERVICE_HASH_FACTOR & _WORD
    second = (first ^ first >> 32) * SERVICE_SECOND_FACTOR & _WORD
    return tuple(
        hashed >> SERVICE_PLACE_SHIFT ^ way for hashed in (first, second) for way in (0, 1)
    )


def places_of(front: ServiceKey) -> tuple[int, ...]:
    protocol = PROTOCOLS[front.protocol]
    return service_places(address_word(front.address), port_word(front.port), protocol)


class FrontTable:
    """Who stands where."""

    def __init__(self) -> None:
        self._places: dict[ServiceKey, int] = {}
        self._fronts: dict[int, ServiceKey] = {}

    def __len__(self) -> int:
        return len(self._places)

    def __contains__(self, front: object) -> bool:
        return front in self._places

    def place(self, front: ServiceKey) -> int:
        return self._places[front]

    def put(self, front: ServiceKey, place: int) -> None:
        """A new one stands there now."""
        self._places[front] = place
        self._fronts[place] = front

    def move(self, place: int, to: int) -> None:
        """What stood at one place stands at another now."""
        self.put(self._fronts.pop(place), to)

    def remove(self, front: ServiceKey) -> int | None:
        """Where it stood."""
        place = self._places.pop(front, None)
        if place is not None:
            del self._fronts[place]
        return place

    def way_for(self, front: ServiceKey) -> list[int]:
        """The places of a way that ends at a free one: what stands at each of them is to move to
        the next, and then the first is the new front's. Raises NoPlaceError.
        """
        came_from: dict[int, int | None] = dict.fromkeys(places_of(front))
        waiting = deque(came_from)
        while waiting and len(came_from) < _MOST_SEEN:
            place = waiting.popleft()
            holder = self._fronts.get(place)
            if holder is None:
                return _way(came_from, place)
            for other in places_of(holder):
                if other not in came_from:
                    came_from[other] = place
                    waiting.append(other)
        where = f"{front.address}:{front.port}"
        raise NoPlaceError(f"service at {where}: no free place in the table of {len(self)} fronts")


def _way(came_from: dict[int, int | None], end: int) -> list[int]:
    way = [end]
    while (before := came_from[way[-1]]) is not None:
        way.append(before)
    return way[::-1]
