"""Leases of VIPs: the leader passes its own on, the holder counts from when it asked. Pure.

A leader under a valid lease answers each `Ack` of the owner of a VIP, as the *committed* table
names it, with a `Grant`: so much is left of the leader's own lease. The holder's lease ends that
much after it *asked*, less both clocks' drift: before the leader's own. So two rules keep a VIP
from two holders:

* the leader names another owner only when the former one has released the VIP, or when all that
  was granted to it is over (`Granted`);
* whoever becomes leader by an election finds all leases of the term before at an end, since a
  majority's promises had to end first. One that was *chosen* finds only that of the leader before
  ended, so it waits for as long as its own lease lasts, and as that leader says that it has granted
  (whose timing may be slower, see `election`).

A grant answers a number that the holder used once (`asked`), in this start of its process: a late,
repeated or foreign grant extends nothing. A release says up to which number grants were given up,
and of which start, so a late one ends nothing that was granted since, also when answers came to the
leader in another order than they were sent in, or one of an earlier start came last. It may be lost
like anything else: it goes with every answer to the leader, until all that could have been granted
is over.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from bus.peer_protocol import Ack, Grant, Release
from bus.words import LARGEST_PROMISE_MS
from services.quorum.timing import passed_on


@dataclass(slots=True)
class Granted:
    """What a leader has granted to others: by VIP, to whom, and until when."""

    until_ms: dict[str, tuple[str, int]] = field(default_factory=dict)
    answered: dict[str, dict[str, int]] = field(default_factory=dict)
    """By VIP and start of the holder's process, the newest number of it that was not released."""
    unknown_until_ms: int = 0
    """Until then leases may be about that the leader before has granted."""

    def begin(self, now_ms: int, unknown_ms: int) -> None:
        """This LB leads from now on; for so long there may be leases of the leader before."""
        self.until_ms.clear()
        self.answered.clear()
        self.unknown_until_ms = now_ms + unknown_ms

    def grant(self, vip: str, ack: Ack, until_ms: int) -> None:
        """Until then, or until when it was granted before: this LB's lease may end sooner than it
        would have with the members of a moment ago, while the holder goes by what it was told.
        """
        holder, before_ms = self.until_ms.get(vip, ("", 0))
        answered = self.answered.get(vip, {}) if holder == ack.sender else {}
        newest = max(ack.asked, answered.get(ack.boot, 0))
        longest_ms = max(until_ms, before_ms) if holder == ack.sender else until_ms
        self.until_ms[vip] = (ack.sender, longest_ms)
        self.answered[vip] = answered | {ack.boot: newest}

    def release(self, message: Release) -> None:
        """A release of another start of the process says nothing of what this one holds."""
        holder, _ = self.until_ms.get(message.vip, ("", 0))
        answered = self.answered.get(message.vip, {})
        asked = answered.get(message.boot)
        if holder == message.sender and asked is not None and message.asked >= asked:
            del answered[message.boot]
            if not answered:
                del self.until_ms[message.vip]

    def left_ms(self, now_ms: int) -> int:
        """For how long something may be left of anything that this leader has granted."""
        until_ms = (self.free_ms(vip) for vip in self.until_ms)
        return max(0, max(until_ms, default=self.unknown_until_ms) - now_ms)

    def is_free(self, vip: str, now_ms: int) -> bool:
        """Whether nobody can hold the VIP by a grant any more."""
        return now_ms >= self.free_ms(vip)

    def free_ms(self, vip: str) -> int:
        return max(self.until_ms.get(vip, ("", 0))[1], self.unknown_until_ms)


class Held:
    """The leases of this LB itself."""

    def __init__(self, boot: str) -> None:
        self._boot = boot
        self._asked = 0
        self._asked_ms: deque[tuple[int, int]] = deque()
        self._least = 0
        """Grants of numbers up to this one were given up."""
        self.until_ms: dict[str, int] = {}
        self.given_up: dict[str, tuple[int, int]] = {}
        """By VIP, up to which number its grants were given up, and until when the leader may have
        to wait for their end if it is not told: so long it is told with every answer.
        """

    def ask(self, now_ms: int) -> int:
        """The number for the next `Ack`."""
        self._asked += 1
        self._asked_ms.append((self._asked, now_ms))
        while self._asked_ms[0][1] < now_ms - LARGEST_PROMISE_MS:
            self._asked_ms.popleft()
        return self._asked

    def take(self, grant: Grant) -> None:
        if grant.boot != self._boot or grant.asked <= self._least:
            return
        for asked, asked_ms in self._asked_ms:
            if asked == grant.asked:
                until_ms = asked_ms + passed_on(grant.left_ms)
                for vip in grant.vips:
                    self.until_ms[vip] = max(self.until_ms.get(vip, 0), until_ms)

    def give_up(self, now_ms: int) -> None:
        """End all leases: grants that answer what was asked so far count for nothing."""
        self._least = self._asked
        for vip, until_ms in self.until_ms.items():
            if until_ms > now_ms:
                self.given_up[vip] = self._least, now_ms + LARGEST_PROMISE_MS
        self.until_ms.clear()

    def releases(self, now_ms: int) -> dict[str, int]:
        """What the leader is to be told: the VIPs that were given up, and up to which number."""
        self.given_up = {
            vip: (asked, told_ms)
            for vip, (asked, told_ms) in self.given_up.items()
            if now_ms < told_ms and vip not in self.until_ms
        }
        return {vip: asked for vip, (asked, _) in self.given_up.items()}
