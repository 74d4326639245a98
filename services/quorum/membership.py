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

Asked for anywhere, a change waits, is passed on to the leader and answered as an order is
(`waiting`): at once where the list is so already.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from bus.states import Member
from bus.words import MOST_MEMBERS, MemberChange
from services.quorum.waiting import Queue


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
    there = ", ".join(sorted(name or entry for entry, name in {**others, **known}.items()))
    raise ValueError(
        f"no load balancer called {who} is a member or is heard here; there are {there or 'none'};"
        " of another one, give HOST:PORT as its own file lists it"
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


@dataclass(frozen=True, slots=True)
class Wish:
    """An operator's: that the LB of this entry be a member, or none."""

    change: MemberChange
    address: str

    def is_so(self, members: Iterable[Member]) -> bool:
        there = self.address in {member.address for member in members}
        return there is (self.change is MemberChange.ADD)

    def made(self, members: tuple[Member, ...]) -> tuple[Member, ...]:
        kept = [member for member in members if member.address != self.address]
        added = [Member(self.address)] if self.change is MemberChange.ADD else []
        return tuple(sorted([*kept, *added], key=lambda member: member.address))


class Changes:
    """The changes that wait to be agreed on."""

    def __init__(self) -> None:
        self.waiting: Queue[Wish] = Queue()

    def next_members(
        self, members: tuple[Member, ...], epoch: int, now: Circumstances
    ) -> tuple[Member, ...]:
        """For the leader: the members of the table after that of `epoch`; one change at the most.

        `members` are those of a committed table.
        """
        self.committed(members)
        addresses = frozenset(member.address for member in members)
        for number, each in self.waiting.unwritten:
            wish = each.asked
            if refusal := why_not(wish.change, wish.address, addresses, now):
                self.waiting.answer(number, refusal)
            elif now.may_change:
                each.epoch = epoch + 1
                return wish.made(members)
        return members

    def committed(self, members: tuple[Member, ...]) -> None:
        """All LBs go by a table with these members."""
        for number, each in self.waiting.items():
            if each.asked.is_so(members):
                self.waiting.answer(number, "")


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
