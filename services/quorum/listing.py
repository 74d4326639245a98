"""How the members change by the lists of the files: when all say the same new thing. Pure.

Each LB tells the leader, with every answer, a digest of the list of its file; the table has the one
that all files agreed on last (`NodeTable.listed`). While every member that is alive has the same
list as the leader, and that is another one than the table's,

* it is only noted, if the table has none: at the first start, and after an older Gale;
* else the members become those of the list: one LB is added or removed by each table, additions
  first, by the rules that hold for operators' wishes (`membership`). What is refused waits, and
  what is allowed goes before it: so a dead LB is replaced by another, though it could not have been
  added while the dead one counts. When the members are those of the list, the table notes it.

**It is changes of the files that count**, not what they say: who was added by `gale quorum add`
and stands in no file stays, and who was removed stays away, until all files say something new. A
change that is begun goes on under another leader, since that has the same file and the table does
not have the digest yet. An operator's wish goes first.

**Who is waited for** is every member that is alive, witnesses too, an LB that has just been added
too; not one that is dead. All of them must have answered for as long as it takes until members may
change (`Circumstances.may_change`): a leader that has heard nobody yet knows nothing of the files.

**Entries** are compared as they are written, so all files write an LB alike. A file may write
another entry than the table for the same machine, a name for an address: then the table's is meant
(`target`), and as long as nobody knows the address of a name, nothing changes.
"""

from __future__ import annotations

from collections.abc import Iterable

from bus.states import Member, NodeTable
from bus.words import MemberChange
from services.quorum.membership import Circumstances, Wish, why_not
from services.quorum.staged import digest_of

UNRESOLVED = "a name in the new list has no address yet"


def digest(entries: Iterable[str]) -> str:
    """The same for two lists of the same entries, in any order."""
    return digest_of(sorted(set(entries)))


def wishes(members: Iterable[str], target: Iterable[str]) -> list[Wish]:
    """The changes that lead from these members to those, in the order in which they are tried."""
    was, wanted = frozenset(members), frozenset(target)
    added = [Wish(MemberChange.ADD, each) for each in sorted(wanted - was)]
    return added + [Wish(MemberChange.REMOVE, each) for each in sorted(was - wanted)]


class Listing:
    """What this LB's file lists, and what all files have agreed on."""

    def __init__(
        self,
        entries: tuple[str, ...],
        target: tuple[str, ...],
        known: NodeTable | None,
        *,
        alone: bool,
    ) -> None:
        """`entries`: all of the file's, this LB's too. `target`: the same LBs by the entries that
        the table has for them; an empty one has no address yet. `known`: the newest table that this
        LB remembers. `alone`: nobody else has a say.
        """
        self._alone = alone
        self._target = target
        self.own = "" if alone else digest(entries)
        """The digest of what this LB's file lists; empty: it decides alone."""
        self.agreed = known.listed if known is not None else ""
        """Of what the committed table has; empty: nothing was agreed on yet."""
        self.why = ""
        """For the leader: why what all files list does not hold yet; empty: nothing speaks against
        it, or it does."""

    def stage(self, entries: tuple[str, ...], target: tuple[str, ...]) -> None:
        """The file was read again, or more is known of its entries."""
        self.own, self._target = digest(entries), target
        self.why = ""

    def begin_to_lead(self) -> None:
        """What spoke against the list when this LB led before may speak against it no more."""
        self.why = ""

    def committed(self, table: NodeTable) -> None:
        """All go by it."""
        self.agreed = table.listed

    def differs(self, table: NodeTable) -> bool:
        """Whether this LB's file lists others than all files agreed on last."""
        return self.own not in ("", table.listed)

    def next_members(
        self,
        members: tuple[Member, ...],
        agreed: str,
        others: Iterable[str],
        now: Circumstances,
    ) -> tuple[tuple[Member, ...], str]:
        """For the leader: members and digest of the table after one with `members` and `agreed`.

        `others`: the digests of the other members that are alive.
        """
        if self._alone or self.own == agreed or any(each != self.own for each in others):
            self.why = ""
            return members, agreed
        if not now.may_change:
            return members, agreed
        if not agreed:
            return members, self.own
        if "" in self._target:
            self.why = UNRESOLVED
            return members, agreed
        after = self._one_step(members, now)
        is_done = {each.address for each in after} == set(self._target)
        return after, self.own if is_done else agreed

    def _one_step(self, members: tuple[Member, ...], now: Circumstances) -> tuple[Member, ...]:
        """The first of the changes that is not refused."""
        self.why = ""
        addresses = frozenset(each.address for each in members)
        for wish in wishes(addresses, self._target):
            refusal = why_not(wish.change, wish.address, addresses, now)
            if not refusal:
                return wish.made(members)
            self.why = self.why or refusal
        return members
