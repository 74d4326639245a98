"""Direct return: what a node must have so that it can answer clients itself. Pure.

In modes L2 and L3 a client's packet comes to the node with the VIP for its destination, and the
node answers without the LB. For that it needs

* the VIP as an address, on `lo`, of host scope: nothing else is ever sent from it;
* silence: the LB alone answers ARP for the VIP (`arp_ignore` 1, or higher), and the node never
  tells ARP that the VIP is its own (`arp_announce` 2);
* a way through the filter of reverse paths. The kernel checks the client's packet against the
  interface it came in by, in L3 after it was unwrapped: strict filtering (1) drops clients whom
  the routes would answer through another interface, so it is loosened (2), but only where there
  are routes by other interfaces;
* in L3, the unwrapper where the LBs' packets come in, and a smaller MSS: a full segment of the
  client's must fit with an outer header around it.

**What is refused.** An address by which this machine reaches an LB: with it on `lo` the agent would
speak to itself, and nobody could tell it to give the address back. That happens where LB and nodes
share one network and the VIP is the LB's own address. Nor is one taken that another interface of
this machine has. The reason is told as what is missing, and what was taken earlier is given back.

**Whose is it?** What was there before is the operator's and stays. What is added is written down
(`Taken`) before it is done, with the values from before, so that an agent which was killed at any
point finds out, when it is started again, what to take back in the end. A setting that somebody
has changed after us is his.

**Who says what is needed?** Each LB in its welcome. An agent that has not heard all of its LBs yet
knows what it needs, not what it does not: until then everything that was taken is kept. Order
matters: silence comes before the address and goes after it.

**A change of mode.** An LB that offers another mode goes on with the old one until its nodes are
prepared for the new one. So each of them is told for which modes (`prepared_for`); and what is no
longer asked for lingers for `LINGER_MS` (`Lingering`), longer than any LB goes on with it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from bus.node_protocol import (
    OfferedService,
    Prepared,
)
from bus.words import (
    Encapsulation,
    Mode,
)

HEADER_BYTES = {Encapsulation.IPIP: 20, Encapsulation.GUE: 32}
IP_AND_TCP_BYTES = 40
LINGER_MS = 10_000
LEAST_MSS = 88
"""What any IPv4 path carries in one packet leaves no less."""

ARP_IGNORE = "all/arp_ignore"
ARP_ANNOUNCE = "all/arp_announce"
SILENCE = {ARP_IGNORE: 1, ARP_ANNOUNCE: 2}
"""The least values that do; an interface goes by the larger of its own and `all`."""
STRICT, LOOSE = 1, 2


def rp_filter(interface: str) -> str:
    """The setting's name, below net/ipv4/conf, as all settings here."""
    return f"{interface}/rp_filter"


@dataclass(frozen=True, slots=True)
class Need:
    """What the services ask of this machine."""

    addresses: frozenset[str] = frozenset()
    tunnelled: frozenset[str] = frozenset()
    """Those of the addresses whose packets come wrapped."""
    header_bytes: int = 0
    """The longest outer header of them."""

    def __or__(self, other: Need) -> Need:
        return Need(
            self.addresses | other.addresses,
            self.tunnelled | other.tunnelled,
            max(self.header_bytes, other.header_bytes),
        )

    def __and__(self, other: Need) -> Need:
        return Need(
            self.addresses & other.addresses,
            self.tunnelled & other.tunnelled,
            min(self.header_bytes, other.header_bytes),
        )


NOTHING_NEEDED = Need()


def need_of(offers: Iterable[OfferedService], served: frozenset[str]) -> Need:
    """What the services need that this node serves; `served` empty: all that are offered."""
    direct = [
        offer
        for offer in offers
        if offer.mode is not Mode.L4 and offer.vip and (not served or offer.name in served)
    ]
    wrapped = [offer for offer in direct if offer.mode is Mode.L3]
    return Need(
        frozenset(offer.vip for offer in direct if offer.vip),
        frozenset(offer.vip for offer in wrapped if offer.vip),
        max((HEADER_BYTES[offer.encap] for offer in wrapped), default=0),
    )


def prepared_for(
    offers: Iterable[OfferedService], served: frozenset[str], done: Need
) -> tuple[Prepared, ...]:
    """Which services the machine could take in modes L2 and L3; `done`: what it has for that.

    What L3 needs serves L2 as well.
    """
    both, bridged = [], []
    for offer in offers:
        if not served or offer.name in served:
            if offer.vip in done.tunnelled:
                both.append(offer.name)
            elif offer.vip in done.addresses:
                bridged.append(offer.name)
    groups = (Prepared((Mode.L2, Mode.L3), tuple(both)), Prepared((Mode.L2,), tuple(bridged)))
    return tuple(group for group in groups if group.services)


class Lingering:
    """What was needed until a moment ago, and is kept a little longer."""

    def __init__(self) -> None:
        self._need = NOTHING_NEEDED
        self._former: list[tuple[Need, int]] = []
        """With the times when they may go."""

    def kept(self, need: Need, hindered: bool, now_ms: int) -> Need:
        """What to have now, when this is needed.

        `hindered`: what was had up to now cannot be had in full, so nobody relies on it.
        """
        if need != self._need:
            self._former.append((self._need, now_ms + LINGER_MS))
            self._need = need
        self._former = [(old, end) for old, end in self._former if now_ms < end and not hindered]
        for old, _ in self._former:
            need |= old
        return need


@dataclass(frozen=True, slots=True)
class Setting:
    """One of the kernel's settings that we changed."""

    before: int
    ours: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What of this machine's state is ours: the record that outlives the process."""

    need: Need = NOTHING_NEEDED
    addresses: frozenset[str] = frozenset()
    settings: Mapping[str, Setting] = field(default_factory=dict)
    hooks: frozenset[tuple[str, str]] = frozenset()
    """Where the unwrapper is: interface, and tc or xdp."""

    def __bool__(self) -> bool:
        return self != NOTHING_TAKEN

    def as_plain(self) -> dict[str, Any]:
        """For people to read."""
        return {
            "addresses": sorted(self.addresses),
            "settings": {name: asdict(each) for name, each in sorted(self.settings.items())},
            "unwrapper": [f"{how} {interface}" for interface, how in sorted(self.hooks)],
        }


NOTHING_TAKEN = Taken()


@dataclass(frozen=True, slots=True)
class Found:
    """What the machine has now."""

    loopback: frozenset[str]
    """The addresses of lo."""
    elsewhere: Mapping[str, str]
    """The addresses of other interfaces, with these. Who is its own only LB wraps nothing."""
    settings: Mapping[str, int]
    facing: frozenset[str]
    """The interfaces that reach the LBs."""
    crossed: frozenset[str]
    """The interfaces beside which there is another with routes."""
    lbs: frozenset[str] = frozenset()
    """The addresses by which this machine reaches its LBs."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do, in this order; and what cannot be done."""

    change: Mapping[str, int]
    add: frozenset[str]
    remove: frozenset[str]
    restore: Mapping[str, int]
    during: Taken
    """To be written down before anything is done: what may be ours until all is done."""
    after: Taken
    missing: tuple[str, ...]


def plan(need: Need, taken: Taken, found: Found, hooks: frozenset[tuple[str, str]]) -> Plan:
    """The way from what is to what is needed. `hooks`: where the unwrapper is to be."""
    required = _required_settings(need, taken, found)
    change = {
        name: value
        for name, value in required.items()
        if name in found.settings and found.settings[name] < value
    }
    settings = dict(taken.settings)
    for name, value in change.items():
        first = settings.get(name)
        before = found.settings[name] if first is None else first.before
        settings[name] = Setting(before, value)
    over = {name: setting for name, setting in settings.items() if name not in required}
    add = need.addresses - found.loopback - found.elsewhere.keys() - found.lbs
    addresses = taken.addresses | add
    keep = need.addresses - found.lbs
    during = Taken(taken.need | need, addresses, settings, taken.hooks | hooks)
    kept = {name: setting for name, setting in settings.items() if name in required}
    return Plan(
        change=change,
        add=add,
        remove=(taken.addresses - keep) & found.loopback,
        restore={
            name: setting.before
            for name, setting in over.items()
            if found.settings.get(name) == setting.ours
        },
        during=during,
        after=replace(during, need=need, addresses=addresses & keep, settings=kept, hooks=hooks),
        missing=_impossible(need, found),
    )


def _required_settings(need: Need, taken: Taken, found: Found) -> dict[str, int]:
    if not need.addresses:
        return {}
    required = dict(SILENCE)
    for interface in found.facing & found.crossed:
        name = rp_filter(interface)
        own, everywhere = (found.settings.get(each, 0) for each in (name, rp_filter("all")))
        if max(own, everywhere) == STRICT or name in taken.settings:
            required[name] = LOOSE
    return required


def _impossible(need: Need, found: Found) -> tuple[str, ...]:
    missing = [
        *_cut_off(need, found),
        *(
            f"{address} is an address of {found.elsewhere[address]}, expected it on lo alone"
            for address in sorted(need.addresses & found.elsewhere.keys())
        ),
    ]
    alone = bool(found.lbs) and found.lbs <= found.elsewhere.keys()
    if need.tunnelled and not found.facing and not alone:
        missing.append("no interface reaches a load balancer: nowhere to unwrap packets")
    return tuple(missing)


def _cut_off(need: Need, found: Found) -> Iterator[str]:
    """VIPs that must never be on lo: whoever has his LB's address himself speaks to himself."""
    for address in sorted(need.addresses & found.lbs):
        yield (
            f"{address} is the address by which this machine reaches its load balancer: not taken"
            ' onto lo, expected a virtual IP of its own for that service, or mode "l4"'
        )


def lacks(need: Need, found: Found) -> tuple[str, ...]:
    """What an operator who prepares the machine himself has left out, as far as it can be seen."""
    if not need.addresses:
        return ()
    without = sorted(need.addresses - found.loopback - found.lbs)
    low = [
        f"net.ipv4.conf.{name.replace('/', '.')} is {found.settings.get(name, 0)}, expected {least}"
        for name, least in SILENCE.items()
        if found.settings.get(name, 0) < least
    ]
    return (*_cut_off(need, found), *(f"{address} is not on lo" for address in without), *low)


def advertised_mss(mtu: int, header_bytes: int, given: int = 0) -> int:
    """The MSS that leaves room for the outer header; `given`: the one the route has, 0 for none."""
    room = max(mtu - IP_AND_TCP_BYTES - header_bytes, LEAST_MSS)
    return min(room, given) if given else room
