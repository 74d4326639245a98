"""When this LB announces its floating addresses, and what it says of who else claims them. Pure.

Neighbours keep for minutes which MAC address an IP address has. So whoever takes an address over
tells them (gratuitous ARP, RFC 5227, 3; unsolicited neighbour advertisement, RFC 4861, 7.2.6):

    state    on                              to       does
    ────────────────────────────────────────────────────────────────────────────────────────
    ABSENT   its claim is in the kernel      HELD     announces after 0, 50, 200, 1,000, 3,000 ms
                                                      and from then on every 10 s; `acquired`
    HELD     a peer is heard again           HELD     announces as if it had been acquired now:
                                                      behind the cut that has healed, others may
                                                      have heard another LB
    HELD     its interface has another MAC   HELD     likewise: neighbours have the old one
    HELD     another MAC address claims it   HELD     announces at once; `contests`
    HELD     its claim has ended             ABSENT   `lost`

The first announcement may be lost like any packet, and a switch that has just moved a port drops
more than one: hence the repetitions. Two that claim the same address would answer each other's
announcements for ever, so a rival is answered, and told of, at most once in a second.

In: `look`, what the kernel's maps say (until when this LB claims which address, and who else was
heard to); `peers`; `moved`; `tick`. Nothing is announced that is not claimed at that moment, so
whoever calls `tick` has just read the maps. Out, by `take`: what to send and to tell.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, auto

AFTER_MS = (0, 50, 200, 1_000, 3_000)
EVERY_MS = 10_000
DEFENCE_MS = 1_000
"""The least time between two announcements that answer rivals."""


class Standing(Enum):
    """Of an address that floats."""

    ABSENT = auto()
    HELD = auto()


class Cause(Enum):
    CLAIMED = auto()
    PEER_HEARD = auto()
    MOVED = auto()
    CONTESTED = auto()
    ENDED = auto()


class Does(Enum):
    BEGIN = auto()
    BEGIN_AGAIN = auto()
    DEFEND = auto()
    END = auto()


TRANSITIONS: dict[tuple[Standing, Cause], tuple[Standing, Does]] = {
    (Standing.ABSENT, Cause.CLAIMED): (Standing.HELD, Does.BEGIN),
    (Standing.HELD, Cause.PEER_HEARD): (Standing.HELD, Does.BEGIN_AGAIN),
    (Standing.HELD, Cause.MOVED): (Standing.HELD, Does.BEGIN_AGAIN),
    (Standing.HELD, Cause.CONTESTED): (Standing.HELD, Does.DEFEND),
    (Standing.HELD, Cause.ENDED): (Standing.ABSENT, Does.END),
}


@dataclass(frozen=True, slots=True)
class Rival:
    """Another MAC address that said so many times that it has an address of ours."""

    mac: str
    seen: int


@dataclass(frozen=True, slots=True)
class Seen:
    """What the maps say of one address."""

    until_ms: int
    rival: Rival | None = None
    """The newest one since the map was made."""


@dataclass(frozen=True, slots=True)
class Said:
    """What there is to do and to tell; each address stands once in each list."""

    announce: tuple[str, ...]
    acquired: tuple[str, ...]
    lost: tuple[str, ...]
    contests: tuple[tuple[str, Rival], ...]


@dataclass(slots=True)
class _Address:
    standing: Standing = Standing.ABSENT
    until_ms: int = 0
    since_ms: int = 0
    """When the schedule began."""
    done: int = 0
    """How many announcements of it have been made."""
    defended_ms: int | None = None
    rivals_seen: int | None = None
    """None: before the first look, when the map may tell of rivals of long ago."""

    def due_ms(self) -> int:
        if self.done < len(AFTER_MS):
            return self.since_ms + AFTER_MS[self.done]
        return self.since_ms + AFTER_MS[-1] + (self.done - len(AFTER_MS) + 1) * EVERY_MS


@dataclass(slots=True)
class _Out:
    announce: dict[str, None] = field(default_factory=dict)
    acquired: dict[str, None] = field(default_factory=dict)
    lost: dict[str, None] = field(default_factory=dict)
    contests: dict[str, Rival] = field(default_factory=dict)


class Announcer:
    """All floating addresses of one LB."""

    def __init__(self) -> None:
        self._addresses: dict[str, _Address] = {}
        self._peers: frozenset[str] | None = None
        self._out = _Out()

    @property
    def held(self) -> frozenset[str]:
        return frozenset(
            text for text, each in self._addresses.items() if each.standing is Standing.HELD
        )

    def look(self, seen: Mapping[str, Seen], now_ms: int) -> None:
        """What stands in the maps now, of every floating address."""
        for text in self._addresses.keys() - seen.keys():
            self._end(text, self._addresses[text])
            del self._addresses[text]
        for text, found in seen.items():
            address = self._addresses.setdefault(text, _Address())
            address.until_ms = found.until_ms
            if now_ms >= found.until_ms:
                self._end(text, address)
            elif address.standing is Standing.ABSENT:
                self._happens(text, address, Cause.CLAIMED, now_ms)
            self._look_for_rivals(text, address, found.rival, now_ms)

    def peers(self, alive: frozenset[str], now_ms: int) -> None:
        """These other LBs are heard."""
        known, self._peers = self._peers, alive
        if known is None or not alive - known:
            return
        self._all_held(frozenset(self._addresses), Cause.PEER_HEARD, now_ms)

    def moved(self, addresses: frozenset[str], now_ms: int) -> None:
        """The interfaces of these have another MAC address than when this was called last."""
        self._all_held(addresses, Cause.MOVED, now_ms)

    def _all_held(self, addresses: frozenset[str], cause: Cause, now_ms: int) -> None:
        for text in sorted(addresses & self.held):
            self._happens(text, self._addresses[text], cause, now_ms)

    def tick(self, now_ms: int) -> None:
        """It is `now_ms`, and the maps have just been looked at."""
        for text, address in self._addresses.items():
            if address.standing is Standing.HELD and now_ms >= address.until_ms:
                self._end(text, address)
            if address.standing is Standing.HELD and now_ms >= address.due_ms():
                # What a late loop has missed is not made up for.
                while now_ms >= address.due_ms():
                    address.done += 1
                self._out.announce[text] = None

    def next_due_ms(self) -> int | None:
        """When the maps are to be looked at, and `tick` called; None: nothing is held."""
        held = [each for each in self._addresses.values() if each.standing is Standing.HELD]
        return min((min(each.due_ms(), each.until_ms) for each in held), default=None)

    def take(self) -> Said | None:
        """What has come up since this was called last."""
        out, self._out = self._out, _Out()
        if not (out.announce or out.acquired or out.lost or out.contests):
            return None
        return Said(
            tuple(out.announce), tuple(out.acquired), tuple(out.lost), tuple(out.contests.items())
        )

    # ------------------------------------------------------------------ one address

    def _look_for_rivals(
        self, text: str, address: _Address, rival: Rival | None, now_ms: int
    ) -> None:
        seen = rival.seen if rival is not None else 0
        if rival is None or address.rivals_seen is None or seen == address.rivals_seen:
            address.rivals_seen = seen
            return
        last_ms = address.defended_ms
        if last_ms is not None and now_ms < last_ms + DEFENCE_MS:
            return  # it is still news when that time is over
        address.rivals_seen, address.defended_ms = seen, now_ms
        self._out.contests[text] = rival
        if address.standing is Standing.HELD:
            self._happens(text, address, Cause.CONTESTED, now_ms)

    def _end(self, text: str, address: _Address) -> None:
        if address.standing is Standing.HELD:
            self._happens(text, address, Cause.ENDED, 0)

    def _happens(self, text: str, address: _Address, cause: Cause, now_ms: int) -> None:
        address.standing, does = TRANSITIONS[address.standing, cause]
        if does is Does.BEGIN:
            self._out.acquired[text] = None
        if does in (Does.BEGIN, Does.BEGIN_AGAIN):
            address.since_ms, address.done = now_ms, 0
        elif does is Does.END:
            self._out.lost[text] = None
            self._out.announce.pop(text, None)
        elif does is Does.DEFEND:
            self._out.announce[text] = None
