"""`gale capture`: the filter that a person types, as what the programs go by. Pure.

    tcp and host 192.0.2.7 and port 8080
    src net 10.81.0.0/24 drop
    drop_no_flow tc_private

All of these must hold, of the packet as it came or as it leaves: `tcp`, `udp`, `icmp`, `ip`, `ip6`,
`arp`; `host ADDRESS`, `net ADDRESS/BITS` and `port N`, of either end or behind `src` or `dst` of
that one. Of the words that say what became of it one must hold: `pass`, `forward`, `answer`,
`drop`, or reasons by name; and likewise of hooks by name. `and` may stand between any of them.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network

from bpf.passage import MOST_TERMS, Part, Side, Term
from services.dataplane.trace import ANSWER, DROP, FORWARD, PASS, kind_of

_PROTOCOLS = {"tcp": 6, "udp": 17, "icmp": 1}
_ETHERTYPES = {"ip": 0x0800, "ip6": 0x86DD, "arp": 0x0806}
_SIDES = {"src": Side.SOURCE, "dst": Side.DESTINATION}
_KINDS = (PASS, FORWARD, ANSWER, DROP)
_EITHER = Side.SOURCE | Side.DESTINATION


class WrongFilter(ValueError):  # noqa: N818 - it names what was asked
    """The filter is none; the message, which begins with `filter:`, says what was expected."""

    def __init__(self, what: str) -> None:
        super().__init__(f"filter: {what}")


@dataclass(frozen=True, slots=True)
class Filter:
    terms: tuple[Term, ...]
    reasons: int
    """A bit for each that is wanted, by its place in `enum reason`."""
    hooks: int
    """Likewise in `enum hook`."""


def read_filter(words: Sequence[str], reasons: Sequence[str], hooks: Sequence[str]) -> Filter:
    """`reasons`, `hooks`: all names, in the order of the C enumerations. Raises `WrongFilter`."""
    terms: list[Term] = []
    wanted: set[str] = set()
    at: set[str] = set()
    waiting = iter(" ".join(words).split())
    for word in waiting:
        if word in _KINDS:
            wanted.update(name for name in reasons if kind_of(name, reasons) == word)
        elif word in reasons:
            wanted.add(word)
        elif word in hooks:
            at.add(word)
        elif word != "and":
            try:
                terms.append(_term(word, waiting))
            except _Unknown as unknown:
                raise WrongFilter(_who_there_is(str(unknown), reasons, hooks)) from None
    if len(terms) > MOST_TERMS:
        raise WrongFilter(f"{len(terms)} conditions on addresses, ports and protocols, at most 8")
    return Filter(tuple(terms), _bits(wanted, reasons), _bits(at, hooks))


def _bits(wanted: set[str], names: Sequence[str]) -> int:
    """None wanted means all."""
    return sum(1 << place for place, name in enumerate(names) if name in wanted or not wanted)


class _Unknown(Exception):  # noqa: N818 - it names the word
    """No word of a filter."""


def _who_there_is(word: str, reasons: Sequence[str], hooks: Sequence[str]) -> str:
    """What is wrong with it. There are many reasons: those most like it are named."""
    near = difflib.get_close_matches(word, (*reasons, *hooks), n=3)
    return (
        f"{word!r}, expected tcp, udp, icmp, ip, ip6, arp, [src|dst] host ADDRESS,"
        " net ADDRESS/BITS or port N, pass, forward, answer, drop, a hook"
        f" ({', '.join(hooks)}), or a reason (docs/reference/reasons.md)"
        + (f"; did you mean {' or '.join(near)}?" if near else "")
    )


def _term(word: str, rest: Iterator[str]) -> Term:
    if word in _PROTOCOLS:
        return Term(Part.PROTOCOL, _PROTOCOLS[word])
    if word in _ETHERTYPES:
        return Term(Part.ETHERTYPE, _ETHERTYPES[word])
    side = _SIDES.get(word, _EITHER)
    what = next(rest, "") if word in _SIDES else word
    if what not in ("host", "net", "port"):
        raise _Unknown(what or word)
    value = next(rest, "")
    if what == "port":
        if not value.isascii() or not value.isdigit() or not 0 < int(value) <= 0xFFFF:
            raise WrongFilter(f"port {value!r}, expected 1 to 65535")
        return Term(Part.PORT, int(value), sides=side)
    try:
        network = IPv4Network(value, strict=False)
    except ValueError:
        expected = "an IPv4 address" if what == "host" else "an IPv4 ADDRESS/BITS"
        raise WrongFilter(f"{what} {value!r}, expected {expected}") from None
    address, mask = network.network_address.packed, network.netmask.packed
    if what == "host" and "/" in value:
        raise WrongFilter(f"host {value!r}, expected an IPv4 address; net takes ADDRESS/BITS")
    return Term(Part.ADDRESS, address=address, mask=mask, sides=side)
