"""Next hops: where the fast path sends a packet for a node. Pure; `netlink` does the system calls.

**Theory.** The programs do not ask the kernel's routes or neighbours for each packet: for each node
they find interface, both MAC addresses and MTU beside its seat. This table computes them from what
netlink tells: the route to the node's address (asked for one by one, so that rules and metrics
count), the link it leaves by, and the neighbour it goes to, which is the gateway or the node.

**In** come messages of netlink, in any number and repeated at will; each replaces what was known
of its link or neighbour, or marks the routes it may have changed as to be asked for again. A link
that goes down takes its routes with it without a word, so a change of a link marks all.

**Out** come `NextHop`s. Without a neighbour that is known to be there (`USABLE`), the destination's
MAC is None: TC takes the packets, and the kernel holds them until ARP has answered. Without a route
there is no next hop at all. An address of this machine itself has one that says so (`own`), and
leads nowhere yet: by which interface the machine is to get it is not the kernel's to say
(`outputs`).

**The path's MTU.** A router on the way may take less than the link does. What it said of that
(`PathNarrowed`) the kernel has put into its route by then, so the route is asked for again, and
from time to time as long as it is narrow.

**Staying fresh.** What XDP sends never passes the kernel's neighbour table, so to the kernel the
entry looks unused and unconfirmed: it would stay STALE for ever, even if the node's MAC
changed or the node went. So `due` says whom to use, in the kernel's sense (NTF_USE): a stale
neighbour is then probed and confirmed or FAILED; one not there is resolved. Not to be touched are
PERMANENT entries, which the operator wrote and NTF_USE would demote.

With more nodes on one link than the kernel cares to remember (`gc_thresh2`, 512 by default), their
entries go and come; nothing is lost, but packets take the slower way meanwhile.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from ipaddress import ip_address, ip_network

NUD_REACHABLE, NUD_STALE, NUD_DELAY, NUD_PROBE = 0x02, 0x04, 0x08, 0x10
NUD_NOARP, NUD_PERMANENT = 0x40, 0x80
FIXED = NUD_NOARP | NUD_PERMANENT
USABLE = NUD_REACHABLE | NUD_STALE | NUD_DELAY | NUD_PROBE | FIXED

NARROW_MS = 60_000
"""How often a route is asked for again whose path is narrower than its link: the kernel forgets
that after a while, without a word."""

REFRESH_MS = 5_000
"""How often a neighbour is used, so that the kernel keeps knowing whether it is there."""
RESOLVE_MS = 1_000
"""How often an unresolved one is: as often as the kernel repeats an ARP request."""

NO_MAC = "00:00:00:00:00:00"
LONGEST_PACKET_BYTES = 65_535


@dataclass(frozen=True, slots=True)
class NextHop:
    ifindex: int
    source_mac: str
    destination_mac: str | None
    """None: not resolved, or not any more."""
    mtu: int
    gateway: str | None
    """None: the node is on the link itself."""
    source: str | None
    """The address of this LB that the kernel would choose towards the node."""
    by_tc: bool = False
    """The device takes no frames from XDP (`outputs`)."""
    own: bool = False
    """The node is this machine."""


# --------------------------------------------------------------------------- messages of netlink


@dataclass(frozen=True, slots=True)
class Link:
    ifindex: int
    mac: str
    mtu: int
    up: bool


@dataclass(frozen=True, slots=True)
class LinkGone:
    ifindex: int


@dataclass(frozen=True, slots=True)
class Neighbour:
    ifindex: int
    address: str
    mac: str | None
    state: int
    """NUD_*; 0 when the kernel has forgotten it."""


@dataclass(frozen=True, slots=True)
class RoutesChanged:
    """Some route to this network came, went or changed."""

    network: str
    """With its length: 10.81.0.0/24."""


@dataclass(frozen=True, slots=True)
class EverythingChanged:
    """An address or a rule: any route may be another now, or have another source."""


@dataclass(frozen=True, slots=True)
class PathNarrowed:
    """A router said that packets to this address were too long for it."""

    address: str


Message = Link | LinkGone | Neighbour | RoutesChanged | EverythingChanged | PathNarrowed


@dataclass(frozen=True, slots=True)
class Route:
    """The kernel's answer for one address."""

    ifindex: int
    gateway: str | None
    source: str | None
    mtu: int | None
    """None: the link's."""
    own: bool = False
    """The address is one of this machine's."""


class NextHopTable:
    """Folds messages; see the module's description."""

    def __init__(self) -> None:
        self._links: dict[int, Link] = {}
        self._neighbours: dict[tuple[int, str], Neighbour] = {}
        self._routes: dict[str, Route | None] = {}
        self._watched: frozenset[str] = frozenset()
        self._to_ask: set[str] = set()
        self._used_ms: dict[tuple[int, str], int] = {}
        self._narrow_ms: dict[str, int] = {}
        self._changed()

    def _changed(self) -> None:
        """What was worked out of links, neighbours and routes is to be worked out anew.

        It is kept between changes: with ten thousand nodes it is too much for every turn.
        """
        self._next_hops: Mapping[str, NextHop | None] | None = None
        self._wanted: frozenset[tuple[int, str]] | None = None
        self._narrow: frozenset[str] | None = None
        """The addresses with a path narrower than their link."""
        self._soonest_ms: int | None = None
        """When the first neighbour is to be used again; None: to be worked out, or never."""

    def watch(self, addresses: Iterable[str]) -> None:
        """From now on, the next hops of exactly these addresses are kept."""
        wanted = frozenset(addresses)
        self._to_ask = self._to_ask & wanted | wanted - self._watched
        self._routes = {a: route for a, route in self._routes.items() if a in wanted}
        self._watched = wanted
        self._changed()

    def forget(self) -> None:
        """Messages were lost: all that follows is told anew, and every route is to be asked for."""
        self._links.clear()
        self._neighbours.clear()
        self._to_ask = set(self._watched)
        self._changed()

    def fold(self, message: Message) -> None:
        match message:
            case Link():
                if self._links.get(message.ifindex) != message:
                    self._to_ask |= self._watched
                    self._changed()
                self._links[message.ifindex] = message
            case LinkGone(ifindex):
                self._links.pop(ifindex, None)
                self._to_ask |= self._watched
                self._changed()
            case Neighbour():
                self._fold_neighbour(message)
            case RoutesChanged(network):
                changed = ip_network(network)
                self._to_ask |= {a for a in self._watched if ip_address(a) in changed}
            case EverythingChanged():
                self._to_ask |= self._watched
            case PathNarrowed(address):
                self._to_ask |= self._watched & {address}

    def _fold_neighbour(self, neighbour: Neighbour) -> None:
        key = (neighbour.ifindex, neighbour.address)
        before = self._neighbours.pop(key, None)
        if neighbour.state:
            self._neighbours[key] = neighbour
        if before is not None and before.state & USABLE and not neighbour.state & USABLE:
            self._used_ms.pop(key, None)
        if before is None or _matters(before) != _matters(neighbour):
            self._changed()

    def routes_to_ask(self) -> list[str]:
        """The addresses whose routes are unknown or in doubt; each is to be answered."""
        # A set that once held ten thousand costs as much to go through when it is empty.
        return sorted(self._to_ask) if self._to_ask else []

    def answer(self, address: str, route: Route | None) -> None:
        """The kernel's route to an address; None: there is none."""
        self._to_ask.discard(address)
        if address in self._watched and (
            address not in self._routes or self._routes[address] != route
        ):
            self._routes[address] = route
            self._changed()

    def due(self, now_ms: int) -> list[tuple[int, str]]:
        """The neighbours, by interface and address, that are to be used now."""
        self._doubt_narrow(now_ms)
        if self._soonest_ms is not None and now_ms < self._soonest_ms:
            return []
        wanted = self._next_neighbours()
        self._used_ms = {key: used for key, used in self._used_ms.items() if key in wanted}
        due = [key for key in sorted(wanted) if self._due_ms(key, now_ms) <= now_ms]
        self._used_ms.update(dict.fromkeys(due, now_ms))
        self._soonest_ms = None
        return due

    def _doubt_narrow(self, now_ms: int) -> None:
        """Asked for at the next turn."""
        if self._narrow is None:
            self._narrow = frozenset(a for a in self._routes if self._is_narrow(a))
        narrow = self._narrow
        self._narrow_ms = {a: self._narrow_ms.get(a, now_ms + NARROW_MS) for a in narrow}
        for address in [a for a, due_ms in self._narrow_ms.items() if due_ms <= now_ms]:
            self._to_ask.add(address)
            del self._narrow_ms[address]

    def _is_narrow(self, address: str) -> bool:
        route = self._routes[address]
        link = None if route is None else self._links.get(route.ifindex)
        return route is not None and link is not None and (route.mtu or link.mtu) < link.mtu

    def next_ms(self, now_ms: int) -> int | None:
        """When `due` next has something to say, if nothing happens before."""
        if self._soonest_ms is None:
            times_ms = (self._due_ms(key, now_ms) for key in self._next_neighbours())
            self._soonest_ms = min(times_ms, default=None)
        return self._soonest_ms

    def _next_neighbours(self) -> frozenset[tuple[int, str]]:
        """Those on the way to the watched addresses, without the ones that must not be touched."""
        if self._wanted is not None:
            return self._wanted
        keys = {
            (route.ifindex, route.gateway or address)
            for address, route in self._routes.items()
            if route is not None and not route.own and self._is_up(route.ifindex)
        }
        self._wanted = frozenset(key for key in keys if not self._state(key) & FIXED)
        return self._wanted

    def _due_ms(self, key: tuple[int, str], now_ms: int) -> int:
        used_ms = self._used_ms.get(key)
        if used_ms is None:
            return now_ms
        return used_ms + (REFRESH_MS if self._state(key) & USABLE else RESOLVE_MS)

    def _state(self, key: tuple[int, str]) -> int:
        neighbour = self._neighbours.get(key)
        return 0 if neighbour is None else neighbour.state

    def _is_up(self, ifindex: int) -> bool:
        link = self._links.get(ifindex)
        return link is not None and link.up

    def next_hops(self) -> Mapping[str, NextHop | None]:
        """Of every watched address whose route has been asked for; None: it cannot be reached.

        The same object as before, as long as nothing has changed.
        """
        if self._next_hops is None:
            self._next_hops = {
                address: self._next_hop(address, route) for address, route in self._routes.items()
            }
        return self._next_hops

    def _next_hop(self, address: str, route: Route | None) -> NextHop | None:
        link = None if route is None else self._links.get(route.ifindex)
        if route is None or link is None or not link.up:
            return None
        if route.own:
            return NextHop(
                link.ifindex, NO_MAC, None, LONGEST_PACKET_BYTES, None, route.source, own=True
            )
        neighbour = self._neighbours.get((link.ifindex, route.gateway or address))
        usable = neighbour is not None and neighbour.state & USABLE
        return NextHop(
            ifindex=link.ifindex,
            source_mac=link.mac,
            destination_mac=neighbour.mac if neighbour is not None and usable else None,
            mtu=min(route.mtu or link.mtu, link.mtu, LONGEST_PACKET_BYTES),
            gateway=route.gateway,
            source=route.source,
        )


def _matters(neighbour: Neighbour) -> tuple[str | None, bool, int]:
    """What of a neighbour's state next hops depend on: it goes from one usable state to another."""
    return neighbour.mac, bool(neighbour.state & USABLE), neighbour.state & FIXED
