"""Which LBs agree with one another, and how that changes: by one at a time. Pure.

The members stand in the node table, by their entries `host:port`. So a change of them is a table
like any other: proposed by the leader, stored, committed, kept over restarts. The list of the file
says who they are until the first table says so, and whom an LB that is no member listens to.

**A change holds from when its table is accepted**, not from when it is committed (Ongaro, 2014,
§4.1): votes, promises and copies are counted by the newest table that an LB has. Of two lists that
differ by one LB any two majorities have an LB in common, whose promises and whose newer table keep
two leaders apart. Four rules keep it at one LB:

* the next change waits until the one before is committed, by a majority of its own list;
* a leader changes nothing before a table of its own term is committed: what another leader had
  proposed, and nobody has heard of, can win no vote after that;
* it waits for as long as any promise may last, from both: leases that rest on promises by one list
  are over before there is a list that shares no majority with it;
* a leader that takes a list by which it has less of a lease votes for nobody until what it had by
  the former one is over (`election`).

**Refused**, with the reason in words: what would not leave a majority of LBs that answer now, with
the new one not counted, since nobody knows yet that it does; to remove the leader, which has to
hand over first; an eighth member; and to come down to one, which is another way of deciding
(`gale quorum recover`, or a list with nobody in it).

Asked for anywhere, a change is passed on to the leader, and again every `RESEND_MS`, as an order
is. It is answered when its table is committed, at once where the list is so already, and refused
after `WAIT_MS`, though it may yet come about.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bus.states import Member
from bus.words import MemberChange
from services.quorum.orders import RESEND_MS, WAIT_MS, Answer

MOST_MEMBERS = 7


@dataclass(frozen=True, slots=True)
class Circumstances:
    """How things stand for the leader."""

    leader: str
    """Its own entry."""
    answering: frozenset[str]
    """The entries of the members that answer now, its own among them."""
    may_change: bool
    """Whether the change before is over, and the leader has led for long enough."""


def find(who: str, known: Mapping[str, str], others: Mapping[str, str]) -> str:
    """The entry of whoever an operator calls so: by its name, its host, or its entry.

    `known`: the members' names by their entries; `others`: those of LBs that are none, or might be.
    Raises ValueError, in words, if nobody is called so, or several are.
    """
    for entries in (known, others):
        if who in entries:
            return who
        found = [entry for entry, name in entries.items() if name == who]
        found = found or [entry for entry in entries if entry.rpartition(":")[0] == who]
        if len(found) > 1:
            raise ValueError(f"{who} may be {' or '.join(sorted(found))}")
        if found:
            return found[0]
    raise ValueError(
        f"no load balancer called {who} is a member or is heard here; of one that is not, give"
        " HOST:PORT as its own file lists it"
    )


def why_not(change: MemberChange, address: str, members: frozenset[str], now: Circumstances) -> str:
    """Why the leader does not make this change; empty: it does."""
    if change is MemberChange.ADD and len(members) >= MOST_MEMBERS:
        return f"{MOST_MEMBERS} members are the most"
    if change is MemberChange.REMOVE and address == now.leader:
        return f"{address} leads: `gale handover` there first"
    after = members | {address} if change is MemberChange.ADD else members - {address}
    if len(after) < 2:
        return "the last two need each other; where one is gone for good: `gale quorum recover`"
    needed, answering = len(after) // 2 + 1, len(now.answering & members & after)
    if answering < needed:
        return (
            f"of the {len(after)} there would be {needed} must agree, and of those that are members"
            f" already {answering} answer now"
        )
    return ""


@dataclass(slots=True)
class _Waiting:
    change: MemberChange
    address: str
    asker: str | None
    since_ms: int
    epoch: int | None = None
    """Of the table into which this LB, as the leader, has written it."""
    sent_ms: int | None = None

    def is_so(self, members: Iterable[Member]) -> bool:
        there = self.address in {member.address for member in members}
        return there is (self.change is MemberChange.ADD)


class Changes:
    """The changes that wait to be agreed on, at the LB that was asked and at the leader."""

    def __init__(self) -> None:
        self._waiting: dict[str, _Waiting] = {}
        self._answers: list[Answer] = []

    def ask(
        self, number: str, change: MemberChange, address: str, asker: str | None, now_ms: int
    ) -> None:
        """`number`: the id of the operator's command; `asker`: who passed it on; None: nobody."""
        if number not in self._waiting:
            self._waiting[number] = _Waiting(change, address, asker, now_ms)

    @property
    def wants_to_change(self) -> bool:
        return any(each.epoch is None for each in self._waiting.values())

    def next_members(
        self, members: tuple[Member, ...], epoch: int, now: Circumstances
    ) -> tuple[Member, ...]:
        """For the leader: the members of the table after that of `epoch`; one change at the most.

        `members` are those of a committed table.
        """
        for number, each in list(self._waiting.items()):
            if each.is_so(members):
                self._answer(number, "")
                continue
            if each.epoch is not None:
                continue
            addresses = frozenset(member.address for member in members)
            if refusal := why_not(each.change, each.address, addresses, now):
                self._answer(number, refusal)
            elif now.may_change:
                each.epoch = epoch + 1
                kept = [member for member in members if member.address != each.address]
                added = [Member(each.address)] if each.change is MemberChange.ADD else []
                return tuple(sorted([*kept, *added], key=lambda member: member.address))
        return members

    def committed(self, members: tuple[Member, ...]) -> None:
        """All LBs go by a table with these members."""
        for number, each in list(self._waiting.items()):
            if each.is_so(members):
                self._answer(number, "")

    def lead_ended(self) -> None:
        for each in self._waiting.values():
            each.epoch = None

    def answered(self, number: str, refusal: str) -> None:
        """The leader says what has become of it."""
        if number in self._waiting:
            self._answer(number, refusal)

    def to_pass_on(self, now_ms: int) -> list[tuple[str, MemberChange, str]]:
        """What to send to the leader, which is another LB, now: id, change, entry."""
        due = [
            (number, each)
            for number, each in self._waiting.items()
            if each.asker is None and (each.sent_ms is None or now_ms >= each.sent_ms + RESEND_MS)
        ]
        for _, each in due:
            each.sent_ms = now_ms
        return [(number, each.change, each.address) for number, each in due]

    def tick(self, now_ms: int) -> None:
        for number, each in list(self._waiting.items()):
            if now_ms >= each.since_ms + WAIT_MS:
                self._answer(
                    number, f"the load balancers have not agreed on it within {WAIT_MS} ms"
                )

    def next_due_ms(self, *, passes_on: bool) -> int | None:
        """When `tick`, or `to_pass_on` where that is possible, has something to do."""
        waiting = self._waiting.values()
        due = [each.since_ms + WAIT_MS for each in waiting]
        due += [
            each.sent_ms + RESEND_MS
            for each in waiting
            if passes_on and each.sent_ms is not None and each.asker is None
        ]
        return min(due, default=None)

    def take_answers(self) -> list[Answer]:
        answers, self._answers = self._answers, []
        return answers

    def _answer(self, number: str, refusal: str) -> None:
        self._answers.append(Answer(number, self._waiting.pop(number).asker, refusal))


def named(members: tuple[Member, ...], names: Mapping[str, str]) -> tuple[Member, ...]:
    """The members with the names that are known by now, by their entries."""
    return tuple(
        replace(member, name=names.get(member.address) or member.name) for member in members
    )


def gone_and_come(
    before: tuple[Member, ...], after: tuple[Member, ...]
) -> tuple[list[Member], list[Member]]:
    """Who left and who came; where nothing was agreed before, everybody has been there."""
    if not before or not after:
        return [], []
    was, now = {each.address for each in before}, {each.address for each in after}
    gone = [each for each in before if each.address not in now]
    come = [each for each in after if each.address not in was]
    return gone, come
