"""`on_quorum_loss = "hold"`: without a majority the last holder goes on claiming, alone. Pure.

    lapse   what this LB claims ends with its lease, and nobody answers for the VIP until there is a
            majority again
    hold    whoever held it last claims it anew once no leader has been heard for `LEADERLESS_MS`,
            in which time a majority would have elected one, and goes on while all of this is so:

            * no leader is heard;
            * the last table that this LB knows names it as the owner;
            * this process has claimed it by a lease: one that has only just started knows of no
              other LB, nor of what became of the VIP meanwhile;
            * no other machine is heard to claim it;
            * nothing but the missing majority speaks against it (`eligibility`).

**Its one bad case**, and why "lapse" is the default: an LB that is cut off from the others, and not
from clients. The others elect a leader, which gives the VIP to one of them, and this LB does not
hear it. Both claim it until the one hears the other's announcement, which is some milliseconds
where they share the clients' network, and as long as the cut lasts where they do not: then clients
on either side have an LB of their own, which does not know the flows of the other side.

In: `look`, before every turn's end, and `contested`. Out: what to claim beside what leases allow,
each until `CLAIM_MS` from now, so that it ends by itself when this process does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

LEADERLESS_MS = 1_000
CLAIM_MS = 500
RENEW_MS = 100


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How things stand for this LB."""

    enabled: bool
    has_leader: bool
    able: bool
    """Nothing speaks against it as a holder, as far as it knows by itself."""
    owned: frozenset[str]
    """What the last table that it knows gives to it."""


class Holding:
    """What one LB holds on to."""

    def __init__(self) -> None:
        self._claimed: set[str] = set()
        """What this process has claimed by a lease."""
        self._contested: set[str] = set()
        """What another machine was heard to claim since there was a leader."""
        self._leaderless_ms: int | None = None
        """Since when; None: there is a leader."""
        self._held: dict[str, int] = {}
        self._due_ms: int | None = None

    @property
    def held(self) -> Mapping[str, int]:
        """What is claimed without a lease, each until when."""
        return self._held

    def leased(self, vips: Iterable[str]) -> None:
        """These are claimed by a lease now."""
        self._claimed.update(vips)

    def contested(self, vip: str) -> None:
        """Another machine claims it. While there is a leader that is the leader's business."""
        if self._leaderless_ms is not None:
            self._contested.add(vip)

    def look(self, now: Circumstances, now_ms: int) -> bool:
        """Whether `held` is other than it was, or has to be told again."""
        if now.has_leader:
            self._leaderless_ms = None
            self._contested.clear()
        elif self._leaderless_ms is None:
            self._leaderless_ms = now_ms
        wanted = self._wanted(now, now_ms)
        is_due = self._due_ms is not None and now_ms >= self._due_ms
        if wanted == self._held.keys() and not (wanted and is_due):
            if not wanted:
                self._due_ms = self._begins_ms(now, now_ms)
            return False
        self._held = dict.fromkeys(wanted, now_ms + CLAIM_MS)
        self._due_ms = now_ms + RENEW_MS if wanted else None
        return True

    def next_due_ms(self) -> int | None:
        """When to look again, if nothing happens before; None: never. Always after the last look,
        since whoever waits for a moment that has passed turns without an end.
        """
        return self._due_ms

    def _begins_ms(self, now: Circumstances, now_ms: int) -> int | None:
        if self._leaderless_ms is None or not now.enabled or not self._claimed:
            return None
        begins_ms = self._leaderless_ms + LEADERLESS_MS
        return begins_ms if begins_ms > now_ms else None

    def _wanted(self, now: Circumstances, now_ms: int) -> set[str]:
        since_ms = self._leaderless_ms
        if since_ms is None or now_ms < since_ms + LEADERLESS_MS or not now.enabled or not now.able:
            return set()
        return (self._claimed & now.owned) - self._contested
