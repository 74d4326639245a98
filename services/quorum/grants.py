"""Which VIPs are granted, held and claimed at this moment. Pure.

    leases       the rules: what was granted to others, and what was granted to this LB
    this module  when a grant is given, and what comes of both: `new_claims`

A leader grants a VIP to its owner by the *committed* table of its own term, while no other owner is
proposed (`_mine`), under its own lease, with every answer to a beat. With four members and more the
first to answer does so before the lease has grown, which takes a majority: it is granted what is
left from the beat before, and the new lease as soon as that is there. The leader claims its own
VIPs for as long as its lease lasts; everybody else claims what was granted to it.

**One LB alone** claims its VIPs `ALONE_CLAIM_MS` ahead, and renews that when half of it is over.

A claim that ends is in the kernel before the message goes that lets another LB have the VIP: the
shell claims before it sends, and a `Release` is only made once the lease is given up here.
"""

from __future__ import annotations

from bus.peer_protocol import Ack, Grant, Release
from bus.words import Role
from services.quorum.durable import Outbox
from services.quorum.election import Election
from services.quorum.leases import Granted, Held
from services.quorum.ownership import fit
from services.quorum.register import Register
from services.quorum.roster import Roster

ALONE_CLAIM_MS = 10_000
"""A quorum of one claims its VIPs for so long ahead: nobody waits for the end of its lease, and so
they outlast a restart of its process."""


class Grants:
    """One LB's part in the leases of VIPs, as their leader and as their holder."""

    def __init__(
        self,
        boot: str,
        roster: Roster,
        election: Election,
        register: Register,
        outbox: Outbox,
    ) -> None:
        """`boot`: names this start of the process."""
        self._boot, self._roster, self._election = boot, roster, election
        self._register, self._outbox = register, outbox
        self.granted, self.held = Granted(), Held(boot)
        self.claims: dict[str, int] = {}
        """By VIP, until when the shell was told last that this LB may claim it."""
        self._answers: dict[str, Ack] = {}
        """By entry, its newest answer, unless what was granted by it was released."""
        self._seen_until_ms = 0
        """Until when this LB's own lease lasted at the last answer of anybody."""

    # ------------------------------------------------------------------ the leader

    def begin_to_lead(self, now_ms: int, unknown_ms: int) -> None:
        """For so long there may be leases of the leader before."""
        self.granted.begin(now_ms, unknown_ms)
        self.held.give_up(now_ms)
        self._answers.clear()

    def answer(self, entry: str, ack: Ack, now_ms: int) -> None:
        """A member has answered a beat: it is granted what is its own. Where its answer has made
        the lease grow, so are those that had answered the same beat, or a newer one, before.
        """
        until_ms = self._election.lease_until_ms(now_ms)
        is_another, self._seen_until_ms = until_ms != self._seen_until_ms, until_ms
        self._answers[entry] = ack
        for other, answer in self._answers.items():
            if other == entry or (is_another and answer.seq >= ack.seq):
                self._grant(other, answer, until_ms, now_ms)

    def _grant(self, entry: str, ack: Ack, until_ms: int, now_ms: int) -> None:
        """Answer that with what its sender owns, and is fit for, until then."""
        vips = self._mine(ack.sender) if now_ms < until_ms else ()
        if not vips or ack.sender not in fit(self._roster.standings(now_ms)):
            return
        for vip in vips:
            self.granted.grant(vip, ack, until_ms)
        name, term = self._roster.own.name, self._election.term
        grant = Grant(name, term, ack.boot, ack.asked, vips, until_ms - now_ms)
        self._outbox.post(entry, grant)

    def released(self, message: Release) -> None:
        """What that LB was granted, up to that answer of it, is over."""
        self.granted.release(message)
        for entry, ack in list(self._answers.items()):
            is_its = (ack.sender, ack.boot) == (message.sender, message.boot)
            if is_its and ack.asked <= message.asked:
                del self._answers[entry]

    def is_free(self, vip: str, now_ms: int) -> bool:
        """Whether nobody can hold the VIP by a grant any more."""
        return self.granted.is_free(vip, now_ms)

    def _mine(self, lb: str) -> tuple[str, ...]:
        """The VIPs that may be granted to `lb` now: its own by what is agreed in this term, with
        no other owner proposed.
        """
        committed, accepted = self._register.committed, self._register.accepted
        if committed is None or accepted is None:
            return ()
        if committed.version.term != self._election.term and not self._roster.alone:
            return ()
        proposed = {vip.address: vip.owner for vip in accepted.table.vip_owners}
        return tuple(
            vip.address
            for vip in committed.table.vip_owners
            if vip.owner == lb and proposed.get(vip.address) == lb
        )

    # ------------------------------------------------------------------ the holder

    def take(self, grant: Grant) -> None:
        """One of this term."""
        if grant.term == self._election.term:
            self.held.take(grant)

    def give_up(self, now_ms: int) -> None:
        """This LB is not eligible, or no member, any more: it claims nothing, and says so."""
        self.held.give_up(now_ms)
        if (leader := self._roster.entry_called(self._election.leader)) is not None:
            self.send_releases(leader, now_ms)

    def send_releases(self, leader: str, now_ms: int) -> None:
        """To that entry, all that was given up and may not be known there yet."""
        for vip, asked in self.held.releases(now_ms).items():
            release = Release(self._roster.own.name, self._boot, asked, vip)
            self._outbox.post(leader, release)

    # ------------------------------------------------------------------ what the shell is told

    def new_claims(self, now_ms: int) -> dict[str, int] | None:
        """Until when this LB may claim what, if that is not what the shell was told last."""
        claims = dict(self.held.until_ms)
        if self._election.role is Role.LEADER:
            until_ms = self._election.lease_until_ms(now_ms)
            able = self._roster.own.name in fit(self._roster.standings(now_ms))
            mine = self._mine(self._roster.own.name) if able else ()
            if self._roster.alone and not self._is_due(mine, now_ms):
                return None
            if self._roster.alone:
                until_ms = now_ms + ALONE_CLAIM_MS
            claims = dict.fromkeys(mine, until_ms)
        claims = {vip: until_ms for vip, until_ms in claims.items() if until_ms > now_ms}
        if claims == self.claims:
            return None
        self.claims = claims
        return claims

    def _is_due(self, mine: tuple[str, ...], now_ms: int) -> bool:
        """Whether a quorum of one has to say more than it has said."""
        return not mine or set(mine) != set(self.claims) or now_ms >= self._renew_ms()

    def next_due_ms(self) -> int | None:
        """When a quorum of one, whom nobody wakes, has to see to its claims."""
        if self._roster.alone and self._election.role is Role.LEADER and self.claims:
            return self._renew_ms()
        return None

    def _renew_ms(self) -> int:
        return min(self.claims.values()) - ALONE_CLAIM_MS // 2
